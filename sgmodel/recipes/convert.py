"""Convert published weights to a checkpoint folder: the same as `sgmodel convert`.

python -m sgmodel.recipes.convert SpectralGPT+.pth --out out/weights/spectralgpt-plus
"""

from __future__ import annotations

from sgmodel import commands

if __name__ == "__main__":
    commands.run_module(commands.convert, "convert")
