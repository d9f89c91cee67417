"""Convert published weights to a checkpoint folder: the same as `sgmodel convert`.

python -m sgmodel.recipes.convert SpectralGPT+.pth --out out/weights/spectralgpt-plus
"""

from __future__ import annotations

if __name__ == "__main__":
    from sgmodel import commands

    commands.run_module(commands.convert, "convert")
