"""Specs of models for the cards of checkpoints: one frozen dataclass for each kind of model.

A spec builds its model (`build`) and is read off a built one (`describe`). A new kind of model is its own file and a
spec here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from torch import nn

from sgmodel.models import contrastive, factory, heads, mae, spectralgpt
from sgmodel.models import encoder as enc
from sgmodel.models.factory import ModelRecipe


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A SpectralGPT encoder alone.

    Attributes:
        kind: Kind of model.
        encoder: Configuration of the encoder.
    """

    kind: Literal["encoder"] = "encoder"
    encoder: enc.EncoderConfig

    @property
    def px(self) -> int:
        """Side of the images that the model takes."""
        return self.encoder.image_px

    def build(self) -> nn.Module:
        """Build the model with fresh weights."""
        return enc.Encoder(self.encoder)

    @classmethod
    def describe(cls, model: nn.Module) -> Self | None:
        """Return the spec of an `Encoder`; None for another model.

        Args:
            model: The model, not wrapped for several processes.
        """
        return cls(encoder=model.config) if isinstance(model, enc.Encoder) else None


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """SpectralGPT as pretrained.

    Attributes:
        kind: Kind of model.
        encoder: Configuration of the encoder.
        decoder: Configuration of the decoder.
        objective: Masking and loss.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    encoder: enc.EncoderConfig
    decoder: mae.DecoderConfig
    objective: mae.MaskedObjective

    @property
    def px(self) -> int:
        """Side of the images that the model takes."""
        return self.encoder.image_px

    def build(self) -> nn.Module:
        """Build the model with fresh weights."""
        return mae.MaskedAutoencoder(enc.Encoder(self.encoder), self.decoder, self.objective)

    @classmethod
    def describe(cls, model: nn.Module) -> Self | None:
        """Return the spec of a `MaskedAutoencoder`; None for another model.

        Args:
            model: The model, not wrapped for several processes.
        """
        if not isinstance(model, mae.MaskedAutoencoder):
            return None
        return cls(encoder=model.config, decoder=model.decoder, objective=model.objective)


@dataclass(frozen=True, kw_only=True)
class ContrastSpec:
    """A backbone as pretrained by contrast.

    Attributes:
        kind: Kind of model.
        recipe: The backbone.
        bands: Number of input bands.
        objective: Augmentation of views and loss.
    """

    kind: Literal["contrast"] = "contrast"
    recipe: ModelRecipe
    bands: int
    objective: contrastive.ContrastiveObjective

    @property
    def px(self) -> int:
        """Side of the images that the model takes; 0 for any."""
        return self.recipe.px

    def build(self) -> contrastive.ContrastiveModel:
        """Build the model with fresh weights. Raises SettingError where the recipe fits no backbone."""
        model = contrastive.ContrastiveModel(factory.backbone(self.recipe, self.bands), self.objective)
        model.recipe = self.recipe
        return model

    @classmethod
    def describe(cls, model: nn.Module) -> Self | None:
        """Return the spec of a `ContrastiveModel`; None for another model.

        Args:
            model: The model, not wrapped for several processes.

        Raises:
            TypeError: The backbone was built by hand, and the model has no `recipe`.
        """
        if not isinstance(model, contrastive.ContrastiveModel):
            return None
        return cls(recipe=_recipe_of(model), bands=model.backbone.bands, objective=model.objective)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Any backbone with the head of a task.

    Attributes:
        kind: The task.
        recipe: The table [model] of a recipe.
        bands: Number of bands of the images.
        classes: Number of classes; 2 for change.
        probe: Whether the head is that of a linear probe.
    """

    kind: heads.Kind
    recipe: ModelRecipe
    bands: int
    classes: int = 2
    probe: bool = False

    @property
    def images(self) -> int:
        """Number of images that one forward pass takes per sample."""
        return heads.MODELS[self.kind].images

    @property
    def px(self) -> int:
        """Side of the images that the model takes; 0 for any."""
        return self.recipe.px

    def build(self) -> heads.TaskModel:
        """Build the model with fresh weights. Raises SettingError where recipe and bands do not fit."""
        backbone, head = factory.backbone(self.recipe, self.bands), self.recipe.head
        model = heads.build(self.kind, backbone, self.classes, head)
        model.recipe = self.recipe
        if self.probe:
            heads.probe(model)
        return model

    @classmethod
    def describe(cls, model: nn.Module) -> Self | None:
        """Return the spec of a model for a task; None for another model.

        Args:
            model: The model, not wrapped for several processes.

        Raises:
            TypeError: The backbone is a baseline that was built by hand, and the model has no `recipe`.
        """
        if not isinstance(model, heads.TaskModel):
            return None
        return cls(
            kind=model.kind,
            recipe=_recipe_of(model),
            bands=model.backbone.bands,
            classes=model.classes,
            probe=isinstance(model.head, heads.Probe),
        )


# A plain union: pydantic distinguishes its members by `kind`, and training must not import pydantic.
ModelSpec = EncoderSpec | AutoencoderSpec | ContrastSpec | TaskSpec


def describe(model: nn.Module) -> ModelSpec:
    """Return the spec from which `build` makes `model` again, with other weights.

    Args:
        model: The model, not wrapped for several processes.

    Raises:
        TypeError: The model is of no known kind, such as one that is still wrapped for several processes, or its
            backbone was built by hand.
    """
    kinds: tuple[Any, ...] = get_args(ModelSpec)
    for kind in kinds:
        spec: ModelSpec | None = kind.describe(model)
        if spec is not None:
            return spec
    raise TypeError(f"{type(model).__name__} is not a model that a card can describe; unwrap it before saving")


def _recipe_of(model: heads.TaskModel | contrastive.ContrastiveModel) -> ModelRecipe:
    """Return the recipe that the model was built from; that of SpectralGPT can also be read off the model."""
    if model.recipe is not None:
        return model.recipe
    backbone = model.backbone
    if not isinstance(backbone, spectralgpt.SpectralGPT):
        raise TypeError(f"{type(backbone).__name__} was built by hand; set `recipe` of the model before saving")
    head = model.head_config if isinstance(model, heads.TaskModel) else None
    return ModelRecipe(
        backbone="spectralgpt",
        encoder=backbone.encoder.config,
        pooling=backbone.pooling,
        reduction=backbone.reduction,
        head=head,
    )
