"""Test masks by OmniCloudMask with its own networks and generated weights, since no hub can be reached."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from stac_wrap import Wrapped, wrap

from sgdata import files, package_data
from sgdata.builds import build_recipe, pipeline
from sgdata.builds.build_recipe import BuildPaths
from sgdata.composite import omnicloudmask
from sgdata.errors import SettingError
from sgdata.scenes.aoi import Area
from sgdata.types import Array, Grid

SIDE, CORNER = 192, (600000.0, 5400000.0)
GROUND = {"B03": 600, "B04": 500, "B8A": 3000}


def archive(folder: Path) -> Path:
    """Write two dates of plain ground; on the second the upper half is as bright as cloud."""
    scenes = []
    for month in (5, 7):
        layers: dict[str, tuple[Array, float]] = {}
        for band in ("B02", "B03", "B04", "B08", "B8A", "B11", "B12"):
            side = SIDE // (2 if band in {"B8A", "B11", "B12"} else 1)
            values = np.full((side, side), GROUND.get(band, 900), np.uint16)
            values[: side // 2] = 8000 if month == 7 else values[0, 0]
            layers[band] = (values, SIDE * 10 / side)
        layers["SCL"] = (np.full((SIDE // 2, SIDE // 2), 4, np.uint8), 20.0)
        scenes.append(Wrapped(id=f"S2A_32UPU_20190{month}01_0_L2A", time=f"2019-0{month}-01T10:00:00Z", layers=layers))
    return wrap(folder, scenes)


def settings(method: str = "scl") -> build_recipe.BuildRecipe:
    recipe = files.read(build_recipe.BuildRecipe, package_data.folder("recipes") / "build" / "segmunich.toml")
    return replace(
        recipe,
        dates="2019-01-01/2019-12-31",
        bands=("B02", "B03", "B04", "B08", "B8A", "B11", "B12"),
        area=Area(grid=Grid(crs="EPSG:32632", origin=CORNER, gsd_m=10.0, shape=(SIDE, SIDE))),
        mask=replace(recipe.mask, method=method, cloud_buffer_m=0, bright_target_filter=False),
        patches=replace(recipe.patches, size=64, stride=64),
        split=replace(recipe.split, block_px=64, gap_px=0),
    )


def test_masks_of_a_lock_are_those_that_a_build_takes(tmp_path: Path) -> None:
    home = str(archive(tmp_path / "a"))
    planned = pipeline.plan(settings(), BuildPaths(out=tmp_path / "b", stac=home))
    seen = []

    def bright(image: Array) -> Array:
        seen.append(image)
        return (image[0] > 5000).astype(np.uint8)

    made = omnicloudmask.write(planned, tmp_path / "m", home, bright)
    assert {path.name for path in made.glob("*.tif")} == {f"{item.scene.id}.tif" for item in planned.items}
    assert [tuple(image[:, -1, -1]) for image in seen] == [(500, 600, 3000)] * 2
    omnicloudmask.write(planned, tmp_path / "m", home, bright)
    assert len(seen) == 2  # what is there stays
    out = pipeline.build(
        settings("external"), BuildPaths(out=tmp_path / "b", stac=home, masks=made, osm="none"), locked=planned
    )
    with rasterio.open(out / "provenance.tif") as dataset:
        count = dataset.read(2)
    assert (count[: SIDE // 2] == 1).all()
    assert (count[SIDE // 2 :] == 2).all()


def test_a_lock_without_the_bands_is_refused(tmp_path: Path) -> None:
    recipe = replace(settings(), bands=("B02", "B03", "B04", "B08", "B11", "B12"))
    home = str(archive(tmp_path / "a"))
    planned = pipeline.plan(recipe, BuildPaths(out=tmp_path / "b", stac=home))
    with pytest.raises(SettingError, match="has no B8A"):
        omnicloudmask.write(planned, tmp_path / "m", home, lambda image: image[0])


def test_without_the_package_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "omnicloudmask", None)
    with pytest.raises(SettingError, match=r"pip install 'sgdata\[clouds\]'"):
        omnicloudmask.engine(None)


@pytest.fixture
def package() -> object:
    from sgmodel.models import torchvision_compat

    torchvision_compat.declare_operators()
    return pytest.importorskip("omnicloudmask")


@pytest.mark.usefixtures("package")
def test_without_weights_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"omnicloudmask, weights of .*; give --weights FOLDER"):
        omnicloudmask.engine(tmp_path / "w")(np.ones((3, 64, 64), np.uint16))


@pytest.mark.usefixtures("package")
def test_its_own_networks_with_weights_from_a_folder(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp
    import torch
    from omnicloudmask.download_models import get_latest_model_version, model_index_path
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with model_index_path.open() as lines:
        latest = [row for row in csv.DictReader(lines) if float(row["version"]) == get_latest_model_version()]
    for row in latest:
        model = smp.Unet(encoder_name=row["timm_model_name"], encoder_weights=None, in_channels=3, classes=4)
        with torch.no_grad():  # whatever it sees, thin cloud
            model.segmentation_head[0].weight.zero_()
            model.segmentation_head[0].bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
        save_file(model.state_dict(), tmp_path / row["file_name"])
    image = np.random.default_rng(0).integers(1, 4000, (3, 96, 96)).astype(np.uint16)
    image[:, :10] = 0
    found = omnicloudmask.engine(tmp_path)(image)
    assert found.shape == (96, 96)
    assert (found[10:] == 2).all()
    assert (found[:10] == 0).all()
