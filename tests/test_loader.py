"""Test that the sample stream is a pure function, whatever the ranks, threads and resumes; damage is reported."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_shards import contract, sample, write

from sgdata.errors import SettingError, SourceError
from sgdata.shards import tar_format, write_shards
from sgdata.types import Codec
from sgmodel.data import loader as data_loader
from sgmodel.data import subset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards") / "toy", train=11, val=3)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    world=st.sampled_from([1, 2, 4]),
    batch=st.sampled_from([4, 8, 24]),
    cut=st.integers(0, 12),
    seed=st.integers(0, 9),
)
def test_order_on_any_ranks_with_any_interruption(count: int, world: int, batch: int, cut: int, seed: int) -> None:
    """Over three epochs and more, the shares of the ranks, resumed at `cut`, join into the sequence of one rank."""
    last = max(12, 3 * count // batch + 1)
    whole = [places.samples for places in data_loader.stream(count, batch, seed=seed, first=0, last=last)]
    resumed = [*data_loader.stream(count, batch, seed=seed, first=0, last=cut)]
    resumed += data_loader.stream(count, batch, seed=seed, first=cut, last=last)
    for expected, places in zip(whole, resumed, strict=True):
        parts = [data_loader.rank_part(places, rank=rank, world=world).samples for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), expected)
    flat = np.concatenate(whole)
    for epoch in range(len(flat) // count):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_differ_and_are_marked() -> None:
    first, second, third = data_loader.stream(8, 8, seed=1, first=0, last=3)
    assert not np.array_equal(first.samples, second.samples)
    assert [set(places.epoch) for places in (first, second, third)] == [{0}, {1}, {2}]
    (across,) = data_loader.stream(6, 8, seed=1, first=0, last=1)
    assert across.epoch.tolist() == [0] * 6 + [1] * 2


def test_ranks_must_divide_the_batch() -> None:
    (places,) = data_loader.stream(9, 6, seed=0, first=0, last=1)
    with pytest.raises(SettingError, match="batch 6 does not divide among 4"):
        data_loader.rank_part(places, rank=0, world=4)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_contain_the_samples_of_their_keys(folder: Path, threads: int) -> None:
    source = data_loader.Samples(folder, "train", ("image", "mask"))
    stored = {one.key: one for one in tar_format.samples(folder, "train")}
    seen = 0
    for batch in data_loader.load(source, data_loader.stream(11, 4, seed=2, first=0, last=9), threads=threads):
        assert batch.arrays["image"].dtype == torch.uint16
        for row, key in enumerate(batch.keys):
            assert source.keys[int(batch.samples[row])] == key
            for name in ("image", "mask"):
                assert np.array_equal(batch.arrays[name][row].numpy(), stored[key].arrays[name])
            seen += 1
    assert seen == 36


def test_in_order_reads_every_sample_once(folder: Path) -> None:
    source = data_loader.Samples(folder, "train", ("mask",))
    keys = [
        key for batch in data_loader.load(source, data_loader.in_order(len(source), 4), threads=2) for key in batch.keys
    ]
    assert keys == source.keys
    assert len(keys) == 11


def test_sizes_may_vary(tmp_path: Path) -> None:
    made = [sample(0, "train", 20, 24), sample(1, "train", 32, 16)]
    write_shards.write(made, tmp_path, contract=contract(32))
    source = data_loader.Samples(tmp_path, "train", ("image", "mask"))
    (batch,) = data_loader.load(source, data_loader.in_order(2, 2), threads=2)
    assert batch.valid_size.tolist() == [[20, 24], [32, 16]]
    assert tuple(batch.arrays["image"].shape) == (2, 12, 32, 24)
    for row, (height, width) in enumerate(batch.valid_size.tolist()):
        image = batch.arrays["image"][row].numpy()
        assert np.array_equal(image[:, :height, :width], made[row].arrays["image"])
        assert image[:, height:].sum() == image[:, :, width:].sum() == 0


@pytest.mark.parametrize("codec", ["blosc", "npy"])
def test_a_few_float_samples_among_whole_ones_keep_every_value(codec: Codec, tmp_path: Path) -> None:
    made = [sample(number, "train", 16, 16) for number in range(5)]
    odd = made[2].arrays["image"].astype(np.float32) + 0.5
    made[2] = replace(made[2], arrays={**made[2].arrays, "image": odd})
    write_shards.write(made, tmp_path, contract=contract(16), codec=codec)
    source = data_loader.Samples(tmp_path, "train", ("image",))
    (batch,) = data_loader.load(source, data_loader.in_order(5, 5), threads=2)
    assert batch.arrays["image"].dtype == torch.float32
    for row, each in enumerate(made):
        assert np.array_equal(batch.arrays["image"][row], each.arrays["image"])
        assert np.array_equal(source[row]["image"], each.arrays["image"])
    made[1] = replace(made[1], arrays={**made[1].arrays, "image": made[1].arrays["image"].astype(np.int32)})
    write_shards.write(made, tmp_path / "none", contract=contract(16), codec=codec)
    with pytest.raises(SettingError, match="expected one that represents the values of the others"):
        data_loader.Samples(tmp_path / "none", "train", ("image",))


def test_parts_cover_a_batch(folder: Path) -> None:
    source = data_loader.Samples(folder, "train", ("image",))
    (batch,) = data_loader.load(source, data_loader.in_order(11, 11), threads=1)
    parts = list(batch.parts(4))
    assert [len(part.keys) for part in parts] == [2, 3, 3, 3]
    assert torch.equal(torch.cat([part.arrays["image"] for part in parts]), batch.arrays["image"])
    assert len(list(batch.parts(99))) == 11


def test_codec_npy_reads_the_same(tmp_path: Path, folder: Path) -> None:
    made = list(tar_format.samples(folder, "val"))
    write_shards.write(made, tmp_path, contract=contract(32), codec="npy")
    source = data_loader.Samples(tmp_path, "val", ("image",))
    assert np.array_equal(source.read(1, "image"), made[1].arrays["image"])


def test_unknown_split_and_member_are_named(folder: Path) -> None:
    with pytest.raises(SettingError, match="no split 'dev'; it has train, val"):
        data_loader.Samples(folder, "dev", ("image",))
    with pytest.raises(SettingError, match="samples have no 'image_10m'; they have image, mask, meta"):
        data_loader.Samples(folder, "train", ("image_10m",))


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    write(tmp_path, train=3, val=1)
    source = data_loader.Samples(tmp_path, "train", ("image",))
    start = int(source.members["image"].start[1])
    with (tmp_path / source.shard[1]).open("r+b") as handle:
        handle.seek(start)
        handle.write(b"\xff" * 64)
    with pytest.raises(SourceError, match="sample 'toy-00001'.*sgdata verify"):
        list(data_loader.load(source, data_loader.in_order(3, 3), threads=2))


def test_a_shard_cut_short_or_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path, train=3, val=1)
    tar = tmp_path / "toy-train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:40_000])
    with pytest.raises(SourceError, match=r"toy-train-000000.tar: has 40000 bytes, 'image' ends at"):
        data_loader.Samples(tmp_path, "train", ("image",))
    tar.unlink()
    with pytest.raises(SourceError, match=r"toy-train-000000.tar: (cannot be read|no regular file)"):
        data_loader.Samples(tmp_path, "train", ("image",))


def test_a_plain_torch_loader_reads_the_samples(folder: Path) -> None:
    """Use a map-style dataset, shuffled and collated by PyTorch, as Lightning and others do."""
    source = data_loader.Samples(folder, "train", ("image", "mask"))
    stored = {one.arrays["mask"].tobytes() for one in tar_format.samples(folder, "train")}
    data: Any = source
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, num_workers=0)
    given = list(loader)
    assert [tuple(batch["image"].shape) for batch in given] == [(4, 12, 32, 32), (4, 12, 32, 32), (3, 12, 32, 32)]
    assert {mask.numpy().tobytes() for batch in given for mask in batch["mask"]} == stored
    with pytest.raises(IndexError):
        source[len(source)]


def test_a_fraction_can_be_recomputed_from_its_definition(folder: Path) -> None:
    whole = data_loader.Samples(folder, "train", ("mask",))
    part = data_loader.Samples(folder, "train", ("mask",), fraction=0.4, seed=7)
    ranked = sorted(whole.keys, key=lambda key: hashlib.sha256(f"7:{key}".encode()).hexdigest())
    assert part.keys == sorted(ranked[:4])
    for row, key in enumerate(part.keys):
        assert np.array_equal(part.read(row, "mask"), whole.read(whole.keys.index(key), "mask"))


def test_fractions_are_nested_and_differ_by_seed() -> None:
    keys = [f"key-{n}" for n in range(200)]
    small, large = (set(subset.subset(keys, share, seed=1)) for share in (0.1, 0.5))
    assert (len(small), len(large)) == (20, 100)
    assert small < large
    assert small != set(subset.subset(keys, 0.1, seed=2))
    backwards = subset.subset(keys[::-1], 0.1, seed=1)
    assert {keys[::-1][row] for row in backwards} == {keys[row] for row in small}
    assert len(subset.subset(keys, 0.001, seed=1)) == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(folder: Path, share: float) -> None:
    with pytest.raises(SettingError, match=f"training.fraction is {share}"):
        data_loader.Samples(folder, "train", ("mask",), fraction=share)
