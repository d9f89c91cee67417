"""Losses of segmentation and change detection, and the factor of the focal loss, which classification shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

from sgmodel.train import loop

if TYPE_CHECKING:
    from sgmodel.train.finetune import MapSettings


def focal_factor(uncertainty: Tensor, exponent: float) -> Tensor:
    """Return the factors by which the focal loss weights cross-entropy (Lin et al., ICCV 2017).

    Args:
        uncertainty: 1 - p, where p is the probability of the true class.
        exponent: Exponent of the uncertainty, gamma in the paper.
    """
    return uncertainty.clamp(min=1e-6) ** exponent  # a power of 0 may have no gradient


def map_loss(
    recipe: MapSettings, log_p: Tensor, target: Tensor, weights: Tensor | None, ignore: int
) -> dict[str, Tensor]:
    """Compute the loss over the labelled pixels of a batch.

    Args:
        recipe: Names the loss.
        log_p: Log-probabilities (N, K, H, W).
        target: Class indices (N, H, W), or `ignore`.
        weights: Weights of the K classes; None for 1 each.
        ignore: Index of pixels that are left out.
    """
    weights = None if weights is None else weights.to(log_p.device, non_blocking=True)
    labelled = target != ignore
    classes = target.where(labelled, 0)
    if recipe.focal_gamma or recipe.smoothing:
        pixel_losses = functional.cross_entropy(
            log_p, target, weights, ignore_index=ignore, reduction="none", label_smoothing=recipe.smoothing
        )
        if recipe.focal_gamma:
            uncertainty = 1 - log_p.gather(1, classes[:, None])[:, 0].exp()
            pixel_losses = pixel_losses * focal_factor(uncertainty, recipe.focal_gamma)
        total = pixel_losses.sum()
    else:
        total = functional.nll_loss(log_p, target, weights, ignore_index=ignore, reduction="sum")
    weight = labelled.sum() if weights is None else weights[target[labelled]].sum()
    # A batch may have no labelled pixel. Divided by the weights of the global batch, as torch does for one batch.
    value = total / weight.clamp(min=1e-6)
    if recipe.dice_weight:
        pixel_weights = labelled.float() if weights is None else weights[classes] * labelled
        value = (1 - recipe.dice_weight) * value + recipe.dice_weight * dice_loss(log_p.exp(), classes, pixel_weights)
    return {"loss": value, loop.WEIGHT: weight / target[0].numel()}


def dice_loss(p: Tensor, classes: Tensor, weight: Tensor) -> Tensor:
    """Compute 1 - Dice of each sample, averaged over samples by the sum of their weights.

    Args:
        p: Probabilities (N, K, H, W).
        classes: Class indices (N, H, W).
        weight: Weights (N, H, W); 0 for pixels that are left out.
    """
    labelled = (weight > 0)[:, None]
    true = functional.one_hot(classes, p.shape[1]).movedim(-1, 1) * labelled
    both, sizes = (p * true).sum((2, 3)), (p * labelled + true).sum((2, 3))
    shown = true.sum((2, 3)) > 0
    dice = (2 * both / sizes.clamp(min=1e-6) * shown).sum(1) / shown.sum(1).clamp(min=1)
    share = weight.sum((1, 2))
    return ((1 - dice) * share).sum() / share.sum().clamp(min=1e-6)
