"""Test which band of a file is read, and that masks and alpha inside files count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from pyproj import Transformer
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from stac_wrap import COLLECTION, wrap
from test_stac import scene

from sgdata.errors import SourceError
from sgdata.scenes import parse_items
from sgdata.scenes.types import MASK_NODATA, Asset
from sgdata.staging import scene_files, window_staging
from sgdata.types import Array, Bounds

WEST, NORTH = 600000.0, 5400000.0


def file(path: Path, bands: list[Array], *, alpha: bool = False, mask: Array | None = None) -> Path:
    height, width = bands[0].shape
    about = {"driver": "GTiff", "count": len(bands), "dtype": bands[0].dtype, "height": height, "width": width}
    about |= {"alpha": "unspecified"} if alpha else {}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=mask is not None),
        rasterio.open(path, "w", crs="EPSG:32632", transform=from_origin(WEST, NORTH, 10, 10), **about) as out,
    ):
        if alpha:
            out.colorinterp = [ColorInterp.gray] * (len(bands) - 1) + [ColorInterp.alpha]
        out.write(np.stack(bands))
        if mask is not None:
            out.write_mask(mask)
    return path


def stage(folder: Path, asset: Asset, crs: str = "EPSG:32632", side: int = 60) -> Array:
    x, y = Transformer.from_crs(32632, crs, always_xy=True).transform(WEST, NORTH)
    x, y = round(x, -1), round(y, -1)
    bounds: Bounds = (x, y - 10.0 * side, x + 10.0 * side, y)
    request = scene_files.WindowRequest(name="x B02", asset=asset, crs=crs, bounds=bounds, target=folder / crs[-5:])
    return window_staging.stage(request).pixels


def plane(value: int, dtype: str = "uint16") -> Array:
    return np.full((60, 60), value, dtype)


# --- bands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:32633"])
def test_the_named_band_is_read(tmp_path: Path, crs: str) -> None:
    path = file(tmp_path / "a.tif", [plane(200), plane(300), plane(400)])
    found = stage(tmp_path, Asset(href=str(path), band=2, dtype="uint16"), crs)
    assert set(np.unique(found)) <= {0, 300}
    assert (found == 300).mean() > 0.5


@pytest.mark.parametrize(("band", "words"), [(None, "names none of them"), (4, "names band 4")])
@pytest.mark.parametrize("dtype", ["uint16", "uint8"])
def test_a_file_of_several_bands_without_their_names_is_refused(
    tmp_path: Path, band: int | None, words: str, dtype: str
) -> None:
    path = file(tmp_path / "a.tif", [plane(200, dtype), plane(4, dtype)])
    with pytest.raises(SourceError, match=f"x B02: the file has 2 bands and its item {words}"):
        stage(tmp_path, Asset(href=str(path), band=band))


def names(*bands: str, key: str = "eo:bands", asset: str = "blue") -> Any:
    def change(item: dict[str, Any]) -> None:
        item["assets"][asset][key] = [{"name": name} for name in bands]

    return change


@pytest.mark.parametrize(
    ("change", "band"),
    [
        (names("B04", "B03", "B02"), 3),
        (names("red", "Blue"), 2),
        (names("B04_10m", "B02_10m", key="bands"), 2),
        (names("blue"), None),
        (names("red", "green"), None),
        (names("blue", "B02"), None),
        (lambda item: None, None),
    ],
)
def test_names_are_those_of_the_item(tmp_path: Path, change: Any, band: int | None) -> None:
    wrap(tmp_path, [scene("S2A_32UPU_20190705_0_L2A", "2019-07-05T10:00:00Z")])
    (path,) = (tmp_path / COLLECTION).glob("*/*.json")
    item = json.loads(path.read_text())
    change(item)
    assert parse_items.parse(pystac.Item.from_dict(item), ("B02",)).assets["B02"].band == band


# --- masks ---------------------------------------------------------------------------------

WEST_MASKED = np.full((60, 60), 255, np.uint8)
WEST_MASKED[:, :30] = 0


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:32633"])
@pytest.mark.parametrize("kind", ["mask", "alpha", "alpha beside five", "alpha of 0 and 1 beside five"])
@pytest.mark.parametrize("dtype", ["uint16", "uint8"])
def test_masks_and_alpha_inside_files_count(tmp_path: Path, kind: str, crs: str, dtype: str) -> None:
    values = plane(9, dtype)
    values[:, 30:] = 4
    alpha = WEST_MASKED.astype(dtype) * (257 if dtype == "uint16" else 1)
    band = 2 if "beside" in kind else None
    if kind == "mask":
        path = file(tmp_path / "a.tif", [values], mask=WEST_MASKED)
    elif kind == "alpha":
        path = file(tmp_path / "a.tif", [values, alpha], alpha=True)
    else:  # GDAL takes the last band for a mask in files of two or four bands only
        others = [plane(5, dtype), values, *(plane(n, dtype) for n in (6, 7, 8))]
        path = file(tmp_path / "a.tif", [*others, np.minimum(alpha, 1) if "0 and 1" in kind else alpha], alpha=True)
    found = stage(tmp_path, Asset(href=str(path), band=band), crs)
    missing = MASK_NODATA if dtype == "uint8" else 0
    assert set(np.unique(found)) == {4, missing}
    assert (found == 4).sum() == pytest.approx(30 * 60, rel=0.1)


def test_a_nodata_tag_of_a_layer_is_no_mask(tmp_path: Path) -> None:
    path = file(tmp_path / "a.tif", [plane(0, "uint8")])
    with rasterio.open(path, "r+") as out:
        out.nodata = 0
    assert (stage(tmp_path, Asset(href=str(path))) == 0).all()


def test_an_item_that_names_bands_of_one_file_is_read(tmp_path: Path) -> None:
    path = file(tmp_path / "a.tif", [plane(200), plane(300)])
    one = Asset(href=str(path), band=1)
    assert (stage(tmp_path, one)[4:-4, 4:-4] == 200).all()
    (tmp_path / "2").mkdir()
    assert (stage(tmp_path / "2", replace(one, band=2))[4:-4, 4:-4] == 300).all()
