"""What a checkpoint's card says of a model: one frozen spec for each kind, from which the model is built again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from sgmodel.models import contrastive, factory, heads, mae
from sgmodel.models import encoder as enc
from sgmodel.models.factory import ModelRecipe


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A SpectralGPT encoder alone."""

    kind: Literal["encoder"] = "encoder"
    encoder: enc.EncoderConfig

    @property
    def px(self) -> int:
        """Side of the images that the model takes."""
        return self.encoder.image_px

    def build(self) -> nn.Module:
        """Build the model with fresh weights."""
        return enc.Encoder(self.encoder)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """SpectralGPT as pretrained: the encoder, its decoder, and what is masked and compared."""

    kind: Literal["autoencoder"] = "autoencoder"
    encoder: enc.EncoderConfig
    decoder: mae.DecoderConfig
    objective: mae.Objective

    @property
    def px(self) -> int:
        """Side of the images that the model takes."""
        return self.encoder.image_px

    def build(self) -> nn.Module:
        """Build the model with fresh weights."""
        return mae.MaskedAutoencoder(enc.Encoder(self.encoder), self.decoder, self.objective)


@dataclass(frozen=True, kw_only=True)
class ContrastSpec:
    """A baseline as pretrained by contrast."""

    kind: Literal["contrast"] = "contrast"
    recipe: ModelRecipe
    bands: int
    objective: contrastive.Objective

    @property
    def px(self) -> int:
        """Side of the images that the model takes; 0 for any."""
        return self.recipe.px

    def build(self) -> contrastive.Contrast:
        """Build the model with fresh weights. Raises SettingError where the recipe fits no baseline."""
        model = contrastive.Contrast(factory.baseline(self.recipe, self.bands), self.objective)
        model.recipe = self.recipe
        return model


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
    def px(self) -> int:
        """Side of the images that the model takes; 0 for any."""
        return self.recipe.px

    def build(self) -> heads.TaskModel:
        """Build the model with fresh weights. Raises SettingError where recipe and bands do not fit."""
        backbone, head = factory.backbone(self.recipe, self.bands), self.recipe.head
        model: heads.TaskModel
        match self.kind:
            case "classifier":
                model = heads.Classifier(backbone, self.classes)
            case "segmenter":
                model = heads.Segmenter(backbone, self.classes, head)
            case "change":
                model = heads.ChangeDetector(backbone, head)
        model.recipe = self.recipe
        if self.probe:
            heads.probe(model)
        return model


# A plain union: pydantic tells its members apart by `kind`, and training must not import pydantic.
ModelSpec = EncoderSpec | AutoencoderSpec | ContrastSpec | TaskSpec
