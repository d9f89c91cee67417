"""From the table [model] of a recipe to a model: SpectralGPT, or a baseline around any backbone, for each task.

SpectralGPT's own models lie in `heads`, whose state-dict keys are the published ones; here are those of
the baselines, and the functions that every program builds its model with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError
from sgmodel.models import adapt, backbones, contrastive, heads, upernet
from sgmodel.models import encoder as enc
from sgmodel.models.satmae import GroupVit, SatmaeConfig

Options = dict[str, int | float | bool | str | tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The table [model] of a downstream recipe.

    `backbone` is "spectralgpt" (with [model.encoder]), "satmae" (with [model.satmae]), "linear", "unet" (`widths` are
    its channels, finest first), or "timm:NAME" for any backbone of timm, whose own settings are `options`. `image_px`
    is the side of the images that the last three take (0: any). `first_layer` counts only where weights of another
    number of bands are loaded.
    """

    backbone: str
    encoder: enc.EncoderConfig | None = None
    satmae: SatmaeConfig | None = None
    head: upernet.HeadConfig | None = None
    pooling: heads.Pooling = "mean"
    image_px: int = 0
    widths: tuple[int, ...] = (32, 64, 128, 256)
    first_layer: adapt.FirstLayer = "mean-scaled"
    options: Options = field(default_factory=dict)

    @property
    def px(self) -> int:
        """Side of the images that the model takes; 0: any."""
        own = self.encoder or self.satmae
        return self.image_px if own is None else own.image_px


def classifier(recipe: ModelRecipe, *, bands: int, classes: int) -> nn.Module:
    """Images (N, C, H, W) -> logits (N, classes). Raises SettingError."""
    if recipe.backbone == "spectralgpt":
        return heads.SceneClassifier(_encoder(recipe, bands), classes, recipe.pooling)
    return BaselineClassifier(recipe, bands, classes)


def segmenter(recipe: ModelRecipe, *, bands: int, classes: int) -> nn.Module:
    """Images (N, C, H, W) -> logits (N, classes, H, W). Raises SettingError."""
    if recipe.backbone == "spectralgpt":
        return heads.Segmenter(_encoder(recipe, bands), classes, recipe.head)
    return BaselineSegmenter(recipe, bands, classes)


def detector(recipe: ModelRecipe, *, bands: int) -> nn.Module:
    """Two dates (N, C, H, W) each -> log-probabilities (N, 2, H, W) of no change and change. Raises SettingError."""
    if recipe.backbone == "spectralgpt":
        return heads.ChangeDetector(_encoder(recipe, bands), recipe.head)
    return BaselineDetector(recipe, bands, 2)


def contrast(recipe: ModelRecipe, objective: contrastive.Objective, *, bands: int) -> contrastive.Contrast:
    """Two views (N, C, H, W) each -> the loss. Raises SettingError."""
    return contrastive.Contrast(backbone(recipe, bands), objective, recipe=recipe, bands=bands)


def backbone(recipe: ModelRecipe, bands: int) -> backbones.Backbone:
    """The recipe's baseline with fresh weights. Raises SettingError."""
    kind, _, name = recipe.backbone.partition(":")
    match kind:
        case "linear":
            return backbones.Pixels(bands)
        case "unet":
            return backbones.UNet(bands, recipe.widths)
        case "satmae" if recipe.satmae is not None:
            return GroupVit(recipe.satmae, bands)
        case "timm":
            # Only here, for timm takes seconds to import and SpectralGPT does without it.
            from sgmodel.models.timm_backbone import TimmBackbone

            return TimmBackbone(name, bands, recipe.image_px, recipe.options)
    known = "'satmae' with a table [model.satmae], 'linear', 'unet' or 'timm:NAME'"
    if kind != "spectralgpt":  # which has a program of its own for pretraining
        known = f"'spectralgpt', {known}"
    raise SettingError(f"model.backbone is {recipe.backbone!r}: expected {known}")


def _encoder(recipe: ModelRecipe, bands: int) -> enc.Encoder:
    if recipe.encoder is None:
        raise SettingError("model.backbone is 'spectralgpt': expected a table [model.encoder] in the recipe; add one")
    if recipe.encoder.image_bands != bands:
        raise SettingError(
            f"the model takes {recipe.encoder.image_bands} bands, the recipe names {bands}: change either"
        )
    return enc.Encoder(recipe.encoder)


# --- baselines --------------------------------------------------------------------------------


class Baseline(nn.Module):
    """A backbone and the recipe that it was made from, which a checkpoint's card repeats."""

    def __init__(self, recipe: ModelRecipe, bands: int, classes: int) -> None:
        super().__init__()
        self.recipe, self.bands, self.classes = recipe, bands, classes
        self.backbone = backbone(recipe, bands)


class BaselineClassifier(Baseline):
    """The backbone's vector, then one linear layer."""

    def __init__(self, recipe: ModelRecipe, bands: int, classes: int) -> None:
        super().__init__(recipe, bands, classes)
        self.head = nn.Linear(self.backbone.width, classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D), what the linear layer sees."""
        return self.backbone.pooled(images)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes) logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def dense_head(backbone: backbones.Backbone, classes: int, config: upernet.HeadConfig) -> nn.Module:
    """Class scores from the maps: `UperHead` on four of them, one linear layer per place on a single one."""
    if len(backbone.channels) == 1:
        return nn.Conv2d(backbone.channels[0], classes, 1)
    return upernet.UperHead(backbone.channels, classes, config, backbone.scales)


def dense_scores(head: nn.Module, maps: list[Tensor], size: torch.Size) -> Tensor:
    """(N, classes, *size), enlarged where the finest map is coarser than the image."""
    scores: Tensor = head(maps if len(maps) > 1 else maps[0])
    return upernet.resize(scores, size)


class BaselineSegmenter(Baseline):
    """The backbone's maps through SpectralGPT's own dense head, or one linear layer where there is a single map."""

    def __init__(self, recipe: ModelRecipe, bands: int, classes: int) -> None:
        super().__init__(recipe, bands, classes)
        self.backbone.only_maps()
        config = recipe.head or upernet.HeadConfig()
        self.head = dense_head(self.backbone, classes, config)
        self.skip = upernet.shortcut(bands, classes, config.skip) if config.skip else None

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes, H, W) logits."""
        logits = dense_scores(self.head, self.backbone.maps(images), images.shape[-2:])
        return logits if self.skip is None else logits + self.skip(images)


class BaselineDetector(Baseline):
    """Both dates through one backbone; the signed differences of their maps through the dense head."""

    def __init__(self, recipe: ModelRecipe, bands: int, classes: int) -> None:
        super().__init__(recipe, bands, classes)
        self.backbone.only_maps()
        self.head = dense_head(self.backbone, classes, recipe.head or upernet.HeadConfig(dropout_levels=0.0))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Two (N, C, H, W) -> (N, 2, H, W) log-probabilities."""
        pairs = zip(self.backbone.maps(before), self.backbone.maps(after), strict=True)
        scores = dense_scores(self.head, [old - new for old, new in pairs], before.shape[-2:])
        return functional.log_softmax(scores, dim=1)
