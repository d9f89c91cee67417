"""Compare a build with the simulator's truth: composite, clouds, labels, offsets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sgdata.rasters import geotiff, resample
from sgdata.sentinel2 import MSI
from sgdata.types import Array

# Bits of `truth/clouds/<id>.tif`. Redefined here so that scoring depends on the archive format, not on simulator code.
CLOUD, SHADOW, THIN = 1, 2, 4


def rmse(image: Array, reference: Array, where: Array) -> float:
    """Compute the root mean square difference of two images in reflectance.

    Args:
        image: (C, H, W) DN.
        reference: (C, H, W) DN.
        where: (H, W) True at the pixels to compare.

    Returns:
        The difference over all bands.
    """
    # float64: squares of DN summed over millions of pixels exceed what float32 adds exactly.
    difference = image[:, where].astype(np.float64) - reference[:, where]
    return float(np.sqrt(np.mean(difference**2)) * MSI.scale)


def read(path: Path) -> Array:
    """Read all bands of a raster.

    Args:
        path: The raster.

    Returns:
        (C, H, W) values as stored.
    """
    with geotiff.open_raster(str(path)) as raster:
        pixels: Array = raster.read()
    return pixels


def to_finest(by_gsd: dict[int, Array], names: tuple[str, ...], order: dict[int, tuple[str, ...]]) -> Array:
    """Resample truth at 10, 20 and 60 m to (C, H, W) at 10 m in the order of `names`.

    The kernel is that of builds, so that a difference is an error of the composite and not of the resampling.
    """
    planes = []
    for name in names:
        gsd = MSI.by_name[name].gsd_m
        coarse = by_gsd[gsd][order[gsd].index(name)]
        planes.append(resample.upsample(coarse, gsd // 10, kernel="bilinear"))
    return np.stack(planes)


def true_median(archive: Path, names: tuple[str, ...]) -> Array:
    """Read the median over the dates of the first epoch, without noise and clouds.

    Args:
        archive: Folder of `sgdata simulate`.
        names: Bands.

    Returns:
        (C, H, W) DN.
    """
    by_gsd, order = {}, {}
    for gsd in (10, 20, 60):
        with geotiff.open_raster(str(archive / "truth" / f"reflectance_{gsd}m.tif")) as raster:
            by_gsd[gsd], order[gsd] = raster.read(), tuple(raster.descriptions)
    return to_finest(by_gsd, names, order)


def true_clouds(archive: Path, items: list[str]) -> Array:
    """Read the true clouds of scenes.

    Args:
        archive: Folder of `sgdata simulate`.
        items: Item ids of T scenes.

    Returns:
        (T, H, W) bits: 1 cloud, 2 shadow, 4 thin cloud.
    """
    return np.stack([read(archive / "truth" / "clouds" / f"{item}.tif")[0] for item in items])


def ever_clear(clouds: Array) -> Array:
    """Find the pixels that at least one scene shows without cloud, thin cloud and shadow.

    Args:
        clouds: (T, H, W) bits of `true_clouds`.

    Returns:
        (H, W) True at these pixels.
    """
    clear: Array = ((clouds & (CLOUD | SHADOW | THIN)) == 0).any(axis=0)
    return clear


def residual_cloud(chosen: Array, clouds: Array) -> float:
    """Compute the share of pixels for which a cloudy scene was chosen although another one was clear.

    Args:
        chosen: (H, W) index of the chosen scene; pixels with an index of T or more are not counted.
        clouds: (T, H, W) bits of `true_clouds`.

    Returns:
        The share of the pixels of `ever_clear` whose chosen scene has cloud or shadow there.
    """
    # Pixels that no scene shows clear are left out: no rule could do better there.
    rows, cols = np.nonzero(ever_clear(clouds) & (chosen < len(clouds)))
    return float(np.mean((clouds[chosen[rows, cols], rows, cols] & (CLOUD | SHADOW)) != 0))


def chosen_truth(archive: Path, items: list[str], chosen: Array, names: tuple[str, ...]) -> Array:
    """Compute the noise-free and cloud-free image of the dates that a rule chose.

    Args:
        archive: Folder of `sgdata simulate`.
        items: Item ids of T scenes.
        chosen: (H, W) index of the chosen scene, T or more for none.
        names: Bands.

    Returns:
        (C, H, W) DN; 0 where no scene was chosen.
    """
    # Imported here: the generator is needed for this function alone.
    from sgdata.simulation import truth

    out = np.zeros((len(names), *chosen.shape), np.uint16)
    for index in np.unique(chosen[chosen < len(items)]):
        by_gsd, order = truth.scene(archive, items[index]), truth.ORDER
        here = chosen == index
        out[:, here] = to_finest(by_gsd, names, order)[:, here]
    return out


def label_agreement(labels: Array, land_cover: Array, mapped: Array) -> float:
    """Compute the share of labelled pixels with the true class, where OpenStreetMap has an object.

    Args:
        labels: (H, W) classes of a build; 255 is unlabelled.
        land_cover: (H, W) true classes.
        mapped: (H, W) above 0 where OpenStreetMap has an object.

    Returns:
        The share.
    """
    # Ground that OpenStreetMap lacks is excluded: it is not a labelling error.
    where = (mapped > 0) & (labels != 255)
    return float(np.mean(labels[where] == land_cover[where]))


def offsets(decided: dict[str, bool], archive: Path) -> dict[str, int]:
    """Count correct decisions about the offset.

    Args:
        decided: By item id, whether the build took the offset to be in the pixels.
        archive: Folder of `sgdata simulate`.

    Returns:
        The numbers of `right` decisions and of all (`total`).
    """
    planted = json.loads((archive / "truth" / "traps.json").read_text())
    right = sum(planted[item]["offset_in_pixels"] == still_in for item, still_in in decided.items())
    return {"right": right, "total": len(decided)}
