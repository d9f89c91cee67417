"""Weights from anywhere: read by published name, and put into a model as far as they fit it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sgdata.errors import SourceError
from sgmodel.checkpoints import weight_files
from sgmodel.checkpoints.checkpoint_folder import CARD, WEIGHTS
from sgmodel.checkpoints.weight_files import State
from sgmodel.models import adapt
from sgmodel.models import encoder as enc

Tables = Literal["interpolate", "redraw"]
"""Position tables of another image size: resized, or drawn anew, as the released code does."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of each weight, in published names, and the share of the encoder's parameters that was filled.

    A weight of another shape stands in `missing` and in `unexpected`, unless it could be resized.
    """

    matched: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    encoder_share: float


def has_card(path: Path) -> bool:
    """True for a checkpoint folder of ours (or what is not there at all), and for weights that lie in one."""
    # A model of another maker from the hub: weights of the same name, or in parts, and no card of ours.
    if (path / "config.json").is_file() or weight_files.index_of(path / WEIGHTS).is_file():
        return (path / CARD).is_file()
    return not path.is_file() or (path.suffix == ".safetensors" and (path.parent / CARD).is_file())


def read_weights(path: Path) -> State:
    """Weights by published name, from a checkpoint folder of ours, a `.safetensors` or a published `.pth` file.

    Raises SourceError.
    """
    if not has_card(path) or not path.exists():
        return weight_files.read(path / WEIGHTS if path.is_dir() else path)
    return weight_files.named(weight_files.read_safetensors(path / WEIGHTS if path.is_dir() else path))


def fit(
    model: nn.Module,
    state: State,
    *,
    tables: Tables = "interpolate",
    at_least: float = 0.9,
    wavelengths: Sequence[float] = (),
    where: str = "weights",
) -> Report:
    """Fill `model` with every weight of `state` (published names) that fits it, in place.

    Position tables of another image size are resized bicubically, spectral tables and the patch kernel of other bands
    adapted (see `adapt`); "redraw" keeps the model's fresh ones, as the released code does. The `wavelengths` (nm) of
    a baseline's bands say where red, green and blue go. Raises SourceError where less than `at_least` of the encoder's
    parameters would be filled.
    """
    own = weight_files.named(model.state_dict())
    # Of SpectralGPT, whose parts hang in the model itself or in its `encoder`; a baseline has none.
    config: enc.EncoderConfig | None = getattr(getattr(model, "encoder", model), "config", None)
    if not any(map(_of_encoder, own)):
        raise SourceError(f"{where}: the model has no encoder to fill; leave the weights out")
    if any(name.endswith(".attn.q.weight") for name in own):
        state = weight_files.plain(state)
    resized: State = {}
    if config is None:
        state, resized = _of_baseline(model, state, wavelengths)
    elif tables == "interpolate":
        resized = dict(_adapted(own, state, config))
    matched = {name: state[name] for name, tensor in own.items() if name in state and state[name].shape == tensor.shape}
    resized = {name: tensor for name, tensor in resized.items() if name in own and own[name].shape == tensor.shape}
    filled = matched | resized
    encoder_names = [name for name in own if _of_encoder(name)]
    share = sum(own[n].numel() for n in encoder_names if n in filled) / sum(own[n].numel() for n in encoder_names)
    report = Report(
        matched=tuple(matched),
        resized=tuple(resized),
        missing=tuple(name for name in own if name not in filled),
        unexpected=tuple(name for name in state if name not in filled),
        encoder_share=share,
    )
    if share < at_least:
        raise SourceError(f"{where}: {_refusal(report, own, state)}")
    # Only now, so that a refusal leaves the model as it was.
    with torch.no_grad():
        for name, tensor in filled.items():
            own[name].copy_(tensor)
    return report


def _adapted(own: State, state: State, config: enc.EncoderConfig) -> Iterator[tuple[str, Tensor]]:
    """The position tables and the patch kernel of `state` that must be made to fit, and can be."""
    planes = {"pos_embed_spatial": 1, "pos_embed": config.times * config.groups}
    for name, wanted in own.items():
        found = state.get(name, wanted)
        if found.shape == wanted.shape or found.ndim != wanted.ndim:
            continue
        kind = name.removeprefix("decoder_")
        if name == "patch_embed.proj.weight" and found.shape[:2] == wanted.shape[:2]:
            yield name, adapt.kernel(found, wanted.shape)
        elif kind == "pos_embed_temporal" and found.shape[2] == wanted.shape[2]:
            yield name, adapt.spectral_table(found, wanted.shape[1], config.times)
        elif kind in planes and found.shape[2] == wanted.shape[2] and _square(found.shape[1], planes[kind]):
            yield name, adapt.resize_table(found, rows=wanted.shape[1], planes=planes[kind])


def _square(rows: int, planes: int) -> bool:
    """Whether so many rows are those of several planes of as many rows as columns."""
    return planes * isqrt(rows // planes) ** 2 == rows


def _of_baseline(model: Any, state: State, wavelengths: Sequence[float]) -> tuple[State, State]:
    """`state` under the names of the baseline, and those weights that its backbone had to change to take."""
    own, prefix = model.state_dict(), f"backbone.{model.backbone.root}"
    wanted = {name.removeprefix(prefix) for name in own if name.startswith(prefix)}
    plain = adapt.renamed(state, wanted)
    adapted = model.backbone.adapted(plain, model.recipe.first_layer, wavelengths)
    changed = {name: t for name, t in adapted.items() if name not in plain or plain[name].shape != t.shape}
    # Weights of the same baseline, trained here for the same task, bring their head too.
    whole = {name: tensor for name, tensor in state.items() if name in own}
    return whole | {prefix + n: t for n, t in plain.items()}, {prefix + n: t for n, t in changed.items()}


def _of_encoder(name: str) -> bool:
    return name.startswith(("pos_embed", "patch_embed.", "blocks.", "norm.", "backbone."))


def _refusal(report: Report, own: State, state: State) -> str:
    """Why these weights are not for this model, by the first weight that does not fit."""
    name = next(name for name in report.missing if _of_encoder(name))
    found = f"{tuple(state[name].shape)}" if name in state else "absent"
    return (
        f"only {int(100 * report.encoder_share)}% of the encoder's parameters fit; first, {name} is {found}, "
        f"the model has {tuple(own[name].shape)}: choose the model settings these weights were trained with"
    )
