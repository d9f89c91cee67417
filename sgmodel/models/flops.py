"""Model FLOPs of a training step, counted from the configuration: matrix products only, one multiply-add is two."""

from __future__ import annotations

from typing import Literal

from sgmodel.models import mae, upernet
from sgmodel.models.encoder import EncoderConfig

Task = Literal["pretrain", "classify", "segment", "detect_change"]


def training_step(
    task: Task,
    config: EncoderConfig,
    *,
    mask_ratio: float = 0.0,
    decoder: mae.DecoderConfig | None = None,
    head: upernet.HeadConfig | None = None,
    classes: int = 0,
) -> float:
    """Return the FLOPs of one image (of one pair for "detect_change") through forward and backward pass.

    The backward pass counts as twice the forward pass. Activations that are recomputed do not count.

    Args:
        task: What the model is trained for.
        config: Size of the encoder and of its images.
        mask_ratio: Share of the tokens that is masked; for "pretrain" only.
        decoder: Decoder of the masked autoencoder; for "pretrain" only.
        head: Dense head; for "segment" and "detect_change" only.
        classes: Outputs of the head; not for "pretrain".
    """
    seen = mae.kept(config.tokens, mask_ratio) if task == "pretrain" else config.tokens
    forward: float = 2 * seen * config.token_values * config.width
    forward += config.depth * block(seen, config.width, config.mlp_ratio)
    if task == "pretrain" and decoder is not None:
        forward += 2 * seen * config.width * decoder.width
        forward += decoder.depth * block(config.tokens, decoder.width, decoder.mlp_ratio)
        forward += 2 * config.tokens * decoder.width * config.token_values
    if task == "classify":
        forward += 2 * config.width * classes
    if head is not None:
        forward += 2 * config.tokens * config.width  # one weight per plane merges the planes of a place
        if task == "detect_change":
            forward *= 2
        forward += _dense_head(head, config, classes)
    return 3 * forward


def block(tokens: int, width: int, mlp_ratio: float) -> float:
    """Return the forward FLOPs of one transformer block on `tokens` tokens of one image."""
    return 4 * tokens * width**2 * (2 + mlp_ratio) + 4 * tokens**2 * width


def _dense_head(head: upernet.HeadConfig, config: EncoderConfig, classes: int) -> float:
    """Return the forward FLOPs of `upernet.UperHead` on one token grid, and of its shortcut where it has one."""
    places, width = config.side**2, head.width
    *finer, coarsest = zip(upernet.SCALES, head.levels, strict=True)
    products = places * config.width * coarsest[1]
    for (scale, channels), hidden in zip(finer, head.hidden, strict=True):
        products += places * hidden * (config.width + channels * scale**2)  # convolution 1x1, transposed convolution
        products += places * scale**2 * width * (channels + width)  # lateral and smoothing units
    products += sum(parts**2 * coarsest[1] * width for parts in upernet.POOLED)
    products += places * (coarsest[1] + len(upernet.POOLED) * width) * width
    products += places * finer[-1][0] ** 2 * width**2  # the bridge
    products += places * finer[0][0] ** 2 * width * (4 * width + 9 * classes)  # fusing unit, scores
    if head.skip:
        products += config.image_px**2 * head.skip * (9 * config.bands + classes)
    return 2 * products
