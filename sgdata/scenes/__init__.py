"""Find Sentinel-2 scenes: STAC search, area of interest, coverage, offsets, product metadata, signing, lock."""
