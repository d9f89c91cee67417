"""Describe the settings of recipe dataclasses (name, type, range, default, meaning) and what is wrong with a value.

Documents other than recipes are read into dataclasses too; what is said of settings here holds for their members.

The range of a number follows from the last part of its name, since one word has one meaning in all recipes; it is
checked when a recipe is read, before any work. Numbers that are not finite are refused for every setting.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_SHARE = (0, 1)
_COUNT = (1, 10**6)
_COUNT_OR_NONE = (0, 10**6)
# As many as every generator of random numbers takes.
_SEED = (0, 2**32 - 1)

RANGES: dict[str, tuple[float, float]] = {
    # Builds. Buffers are distances: 10 km is the neighbourhood of the bright target filter.
    "max_obs": _COUNT_OR_NONE, "threshold": (0, 100), "cloud_buffer_m": (0, 10_000), "shadow_buffer_m": (0, 10_000),
    "drop": (0, 255), "day_of_year": (1, 366), "sigma_days": (0.1, 10_000), "year": (1970, 2200),
    "year_factor": (0, 1000), "cloud_m": (0.1, 100_000), "haze_dn": (0.1, 65_535), "weights": (0, 10**6),
    # The sides of patches and blocks are pixels; a raster of 2**31 pixels a side exists nowhere.
    "size": (1, 65_536), "stride": (1, 65_536), "block_px": (0, 2**31), "gap_px": (0, 2**31),
    "val_share": _SHARE, "test_share": _SHARE, "max_unusable_share": _SHARE,
    "supersample": (1, 15), "gsd_m": (1e-6, 100_000),
    # The cap of a shard is 1 TB.
    "shard_mb": (1, 2**20),
    # Training. Weights with a decay of 1 would stay those of the start.
    "ema_decay": (0, 1 - 1e-9), "smoothing": _SHARE, "zoom": (0.01, 1), "min_share": (1e-4, 1), "seed": _SEED,
    "fraction_seed": _SEED, "epochs": (0, 10**6), "batch": _COUNT, "accumulate": _COUNT,
    "log_every": _COUNT, "evaluate_every": _COUNT_OR_NONE, "picture_every": (0, 10**9), "lr": (0, 1e38),
    "warmup_epochs": (0, 10**6), "weight_decay": (0, 10**6), "clip_norm": (0, 10**9), "unchanged_factor": (0, 10**9),
    "patience": _COUNT_OR_NONE, "focal_gamma": (0, 100), "dice_weight": _SHARE, "shots": _COUNT_OR_NONE,
    "neighbours": _COUNT, "penalty": (1e-9, 10**9), "block_m": (1, 10**8), "gap_m": (0, 10**8), "draws": (1, 100),
    "overlap": (0, 0.75),
    "weight_token": (0, 10**9), "weight_spectral": (0, 10**9), "flops_per_s": (1, 10**21), "start_s": (0, 10**9),
    "betas": (0, 1 - 1e-12), "layer_decay": (1e-6, 1), "fraction": _SHARE, "mixture": (0, 10**9), "eps": (0, 10**6),
    "std": (0, 1e38), "head_std": (0, 1000), "class_weights": (0, 10**9), "seeds": _SEED, "px": (1, 65_536),
    "mask_ratio": _SHARE, "train": (0, 10**12), "classes": (0, 2**31),
    # Augmentation. The strength of mixup and CutMix is the parameter of a beta distribution.
    "crop_area": (1e-6, 1), "crop_aspect": (1e-3, 1000), "horizontal_flip": _SHARE, "vertical_flip": _SHARE,
    "erase": _SHARE, "erase_area": _SHARE, "erase_aspect": (1e-3, 1000), "mixup": (0, 1000), "cutmix": (0, 1000),
    "cutmix_share": _SHARE, "chance": _SHARE, "jitter": (0, 100),
    # Models. The largest of those here is 1280 wide and 32 blocks deep; paths that are all dropped learn nothing.
    "image_px": (0, 65_536), "patch_px": (1, 4096), "bands": (1, 1024), "group_bands": (1, 1024),
    "timesteps": (1, 1024), "dropped_groups": (0, 1024),
    "groups": (0, 8192), "groups_levels": (1, 8192), "group_width": (0, 8192),
    "width": (1, 8192), "widths": (1, 8192), "levels": (1, 8192), "hidden": (1, 8192), "skip": (0, 8192),
    "skip_layers": (1, 64), "skip_dilations": (1, 64),
    "mean_px": (1, 1001), "keep": (0.5, 1), "after": (0, 256), "features_gb": (0, 10**6),
    "depth": (0, 256), "heads": (1, 1024), "mlp_ratio": (0.01, 64), "drop_path": (0, 0.999), "dropout": _SHARE,
    "dropout_levels": _SHARE, "temperature": (1e-6, 10**6), "projection": (1, 8192), "queue": (0, 2**20),
    "momentum": _SHARE,
}  # fmt: skip

_ENCODER_KEYS = {
    "times": "timesteps", "positions": "pos_embed", "dropped": "dropped_groups", "start": "pos_embed_init",
}  # fmt: skip
_TOP_KEYS = {"focal": "focal_gamma", "dice": "dice_weight", "tables": "pos_embed_resize"}
RENAMED_KEYS: dict[str, dict[str, str]] = {
    "": _TOP_KEYS,
    "recipe": _TOP_KEYS,  # on the card of a checkpoint
    "training": {"average": "ema_decay"},
    "optimizer": {"decay": "weight_decay_on"},
    "encoder": _ENCODER_KEYS,
    "model": _ENCODER_KEYS,  # of pretraining
}
"""Names of settings in earlier versions and today, by the name of their table."""

RENAMED_VALUES: dict[str, dict[str, str]] = {
    "schedule": {"per epoch": "exponential"},
    "weight_decay_on": {"not tables": "matrices-except-pos-embed"},
    "pos_embed": {"pair": "separate"},
}
"""Values of settings in earlier versions and today, by the name of the setting today."""


@dataclass(frozen=True, kw_only=True)
class RecipeKey:
    """One key of a recipe.

    Attributes:
        key: Dotted name, as `--set` takes it; `[]` after a list of tables.
        type: Type in TOML terms, with the range of a number.
        default: Default in TOML spelling, "required" if there is none.
        meaning: Description from the class docstring.
    """

    key: str
    type: str
    default: str
    meaning: str


def settings(kind: type[Any], prefix: str = "") -> Iterator[RecipeKey]:
    """Yield every setting of a recipe dataclass and of the dataclasses inside it."""
    hints, meanings = typing.get_type_hints(kind), _meanings(kind)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], prefix + field.name
        meaning = meanings.get(field.name, "")
        yield RecipeKey(key=key, type=_type_name(hint, field.name), default=_default(field), meaning=meaning)
        repeated = typing.get_origin(hint) is tuple
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from settings(typing.cast("type[Any]", part), f"{key}[]." if repeated else f"{key}.")


def list_settings(kind: type[Any]) -> Iterator[str]:
    """Yield two lines of text per setting: key, type and default; meaning."""
    for setting in settings(kind):
        yield f"{setting.key}: {setting.type}; {setting.default}"
        yield f"    {setting.meaning}"


def _meanings(kind: type[Any]) -> dict[str, str]:
    """Return the descriptions in the `Attributes:` sections of a class and its bases, by field name."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.MULTILINE):
            meanings[name] = " ".join(text.split())
    return meanings


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "empty" if field.default_factory in (dict, tuple) else "defaults of the table"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "unset"
    return _toml(field.default)


