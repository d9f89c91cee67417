"""A trained model as a function from stored pixels to probabilities or embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sgdata.types import Array, Contract
from sgmodel.data import augment, normalise
from sgmodel.models import encoder as enc

if TYPE_CHECKING:
    from sgmodel.devices import Launch

SCENES = ("single-label", "multi-label")
"""Tasks in which a whole scene gets one answer."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model and what is known of it. The label space of `contract` is that of the answers, "none" for embeddings.

    `ground_px` is the side of the tiles cut from a scene, `px` that of the images that the model takes: they differ
    where it was trained on enlarged scenes, of which it looks at the share `zoom`.
    """

    model: nn.Module
    contract: Contract
    how: normalise.Normalisation
    where: Launch
    ground_px: int
    px: int
    zoom: float

    @property
    def task(self) -> str:
        """What is asked of the model; "none": embeddings."""
        return self.contract.label_space.task

    @property
    def dates(self) -> int:
        """How many images make an answer."""
        return 2 if self.task == "change" else 1

    @torch.no_grad()
    def look(self, tiles: Array) -> Array:
        """(N, dates x C, S, S) as stored -> (N, K, s, s) float32: probabilities of classes, or embeddings."""
        stored = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.where.device)
        valid_size = torch.tensor(stored.shape[-2:]).expand(len(stored), 2)
        # Normalised tile by tile, as samples are: schemes that look at the image see as much of it as in training.
        dates = [normalise.apply(self.how, part, valid_size) for part in stored.chunk(self.dates, dim=1)]
        if self.zoom != 1 or tiles.shape[-2:] != (self.px, self.px):
            dates = [augment.zoomed(date, valid_size, self.px, share=self.zoom) for date in dates]
        with self.where.autocast():
            answer = (embedding(self.model, dates[0]) if self.task == "none" else self.model(*dates)).float()
        if self.task == "multi-label":
            answer = answer.sigmoid()
        elif self.task != "none":
            answer = answer.softmax(dim=1)  # of a change detector's log-probabilities these are the probabilities
        found: Array = (answer if answer.ndim == 4 else answer[:, :, None, None]).cpu().numpy()
        return found

    @cached_property
    def answer(self) -> tuple[int, int]:
        """(K, s) of what `look` gives for one tile."""
        # What the model says of nothing tells how much it says of anything; no card knows that of every baseline.
        blank = np.zeros((1, self.dates * len(self.contract.bands), self.ground_px, self.ground_px), np.uint16)
        return self.look(blank).shape[1:3]


def embedding(model: Any, images: Tensor) -> Tensor:
    """Encode images (N, C, H, W) into maps (N, D, h, w) with the backbone of `model`, or with SpectralGPT itself.

    SpectralGPT gives the mean of the tokens above each place after the final norm, a baseline its coarsest map.
    """
    if hasattr(model, "backbone"):
        coarsest: Tensor = model.backbone.embedding(images)
        return coarsest
    return enc.embedding(model, images)
