"""Test samples in data loaders of other people: any start of processes, any place of the shards, types, names."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import served
import torch
from synthetic_shards import contract, sample, write, write_pairs
from test_upsample import native
from torch.utils.data import ConcatDataset, DataLoader

from sgdata.errors import SettingError
from sgdata.shards import write_shards
from sgmodel.data import loader, tar_source, upsample, windows

MEMBERS = ("image", "mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("workers") / "toy", train=5, val=1)


@pytest.fixture(scope="module")
def places(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[loader.Samples]]:
    """Yield the same samples on disk, behind a mirror of a folder, and behind a mirror of a server."""
    cache = tmp_path_factory.mktemp("cache")
    with served.serving(folder) as server:
        mirrors = [tar_source.mirror(url, cache, cache_gb=0.01) for url in (f"file://{folder}", server.url)]
        yield [loader.Samples(one, "train", MEMBERS) for one in (folder, *mirrors)]


def check(found: dict[str, torch.Tensor], number: int) -> None:
    expected = sample(number, "train", 32, 32).arrays
    assert {name: array.dtype for name, array in found.items()} == {"image": torch.float32, "mask": torch.uint8}
    for name in MEMBERS:
        np.testing.assert_array_equal(found[name].numpy(), expected[name])


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_workers_of_any_kind_read_the_right_pixels(places: list[loader.Samples], start: str) -> None:
    for one in places:
        check(one[4], 4)  # threads and connections of this process are in use when it is copied
    data = DataLoader(
        ConcatDataset(places), batch_size=None, num_workers=2 if start == "fork" else 1, multiprocessing_context=start
    )  # type: ignore[arg-type]
    found = list(data)
    assert len(found) == 15
    for number, one in enumerate(found):
        check(one, number % 5)


def test_pickled_samples_read_the_right_pixels(places: list[loader.Samples]) -> None:
    for one in places:
        again = pickle.loads(pickle.dumps(one))
        for number in range(5):
            check(again[number], number)
            check(one[number], number)


def test_windows_go_to_workers_too(tmp_path: Path) -> None:
    pairs = loader.Samples(write_pairs(tmp_path / "pairs"), "train", ("image_before", "image_after", "mask"))
    cut = windows.WindowedSamples(pairs, windows.WindowRecipe(px=16, stride=16, remainder="covered", once=False))
    again = pickle.loads(pickle.dumps(cut))
    for number in (0, len(cut) - 1):
        for name, array in cut[number].items():
            assert torch.equal(again[number][name], array)
    assert cut[0]["image_after"].dtype == torch.float32


def test_operators_take_images_and_masks(folder: Path) -> None:
    source = loader.Samples(folder, "train", MEMBERS)
    batch = next(iter(DataLoader(source, batch_size=3)))
    images = (batch["image"] - source.mean[:, None, None]) / source.std[:, None, None]
    assert abs(images.mean().item()) < 0.2
    small = torch.nn.functional.interpolate(images, scale_factor=0.5)
    logits = torch.nn.Conv2d(12, 4, 1)(torch.nn.functional.interpolate(small, scale_factor=2))
    torch.nn.functional.cross_entropy(logits, batch["mask"].long(), ignore_index=255).backward()
    assert (batch["image"].flip(-1).clamp(min=1000) >= 1000).all()


@pytest.mark.parametrize(
    ("member", "dtype", "expected"),
    [
        *(("image", "int16", torch.float32), ("image", "int32", torch.float64), ("image", "uint8", torch.float32)),
        ("mask", "uint16", torch.int32),
    ],
)
def test_other_types_become_those_that_operators_take(
    tmp_path: Path, member: str, dtype: str, expected: torch.dtype
) -> None:
    made = [sample(n, "train", 32, 32) for n in range(2)]
    for one in made:
        one.arrays[member] = (one.arrays[member] // 20).astype(dtype)
    made[1].arrays[member][..., :3] = np.iinfo(dtype).max
    space = dataclasses.replace(contract(32).label_space, ignore=65535 if dtype == "uint16" else 255)
    write_shards.write(made, tmp_path / "shards", contract=dataclasses.replace(contract(32), label_space=space))
    found = loader.Samples(tmp_path / "shards", "train", (member,))[1][member]
    assert found.dtype == expected
    np.testing.assert_array_equal(found.numpy(), made[1].arrays[member])


def test_native_bands_come_as_one_image(tmp_path: Path) -> None:
    made = [native(number, 24) for number in range(2)]
    write_shards.write(made, tmp_path / "shards", contract=contract(24))
    source = loader.Samples(tmp_path / "shards", "train", ("image",))
    (batch,) = loader.load(source, loader.in_order(2, 2), threads=1)
    expected = upsample.images(batch.arrays, batch.valid_size, source.contract, torch.device("cpu"))
    for number in range(2):
        assert torch.equal(source[number]["image"], expected[number].float())
    assert source[0]["image"].shape == (len(source.bands), 24, 24)


def test_names_and_statistics_are_beside_the_samples(folder: Path) -> None:
    source = loader.Samples(folder, "val", MEMBERS)
    images = np.stack([sample(n, "train", 32, 32).arrays["image"] for n in range(5)])
    assert source.bands[:2] == ("B01", "B02")
    np.testing.assert_allclose(source.mean, images.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(source.std, images.std(axis=(0, 2, 3)), rtol=1e-4)
    source.contract = dataclasses.replace(source.contract, statistics={})
    with pytest.raises(SettingError, match="no statistics of B01 .* expected those of a split 'train'"):
        _ = source.mean
