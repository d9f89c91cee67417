"""How near a build comes to the truth that the simulator kept: composite, clouds, labels, offsets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sgdata.rasters import geotiff, resample
from sgdata.sentinel2 import MSI
from sgdata.types import Array

# Bits of `truth/clouds/<id>.tif`, written out again: who judges reads the archive's format, not the simulator's code.
CLOUD, SHADOW, THIN = 1, 2, 4


def rmse(image: Array, reference: Array, where: Array) -> float:
    """Compute the root mean square difference of two DN images (C, H, W) at the pixels `where`, in reflectance."""
    # float64: squares of DN summed over millions of pixels exceed what float32 adds exactly.
    difference = image[:, where].astype(np.float64) - reference[:, where]
    return float(np.sqrt(np.mean(difference**2)) * MSI.scale)


def read(path: Path) -> Array:
    """Read all bands of a raster, (C, H, W)."""
    with geotiff.open_raster(str(path)) as raster:
        pixels: Array = raster.read()
    return pixels


def to_finest(by_gsd: dict[int, Array], names: tuple[str, ...], order: dict[int, tuple[str, ...]]) -> Array:
    """Resample truth at 10, 20 and 60 m to (C, H, W) at 10 m in the order of `names`, by the builder's own kernel.

    So a difference to the composite is an error of the composite, not of the resampling.
    """
    planes = []
    for name in names:
        gsd = MSI.by_name[name].gsd_m
        coarse = by_gsd[gsd][order[gsd].index(name)]
        planes.append(resample.refine(coarse, gsd // 10, kernel="bilinear"))
    return np.stack(planes)


def true_median(archive: Path, names: tuple[str, ...]) -> Array:
    """Return (C, H, W) DN: the per-pixel median over the window's dates, noise-free and cloud-free."""
    by_gsd, order = {}, {}
    for gsd in (10, 20, 60):
        with geotiff.open_raster(str(archive / "truth" / f"reflectance_{gsd}m.tif")) as raster:
            by_gsd[gsd], order[gsd] = raster.read(), tuple(raster.descriptions)
    return to_finest(by_gsd, names, order)


def true_clouds(archive: Path, items: list[str]) -> Array:
    """Return (T, H, W) cloud bits of each item."""
    return np.stack([read(archive / "truth" / "clouds" / f"{item}.tif")[0] for item in items])


def ever_clear(clouds: Array) -> Array:
    """Return (H, W) True where at least one item is free of cloud and shadow."""
    clear: Array = ((clouds & (CLOUD | SHADOW | THIN)) == 0).any(axis=0)
    return clear


def residual_cloud(chosen: Array, clouds: Array) -> float:
    """Share of the pixels that were ever clear whose chosen item was cloudy or shaded there; (H, W) item index."""
    # Where every item was cloudy no rule can do better: those pixels would only blur the comparison.
    rows, cols = np.nonzero(ever_clear(clouds) & (chosen < len(clouds)))
    return float(np.mean((clouds[chosen[rows, cols], rows, cols] & (CLOUD | SHADOW)) != 0))


def chosen_truth(archive: Path, items: list[str], chosen: Array, names: tuple[str, ...]) -> Array:
    """Return (C, H, W) noise-free DN of the date that a rule chose at each pixel; 0 where it chose none."""
    # Imported here: the generator is needed for this function alone.
    from sgdata.simulation import truth

    out = np.zeros((len(names), *chosen.shape), np.uint16)
    for index in np.unique(chosen[chosen < len(items)]):
        by_gsd, order = truth.scene(archive, items[index]), truth.ORDER
        here = chosen == index
        out[:, here] = to_finest(by_gsd, names, order)[:, here]
    return out


def label_agreement(labels: Array, land_cover: Array, mapped: Array) -> float:
    """Share of labelled pixels (H, W), where OSM mapped the ground, whose class is the true one."""
    # What OpenStreetMap does not hold cannot be labelled right; it is the city's gap, not the painter's error.
    where = (mapped > 0) & (labels != 255)
    return float(np.mean(labels[where] == land_cover[where]))


def offsets(decided: dict[str, bool], archive: Path) -> dict[str, int]:
    """Count the items whose offset was decided as it is in their pixels, of all decided."""
    planted = json.loads((archive / "truth" / "traps.json").read_text())
    right = sum(planted[item]["offset_in_pixels"] == still_in for item, still_in in decided.items())
    return {"right": right, "total": len(decided)}
