"""Segmentation figures from one confusion matrix over all pixels (spec section 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Shares 0-1; `None` for a class that is neither in the targets nor predicted."""

    oa: float
    iou: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    precision: tuple[float | None, ...]

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur. (The released code gives NaN where one does not.)"""
        return mean(self.iou)

    @property
    def miou_without_first(self) -> float:
        """Mean IoU leaving out class 0, the released data's background."""
        return mean(self.iou[1:])


def confusion(pred: Tensor, target: Tensor, *, classes: int, ignore: int = 255) -> Tensor:
    """(K, K) int64 counts on the CPU, rows = target, columns = prediction; pixels of `ignore` left out.

    `pred` and `target` are integer tensors of one shape; targets are `ignore` or in 0..K-1.
    """
    kept = target != ignore
    # One bincount over pairs, numbered row by row.
    cells = target[kept].long() * classes + pred[kept].long()
    return torch.bincount(cells.cpu(), minlength=classes * classes).reshape(classes, classes)


def scores(counts: Tensor) -> Scores:
    """OA = trace / sum; IoU = diagonal / (row + column - diagonal); recall by row, precision by column."""
    hit = counts.diagonal()
    row, column = counts.sum(dim=1), counts.sum(dim=0)
    return Scores(
        oa=float(hit.sum()) / max(int(counts.sum()), 1),
        iou=_shares(hit, row + column - hit),
        recall=_shares(hit, row),
        precision=_shares(hit, column),
    )


def constant(counts: Tensor, label: int) -> Tensor:
    """The confusion matrix of a model that always answers `label`, from that of any model."""
    result = torch.zeros_like(counts)
    result[:, label] = counts.sum(dim=1)
    return result


def mean(values: tuple[float | None, ...]) -> float:
    """Mean of the values that exist; 0 where none does."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def _shares(part: Tensor, whole: Tensor) -> tuple[float | None, ...]:
    pairs = zip(part.tolist(), whole.tolist(), strict=True)
    return tuple(a / b if b else None for a, b in pairs)
