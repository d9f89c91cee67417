"""Read the results of training runs and tabulate them."""
