#!/bin/sh
# Shards of your own dataset, and a model on them. Usage: sh recipes/tutorials/own_dataset.sh [DIR]
# A dataset that many will use deserves a reader (sgdata/datasets/), a card (catalogs/) and a recipe (recipes/shard/).
set -eu
OUT=${1:-out/tutorial}
HERE=$(dirname "$0")

python "$HERE/own_dataset.py" "$OUT/ponds"
sgdata verify "$OUT/ponds"
sgdata audit "$OUT/ponds" --out "$OUT/ponds-audit"
sgdata show "$OUT/ponds"

# Bands are those of the data; the spectral groups must divide them. One epoch, to see it run.
python -m sgmodel.recipes.segment "$HERE/../train/segment-demo-tiny.toml" --shards "$OUT/ponds" --out "$OUT/runs/ponds" \
    --set 'bands=["B02","B03","B04","B08"]' --set model.encoder.bands=4 --set model.encoder.group_bands=2 \
    --set training.epochs=1 --set training.optimizer.warmup_epochs=0
