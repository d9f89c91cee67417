"""Compare the memory that is counted on the meta device with that of real steps on the CPU."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import baselines
import pytest
import torch
from model_commands import sgmodel
from test_flops import CONFIG, DECODER, HEAD, contrast, spectralgpt
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgdata.errors import SettingError
from sgmodel import commands
from sgmodel.ledger import gpu_batch_sizes
from sgmodel.models import bf16_linear, mae, memory, specs, transformer

HALVES = [None, torch.bfloat16]
TASKS = {
    "classifier": spectralgpt("classifier"),
    "segmenter": spectralgpt("segmenter", head=dataclasses.replace(HEAD, dropout=0.0, dropout_levels=0.0)),
    "unet": specs.TaskSpec(kind="segmenter", recipe=baselines.BASELINES["unet"], bands=12, classes=3),
}


def loss(model: nn.Module, batch: int) -> Tensor:
    device = next(model.parameters()).device
    px = 32 if isinstance(getattr(model, "backbone", None), type(TASKS["unet"].build().backbone)) else 64
    return functional.log_softmax(model(torch.zeros(batch, 12, px, px, device=device)).float(), dim=1).sum()


@contextlib.contextmanager
def kernels_of_gpus(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let attention and linear layers in 16 bits be torch's own, as on a GPU, and not those written for CPUs."""
    with patch.context() as context:
        context.setattr(bf16_linear, "_is_half_on_cpu", lambda x: False)
        context.setattr(transformer, "attend", functional.scaled_dot_product_attention)
        yield


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", TASKS)
def test_what_is_kept_for_the_backward_pass_is_that_of_a_real_step(
    name: str, half: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Unlike a GPU, a CPU normalises groups of channels in 16 bits.
    monkeypatch.setattr(memory, "_SINGLE", memory._SINGLE - {functional.group_norm, torch.group_norm})
    with torch.device("meta"):
        model = TASKS[name].build()
    counted = [memory._bytes(memory._saved(lambda b=b: loss(model, b), model, half)) for b in (1, 3)]  # type: ignore[misc]
    real = TASKS[name].build()
    weights = {weight.untyped_storage().data_ptr() for weight in real.parameters()}
    for expected, batch in zip(counted, (1, 3), strict=True):
        kept: dict[int, Tensor] = {}

        def note(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=half is not None)
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with kernels_of_gpus(monkeypatch), autocast, hooks:
            loss(real, batch)
        measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        # Convolutions of a CPU keep their input in another layout, so that one or the other is counted twice.
        assert measured == pytest.approx(expected, rel=1e-9 if name == "classifier" else 0.15)


class Live(TorchDispatchMode):
    """Note the largest number of bytes of tensors that are alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key)

    def remove(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return output


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_a_step_never_takes_more_than_is_counted(name: str, recompute: bool) -> None:
    if name == "unet" and recompute:
        pytest.skip("it has no blocks")
    batch, model = 3, TASKS[name].build()
    counted = memory.estimate(TASKS[name], 32 if name == "unet" else 64, None, recompute=recompute)
    if recompute:
        transformer.recompute_activations(model)
    optimizer = torch.optim.AdamW(model.parameters())
    loss(model, 1).backward()
    optimizer.step()
    optimizer.zero_grad()
    with Live() as live:
        for tensor in tree_leaves([list(model.parameters()), list(optimizer.state.values())]):
            live.add(tensor)
        loss(model, batch).backward()
        optimizer.step()
    assert 1.0 <= counted.total(batch) / live.peak <= 1.7


def test_every_kind_of_model_is_counted() -> None:
    autoencoder = specs.AutoencoderSpec(encoder=CONFIG, decoder=DECODER, objective=mae.MaskedObjective())
    cases: dict[str, tuple[specs.ModelSpec, int]] = {
        "encoder": (specs.EncoderSpec(encoder=CONFIG), 64),
        "times": (dataclasses.replace(autoencoder, encoder=dataclasses.replace(CONFIG, timesteps=2)), 64),
        "change": (spectralgpt("change"), 64),
        "moco": (contrast("resnet", "moco"), 32),
        "satmae": (specs.TaskSpec(kind="classifier", recipe=baselines.BASELINES["satmae"], bands=12), 32),
    }
    for spec, px in cases.values():
        single, half = (memory.estimate(spec, px, each, mask_ratio=0.75) for each in HALVES)
        assert single.fixed < half.fixed  # 16-bit copies of weights
        assert 0 < half.sample < single.sample
    few, many = (memory.estimate(autoencoder, 64, None, mask_ratio=ratio).sample for ratio in (0.9, 0.5))
    assert few < many


def test_a_frozen_backbone_keeps_nothing() -> None:
    spec = spectralgpt("classifier")
    frozen, trained = (memory.estimate(spec, 64, torch.bfloat16, frozen=frozen) for frozen in (True, False))
    assert frozen.sample < 0.3 * trained.sample  # the images themselves
    assert frozen.trained == 64 * 19 + 19
    assert frozen.total(0) < trained.total(0)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    counted = memory.StepMemory(parameters=1000, trained=900, block=100, outside=50, half=True, fixed=2000, sample=300)
    assert counted.total(2) == 4 * 1000 + 12 * 900 + 2000 + 2 * 300
    # An eighth of the state; two parts and what is outside in 16 bits; two gradients in float32; no copies of weights.
    assert counted.total(2, shards=8) == (4 * 1000 + 12 * 900) // 8 + 2 * (2 * 100 + 50) + 4 * 2 * 100 + 2 * 300
    for shards in (1, 8):
        for size in (1e4, 2e4, 12345.0):
            batch = counted.largest_batch(size, shards=shards)
            assert counted.total(batch + 1, shards=shards) > size
            assert batch == 0 or counted.total(batch, shards=shards) <= size


def test_a_step_names_the_smallest_card() -> None:
    assert gpu_batch_sizes.describe(int(22e9)) == "22.0 GB on a GPU of 24 GB"
    assert gpu_batch_sizes.describe(int(23e9)) == "23.0 GB on a GPU of 48 GB"  # 8 % are not for tensors
    assert gpu_batch_sizes.describe(int(140e9)) == "140.0 GB on no GPU up to 141 GB: raise training.accumulate"


def test_the_table_has_larger_batches_on_larger_cards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_batch_sizes, "STEPS", ("classify",))  # for the sake of time
    assert sgmodel("sizes", "base", "--px", "32", "--processes", "4") == 0
    head, _, *lines = (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in head.split("|")[7:11]] == ["24 GB", "48 GB", "80 GB", "141 GB"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[1:4] for row in rows] == [
        ["classify", precision, shared] for precision in ("fp32", "bf16") for shared in ("whole", "1/4 (fsdp)")
    ]
    for row in rows:
        kept, recomputed = ([int(cell.split()[n].strip("()")) for cell in row[6:]] for n in (0, 1))
        assert kept == sorted(kept) and all(a < b for a, b in zip(kept, recomputed, strict=True))
    with pytest.raises(SettingError, match="size 'tiny': expected base, large or huge"):
        commands.sizes(["tiny"], 32, 4)
