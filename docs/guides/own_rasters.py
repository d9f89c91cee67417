"""Write ten pairs of GeoTIFFs of several sizes, masks, and a table. Usage: python DIR

They stand for files of your own: fields at two dates, of which some were flooded.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

FIELD, WATER = np.array([500, 800, 600, 3500]), np.array([700, 600, 400, 200])


def write(path: Path, pixels: np.ndarray, number: int) -> str:
    """Write (C, H, W) as a GeoTIFF in UTM and return its path for the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    place = from_origin(600_000 + 2000 * number, 5_300_000, 10, 10)
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width,
        dtype=pixels.dtype, crs="EPSG:32632", transform=place,
    ) as out:  # fmt: skip
        out.write(pixels)
    return f"{path.parent.name}/{path.name}"


def main(folder: Path) -> None:
    """Write the files and `samples.csv` into `folder`."""
    rows = []
    for number in range(10):
        rng = np.random.Generator(np.random.Philox(key=[number, 9]))
        shape = rng.integers(40, 90, 2)
        flooded = np.zeros(shape, np.uint8)
        flooded[5:30, rng.integers(0, 12) : 30] = 1
        dates = [np.zeros(shape, np.uint8), flooded]
        names = []
        for year, water in zip(("2019", "2020"), dates, strict=True):
            spectra = np.where(water, WATER[:, None, None], FIELD[:, None, None])
            pixels = spectra + rng.integers(-90, 90, (4, *shape))
            names.append(
                write(folder / year / f"{number}.tif", pixels.astype(np.uint16), number)
            )
        mask = write(folder / "masks" / f"{number}.tif", flooded[None], number)
        split = "train" if number < 7 else "val"
        rows.append(
            (f"field-{number}", *names, mask, split, "2019-06-30", "2020-06-29")
        )
    with (folder / "samples.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(
            ("key", "before", "after", "mask", "split", "date", "date_after")
        )
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
