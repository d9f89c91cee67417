"""Test several datasets as one stream: exact shares, one order on any ranks, one scale, bands by name, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_shards import contract, sample, write

from sgdata import files, package_data, sentinel2
from sgdata.errors import ExitCode, SettingError
from sgdata.shards import tar_format, write_shards
from sgdata.types import Sample
from sgmodel.data import loader, mixture, upsample
from sgmodel.recipes import pretrain
from sgmodel.train import run_paths

BANDS = sentinel2.L2A_BANDS
SHARES = {"doubled": 1.0, "toy": 3.0}


def doubled(number: int, split: str = "train", px: int = 48) -> Sample:
    """Return a sample as in fMoW: 13 bands, larger, twice the DN; each band is constant, by sample and band."""
    planes = [np.full((px, px), 2 * (1000 + 100 * number + band), np.uint16) for band in range(13)]
    return Sample(key=f"d-{number:03d}", split=split, arrays={"image": np.stack(planes)}, meta={})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("mixture")
    other_contract = replace(contract(48), dataset="doubled", bands=sentinel2.BANDS, scale=5e-5)
    write_shards.write(
        [doubled(n, "train" if n < 5 else "val") for n in range(6)], place / "doubled", contract=other_contract
    )
    return {"toy": write(place / "toy", train=7, val=2), "doubled": place / "doubled"}


def mixed(folders: dict[str, Path], shares: dict[str, float] = SHARES, accept: tuple[str, ...] = ()) -> mixture.Mixture:
    sources = {name: loader.Samples(folder, "train", ("image",)) for name, folder in folders.items()}
    return mixture.Mixture(sources, shares, BANDS, accept)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 9), min_size=4, max_size=4),
    seed=st.integers(0, 2**40),
)
def test_shares_are_exact_and_nothing_comes_twice_before_all_came_once(
    counts: list[int], weights: list[float], seed: int
) -> None:
    shares = weights[: len(counts)]
    quotas = mixture.quotas(counts, shares)
    assert quotas.sum() == sum(counts)
    assert np.abs(quotas - np.array(shares) / sum(shares) * sum(counts)).max() < 1
    epochs = [mixture.epoch(counts, shares, seed=seed, number=number) for number in range(4)]
    starts = np.cumsum([0, *counts])
    for at, quota in enumerate(quotas.tolist()):
        own = [part.samples[(part.samples >= starts[at]) & (part.samples < starts[at + 1])] for part in epochs]
        assert [len(part) for part in own] == [quota] * 4
        flat = np.concatenate(own)
        for turn in range(len(flat) // counts[at]):
            once = flat[turn * counts[at] : (turn + 1) * counts[at]]
            assert sorted(once) == list(range(starts[at], starts[at + 1]))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_order_on_any_ranks_with_any_interruption(folders: dict[str, Path], world: int) -> None:
    source = mixed(folders)
    whole = list(source.stream(8, seed=3, first=0, last=9))
    again = [*source.stream(8, seed=3, first=0, last=4), *source.stream(8, seed=3, first=4, last=9)]
    for expected, paths in zip(whole, again, strict=True):
        parts = [loader.rank_part(paths, rank=rank, world=world) for rank in range(world)]
        assert np.array_equal(np.concatenate([part.samples for part in parts]), expected.samples)
        assert np.array_equal(np.concatenate([part.epoch for part in parts]), expected.epoch)
    flat = np.concatenate([paths.samples for paths in whole])
    # Of every 12 paths (5 + 7 samples) one quarter is of 'doubled', whose samples are the first five numbers.
    assert [(flat[start : start + 12] < 5).sum() for start in range(0, 72, 12)] == [3] * 6
    assert len({tuple(flat[start : start + 12]) for start in range(0, 72, 12)}) == 6


def test_batches_have_bands_by_name_in_one_scale(folders: dict[str, Path]) -> None:
    source = mixed(folders)
    assert (source.contract.dataset, source.contract.scale, source.contract.shape) == ("doubled+toy", 5e-5, None)
    stored = {one.key: one.arrays["image"] for one in tar_format.samples(folders["toy"], "train")}
    seen = 0
    for batch in loader.load(source, source.stream(6, seed=1, first=0, last=6), threads=2):
        images = upsample.images(batch.arrays, batch.valid_size, source.contract, torch.device("cpu"))
        assert images.shape[1] == 12
        for key, image, (height, width) in zip(batch.keys, images.numpy(), batch.valid_size.tolist(), strict=True):
            if key in stored:
                assert np.array_equal(image[:, :height, :width], 2.0 * stored[key])
            else:
                bands = [band for band in range(13) if sentinel2.BANDS[band].name != "B10"]
                assert image[:, 0, 0].tolist() == [2 * (1000 + 100 * int(key[2:]) + band) for band in bands]
                seen += 1
    assert seen == 9


def test_statistics_are_those_of_the_mixture(folders: dict[str, Path]) -> None:
    band = mixed(folders).contract.statistics["B04"]
    both = [
        np.concatenate([one.arrays["image"][3].ravel() for one in tar_format.samples(folders[n], "train")])
        for n in SHARES
    ]
    values = np.concatenate([both[0].astype(float), 2.0 * both[1]])
    weights = np.concatenate([np.full(len(part), w / 4 / len(part)) for part, w in zip(both, (1, 3), strict=True)])
    mean = (values * weights).sum()
    assert band.mean == pytest.approx(mean)
    assert band.std == pytest.approx(np.sqrt((values**2 * weights).sum() - mean**2))
    assert (band.min, band.max) == (values.min(), values.max())


def test_mismatched_datasets_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"mixture is \{'toy': 1.0\}, --shards gives toy, doubled"):
        mixed(folders, {"toy": 1.0})
    with pytest.raises(SettingError, match="above 0"):
        mixed(folders, {"toy": 1.0, "doubled": 0.0})
    other_contract = replace(contract(32), dataset="other", level="L1C")
    write_shards.write([sample(1, "train", 32, 32)], tmp_path / "level", contract=other_contract)
    both = {"other": tmp_path / "level", "toy": folders["toy"]}
    with pytest.raises(SettingError, match="level is 'L2A', expected 'L1C'; accept"):
        mixed(both, {"other": 1, "toy": 1})
    assert len(mixed(both, {"other": 1, "toy": 1}, ("level",))) == 8
    images = {"image": np.ones((12, 32, 32), np.float32)}
    write_shards.write(
        [Sample(key="f", split="train", arrays=images, meta={})],
        tmp_path / "f",
        contract=replace(contract(32), dataset="f"),
    )
    both = mixed({"f": tmp_path / "f", "toy": folders["toy"]}, {"f": 1, "toy": 1})
    (batch,) = loader.load(both, loader.in_order(len(both), len(both)), threads=2)
    assert batch.arrays["image"].dtype == torch.float32
    assert np.array_equal(batch.arrays["image"][0], images["image"])
    assert np.array_equal(batch.arrays["image"][1], both.sources[1].read(0, "image"))


def recipe(*overrides: str) -> pretrain.PretrainRecipe:
    tiny = (
        "model.image_px=16",
        "model.width=32",
        "model.depth=1",
        "decoder.width=32",
        "decoder.depth=1",
        "training.batch=4",
    )
    path = package_data.folder("recipes") / "train" / "pretrain-demo-tiny.toml"
    shares = ("training.mixture.toy=3", "training.mixture.doubled=1", "training.epochs=2", "picture_every=100")
    return files.read(
        pretrain.PretrainRecipe,
        path,
        (*tiny, *shares, "training.accumulate=1", "augment.crop_area=[0.5, 1.0]", *overrides),
    )


def test_pretraining_on_a_mixture_stops_and_resumes(folders: dict[str, Path], tmp_path: Path) -> None:
    def run_paths_for(out: str, stop: int | None = None) -> run_paths.RunPaths:
        return run_paths.RunPaths(
            shards=folders["toy"], named=folders, out=tmp_path / out, device="cpu", threads=1, stop_after=stop
        )

    assert pretrain.main(recipe(), run_paths_for("whole")) == 0
    assert pretrain.main(recipe(), run_paths_for("cut", stop=4)) == ExitCode.FINDINGS
    assert pretrain.main(recipe(), run_paths_for("cut")) == 0
    assert (tmp_path / "cut" / "SHA256SUMS").read_bytes() == (tmp_path / "whole" / "SHA256SUMS").read_bytes()
    alone = replace(recipe(), training=replace(recipe().training, mixture={}))
    with pytest.raises(SettingError, match="scale, .*differ from those of"):
        pretrain.main(alone, run_paths_for("alone"))
