"""The card of a checkpoint: how to build the model, what its inputs and outputs are, and how it was trained."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgdata import files, recipe_settings
from sgdata.errors import SettingError, SourceError
from sgdata.shards import contracts
from sgdata.types import DISPLAY, Contract, LabelSpace
from sgmodel.checkpoints import checkpoint_folder, load_weights, weight_files
from sgmodel.checkpoints.checkpoint_folder import CARD, WEIGHTS
from sgmodel.checkpoints.weight_files import State
from sgmodel.data import normalise
from sgmodel.models import encoder as enc
from sgmodel.models import heads, mae, specs, upernet
from sgmodel.models.factory import ModelRecipe

FORMAT = 3
# Format 2 has some settings under other names, see `recipe_settings.RENAMED_KEYS`.
READABLE = (2, FORMAT)
# Sizes in a card beyond which it is damaged: of the models here, the huge one has a width of 1280 and 32 blocks, and
# MoCo compares with a queue of 65,536 views (He et al., CVPR 2020).
LARGEST_SIZE = 8192
LARGEST = {"depth": 256, "queue": 2**20}
log = logging.getLogger("sgdata.model")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Content of `card.json`, which travels with weights.

    Attributes:
        format: Version of the card's format.
        model: How to build the model.
        contract: Bands, processing level, label space and splits of the training data; None for weights made
            elsewhere.
        normalisation: How stored pixels become inputs.
        recipe: Recipe of the training run.
        commit: Git commit of the code that trained the model.
    """

    format: int = FORMAT
    model: specs.ModelSpec
    contract: Contract | None = None
    normalisation: normalise.Normalisation | None = None
    recipe: dict[str, Any] | None = None
    commit: str | None = None


# --- on disk -------------------------------------------------------------------------------


def load(path: Path) -> nn.Module:
    """Load a model on the CPU in evaluation mode.

    Args:
        path: A checkpoint folder, a `.safetensors` file beside a card (such as `checkpoint-last/ema.safetensors`),
            or a released file of SpectralGPT.

    Returns:
        The model with its trained weights: an `Encoder`, a `MaskedAutoencoder`, a `ContrastiveModel` or a model for a
        task.

    Raises:
        SourceError: The files are missing, damaged, or do not fit together.
    """
    if not load_weights.has_card(path):
        return _load_released(path)
    card = read(path)
    # No memory and no random draws for weights that are replaced at once; but baselines also compute tables.
    recipe = getattr(card.model, "recipe", None)
    meta = recipe is None or recipe.backbone == "spectralgpt"
    _check_sizes(card, path)
    try:
        with torch.device("meta" if meta else "cpu"):
            model = card.model.build()
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AssertionError) as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: the card describes no model ({why:.200}); save the model again") from None
    try:
        model.load_state_dict(weight_files.read_safetensors(path / WEIGHTS if path.is_dir() else path), assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise SourceError(f"{path}: weights do not fit the card ({why:.200}); save the model again") from None
    return model.eval()


def _check_sizes(card: ModelCard, path: Path) -> None:
    """Refuse a card with sizes of no model, before memory is taken for them. Raises SourceError."""
    pending: list[tuple[str, Any]] = [("model", files.to_plain(card.model))]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(name, item) for item in value]
        elif isinstance(value, int) and not 0 <= value <= LARGEST.get(name, LARGEST_SIZE):
            raise SourceError(f"{path}: the card gives {name} = {value}, no size of a model; save the model again")


def _load_released(path: Path) -> nn.Module:
    state = load_weights.read_weights(path)
    spec = infer(state, origin=str(path))
    model = spec.build()
    report = load_weights.fit(model, state, at_least=1.0, origin=str(path))
    check_complete(report, spec.kind, path)
    return model.eval()


def check_complete(report: load_weights.TransferReport, kind: str, path: Path) -> None:
    """Refuse weights that do not fill a model: `load_weights.fit` counts the encoder alone. Raises SourceError."""
    if report.missing:
        raise SourceError(
            f"{path}: {len(report.missing)} weights of the {kind} are missing (first, {report.missing[0]}); "
            "fill a model of your own with transfer.fit"
        )


