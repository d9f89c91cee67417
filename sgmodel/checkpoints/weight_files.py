"""Weights made elsewhere: their names, their layouts, and reading them without running the code a pickle may hold.

A *published* name is one of the tables `catalogs/tables/spectralgpt_*_keys.tsv`. Pretraining model and classifier use
published names as they are; for segmentation and change detection `spectralgpt_dense_names.tsv` maps them.
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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sgdata import catalog, files
from sgdata.errors import SettingError, SourceError

State = dict[str, Tensor]


def name_of(ours: str, kind: str) -> str:
    """The published name of one of our weights."""
    if kind not in {"segmenter", "change"}:
        return ours
    for prefix, published in _dense().items():
        if ours.startswith(f"{prefix}."):
            return published + ours.removeprefix(prefix)
    return ours.removeprefix("encoder.")  # what no row names belongs to the encoder


@cache
def _dense() -> dict[str, str]:
    return {row["ours"]: row["published"] for row in catalog.table("spectralgpt_dense_names")}


def named(state: State) -> State:
    """The weights of one of our models by published name; those of a baseline, whose names are its own, as they are."""
    # Only the models with a dense head hold their encoder as a part.
    kind = "segmenter" if any(name.startswith("encoder.") for name in state) else "encoder"
    return {name_of(name, kind): tensor for name, tensor in state.items()}


def plain(state: State) -> State:
    """As published: without the prefix of a model that holds the encoder as a part, and every fused qkv taken apart.

    For some months of 2024 the public code had one, as other ViTs have.
    """
    mark = "patch_embed.proj.weight"
    prefix = min((name.removesuffix(mark) for name in state if name.endswith(mark)), key=len, default="")
    found: State = {}
    for name, tensor in named(state).items():
        name = name.removeprefix(prefix)
        fused = re.fullmatch(r"(.*\.attn\.)(?:to_)?qkv\.(weight|bias)", name)
        parts = zip("qkv", tensor.chunk(3), strict=True) if fused else ()
        found |= {f"{fused[1]}{part}.{fused[2]}": piece for part, piece in parts} if fused else {name: tensor}
    return found


def read(path: Path) -> State:
    """Weights from a `.safetensors` or a torch file of any known layout, by the names there. Raises SourceError."""
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    # Without the prefixes of wrappers: DataParallel, compile, Lightning.
    return {re.sub(r"^((module|_orig_mod|model)\.)+", "", name): tensor for name, tensor in state.items()}


def read_safetensors(path: Path) -> State:
    """Every tensor of the file, or of the parts that an index beside it names, by the name it has there.

    Raises SourceError.
    """
    if not path.exists() and index_of(path).exists():
        return _read_parts(index_of(path))
    try:
        return load_file(files.existing(path, "a safetensors file"))
    except SafetensorError as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: not a whole safetensors file ({why:.200}); fetch or save it again") from None


def index_of(path: Path) -> Path:
    """Where the index lies of weights that fill several files, as the hub's libraries save large models."""
    return path.with_name(f"{path.name}.index.json")


def _read_parts(index: Path) -> State:
    try:
        wanted: dict[str, str] = files.read_plain(index)["weight_map"]
        names = sorted(set(wanted.values()))
    except (SettingError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{index}: names no parts, expected 'weight_map'; fetch it again") from None
    if any(Path(name).name != name for name in names):  # an index is foreign: it must not lead out of its folder
        raise SourceError(f"{index}: names parts elsewhere ({', '.join(names)[:80]}); expected files beside it")
    state = {name: tensor for part in names for name, tensor in read_safetensors(index.with_name(part)).items()}
    lacking = sorted(wanted.keys() - state.keys())
    if lacking:
        raise SourceError(f"{index}: {len(lacking)} weights are in no part (first, {lacking[0]}); fetch it again")
    return state


def harmless() -> list[Any]:
    """What torch may build besides tensors: data that stands beside the weights in released files and runs nothing."""
    scalar: Any = np.float64(0).__reduce__()[0]  # NumPy moved it: a value knows where it is
    numbers = f"?{np.typecodes['AllInteger']}{np.typecodes['Float']}"
    names = ("PosixPath", "WindowsPath", "PurePosixPath")
    return [
        *(argparse.Namespace, np.dtype, *{type(np.dtype(code)) for code in numbers}),
        # By the name that it had where the file was written.
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((PurePosixPath, f"pathlib.{module}{name}") for module in ("", "_local.") for name in names),
    ]


def read_pickle(path: Path) -> State:
    """The state dict in a torch file: at the top, or under `model`, `state_dict` or whatever name.

    Raises SourceError, also where the pickle holds anything but tensors, plain values and an argparse Namespace.
    """
    files.existing(path, "a checkpoint folder, a .safetensors or a .pth file")
    try:
        # The released files hold their `args`, and many a training its best score; nothing that runs may pass.
        with torch.serialization.safe_globals(harmless()):
            # Mapped, the optimizer state in a released file (twice its weights) is never read from disk.
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle ends in any exception there is
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
        raise SourceError(f"{path}: holds a {type(document).__name__}, expected a dict of weights")
    # The most weights in one place; of equally many (averaged ones beside them) those that were trained.
    _, found = max(_states(document), key=lambda one: (len(one[1]), one[0] in {"model", "state_dict"}))
    return found


def _states(document: dict[Any, Any], name: str = "") -> Iterator[tuple[str, State]]:
    """The weights in a document by the name that it has for them: at the top, under `model`, `state_dict`, ..."""
    yield name, {key: value for key, value in document.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _states(value, str(key))
