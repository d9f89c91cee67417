"""SpectralGPT's own models for each task: one label for a scene, one for each pixel, what changed between two dates.

Shape suffixes as in `encoder`; h x w is the token grid, Q the planes (times x spectral groups) above one place.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdata.errors import SettingError
from sgmodel import distributed
from sgmodel.models import encoder as enc
from sgmodel.models import upernet

Pooling = Literal["mean", "released", "class"]


class SceneClassifier(nn.Module):
    """Mean over tokens, then the encoder's final norm, then one linear layer.

    `pooling` "released" leaves the first token out of the mean, as the released code does although there is no
    class token; "mean" takes all; "class" takes the class token alone. State-dict keys are the published ones, so the
    encoder's parts hang here.
    """

    config: enc.EncoderConfig
    patch_embed: enc.PatchEmbed
    blocks: nn.Sequential
    norm: nn.LayerNorm

    def __init__(self, encoder: enc.Encoder, classes: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        if pooling == "class" and not encoder.config.class_token:
            raise SettingError(
                "pooling is 'class', the encoder has no class token; set class_token, or another pooling"
            )
        enc.adopt(self, encoder)
        self.classes = classes
        self.pooling: Pooling = pooling
        self.head = nn.Linear(self.config.width, classes)
        nn.init.normal_(self.head.weight, std=0.02)  # the rest keeps the framework's defaults, as released

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D), what the linear layer sees."""
        if self.pooling == "class":
            of_class: Tensor = self.norm(enc.encoded(self, images)[:, 0])
            return of_class
        first = 1 if self.pooling == "released" else 0
        out: Tensor = self.norm(enc.tokens(self, images)[:, first:].mean(dim=1))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes) logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


class TokenMerge(nn.Module):
    """One learned weight per plane, shared by all channels: the spectral groups of a place become one vector."""

    def __init__(self, config: enc.EncoderConfig) -> None:
        super().__init__()
        self.side = config.side
        self.linear = nn.Linear(config.planes, 1)

    def forward(self, tokens_NLD: Tensor) -> Tensor:
        """(N, L, D) -> (N, D, h, w)."""
        # Planes go last, where the linear layer works: all channels and places share its few weights.
        n, _, width = tokens_NLD.shape
        x_NQSD = tokens_NLD.reshape(n, -1, self.side**2, width)
        merged_NDS1: Tensor = self.linear(x_NQSD.permute(0, 3, 2, 1))
        return merged_NDS1.reshape(n, width, self.side, self.side)


class Segmenter(nn.Module):
    """Class scores for every pixel. The encoder's final norm takes no part, as released."""

    def __init__(self, encoder: enc.Encoder, classes: int = 13, head: upernet.HeadConfig | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.head_config = head or upernet.HeadConfig()
        self.encoder = encoder
        self.encoder.norm.requires_grad_(False)  # unused: ranks would wait for its gradient
        self.merge = TokenMerge(encoder.config)
        self.head = upernet.UperHead([encoder.config.width] * 4, classes, self.head_config)
        if self.head_config.skip:
            self.skip = upernet.shortcut(encoder.config.bands, classes, self.head_config.skip)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes, H, W) logits."""
        logits: Tensor = self.head([self.merge(self.encoder.tokens(images))] * 4)
        logits = upernet.resize(logits, images.shape[-2:])  # the head enlarges eightfold, patches may be of other sizes
        return logits + self.skip(images) if self.head_config.skip else logits


class ChangeDetector(nn.Module):
    """Two dates through one encoder; the signed difference of their merged maps through the segmentation head.

    Log-probabilities of no change and change. No dropout in levels and pooling, as released; the final norm takes
    no part, and the merge's bias cancels.
    """

    def __init__(self, encoder: enc.Encoder, head: upernet.HeadConfig | None = None) -> None:
        super().__init__()
        self.classes = 2
        self.head_config = head or upernet.HeadConfig(dropout_levels=0.0)
        self.encoder = encoder
        self.encoder.norm.requires_grad_(False)  # unused, as in the Segmenter
        self.merge = TokenMerge(encoder.config)
        self.head = upernet.UperHead([encoder.config.width] * 4, 2, self.head_config)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Two (N, C, H, W) -> (N, 2, H, W) log-probabilities."""
        # Signed: what appears and what vanishes are different changes.
        difference = self.merge(self.encoder.tokens(before)) - self.merge(self.encoder.tokens(after))
        scores: Tensor = self.head([difference] * 4)
        return functional.log_softmax(upernet.resize(scores, before.shape[-2:]), dim=1)


class _MeanOfRanks(torch.autograd.Function):
    """A mean over processes that passes gradients on: those of all, since what it gives is in the loss of each."""

    @staticmethod
    def forward(ctx: Any, figures: Tensor) -> Tensor:
        return distributed.mean(figures.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return distributed.mean(gradient.clone())


class Probe(nn.Module):
    """What a linear probe trains: each feature at mean 0 and variance 1 over the batch, then one linear layer.

    The normalisation has no weights of its own (He et al., "Masked Autoencoders", CVPR 2022, appendix A.1): without
    it the best learning rate would depend on the scale of each model's features.
    """

    def __init__(self, width: int, classes: int, *, dense: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if dense else nn.BatchNorm1d
        self.norm = norm(width, affine=False, eps=1e-6)
        self.linear = nn.Conv2d(width, classes, 1) if dense else nn.Linear(width, classes)

    def forward(self, features: Tensor | list[Tensor]) -> Tensor:
        """(N, D), or maps (N, D, h, w) of which the coarsest counts -> scores of each class."""
        x = features if isinstance(features, Tensor) else features[-1]
        normal = self._of_all_ranks(x) if self.training and distributed.world() > 1 else self.norm(x)
        scores: Tensor = self.linear(normal)
        return scores

    def _of_all_ranks(self, x: Tensor) -> Tensor:
        """As `norm`, over the samples of all processes; torch's own layer for this knows GPUs only."""
        dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        values = x.double()
        moments = torch.stack([values.mean(dims), values.square().mean(dims)])
        mean, square = _MeanOfRanks.apply(moments)  # type: ignore[no-untyped-call]
        variance, count = square - mean.square(), x.numel() // x.shape[1] * distributed.world()
        state = self.norm.state_dict()  # shares the memory of the buffers
        for name, new in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
            state[name].lerp_(new.detach().to(state[name]), self.norm.momentum or 0.1)
        state["num_batches_tracked"] += 1
        normal: Tensor = (values - mean.view(shape)) / (variance.view(shape) + self.norm.eps).sqrt()
        return normal.to(x.dtype)


def probe(model: nn.Module) -> None:
    """Put a `Probe` in the place of a model's head. Raises SettingError where something else would learn beside it."""
    if getattr(model, "skip", None) is not None:
        raise SettingError("mode is 'linear-probe', head.skip is not 0: pixels beside the features; set head.skip = 0")
    head = model.get_submodule("head")
    # The layer that the features come into says how long they are; of the dense head, that of the coarsest map.
    inner = head.levels[-1] if isinstance(head, upernet.UperHead) else head
    first = next(part for part in inner.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    model.head = Probe(first.weight.shape[1], int(model.classes), dense=isinstance(first, nn.Conv2d))  # type: ignore[arg-type]
