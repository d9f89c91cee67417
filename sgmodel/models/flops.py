"""Model FLOPs of a training step, counted from the configuration: matrix products only, one multiply-add is two.

The backward pass counts as twice the forward pass. Activations that are recomputed do not count, nor does the backward
pass of a frozen backbone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from sgmodel.models import backbones, heads, mae, satmae, specs, token_reduction, upernet
from sgmodel.models.encoder import EncoderConfig
from sgmodel.models.factory import ModelRecipe
from sgmodel.models.token_reduction import TokenReduction

TRAINED = 3
"""Passes through what is trained, in forward passes: one forward, and a backward pass of two."""


def training_sample(
    spec: specs.ModelSpec, px: int, *, mask_ratio: float = 0.0, passes: int = TRAINED, compared: int = 1
) -> float:
    """Return the FLOPs of one sample through forward and backward pass; both images of a pair count.

    Args:
        spec: The model.
        px: Side of the images in pixels.
        mask_ratio: Share of the tokens that an autoencoder masks.
        passes: Passes through the backbone: 3 if it is trained, 1 if it is frozen, 0 if its features are at hand.
        compared: Images whose views SimCLR compares at once.
    """
    match spec:
        case specs.EncoderSpec():
            return TRAINED * encoder(spec.encoder, spec.encoder.tokens)
        case specs.AutoencoderSpec():
            return TRAINED * _autoencoder(spec.encoder, spec.decoder, mask_ratio)
        case specs.ContrastSpec():
            return _contrast(spec, px, compared)
        case specs.TaskSpec():
            backbone, head, matching = task(spec, px)
            return passes * backbone + TRAINED * head + (matching if passes else 0)


def block(tokens: float, width: int, mlp_ratio: float) -> float:
    """Return the forward FLOPs of one transformer block on `tokens` tokens of one image."""
    return 4 * tokens * width**2 * (2 + mlp_ratio) + 4 * tokens**2 * width


def encoder(config: EncoderConfig, visible: int) -> float:
    """Return the forward FLOPs of the encoder on `visible` tokens of one image, which its class token joins."""
    embedded = 2 * visible * config.token_values * config.width
    return embedded + config.depth * block(visible + config.class_token, config.width, config.mlp_ratio)


def reduced_encoder(config: EncoderConfig, reduction: TokenReduction) -> tuple[float, float]:
    """Return the forward FLOPs of the encoder with fewer tokens in later blocks, and those of comparing tokens."""
    total, matching = 2.0 * config.tokens * config.token_values * config.width, 0.0
    before = config.side**2
    for tokens in token_reduction.plane_tokens(before, config.depth, reduction):
        if tokens != before:  # one half with the other
            matching += 2 * config.planes * (before // 2) * (before - before // 2) * config.width
        total += block(config.planes * tokens + config.class_token, config.width, config.mlp_ratio)
        before = tokens
    return total, matching


def _autoencoder(config: EncoderConfig, decoder: mae.DecoderConfig, mask_ratio: float) -> float:
    visible = mae.count_visible(config.tokens, mask_ratio)
    forward = encoder(config, visible) + 2 * (visible + config.class_token) * config.width * decoder.width
    forward += decoder.depth * block(config.tokens + config.class_token, decoder.width, decoder.mlp_ratio)
    return forward + 2 * config.tokens * decoder.width * config.token_values


def _contrast(spec: specs.ContrastSpec, px: int, compared: int) -> float:
    values = spec.objective.projection
    encoded = backbone(spec.recipe, spec.bands, px, dense=False)
    view = encoded.flops + 2 * encoded.channels[-1] * (encoded.channels[-1] + values)
    if spec.objective.method == "simclr":  # each of two views with those of all images
        return TRAINED * 2 * (view + 4 * compared * values)
    # The second view passes through the copy, which has no gradient; nor has the queue.
    return (TRAINED + 1) * view + 4 * spec.objective.queue * values


def task(spec: specs.TaskSpec, px: int) -> tuple[float, float, float]:
    """Return the forward FLOPs of one sample through a model for a task.

    Those of the backbone, of what is trained even if it is frozen, and of what never has a backward pass.

    Args:
        spec: The model.
        px: Side of the images in pixels.
    """
    images, dense = spec.images, heads.MODELS[spec.kind].dense
    encoded = backbone(spec.recipe, spec.bands, px, dense=dense)
    head = images * encoded.merge
    if not dense or spec.probe or len(encoded.channels) == 1:
        head += 2 * encoded.sides[-1] ** 2 * encoded.channels[-1] * spec.classes
    else:
        head += _dense_head(spec.recipe.head or upernet.HeadConfig(), encoded, spec.classes)
    if dense and spec.recipe.head is not None:
        config = spec.recipe.head
        width, further = config.skip, config.skip_layers - 1 + len(config.skip_dilations)
        head += 2 * px**2 * width * (9 * (images * spec.bands + further * width) + spec.classes)
    return images * encoded.flops, head, images * encoded.matching


def _dense_head(config: upernet.HeadConfig, encoded: BackboneCost, classes: int) -> float:
    """Return the forward FLOPs of `upernet.UperHead`."""
    width, coarsest = config.width, config.levels[-1]
    products, areas = 0, []
    sizes = zip(encoded.sides, encoded.channels, encoded.scales, config.levels, (*config.hidden, 0), strict=True)
    for side, channels, scale, level, hidden in sizes:
        # A convolution 1x1, and unless the scale is 1 a transposed one.
        products += side**2 * (channels * level if scale == 1 else hidden * (channels + level * scale**2))
        areas.append((side * scale) ** 2)
    for area, level in zip(areas[:-1], config.levels[:-1], strict=True):
        products += area * width * (level + width)  # lateral and smoothing units
    products += sum(parts**2 * coarsest * width for parts in upernet.POOLED)
    products += areas[3] * (coarsest + len(upernet.POOLED) * width) * width
    products += areas[2] * width**2  # the bridge
    products += areas[0] * width * (4 * width + 9 * classes)  # fusing unit, scores
    return 2 * products


# --- backbones -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BackboneCost:
    """Shapes of the output of a backbone for one image, and its FLOPs.

    The output is maps, finest first, or a vector, which is a map of one pixel.

    Attributes:
        flops: Forward FLOPs.
        channels: Channels of each map.
        sides: Side of each map.
        scales: Factor by which the dense head enlarges each map.
        merge: Forward FLOPs of a part that is trained even if the backbone is frozen.
        matching: Forward FLOPs of a part that has no backward pass, see `token_reduction`.
    """

    flops: float
    channels: tuple[int, ...]
    sides: tuple[int, ...] = (1,)
    scales: tuple[int, ...] = (1,)
    merge: float = 0.0
    matching: float = 0.0


def backbone(recipe: ModelRecipe, bands: int, px: int, *, dense: bool) -> BackboneCost:
    """Return what the backbone of a recipe makes of one image.

    Args:
        recipe: The table [model].
        bands: Number of bands of the images.
        px: Side of the images in pixels.
        dense: Whether maps are wanted, or a vector.
    """
    if recipe.encoder is not None and recipe.backbone == "spectralgpt":
        config = recipe.encoder
        # One weight per plane merges the planes of a place.
        merge = 2 * config.tokens * config.width if dense else 0
        whole = encoder(config, config.tokens), 0.0
        flops, matching = whole if recipe.reduction is None else reduced_encoder(config, recipe.reduction)
        grid = _grid(flops, config.width, config.side, dense=dense)
        return replace(grid, merge=merge, matching=matching)
    if recipe.satmae is not None and recipe.backbone == "satmae":
        return _grid(_satmae(recipe.satmae), recipe.satmae.width, recipe.satmae.side, dense=dense)
    if recipe.backbone in ("linear", "unet"):
        unet = recipe.backbone == "unet"
        channels = (recipe.widths[0],) if unet else (bands,)
        return BackboneCost(
            flops=_unet(recipe.widths, bands, px) if unet else 0, channels=channels, sides=(px if dense else 1,)
        )
    return _counted(recipe, bands, px, dense=dense)


def _grid(flops: float, width: int, side: int, *, dense: bool) -> BackboneCost:
    if not dense:
        return BackboneCost(flops=flops, channels=(width,))
    return BackboneCost(flops=flops, channels=(width,) * 4, sides=(side,) * 4, scales=backbones.GRID_SCALES)


def _satmae(config: satmae.SatmaeConfig) -> float:
    places = config.side**2
    embedded = sum(2 * places * len(group) * config.patch_px**2 * config.width for group in config.groups)
    return embedded + config.depth * block(1 + places * len(config.groups), config.width, config.mlp_ratio)


def _unet(widths: tuple[int, ...], bands: int, px: int) -> float:
    products, sides = 0, [px]
    for before, after in zip((bands, *widths), widths, strict=False):
        products += 9 * sides[-1] ** 2 * after * (before + after)
        sides.append(sides[-1] // 2)
    for (finer, coarser), side in zip(itertools.pairwise(widths), sides, strict=False):
        products += 9 * side**2 * finer * (coarser + 2 * finer)
    return 2 * products


def _counted(recipe: ModelRecipe, bands: int, px: int, *, dense: bool) -> BackboneCost:
    """Count a backbone without a closed form, such as those of timm, as torch runs it on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sgmodel.models import factory

    with torch.device("meta"), torch.no_grad():
        model = factory.baseline(recipe, bands).eval()
        images = torch.empty(1, bands, px, px)
        if dense:
            model.prepare_maps()
        with FlopCounterMode(display=False) as counter:
            outputs = model.maps(images) if dense else [model.pooled(images)[..., None, None]]
    return BackboneCost(
        flops=float(counter.get_total_flops()),
        channels=tuple(output.shape[1] for output in outputs),
        sides=tuple(output.shape[-1] for output in outputs),
        scales=model.scales,
    )
