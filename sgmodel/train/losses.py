"""Parts of losses that several tasks share."""

from __future__ import annotations

from torch import Tensor


def focal_factor(uncertainty: Tensor, exponent: float) -> Tensor:
    """Return the factors by which the focal loss weights cross-entropy (Lin et al., ICCV 2017).

    Args:
        uncertainty: 1 - p, where p is the probability of the true class.
        exponent: Exponent of the uncertainty, gamma in the paper.
    """
    return uncertainty.clamp(min=1e-6) ** exponent  # a power of 0 may have no gradient
