"""Test readers with synthetic archives in the official layouts, and with real files if they are available."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import synthetic
import tifffile
from rasterio.warp import transform

from sgdata import output_names, sentinel2, verification
from sgdata.datasets import cards, eurosat, readers
from sgdata.errors import OutputError, SettingError, SourceError
from sgdata.packing import pack as packing
from sgdata.packing import select_samples, tar_spool
from sgdata.shards import shard_index, tar_format
from sgdata.types import Array, Contract, Sample

WAVELENGTH_ORDER = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
MAKERS: dict[str, tuple[str, Callable[[Path], Path], dict[str, object]]] = {
    "eurosat": ("eurosat", synthetic.eurosat, {}),
    "bigearthnet v1": ("bigearthnet", synthetic.bigearthnet_v1, {"edition": "v1"}),
    "bigearthnet v2": ("bigearthnet", synthetic.bigearthnet_v2, {"edition": "v2"}),
    "fmow": ("fmow", synthetic.fmow, {}),
    "oscd": ("oscd", synthetic.oscd, {}),
    "segmunich": ("segmunich", synthetic.segmunich_released, {}),
}
SAMPLES = {"eurosat": 6, "bigearthnet v1": 3, "bigearthnet v2": 3, "fmow": 6, "oscd": 2, "segmunich": 5}
every = pytest.mark.parametrize("name", MAKERS)


def test_every_dataset_is_tested_here() -> None:
    # Images and pairs are the user's own, and tested in test_pairs.py and test_sample_tables.py.
    assert {dataset for dataset, *_ in MAKERS.values()} | {"pairs", "images"} == set(cards.names())
    assert set(SAMPLES) == set(MAKERS)


def pack(name: str, source: Path, out: Path, *, workers: int = 1, **changes: object) -> packing.PackResult:
    dataset, _, always = MAKERS[name]
    recipe = dataclasses.replace(select_samples.recipe_for(dataset), **(always | changes))  # type: ignore[arg-type]
    return packing.pack(dataset, source=source, out=out, recipe=recipe, workers=workers)


def by_key(out: Path) -> dict[str, Sample]:
    return {sample.key: sample for sample in tar_format.samples(out)}


def quarantine(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / output_names.QUARANTINE).read_text().splitlines()]
    return {row["key"] or row["file"]: row["reason"] for row in rows}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("official")

    def source(name: str) -> Path:
        folder = root / name.replace(" ", "-")
        return folder if folder.exists() else MAKERS[name][1](folder)

    return source


# --- all of them ---------------------------------------------------------------------------


@every
def test_a_clean_source_packs_completely_and_verifies(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    result = pack(name, made(name), tmp_path / "a")
    assert result.complete, quarantine(tmp_path / "a")
    assert sum(result.contract.splits.values()) == shard_index.read_index(tmp_path / "a").num_rows == SAMPLES[name]
    assert [band.name for band in result.contract.bands] == [
        band for band in WAVELENGTH_ORDER if band in {b.name for b in result.contract.bands}
    ]
    assert verification.verify(tmp_path / "a") == []
    pack(name, made(name), tmp_path / "b")
    assert (tmp_path / "a" / output_names.SUMS).read_bytes() == (tmp_path / "b" / output_names.SUMS).read_bytes()


@every
def test_folder_zip_and_tar_give_the_same_samples(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    source = made(name)
    with zipfile.ZipFile(tmp_path / "it.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source))
    with tarfile.open(tmp_path / "it.tar", "w") as tar:
        tar.add(source, arcname="./")
    for table in (*source.glob("*.csv"), *source.glob("*.parquet")):  # these are next to the archives
        shutil.copy(table, tmp_path / table.name)
    results = {
        kind: pack(name, at, tmp_path / kind)
        for kind, at in {"folder": source, "zip": tmp_path / "it.zip", "tar": tmp_path / "it.tar"}.items()
    }
    assert {result.contract.splits == results["folder"].contract.splits for result in results.values()} == {True}
    expected, *others = (by_key(tmp_path / kind) for kind in results)
    for other in others:
        assert other.keys() == expected.keys()
        for key, sample in expected.items():
            for array, pixels in sample.arrays.items():
                np.testing.assert_array_equal(other[key].arrays[array], pixels)


@every
def test_a_truncated_file_and_a_pointer_go_to_quarantine(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    source = shutil.copytree(made(name), tmp_path / "source")
    pack(name, source, tmp_path / "before")
    keys = list(by_key(tmp_path / "before"))
    images = {key: next(p for p in sorted(source.rglob("*.tif")) if _belongs(p, key)) for key in keys[:2]}
    damaged, pointed = images.values()
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    pointed.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    if len(keys) == 2:
        with pytest.raises(SourceError, match="not one sample"):
            pack(name, source, tmp_path / "after")
        assert set(quarantine(tmp_path / "after")) == set(keys)
        return
    result = pack(name, source, tmp_path / "after")
    assert result.quarantined == 2
    reasons = quarantine(tmp_path / "after")
    assert set(reasons) == set(keys[:2])
    assert "Git LFS pointer" in reasons[keys[1]]
    assert set(by_key(tmp_path / "after")) == set(keys[2:])


def _belongs(path: Path, key: str) -> bool:
    split, _, name = key.rpartition("-")
    stem_fits = path.stem in (key, name) or path.parent.name == key or f"/{key}/imgs_1_rect" in path.as_posix()
    return stem_fits and (not split or f"/{split}" in path.as_posix())


def _tar_of(source: Path, path: Path) -> Path:
    """Pack a folder as a tar in the order of names, compressed according to the suffix."""
    with tarfile.open(path.with_suffix(""), "w") as tar:
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            tar.add(file, file.relative_to(source))
    plain = path.with_suffix("").read_bytes()
    content = gzip.compress(plain, 1) if path.suffix == ".gz" else pa.compress(plain, codec="zstd", asbytes=True)
    path.write_bytes(content)
    for table in (*source.glob("*.csv"), *source.glob("*.parquet")):  # these are next to the archives
        shutil.copy(table, path.parent / table.name)
    return path


@pytest.mark.parametrize(
    ("name", "suffix", "workers"), [("fmow", "gz", 1), ("bigearthnet v1", "gz", 2), ("bigearthnet v2", "zst", 1)]
)
def test_a_compressed_tar_gives_the_bytes_of_its_folder(
    name: str, suffix: str, workers: int, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Nothing is unpacked, the members of each shard are spooled to one file, and a missing shard is written again."""
    source = _tar_of(made(name), tmp_path / f"it.tar.{suffix}")
    for kind, at in {"folder": made(name), "tar": source}.items():
        pack(name, at, tmp_path / kind, shard_mb=0, workers=workers if kind == "tar" else 1)
    expected = (tmp_path / "folder" / output_names.SUMS).read_bytes()
    assert (tmp_path / "tar" / output_names.SUMS).read_bytes() == expected
    assert not list((tmp_path / "tar" / tar_spool.SPOOL).iterdir())

    tars = sorted((tmp_path / "tar").glob("*.tar"))
    kept = {path: path.stat().st_mtime_ns for path in tars[1:]}
    tars[0].unlink()
    (tmp_path / "tar" / output_names.SUMS).unlink()
    (tmp_path / "tar" / tar_spool.SPOOL / tars[0].name).write_bytes(b"half of an earlier run")
    pack(name, source, tmp_path / "tar", shard_mb=0)
    assert (tmp_path / "tar" / output_names.SUMS).read_bytes() == expected
    assert {path: path.stat().st_mtime_ns for path in tars[1:]} == kept


