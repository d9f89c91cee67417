"""Run and report tables of experiments."""
