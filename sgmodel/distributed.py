"""A run on several processes: who am I, what do we agree on, whole tensors from sharded ones and back.

Started by torchrun, which says in the environment which of how many processes this is. Ranks differ in the samples
they read and in nothing else: draws depend on (seed, epoch, sample), and only rank 0, the lead, writes files.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sgdata.errors import SourceError

Parallel = Literal["ddp", "fsdp"]
"""A whole model per rank, gradients averaged; or every parameter, gradient and moment in shards."""


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local() -> int:
    """Number of this process on its machine, hence of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def lead() -> bool:
    """True in the one process that writes files."""
    return rank() == 0


def join(device: torch.device) -> None:
    """Meet the other ranks; nothing to do for a process that is alone."""
    if world() > 1 and not distributed.is_initialized():
        # With its device named, NCCL connects now and not at the first barrier, which would have to guess it.
        on_gpu = device.type == "cuda"
        distributed.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
        atexit.register(distributed.destroy_process_group)


def mean(figures: Tensor) -> Tensor:
    """The mean over all ranks of a tensor of figures, in float64 so that the number of ranks is not seen."""
    figures = figures.double()
    if world() > 1:
        distributed.all_reduce(figures)
        figures /= world()
    return figures


def agreed(answers: Sequence[bool], device: torch.device) -> list[bool]:
    """Each answer true where any rank says so. Ranks that stopped at different steps would wait for ever."""
    if world() == 1:
        return list(answers)
    votes = torch.tensor(answers, dtype=torch.int32, device=device)
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def gathered(names: Sequence[str]) -> list[str]:
    """The names of all ranks, in the order of ranks."""
    if world() == 1:
        return list(names)
    lists: list[list[str]] = [[] for _ in range(world())]
    distributed.all_gather_object(lists, list(names))
    return [name for part in lists for name in part]


def wait() -> None:
    """Go on when every rank has come here, the work of all collectives done; alone, or before `join`, at once."""
    if distributed.is_initialized():
        distributed.barrier()


# --- the model -----------------------------------------------------------------------------


def spread(
    model: nn.Module, parallel: Parallel, device: torch.device, *, block: type[nn.Module], half: torch.dtype | None
) -> nn.Module:
    """What to call in place of `model` in training. "fsdp" shards its parameters in place, those of each `block` by
    themselves: make the optimizer after. They are gathered in the format `half`, if any, and kept in single precision.
    """
    if world() == 1:
        return model
    if parallel == "ddp":
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (world(),))
    # Inputs stay as they come: the stream between the blocks is in single precision, as without shards.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in model.modules():  # block by block, so that one is gathered while the one before computes
        if isinstance(part, block):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@contextmanager
def exchange(model: nn.Module, *, now: bool) -> Iterator[None]:
    """Within it a backward pass exchanges gradients, or (all but the last micro-batch of a step) keeps its own."""
    if isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    yield


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together (all ranks must call), any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collected(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of them whole and on the CPU of the lead, for its files; the other ranks take part and get none."""
    found = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in found if lead()}


def like(value: Tensor, target: Tensor) -> Tensor:
    """The whole tensor `value` on the device of `target`, and in shards where that is."""
    value = value.to(target.device, copy=True)
    return distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value


@contextmanager
def together() -> Iterator[None]:
    """Raises SourceError where the others cannot be reached any more, in place of the transport's long story."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if world() == 1 or not any(word in text for word in ("gloo", "nccl", "peer", "connection", "timed out")):
            raise
        first = next(line for line in str(error).splitlines() if line.strip())
        raise SourceError(
            f"rank {rank()} of {world()}: another process of this run has gone ({first:.80}); "
            "find out why it ended, then the same command goes on from checkpoint-last"
        ) from None
