"""Models on disk: `model.safetensors` beside `card.json`, and filling a model with weights from anywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sgdata import files
from sgdata.errors import SettingError, SourceError
from sgdata.types import Contract
from sgmodel import contrastive, foreign, heads, mae, models, normalise, published, ranks, resizing, upernet
from sgmodel import encoder as enc

FORMAT = 1
WEIGHTS = "model.safetensors"
CARD = "card.json"
State = published.State
Tables = Literal["interpolate", "redraw"]
"""Position tables of another image size: resized, or drawn anew, as the released code does."""
Kind = Literal["encoder", "autoencoder", "classifier", "segmenter", "change", "contrast"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Enough to build a model: its kind, the encoder, and what that kind needs besides; of a rival, its `recipe`."""

    kind: Kind
    encoder: enc.EncoderConfig | None = None
    recipe: models.ModelRecipe | None = None
    contrast: contrastive.Objective | None = None
    bands: int = 0
    decoder: mae.DecoderConfig | None = None
    objective: mae.Objective | None = None
    head: upernet.HeadConfig | None = None
    classes: int = 0
    pooling: heads.Pooling = "mean"
    probe: bool = False


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

RIVALS: dict[Kind, type[models.RivalClassifier | models.RivalSegmenter | models.RivalDetector]] = {
    "classifier": models.RivalClassifier,
    "segmenter": models.RivalSegmenter,
    "change": models.RivalDetector,
}


def describe(model: nn.Module) -> ModelSpec:
    """The spec from which `build` makes this model again."""
    return replace(_describe(model), probe=isinstance(getattr(model, "head", None), heads.Probe))


def _describe(model: nn.Module) -> ModelSpec:
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
        case contrastive.Contrast():
            return ModelSpec(kind="contrast", recipe=model.recipe, bands=model.bands, contrast=model.objective)
        case models.Rival():
            kind = next(kind for kind, made in RIVALS.items() if isinstance(model, made))
            return ModelSpec(kind=kind, recipe=model.recipe, bands=model.bands, classes=model.classes)
    raise TypeError(f"{type(model).__name__} has no description; unwrap it before saving")


def build(spec: ModelSpec) -> nn.Module:
    """A fresh model as `spec` says."""
    model = _build(spec)
    if spec.probe:
        heads.probe(model)
    return model


def _build(spec: ModelSpec) -> nn.Module:
    if spec.recipe is not None and spec.contrast is not None:
        return contrastive.Contrast(spec.recipe, spec.bands, spec.contrast)
    if spec.recipe is not None:
        return RIVALS[spec.kind](spec.recipe, spec.bands, spec.classes)
    assert spec.encoder is not None
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
        case _:
            return encoder


# --- save and load -------------------------------------------------------------------------


def save(folder: Path, model: nn.Module, card: Card) -> None:
    """Write weights and card; equal weights and cards give equal bytes. Raises OutputError."""
    write(folder, state(model), card)


def state(model: nn.Module) -> State:
    """The model's weights, whole and on the CPU. All ranks call."""
    return {name: ranks.whole(tensor.detach()).cpu().contiguous() for name, tensor in model.state_dict().items()}


def write(folder: Path, weights: State, card: Card) -> None:
    """As `save`, of weights already gathered."""
    # Safetensors orders by type and name and stores no time, so the bytes depend on the weights alone.
    with files.replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    files.write(folder / CARD, files.pretty_json(card))


