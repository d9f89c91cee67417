"""Build a backbone from the table [model] of a recipe: SpectralGPT, or any of the baselines."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgdata.errors import SettingError
from sgmodel.models import backbones, pixel_backbone, spectralgpt, unet, upernet, weight_adaptation
from sgmodel.models import encoder as enc
from sgmodel.models.satmae import SatMAE, SatmaeConfig
from sgmodel.models.token_reduction import TokenReduction

Options = dict[str, int | float | bool | str | tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The table [model] of a downstream recipe.

    Attributes:
        backbone: "spectralgpt" (with [model.encoder]), "satmae" (with [model.satmae]), "linear", "unet",
            "statistics" or "random-features" (of whole images), or "timm:NAME" for any backbone of timm.
        encoder: Size of the SpectralGPT encoder.
        satmae: Size of the SatMAE encoder.
        head: Widths of the dense head; None for the released ones.
        pooling: Pooling of SpectralGPT's tokens into the vector of a scene: the mean, the released one, or the class
            token.
        reduction: Reduction of tokens for the deeper blocks of SpectralGPT; unset for all.
        image_px: Side of the images that "linear", "unet" and timm's models take; 0 for any.
        widths: Channels of the U-Net, finest first.
        first_layer: Adaptation of a first layer over red, green and blue to other bands, when such weights are loaded.
        options: Settings passed to timm's model, or `features` and `kernel_px` of "random-features".
    """

    backbone: str
    encoder: enc.EncoderConfig | None = None
    satmae: SatmaeConfig | None = None
    head: upernet.HeadConfig | None = None
    pooling: spectralgpt.Pooling = "mean"
    reduction: TokenReduction | None = None
    image_px: int = 0
    widths: tuple[int, ...] = (32, 64, 128, 256)
    first_layer: weight_adaptation.FirstLayer = "mean-scaled"
    options: Options = field(default_factory=dict)

    @property
    def px(self) -> int:
        """Side of the images that the model takes; 0 for any."""
        own = self.encoder or self.satmae
        return self.image_px if own is None else own.image_px


def backbone(recipe: ModelRecipe, bands: int) -> backbones.Backbone:
    """Build the recipe's backbone with fresh weights.

    Args:
        recipe: The table [model].
        bands: Number of bands of the images.

    Returns:
        The backbone, without a head.

    Raises:
        SettingError: The backbone is unknown, lacks its table, or does not take `bands` bands.
    """
    if recipe.backbone == "spectralgpt":
        return spectralgpt.SpectralGPT(_encoder(recipe, bands), recipe.pooling, recipe.reduction)
    return baseline(recipe, bands)


def baseline(recipe: ModelRecipe, bands: int) -> backbones.Backbone:
    """Build a backbone other than SpectralGPT. Raises SettingError, as `backbone`."""
    if recipe.reduction is not None:
        raise SettingError(f"model.reduction is set, model.backbone is {recipe.backbone!r}: only 'spectralgpt' has it")
    kind, _, name = recipe.backbone.partition(":")
    match kind:
        case "linear":
            return pixel_backbone.PixelBackbone(bands)
        case "unet":
            return unet.UNet(bands, recipe.widths)
        case "statistics":
            from sgmodel.models import image_statistics  # of no use to other backbones

            return image_statistics.ImageStatistics(bands)
        case "random-features":
            from sgmodel.models import random_features

            return random_features.RandomFeatures(bands, **random_features.sizes(recipe.options))
        case "satmae" if recipe.satmae is not None:
            return SatMAE(recipe.satmae, bands)
        case "timm":
            # Only here, for timm takes seconds to import and SpectralGPT does without it.
            from sgmodel.models.timm_backbone import TimmBackbone

            return TimmBackbone(name, bands, recipe.image_px, recipe.options)
    known = "'satmae' with a table [model.satmae], 'linear', 'unet', 'statistics', 'random-features' or 'timm:NAME'"
    if kind != "spectralgpt":
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
