"""Test what is said of the settings of recipes: their meanings, their ranges, and what is wrong with a value."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgdata import files, package_data, recipe_settings
from sgdata.builds import build_recipe
from sgdata.builds.build_recipe import BuildRecipe
from sgdata.composite import rules
from sgdata.datasets.types import ShardRecipe
from sgdata.errors import SettingError
from sgdata.packing import select_samples
from sgmodel.inference.predict import PredictRecipe
from sgmodel.ledger.experiments import LedgerRecipe
from sgmodel.recipes.programs import PROGRAMS

# Every recipe class, with a file of the package that is read into it.
KINDS = {
    "build": (BuildRecipe, "build/segmunich.toml"),
    "shard": (ShardRecipe, "shard/eurosat.toml"),
    "predict": (PredictRecipe, "predict/default.toml"),
    "reproduce": (LedgerRecipe, "ledger/city.toml"),
    "pretrain": (PROGRAMS["pretrain"]().recipe, "train/pretrain-demo-tiny.toml"),
    "contrast": (PROGRAMS["contrast"]().recipe, "train/contrast-demo-moco.toml"),
    "classify": (PROGRAMS["classify"]().recipe, "train/classify-demo-tiny.toml"),
    "segment": (PROGRAMS["segment"]().recipe, "train/segment-demo-tiny.toml"),
    "detect_change": (PROGRAMS["detect_change"]().recipe, "train/detect_change-demo-tiny.toml"),
}


def complaint(name: str, change: str) -> str:
    """Return what is said of a recipe with one setting changed, "" if it is read."""
    kind, file = KINDS[name]
    try:
        files.read(kind, package_data.folder("recipes") / file, [change])
    except SettingError as error:
        return str(error).partition(".toml: ")[2] or str(error)
    return ""


def test_every_program_is_listed_here() -> None:
    assert set(KINDS) == {*PROGRAMS, "predict", "reproduce", "build", "shard"}


@pytest.mark.parametrize("name", KINDS)
def test_every_setting_of_a_recipe_has_a_type_and_a_meaning(name: str) -> None:
    settings = list(recipe_settings.settings(KINDS[name][0]))
    assert len(settings) > 5
    assert [setting.key for setting in settings if not setting.meaning] == []
    assert [setting.key for setting in settings if "<class" in setting.type or "typing" in setting.type] == []


def test_types_are_named_in_the_terms_of_toml() -> None:
    types = {setting.key: setting.type for kind, _ in KINDS.values() for setting in recipe_settings.settings(kind)}
    assert types["name"] == "string"
    assert types["bands"] == "list of strings"
    assert types["mask.bright_target_filter"] == "true or false"
    assert types["composite.method"] == "one of " + ", ".join(map(repr, typing.get_args(rules.Method)))
    assert types["composite.bap.weights"] == "list of 4 numbers from 0 to 1000000"
    assert types["patches.size"] == "integer from 1 to 65536"
    assert types["labels.tiers"] == "list of any of 'core', 'ext', 'opt'"
    assert types["model.satmae.groups"] == "list of lists of integers"
    assert types["training.mixture"] == "table of numbers from 0 to 1000000000"
    assert types["model.options"] == "table of integers or numbers or true or false or strings or lists of integers"


def test_values_of_a_wrong_type_are_described_without_words_of_libraries() -> None:
    # One setting of each type, since the walk through all of them takes a minute.
    of_type = {
        each.type: (name, each.key)
        for name, (kind, _) in KINDS.items()
        for each in recipe_settings.settings(kind)
        # Patience must also fit other settings, which is said in other words.
        if "[]" not in each.key and each.key != "training.patience"
    }
    assert len(of_type) > 30
    wrong = ("true", "7", "'odd'", "[]", "[[1, 'a']]", "{odd = 1}", "2020-01-01", "nan")
    said = [text for name, key in of_type.values() for value in wrong if (text := complaint(name, f"{key}={value}"))]
    assert len(said) > 5 * len(of_type)
    kinds = "not a setting; .+|missing: expected .+; add it|.+: expected .+; correct it"
    form = rf"'[\w.]+(\[(\d+|'odd')\]|\.\w+)*' is ({kinds})"
    assert [text for text in said if not re.fullmatch(form, text)] == []
    assert [text for text in said if re.search(r"Input|valid|typing|<class", text)] == []


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("segment", "training.lr=1", "'training.lr' is not a setting; did you mean 'training.optimizer.lr'?"),
        ("segment", "lr=1", "'lr' is not a setting; did you mean 'training.optimizer.lr'?"),
        ("segment", "model.encoder.widht=8", "did you mean 'model.encoder.width'?"),
        ("segment", "training.batchsize=8", "did you mean 'training.batch'?"),
        ("pretrain", "stages=[{data='a', lrr=1}]", "'stages[0].lrr' is not a setting; did you mean 'stages[0].lr'?"),
        ("build", "method='median'", "did you mean 'composite.method' or 'mask.method' or 'split.method'?"),
        ("build", "composite='median'", "expected a table with method, max_obs, bap; correct it"),
        ("build", "split.gap=3", "did you mean 'split.gap_px'?"),
        ("build", "composite.rule='bap'", "'composite.rule' is not a setting; expected one of method, max_obs, bap"),
        ("build", "composite.method='mean'", "'composite.method' is 'mean': expected one of 'medoid', 'bap',"),
        ("build", "area.bbox=[1, 2, 3]", "'area.bbox' is [1, 2, 3]: expected a list of 4 numbers; correct it"),
        ("build", "area.bbox=[1, 2, 3, 'x']", "'area.bbox[3]' is 'x': expected a number; correct it"),
        ("pretrain", "stages=[{data='a'}]", "'stages[0].image_px' is missing: expected an integer from 0"),
        ("shard", "shard_mb=1.5", "'shard_mb' is 1.5: expected an integer from 1 to 1048576; correct it"),
        ("shard", "kernel='cubic'", "'kernel' is 'cubic': expected one of 'nearest', 'bilinear'; correct it"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_meant(name: str, change: str, text: str) -> None:
    assert text in complaint(name, change)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("pretrain", "training.average=0.9", "'training.average' is now called 'training.ema_decay'; rename it"),
        ("classify", "training.optimizer.decay='all'", "is now called 'training.optimizer.weight_decay_on'; rename it"),
        ("pretrain", "model.times=2", "'model.times' is now called 'model.timesteps'; rename it"),
        ("segment", "model.encoder.start='sincos'", "is now called 'model.encoder.pos_embed_init'; rename it"),
        ("segment", "model.encoder.positions='pair'", "is now called 'model.encoder.pos_embed'; rename it"),
        ("segment", "model.encoder.dropped=[1]", "is now called 'model.encoder.dropped_groups'; rename it"),
        ("segment", "model.encoder.pos_embed='pair'", "is 'pair', which is now called 'separate'; rename it"),
        ("segment", "training.optimizer.schedule='per epoch'", "is now called 'exponential'; rename it"),
        ("pretrain", "tables=redraw", "'tables' is now called 'pos_embed_resize'; rename it"),
        ("segment", "focal=2.0", "'focal' is now called 'focal_gamma'; rename it"),
        ("build", "times=2", "'times' is not a setting"),
    ],
)
def test_a_name_of_an_earlier_version_is_refused_with_that_of_today(name: str, change: str, text: str) -> None:
    assert text in complaint(name, change)


def test_every_renamed_setting_exists() -> None:
    kinds = [{f".{setting.key}" for setting in recipe_settings.settings(kind)} for kind, _ in KINDS.values()]
    for table, names in recipe_settings.RENAMED_KEYS.items():
        place = f".{table}." if table not in ("", "recipe") else "."
        for old, new in names.items():
            having = [keys for keys in kinds if any(key.endswith(f"{place}{new}") for key in keys)]
            assert having, new
            assert not [key for keys in having for key in keys if key.endswith(f"{place}{old}")], old


# --- ranges --------------------------------------------------------------------------------


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
        select_samples.recipe_for("eurosat", [f"shard_mb={value}"])


# Coordinates are checked where they become a grid, options of timm by timm. Means and published figures may be any.
UNBOUNDED = {"origin", "shape", "bbox", "options", "mean"}


def parts(hint: Any) -> Iterator[Any]:
    """Yield a type and all types inside it."""
    yield hint
    for inner in typing.get_args(hint):
        yield from parts(inner)


def numeric(kind: Any) -> dict[str, Any]:
    """Return the types of all numbers of a recipe by the last part of their key."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        inner = [part for part in parts(hint) if dataclasses.is_dataclass(part)]
        for part in inner:
            found |= numeric(part)
        if not inner and {int, float} & {*parts(hint)}:
            found[name] = hint
    return found


