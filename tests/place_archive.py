"""Two tiny places in two UTM zones: their scenes in one catalogue, and a table of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pyproj import Transformer
from stac_wrap import Wrapped, wrap

import sgdata

NAMES = ("west", "east")
SETTINGS = (
    *("--dates", "2019-01-01/2019-12-31", "--set", 'bands=["B02", "B04"]', "--set", "patches.size=32"),
    *("--set", "patches.stride=32", "--set", "split.block_px=32", "--set", "split.gap_px=0"),
)


def write(folder: Path, *, names: tuple[str, ...] = NAMES, px: int = 200) -> tuple[Path, Path]:
    """Write catalogue and table of places of `px` pixels; return their paths."""
    rng = np.random.Generator(np.random.Philox(key=11))
    scenes, rows = [], []
    for number, (zone, tile) in enumerate((("EPSG:32632", "32UPU"), ("EPSG:32633", "33UPU"))):
        for month in range(5, 8):
            side = px + 40
            layers: dict[str, tuple[Any, float]] = {
                "B02": (rng.integers(100 + 400 * number, 900, (side, side)).astype(np.uint16), 10.0),
                "B04": (rng.integers(100, 900, (side, side)).astype(np.uint16), 10.0),
                "SCL": (np.full((side // 2, side // 2), 4, np.uint8), 20.0),
            }
            name = f"S2A_{tile}_20190{month}01_0_L2A"
            scenes.append(Wrapped(id=name, time=f"2019-0{month}-01T10:00:00Z", layers=layers, crs=zone))
        move = Transformer.from_crs(zone, 4326, always_xy=True)
        west, south, east, north = move.transform_bounds(600_120, 5_399_880 - 10 * px, 600_120 + 10 * px, 5_399_880)
        rows.append(f"{names[number]}\t{west:.6f} {south:.6f} {east:.6f} {north:.6f}\n")
    wrap(folder / "catalogue", scenes)
    table = folder / "places.tsv"
    table.write_text("name\tbbox\n" + "".join(rows))
    return folder / "catalogue", table


def build(archive: Path, table: Path, out: Path) -> Path:
    """Build both places, and return their folder."""
    settings = [text for text in SETTINGS[2:] if text != "--set"]
    sgdata.build("segmunich", places=table, stac=str(archive), osm="none", out=out, dates=SETTINGS[1], changes=settings)
    return out


def forget_place(folder: Path) -> None:
    """Remove the place from the recipe of a build, as of builds of one place."""
    recipe = folder / "recipe.toml"
    kept = [line for line in recipe.read_text().splitlines(keepends=True) if not line.startswith("place = ")]
    recipe.write_text("".join(kept))
