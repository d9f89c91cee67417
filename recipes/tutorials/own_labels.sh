#!/bin/sh
# Fine-tune on classes of your own, and draw the map. Usage: sh recipes/tutorials/own_labels.sh [DIR]
# after new_city.sh and continue_pretraining.sh.
set -eu
OUT=${1:-out/tutorial}
RECIPE=$(dirname "$0")/../train/segment-demo-tiny.toml
AREA="--aoi $OUT/archive/aoi.geojson --stac $OUT/archive/catalog.json --dates 2019-04-01/2020-03-31"

# Tab-separated: ids follow the order of the names; priority 1 is strongest; a line needs half its width in metres.
printf 'name\tcode\tcolour\ttags\tgeometry\tpriority\thalf_width_m\n' > "$OUT/classes.tsv"
printf 'Forest\t\t#2f7d32\tlanduse=forest;natural=wood\tpolygon\t3\t\n' >> "$OUT/classes.tsv"
printf 'Water\t\t#3060c0\tnatural=water\tpolygon\t1\t\n' >> "$OUT/classes.tsv"
printf 'Water\t\t#3060c0\twaterway=*\tline\t1\t4\n' >> "$OUT/classes.tsv"
printf 'Fields\t\t#e0c060\tlanduse=farmland;landuse=meadow\tpolygon\t4\t\n' >> "$OUT/classes.tsv"
printf 'Built\t\t#b04040\tlanduse=residential;landuse=industrial;landuse=commercial\tpolygon\t2\t\n' >> "$OUT/classes.tsv"

sgdata build segmunich $AREA --osm "$OUT/archive/osm/city.osm" --out "$OUT/build-own" --set patches.stride=32 \
    --set "labels.classes=$OUT/classes.tsv" || test $? = 3
sgdata shard segmunich --source "$OUT/build-own" --out "$OUT/shards-own"

# Other labels make other train patches, and so other means than those the weights learned with: refused by name, unless
# accepted in plain sight. As many steps as a tutorial needs; leave out --set training.epochs for a real run.
python -m sgmodel.recipes.segment "$RECIPE" --shards "$OUT/shards-own" --out "$OUT/runs/own" \
    --weights "$OUT/runs/second/checkpoint-last" --set 'accept=["normalisation"]' \
    --set training.epochs=0.5 --set training.optimizer.warmup_epochs=0
python -m sgmodel.recipes.predict --input "$OUT/build-own" --weights "$OUT/runs/own/checkpoint-best" --out "$OUT/map"
sgdata show "$OUT/build-own" --layer "$OUT/map"
