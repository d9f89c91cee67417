"""Predict with any checkpoint: the same as `sgmodel predict`.

    python -m sgmodel.recipes.predict --input FILE.tif|BUILD|SHARDS [--after SECOND] --weights CHECKPOINT --out DIR

`sgmodel.inference.predict` describes the outputs.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sgmodel import commands

    commands.run_module(commands.predict, "predict")
