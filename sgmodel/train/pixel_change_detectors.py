"""Classical detectors of change at single pixels: logistic regression, gradient boosting, the spectral angle.

They see a pixel at both dates, or the means of a few pixels around it, and give it a score with a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError
from sgdata.types import Array

PixelMethod = Literal["logistic", "boosting", "angle"]
METHODS: tuple[PixelMethod, ...] = get_args(PixelMethod)
MOST_PIXELS = 2_000_000
"""Most training pixels, evenly spaced among all."""
FOLDS = 4
"""Parts of the training samples on which a threshold is chosen, each by the model of the others."""
ROUNDS, LEAVES = 200, 31
THRESHOLDS = np.linspace(0.02, 0.98, 49)

Score = Callable[[Array], Array]
"""Scores features (P, D) with a number each, greater for change: (P,)."""


@dataclass(frozen=True, kw_only=True)
class TrainingPixels:
    """P labelled pixels of training samples.

    Attributes:
        features: (P, D) features.
        changed: (P,) bool.
        sample_index: (P,) number of the sample that each pixel is of.
        sample_count: Number of samples.
    """

    features: Array
    changed: Array
    sample_index: Array
    sample_count: int


class PixelDetector(nn.Module):
    """A detector of change at single pixels, with the interface of a change model.

    Args:
        score: Scores the features of pixels.
        mean_px: Side of the window whose means are the features.
        threshold: Score from which a pixel has changed.
    """

    def __init__(self, score: Score, mean_px: int, threshold: float) -> None:
        super().__init__()
        self.score, self.mean_px, self.threshold = score, mean_px, threshold

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Score no change and change at every pixel of images (N, C, H, W): (N, 2, H, W)."""
        x = pixel_features(before, after, self.mean_px)
        rows = x.movedim(1, -1).reshape(-1, x.shape[1])
        over = torch.from_numpy(self.score(rows.cpu().numpy()).astype(np.float32)) - self.threshold
        over = over.view(len(x), *x.shape[2:]).to(x.device)
        return torch.stack([-over, over], dim=1)


def pixel_features(before: Tensor, after: Tensor, mean_px: int) -> Tensor:
    """Return both dates (N, C, H, W) as (N, 2 C, H, W), averaged over windows of `mean_px` pixels a side."""
    x = torch.cat([before, after], dim=1)
    # Without the padding in the mean, so that an edge is no darker than the rest.
    return functional.avg_pool2d(x, mean_px, 1, mean_px // 2, count_include_pad=False) if mean_px > 1 else x


def sample_pixels(
    pairs: Iterable[tuple[int, Tensor, Tensor, Tensor]], samples: int, *, mean_px: int, ignore: int
) -> TrainingPixels:
    """Collect the labelled pixels of pairs, at most `MOST_PIXELS`.

    Args:
        pairs: Number of each sample, its normalised images (1, C, H, W) at both dates, and its labels (H, W).
        samples: Number of samples.
        mean_px: Side of the window whose means are the features, an odd number of pixels.
        ignore: Label of pixels to leave out.

    Raises:
        SettingError: `mean_px` is even.
    """
    if not mean_px % 2:
        raise SettingError(f"mean_px is {mean_px}: expected an odd number of pixels")
    arrays_of_pairs = []
    for number, before, after, labels in pairs:
        labelled = labels != ignore
        x = pixel_features(before, after, mean_px)[0][:, labelled].T.cpu().numpy()
        arrays_of_pairs.append((x, labels[labelled].numpy() == 1, np.full(len(x), number)))
    x, changed, sample = (np.concatenate(arrays) for arrays in zip(*arrays_of_pairs, strict=True))
    step = -(-len(changed) // MOST_PIXELS)
    return TrainingPixels(
        features=x[::step], changed=changed[::step], sample_index=sample[::step], sample_count=samples
    )


def fit(
    pixels: TrainingPixels,
    *,
    method: PixelMethod,
    mean_px: int = 1,
    threshold: Literal["half", "chosen"] = "half",
    seed: int = 0,
) -> PixelDetector:
    """Fit a detector to the labelled pixels of training samples.

    Args:
        pixels: Labelled pixels of training samples.
        method: The model. The angle is that between the normalised spectra of both dates.
        mean_px: Side of the window whose means are the features, an odd number of pixels.
        threshold: "half" for a probability of 0.5; "chosen" for the one of the best F1 of change on training samples,
            each scored by a model of the others.
        seed: Seed of the model.

    Raises:
        SettingError: The angle has no threshold, there are too few samples, or scikit-learn is not installed.
    """
    x, y = pixels.features, pixels.changed
    if method == "angle":
        if threshold == "half":
            raise SettingError(
                "threshold is 'half', mode 'angle': an angle is no probability; set threshold = 'chosen'"
            )
        angles = spectral_angle(x)
        bounds = np.quantile(angles, THRESHOLDS)
        return PixelDetector(spectral_angle, mean_px, _best_threshold(angles, y, bounds))
    limit = 0.5
    if threshold == "chosen":
        if pixels.sample_count < 2:
            raise SettingError(f"threshold is 'chosen' on {pixels.sample_count} training sample: expected 2 or more")
        folds = pixels.sample_index % min(FOLDS, pixels.sample_count)
        held_out = np.empty(len(y))
        for fold in np.unique(folds):
            held_out[folds == fold] = _fit_model(method, x[folds != fold], y[folds != fold], seed)(x[folds == fold])
        limit = _best_threshold(held_out, y, THRESHOLDS)
    return PixelDetector(_fit_model(method, x, y, seed), mean_px, limit)


def spectral_angle(x: Array) -> Array:
    """Return the angle in radians between the two halves of each feature vector (P, 2 C): (P,)."""
    before, after = np.split(x.astype(np.float64), 2, axis=1)
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosine = (before * after).sum(axis=1) / np.maximum(lengths, 1e-12)
    radians: Array = np.arccos(np.clip(cosine, -1, 1))
    return radians


def _fit_model(method: PixelMethod, x: Array, y: Array, seed: int) -> Score:
    """Fit a model; return its probability of change. Raises SettingError."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        message = f"mode {method!r} needs scikit-learn, which is not installed"
        raise SettingError(f"{message}: pip install 'sgdata[ledger]'") from None
    if len(np.unique(y)) < 2:
        raise SettingError(f"{len(y)} training pixels are all of one class: expected some of both; train on others")
    if method == "logistic":
        model: Any = LogisticRegression(max_iter=1000)
    else:
        # Without early stopping, whose held-out pixels would be next to training pixels.
        model = HistGradientBoostingClassifier(
            max_iter=ROUNDS, max_leaf_nodes=LEAVES, early_stopping=False, random_state=seed
        )
    model.fit(x, y)

    def probability(features: Array) -> Array:
        values: Array = model.predict_proba(features)[:, 1]
        return values

    return probability


def _best_threshold(scores: Array, changed: Array, thresholds: Array) -> float:
    """Return the threshold with the greatest F1 of change; of several equal ones the first."""
    order = np.argsort(scores)
    hits = np.concatenate([[0], np.cumsum(changed[order])])
    # Pixels below each threshold, by a search in the sorted scores.
    below = np.searchsorted(scores[order], thresholds)
    detected = hits[-1] - hits[below]
    f1 = 2 * detected / np.maximum(len(scores) - below + hits[-1], 1)
    return float(thresholds[np.argmax(f1)])
