"""Audit a dataset: leaks between splits, duplicates, broken bands, missing classes."""
