"""Keep an exponential moving average (EMA) of the weights during training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sgmodel import distributed
from sgmodel.models import state_keys
from sgmodel.train import loop


def update_after(
    steps: Iterator[loop.Step], model: nn.Module, averages: dict[str, Tensor], decay: float
) -> Iterator[loop.Step]:
    """Yield the steps and update the averages after each that did not fail.

    Args:
        steps: Steps that update the weights of `model`.
        model: Model.
        averages: Average of each parameter by name, updated in place; empty to start from the weights.
        decay: Decay of the average per step; 0 for no average.
    """
    weights = state_keys.parameters(model)
    if decay and not averages:
        averages.update({name: weight.detach().clone() for name, weight in weights.items()})
    for name, average in averages.items():
        if type(average) is not type(weights[name].data):  # read from a checkpoint, which has whole tensors
            averages[name] = distributed.shard_like(average, weights[name])
    for step in steps:
        with torch.no_grad():
            for name, average in averages.items():
                share = (1.0 - decay) * (1.0 - step.failed)
                distributed.local_part(average).lerp_(distributed.local_part(weights[name].detach()), share)
        yield step
