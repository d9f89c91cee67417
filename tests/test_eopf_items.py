"""Test items of EOPF products: where their bands are, and which scale and offset they and the products state."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pystac
import pytest

from sgdata.errors import SourceError
from sgdata.scenes import eopf_items, eopf_metadata, offsets, parse_items, product_metadata
from sgdata.scenes.types import Scene
from sgdata.sentinel2 import L2A_BANDS
from tests import zarr_stores

NAME = "S2A_MSIL2A_20251008T100041_N0511_R122_T32TQM_20251008T122613"
STORE = f"https://objects.eodc.eu:443/e05ab:202510-s02msil2a-eu/08/products/cpm_v262/{NAME}.zarr"
ZARR = "application/vnd+zarr"


def asset(path: str, gsd: int, **more: Any) -> dict[str, Any]:
    size = 109_800 // gsd
    return {
        "href": f"{STORE}/{path}", "type": ZARR, "gsd": gsd, "data_type": "uint16", "proj:code": "EPSG:32632",
        "proj:shape": [size, size], "proj:transform": [gsd, 0, 699960, 0, -gsd, 4700040, 0, 0, 1],
    } | more  # fmt: skip


def item(**assets: Any) -> pystac.Item:
    """Return an item in the form of ESA's sample service, with some assets changed or (None) removed."""
    scaled = {"raster:scale": 0.0001, "raster:offset": -0.1}
    reflectance = "measurements/reflectance"
    own = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 20, "B05": 20, "B06": 20, "B07": 20, "B8A": 20}
    own |= {"B11": 20, "B12": 20, "B09": 60}
    made = {
        f"{band}_{gsd}m": asset(f"{reflectance}/r{gsd}m/{band.lower()}", gsd, **scaled) for band, gsd in own.items()
    }
    made |= {f"SR_{gsd}m": {"href": f"{STORE}/{reflectance}/r{gsd}m", "type": ZARR} for gsd in (10, 20, 60)}
    made["AOT_10m"] = asset("quality/atmosphere/r10m/aot", 10, **{"raster:scale": 0.001})
    made["SCL_20m"] = asset("conditions/mask/l2a_classification/r20m/scl", 20, data_type="uint8")
    made["product"] = {"href": STORE, "type": ZARR}
    made["product_metadata"] = {"href": f"{STORE}/.zmetadata", "type": "application/json"}
    document = {
        "type": "Feature", "stac_version": "1.1.0", "id": NAME, "links": [],
        "geometry": None, "bbox": [11.4, 41.4, 12.8, 42.4], "collection": "sentinel-2-l2a",
        "properties": {
            "datetime": "2025-10-08T10:00:41.024Z", "platform": "sentinel-2a", "sat:relative_orbit": 122,
            "eopf:datatake_id": "GS2A_20251008T100041_053773_N05.11", "grid:code": "MGRS-32TQM",
            "proj:code": "EPSG:32632",
        },
        "assets": {key: value for key, value in (made | assets).items() if value is not None},
    }  # fmt: skip
    return pystac.Item.from_dict(deepcopy(document))


def scene(*bands: str, **assets: Any) -> Scene:
    return parse_items.parse(item(**assets), bands or (*L2A_BANDS, "SCL", "cloud"))


def test_bands_are_read_from_the_arrays_of_their_own_pixel_size() -> None:
    made = scene()
    assert (made.provider, made.baseline, made.tile, made.orbit) == ("eopf", "05.11", "32TQM", 122)
    assert made.datatake == "GS2A_20251008T100041_053773"
    for band, path in eopf_items.array_paths().items():
        if band != "B10":
            assert made.assets[band].href == f"{STORE}/{path}"
    assert made.assets["B01"].href.endswith("/r60m/b01") and made.assets["B01"].shape is None
    assert made.assets["B04"].shape == (10980, 10980)
    assert made.assets["B04"].transform == (10, 0, 699960, 0, -10, 4700040)
    assert made.product == f"{STORE}/.zmetadata"


def test_the_offset_is_that_of_the_store() -> None:
    made = scene()
    assert made.declared_offset == -1000
    assert offsets.expected_offset(made, planned=True) == -1000
    assert offsets.expected_offset(made, product=-1000) == -1000
    assert offsets.expected_offset(made, product=0) == 0


def test_the_store_is_found_by_any_of_its_assets() -> None:
    assert scene("B04", product=None, product_metadata=None).assets["B04"].href.startswith(f"{STORE}/measurements")
    signed = {"href": f"{STORE}?sig=abc", "type": ZARR}
    made = scene("B01", product=signed)
    assert made.assets["B01"].href == f"{STORE}/measurements/reflectance/r60m/b01"  # without what opens it
    zipped = {"href": "https://h/x.zarr.zip"}
    assert eopf_items.find_store(item(zipped_product=zipped), frozenset({"B02_10m"})) == STORE