def _toml(value: Any) -> str:
    """Return a plain value in TOML spelling."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


# --- types ---------------------------------------------------------------------------------

_NAMES = {str: "string", int: "integer", float: "number", bool: "true or false", dt.date: "date", Any: "value"}


def _type_name(hint: Any, name: str = "") -> str:
    """Return a type in TOML terms; `name` is that of the setting, for the range of a number."""
    parts = [part for part in _arms(hint) if part is not type(None)]
    choices = [value for part in parts if typing.get_origin(part) is typing.Literal for value in typing.get_args(part)]
    names = [f"one of {', '.join(map(repr, choices))}"] if choices else []
    names += [_arm_name(part) for part in parts if typing.get_origin(part) is not typing.Literal]
    low, high = RANGES.get(name, (0, math.inf))
    # Numbers only: the word may also name a table.
    limited = name in RANGES and {int, float} & {*parts, *(inner for part in parts for inner in typing.get_args(part))}
    return " or ".join(dict.fromkeys(names)) + (f" from {low:.15g} to {high:.15g}" if limited else "")


def _arm_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner = dict.fromkeys(_plural(_type_name(part)) for part in arguments if part is not Ellipsis)
        count = "" if Ellipsis in arguments else f"{len(arguments)} "
        return f"list of {count}{' or '.join(inner)}"
    if origin is dict:
        return f"table of {_plural(_type_name(arguments[1]))}"
    return "table" if dataclasses.is_dataclass(hint) else _NAMES.get(hint, str(hint))


def _plural(name: str) -> str:
    if name.startswith("one of"):
        return f"any{name.removeprefix('one')}"
    return re.sub(r"\b(string|integer|number|date|value|table|list)\b", r"\1s", name, count=0 if " or " in name else 1)


def _arms(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


# --- what is wrong -------------------------------------------------------------------------


def explain(kind: type[Any], errors: Sequence[Any]) -> str:
    """Describe the most helpful of pydantic's errors on a dataclass in one sentence, without pydantic's words."""
    # Unknown keys first, since they are often misspellings of a missing key. pydantic has two names for each error.
    for error in errors:
        if error["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            return _unknown(kind, error["loc"][1:])
    # Of a member that a list of fixed length lacks or has too many, pydantic names the place; the list says more.
    first, loc = errors[0], errors[0]["loc"][1:]
    missing = first["type"] in {"missing", "missing_argument"}
    if missing and isinstance(loc[-1], int):
        missing, loc = False, loc[:-1]
    if first["type"] == "value_error":  # of a `__post_init__`, whose message says what is expected
        return str(first["msg"]).removeprefix("Value error, ")
    key, hint = _locate(kind, loc)
    expected = f"expected {_article(_type_name(hint, key.rpartition('.')[2].partition('[')[0]))}"
    if keys := _keys(hint):
        expected += f" with {', '.join(keys)}"
    if missing:
        return f"'{key}' is missing: {expected}; add it"
    value = first["input"]
    renamed = RENAMED_VALUES.get(key.rpartition(".")[2], {})
    if isinstance(value, str) and value in renamed:
        return f"'{key}' is {value!r}, which is now called {renamed[value]!r}; rename it"
    return f"'{key}' is {_toml(value):.80}: {expected}; correct it"


def _unknown(kind: type[Any], loc: Sequence[str | int]) -> str:
    """Describe a key that no field has, with the fields that were probably meant or those of its table."""
    *above, last = loc
    table, hint = _locate(kind, above)
    key = f"{table}.{last}".lstrip(".")
    renamed = RENAMED_KEYS.get(table.rpartition(".")[2], {}).get(str(last))
    if renamed in _keys(hint):
        return f"'{key}' is now called '{f'{table}.{renamed}'.lstrip('.')}'; rename it"
    # The last part first: a setting is more often sought in a wrong table than by a wrong word.
    names = _at_indices([setting.key for setting in settings(kind)], loc)
    scores = {name: _likeness(str(last), name.rpartition(".")[2]) for name in names}
    meant = [name for name in names if scores[name] == max(scores.values()) >= 0.7]
    if table and meant:
        meant = [max(meant, key=lambda name: _likeness(key, name))]
    if meant:
        return f"'{key}' is not a setting; did you mean {' or '.join(map(repr, meant))}?"
    return f"'{key}' is not a setting; expected one of {', '.join(_keys(hint))}"


def _keys(hint: Any) -> list[str]:
    """Return the keys of the tables that a value of this type is or lists."""
    tables = [each for part in _arms(hint) for each in (part, *typing.get_args(part)) if dataclasses.is_dataclass(each)]
    return list(dict.fromkeys(field.name for each in tables for field in dataclasses.fields(each)))


def _at_indices(keys: Sequence[str], loc: Sequence[str | int]) -> list[str]:
    """Return keys with the indices of `loc` in place of `[]`; without an index, no member of a list is meant."""
    indices = [part for part in loc if isinstance(part, int)]
    if not indices:
        return [key for key in keys if "[]" not in key]
    for index in indices:
        keys = [key.replace("[]", f"[{index}]", 1) for key in keys]
    return list(keys)


def _likeness(word: str, other: str) -> float:
    """Return how alike two words are, 0 to 1; one that begins with the other counts as alike."""
    starts = word.startswith(other) or other.startswith(word)
    return max(difflib.SequenceMatcher(None, word, other).ratio(), 0.7 if starts else 0.0)


def _locate(kind: Any, loc: Sequence[str | int]) -> tuple[str, Any]:
    """Return the dotted name and the type of the value at a location of pydantic's."""
    key, hint = "", kind
    for part in loc:
        for arm in _arms(hint):
            origin, arguments = typing.get_origin(arm), typing.get_args(arm)
            if dataclasses.is_dataclass(arm) and part in typing.get_type_hints(arm):
                key, hint = f"{key}.{part}".lstrip("."), typing.get_type_hints(arm)[part]
            elif origin is tuple and isinstance(part, int):
                key, hint = f"{key}[{part}]", arguments[0 if Ellipsis in arguments else min(part, len(arguments) - 1)]
            elif origin is dict:
                key, hint = f"{key}.{part}", arguments[1]
            elif getattr(arm, "__name__", "") == part:
                hint = arm
            else:
                continue
            break
    return key, hint


