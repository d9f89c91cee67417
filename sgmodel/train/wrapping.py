"""Wrap a model for training: on its device, shared among processes, with recomputed activations, compiled."""

from __future__ import annotations

from torch import nn

from sgdata.errors import SettingError
from sgmodel import devices, distributed
from sgmodel.models import transformer


def wrap(
    model: nn.Module, launch: devices.Launch, parallel: distributed.Parallel, *, compiled: bool, recompute: bool
) -> nn.Module:
    """Move `model` to its device and return it as wrapped for training. Create the optimizer afterwards.

    Args:
        model: The model to train.
        launch: Device and precision.
        parallel: How several processes share the model.
        compiled: Whether to compile it.
        recompute: Whether to recompute activations in the backward pass.

    Raises:
        SettingError: the settings do not go together.
    """
    # Before sharding: FSDP wraps the blocks in their current form.
    if recompute:
        transformer.recompute_activations(model)
    if launch.precision == "fp16" and parallel == "fsdp" and distributed.world() > 1:
        raise SettingError(
            "training.precision is 'fp16', --parallel 'fsdp': the gradient scaler sees one shard; "
            "set training.precision = 'bf16'"
        )
    forward = distributed.parallelise(
        model.to(launch.device), parallel, launch.device, block=transformer.Block, half=launch.half
    )
    # Compiled in place: the wrapper of torch.compile would hide the methods that control the exchange of gradients.
    if compiled:
        forward.compile()
    return forward
