"""Models for each task: a backbone and a head that gives a scene or a pixel its classes, or finds what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError
from sgmodel import distributed
from sgmodel.models import state_keys, upernet

if TYPE_CHECKING:
    from sgmodel.models.backbones import Backbone
    from sgmodel.models.factory import ModelRecipe

Kind = Literal["classifier", "segmenter", "change"]


class EncodedImages(NamedTuple):
    """Output of a frozen backbone for a batch of images, which the trained head takes.

    Attributes:
        parts: The vector (N, D) of a classifier; maps or tokens (N, ...) of other models.
        size: Height and width of the images.
    """

    parts: tuple[Tensor, ...]
    size: tuple[int, int]


class TaskModel(nn.Module):
    """Base class of the models for one task.

    Args:
        backbone: The backbone, whose parameters are used and not copied.
        classes: Number of classes.

    Attributes:
        recipe: The table [model] that the model was built from, which the card of a checkpoint repeats; None for one
            put together by hand.
        head_config: Widths of the head of a model that scores every pixel; None for another.
    """

    kind: ClassVar[Kind]
    images: ClassVar[int] = 1
    """Number of images that one forward pass takes per sample."""
    dense: ClassVar[bool]
    """Whether each pixel is scored, from the maps of the backbone, and not each image, from its vector."""
    keys: ClassVar[dict[str, str]] = {"backbone.encoder.": "encoder.", "backbone.merge.": "merge."}
    """Prefixes of SpectralGPT's parameters -> their prefixes in state dicts and files."""

    head: nn.Module
    recipe: ModelRecipe | None = None
    head_config: upernet.HeadConfig | None = None

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes
        state_keys.store_as(self, self.keys)

    def encode(self, images: Tensor | EncodedImages) -> EncodedImages:
        """Run the part of the model that is not trained if the backbone is frozen, without gradients in that case.

        Args:
            images: Images (N, C, H, W), normalised; or the result of an earlier call, which is returned.
        """
        if isinstance(images, EncodedImages):
            return images
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.frozen):
            parts = self.backbone.encode_maps(images) if self.dense else [self.backbone.pooled(images)]
        return EncodedImages(tuple(parts), (images.shape[-2], images.shape[-1]))


class Classifier(TaskModel):
    """Scene classification: the backbone's vector, then one linear layer.

    The state-dict keys of a SpectralGPT classifier are those of the released one.
    """

    kind = "classifier"
    dense = False
    keys: ClassVar[dict[str, str]] = {"backbone.encoder.": ""}

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__(backbone, classes)
        self.head = nn.Linear(backbone.width, classes)
        if backbone.head_std:
            nn.init.normal_(self.head.weight, std=backbone.head_std)

    def features(self, images: Tensor) -> Tensor:
        """Encode images into the input of the linear layer.

        Args:
            images: Images (N, C, H, W), normalised.

        Returns:
            Features (N, D), with D the `width` of the backbone.
        """
        return self.backbone.pooled(images)

    def forward(self, images: Tensor | EncodedImages) -> Tensor:
        """Score the classes of scenes.

        Args:
            images: Images (N, C, H, W), normalised, or what `encode` makes of them.

        Returns:
            Logits (N, classes).
        """
        logits: Tensor = self.head(self.encode(images).parts[0])
        return logits


def dense_head(backbone: Backbone, classes: int, config: upernet.HeadConfig) -> nn.Module:
    """Build a head that scores every pixel: `UperHead` on four maps, one linear layer on a single map.

    Args:
        backbone: The backbone, which is made ready to give maps.
        classes: Number of classes.
        config: Widths of `UperHead`.
    """
    backbone.prepare_maps()
    if len(backbone.channels) == 1:
        return nn.Conv2d(backbone.channels[0], classes, 1)
    return upernet.UperHead(backbone.channels, classes, config, backbone.scales)


