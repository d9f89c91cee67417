"""Train models: training runs, the loop, optimizers, metrics."""