def load(path: Path) -> nn.Module:
    """The model in a checkpoint folder of ours or in a published file, on the CPU, in evaluation mode.

    A `.safetensors` beside a card of ours is that model with other weights: `checkpoint-last/average.safetensors`.
    Raises SourceError.
    """
    if not has_card(path):
        state = read_weights(path)
        model = build(infer(state, where=str(path)))
        report = fit(model, state, at_least=1.0, where=str(path))
        if report.missing:  # `fit` counts the encoder alone; here nobody would train the rest
            told = (
                f"{len(report.missing)} weights of the {describe(model).kind} are missing (first, {report.missing[0]})"
            )
            raise SourceError(f"{path}: {told}; fill a model of your own with checkpoint.fit")
        return model.eval()
    card = read_card(path)
    # No memory and no random draws for weights that are replaced at once; but timm's models also compute tables.
    with torch.device("meta" if card.model.recipe is None else "cpu"):
        model = build(card.model)
    try:
        model.load_state_dict(published.read_safetensors(path / WEIGHTS if path.is_dir() else path), assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: weights do not fit the card ({why:.200}); save the model again") from None
    return model.eval()


def has_card(path: Path) -> bool:
    """True for a checkpoint folder of ours (or what is not there at all), and for weights that lie in one."""
    # A model of another maker from the hub: weights of the same name, or in parts, and no card of ours.
    if (path / "config.json").is_file() or published.index_of(path / WEIGHTS).is_file():
        return (path / CARD).is_file()
    return not path.is_file() or (path.suffix == ".safetensors" and (path.parent / CARD).is_file())


def read_card(path: Path) -> Card:
    """`card.json` of a checkpoint folder, or beside a file of weights. Raises SourceError."""
    folder = path.parent if path.is_file() else path
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
    # Without this test git would climb further and name the commit of some other repository.
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# --- weights from anywhere -----------------------------------------------------------------


def read_weights(path: Path) -> State:
    """Weights by published name, from a checkpoint folder of ours, a `.safetensors` or a published `.pth` file.

    Raises SourceError.
    """
    if not has_card(path) or not path.exists():
        return published.read(path / WEIGHTS if path.is_dir() else path)
    state = published.read_safetensors(path / WEIGHTS if path.is_dir() else path)
    return _by_published_name(state, read_card(path).model)


def _by_published_name(state: State, spec: ModelSpec) -> State:
    """Of SpectralGPT only: a rival's names are its own."""
    if spec.recipe is not None:
        return state
    return {published.name_of(name, spec.kind): tensor for name, tensor in state.items()}


def infer(state: State, *, where: str) -> ModelSpec:
    """The model that published weights belong to, from their names and shapes. Raises SourceError.

    Two things leave no trace there: the width of a head, taken as 64 in the encoder and 32 in the decoder (80 in
    the huge model), and the number of groups behind a joint position table, taken as that of 12 bands.
    """
    state = published.split_qkv(state)
    try:
        encoder = _infer_encoder(state)
        if "mask_token" in state:
            decoder = mae.DecoderConfig(
                width=state["mask_token"].shape[-1],
                depth=_depth(state, "decoder_blocks"),
                heads=max(state["mask_token"].shape[-1] // 32, 1),
            )
            return ModelSpec(kind="autoencoder", encoder=encoder, decoder=decoder)
        if "cls_seg.0.weight" in state:
            classes = state["cls_seg.0.weight"].shape[0]
            kind: Literal["change", "segmenter"] = "change" if classes == 2 else "segmenter"
            return ModelSpec(kind=kind, encoder=encoder, classes=classes, head=_infer_head(state))
        if "head.weight" in state:
            classes = state["head.weight"].shape[0]
            return ModelSpec(kind="classifier", encoder=encoder, classes=classes, pooling="released")
    except (KeyError, ValueError) as error:
        raise SourceError(
            f"{where}: not the weights of a SpectralGPT model ({error} is missing or has an odd shape)"
        ) from None
    return ModelSpec(kind="encoder", encoder=encoder)


def _infer_encoder(state: State) -> enc.EncoderConfig:
    width, _, group_bands, patch_px, _ = state["patch_embed.proj.weight"].shape
    joint = "pos_embed" in state
    groups = 12 // group_bands if joint else state["pos_embed_temporal"].shape[1]
    places = state["pos_embed"].shape[1] // groups if joint else state["pos_embed_spatial"].shape[1]
    return enc.EncoderConfig(
        bands=groups * group_bands,
        image_px=isqrt(places) * patch_px,
        patch_px=patch_px,
        group_bands=group_bands,
        width=width,
        depth=_depth(state, "blocks"),
        heads=width // 80 if width == 1280 else max(width // 64, 1),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        positions="joint" if joint else "pair",
    )


def _infer_head(state: State) -> upernet.HeadConfig:
    spread = [state[f"conv{i}.3.weight"].shape for i in range(3)]  # transposed: (hidden, level, k, k)
    return upernet.HeadConfig(
        levels=(spread[0][1], spread[1][1], spread[2][1], state["conv3.0.weight"].shape[0]),
        hidden=(spread[0][0], spread[1][0], spread[2][0]),
        width=state["decoder.fuse_all.0.weight"].shape[0],
    )


def _depth(state: State, blocks: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


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
    made to fit (`resizing`); "redraw" leaves the model's fresh ones, as the
    released code does. The `wavelengths` (nm) of a rival's bands say where red, green and blue go. Raises SourceError
    where less than `at_least` of the encoder's parameters would be filled.
    """
    spec = describe(model)
    own = _by_published_name(model.state_dict(), spec)
    if not any(map(_of_encoder, own)):
        raise SourceError(f"{where}: a {spec.kind} model has no encoder to fill; leave the weights out")
    if any(name.endswith(".attn.q.weight") for name in own):
        state = published.split_qkv(state)
    resized: State = {}
    if isinstance(model, models.Rival):
        state, resized = _of_rival(model, state, wavelengths)
    elif tables == "interpolate" and spec.encoder is not None:
        resized = _tables(own, state, spec.encoder)
    matched = {name: state[name] for name, tensor in own.items() if name in state and state[name].shape == tensor.shape}
    resized = {name: tensor for name, tensor in resized.items() if name in own and own[name].shape == tensor.shape}
    if tables == "interpolate" and spec.encoder is not None:
        resized |= _of_other_bands(own, state, spec.encoder)
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


def _tables(own: State, state: State, config: enc.EncoderConfig) -> State:
    """The position tables of `state` that must be resized, and can be."""
    return {
        name: foreign.resize_table(state[name], rows=tensor.shape[1], planes=_table_planes(name, config))
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape and _resizable(name, state[name], tensor, config)
    }


def _of_rival(model: models.Rival, state: State, wavelengths: Sequence[float]) -> tuple[State, State]:
    """`state` under the names of the rival, and those weights that its backbone had to change to take."""
    own, prefix = model.state_dict(), f"backbone.{model.backbone.root}"
    wanted = {name.removeprefix(prefix) for name in own if name.startswith(prefix)}
    plain = foreign.renamed(state, wanted)
    adapted = model.backbone.adapted(plain, model.recipe.first_layer, wavelengths)
    changed = {name: t for name, t in adapted.items() if name not in plain or plain[name].shape != t.shape}
    # Weights of the same rival, trained here for the same task, bring their head too.
    whole = {name: tensor for name, tensor in state.items() if name in own}
    return whole | {prefix + n: t for n, t in plain.items()}, {prefix + n: t for n, t in changed.items()}


def _of_encoder(published: str) -> bool:
    return published.startswith(("pos_embed", "patch_embed.", "blocks.", "norm.", "backbone."))


def _table_planes(name: str, config: enc.EncoderConfig) -> int:
    """Planes that a spatial or joint position table holds; 0 for anything else, which cannot be resized."""
    planes = {"pos_embed_spatial": 1, "decoder_pos_embed_spatial": 1}
    return planes.get(name, config.planes if name in {"pos_embed", "decoder_pos_embed"} else 0)


def _resizable(name: str, found: Tensor, wanted: Tensor, config: enc.EncoderConfig) -> bool:
    planes = _table_planes(name, config)
    if planes == 0 or found.ndim != 3 or found.shape[-1] != wanted.shape[-1] or found.shape[1] % planes:
        return False
    return isqrt(found.shape[1] // planes) ** 2 == found.shape[1] // planes


def _of_other_bands(own: State, state: State, config: enc.EncoderConfig) -> State:
    """The spectral tables and the patch kernel of `state` that must be made to fit, and can be."""
    adapted: State = {}
    for name, tensor in own.items():
        found = state.get(name)
        if found is None or found.shape == tensor.shape or found.ndim != tensor.ndim:
            continue
        if name.endswith("pos_embed_temporal") and found.shape[2] == tensor.shape[2]:
            adapted[name] = resizing.spectral_table(found, tensor.shape[1], config.times)
        elif name == "patch_embed.proj.weight" and found.shape[:2] == tensor.shape[:2]:
            adapted[name] = resizing.kernel(found, tensor.shape)
    return adapted


def _refusal(report: Report, own: State, state: State) -> str:
    """Why these weights are not for this model, by the first weight that does not fit."""
    name = next(name for name in report.missing if _of_encoder(name))
    found = f"{tuple(state[name].shape)}" if name in state else "absent"
    return (
        f"only {int(100 * report.encoder_share)}% of the encoder's parameters fit; first, {name} is {found}, "
        f"the model has {tuple(own[name].shape)}: choose the model settings these weights were trained with"
    )