def _article(name: str) -> str:
    if name.startswith(("one of", "true or false")):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


# --- documents of earlier versions -----------------------------------------------------------


def with_current_names(document: Any, table: str = "", levels: int = 20) -> Any:
    """Return a plain document with the settings of earlier versions under their names of today.

    For documents that programs wrote, such as cards of checkpoints; recipes with an earlier name are refused.

    Args:
        document: Dicts, lists and scalars as read from TOML or JSON.
        table: Name of the table that the document is, "" for the top level.
        levels: Number of nested levels to search, more than any document of this project has.
    """
    if isinstance(document, list) and levels:
        return [with_current_names(item, table, levels - 1) for item in document]
    if not isinstance(document, dict) or not levels:
        return document
    keys = RENAMED_KEYS.get(table, {})
    current: dict[str, Any] = {}
    for name, value in document.items():
        key = keys.get(name, str(name))
        inner = with_current_names(value, key, levels - 1)
        current[key] = RENAMED_VALUES.get(key, {}).get(inner, inner) if isinstance(inner, str) else inner
    return current


# --- ranges --------------------------------------------------------------------------------


def find_out_of_range(value: Any) -> str:
    """Return a sentence about the first number of a settings dataclass outside its range, "" if there is none."""
    for key, name, number in _numbers(value, "", ""):
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not math.isfinite(number):
            return f"'{key}' is {number}: expected a finite number; correct it"
        if not low <= number <= high:
            return f"'{key}' is {number:.15g}: expected {low:.15g} to {high:.15g}; correct it"
    return ""


def _numbers(value: Any, key: str, name: str) -> Iterator[tuple[str, str, float]]:
    """Yield dotted key, name of the field and value of every number in dataclasses, tuples and tables."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield key, name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _numbers(getattr(value, field.name), f"{key}.{field.name}".lstrip("."), field.name)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each, key, name)
    elif isinstance(value, dict):
        for each_name, each in value.items():
            # A key of a table is data, such as the name of a class, and no setting.
            yield from _numbers(each, f"{key}[{each_name!r}]", name)
