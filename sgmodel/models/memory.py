"""Memory of a training step on a GPU, counted on the meta device, where tensors have sizes and no data.

What the forward pass keeps for the backward pass is counted as the model runs, so that every kind of model has a count.
Autocast and fused attention, which the meta device lacks, are imitated: matrix products take and give 16 bits,
normalisation float32, and attention keeps queries, keys, values, its result and a sum per query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sgmodel.models import specs, transformer

Forward = Callable[[nn.Module, int], Tensor]
"""A function that runs a model on a number of samples of the meta device up to a loss."""

_PRODUCTS = frozenset(
    {
        functional.linear, functional.conv1d, functional.conv2d, functional.conv3d, functional.conv_transpose2d,
        torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d, torch.matmul, torch.bmm, torch.addmm,
        torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm, torch.einsum,
    }
)  # fmt: skip
_SINGLE = frozenset(
    {
        functional.layer_norm, torch.layer_norm, functional.group_norm, torch.group_norm, functional.softmax,
        torch.softmax, torch.Tensor.softmax, functional.log_softmax, functional.cross_entropy, functional.normalize,
    }
)  # fmt: skip


class _Attention(torch.autograd.Function):
    """Fused attention, as far as what it keeps is concerned."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return gradient, gradient, gradient


class _Imitation(TorchFunctionMode):
    """Autocast to `half` (None for single precision), and fused attention.

    Args:
        half: Number format of matrix products.
    """

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self.half = half
        self.weights: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _Attention.apply(*(self._cast(each) for each in args[:3]))  # type: ignore[no-untyped-call]
        if self.half is not None and func in _PRODUCTS:
            args, kwargs = self._each(self._cast, args), {name: self._each(self._cast, x) for name, x in kwargs.items()}
        elif self.half is not None and func in _SINGLE:
            args = self._each(lambda x: x.float() if x.dtype is self.half else x, args)
        return func(*args, **kwargs)

    def _each(self, change: Callable[[Tensor], Tensor], value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._each(change, each) for each in value)
        return change(value) if isinstance(value, Tensor) else value

    def _cast(self, tensor: Tensor) -> Tensor:
        if self.half is None or tensor.dtype is not torch.float32:
            return tensor
        if not tensor.is_leaf or not tensor.requires_grad:
            return tensor.to(self.half)
        # Weights are cast once in a forward pass.
        return self.weights.setdefault(id(tensor), tensor.to(self.half))


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Memory of a training step, in bytes but for the numbers of parameters.

    Attributes:
        parameters: Parameters and buffers.
        trained: Parameters that are trained.
        block: Parameters of the largest part that sharding gathers at a time.
        outside: Parameters outside such parts, which are gathered for the whole step.
        half: Whether matrix products take 16 bits.
        fixed: Bytes kept for the backward pass whatever the batch: 16-bit copies of weights.
        sample: Bytes per sample, kept for the backward pass or in use at once.
    """

    parameters: int
    trained: int
    block: int
    outside: int
    half: bool
    fixed: int
    sample: int

    def total(self, batch: int, *, shards: int = 1) -> int:
        """Return the bytes of a step on `batch` samples of one process.

        Args:
            batch: Samples that pass through the model at once.
            shards: Number of processes among which FSDP shards the model; 1 for a whole model on each.
        """
        # Weights, gradients and the two moments of AdamW, all in float32.
        state = 4 * self.parameters + 12 * self.trained
        if shards == 1:
            return state + self.fixed + batch * self.sample
        # One part computes while the next is gathered, and gradients are exchanged in float32.
        gathered = (2 * self.block + self.outside) * (2 if self.half else 4) + 2 * 4 * self.block
        return -(-state // shards) + gathered + batch * self.sample

    def largest_batch(self, memory: float, *, shards: int = 1) -> int:
        """Return the most samples of one process that fit into `memory` bytes; 0 if none does."""
        return max(0, int((memory - self.total(0, shards=shards)) // self.sample))


def estimate(
    spec: specs.ModelSpec,
    px: int,
    half: torch.dtype | None,
    *,
    mask_ratio: float = 0.0,
    frozen: bool = False,
    recompute: bool = False,
) -> StepMemory:
    """Count the memory of a training step of a model.

    Args:
        spec: The model.
        px: Side of the images in pixels.
        half: 16-bit format of matrix products; None for single precision.
        mask_ratio: Share of the tokens that an autoencoder masks.
        frozen: Whether the backbone is not trained.
        recompute: Whether blocks recompute their activations.
    """
    with torch.device("meta"):
        model: Any = spec.build()
    if frozen:
        model.backbone.freeze()
    if recompute:
        transformer.recompute_activations(model)
    match spec:
        case specs.EncoderSpec() | specs.AutoencoderSpec():
            images, bands = 1, spec.encoder.image_bands * spec.encoder.timesteps
        case specs.ContrastSpec():
            images, bands = 2, spec.bands
        case specs.TaskSpec():
            images, bands = spec.images, spec.bands
        case _:
            assert_never(spec)

    def forward(model: nn.Module, batch: int) -> Tensor:
        shown = [torch.empty(batch, bands, px, px, device="meta") for _ in range(images)]
        match spec:
            case specs.AutoencoderSpec():
                encoder = spec.encoder
                dates = (encoder.timesteps,) if encoder.timesteps > 1 else ()
                noise = torch.empty(batch, encoder.tokens, device="meta")
                stacked = shown[0].reshape(batch, *dates, encoder.image_bands, px, px)
                loss: Tensor = model(stacked, noise=noise, ratio=mask_ratio).loss
                return loss
            case specs.ContrastSpec():
                return model(*shown)[0]  # type: ignore[no-any-return]
            case specs.EncoderSpec() | specs.TaskSpec():
                return functional.log_softmax(model(*shown).float(), dim=1).sum()
            case _:
                assert_never(spec)

    counted = count(model, forward, half)
    # As stored, normalised and cropped, in float32.
    return replace(counted, sample=counted.sample + 3 * 4 * images * bands * px**2)


def count(model: nn.Module, forward: Forward, half: torch.dtype | None) -> StepMemory:
    """Count the memory of a training step.

    Args:
        model: The model, on the meta device, as it is trained.
        forward: Runs it.
        half: 16-bit format of matrix products; None for single precision.
    """
    # Not of one sample, over which BatchNorm cannot compute statistics.
    two, four = (_kept(model, forward, half, batch) for batch in (2, 4))
    blocks = [part for part in model.modules() if isinstance(part, transformer.Block)]
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
    parameters = sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])
    return StepMemory(
        parameters=parameters,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        block=max(sizes, default=0),
        outside=parameters - sum(sizes),
        half=half is not None,
        fixed=2 * two - four,
        sample=(four - two) // 2,
    )


def _kept(model: nn.Module, forward: Forward, half: torch.dtype | None, batch: int) -> int:
    """Return the bytes that a step on `batch` samples keeps for the backward pass, and those it then works on."""
    inputs: dict[int, tuple[transformer.Block, Tensor]] = {}

    def note(block: nn.Module, args: Any) -> None:
        if isinstance(block, transformer.Block) and block.recompute:
            inputs[id(block)] = (block, args[0])

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        saved = _saved(lambda: forward(model, batch), model, half)
    finally:
        handle.remove()
    # Of a block that is recomputed its input alone is kept, and one block at a time is computed again.
    saved |= {tensor.untyped_storage()._cdata: tensor for _, tensor in inputs.values()}
    again = 0
    if inputs:
        block, tensor = max(inputs.values(), key=lambda each: each[1].numel())
        block.recompute = False
        again = _bytes(_saved(lambda: block(tensor.detach().requires_grad_()), model, half))
        block.recompute = True
    # A result, its gradient and that of an input.
    working = 3 * max(_bytes({0: tensor}) for tensor in saved.values())
    return _bytes(saved) + again + working


def _saved(run: Callable[[], Tensor], model: nn.Module, half: torch.dtype | None) -> dict[int, Tensor]:
    """Return the tensors that `run` keeps for the backward pass by their storage, weights excluded."""
    weights = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in weights:
            saved[address] = tensor
        return tensor

    with _Imitation(half), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return saved


def _bytes(tensors: dict[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
