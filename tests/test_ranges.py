"""Test that numbers of recipes are finite and in range, or refused before any work."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgdata import catalog, files, ranges
from sgdata.builds import build_recipe
from sgdata.builds.build_recipe import BuildRecipe
from sgdata.datasets.types import ShardRecipe
from sgdata.errors import SettingError
from sgdata.packing import select


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "-5", "1e9"])
def test_buffers_of_masks(value: str) -> None:
    with pytest.raises(SettingError, match=r"'mask\.cloud_buffer_m' is"):
        build_recipe.recipe_for("segmunich", {}, [f"mask.cloud_buffer_m={value}"])


@pytest.mark.parametrize(
    "change",
    [
        "patches.stride=0", "patches.size=-1", "composite.max_obs=-1", "split.val_share=1.5", "split.block_px=-3",
        "labels.supersample=0", "mask.threshold=101", "split.seed=-1", "composite.bap.sigma_days=0.0",
        "composite.bap.weights=[1.0, nan, 1.0, 1.0]", "composite.bap.haze_dn=0.0", "mask.drop=[256]",
    ],
)  # fmt: skip
def test_settings_of_builds(change: str) -> None:
    with pytest.raises(SettingError, match=change.partition("=")[0]):
        build_recipe.recipe_for("segmunich", {}, [change])


@pytest.mark.parametrize("value", ["0", "-256"])
def test_the_size_of_shards(value: str) -> None:
    with pytest.raises(SettingError, match=r"shard_mb.*expected 1 to"):
        select.recipe_for("eurosat", [f"shard_mb={value}"])


def numeric(kind: Any) -> Iterator[str]:
    for name, hint in typing.get_type_hints(kind).items():
        parts = {hint, *typing.get_args(hint)}
        if parts & {int, float}:
            yield name
        for part in parts:
            if dataclasses.is_dataclass(part):
                yield from numeric(part)


@pytest.mark.parametrize("kind", [BuildRecipe, ShardRecipe])
def test_every_number_of_a_recipe_has_a_range(kind: Any) -> None:
    # The area is checked where it becomes a grid.
    assert set(numeric(kind)) - set(ranges.RANGES) <= {"origin", "shape", "bbox"}


@pytest.mark.parametrize("path", sorted((catalog.folder("recipes")).rglob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_the_package_are_inside(path: Path) -> None:
    for name, number in settings(files.read_plain(path)):
        low, high = ranges.RANGES.get(name, (number, number))
        assert low <= number <= high, name


def settings(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from settings(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from settings(each, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
