"""Predict with any checkpoint: the same as `sgmodel predict`.

    python -m sgmodel.recipes.predict --input FILE.tif|BUILD|SHARDS [--after SECOND] --weights CHECKPOINT --out DIR

`sgmodel.inference.predict` describes the outputs.
"""

from __future__ import annotations

from sgmodel import commands

if __name__ == "__main__":
    commands.run_module(commands.predict, "predict")
