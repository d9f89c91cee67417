"""Read the results of training runs and predictions: scores as tables, maps as xarray."""