def test_files_beside_a_store_come_first() -> None:
    files = {f"{band}_{gsd}m": {"href": f"https://h/{band}.tif"} for band, gsd in (("B02", 10), ("B03", 10))}
    assert scene("B02", "B03", **files).provider == "cdse"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"raster:scale": 0.0002}, r"asset B04_10m: scale 0\.0002, expected 0\.0001"),
        ({"raster:offset": -0.05}, r"bands have offsets \[-1000, -500\], expected one for all"),
        ({"raster:offset": None}, r"bands have offsets \[-1000, 0\]"),
        ({"raster:offset": "x"}, r"offset 'x' is no whole number of DN"),
        ({"raster:offset": -0.10004}, r"offset -0\.10004 is no whole number of DN"),
    ],
)
def test_scales_and_offsets_of_items_are_compared(changes: dict[str, Any], expected: str) -> None:
    red = asset("measurements/reflectance/r10m/b04", 10, **{"raster:scale": 0.0001, "raster:offset": -0.1} | changes)
    with pytest.raises(SourceError, match=expected) as refused:
        scene(B04_10m=red)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "band", "expected"),
    [
        (NAME, "B42", "L2A lack B42"),
        (NAME, "B10", "L2A lack B10"),
        (NAME.replace("L2A", "L1C"), "SCL", "L1C lack SCL"),
    ],
)
def test_bands_that_a_product_does_not_have_are_named(name: str, band: str, expected: str) -> None:
    one = item()
    one.id = name
    with pytest.raises(SourceError, match=expected):
        parse_items.parse(one, (band,))
    assert parse_items.parse(one, ("B04",)).baseline == "05.11"


def test_products_of_level_1c_have_band_10() -> None:
    one = item()
    one.id = NAME.replace("L2A", "L1C")
    made = parse_items.parse(one, ("B10", "B04"))
    assert made.assets["B10"].href == f"{STORE}/measurements/reflectance/r60m/b10"
    assert offsets.expected_offset(made, level="L1C", product=-1000) == -1000


# --- metadata of products ------------------------------------------------------------------


def consolidated(**changes: Any) -> dict[str, Any]:
    attributes = {"scale_factor": 0.0001, "add_offset": -0.1}
    nodes = {f"{path}/.zattrs": dict(attributes) for path in eopf_items.array_paths().values() if "reflect" in path}
    nodes["measurements/reflectance/r10m/b04/.zattrs"] |= changes
    return {"zarr_consolidated_format": 1, "metadata": nodes}


def parsed(document: Any) -> int:
    return eopf_metadata.parsed(json.dumps(document).encode(), "x.zarr/.zmetadata")


def test_offset_of_a_product() -> None:
    assert parsed(consolidated()) == -1000
    assert parsed(consolidated(_eopf_attrs={"scale_factor": 0.0001, "add_offset": -0.1})) == -1000
    nodes = {key.removesuffix("/.zattrs"): {"attributes": one} for key, one in consolidated()["metadata"].items()}
    assert parsed({"zarr_format": 3, "consolidated_metadata": {"metadata": nodes}}) == -1000


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (consolidated(add_offset=0.0), "offsets -1000 of .*, 0 of measurements/reflectance/r10m/b04, expected one"),
        (consolidated(_eopf_attrs={"scale_factor": 0.0001, "add_offset": 0}), "offsets -1000 of .*, 0 of"),
        (consolidated(scale_factor=float("nan")), "b04: scale nan, expected 0.0001"),
        (consolidated(add_offset=float("inf")), "b04: offset inf is no whole number"),
        (consolidated(scale_factor=10**400), "b04: scale 1000.*, expected 0.0001"),
        (consolidated(scale_factor=0.0004), "b04: scale 0.0004, expected 0.0001"),
        (consolidated(add_offset="x"), "b04: offset 'x' is no whole number"),
        ({"metadata": {}}, "no band states scale and offset"),
        ([], "is no metadata of a Zarr product"),
    ],
)
def test_contradictions_inside_a_product_are_refused(document: Any, expected: str) -> None:
    with pytest.raises(SourceError, match=expected) as refused:
        parsed(document)
    assert "\n" not in str(refused.value)


def test_offset_of_a_store_on_disk(city: Path, tmp_path: Path) -> None:
    folder = sorted(path for path in (city / "sentinel-2-l2a").iterdir() if path.is_dir())[0]
    store = zarr_stores.product(folder, tmp_path, offset=True)
    assert product_metadata.offset(str(store / ".zmetadata")) == -1000
    zarr_stores.rewrite(store, "v3")
    assert product_metadata.offset(str(store / ".zmetadata")) == -1000


def test_offsets_of_real_products(real: Path) -> None:
    for name in sorted((real / "eopf").glob("*.json")):
        nodes: dict[str, Any] = {}

        def walk(node: dict[str, Any], path: str, into: dict[str, Any]) -> None:
            into[f"{path}/.zattrs"] = node.get("attributes", {})
            for key, one in node.get("members", {}).items():
                walk(one, f"{path}/{key}" if path else key, into)

        walk(json.loads(name.read_bytes()), "", nodes)
        assert parsed({"metadata": nodes}) == -1000
