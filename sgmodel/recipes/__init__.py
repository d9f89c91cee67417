"""The programs that train, apply and convert models, each also run as `python -m sgmodel.recipes.NAME`."""
