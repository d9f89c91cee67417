"""Pretraining by telling images apart: two views of one image are alike, views of other images are not.

MoCo v2 (He et al., CVPR 2020, and Chen et al., arXiv 2003.04297) compares with a queue of earlier answers of a slowly
following copy of the model; SimCLR (Chen et al., ICML 2020) with the rest of the batch.
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
class Objective:
    """`projection` values stand for an image in the comparison. Only MoCo has a `queue` and a `momentum`, the share of
    its own weights that the copy keeps in a step."""

    method: Literal["moco", "simclr"]
    temperature: float
    projection: int = 128
    queue: int = 65536
    momentum: float = 0.999

    def __post_init__(self) -> None:
        """Raises SettingError: nothing could be told apart."""
        if self.temperature <= 0 or self.queue < 1 or not 0 <= self.momentum <= 1:
            told = f"temperature {self.temperature}, queue {self.queue}, momentum {self.momentum}"
            raise SettingError(f"contrast: {told}; expected a temperature above 0, 1 or more in the queue, a share")


class Contrast(nn.Module):
    """A backbone that learns to tell images apart; a checkpoint holds copy and queue too, so a run resumes exactly.

    Batch statistics are those of one rank, as without MoCo's shuffling: a ResNet may learn from them which images came
    together. A backbone without BatchNorm cannot. `recipe` and `bands` say what the backbone was made from, for the
    checkpoint's card.
    """

    queue: Tensor
    recipe: ModelRecipe | None = None

    def __init__(self, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self.backbone, self.objective = backbone, objective
        width = self.backbone.width
        # Thrown away after pretraining.
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, objective.projection))
        self.waiting: list[Tensor] = []
        if objective.method == "moco":
            # Copies, not fresh draws: the comparison starts between equals.
            self.slow_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
            self.slow_head = copy.deepcopy(self.head).requires_grad_(False)
            start = functional.normalize(torch.randn(objective.queue, objective.projection), dim=1)
            self.register_buffer("queue", start)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Two views (N, C, H, W) of the same images -> the loss, and the share of images whose own view came first."""
        query = functional.normalize(self.head(self.backbone.pooled(first)).float(), dim=1)
        scores, answer = self._queued(query, second) if self.objective.method == "moco" else self._mutual(query, second)
        loss = functional.cross_entropy(scores / self.objective.temperature, answer)
        return loss, (scores.argmax(dim=1) == answer).float().mean()

    def _queued(self, query: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            key = functional.normalize(self.slow_head(self.slow_backbone.pooled(second)).float(), dim=1)
        if self.training:
            self.waiting.append(key)
        own, others = (query * key).sum(1, keepdim=True), query @ self.queue.T
        return torch.cat([own, others], dim=1), torch.zeros(len(query), dtype=torch.long, device=query.device)

    def _mutual(self, query: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        key = functional.normalize(self.head(self.backbone.pooled(second)).float(), dim=1)
        mine = torch.arange(len(query), device=query.device)
        if distributed.world() > 1 and dist.is_initialized() and self.training:
            query_all, key_all = (_Everyones.apply(views) for views in (query, key))  # type: ignore[no-untyped-call]
            mine = mine + distributed.rank() * len(query)
        else:
            query_all, key_all = query, key
        total, rows = len(query_all), torch.cat([mine, mine + len(query_all)])
        scores = torch.cat([query, key]) @ torch.cat([query_all, key_all]).T
        # Nobody is compared with themselves; the right answer is the other view of the same image.
        scores = scores.masked_fill(functional.one_hot(rows, 2 * total).bool(), float("-inf"))
        return scores, (rows + total) % (2 * total)

    @torch.no_grad()
    def follow(self) -> None:
        """After an optimizer step: the copy follows, the queue takes this step's answers of all ranks."""
        if self.objective.method != "moco":
            return
        for slow, fast in ((self.slow_backbone, self.backbone), (self.slow_head, self.head)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, 1.0 - self.objective.momentum)
        keys = torch.cat(self.waiting)
        if distributed.world() > 1:
            everyone = [torch.empty_like(keys) for _ in range(distributed.world())]
            dist.all_gather(everyone, keys)
            keys = torch.cat(everyone)
        self.waiting.clear()
        self.queue = torch.cat([self.queue, keys])[-self.objective.queue :]


class _Everyones(torch.autograd.Function):
    """Views of all ranks in their order; gradients go back to the rank that a view came from.

    Written out, since torch's own way has another name in nearly every version.
    """

    @staticmethod
    def forward(context: Any, views: Tensor) -> Tensor:
        """(N, D) -> (world N, D)."""
        parts = [torch.empty_like(views) for _ in range(distributed.world())]
        dist.all_gather(parts, views.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Every rank's loss has a part in the gradient of every view."""
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(distributed.world())[distributed.rank()]
