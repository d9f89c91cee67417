"""Models on disk: `model.safetensors` beside `card.json`; and the published `.pth` files, read without running code.

Names of weights: a *published* name is the one in the tables `catalogs/tables/spectralgpt_*_keys.tsv`. Pretraining
model and classifier use published names as they are; for segmentation and change detection `DENSE` maps them.
"""

from __future__ import annotations

import argparse
import pickle
import re
import subprocess
import zipfile
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from sgdata import files
from sgdata.errors import SettingError, SourceError
from sgdata.types import Contract
from sgmodel import encoder as enc
from sgmodel import heads, mae, normalise, upernet

FORMAT = 1
WEIGHTS = "model.safetensors"
CARD = "card.json"
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Enough to build a model: its kind, the encoder, and what that kind needs besides."""

    kind: Literal["encoder", "autoencoder", "classifier", "segmenter", "change"]
    encoder: enc.EncoderConfig
    decoder: mae.DecoderConfig | None = None
    objective: mae.Objective | None = None
    head: upernet.HeadConfig | None = None
    classes: int = 0
    pooling: heads.Pooling = "mean"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What travels with weights: how to build the model, what its inputs and outputs are, and how it was trained."""

    format: int = FORMAT
    model: ModelSpec
    contract: Contract | None = None
    normalisation: normalise.Normalisation | None = None
    recipe: dict[str, Any] | None = None
    commit: str | None = None


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


# --- models and their description ----------------------------------------------------------


def describe(model: nn.Module) -> ModelSpec:
    """The spec from which `build` makes this model again."""
    match model:
        case mae.MaskedAutoencoder():
            return ModelSpec(kind="autoencoder", encoder=model.config, decoder=model.decoder, objective=model.objective)
        case heads.SceneClassifier():
            return ModelSpec(kind="classifier", encoder=model.config, classes=model.classes, pooling=model.pooling)
        case upernet.Segmenter():
            config = model.encoder.config
            return ModelSpec(kind="segmenter", encoder=config, classes=model.classes, head=model.head_config)
        case heads.ChangeDetector():
            return ModelSpec(kind="change", encoder=model.encoder.config, classes=2, head=model.head_config)
        case enc.Encoder():
            return ModelSpec(kind="encoder", encoder=model.config)
    raise TypeError(f"{type(model).__name__} has no description; unwrap it before saving")


def build(spec: ModelSpec) -> nn.Module:
    """A fresh model as `spec` says."""
    encoder = enc.Encoder(spec.encoder)
    match spec.kind:
        case "autoencoder":
            return mae.MaskedAutoencoder(encoder, spec.decoder, spec.objective)
        case "classifier":
            return heads.SceneClassifier(encoder, spec.classes, spec.pooling)
        case "segmenter":
            return upernet.Segmenter(encoder, spec.classes, spec.head)
        case "change":
            return heads.ChangeDetector(encoder, spec.head)
        case "encoder":
            return encoder


# --- save and load -------------------------------------------------------------------------


def save(folder: Path, model: nn.Module, card: Card) -> None:
    """Write weights and card; equal weights and cards give equal bytes. Raises OutputError."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with files.replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    files.write(folder / CARD, files.pretty_json(card))


def load(path: Path) -> nn.Module:
    """The model in a checkpoint folder of ours, on the CPU, in evaluation mode. Raises SourceError."""
    card = read_card(path)
    with torch.device("meta"):
        model = build(card.model)
    try:
        model.load_state_dict(_read_safetensors(path / WEIGHTS), assign=True)
    except RuntimeError as error:
        raise SourceError(f"{path}: weights do not fit the card: {_one_line(error)}; save it again") from None
    return model.eval()


def read_card(folder: Path) -> Card:
    """`card.json` of a checkpoint folder. Raises SourceError."""
    path = files.existing(folder / CARD, f"a checkpoint folder with {WEIGHTS} and {CARD}")
    try:
        card = files.read(Card, path)
    except SettingError as error:
        raise SourceError(str(error)) from None
    if card.format != FORMAT:
        raise SourceError(f"{path}: format {card.format}, this version reads {FORMAT}; use the sgdata that wrote it")
    return card


def commit() -> str | None:
    """The git commit of the checkout that this package runs from; None for an installed package."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# --- weights of others ---------------------------------------------------------------------


def read_weights(path: Path) -> State:
    """Weights by published name, from a checkpoint folder of ours, a `.safetensors` or a published `.pth` file.

    Raises SourceError, also where a pickle holds anything but tensors, plain values and an argparse Namespace.
    """
    files.existing(path, "a checkpoint folder, a .safetensors or a .pth file")
    if path.is_dir():
        kind = read_card(path).model.kind
        return {published_name(name, kind): tensor for name, tensor in _read_safetensors(path / WEIGHTS).items()}
    return _plain_names(_read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path))


def fit(
    model: nn.Module,
    state: State,
    *,
    tables: Literal["interpolate", "redraw"] = "interpolate",
    at_least: float = 0.9,
    where: str = "weights",
) -> Report:
    """Fill `model` with every weight of `state` (published names) that fits it, in place.

    Position tables of another image size are resized bicubically; "redraw" leaves the model's fresh ones, as the
    released code does. Raises SourceError where less than `at_least` of the encoder's parameters would be filled.
    """
    spec = describe(model)
    own = {published_name(name, spec.kind): tensor for name, tensor in model.state_dict().items()}
    matched = {name: state[name] for name, tensor in own.items() if name in state and state[name].shape == tensor.shape}
    resized = {}
    if tables == "interpolate":
        resized = {
            name: resize_table(state[name], rows=tensor.shape[1], planes=_table_planes(name, spec.encoder))
            for name, tensor in own.items()
            if name not in matched and name in state and _resizable(name, state[name], tensor, spec.encoder)
        }
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
    with torch.no_grad():
        for name, tensor in filled.items():
            own[name].copy_(tensor)
    return report