def read(path: Path) -> ModelCard:
    """Read the card of a checkpoint.

    Args:
        path: A checkpoint folder, or a file of weights beside `card.json`.

    Returns:
        The card.

    Raises:
        SourceError: The card is missing, invalid, or of another format.
    """
    folder = path.parent if path.is_file() else path
    path = files.require_file(folder / CARD, f"a checkpoint folder with {WEIGHTS} and {CARD}")
    try:
        document = files.read_plain(path)
        # First, since a card of another format lacks keys, of which a message would not help.
        version = document.get("format", FORMAT)
        if version not in READABLE:
            raise SourceError(
                f"{path}: format {version!r:.20}, this version reads {' and '.join(map(str, READABLE))}; "
                "use the version of sgmodel that wrote it"
            )
        document = recipe_settings.with_current_names(document) | {"format": FORMAT}
        return files.parse(ModelCard, document, str(path))
    except SettingError as error:
        raise SourceError(str(error)) from None


# --- from run to run -----------------------------------------------------------------------


def make_card(model: nn.Module, contract: Contract, normalisation: normalise.Normalisation, recipe: Any) -> ModelCard:
    """Return the card of a model in training.

    Args:
        model: The model, not wrapped for several processes.
        contract: Contract of the input bands of the model.
        normalisation: Normalisation of the stored pixels.
        recipe: Recipe of the run, a frozen dataclass.
    """
    return ModelCard(
        model=specs.describe(model),
        contract=contract,
        normalisation=normalisation,
        recipe=files.to_plain(recipe),
        commit=checkpoint_folder.commit(),
    )


def fill(
    model: nn.Module,
    weights: Path,
    contract: Contract,
    normalisation: normalise.Normalisation,
    *,
    accept: Sequence[str],
    tables: load_weights.Tables = "interpolate",
) -> load_weights.TransferReport:
    """Fill `model` from `weights`, in place, after comparing its data with those the weights were trained on.

    Released `.pth` files have no contract to compare with, which is logged.

    Args:
        model: The model to fill.
        weights: A checkpoint folder or a file of weights.
        contract: Contract of the input bands of the model.
        normalisation: Normalisation of the stored pixels.
        accept: Names of contract fields (and "normalisation") that may differ.
        tables: Whether position tables of another image size are interpolated or drawn anew.

    Raises:
        SettingError: The data differ in a field that `accept` does not name.
        SourceError: The weights cannot be read, or too few of them fit.
    """
    if load_weights.has_card(weights):
        card = read(weights)
        compare(card, contract, normalisation, accept=accept)
        # Weights of the same kind bring their head, whose outputs mean classes.
        if card.contract is not None and card.model.kind == specs.describe(model).kind:
            _compare_classes(contract.label_space, card.contract.label_space, accept)
    else:
        log.warning("%s: holds no contract; bands, level and normalisation are taken on trust", weights)
    wavelengths = [band.wavelength_nm for band in contract.bands]
    state = load_weights.read_weights(weights)
    if contract.level == DISPLAY and not load_weights.has_card(weights) and _takes_reflectance(state):
        raise SettingError(
            f"{weights}: SpectralGPT or SatMAE weights, which take reflectance; the level of '{contract.dataset}' is "
            f"{DISPLAY}, 8-bit images for display; start without --weights, or from weights trained on such images"
        )
    report = load_weights.fit(model, state, wavelengths=wavelengths, tables=tables, origin=str(weights))
    matched, resized, missing = len(report.matched), len(report.resized), len(report.missing)
    log.info("%s: %d weights taken, %d resized, %d new", weights.name, matched, resized, missing)
    if report.resized:
        log.info("%s: resized: %s", weights.name, ", ".join(report.resized))
    return report


def compare(
    card: ModelCard, contract: Contract, normalisation: normalise.Normalisation, *, accept: Sequence[str]
) -> None:
    """Check that the data and their normalisation are those that the weights were trained with.

    Weights trained on every band may go to data without some, which the recipe says how to replace. Weights trained
    with a replacement need the same one.

    Raises:
        SettingError: They differ in a field that `accept` does not name.
    """
    if card.contract is not None:
        # "normalisation" is no field of a contract.
        accepted = [name for name in accept if name != "normalisation"]
        # A model without its empty groups uses fewer bands than the weights did, each in the same way.
        names = {band.name for band in (contract if normalisation.missing == "drop-group" else card.contract).bands}
        theirs = replace(card.contract, bands=tuple(band for band in card.contract.bands if band.name in names))
        contracts.require(contract, theirs, "fine-tune", accepted)
    if card.normalisation is None or "normalisation" in accept:
        return
    fields = ["scheme", "eps", "mean", "std", "before_crop", "fill"]
    if card.normalisation.absent:
        fields += ["missing", "absent"]
    differ = [name for name in fields if getattr(card.normalisation, name) != getattr(normalisation, name)]
    if differ:
        values = [
            f"{name} is {getattr(normalisation, name)!r:.60}, was {getattr(card.normalisation, name)!r:.60}"
            for name in differ
        ]
        listed = "; ".join(values)
        raise SettingError(f"normalisation differs from the weights': {listed}; accept = ['normalisation'] waives this")


