"""Reproduce the inputs of the released models, mistakes included, from shards with correctly named bands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from synthetic_shards import contract

from sgdata import files, package_data, sentinel2
from sgdata.datasets import cards
from sgdata.shards import write_shards
from sgdata.types import Array, Sample
from sgmodel.data import band_selection, loader, normalise
from sgmodel.recipes import classify, segment

TRAIN = package_data.folder("recipes") / "train"


def stored_and_file(place: Path, dataset: str, edition: str) -> tuple[loader.Samples, Array]:
    """Write a shard of one sample with bands in wavelength order; return it and the array in the order of the file."""
    order = cards.edition(dataset, edition).bands
    bands = tuple(band for band in sentinel2.BANDS if band.name in order)
    rng = np.random.Generator(np.random.Philox(key=len(order)))
    image = rng.integers(200, 5000, (len(bands), 16, 16)).astype(np.uint16)
    file_contract = replace(contract(16), dataset=dataset, bands=bands, level="L1C")
    write_shards.write(
        [Sample(key="a", split="train", arrays={"image": image}, meta={})], place, contract=file_contract
    )
    at = [[band.name for band in bands].index(name) for name in order]
    return loader.Samples(place, "train", ("image",)), image[at]


def read(source: loader.Samples, recipe: classify.ClassifyRecipe | segment.SegmentRecipe) -> Array:
    """Return the sample as the model of `recipe` reads it, before any crop."""
    policy = recipe.normalise.missing
    how = normalise.resolve(recipe.normalise, band_selection.narrow(source.contract, recipe.bands, policy))
    band_indices = band_selection.find_indices(source.contract, recipe.bands, policy)
    image = torch.from_numpy(source.read(0, "image"))[None]
    return np.asarray(normalise.apply(how, image, torch.tensor([[16, 16]]), band_indices)[0])


def test_eurosat_without_the_eleventh_of_the_file(tmp_path: Path) -> None:
    """In files with B8A last, `--dropped_bands 10` removes B11, and constants by position belong to other bands."""
    recipe = files.read(classify.ClassifyRecipe, TRAIN / "classify-eurosat-base-released_code.toml")
    edition = cards.card("eurosat").editions[0].name
    source, in_file = stored_and_file(tmp_path, "eurosat", edition)
    kept = np.delete(in_file, 10, axis=0).astype(np.float32)
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (recipe.normalise.mean, recipe.normalise.std))
    np.testing.assert_allclose(read(source, recipe), (kept - mean) / std, rtol=1e-5, atol=1e-6)
    assert "B11" not in recipe.bands and "B10" in recipe.bands
    clean = files.read(classify.ClassifyRecipe, TRAIN / "classify-eurosat-base-clean.toml")
    assert clean.bands == sentinel2.L2A_BANDS


def test_segmunich_in_the_order_of_the_file_and_twice_its_mean(tmp_path: Path) -> None:
    recipe = files.read(segment.SegmentRecipe, TRAIN / "segment-segmunich-base-released_code.toml")
    assert recipe.normalise.missing == "mean"
    edition = next(one.name for one in cards.card("segmunich").editions if len(one.bands) == 10)
    source, in_file = stored_and_file(tmp_path, "segmunich", edition)
    ten = in_file.astype(np.float32)
    twelve = np.concatenate([ten, ten.mean(0, keepdims=True), ten.mean(0, keepdims=True)])
    low, high = twelve.min((1, 2), keepdims=True), twelve.max((1, 2), keepdims=True)
    np.testing.assert_allclose(read(source, recipe), (twelve - low) / (high - low + 1e-9), atol=1e-5)
    assert band_selection.find_indices(source.contract, recipe.bands, "mean")[10:] == [band_selection.MEAN] * 2  # type: ignore[index]
