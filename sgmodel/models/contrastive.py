"""Contrastive pretraining: views of one image are pulled together, others pushed apart.

MoCo v2 (He et al., CVPR 2020, and Chen et al., arXiv 2003.04297) compares with a queue of earlier outputs of a copy of
the model that follows it slowly; SimCLR (Chen et al., ICML 2020) with the rest of the batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from sgdata.errors import SettingError
from sgmodel import distributed

if TYPE_CHECKING:
    from sgmodel.models.backbones import Backbone
    from sgmodel.models.factory import ModelRecipe


@dataclass(frozen=True, kw_only=True)
class ContrastiveObjective:
    """Contrastive method and its parameters.

    Attributes:
        method: MoCo, with a momentum encoder and a queue, or SimCLR, within the batch.
        temperature: Temperature of the softmax over similarities.
        projection: Number of values that represent an image in the comparison.
        queue: Number of earlier images in the queue of MoCo.
        momentum: Share of its own weights that the momentum encoder of MoCo keeps in a step.
    """

    method: Literal["moco", "simclr"]
    temperature: float
    projection: int = 128
    queue: int = 65536
    momentum: float = 0.999

    def __post_init__(self) -> None:
        """Check the ranges of the settings. Raises SettingError."""
        if self.temperature <= 0 or self.queue < 1 or not 0 <= self.momentum <= 1:
            raise SettingError(
                f"contrast: temperature {self.temperature}, queue {self.queue}, momentum {self.momentum}; "
                "expected a temperature above 0, a queue of 1 or more, a momentum of 0 to 1"
            )


class ContrastiveModel(nn.Module):
    """A backbone in contrastive pretraining.

    The state dict includes the copy and the queue of MoCo, so that a run resumes exactly. BatchNorm computes its
    statistics over one rank and without MoCo's shuffling, so a ResNet may learn from them which images are in a batch
    together; backbones without BatchNorm cannot.

    Args:
        backbone: The backbone, whose parameters are used and not copied.
        objective: The method and its settings.

    Attributes:
        queue: Earlier outputs of the copy (queue, projection); MoCo only.
        recipe: The table [model] that the backbone was built from, which the card of a checkpoint repeats; None for
            one put together by hand.
    """

    queue: Tensor
    recipe: ModelRecipe | None = None

    def __init__(self, backbone: Backbone, objective: ContrastiveObjective) -> None:
        super().__init__()
        self.backbone, self.objective = backbone, objective
        width = self.backbone.width
        # Of use in pretraining only.
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, objective.projection))
        self.waiting: list[Tensor] = []
        if objective.method == "moco":
            # Copies and not fresh weights, as in MoCo.
            self.slow_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
            self.slow_head = copy.deepcopy(self.head).requires_grad_(False)
            start = functional.normalize(torch.randn(objective.queue, objective.projection), dim=1)
            self.register_buffer("queue", start)

    def forward(self, first: Tensor, second: Tensor, *, compare: bool = True) -> tuple[Tensor, Tensor]:
        """Compare two views of the same images.

        Args:
            first: First views (N, C, H, W).
            second: Second views (N, C, H, W), in the same order.
            compare: False for the outputs alone, such as those of a part of the images to compare.

        Returns:
            The loss (InfoNCE), and the share of images for which the other view of the image has the highest score; or
            the outputs (N, projection) of both views.
        """
        query = functional.normalize(self.head(self.backbone.pooled(first)).float(), dim=1)
        if self.objective.method == "moco":
            with torch.no_grad():
                key = functional.normalize(self.slow_head(self.slow_backbone.pooled(second)).float(), dim=1)
        else:
            key = functional.normalize(self.head(self.backbone.pooled(second)).float(), dim=1)
        return self.compared(query, key) if compare else (query, key)

    def compared(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the share of right answers, as `forward`, of the outputs (N, projection) of two views.

        Args:
            query: Outputs of the first views.
            key: Outputs of the second views, in the same order.
        """
        scores, answer = (self._queued if self.objective.method == "moco" else self._mutual)(query, key)
        loss = functional.cross_entropy(scores / self.objective.temperature, answer)
        return loss, (scores.argmax(dim=1) == answer).float().mean()

    def _queued(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            self.waiting.append(key)
        own, others = (query * key).sum(1, keepdim=True), query @ self.queue.to(query.device).T
        return torch.cat([own, others], dim=1), torch.zeros(len(query), dtype=torch.long, device=query.device)

    def _mutual(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        mine = torch.arange(len(query), device=query.device)
        if distributed.world_size() > 1 and dist.is_initialized() and self.training:
            query_all, key_all = (_GatherWithGradient.apply(views) for views in (query, key))  # type: ignore[no-untyped-call]
            mine = mine + distributed.rank() * len(query)
        else:
            query_all, key_all = query, key
        total, rows = len(query_all), torch.cat([mine, mine + len(query_all)])
        scores = torch.cat([query, key]) @ torch.cat([query_all, key_all]).T
        # A view is not compared with itself; the right answer is the other view of the same image.
        itself = rows[:, None] == torch.arange(2 * total, device=rows.device)
        scores = scores.masked_fill(itself, float("-inf"))
        return scores, (rows + total) % (2 * total)

    @torch.no_grad()
    def follow(self, skipped: Tensor) -> None:
        """Update the copy and the queue of MoCo after an optimizer step, with the outputs of all ranks in this step.

        Args:
            skipped: 1 if the step changed no weights, so that nothing follows, else 0.
        """
        if self.objective.method != "moco":
            return
        weight = (1.0 - self.objective.momentum) * (1.0 - skipped)
        for slow, fast in ((self.slow_backbone, self.backbone), (self.slow_head, self.head)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                distributed.local_part(old).lerp_(distributed.local_part(new), weight)
        keys = torch.cat(self.waiting)
        if distributed.world_size() > 1:
            keys = _gather(keys)
        self.waiting.clear()
        newest = torch.cat([self.queue, keys])[-self.objective.queue :]
        self.queue = self.queue.where(skipped > 0, newest)


def _gather(views: Tensor) -> Tensor:
    """Return the views (N, D) of all ranks in their order, (world N, D)."""
    parts = [torch.empty_like(views) for _ in range(distributed.world_size())]
    dist.all_gather(parts, views.contiguous())
    return torch.cat(parts)


class _GatherWithGradient(torch.autograd.Function):
    """Gather the views of all ranks in their order; gradients go back to the rank that a view came from.

    Written here, since the name of torch's own function for this differs between versions.
    """

    @staticmethod
    def forward(context: Any, views: Tensor) -> Tensor:
        """Gather views (N, D) into (world N, D)."""
        return _gather(views)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradients of all ranks, whose losses all depend on every view, and return the share of this rank."""
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(distributed.world_size())[distributed.rank()]
