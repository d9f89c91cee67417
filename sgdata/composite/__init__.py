"""Reduce staged scenes to one image: cloud masks, composite rules, tiles."""
