#!/bin/sh
# A new city: from a catalogue of scenes to verified, audited shards and a page. Usage: sh recipes/tutorials/new_city.sh [DIR]
# Here the catalogue is simulated, so that it runs offline. For a real place leave --stac and --osm out (Earth Search and
# Overpass are the defaults), and say where: --bbox W S E N, --aoi FILE or --place NAME.
set -eu
OUT=${1:-out/tutorial}
AREA="--aoi $OUT/archive/aoi.geojson --stac $OUT/archive/catalog.json --dates 2019-04-01/2020-03-31"

sgdata simulate "$OUT/archive" --size 4 --dates 6 --seed 7

# What there is, month by month, before a pixel is fetched. Six dates leave holes, so we allow them.
sgdata plan segmunich $AREA --out "$OUT/build" --allow-holes

# Exit 3: some pixels no date saw clear. They hold no data, and the command says how many.
sgdata build segmunich $AREA --osm "$OUT/archive/osm/city.osm" --out "$OUT/build" --set patches.stride=32 || test $? = 3
sgdata verify "$OUT/build"
sgdata show "$OUT/build"

# Exit 3 of an audit: it has findings. On so small an area a class may be missing from one split.
sgdata shard segmunich --source "$OUT/build" --out "$OUT/shards"
sgdata audit "$OUT/shards" --build "$OUT/build" --out "$OUT/audit" || test $? = 3
