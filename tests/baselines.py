"""Settings of every baseline at the smallest size, for images of 32 px."""

from __future__ import annotations

from typing import Any

from sgmodel.models import encoder, factory, heads, satmae, specs, upernet

HEAD = upernet.HeadConfig(
    levels=(8, 8, 8, 8), hidden=(8, 8, 8), width=8, groups_levels=4, groups=4, dropout_levels=0.0, dropout=0.0
)
VIT: factory.Options = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
SWIN: factory.Options = {"window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
RESNET: factory.Options = {"base_width": 8, "layers": (1, 1, 1, 1), "channels": (16, 16, 16, 16)}
GROUPS = ((1, 2, 3, 7), (4, 5, 6, 8), (10, 11))
ENCODER = encoder.EncoderConfig(image_px=32, width=16, depth=2, heads=2)

BASELINES = {
    "spectralgpt": factory.ModelRecipe(backbone="spectralgpt", encoder=ENCODER, head=HEAD),
    "mae": factory.ModelRecipe(
        backbone="spectralgpt",
        head=HEAD,
        encoder=encoder.EncoderConfig(image_px=32, group_bands=12, width=16, depth=2, heads=2),
    ),
    "linear": factory.ModelRecipe(backbone="linear"),
    "statistics": factory.ModelRecipe(backbone="statistics"),
    "random-features": factory.ModelRecipe(backbone="random-features", options={"features": 8}),
    "unet": factory.ModelRecipe(backbone="unet", widths=(8, 16)),
    "satmae": factory.ModelRecipe(
        backbone="satmae",
        head=HEAD,
        satmae=satmae.SatmaeConfig(groups=GROUPS, image_px=32, width=24, group_width=8, depth=2, heads=2),
    ),
    "resnet": factory.ModelRecipe(backbone="timm:resnet50", image_px=32, head=HEAD, options=RESNET),
    "vit": factory.ModelRecipe(backbone="timm:vit_base_patch16_224", image_px=32, head=HEAD, options=VIT),
    "beit": factory.ModelRecipe(backbone="timm:beit_base_patch16_224", image_px=32, head=HEAD, options=VIT),
    "swin": factory.ModelRecipe(backbone="timm:swin_tiny_patch4_window7_224", image_px=32, head=HEAD, options=SWIN),
}


def spectralgpt(config: encoder.EncoderConfig, **settings: Any) -> factory.ModelRecipe:
    """Return the recipe of a model around the SpectralGPT encoder of `config`."""
    return factory.ModelRecipe(backbone="spectralgpt", encoder=config, **settings)


def build(kind: heads.Kind, recipe: factory.ModelRecipe, bands: int = 12, classes: int = 2) -> Any:
    """Return a fresh model of `kind`."""
    return specs.TaskSpec(kind=kind, recipe=recipe, bands=bands, classes=classes).build()