NUMBERS = {name: hint for kind, _ in KINDS.values() for name, hint in numeric(kind).items()}


def test_every_number_of_a_recipe_has_a_range() -> None:
    assert NUMBERS.keys() - recipe_settings.RANGES.keys() == UNBOUNDED


def filled(hint: Any, number: float) -> Any:
    """Return a value of a type, all of whose numbers are `number`."""
    arm = next(part for part in parts(hint) if part in (int, float) or typing.get_origin(part) in (tuple, dict))
    inner = [part for part in typing.get_args(arm) if part is not Ellipsis]
    if typing.get_origin(arm) is dict:
        return {"a.b": filled(inner[1], number)}
    return [filled(part, number) for part in inner] if inner else number


def read(name: str, number: float) -> None:
    """Read a document of one setting."""
    files.parse(dataclasses.make_dataclass("One", [(name, NUMBERS[name])]), {name: filled(NUMBERS[name], number)}, "x")


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_every_number_is_finite_and_in_its_range(name: str) -> None:
    for number in (math.inf, -math.inf, math.nan):
        with pytest.raises(SettingError, match=f"'{name}.* is .*expected"):
            read(name, number)
    if name in recipe_settings.RANGES:
        low, high = recipe_settings.RANGES[name]
        for number in (-1, low - 1, high * 2 + 1):
            with pytest.raises(SettingError, match=f"'{name}.* is .*expected"):
                read(name, number)
        read(name, math.ceil(low))


@pytest.mark.parametrize("path", sorted((package_data.folder("recipes")).rglob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_the_package_are_inside(path: Path) -> None:
    for name, number in settings(files.read_plain(path)):
        low, high = recipe_settings.RANGES.get(name, (number, number))
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
