"""The card of a checkpoint and the model that it describes: told of a model, read, built again, and filled from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sgdata import files
from sgdata.errors import SettingError, SourceError
from sgdata.shards import contracts
from sgdata.types import Contract, LabelSpace
from sgmodel.checkpoints import checkpoint_folder, transfer, weight_files
from sgmodel.checkpoints.checkpoint_folder import CARD, WEIGHTS
from sgmodel.checkpoints.weight_files import State
from sgmodel.data import normalise
from sgmodel.models import contrastive, factory, heads, mae, upernet
from sgmodel.models import encoder as enc

FORMAT = 1
log = logging.getLogger("sgdata.model")
Kind = Literal["encoder", "autoencoder", "classifier", "segmenter", "change", "contrast"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Enough to build a model: its kind, the encoder, and what that kind needs besides; of a baseline, its `recipe`."""

    kind: Kind
    encoder: enc.EncoderConfig | None = None
    recipe: factory.ModelRecipe | None = None
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


BASELINES: dict[Kind, type[factory.BaselineClassifier | factory.BaselineSegmenter | factory.BaselineDetector]] = {
    "classifier": factory.BaselineClassifier,
    "segmenter": factory.BaselineSegmenter,
    "change": factory.BaselineDetector,
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
        case heads.Segmenter():
            config = model.encoder.config
            return ModelSpec(kind="segmenter", encoder=config, classes=model.classes, head=model.head_config)
        case heads.ChangeDetector():
            return ModelSpec(kind="change", encoder=model.encoder.config, classes=2, head=model.head_config)
        case enc.Encoder():
            return ModelSpec(kind="encoder", encoder=model.config)
        case contrastive.Contrast():
            return ModelSpec(kind="contrast", recipe=model.recipe, bands=model.bands, contrast=model.objective)
        case factory.Baseline():
            kind = next(kind for kind, made in BASELINES.items() if isinstance(model, made))
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
        return factory.contrast(spec.recipe, spec.contrast, bands=spec.bands)
    if spec.recipe is not None:
        return BASELINES[spec.kind](spec.recipe, spec.bands, spec.classes)
    assert spec.encoder is not None
    encoder = enc.Encoder(spec.encoder)
    match spec.kind:
        case "autoencoder":
            return mae.MaskedAutoencoder(encoder, spec.decoder, spec.objective)
        case "classifier":
            return heads.SceneClassifier(encoder, spec.classes, spec.pooling)
        case "segmenter":
            return heads.Segmenter(encoder, spec.classes, spec.head)
        case "change":
            return heads.ChangeDetector(encoder, spec.head)
        case _:
            return encoder


# --- on disk -------------------------------------------------------------------------------


def load(path: Path) -> nn.Module:
    """The model in a checkpoint folder of ours or in a published file, on the CPU, in evaluation mode.

    A `.safetensors` beside a card of ours is that model with other weights: `checkpoint-last/average.safetensors`.
    Raises SourceError.
    """
    if not transfer.has_card(path):
        state = transfer.read_weights(path)
        model = build(infer(state, where=str(path)))
        report = transfer.fit(model, state, at_least=1.0, where=str(path))
        if report.missing:  # `fit` counts the encoder alone; here nobody would train the rest
            lacking = report.missing
            told = f"{len(lacking)} weights of the {describe(model).kind} are missing (first, {lacking[0]})"
            raise SourceError(f"{path}: {told}; fill a model of your own with fitting.fit")
        return model.eval()
    card = read(path)
    # No memory and no random draws for weights that are replaced at once; but timm's models also compute tables.
    with torch.device("meta" if card.model.recipe is None else "cpu"):
        model = build(card.model)
    try:
        model.load_state_dict(weight_files.read_safetensors(path / WEIGHTS if path.is_dir() else path), assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: weights do not fit the card ({why:.200}); save the model again") from None
    return model.eval()


def read(path: Path) -> Card:
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


# --- from run to run -----------------------------------------------------------------------


def of_run(model: nn.Module, contract: Contract, how: normalise.Normalisation, recipe: Any) -> Card:
    """What a checkpoint of a training says of itself."""
    return Card(
        model=describe(model),
        contract=contract,
        normalisation=how,
        recipe=files.plain(recipe),
        commit=checkpoint_folder.commit(),
    )


def fill(
    model: nn.Module,
    weights: Path,
    contract: Contract,
    how: normalise.Normalisation,
    *,
    accept: Sequence[str],
    tables: transfer.Tables = "interpolate",
) -> transfer.Report:
    """Fill `model` from `weights`. Raises SettingError naming each difference that `accept` does not waive.

    Published `.pth` files hold no contract, so nothing can be compared with them; that is logged.
    """
    if transfer.has_card(weights):
        card = read(weights)
        compare(card, contract, how, accept=accept)
        # Weights of the same kind bring their head, whose outputs mean classes.
        if card.contract is not None and card.model.kind == describe(model).kind:
            _compare_classes(contract.label_space, card.contract.label_space, accept)
    else:
        log.warning("%s: holds no contract; bands, level and normalisation are taken on trust", weights)
    wavelengths = [band.wavelength_nm for band in contract.bands]
    state = transfer.read_weights(weights)
    report = transfer.fit(model, state, wavelengths=wavelengths, tables=tables, where=str(weights))
    counts = map(len, (report.matched, report.resized, report.missing))
    log.info("%s: %d weights taken, %d resized, %d new", weights.name, *counts)
    if report.resized:
        log.info("%s: made to fit: %s", weights.name, ", ".join(report.resized))
    return report


def compare(card: Card, contract: Contract, how: normalise.Normalisation, *, accept: Sequence[str]) -> None:
    """Refuse data or a normalisation other than the weights were trained with. Raises SettingError.

    Weights that saw every band go to data that lack some: what stands in their places is the recipe's to say. Those
    that saw a stand-in go to data with the same one.
    """
    if card.contract is not None:
        # Contracts know nothing of the normalisation, which only a checkpoint has.
        known = [name for name in accept if name != "normalisation"]
        # Without its empty groups a model looks at fewer bands than the weights did, and at each as they did.
        names = {band.name for band in (contract if how.missing == "drop-group" else card.contract).bands}
        theirs = replace(card.contract, bands=tuple(band for band in card.contract.bands if band.name in names))
        contracts.require(contract, theirs, "fine-tune", known)
    if card.normalisation is None or "normalisation" in accept:
        return
    filled = ("missing", "absent") if card.normalisation.absent else ()
    fields = ("scheme", "eps", "mean", "std", "before_crop", *filled)
    differ = [name for name in fields if getattr(card.normalisation, name) != getattr(how, name)]
    if not differ:
        return
    told = "; ".join(
        f"{name} is {getattr(how, name)!r:.60}, was {getattr(card.normalisation, name)!r:.60}" for name in differ
    )
    raise SettingError(f"normalisation differs from the weights': {told}; accept = ['normalisation'] waives this")


def _compare_classes(ours: LabelSpace, theirs: LabelSpace, accept: Sequence[str]) -> None:
    if (ours.ids, ours.names) != (theirs.ids, theirs.names) and "label_space" not in accept:
        raise SettingError(
            f"label_space is '{ours.name}' ({len(ours.ids)} classes), the weights were trained for '{theirs.name}' "
            f"({len(theirs.ids)} classes); accept = ['label_space'] takes all but a head of another size"
        )


# --- published weights ---------------------------------------------------------------------


def infer(state: State, *, where: str) -> ModelSpec:
    """The model that published weights belong to, from their names and shapes. Raises SourceError.

    Three things leave no trace there: the width of a head, taken as 64 in the encoder and 32 in the decoder (80 in the
    huge model); the number of groups behind a joint position table, taken as that of 12 bands if that can be; and
    several times, which are taken as so many times the bands.
    """
    state = weight_files.plain(state)
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
    if joint:
        rows = state["pos_embed"].shape[1]
        groups = next(n for n in (max(12 // group_bands, 1), *range(1, rows + 1)) if n * isqrt(rows // n) ** 2 == rows)
        places = rows // groups
    else:
        groups, places = state["pos_embed_temporal"].shape[1], state["pos_embed_spatial"].shape[1]
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
        class_token="cls_token" in state,
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
