"""Training on several processes: rank and world size, collectives, and sharded tensors.

torchrun starts the processes and sets their ranks in the environment. Ranks differ only in the samples that they read:
random draws depend on (seed, epoch, sample), and rank 0 alone, the lead, writes files.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sgdata.errors import SgdataError, SourceError

log = logging.getLogger("sgdata")
T = TypeVar("T")

Parallel = Literal["ddp", "fsdp"]
"""Way in which ranks share a model: "ddp" replicates it and averages gradients; "fsdp" shards parameters, gradients and
optimizer moments."""


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the rank of this process on its machine, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Return whether this is the process that writes files."""
    return rank() == 0


def join(device: torch.device) -> None:
    """Join the process group of the other ranks; does nothing for a single process."""
    if world_size() > 1 and not distributed.is_initialized():
        # With its device named, NCCL connects now and not at the first barrier, which would have to guess it.
        on_gpu = device.type == "cuda"
        # Decisions are exchanged on the CPU, so that they do not wait for the GPU.
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, device_id=device if on_gpu else None)
        atexit.register(distributed.destroy_process_group)


def mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks, in float64 so that the result does not depend on their number."""
    values = values.double()
    if world_size() > 1:
        distributed.all_reduce(values)
        values /= world_size()
    return values


def total(counts: Tensor, device: torch.device) -> Tensor:
    """Return the sum of a tensor over all ranks, on the CPU.

    Args:
        counts: Tensor of this rank, on the CPU, of the same shape on every rank.
        device: Device of the process group.
    """
    if world_size() == 1:
        return counts
    summed = counts.to(device)
    distributed.all_reduce(summed)
    return summed.cpu()


def assign_to_rank(plan: Iterable[T]) -> list[tuple[T, bool]]:
    """Return the items of a plan that this rank takes, in turn with the others, and whether each counts.

    All ranks get equally many, since with FSDP each forward pass needs all of them: the last round repeats items that
    another rank counts.
    """
    items = list(plan)
    rounds = -(-len(items) // world_size())
    return [(items[n % len(items)], n < len(items)) for n in range(rank(), rounds * world_size(), world_size())]


def is_sharded(model: nn.Module) -> bool:
    """Return whether each forward pass of `model` needs all ranks (FSDP)."""
    return isinstance(model, FSDPModule)


def agree(flags: Sequence[bool]) -> list[bool]:
    """Return for each flag whether it is set on any rank, so that all ranks take the same decision.

    Ranks that stopped at different steps would wait for each other for ever.

    Args:
        flags: Flags of this rank, as many on every rank.
    """
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def agreed(batches: Iterator[T]) -> Iterator[T]:
    """Yield batches until that of one rank cannot be read; then raise on every rank, so that all of them can save.

    Args:
        batches: Batches of this rank, as many on every rank.

    Raises:
        SgdataError: A rank cannot read its batch.
    """
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except SgdataError as error:
            failure = error
        (failed,) = agree([failure is not None])
        if failed:
            raise failure or SourceError("another process of this run cannot read its samples, and says why")
        if batch is None:
            return
        yield batch


def gather_names(names: Sequence[str]) -> list[str]:
    """Return the names of all ranks, in the order of ranks."""
    if world_size() == 1:
        return list(names)
    lists: list[list[str]] = [[] for _ in range(world_size())]
    distributed.all_gather_object(lists, list(names))
    return [name for part in lists for name in part]


def wait() -> None:
    """Wait until every rank has come here and all collectives are done; returns at once without a process group."""
    if distributed.is_initialized():
        distributed.barrier()


# --- the model -----------------------------------------------------------------------------


def parallelise(
    model: nn.Module, parallel: Parallel, device: torch.device, *, block: type[nn.Module], half: torch.dtype | None
) -> nn.Module:
    """Return the module to call in place of `model` in training; `model` itself for a single process.

    "fsdp" shards the parameters in place, so an optimizer is created afterwards.

    Args:
        model: The model, on `device`.
        parallel: Way in which ranks share it.
        device: Device of this rank.
        block: Class of the submodules that are sharded and gathered one at a time; "fsdp" only.
        half: Number format in which parameters are gathered, if not single precision, in which they are stored;
            "fsdp" only.
    """
    if world_size() == 1:
        return model
    if parallel == "ddp":
        # Gradients are views of the buffers that are exchanged, which would otherwise take as much memory again.
        own = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=own, gradient_as_bucket_view=True)
    mesh = init_device_mesh(device.type, (world_size(),))
    # Inputs are not cast: activations between the blocks stay in single precision, as without shards.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in model.modules():  # block by block, so that one is gathered while the previous one computes
        if isinstance(part, block):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@contextmanager
def sync_gradients(model: nn.Module, *, now: bool) -> Iterator[None]:
    """Let backward passes inside the context average gradients over ranks (`now`), or accumulate them locally.

    All but the last micro-batch of a step accumulate.
    """
    if isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    yield


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, which shares its memory, and any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def unshard(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as a whole one (all ranks must call), and any other unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collect(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors on the CPU of the lead, for its files, and none on other ranks. All ranks must call."""
    collected: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        complete = unshard(tensor.detach())
        if is_main_process():
            collected[name] = complete.cpu().contiguous()
    return collected


def shard_like(value: Tensor, target: Tensor) -> Tensor:
    """Return a copy of the whole tensor `value` on the device of `target`, sharded if `target` is."""
    value = value.to(target.device, copy=True)
    return distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value


@contextmanager
def explain_lost_ranks() -> Iterator[None]:
    """Turn errors of the transport inside the context into one line that names the cause.

    Raises:
        SourceError: Another rank cannot be reached any more.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if world_size() == 1 or not any(word in text for word in ("gloo", "nccl", "peer", "connection", "timed out")):
            raise
        first = next(line for line in str(error).splitlines() if line.strip())
        raise SourceError(
            f"rank {rank()} of {world_size()}: another process of this run has ended ({first:.80}); "
            "find out why; the same command then resumes from checkpoint-last"
        ) from None


def share_statistics(model: nn.Module, device: torch.device) -> None:
    """Let BatchNorm compute its statistics over the samples of all processes, as a single one would.

    Changes the model in place, whatever backbone it has. On CPUs torch cannot do this, which is logged.

    Args:
        model: The model, before it is wrapped for several processes.
        device: Device of this process.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    if norms and device.type == "cuda":
        # timm's own function: torch's would drop the activations inside timm's norm layers.
        importlib.import_module("timm.layers").convert_sync_batchnorm(model)
    elif norms:
        log.warning(
            "%d BatchNorm layers compute statistics over the samples of one process; torch can join them on GPUs only",
            len(norms),
        )
