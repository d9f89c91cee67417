"""Test that bands resampled on the device equal those resampled before sharding, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_shards import contract

from sgdata.errors import SettingError
from sgdata.rasters import resample
from sgdata.shards import tar_format, write_shards
from sgdata.types import Sample
from sgmodel.data import loader, upsample


@settings(max_examples=60, deadline=None)
@given(
    factor=st.sampled_from([1, 2, 3, 6]),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from(["nearest", "bilinear"]),
    holes=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_device_resamples_as_sgdata(
    factor: int, shape: tuple[int, int, int], kernel: resample.Kernel, holes: float, seed: int
) -> None:
    rng = np.random.Generator(np.random.Philox(key=seed))
    coarse = rng.integers(1, 65536, shape).astype(np.uint16)
    coarse[rng.random(shape) < holes] = 0
    expected = resample.upsample(coarse, factor, kernel=kernel, nodata=0)
    ours = upsample.upsample(torch.from_numpy(coarse)[None], factor, kernel=kernel, nodata=0)[0]
    assert np.array_equal(ours.numpy(), expected)


def native(number: int, px: int) -> Sample:
    rng = np.random.Generator(np.random.Philox(key=number))
    counts = {10: 4, 20: 6, 60: 2}
    groups = {
        f"image_{gsd}m": rng.integers(0, 4000, (count, px * 10 // gsd, px * 10 // gsd)).astype(np.uint16)
        for gsd, count in counts.items()
    }
    mask = rng.integers(0, 4, (px, px)).astype(np.uint8)
    return Sample(key=f"n-{number}", split="train", arrays={**groups, "mask": mask}, meta={"bounds": None})


def test_native_shards_give_the_images_of_resampled_ones(tmp_path: Path) -> None:
    made = [native(number, 24) for number in range(3)]
    whole = []
    for one in made:
        image = np.zeros((12, 24, 24), np.uint16)
        for gsd in (10, 20, 60):
            at = [index for index, band in enumerate(contract(24).bands) if band.gsd_m == gsd]
            image[at] = resample.upsample(one.arrays[f"image_{gsd}m"], gsd // 10, kernel="bilinear")
        whole.append(dataclasses.replace(one, arrays={"image": image, "mask": one.arrays["mask"]}))
    write_shards.write(whole, tmp_path / "whole", contract=contract(24))
    (tmp_path / "native").mkdir()
    tar = "toy-train-000000.tar"
    _, rows = tar_format.write_tar(tmp_path / "native" / tar, ((one, "0" * 64) for one in made), codec="blosc")
    packed = write_shards.PackedShard(shard=_, split="train", rows=tuple(rows), counts=np.ones((12, 65536), np.int64))
    all_of_it = write_shards.ShardTotals(contract(24))
    all_of_it.add(packed)
    write_shards.finish(tmp_path / "native", all_of_it)
    ours, theirs = (
        next(loader.load(source, loader.in_order(3, 3), threads=2))
        for source in (loader.Samples(tmp_path / name, "train", ("image", "mask")) for name in ("native", "whole"))
    )
    assert set(ours.arrays) == {*upsample.GROUPS, "mask"}
    assert ours.valid_size.tolist() == [[24, 24]] * 3
    device = torch.device("cpu")
    a, b = (upsample.images(one.arrays, one.valid_size, contract(24), device).int() for one in (ours, theirs))
    assert torch.equal(a, b)
    with pytest.raises(SettingError, match="native shards of samples of many sizes"):
        upsample.images(ours.arrays, torch.tensor([[24, 24], [20, 24], [24, 24]]), contract(24), device)