def _compare_classes(ours: LabelSpace, theirs: LabelSpace, accept: Sequence[str]) -> None:
    if (ours.ids, ours.names) != (theirs.ids, theirs.names) and "label_space" not in accept:
        raise SettingError(
            f"label_space is '{ours.name}' ({len(ours.ids)} classes), the weights were trained for '{theirs.name}' "
            f"({len(theirs.ids)} classes); accept = ['label_space'] takes all but a head of another size"
        )


# --- released weights ----------------------------------------------------------------------


def _takes_reflectance(state: State) -> bool:
    """Return whether released weights embed spectral groups, as SpectralGPT (3D) and SatMAE (one per group) do."""
    embeds = ((name, value) for name, value in state.items() if "patch_embed" in name and name.endswith("proj.weight"))
    return any(value.ndim == 5 or re.search(r"patch_embed\.\d", name) for name, value in embeds)


def infer(state: State, *, origin: str) -> specs.ModelSpec:
    """Return the spec of the model that released weights belong to.

    Some settings leave no trace in names and shapes and are assumed: the width of an attention head is 64 in the
    encoder (80 in the huge model) and 32 in the decoder; a joint position table has the groups of 12 bands if its
    rows allow that; several times are taken for as many times the bands.

    Args:
        state: Weights by name.
        origin: Name of the file for messages.

    Raises:
        SourceError: The weights are not those of a SpectralGPT model.
    """
    state = weight_files.normalise_names(state)
    try:
        encoder = _encoder(state)
        if "mask_token" in state:
            return specs.AutoencoderSpec(encoder=encoder, decoder=_decoder(state), objective=mae.MaskedObjective())
        if "cls_seg.0.weight" in state:
            classes = state["cls_seg.0.weight"].shape[0]
            recipe = ModelRecipe(backbone="spectralgpt", encoder=encoder, head=_head(state))
            kind: heads.Kind = "change" if classes == 2 else "segmenter"
            return specs.TaskSpec(kind=kind, recipe=recipe, bands=encoder.bands, classes=classes)
        if "head.weight" in state:
            classes = state["head.weight"].shape[0]
            recipe = ModelRecipe(backbone="spectralgpt", encoder=encoder, pooling="released")
            return specs.TaskSpec(kind="classifier", recipe=recipe, bands=encoder.bands, classes=classes)
    except (KeyError, ValueError) as error:
        raise SourceError(
            f"{origin}: not the weights of a SpectralGPT model ({error} is missing or has an odd shape); fetch it again"
        ) from None
    return specs.EncoderSpec(encoder=encoder)


def _decoder(state: State) -> mae.DecoderConfig:
    width = state["mask_token"].shape[-1]
    return mae.DecoderConfig(width=width, depth=_depth(state, "decoder_blocks"), heads=max(width // 32, 1))


def _encoder(state: State) -> enc.EncoderConfig:
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
        pos_embed="joint" if joint else "separate",
        class_token="cls_token" in state,
    )


def _head(state: State) -> upernet.HeadConfig:
    spread = [state[f"conv{i}.3.weight"].shape for i in range(3)]  # transposed: (hidden, level, k, k)
    return upernet.HeadConfig(
        levels=(spread[0][1], spread[1][1], spread[2][1], state["conv3.0.weight"].shape[0]),
        hidden=(spread[0][0], spread[1][0], spread[2][0]),
        width=state["decoder.fuse_all.0.weight"].shape[0],
    )


def _depth(state: State, blocks: str) -> int:
    # By the last one, so that a block that is missing before it is named.
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith(f"{blocks}.")), default=-1)
    if not 0 < depth <= LARGEST["depth"]:
        raise ValueError(f"{blocks}.{max(depth - 1, 0)}")
    return depth
