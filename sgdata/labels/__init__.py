"""Make label rasters from OpenStreetMap: Overpass, features, tag rules, class tables, rasterisation."""
