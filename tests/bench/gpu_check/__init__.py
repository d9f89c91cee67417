"""Check and time the product's own steps on one machine: `python -m gpu_check --out DIR`."""
