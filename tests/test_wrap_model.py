"""Test what is done to a model before training: recomputed activations, compilation, and the refusals of both."""

from __future__ import annotations

from typing import Any

import baselines
import pytest
import torch
from torch import Tensor

from sgdata.errors import SettingError
from sgmodel import devices
from sgmodel.train import loop, wrap_model

CPU = devices.Runtime(device=torch.device("cpu"), precision="fp32")


def wrap(model: torch.nn.Module, **settings: bool) -> torch.nn.Module:
    chosen = {"compiled": False, "cuda_graphs": False, "recompute": False} | settings
    return wrap_model.wrap(model, CPU, "ddp", **chosen)


def saved_bytes(model: torch.nn.Module, images: Tensor) -> tuple[int, Tensor]:
    """Return the bytes that the forward pass keeps for the backward pass, weights excluded, and the output."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)
    return sum(kept.values()), output


@pytest.mark.parametrize("name", ["spectralgpt", "satmae", "vit", "resnet"])
def test_recomputed_activations_are_not_kept(name: str) -> None:
    images = torch.rand(2, 12, 32, 32)
    torch.manual_seed(0)
    model = baselines.build("classifier", baselines.BASELINES[name]).train()
    plain, expected = saved_bytes(model, images)
    wrap(model, recompute=True)
    less, output = saved_bytes(model, images)
    assert less < 0.9 * plain
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", ["linear", "unet"])
def test_models_without_blocks_cannot_recompute(name: str) -> None:
    with pytest.raises(SettingError, match="the model has no blocks; set training.recompute = false"):
        wrap(baselines.build("segmenter", baselines.BASELINES[name]), recompute=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_cuda_graphs_need_a_compiled_model_on_a_gpu(compiled: bool) -> None:
    model = baselines.build("classifier", baselines.BASELINES["spectralgpt"])
    with pytest.raises(
        SettingError, match=f"training.compile {str(compiled).lower()}, device cpu: expected a compiled"
    ):
        wrap(model, compiled=compiled, cuda_graphs=True)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_errors_of_the_compiler_are_one_line() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no C++ compiler\nfound")

    class Doubled(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model = Doubled()
    model.compile(backend=broken)
    message = r"cannot compile the model here \(.*no C\+\+ compiler found.*training.compile = false"
    with pytest.raises(SettingError, match=message), wrap_model.explain_compiler():
        model(torch.ones(1, 2))
    with pytest.raises(KeyError), wrap_model.explain_compiler():
        raise KeyError("of the program itself")
    with loop.evaluating(model):  # a compiled model is scored as it is written
        assert model(torch.ones(1, 2)).shape == (1, 2)
    torch._dynamo.reset()
