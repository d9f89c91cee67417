"""Compute how large a batch fits on a GPU: a table of model sizes, and the GPU that a run needs.

    sgmodel sizes

Memory is an upper bound counted on the meta device, see `sgmodel.models.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from sgmodel import devices
from sgmodel.models import encoder, factory, mae, memory, specs, upernet

Size = Literal["base", "large", "huge"]
SIZES = get_args(Size)
GPU_MEMORY_GB = (24, 48, 80, 141)
"""Memory of common GPUs, in 10^9 bytes."""
USABLE = 0.92
"""Share of a GPU's memory that tensors can have; the rest goes to CUDA itself and to gaps between tensors."""
PRECISIONS: tuple[devices.Precision, ...] = ("fp32", "bf16")
STEPS = ("pretrain", "classify", "segment")
MASK_RATIO = 0.9
CLASSES = {"classify": 19, "segment": 13}


def table(sizes: Sequence[Size], *, px: int, processes: int) -> Iterator[str]:
    """Yield the lines of a table in Markdown: for each size, step, precision and sharding the largest batches.

    Args:
        sizes: Sizes of the model.
        px: Side of the images in pixels.
        processes: Number of GPUs among which FSDP shards a model.
    """
    heads = " | ".join(f"{memory_gb} GB" for memory_gb in GPU_MEMORY_GB)
    yield f"| size | step | precision | model on each GPU | GB without samples | MB a sample | {heads} |"
    yield "|---" * (6 + len(GPU_MEMORY_GB)) + "|"
    for size in sizes:
        for step in STEPS:
            for precision in PRECISIONS:
                both = [_count(size, step, precision, px, recompute=recompute) for recompute in (False, True)]
                for shards in (1, processes):
                    shared = "whole" if shards == 1 else f"1/{shards} (fsdp)"
                    state = f"{both[0].total(0, shards=shards) / 1e9:.1f}"
                    sample = "{:.0f} ({:.0f})".format(*(each.sample / 1e6 for each in both))
                    batches = [_batches(both, memory_gb, shards) for memory_gb in GPU_MEMORY_GB]
                    yield f"| {' | '.join([size, step, precision, shared, state, sample, *batches])} |"


def _batches(both: Sequence[memory.StepMemory], memory_gb: float, shards: int) -> str:
    """Return the largest batches without and with recomputed activations."""
    return "{} ({})".format(*(each.largest_batch(USABLE * memory_gb * 1e9, shards=shards) for each in both))


def describe(needed: int) -> str:
    """Describe the memory that a step needs, in bytes, and the smallest GPU with that much."""
    gpu = next((f"a GPU of {memory_gb} GB" for memory_gb in GPU_MEMORY_GB if needed <= USABLE * memory_gb * 1e9), "")
    return f"{needed / 1e9:.1f} GB on {gpu or f'no GPU up to {GPU_MEMORY_GB[-1]} GB: raise training.accumulate'}"


def _count(size: Size, step: str, precision: devices.Precision, px: int, *, recompute: bool) -> memory.StepMemory:
    config = {"base": encoder.base, "large": encoder.large, "huge": encoder.huge}[size](image_px=px)
    half = devices.HALF.get(precision)
    if step == "pretrain":
        spec: specs.ModelSpec = specs.AutoencoderSpec(
            encoder=config, decoder=mae.DecoderConfig(), objective=mae.MaskedObjective()
        )
        return memory.estimate(spec, px, half, mask_ratio=MASK_RATIO, recompute=recompute)
    head = upernet.HeadConfig() if step == "segment" else None
    recipe = factory.ModelRecipe(backbone="spectralgpt", encoder=config, head=head)
    spec = specs.TaskSpec(
        kind="segmenter" if head else "classifier", recipe=recipe, bands=config.image_bands, classes=CLASSES[step]
    )
    return memory.estimate(spec, px, half, recompute=recompute)
