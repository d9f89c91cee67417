#!/bin/sh
# Continue pretraining on your shards, from weights that exist. Usage: sh recipes/tutorials/continue_pretraining.sh [DIR]
# after new_city.sh. `--weights` takes a checkpoint folder, OWNER/NAME on the HuggingFace hub, or the published .pth files
# (`python -m sgmodel.recipes.convert` reports on each). Few steps here: leave out --set training.epochs for a real run.
set -eu
OUT=${1:-out/tutorial}
RECIPE=$(dirname "$0")/../train/pretrain-demo-tiny.toml
SHORT="--set training.epochs=0.5 --set training.optimizer.warmup_epochs=0"

python -m sgmodel.recipes.pretrain "$RECIPE" --shards "$OUT/shards" --out "$OUT/runs/first" $SHORT

# A second run that starts from the first one's weights, with a smaller learning rate and more hidden.
python -m sgmodel.recipes.pretrain "$RECIPE" --shards "$OUT/shards" --out "$OUT/runs/second" $SHORT \
    --weights "$OUT/runs/first/checkpoint-last" --set training.optimizer.lr=5e-4 --set mask_ratio=0.9
sgdata verify "$OUT/runs/second"
