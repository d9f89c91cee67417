"""Read, write and resample rasters: grids, GeoTIFF and COG, small TIFFs."""
