"""Simulate a city: Sentinel-2 scenes, OpenStreetMap data, and the truth behind both."""
