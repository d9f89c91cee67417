"""Read weights of any origin by released name, and put them into a model as far as they fit."""

from __future__ import annotations

import re
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
from sgmodel.models import encoder as enc
from sgmodel.models import weight_adaptation
from sgmodel.models.spectralgpt import SpectralGPT

Tables = Literal["interpolate", "redraw"]
"""Position tables of another image size: resize them, or draw them again as the released code does."""


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """Result of a transfer: what happened to each weight, by released name.

    Attributes:
        matched: Weights copied as they are.
        resized: Weights adapted to another image size, patch size or number of bands.
        missing: Weights of the model that were not filled.
        unexpected: Weights of the file that were not used. One of another shape is also in `missing`.
        encoder_share: Share of the encoder's parameters that was filled, 0 to 1.
    """

    matched: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    encoder_share: float


def has_card(path: Path) -> bool:
    """Return True for a checkpoint folder or weights inside one, also where `path` does not exist."""
    # The hub has models of other makers with weights of the same name, or in parts, without a card.
    if (path / "config.json").is_file() or weight_files.index_of(path / WEIGHTS).is_file():
        return (path / CARD).is_file()
    return not path.is_file() or (path.suffix == ".safetensors" and (path.parent / CARD).is_file())


def read_weights(path: Path) -> State:
    """Read weights by released name.

    Args:
        path: A checkpoint folder, a `.safetensors` file, or a torch file.

    Returns:
        The tensors by released name.

    Raises:
        SourceError: There is no such file, or it cannot be read.
    """
    if not has_card(path) or not path.exists():
        return weight_files.read(path / WEIGHTS if path.is_dir() else path)
    return weight_files.released_names(weight_files.read_safetensors(path / WEIGHTS if path.is_dir() else path))


def fit(
    model: nn.Module,
    state: State,
    *,
    tables: Tables = "interpolate",
    at_least: float = 0.9,
    wavelengths: Sequence[float] = (),
    origin: str = "weights",
) -> TransferReport:
    """Fill `model` in place with every weight of `state` that fits it.

    Position tables of another image size are resized bicubically; spectral tables and the patch kernel of other bands
    are adapted as in `weight_adaptation`. Every other weight of the encoder must be there: one missing block would be
    random.

    Args:
        model: The model to fill.
        state: Weights by released name.
        tables: "interpolate" for the above; "redraw" keeps the model's fresh tables, as the released code does.
        at_least: Share of the encoder's parameters that must be filled; 0 takes weights of which parts are missing.
        wavelengths: Centre wavelengths of a baseline's bands in nm, by which red, green and blue are found.
        origin: Name of the weights for messages.

    Returns:
        The names of the weights that were copied, adapted, missing and unused, and the share of the encoder that was
        filled.

    Raises:
        SourceError: A block, projection or norm of the encoder is missing, less than `at_least` would be filled, the
            weights have LoRA layers beside them, or the model has no encoder. The model is then unchanged.
    """
    low_rank = [name for name in state if re.search(r"(?:^|\.)lora", name, re.IGNORECASE)]
    if low_rank:
        message = f"{origin}: holds {len(low_rank)} weights of LoRA layers (first, {low_rank[0]})"
        raise SourceError(f"{message}; merge them before saving, with merge_and_unload() of peft for instance")
    own = weight_files.released_names(model.state_dict())
    encoder_names = [name for name in own if _of_encoder(name)]
    if not encoder_names:
        raise SourceError(f"{origin}: the model has no encoder to fill; leave the weights out")
    if any(name.endswith(".attn.q.weight") for name in own):
        state = weight_files.normalise_names(state)
    config = _config(model)
    resized: State = {}
    if config is None:
        state, resized = _adapt_to_baseline(model, state, wavelengths)
    elif tables == "interpolate":
        resized = dict(_adapt_to_encoder(own, state, config))
    matched = {name: state[name] for name, tensor in own.items() if name in state and state[name].shape == tensor.shape}
    resized = {name: tensor for name, tensor in resized.items() if name in own and own[name].shape == tensor.shape}
    filled = matched | resized
    share = sum(own[n].numel() for n in encoder_names if n in filled) / sum(own[n].numel() for n in encoder_names)
    report = TransferReport(
        matched=tuple(matched),
        resized=tuple(resized),
        missing=tuple(name for name in own if name not in filled),
        unexpected=tuple(name for name in state if name not in filled),
        encoder_share=share,
    )
    lacking = _lacking(model, [name for name in encoder_names if name not in filled], own, state, tables)
    if (lacking and at_least) or share < at_least:
        names = lacking or [name for name in report.missing if _of_encoder(name)]
        raise SourceError(f"{origin}: {_refusal(share, names, own, state)}")
    # Only now, so that a refusal leaves the model as it was.
    with torch.no_grad():
        for name, tensor in filled.items():
            own[name].copy_(tensor)
    return report


