"""Predict maps from rasters."""