def resize_table(table_1RD: Tensor, *, rows: int, planes: int) -> Tensor:
    """A position table (1, planes x side^2, D) as one of `rows` rows, bicubic on its (row, column) grid."""
    width = table_1RD.shape[-1]
    side, side_to = isqrt(table_1RD.shape[1] // planes), isqrt(rows // planes)
    grid = table_1RD.float().reshape(planes, side, side, width).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(side_to, side_to), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, -1, width).to(table_1RD.dtype)


# --- names ---------------------------------------------------------------------------------

# Our names for segmentation and change detection -> the published ones; all other weights belong to the encoder.
DENSE = {
    "merge.linear": "fc.0",
    "head.levels.0": "conv0",
    "head.levels.1": "conv1",
    "head.levels.2": "conv2",
    "head.levels.3": "conv3",
    "head.pooling.branches.0": "decoder.PPMHead.psp_modules.0",
    "head.pooling.branches.1": "decoder.PPMHead.psp_modules.1",
    "head.pooling.branches.2": "decoder.PPMHead.psp_modules.2",
    "head.pooling.branches.3": "decoder.PPMHead.psp_modules.3",
    "head.pooling.fuse": "decoder.PPMHead.final",
    "head.bridge": "decoder.conv_x1",
    "head.lateral.0": "decoder.Conv_fuse1",
    "head.lateral.1": "decoder.Conv_fuse2",
    "head.lateral.2": "decoder.Conv_fuse3",
    "head.smooth.0": "decoder.Conv_fuse1_",
    "head.smooth.1": "decoder.Conv_fuse2_",
    "head.smooth.2": "decoder.Conv_fuse3_",
    "head.fuse": "decoder.fuse_all",
    "head.classify": "cls_seg.0",
}


def published_name(ours: str, kind: str) -> str:
    """The published name of one of our weights."""
    if kind not in {"segmenter", "change"}:
        return ours
    for prefix, published in DENSE.items():
        if ours.startswith(f"{prefix}."):
            return published + ours.removeprefix(prefix)
    return ours.removeprefix("encoder.")


def _plain_names(state: State) -> State:
    """Without the prefixes of wrappers, and with a fused qkv taken apart."""
    plain: State = {}
    for raw, tensor in state.items():
        name = re.sub(r"^((module|_orig_mod)\.)+", "", raw)
        fused = re.fullmatch(r"(.*\.attn\.)(?:to_)?qkv\.(weight|bias)", name)
        if fused:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            plain.update({f"{fused[1]}{part}.{fused[2]}": piece for part, piece in parts})
        else:
            plain[name] = tensor
    return plain


def _of_encoder(published: str) -> bool:
    return published.startswith(("pos_embed", "patch_embed.", "blocks.", "norm."))


def _table_planes(name: str, config: enc.EncoderConfig) -> int:
    """Planes that a spatial or joint position table holds; 0 for anything else, which cannot be resized."""
    planes = {"pos_embed_spatial": 1, "decoder_pos_embed_spatial": 1}
    return planes.get(name, config.planes if name in {"pos_embed", "decoder_pos_embed"} else 0)


def _resizable(name: str, found: Tensor, wanted: Tensor, config: enc.EncoderConfig) -> bool:
    planes = _table_planes(name, config)
    if planes == 0 or found.ndim != 3 or found.shape[-1] != wanted.shape[-1] or found.shape[1] % planes:
        return False
    return isqrt(found.shape[1] // planes) ** 2 == found.shape[1] // planes


# --- bytes ---------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> State:
    try:
        return load_file(files.existing(path, "a safetensors file"))
    except SafetensorError as error:
        raise SourceError(
            f"{path}: not a whole safetensors file ({_one_line(error)}); fetch or save it again"
        ) from None


def _read_pickle(path: Path) -> State:
    """The state dict in a torch file: at the top, or under `model` or `state_dict`."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the released files hold their `args`
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        culprit = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if culprit and isinstance(error, pickle.UnpicklingError):
            raise SourceError(
                f"{path}: holds {culprit[1]}, which loading would run; expected tensors and plain values: save its "
                f"state dict as .safetensors in the environment that made it"
            ) from None
        raise SourceError(
            f"{path}: {path.stat().st_size} bytes that are not a whole torch file; fetch it again"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict):
        raise SourceError(f"{path}: holds a {type(document).__name__}, expected a dict of weights")
    return {name: tensor for name, tensor in document.items() if isinstance(tensor, Tensor)}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _refusal(report: Report, own: State, state: State) -> str:
    """Why these weights are not for this model, by the first weight that does not fit."""
    name = next(name for name in report.missing if _of_encoder(name))
    found = f"{tuple(state[name].shape)}" if name in state else "absent"
    return (
        f"only {report.encoder_share:.0%} of the encoder's parameters fit; first, {name} is {found}, the model has "
        f"{tuple(own[name].shape)}: choose the model settings these weights were trained with"
    )