def score(head: nn.Module, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Score maps of a backbone with (N, classes, *size), enlarged where the output of the head is coarser."""
    scores: Tensor = head(maps if len(maps) > 1 else maps[0])
    return upernet.resize(scores, size)


class Segmenter(TaskModel):
    """Segmentation: scores of every class for every pixel.

    Args:
        backbone: The backbone.
        classes: Number of classes.
        head: Widths of the dense head; None for the released ones.
    """

    kind = "segmenter"
    dense = True
    head_config: upernet.HeadConfig

    def __init__(self, backbone: Backbone, classes: int, head: upernet.HeadConfig | None = None) -> None:
        super().__init__(backbone, classes)
        self.head_config = head or upernet.HeadConfig()
        self.head = dense_head(backbone, classes, self.head_config)
        self.skip = upernet.shortcut(backbone.bands, classes, self.head_config)

    def forward(self, images: Tensor | EncodedImages) -> Tensor:
        """Score the classes of every pixel.

        Args:
            images: Images (N, C, H, W), normalised, or without a shortcut from pixels what `encode` makes of them.

        Returns:
            Logits (N, classes, H, W).
        """
        encoded = self.encode(images)
        logits = score(self.head, self.backbone.finish_maps(encoded.parts), encoded.size)
        return logits if self.skip is None else logits + self.skip(images)


class ChangeDetector(TaskModel):
    """Change detection: signed differences of the maps of two dates, through the dense head.

    A bias of SpectralGPT's merge cancels in the difference.

    Args:
        backbone: The backbone.
        head: Widths of the dense head; None for the released ones, without dropout in levels and pooling.
    """

    kind = "change"
    images = 2
    dense = True
    head_config: upernet.HeadConfig

    def __init__(self, backbone: Backbone, head: upernet.HeadConfig | None = None) -> None:
        super().__init__(backbone, 2)
        self.head_config = head or upernet.HeadConfig(dropout_levels=0.0)
        self.head = dense_head(backbone, 2, self.head_config)
        # Of both dates together, not of their difference: what a change is depends on what was there.
        self.skip = upernet.shortcut(2 * backbone.bands, 2, self.head_config)

    def forward(self, before: Tensor | EncodedImages, after: Tensor | EncodedImages) -> Tensor:
        """Score change between two dates for every pixel.

        Args:
            before: Images (N, C, H, W) of the first date, normalised; or, without a shortcut, what `encode` makes of
                them.
            after: Images (N, C, H, W) of the second date, likewise.

        Returns:
            Log-probabilities (N, 2, H, W) of no change and change.
        """
        # Signed: what appears and what vanishes are different changes.
        encoded = [self.encode(before), self.encode(after)]
        pairs = zip(*(self.backbone.finish_maps(date.parts) for date in encoded), strict=True)
        scores = score(self.head, [old - new for old, new in pairs], encoded[0].size)
        if self.skip is not None:
            pixels = [date for date in (before, after) if isinstance(date, Tensor)]
            scores = scores + self.skip(torch.cat(pixels, dim=1))
        return functional.log_softmax(scores, dim=1)


MODELS: dict[Kind, type[TaskModel]] = {"classifier": Classifier, "segmenter": Segmenter, "change": ChangeDetector}

if set(MODELS) != set(get_args(Kind)):
    raise TypeError(f"MODELS has {sorted(MODELS)}, Kind names {sorted(get_args(Kind))}; expected the same kinds")


def build(kind: Kind, backbone: Backbone, classes: int, head: upernet.HeadConfig | None) -> TaskModel:
    """Build the model of a kind with a fresh head.

    Args:
        kind: Kind of the model.
        backbone: The backbone.
        classes: Number of classes; a change detector has two.
        head: Widths of the dense head; None for the released ones. A classifier has none.
    """
    match kind:
        case "classifier":
            return Classifier(backbone, classes)
        case "segmenter":
            return Segmenter(backbone, classes, head)
        case "change":
            return ChangeDetector(backbone, head)


# --- linear probing ------------------------------------------------------------------------


class _MeanOfRanks(torch.autograd.Function):
    """Mean over processes with gradients, which are averaged too since the result is in the loss of every rank."""

    @staticmethod
    def forward(ctx: Any, figures: Tensor) -> Tensor:
        return distributed.mean(figures.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return distributed.mean(gradient.clone())


class Probe(nn.Module):
    """Head of a linear probe: each feature at mean 0 and variance 1 over the batch, then one linear layer.

    The normalisation has no weights of its own (He et al., "Masked Autoencoders", CVPR 2022, appendix A.1): without
    it the best learning rate would depend on the scale of each model's features.

    Args:
        width: Length of the features.
        classes: Number of classes.
        dense: True for maps, False for vectors.
    """

    def __init__(self, width: int, classes: int, *, dense: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if dense else nn.BatchNorm1d
        self.norm = norm(width, affine=False, eps=1e-6)
        self.linear = nn.Conv2d(width, classes, 1) if dense else nn.Linear(width, classes)

    def forward(self, features: Tensor | list[Tensor]) -> Tensor:
        """Score vectors (N, D), or the last of several maps (N, D, h, w), with logits of each class."""
        x = features if isinstance(features, Tensor) else features[-1]
        normal = self._normalise_over_ranks(x) if self.training and distributed.world_size() > 1 else self.norm(x)
        scores: Tensor = self.linear(normal)
        return scores

    def _normalise_over_ranks(self, x: Tensor) -> Tensor:
        """Apply `norm` over the samples of all processes; torch's own layer for this needs GPUs."""
        dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        values = x.double()
        moments = torch.stack([values.mean(dims), values.square().mean(dims)])
        mean, square = _MeanOfRanks.apply(moments)  # type: ignore[no-untyped-call]
        variance, count = square - mean.square(), x.numel() // x.shape[1] * distributed.world_size()
        state = self.norm.state_dict()  # shares the memory of the buffers
        for name, new in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
            state[name].lerp_(new.detach().to(state[name]), self.norm.momentum or 0.1)
        state["num_batches_tracked"] += 1
        normal: Tensor = (values - mean.view(shape)) / (variance.view(shape) + self.norm.eps).sqrt()
        return normal.to(x.dtype)


def probe(model: TaskModel) -> None:
    """Replace the head of `model` by a `Probe`.

    Raises:
        SettingError: The model has a convolution beside its features, which would learn too.
    """
    if getattr(model, "skip", None) is not None:
        raise SettingError(
            "mode is 'linear-probe', model.head.skip is not 0: pixels beside the features; set model.head.skip = 0"
        )
    dense = model.head_config is not None
    width = model.backbone.channels[-1] if dense else model.backbone.width
    model.head = Probe(width, model.classes, dense=dense)
