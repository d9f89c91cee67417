"""Build a dataset of one place: recipe, pipeline, folder format, patches."""
