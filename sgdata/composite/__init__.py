"""Reduce scenes to one image: staging, cloud masks, composite rules, tiles."""
