"""A trained model as a function from stored pixels to probabilities or embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
import torch
from torch import Tensor, nn

from sgdata.types import TASKS, Array, Contract, Task, TaskFacts
from sgmodel.data import augment, normalise
from sgmodel.inference import tiling
from sgmodel.models import encoder as enc

if TYPE_CHECKING:
    from sgmodel.devices import Runtime


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model with the facts of its card.

    Attributes:
        model: The model, on its device.
        contract: Contract of its training data; the label space is that of the answers, "none" for embeddings.
        normalisation: Normalisation.
        launch: Device and precision.
        ground_px: Side of the tiles cut from a scene.
        px: Side of the input images, which differs from `ground_px` for a model trained on enlarged scenes.
        zoom: Share of the side of such scenes that is the input of the model, see `predict_scenes`.
    """

    model: nn.Module
    contract: Contract
    normalisation: normalise.Normalisation
    launch: Runtime
    ground_px: int
    px: int
    zoom: float | None

    @property
    def task(self) -> Task:
        """Return the task of the label space; "none" for embeddings."""
        return self.contract.label_space.task

    @property
    def facts(self) -> TaskFacts:
        """Return what the answers are."""
        return TASKS[self.task]

    @property
    def dates(self) -> int:
        """Return the number of images per answer."""
        return self.facts.images

    @torch.no_grad()
    def predict(self, tiles: Array) -> Array:
        """Predict class probabilities or embeddings of tiles as stored.

        Args:
            tiles: (N, dates x C, S, S) pixels in stored units, in the bands of the model, the first date first.

        Returns:
            (N, K, s, s) float32: the probability of each of K classes, or embeddings of width K. s is 1 for the classes
            of scenes.
        """
        stored = torch.from_numpy(np.ascontiguousarray(tiles)).to(self.launch.device)
        valid_size = torch.tensor(stored.shape[-2:]).expand(len(stored), 2)
        # Normalised tile by tile, as samples are: schemes with image statistics then see the same area as in training.
        dates = [normalise.apply(self.normalisation, part, valid_size) for part in stored.chunk(self.dates, dim=1)]
        with self.launch.autocast():
            output = self._output(dates, valid_size).float()
        match self.task:
            case "none":
                pass
            case "multi-label":
                output = output.sigmoid()
            case "single-label" | "segmentation" | "change":
                output = output.softmax(dim=1)  # also right for the log-probabilities of a change detector
            case unknown:
                assert_never(unknown)
        values: Array = (output if output.ndim == 4 else output[:, :, None, None]).cpu().numpy()
        return values

    def _output(self, dates: Sequence[Tensor], valid_size: Tensor) -> Tensor:
        match self.task:
            case "none":
                return embedding(self.model, dates[0])
            case "single-label" | "multi-label":
                return predict_scenes(self.model, dates[0], valid_size, self.px, zoom=self.zoom)
            case "segmentation" | "change":
                output: Tensor = self.model(*dates)
                return output
            case unknown:
                assert_never(unknown)

    @cached_property
    def output_shape(self) -> tuple[int, int]:
        """Return the shape (K, s) of the output of `predict` for one tile."""
        # Inferred from a dummy forward pass, since the card of a baseline does not record it.
        blank = np.zeros((1, self.dates * len(self.contract.bands), self.ground_px, self.ground_px), np.uint16)
        return self.predict(blank).shape[1:3]


def views(x: Tensor, geometry: augment.GeometricTransform, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs of a model with images of `size` that are made from whole scenes.

    Args:
        x: (N, C, H, W) scenes.
        geometry: Geometry; with its zoom the boxes are resized, otherwise they are padded, or cut into windows.
        size: Side of the images in pixels.

    Yields:
        Images (N, C, size, size), and the weight (N,) of each: 0 for a scene of fewer windows.
    """
    if geometry.zoom:
        yield augment.transform_images(x, geometry, size), torch.ones(len(x), device=x.device)
        return
    corners = []
    for top, left, height, width in geometry.box.tolist():
        offsets = itertools.product(*(tiling.tile_starts(side, size, size) for side in (height, width)))
        corners.append([(top + row, left + col, min(height, size), min(width, size)) for row, col in offsets])
    for number in range(max(map(len, corners))):
        box = torch.tensor([boxes[min(number, len(boxes) - 1)] for boxes in corners])
        weight = torch.tensor([float(number < len(boxes)) for boxes in corners], device=x.device)
        yield augment.transform_images(x, replace(geometry, box=box), size), weight


def predict_scenes(model: nn.Module, x: Tensor, valid_size: Tensor, size: int, *, zoom: float | None) -> Tensor:
    """Compute the logits (N, K) of whole scenes.

    Args:
        model: A model that takes images of `size` pixels.
        x: (N, C, H, W) normalised scenes.
        valid_size: (N, 2) height and width of each; the rest is padding.
        size: Side of the images in pixels.
        zoom: Share of the side of a resized scene that is the input; None resizes whole scenes, 1.0 none: smaller
            ones are padded, and the logits of larger ones are the mean of their windows.
    """
    if zoom != 1.0:
        logits: Tensor = model(augment.zoom_in(x, valid_size, size, share=zoom or 1.0))
        return logits
    whole = augment.centre_crop(valid_size, int(valid_size.max()))
    total, count = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
    for image, weight in views(x, whole, size):
        total, count = total + weight[:, None] * model(image), count + weight[:, None]
    return total / count


def predict_samples(
    kind: Predictor,
    predict: tiling.Predict,
    pixels: Sequence[Array],
    valid: Sequence[Array],
    *,
    overlap: float,
    batch: int,
) -> list[Array]:
    """Predict samples of any size, tile by tile where they have not the size of the tiles.

    Args:
        kind: The predictor.
        predict: `kind.predict`, or a function around it.
        pixels: (dates x C, H, W) of each sample, in stored units.
        valid: Mask of valid pixels (H, W) of each sample.
        overlap: Share of a tile's side that neighbouring tiles have in common.
        batch: Tiles per call of `predict`.

    Returns:
        The answer (K, h, w) of each sample.
    """
    sizes = {mask.shape for mask in valid}
    # Samples of the size of the tiles, and scenes that get one answer, are predicted as one batch.
    if len(sizes) == 1 and (kind.facts.answer == "scene" or sizes == {(kind.ground_px, kind.ground_px)}):
        return list(predict(np.stack(pixels)))
    if kind.facts.answer == "scene":
        return [predict(values[None])[0] for values in pixels]
    return [
        _predict_all(kind, predict, *each, overlap=overlap, batch=batch) for each in zip(pixels, valid, strict=True)
    ]


def _predict_all(
    kind: Predictor, predict: tiling.Predict, pixels: Array, valid: Array, *, overlap: float, batch: int
) -> Array:
    plan = tiling.plan(
        (valid.shape[0], valid.shape[1]), px=kind.ground_px, output_shape=kind.output_shape, overlap=overlap
    )
    rows = tiling.blend(plan, lambda row, n: (pixels[:, row : row + n], valid[row : row + n]), predict, batch=batch)
    return np.concatenate([output.copy() for _, output, _ in rows], axis=1)


def embedding(model: Any, images: Tensor) -> Tensor:
    """Return embeddings (N, D, h, w) of images (N, C, H, W) from the backbone of `model`, or from SpectralGPT itself.

    SpectralGPT gives the mean over spectral groups of the normalised tokens at each position, a baseline its coarsest
    feature map.
    """
    if hasattr(model, "backbone"):
        coarsest: Tensor = model.backbone.embedding(images)
        return coarsest
    return enc.embedding(model, images)
