"""Names and layouts of files of weights, and reading them without running the code that a pickle may contain.

A *released* name is one of the tables `catalogs/tables/spectralgpt_*_keys.tsv`. Autoencoder and classifier are saved
under released names; those of segmenters and change detectors are mapped by `spectralgpt_dense_names.tsv`.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdata import files, package_data
from sgdata.errors import SettingError, SourceError
from sgmodel.checkpoints import checkpoint_folder

State = dict[str, Tensor]

# Names under which wrappers (DataParallel, compile, FSDP, activation checkpoints, Opacus, peft) keep a module.
WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "_fpw_module",
        "_ddp_wrapped_module",
        "_module",
        "base_model",
        "base_layer",
    }
)


def released_name(own: str, kind: str) -> str:
    """Return the released name of the state-dict key `own` of a SpectralGPT model of `kind`."""
    if kind not in {"segmenter", "change"}:
        return own
    for prefix, released in _dense_names().items():
        if own.startswith(f"{prefix}."):
            return released + own.removeprefix(prefix)
    return own.removeprefix("encoder.")  # every key without a row belongs to the encoder


@cache
def _dense_names() -> dict[str, str]:
    return {row["ours"]: row["published"] for row in package_data.table("spectralgpt_dense_names")}


def released_names(state: State) -> State:
    """Return weights of a SpectralGPT model by released name; those of a baseline keep their names."""
    # Only the models with a dense head have keys of an encoder as a part.
    kind = "segmenter" if any(name.startswith("encoder.") for name in state) else "encoder"
    return {released_name(name, kind): tensor for name, tensor in state.items()}


def normalise_names(state: State) -> State:
    """Return weights of SpectralGPT by released name, without outer prefixes and with fused layers split."""
    released = released_names(state)
    prefix = _outer_prefix(state)
    return _split_qkv({name.removeprefix(prefix): tensor for name, tensor in released.items()})


def _outer_prefix(state: State) -> str:
    """Return the prefix of a model that has the encoder as a part."""
    mark = "patch_embed.proj.weight"
    prefixes = [name.removesuffix(mark) for name in state if name.endswith(mark)]
    return min(prefixes, key=len, default="")


def _split_qkv(state: State) -> State:
    """Split fused qkv layers, which the public code had for some months of 2024, into q, k and v."""
    split: State = {}
    for name, tensor in state.items():
        fused = re.fullmatch(r"(.*\.attn\.)(?:to_)?qkv\.(weight|bias)", name)
        if fused is None:
            split[name] = tensor
            continue
        for part, values in zip("qkv", tensor.chunk(3), strict=True):
            split[f"{fused[1]}{part}.{fused[2]}"] = values
    return split


def read(path: Path) -> State:
    """Read weights from a `.safetensors` or a torch file of any known layout, by the names there.

    Raises:
        SourceError: There is no such file, or it cannot be read.
    """
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    return {_unwrapped(name): tensor for name, tensor in state.items()}


def _unwrapped(name: str) -> str:
    """Return a name without the parts that wrappers add: anywhere for those of torch, at its start for Lightning's."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while parts and parts[0] == "model":
        parts.pop(0)
    return ".".join(parts)


def read_safetensors(path: Path) -> State:
    """Read every tensor of a file, or of the parts that an index beside it lists, by the name it has there.

    Raises:
        SourceError: The file or a part of it is missing or damaged, or a value is not finite.
    """
    if not path.exists() and index_of(path).exists():
        return _read_parts(index_of(path))
    return checkpoint_folder.read_tensors(path)


def index_of(path: Path) -> Path:
    """Return the path of the index of weights in several files, as the hub's libraries save large models."""
    return path.with_name(f"{path.name}.index.json")


def _read_parts(index: Path) -> State:
    try:
        part_of: dict[str, str] = files.read_plain(index)["weight_map"]
        parts = sorted(set(part_of.values()))
    except (SettingError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{index}: names no parts, expected 'weight_map'; fetch it again") from None
    if any(Path(part).name != part for part in parts):  # not trusted: it must not lead out of its folder
        raise SourceError(
            f"{index}: names parts elsewhere ({', '.join(parts)[:80]}); expected files beside it; fetch it again"
        )
    state: State = {}
    for part in parts:
        state |= read_safetensors(index.with_name(part))
    lacking = sorted(part_of.keys() - state.keys())
    if lacking:
        raise SourceError(f"{index}: {len(lacking)} weights are in no part (first, {lacking[0]}); fetch it again")
    return state


def safe_globals() -> list[Any]:
    """Return the classes that torch may unpickle besides tensors: plain data found in released files."""
    return [argparse.Namespace, *_numpy_values(), *_pure_paths()]


def _numpy_values() -> list[Any]:
    """Return what pickled NumPy numbers, strings and arrays consist of, under the names of NumPy 1 and 2.

    Objects within arrays stay refused: their type of data is not among these.
    """
    # NumPy moved these functions; stored values name them by either path.
    functions: dict[str, Any] = {
        "scalar": np.float64(0).__reduce__()[0],
        "_reconstruct": np.empty(0).__reduce__()[0],
    }
    renamed = [
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in functions.items()
        for core in ("core", "_core")
    ]
    codes = [code for code in np.typecodes["All"] if code != "O"]
    return [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in codes}, *renamed]


def _pure_paths() -> list[Any]:
    """Return a class without access to files in the place of every path, under the names of any Python."""
    names = ("PosixPath", "WindowsPath", "PurePosixPath")
    return [(PurePosixPath, f"pathlib.{module}{name}") for module in ("", "_local.") for name in names]


def read_pickle(path: Path) -> State:
    """Read the state dict in a torch file: at the top, or under `model`, `state_dict` or any other name.

    Raises:
        SourceError: There is no such file, it is damaged, it contains anything but tensors, plain values and an
            argparse Namespace, or a weight is not finite.
    """
    files.require_file(path, "a checkpoint folder, a .safetensors or a .pth file")
    try:
        # Released files contain their `args`, others a best score.
        with torch.serialization.safe_globals(safe_globals()):
            # Mapped, so that the optimizer state in a released file (twice its weights) is not read from disk.
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise any exception
        culprit = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if culprit and isinstance(error, pickle.UnpicklingError):
            raise SourceError(
                f"{path}: holds {culprit[1]}, which loading would run; expected tensors and plain values: save its "
                f"state dict as .safetensors in the environment that made it"
            ) from None
        raise SourceError(
            f"{path}: {path.stat().st_size} bytes that are not a whole torch file; fetch it again"
        ) from None
    if not isinstance(document, dict):
        raise SourceError(f"{path}: holds a {type(document).__name__}, expected a dict of weights; save its state dict")
    # The largest group; of equally large ones (averaged weights) the trained.
    _, state = max(_states(document), key=lambda one: (len(one[1]), one[0] in {"model", "state_dict"}))
    return checkpoint_folder.finite(state, path)


def _states(document: dict[Any, Any], name: str = "") -> Iterator[tuple[str, State]]:
    """Yield each group of weights in a document with the name that it has there: "", "model", "state_dict", ..."""
    yield name, {key: value for key, value in document.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _states(value, str(key))
