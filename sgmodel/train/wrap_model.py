"""Wrap a model for training: on its device, shared among processes, with recomputed activations, compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from sgdata.errors import SettingError
from sgmodel import devices, distributed
from sgmodel.models import transformer
from sgmodel.train import float8


def wrap(
    model: nn.Module,
    launch: devices.Runtime,
    parallel: distributed.Parallel,
    *,
    compiled: bool,
    cuda_graphs: bool,
    recompute: bool,
) -> nn.Module:
    """Move `model` to its device and return it as wrapped for training. Create the optimizer afterwards.

    Args:
        model: The model to train.
        launch: Device and precision.
        parallel: How several processes share the model.
        compiled: Whether to compile it, at its first step.
        cuda_graphs: Whether the compiled model runs as CUDA graphs.
        recompute: Whether to recompute activations in the backward pass.

    Raises:
        SettingError: The settings do not go together, or do not fit the model or the device.
    """
    # Both before sharding: FSDP wraps the blocks in their current form.
    if launch.precision == "fp8":
        float8.convert(model, launch)
    if recompute:
        _recompute(model)
    if launch.precision == "fp16" and parallel == "fsdp" and distributed.world_size() > 1:
        raise SettingError(
            "training.precision is 'fp16', --parallel 'fsdp': the gradient scaler sees one shard; "
            "set training.precision = 'bf16'"
        )
    if cuda_graphs and not (compiled and launch.device.type == "cuda"):
        message = f"training.cuda_graphs is true, training.compile {str(compiled).lower()}, device {launch.device.type}"
        raise SettingError(f"{message}: expected a compiled model on a GPU; set training.cuda_graphs = false")
    forward = distributed.parallelise(
        model.to(launch.device), parallel, launch.device, block=transformer.Block, half=launch.half
    )
    # Compiled in place: the wrapper of torch.compile would hide the methods that control the exchange of gradients.
    # For fixed shapes, since all batches of a run are equally large.
    if compiled:
        forward.compile(dynamic=False, mode="reduce-overhead" if cuda_graphs else "default")
    return forward


def _recompute(model: nn.Module) -> None:
    """Make `model` recompute the activations of its blocks. Raises SettingError if it has none."""
    if any(isinstance(module, transformer.Block) for module in model.modules()):
        transformer.recompute_activations(model)
        return
    # timm's models have a switch of their own.
    with_switch: list[Any] = [module for module in model.modules() if hasattr(module, "set_grad_checkpointing")]
    if not with_switch:
        raise SettingError("training.recompute is true: the model has no blocks; set training.recompute = false")
    for module in with_switch:
        module.set_grad_checkpointing()


@contextmanager
def explain_compiler() -> Iterator[None]:
    """Turn errors of torch's compiler inside the context into one line. Raises SettingError."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        why = " ".join(str(error).split())
        raise SettingError(
            f"training.compile is true: torch cannot compile the model here ({type(error).__name__}: {why:.300}); "
            "set training.compile = false"
        ) from None
