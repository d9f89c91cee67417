"""Test that a build is written as SegMunich was released, byte for byte like its files, and read back equal."""

from __future__ import annotations

import dataclasses
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import synthetic_build
import tifffile
from typer.testing import CliRunner

from sgdata import output_names, package_data, verification
from sgdata.builds import patch_table
from sgdata.cli import app
from sgdata.datasets import segmunich
from sgdata.errors import ExitCode, OutputError, SettingError
from sgdata.labels import class_tables
from sgdata.packing import select_samples
from sgdata.rasters import geotiff
from sgdata.releases import export_segmunich
from sgdata.shards import contracts

RELEASED = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")


def segmunich_build(folder: Path, shape: tuple[int, int] = (512, 384)) -> Path:
    """Return a build of the 13 classes, with 12 patches: 1 of test, 2 of val, 9 of train; the first rows unmapped."""
    synthetic_build.write(folder, shape)
    space = class_tables.read("segmunich-osm", tiers=("core",), groups=("drive",)).space
    contracts.write(folder, dataclasses.replace(contracts.read(folder), label_space=space))
    rows = patch_table.read(folder / output_names.PATCHES)
    rows.loc[rows.index[0], "split"] = "test"
    patch_table.write(folder / output_names.PATCHES, rows)
    return folder


@pytest.fixture
def build(tmp_path: Path) -> Path:
    return segmunich_build(tmp_path / "build")


def test_a_file_of_the_makers_is_written_byte_for_byte(real: Path) -> None:
    path = real / "segmunich" / "SegMunich_train_img_10.tif"
    out = BytesIO()
    tifffile.imwrite(out, tifffile.imread(path))
    assert out.getvalue() == path.read_bytes()


@pytest.mark.parametrize("own_splits", [False, True])
def test_the_layout_is_that_of_the_released_set_and_reads_back_equal(
    own_splits: bool, build: Path, tmp_path: Path
) -> None:
    out = tmp_path / "TUM_128"
    made = export_segmunich.export(build, out, own_splits=own_splits)
    val = ["val", "test"] if own_splits else ["val"]
    assert made.patches == ({"train": 9, "val": 2, "test": 1} if own_splits else {"train": 9, "val": 3})
    assert sorted(path.name for path in out.iterdir()) == sorted(["SHA256SUMS", "dataset", "train", *val])
    assert sorted(path.name for path in (out / "dataset").iterdir()) == sorted(
        f"{split}.txt" for split in ["train", *val]
    )
    assert verification.verify(out) == []
    codes = {int(row["train_index"]): int(row["file_value"]) for row in package_data.table("segmunich_labels")}
    with (
        geotiff.open_raster(str(build / output_names.IMAGE)) as image,
        geotiff.open_raster(str(build / output_names.LABELS)) as labels,
    ):
        stored, classes, names = image.read(), labels.read(1), list(image.descriptions)
    for row in patch_table.read(build / output_names.PATCHES).itertuples():
        split = row.split if own_splits or row.split == "train" else "val"
        assert row.key in (out / "dataset" / f"{split}.txt").read_text().splitlines()
        window = np.s_[row.row : row.row + 128, row.col : row.col + 128]
        written = tifffile.imread(out / split / "img" / f"{row.key}.tif")
        assert (written.shape, written.dtype) == ((128, 128, 10), np.float32)
        expected = stored[[names.index(name) for name in RELEASED]][:, *window].transpose(1, 2, 0)
        assert np.array_equal(written, expected)
        label = tifffile.imread(out / split / "label" / f"{row.key}.tif")
        assert (label.shape, label.dtype) == ((128, 128), np.uint8)
        assert np.array_equal(label, np.vectorize(codes.get)(np.where(classes[window] == 255, 0, classes[window])))
    # 8 rows without labels above three patches; written as 0, as the released codes have no word for them.
    assert (made.zeroed, made.pixels) == (8 * 384, 12 * 128 * 128)
    recipe = dataclasses.replace(select_samples.recipe_for("segmunich"), edition="released", splits="released")
    source, listing, contract = select_samples.list_samples(recipe, out, segmunich.list_samples)
    assert len(listing.refs) == 12 and not listing.rejected
    with segmunich.open_source(source, contract) as read:
        for ref in listing.refs:
            sample = read(ref)
            key = Path(sample.meta["source_id"]).stem
            row = next(r for r in patch_table.read(build / output_names.PATCHES).itertuples() if r.key == key)
            window = np.s_[row.row : row.row + 128, row.col : row.col + 128]
            order = [names.index(name) for name in RELEASED]  # packing puts them in order
            assert np.array_equal(np.ma.getdata(sample.arrays["image"]), stored[order][:, *window])
            mapped = classes[window] != 255
            assert np.array_equal(np.asarray(sample.arrays["mask"])[mapped], classes[window][mapped])


def test_patches_with_unmapped_pixels_are_left_out_if_wanted(build: Path, tmp_path: Path) -> None:
    command = ["export", "segmunich-released", "--source", str(build), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, [*command, "--unmapped", "leave-out"])
    assert shown.exit_code == ExitCode.DONE
    assert "9 train, 0 val; 0 unmapped pixels (0.00%) are 0; 3 patches left out" in shown.output
    assert not (tmp_path / "out" / "val").exists()
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, OutputError)
    twice = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "other")])
    assert twice.exit_code == ExitCode.DONE
    assert f"{8 * 384:,} unmapped pixels (1.56%) are 0; 0 patches left out" in twice.output


def test_builds_that_do_not_fit_are_refused(build: Path, tmp_path: Path) -> None:
    contract = contracts.read(build)
    faults = {
        "has no B05, B8A": {"bands": tuple(band for band in contract.bands if band.name not in {"B05", "B8A"})},
        "patches.size=128": {"shape": (12, 64, 64)},
        "labels are 'corine'": {"label_space": dataclasses.replace(contract.label_space, name="corine")},
    }
    for words, change in faults.items():
        contracts.write(build, dataclasses.replace(contract, **change))
        with pytest.raises(SettingError, match=words):
            export_segmunich.export(build, tmp_path / "out")
    assert not (tmp_path / "out").exists()