def test_a_full_disk_while_spooling_is_reported(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, opened = _tar_of(made("fmow"), tmp_path / "it.tar.gz"), Path.open

    def full(path: Path, mode: str = "r", **options: object) -> object:
        if mode == "ab":
            raise OSError(28, "No space left on device")
        return opened(path, mode, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=r"\.spool/fmow-.*cannot be written: No space left"):
        pack("fmow", source, tmp_path / "out")


def test_downloaded_files_are_found_in_their_folder(made: Callable[[str], Path], tmp_path: Path) -> None:
    """`sgdata fetch` downloads one tar.gz and the CSVs, or OSCD's three zips, into one folder."""
    (tmp_path / "fmow").mkdir()
    _tar_of(made("fmow"), tmp_path / "fmow" / "fmow-sentinel.tar.gz")
    (tmp_path / "fmow" / "fmow-sentinel.tar").unlink()
    packed = pack("fmow", tmp_path / "fmow", tmp_path / "a")
    assert packed.contract == pack("fmow", made("fmow"), tmp_path / "b").contract

    (tmp_path / "oscd").mkdir()
    for folder in made("oscd").iterdir():
        with zipfile.ZipFile(tmp_path / "oscd" / f"{folder.name}.zip", "w") as archive:
            for file in sorted(folder.rglob("*.*")):
                archive.write(file, file.relative_to(made("oscd")))
    packed = pack("oscd", tmp_path / "oscd", tmp_path / "c")
    assert packed.contract == pack("oscd", made("oscd"), tmp_path / "d").contract


def test_an_archive_in_another_order_gives_the_same_samples(made: Callable[[str], Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "it.tar.gz", "w:gz") as tar:
        for file in sorted(made("fmow").rglob("*.tif"), reverse=True):
            tar.add(file, file.relative_to(made("fmow")))
    for table in made("fmow").glob("*.csv"):
        shutil.copy(table, tmp_path / table.name)
    there, here = (pack("fmow", at, tmp_path / n) for n, at in (("a", made("fmow")), ("b", tmp_path / "it.tar.gz")))
    assert there.contract == here.contract


# --- one by one ----------------------------------------------------------------------------


def test_names_of_any_bytes_case_and_length_are_packed_or_reported(made: Callable[[str], Path], tmp_path: Path) -> None:
    river = sorted((made("eurosat") / "EuroSAT_MS" / "River").iterdir())
    latin = Path(os.fsdecode(os.fsencode(tmp_path / "it") + b"/donn\xe9es"))
    for name in ("River/River_1.TIF", "River/River_2.tiff", "Lake/Lake_1.tif"):
        (latin / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(river[0], latin / name)
    (latin / "River" / "River_3.tif").write_bytes(b"no picture")
    shutil.copy(river[0], latin / "River" / f"River_{'1' * 80}.tif")
    for workers in (1, 2):
        done = pack("eurosat", tmp_path / "it", tmp_path / str(workers), workers=workers)
        assert done.contract.splits == {"all": 2}
        reasons = quarantine(done.folder)
        assert set(reasons) == {"donn\udce9es/Lake/Lake_1.tif", "River_3", f"River_{'1' * 80}"}
        assert "cannot be a name in a shard" in reasons[f"River_{'1' * 80}"]
        assert not verification.verify(done.folder)
    assert (tmp_path / "1" / output_names.SUMS).read_bytes() == (tmp_path / "2" / output_names.SUMS).read_bytes()


def test_a_duplicate_key_is_reported_in_any_shard(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / "it"
    shutil.copytree(made("eurosat"), source)
    shutil.copytree(source / "EuroSAT_MS" / "River", source / "old" / "River")
    done = pack("eurosat", source, tmp_path / "out", shard_mb=0)
    assert done.contract.splits == {"all": 6} and done.shards == 6
    assert set(quarantine(done.folder)) == {f"old/River/River_{n}.tif" for n in (1, 2, 3)}


def test_bands_of_a_duplicate_patch_are_not_mixed(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / "it"
    shutil.copytree(made("bigearthnet v1"), source)
    patch = next(path for path in sorted(source.rglob("*_B02.tif"))).parent
    shutil.copytree(patch, source / "zz" / patch.name)
    _rewrite(source / "zz" / patch.name / f"{patch.name}_B02.tif", lambda pixels: pixels + 1)
    (source / "zz" / patch.name / f"{patch.name}_B03.tif").unlink()
    done = pack("bigearthnet v1", source, tmp_path / "out")
    with rasterio.open(patch / f"{patch.name}_B02.tif") as raster:
        assert np.array_equal(by_key(done.folder)[patch.name].arrays["image"][1], raster.read(1))
    assert [f"zz/{patch.name}/" in name for name in quarantine(done.folder)] == [True]


def test_ids_of_segmunich_may_contain_any_character(tmp_path: Path) -> None:
    source = synthetic.segmunich_released(tmp_path / "it")
    for folder in ("img", "label"):
        (held,) = source.rglob(f"train/{folder}/1.tif")
        held.rename(held.with_name("10 (turned.90).tif"))
    done = pack("segmunich", source, tmp_path / "out")
    assert "train-10--turned-90-" in by_key(done.folder)
    assert done.complete


def test_eurosat_bands_are_the_right_ones_by_name(made: Callable[[str], Path], tmp_path: Path) -> None:
    result = pack("eurosat", made("eurosat"), tmp_path)
    assert result.notes == ("no split list: every sample went to the split 'all'",)
    sample = by_key(tmp_path)["River_2"]
    original = tifffile.imread(made("eurosat") / "EuroSAT_MS/River/River_2.tif")
    for index, band in enumerate(WAVELENGTH_ORDER):
        at = synthetic.EUROSAT_FILE_ORDER.index(band)
        np.testing.assert_array_equal(sample.arrays["image"][index], original[..., at])
    assert sample.meta["labels"] == [8]
    assert sample.meta["crs"] == "EPSG:32635"


def test_bigearthnet_v1_reads_labels_date_and_scene_from_the_json(made: Callable[[str], Path], tmp_path: Path) -> None:
    pack("bigearthnet v1", made("bigearthnet v1"), tmp_path / "19")
    metas = [sample.meta for sample in by_key(tmp_path / "19").values()]
    assert [meta["labels"] for meta in metas] == [[3], [3], [3, 4]]  # airports are none of the 19
    assert metas[2]["label_names"] == ["Vineyards", "Airports", "Pastures"]
    assert {meta["date"] for meta in metas} == {"2017-09-24"}
    result = pack("bigearthnet v1", made("bigearthnet v1"), tmp_path / "43", labels="bigearthnet-43-alphabetical")
    space = result.contract.label_space
    sample = list(by_key(tmp_path / "43").values())[2]
    assert sorted(space.names[i] for i in sample.meta["labels"]) == ["Airports", "Pastures", "Vineyards"]


def test_published_lists_beside_the_source_are_followed(made: Callable[[str], Path], tmp_path: Path) -> None:
    """The official lists of v1 have lines `S2,S1`, gzipped on Zenodo; the Google lists have one id per line."""
    source = shutil.copytree(made("bigearthnet v1"), tmp_path / "source")
    names = sorted(path.name for path in (source / "BigEarthNet-v1.0").iterdir())
    for split, name in zip(("train", "val", "test"), names, strict=True):
        (source / f"{split}.csv.gz").write_bytes(gzip.compress(f"{name},S1A_IW_{name}\n".encode()))
        (source / f"bigearthnet-{split}.txt").write_text(f"elsewhere_{split}\n{name}\n")
    result = pack("bigearthnet v1", source, tmp_path / "official")
    assert result.contract.splits == {"train": 1, "val": 1, "test": 1}
    assert "split train holds 1 samples, the card says 269695" in result.notes
    assert pack("bigearthnet v1", source, tmp_path / "google", splits="google").contract.splits == {
        "train": 1,
        "val": 1,
        "test": 1,
    }
    (source / "val.csv.gz").unlink()
    result = pack("bigearthnet v1", source, tmp_path / "without")
    assert (result.contract.splits, result.notes[0][:13]) == ({"all": 3}, "no split list")
    with pytest.raises(SettingError, match=r"no such splits; known: official, google"):
        pack("bigearthnet v1", source, tmp_path / "unknown", splits="gogle")

    snow = tmp_path / "snow.csv"
    snow.write_text(f"{names[0]}\n")
    recipe = dataclasses.replace(select_samples.recipe_for("bigearthnet"), edition="v1")
    result = packing.pack(
        "bigearthnet",
        source=source,
        out=tmp_path / "clear",
        recipe=recipe,
        inputs=select_samples.SampleInputs(leave_out=(snow,)),
    )
    assert sum(result.contract.splits.values()) == 2


def test_eurosat_follows_its_published_lists(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = shutil.copytree(made("eurosat"), tmp_path / "source")
    for number, split in enumerate(("train", "val", "test"), 1):
        (source / f"eurosat-{split}.txt").write_text(f"River_{number}.jpg\nAnnualCrop_{number}.jpg\n")
    assert pack("eurosat", source, tmp_path / "out").contract.splits == {"train": 2, "val": 2, "test": 2}


def test_a_patch_without_a_19_class_label_is_kept_and_reported(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = shutil.copytree(made("bigearthnet v1"), tmp_path / "source")
    path = sorted(source.rglob("*_labels_metadata.json"))[0]
    path.write_text(path.read_text().replace("Vineyards", "Airports"))
    result = pack("bigearthnet v1", source, tmp_path / "out")
    assert "1 samples have no label of 'bigearthnet-19-official': kept" in result.notes
    assert result.complete


def test_the_snow_table_of_v2_is_a_split_set_of_its_own(made: Callable[[str], Path], tmp_path: Path) -> None:
    source = shutil.copytree(made("bigearthnet v2"), tmp_path / "source")
    (source / "metadata.parquet").rename(source / "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
    result = pack("bigearthnet v2", source, tmp_path / "out", splits="snow and cloud")
    assert result.contract.splits == {"train": 1, "val": 1, "test": 1}


def test_bigearthnet_v2_reads_split_and_labels_from_the_table(made: Callable[[str], Path], tmp_path: Path) -> None:
    result = pack("bigearthnet v2", made("bigearthnet v2"), tmp_path / "a", labels="bigearthnet-19-alphabetical")
    assert result.contract.splits == {"train": 1, "val": 1, "test": 1}
    names = result.contract.label_space.names
    for sample in by_key(tmp_path / "a").values():
        assert [names[i] for i in sample.meta["labels"]] == sorted(sample.meta["label_names"])

    bare = shutil.copytree(made("bigearthnet v2"), tmp_path / "bare")
    (bare / "metadata.parquet").unlink()
    result = pack("bigearthnet v2", bare, tmp_path / "b")
    assert (result.contract.splits, result.contract.label_space.name) == ({"all": 3}, "none")
    assert any("no labels" in note for note in result.notes)


def test_native_and_resampled_layout_are_the_same_data(made: Callable[[str], Path], tmp_path: Path) -> None:
    fine = pack("bigearthnet v1", made("bigearthnet v1"), tmp_path / "resampled")
    native = pack("bigearthnet v1", made("bigearthnet v1"), tmp_path / "native", layout="native")
    assert native.contract == fine.contract
    sample = next(tar_format.samples(tmp_path / "native"))
    assert {name: a.shape for name, a in sample.arrays.items()} == {
        "image_10m": (4, 120, 120),
        "image_20m": (6, 60, 60),
        "image_60m": (2, 20, 20),
    }


def test_fmow_follows_the_csvs_and_keeps_halves(made: Callable[[str], Path], tmp_path: Path) -> None:
    result = pack("fmow", made("fmow"), tmp_path)
    assert result.contract.splits == {"train": 3, "val": 2, "test": 1}
    assert result.contract.shape is None
    assert any(note.startswith("3 images are in no CSV: left out, such as ") for note in result.notes)
    sample = by_key(tmp_path)["train-multi-unit_residential_1_101"]
    path = "fmow-sentinel/train/multi-unit_residential/multi-unit_residential_1/multi-unit_residential_1_101.tif"
    original = np.moveaxis(tifffile.imread(made("fmow") / path), -1, 0)
    assert sample.arrays["image"].dtype == np.uint16
    np.testing.assert_array_equal(sample.arrays["image"] * result.contract.scale, original * 2 * 5e-5)
    assert (original % 1 == 0.5).any()
    assert (sample.meta["date"], sample.meta["labels"]) == ("2017-05-01", [30])


def test_fmow_finds_the_third_split_under_either_name(tmp_path: Path) -> None:
    source = synthetic.fmow(tmp_path / "source", third="test", surplus=False)
    assert pack("fmow", source, tmp_path / "out").contract.splits == {"train": 3, "val": 2, "test": 1}


def test_fmow_values_beyond_uint16_stay_exact_in_float32(tmp_path: Path) -> None:
    from sgdata.datasets.fmow import double_dn

    assert double_dn(np.array([[[0.5, 32767.5]]])).dtype == np.uint16
    for values in ([0.25, 1.0], [40_000.0, 1.0], [-1.0, 1.0]):
        stored = double_dn(np.array([[values]]))
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored / 2, [[values]])
    with pytest.raises(SourceError, match="float32"):
        double_dn(np.array([[[0.1]]]))


def test_oscd_pairs_dates_and_change(made: Callable[[str], Path], tmp_path: Path) -> None:
    result = pack("oscd", made("oscd"), tmp_path)
    assert result.contract.splits == {"train": 1, "test": 1}
    sample = by_key(tmp_path)["norcia"]
    assert sample.arrays["image_before"].shape == sample.arrays["image_after"].shape == (13, 241, 385)
    assert (sample.arrays["mask"].sum(), sample.arrays["mask"].max()) == (24, 1)
    assert (sample.meta["date"], sample.meta["date_after"]) == ("2015-07-11", "2017-10-18")


def test_released_segmunich_is_reordered_and_recoded(made: Callable[[str], Path], tmp_path: Path) -> None:
    result = pack("segmunich", made("segmunich"), tmp_path)
    assert result.contract.splits == {"train": 3, "val": 2}
    sample = by_key(tmp_path)["train-1"]
    cube = tifffile.imread(made("segmunich") / "TUM_128/train/img/1.tif")
    codes = tifffile.imread(made("segmunich") / "TUM_128/train/label/1.tif")
    names = [band.name for band in result.contract.bands]
    for at, band in enumerate(["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12"]):
        np.testing.assert_array_equal(sample.arrays["image"][names.index(band)], cube[..., at])
    assert set(sample.arrays["mask"][codes == 31].tolist()) == {4}
    assert set(sample.arrays["mask"][codes == 11].tolist()) == {11}


@pytest.mark.parametrize("arrays", ["image", "image_20m", "image_before"])
def test_bands_are_put_in_the_order_of_the_contract(arrays: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that returns the bands as they are in its files, which is all that it has to do."""
    stored = cards.edition("eurosat", "ms").bands
    group = [name for name in stored if arrays != "image_20m" or sentinel2.MSI.gsd_m(name) == 20]
    planes = np.stack([np.full((4, 4), int(name[1:].replace("8A", "80")), np.uint16) for name in group])

    @contextlib.contextmanager
    def reading(source: Path, contract: Contract) -> Iterator[Callable[[object], Sample]]:
        assert tuple(band.name for band in contract.bands) == stored
        yield lambda ref: Sample(key="a", split="train", arrays={arrays: planes}, meta={})

    monkeypatch.setattr(eurosat, "open_source", reading)
    labels = cards.label_space("eurosat", "eurosat")
    contract = cards.contract_of(
        "eurosat", cards.edition("eurosat", "ms"), labels, resampling="none", resampling_version=1
    )
    with readers.open_samples("eurosat", Path(), contract) as read:
        image = read(cast(Any, None)).arrays[arrays]
    expected = [int(name[1:].replace("8A", "80")) for name in WAVELENGTH_ORDER if name in group]
    assert image[:, 0, 0].tolist() == expected


def test_no_copy_of_a_training_patch_is_left_in_validation(tmp_path: Path) -> None:
    source = synthetic.segmunich_released(tmp_path / "source", splits=(("train", 2), ("val", 2)))
    top = source / "TUM_128"
    for kind in ("img", "label"):
        cube = tifffile.imread(top / f"train/{kind}/1.tif")
        for split, name, copy in (("val", "7", np.rot90(cube)), ("train", "8", cube[::-1])):
            tifffile.imwrite(top / split / kind / f"{name}.tif", np.ascontiguousarray(copy), photometric="minisblack")
    result = pack("segmunich", source, tmp_path / "out")
    assert set(by_key(tmp_path / "out")) == {"train-0", "train-1", "train-8", "val-0", "val-1"}
    assert result.complete
    assert result.notes[:2] == (
        "1 copies of training patches in val or test: left out",
        "2 of 6 patches are copies of another, turned or mirrored",
    )
    groups = {key: sample.meta["group"] for key, sample in by_key(tmp_path / "out").items()}
    assert groups["train-1"] == groups["train-8"]
    assert len(set(groups.values())) == 4


def test_misplaced_bands_are_detected_from_a_hundred_samples(tmp_path: Path) -> None:
    """Files with B8A in numeric order, not last, read as EuroSAT: names and bands disagree."""
    spectrum = np.array([1354, 1118, 1043, 948, 1199, 2000, 2369, 2297, 732, 12, 1819, 1119, 2594])
    rng = np.random.default_rng(1)
    for folder, order in (("right", list(range(13))), ("wrong", [*range(8), 12, *range(8, 12)])):
        for number in range(1, 101):
            pixels = rng.normal(spectrum[order], spectrum[order] / 20, (64, 64, 13)).clip(1).astype(np.uint16)
            path = tmp_path / folder / "River" / f"River_{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, pixels, photometric="minisblack")
    right = pack("eurosat", tmp_path / "right", tmp_path / "a")
    assert right.complete
    assert right.notes[-1] == "spectral fingerprints of 100 samples: bands as named; level as named"
    wrong = pack("eurosat", tmp_path / "wrong", tmp_path / "b")
    assert (wrong.quarantined, wrong.complete) == (0, False)
    assert "B10 is 731" in wrong.notes[-1]
    (tmp_path / "wrong" / "River" / "River_100.tif").unlink()
    assert pack("eurosat", tmp_path / "wrong", tmp_path / "c").complete, "undecided below a hundred"


# --- faults, each reported with its reason -------------------------------------------------


def _rewrite(path: Path, change: Callable[[Array], Array]) -> None:
    tifffile.imwrite(path, change(tifffile.imread(path)), photometric="minisblack")


def _city(source: Path) -> list[Path]:
    """Return the rasters of Bercy, without the PNG."""
    next(source.rglob("bercy/cm/cm.png")).unlink()
    return [*source.rglob("bercy/imgs_*_rect/*.tif"), *source.rglob("bercy-cm.tif")]


PAGES = np.ones((4, 64, 60), np.uint16)
FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a band missing": ("bigearthnet v1", lambda s: next(s.rglob("*_0_7_B8A.tif")).unlink(), "band B8A is missing"),
    "a band of the wrong size": (
        "bigearthnet v1",
        lambda s: _rewrite(next(s.rglob("*_0_7_B01.tif")), lambda a: a[:19]),
        r"B01 is uint16 (1, 19, 20), expected uint16 (1, 20, 20)",
    ),
    "damaged JSON": (
        "bigearthnet v1",
        lambda s: next(s.rglob("*_0_7_labels_metadata.json")).write_text('{"labels": ["Vine'),  # type: ignore[arg-type,return-value]
        "labels_metadata.json is damaged",
    ),
    "an unknown label": (
        "bigearthnet v1",
        lambda s: next(s.rglob("*_0_7_labels_metadata.json")).write_text(  # type: ignore[arg-type,return-value]
            '{"labels": ["Moon"], "acquisition_date": "2017", "tile_source": "x"}'
        ),
        "labels ['Moon'] are not in the label space",
    ),
    "all zero": ("eurosat", lambda s: _rewrite(next(s.rglob("River_1.tif")), np.zeros_like), "zero everywhere"),
    "twelve bands": (
        "eurosat",
        lambda s: _rewrite(next(s.rglob("River_1.tif")), lambda a: a[..., :12]),
        "(12, 64, 64)",
    ),
    "not a TIFF": (
        "eurosat",
        lambda s: next(s.rglob("River_1.tif")).write_bytes(b"II*\0garbage"),
        "TIFF holds 0 images",
    ),  # type: ignore[arg-type,return-value]
    "two images in one file": (
        "eurosat",
        lambda s: tifffile.imwrite(next(s.rglob("River_1.tif")), PAGES, metadata=None, photometric="minisblack"),
        "TIFF of axes IYX",
    ),
    "NaN": (
        "fmow",
        lambda s: _rewrite(next(s.rglob("train/**/airport_0_100.tif")), lambda a: np.where(a > 900, np.nan, a)),
        "NaN or infinite",
    ),
    "a label outside the codes": (
        "segmunich",
        lambda s: _rewrite(s / "TUM_128/train/label/1.tif", lambda a: a + 100),
        "are not all SegMunich codes",
    ),
    "an image without label": ("segmunich", lambda s: (s / "TUM_128/train/label/1.tif").unlink(), "without label"),
    "change maps that differ": (
        "oscd",
        lambda s: _rewrite(next(s.rglob("bercy-cm.tif")), lambda a: 3 - a),
        "cm.png and cm.tif differ",
    ),
    "a change map of 0 and 1": (
        "oscd",
        lambda s: _rewrite(next(s.rglob("bercy-cm.tif")), lambda a: a - 1),
        "expected 1 and 2",
    ),
    "a city of another size": (
        "oscd",
        lambda s: [_rewrite(p, lambda a: a[..., :-1, :] if a.ndim == 2 else a[:-1]) for p in _city(s)],  # type: ignore[arg-type,return-value]
        "the published one is (395, 360)",
    ),
    "dates of another day": (
        "oscd",
        lambda s: next(s.rglob("bercy/dates.txt")).write_text("date_1: 20161130\ndate_2: 20170830\n"),  # type: ignore[arg-type,return-value]
        "dates.txt says date_after 2017-08-30, expected 20170829 as published",
    ),
    "a pair of unequal size": (
        "oscd",
        lambda s: [_rewrite(p, lambda a: a[1:]) for p in s.rglob("bercy/imgs_2_rect/*.tif")],  # type: ignore[arg-type,return-value]
        "arrays of different sizes",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_sample_is_listed_and_the_rest_is_packed(
    fault: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    name, inject, reason = FAULTS[fault]
    source = shutil.copytree(made(name), tmp_path / "source")
    inject(source)
    result = pack(name, source, tmp_path / "out")
    reasons = quarantine(tmp_path / "out")
    assert result.quarantined == len(reasons) == 1
    assert reason in next(iter(reasons.values()))
    assert sum(result.contract.splits.values()) == SAMPLES[name] - 1
    assert str(tmp_path) not in (tmp_path / "out" / output_names.QUARANTINE).read_text()


# --- real files ----------------------------------------------------------------------------


def test_real_eurosat(real: Path, tmp_path: Path) -> None:
    result = pack("eurosat", real / "eurosat", tmp_path)
    assert result.complete
    for key, sample in by_key(tmp_path).items():
        with rasterio.open(next((real / "eurosat").rglob(f"{key}.tif"))) as original:
            values = original.read()
        np.testing.assert_array_equal(sample.arrays["image"], values[[0, 1, 2, 3, 4, 5, 6, 7, 12, 8, 9, 10, 11]])
        image = sample.arrays["image"].astype(float)
        assert np.median(image[10]) < 50, "B10 is the cirrus band"
        assert sample.meta["crs"] == "EPSG:32635"
    assert by_key(tmp_path)["AnnualCrop_1"].meta["labels"] == [0]


@pytest.mark.parametrize("edition", ["v1", "v2"])
def test_real_bigearthnet(edition: str, real: Path, tmp_path: Path) -> None:
    source = real / "bigearthnet" / edition
    result = pack(f"bigearthnet {edition}", source, tmp_path / "n", layout="native")
    assert result.complete
    pack(f"bigearthnet {edition}", source, tmp_path / "r")
    whole = by_key(tmp_path / "r")
    groups = {"image_10m": "B02 B03 B04 B08", "image_20m": "B05 B06 B07 B8A B11 B12", "image_60m": "B01 B09"}
    for key, sample in by_key(tmp_path / "n").items():
        west, south, east, north = sample.meta["bounds"]
        for group, bands in groups.items():
            for plane, band in zip(sample.arrays[group], bands.split(), strict=True):
                with rasterio.open(next(source.rglob(f"{key}_{band}.tif"))) as original:
                    np.testing.assert_array_equal(plane, original.read(1))
                    west, south, east, north = sample.meta["bounds"]
                    lon, lat = transform(original.crs, "EPSG:4326", *[[c] for c in original.transform * (1, 1)])
                    assert west < lon[0] < east
                    assert south < lat[0] < north
        fine = whole[key].arrays["image"]
        assert fine.shape == (12, 120, 120)
        np.testing.assert_array_equal(fine[[1, 2, 3, 7]], sample.arrays["image_10m"])
        coarse = fine[0].reshape(20, 6, 20, 6).mean((1, 3))
        assert np.corrcoef(coarse.ravel(), sample.arrays["image_60m"][0].ravel())[0, 1] > 0.95
    if edition == "v1":
        meta = whole["S2B_MSIL2A_20170924T93020_69_24"].meta
        assert meta["date"] == "2017-09-24"
        assert meta["labels"]


def test_real_fmow(real: Path, tmp_path: Path) -> None:
    result = pack("fmow", real / "fmow_sentinel", tmp_path)
    assert result.complete
    (sample,) = by_key(tmp_path).values()
    with rasterio.open(real / "fmow_sentinel/airport_0_1.tif") as original:
        values = original.read()
    assert (sample.key, sample.arrays["image"].dtype) == ("all-airport_0_1", np.uint16)
    np.testing.assert_array_equal(sample.arrays["image"] / 2, values)
    # In DN, where a reflectance is (stored + offset) x scale.
    assert result.contract.statistics["B02"].mean * result.contract.scale == pytest.approx(
        values[1][values[1] > 0].mean() * 1e-4
    )


def test_real_segmunich(real: Path, tmp_path: Path) -> None:
    for kind in ("img", "label"):
        (tmp_path / "TUM_128/train" / kind).mkdir(parents=True)
    shutil.copy(real / "segmunich/SegMunich_train_img_10.tif", tmp_path / "TUM_128/train/img/10.tif")
    labels = np.full((128, 128), 31, np.uint8)  # no real label is at hand
    tifffile.imwrite(tmp_path / "TUM_128/train/label/10.tif", labels)
    result = pack("segmunich", tmp_path, tmp_path / "out")
    assert result.complete
    (sample,) = by_key(tmp_path / "out").values()
    cube = tifffile.imread(real / "segmunich/SegMunich_train_img_10.tif")
    names = [band.name for band in result.contract.bands]
    means = dict(zip(names, sample.arrays["image"].mean((1, 2)).round(), strict=True))
    assert (means["B02"], means["B04"], means["B08"], means["B12"]) == (472, 635, 2853, 1100)
    np.testing.assert_array_equal(sample.arrays["image"][names.index("B8A")], cube[..., 7])
    assert (sample.arrays["mask"] == 4).all()


@pytest.mark.parametrize(
    ("dataset", "files_held", "message"),
    [
        ("eurosat", ["EuroSAT_RGB/River/River_1.jpg"], "it holds 1 files, such as EuroSAT_RGB/River/River_1.jpg"),
        ("eurosat", [], "it is empty"),
        ("bigearthnet", ["a.txt", "x.tar.gzaa", "x.tar.gzab"], "such as x.tar.gzaa; join the parts of an archive"),
        ("fmow", ["train/River/River_1.tif"], "no train/airport/airport_0/airport_0_6.tif"),
        ("oscd", ["paris/imgs_1/x_B01.tif", "Images.7z"], r"the three zips, packed or not; it holds 2.*Images.7z"),
        ("segmunich", ["img/1.tif"], "neither a build .* such as img/1.tif"),
    ],
)
def test_a_source_of_something_else_is_named(tmp_path: Path, dataset: str, files_held: list[str], message: str) -> None:
    for name in files_held:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=message):
        packing.pack(dataset, source=tmp_path, out=tmp_path / "out")


def test_csvs_of_fmow_may_be_in_subfolders(made: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(made("fmow"), tmp_path / "data" / "again" / "nested")
    assert pack("fmow", tmp_path / "data", tmp_path / "out").contract.splits == {"train": 3, "val": 2, "test": 1}
