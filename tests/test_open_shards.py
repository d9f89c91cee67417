"""Test what Python sees of shards and maps: decoded samples, pictures, the webdataset pipeline, tensors, xarray."""

from __future__ import annotations

import gc
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic_shards
import torch
from torch.utils.data import DataLoader

import sgdata
from sgdata import files
from sgdata.errors import SettingError, SourceError
from sgdata.rasters import cog
from sgdata.shards import contracts, tar_format, write_shards
from sgdata.shards.open_shards import decode_webdataset
from sgdata.types import Grid, Window
from sgmodel.data.loader import Samples

# webdataset leaves the tars that it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of nine samples in four splits, one tar each."""
    out = tmp_path_factory.mktemp("open") / "shards"
    splits = ["train", "train", "train", "train", "val", "val", "test", "test", "spare"]
    samples = [synthetic_shards.sample(number, split, 24, 24) for number, split in enumerate(splits)]
    write_shards.write(samples, out, contract=synthetic_shards.contract(24))
    return out


def test_samples_are_decoded_with_names_and_statistics(folder: Path) -> None:
    shards = sgdata.open_shards(str(folder))
    assert len(shards) == 9 and shards.splits == {"train": 4, "val": 2, "test": 2, "spare": 1}
    train = sgdata.open_shards(folder, "train")
    assert len(train) == len(list(train)) == 4
    sample = train[-1]
    assert sample.arrays["image"].shape == (len(train.bands), 24, 24)
    np.testing.assert_array_equal(train[sample.key].arrays["mask"], sample.arrays["mask"])
    assert set(train.classes) >= set(np.unique(sample.arrays["mask"]).tolist()) - {255}
    assert set(train.statistics) == set(train.bands)
    assert "train 4, val 2" in repr(shards)
    with pytest.raises(SettingError, match="no split 'dev'; it has .*train.*val"):
        sgdata.open_shards(folder, "dev")
    with pytest.raises(KeyError):
        train["nothing"]


def test_a_picture_shows_image_and_classes(folder: Path) -> None:
    picture = sgdata.open_shards(folder).plot(1)
    assert picture.size == (2 * 24 * 11 + 4, 24 * 11)  # the least whole number of times above 256
    assert picture._repr_png_()  # what notebooks show
    colours = {colour for _, colour in picture.crop((24 * 11 + 4, 0, *picture.size)).getcolors()}
    mask = sgdata.open_shards(folder)[1].arrays["mask"]
    assert len(colours) == len(np.unique(mask))


def keys(folder: Path, workers: int = 0) -> list[str]:
    loaded = DataLoader(sgdata.open_shards(folder).webdataset(), batch_size=None, num_workers=workers)
    return [sample["__key__"] for sample in loaded]


def test_webdataset_gives_decoded_samples(folder: Path) -> None:
    shards = sgdata.open_shards(folder, "train")
    assert len(list(shards.webdataset())) == 4
    for sample, expected in zip(shards.webdataset(), shards, strict=True):
        np.testing.assert_array_equal(sample["image"], expected.arrays["image"])
        np.testing.assert_array_equal(sample["mask"], expected.arrays["mask"])
        assert sample["__key__"] == expected.key == sample["meta"]["key"]
    mixed = [sample["__key__"] for sample in shards.webdataset(shuffle=100, seed=3)]
    assert sorted(mixed) == sorted(sample.key for sample in shards) != mixed
    assert mixed == [sample["__key__"] for sample in shards.webdataset(shuffle=100, seed=3)]


def test_ranks_and_workers_divide_the_tars(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = keys(folder)
    parts = []
    for rank in range(2):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        parts.append(keys(folder))
        # Worker processes give the same samples of this rank, each once.
        assert sorted(keys(folder, workers=2)) == sorted(parts[-1])
    assert all(parts) and sorted(parts[0] + parts[1]) == sorted(everything)


def test_members_are_never_unpickled(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"expected \.blosc, \.npy or \.json"):
        decode_webdataset({"__key__": "a", "mask.pyd": b"cos\nsystem\n(S'true'\ntR."})
    with pytest.raises(SourceError, match="pickled|pickle"):
        array = np.array([{"a": 1}], object)
        path = folder.parent / "evil.npy"
        np.save(path, array, allow_pickle=True)
        decode_webdataset({"__key__": "a", "image.npy": path.read_bytes()})
    tar = next(iter(sorted(folder.glob("*-train-*.tar"))))
    with tarfile.open(tar) as opened:
        raw = {name.partition(".")[2]: opened.extractfile(name).read() for name in opened.getnames()}  # type: ignore[union-attr]
    first = decode_webdataset({"__key__": "k", **{name: raw[name] for name in raw if name.endswith("blosc")}})
    assert (
        first["image"].dtype == tar_format.read_sample(folder, sgdata.open_shards(folder).rows[0]).arrays["image"].dtype
    )


def test_samples_are_tensors_that_operators_take(folder: Path) -> None:
    samples = Samples(str(folder), "train", ("image", "mask"))
    batch = next(iter(DataLoader(samples, batch_size=4)))
    model = torch.nn.Conv2d(len(samples.bands), 16, 1)
    ignore = samples.contract.label_space.ignore_index
    loss = torch.nn.functional.cross_entropy(
        model((batch["image"] - samples.mean[:, None, None]) / samples.std[:, None, None]),
        batch["mask"].long().clamp(max=15),
        ignore_index=-100 if ignore is None else ignore,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)


def test_maps_are_opened_with_names_and_crs(folder: Path, tmp_path: Path) -> None:
    contract = contracts.read(folder)
    names = contract.label_space.names
    grid = Grid(crs="EPSG:32632", origin=(600000.0, 5300000.0), gsd_m=10.0, shape=(16, 24))
    whole = Window(row=0, col=0, height=16, width=24)
    values = np.arange(16 * 24, dtype=np.uint8).reshape(1, 16, 24) % len(names)
    cog.write(
        tmp_path / "classes.tif",
        grid,
        [(whole, values)],
        style=cog.RasterStyle(descriptions=("classes",), dtype="uint8"),
    )
    shares = np.stack([values[0] * 0 + n for n in range(len(names))]).astype(np.uint8)
    style = cog.RasterStyle(descriptions=tuple(names), dtype="uint8")
    cog.write(tmp_path / "probabilities.tif", grid, [(whole, shares)], style=style)
    contracts.write(tmp_path, contract)
    with pytest.raises(SourceError, match="unfinished"):
        sgdata.open_map(tmp_path)
    files.write_sums(tmp_path)
    opened = sgdata.open_map(str(tmp_path))
    assert opened.classes.dims == ("y", "x") and opened.rio.crs.to_epsg() == 32632
    np.testing.assert_array_equal(opened.classes.values, values[0])
    assert list(opened.probabilities["class"].values) == list(names)
    assert opened.attrs["classes"] == dict(zip(contract.label_space.ids, names, strict=True))
    (tmp_path / "none").mkdir()
    files.write(tmp_path / "none" / "a.json", json.dumps({}).encode())
    files.write_sums(tmp_path / "none")
    with pytest.raises(SourceError, match="no classes.tif"):
        sgdata.open_map(tmp_path / "none")