def _config(model: nn.Module) -> enc.EncoderConfig | None:
    """Return the settings of the model's SpectralGPT encoder; None for a baseline."""
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, SpectralGPT):
        return backbone.encoder.config
    config: enc.EncoderConfig | None = None if backbone is not None else getattr(model, "config", None)
    return config


def _adapt_to_encoder(own: State, state: State, config: enc.EncoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield the position tables and the patch kernel of `state` that differ in shape and can be adapted."""
    planes = {"pos_embed_spatial": 1, "pos_embed": config.timesteps * config.groups}
    for name, target in own.items():
        source = state.get(name, target)
        if source.shape == target.shape or source.ndim != target.ndim:
            continue
        kind = name.removeprefix("decoder_")
        if name == "patch_embed.proj.weight" and source.shape[:2] == target.shape[:2]:
            yield name, weight_adaptation.kernel(source, target.shape)
        elif kind == "pos_embed_temporal" and source.shape[2] == target.shape[2]:
            yield name, weight_adaptation.spectral_table(source, target.shape[1], config.timesteps)
        elif kind in planes and source.shape[2] == target.shape[2] and _square(source.shape[1], planes[kind]):
            yield name, weight_adaptation.resize_table(source, rows=target.shape[1], planes=planes[kind])


def _square(rows: int, planes: int) -> bool:
    """Return True where `rows` are those of `planes` square grids."""
    return planes * isqrt(rows // planes) ** 2 == rows


def _adapt_to_baseline(model: Any, state: State, wavelengths: Sequence[float]) -> tuple[State, State]:
    """Return `state` under the names of the baseline, and the weights that its backbone had to adapt."""
    own, prefix = model.state_dict(), f"backbone.{model.backbone.root}"
    wanted = {name.removeprefix(prefix) for name in own if name.startswith(prefix)}
    how = model.recipe.first_layer if model.recipe else "mean-scaled"
    plain = weight_adaptation.strip_prefix(state, wanted)
    adapted = model.backbone.adapt_weights(plain, how, wavelengths)
    changed = {name: t for name, t in adapted.items() if name not in plain or plain[name].shape != t.shape}
    # Weights of the same baseline, trained here for the same task, bring their head too.
    whole = {name: tensor for name, tensor in state.items() if name in own}
    return whole | {prefix + n: t for n, t in plain.items()}, {prefix + n: t for n, t in changed.items()}


def _of_encoder(name: str) -> bool:
    return name.startswith(("pos_embed", "patch_embed.", "blocks.", "norm.", "backbone."))


def _lacking(model: nn.Module, missing: Sequence[str], own: State, state: State, tables: Tables) -> list[str]:
    """Return the `missing` weights of the encoder that are not left to the model on purpose.

    Those are position tables that are drawn again, or of which the file has another kind, a first layer that the recipe
    replaces, class tokens, and buffers that are computed.
    """
    recipe = getattr(model, "recipe", None)
    new_first = recipe is not None and recipe.first_layer == "new"
    other_tables = any("pos_embed" in name and name not in own for name in state)
    parameters = weight_files.released_names(dict(model.named_parameters()))
    lacking = []
    for name in missing:
        if "pos_embed" in name and (tables == "redraw" or (name not in state and other_tables)):
            continue
        if new_first and name in state and state[name].shape[2:] == own[name].shape[2:] and own[name].ndim == 4:
            continue
        if "cls_" not in name and (name in parameters or name.endswith(("running_mean", "running_var"))):
            lacking.append(name)
    return lacking


def _refusal(share: float, names: Sequence[str], own: State, state: State) -> str:
    """Return why the weights do not fit the model, by the first of the `names` that do not."""
    name = names[0]
    shape = f"{tuple(state[name].shape)}" if name in state else "absent"
    return (
        f"only {int(100 * share)}% of the encoder's parameters fit; first, {name} is {shape}, "
        f"the model has {tuple(own[name].shape)} ({len(names)} such weights): choose the model settings these weights "
        "were trained with, or fetch all of them"
    )
