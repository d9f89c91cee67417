"""Test training in FP8: values of products, which layers have them, refusals, whole runs, and several processes."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import baselines
import numpy as np
import pytest
import torch
from synthetic_shards import write, write_scenes
from test_pretrain import recipe, run_paths_for
from test_ranks import losses, run
from torch import Tensor, nn

from sgdata import files, package_data
from sgdata.errors import SettingError
from sgmodel import devices
from sgmodel.checkpoints import weight_files
from sgmodel.models import bf16_linear, encoder, mae, memory, specs, transformer
from sgmodel.recipes import classify, pretrain
from sgmodel.train import float8, run_paths, wrap_model

CPU = devices.Runtime(device=torch.device("cpu"), precision="fp8")
CUDA = devices.Runtime(device=torch.device("cuda", 0), precision="fp8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("float8") / "shards", train=6, val=2)


def autoencoder(width: int = 32, hidden: float = 4.0) -> mae.MaskedAutoencoder:
    torch.manual_seed(0)
    config = encoder.EncoderConfig(image_px=32, width=width, depth=2, heads=2, mlp_ratio=hidden)
    return mae.MaskedAutoencoder(
        encoder.Encoder(config), mae.DecoderConfig(width=32, depth=1, heads=2), mae.MaskedObjective()
    )


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear))


# --- values --------------------------------------------------------------------------------


def rounded(x: Tensor, form: torch.dtype) -> Tensor:
    """Return float32 values as they are in `form` after scaling by the largest."""
    scale = (torch.finfo(form).max / x.double().abs().max()).float()
    return (x.float() * scale).to(form).float() / scale


def test_products_are_those_of_rounded_factors() -> None:
    torch.manual_seed(0)
    block = transformer.Block(32, 2, 4.0)
    float8.convert(block, CPU)
    x, g = torch.randn(3, 7, 32, requires_grad=True), torch.randn(3, 7, 128).bfloat16()  # 21 tokens are padded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = bf16_linear.project(x, block.mlp.fc1)
    out.backward(g)  # type: ignore[no-untyped-call]
    weight, bias = block.mlp.fc1.weight, block.mlp.fc1.bias
    x_TD, g_TO = rounded(x.detach().bfloat16().flatten(0, 1), torch.float8_e4m3fn), rounded(g, torch.float8_e5m2)
    w_OD, g_TO = rounded(weight.detach(), torch.float8_e4m3fn), g_TO.flatten(0, 1)
    assert out.dtype == torch.bfloat16
    expected = ((x_TD @ w_OD.t()).bfloat16() + bias.bfloat16()).view_as(out)
    assert x.grad is not None and weight.grad is not None and bias.grad is not None
    found = {"out": (out, expected), "x": (x.grad, (g_TO @ w_OD).view(3, 7, 32)), "w": (weight.grad, g_TO.t() @ x_TD)}
    for name, (ours, theirs) in found.items():
        np.testing.assert_allclose(ours.detach().float(), theirs.detach().float(), rtol=0.01, atol=0.01, err_msg=name)
    assert weight.grad.dtype == bias.grad.dtype == weight.dtype == torch.float32
    plain = torch.nn.functional.linear(x, weight, bias)
    assert (
        0.005 < float((out - plain).detach().norm() / plain.detach().norm()) < 0.06
    )  # e4m3 has three bits of mantissa


def test_blocks_alone_are_converted_and_weights_keep_their_names() -> None:
    model = autoencoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    float8.convert(model, CPU)
    kinds = {name: type(layer) for name, layer in layers(model)}
    assert {name for name, kind in kinds.items() if kind is not nn.Linear} == {
        name for name in kinds if "blocks" in name
    }
    assert list(model.state_dict()) == list(before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == torch.float32


def test_layers_of_other_widths_stay_in_bf16(caplog: pytest.LogCaptureFixture) -> None:
    model = autoencoder(hidden=1.25)  # 32 x 40 in the encoder's MLP
    with caplog.at_level(logging.INFO, "sgdata"):
        float8.convert(model, CPU)
    plain = {name for name, layer in layers(model) if type(layer) is nn.Linear and "blocks" in name}
    assert plain == {f"blocks.{n}.mlp.{name}" for n in (0, 1) for name in ("fc1", "fc2")}
    assert "FP8 in 14 of 18 linear layers of the transformer blocks" in caplog.text


def test_the_counted_memory_of_bf16_is_enough() -> None:
    """GPUs keep the input of a layer in bf16, as emulation does, and no copy of its weights."""
    model, images = autoencoder(), torch.rand(4, 12, 32, 32)
    float8.convert(model, CPU)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with CPU.autocast(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(images, noise=torch.rand(4, 64), ratio=0.75)
    counted = memory.estimate(specs.describe(autoencoder()), 32, CPU.half, mask_ratio=0.75)
    assert 0.5 * counted.total(4) < sum(kept.values()) + 16 * counted.parameters < counted.total(4)
    assert counted.half


def gradients(model: mae.MaskedAutoencoder, images: Tensor) -> tuple[float, Tensor]:
    forward = wrap_model.wrap(model, CPU, "ddp", compiled=False, cuda_graphs=False, recompute=False)
    return backward(forward, images)


def backward(forward: nn.Module, images: Tensor) -> tuple[float, Tensor]:
    with CPU.autocast():
        noise = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
        loss = forward(images, noise=noise, ratio=0.75).loss
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in forward.parameters() if p.grad is not None])


@pytest.mark.parametrize("how", ["recomputed", pytest.param("compiled", marks=pytest.mark.slow)])
def test_recomputed_and_compiled_steps_have_the_same_gradients(how: str) -> None:
    model, images = autoencoder(), torch.rand(2, 12, 32, 32)
    other = copy.deepcopy(model)
    loss, expected = gradients(model, images)
    forward = wrap_model.wrap(other, CPU, "ddp", compiled=False, cuda_graphs=False, recompute=how == "recomputed")
    if how == "compiled":  # traced, without generated code, which takes a minute
        forward.compile(backend="aot_eager", dynamic=False)
    found, gradient = backward(forward, images)
    assert found == pytest.approx(loss, rel=1e-3)
    assert float((gradient - expected).norm() / expected.norm()) < (0.0 if how == "recomputed" else 0.02) + 1e-9
    torch._dynamo.reset()


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("resnet", 0), ("vit", 0)])
def test_models_without_such_layers_are_refused(name: str, count: int) -> None:
    model = baselines.build("classifier", baselines.BASELINES[name])
    with pytest.raises(SettingError, match=f"has {count} linear layers in transformer blocks .* none with widths"):
        float8.convert(model, CPU)
    with pytest.raises(SettingError, match="multiples of 16; set training.precision = 'bf16'"):
        float8.convert(transformer.Block(24, 2, 1.0), CPU)


def test_a_missing_torchao_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(SettingError, match=r"'fp8': torchao cannot be loaded \(.*pip install 'sgdata\[fp8\]', or set"):
        float8.check(CPU)
    float8.check(devices.Runtime(device=CPU.device, precision="bf16"))


def test_gpus_without_fp8_are_refused_and_a_cpu_is_said_to_emulate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    for capability in ((8, 9), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        float8.check(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(SettingError, match="NVIDIA A100 has compute capability 8.0, expected 8.9 or higher; set"):
        float8.check(CUDA)
    assert not caplog.records
    float8.check(CPU)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "emulated on a CPU" in record.message


def test_the_rate_of_products_is_not_measured(folder: Path, tmp_path: Path) -> None:
    paths = run_paths_for(folder, tmp_path / "run", measure_peak=True)
    with pytest.raises(SettingError, match="products in FP8 alone are not measured; leave out"):
        pretrain.main(recipe("training.precision=fp8"), paths)
    assert not (tmp_path / "run").exists()


# --- whole runs ----------------------------------------------------------------------------


def pretrained(folder: Path, out: Path, precision: str, *settings: str, **others: object) -> int:
    chosen = recipe(f"training.precision={precision}", "training.ema_decay=0.5", *settings)
    return pretrain.main(chosen, run_paths_for(folder, out, **others))


def weights(run: Path) -> dict[str, Tensor]:
    return weight_files.read(run / "checkpoint-last" / "model.safetensors")


def test_a_run_resumes_to_equal_bytes_and_its_weights_fit_bf16(folder: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert pretrained(folder, whole, "fp8") == 0
    assert pretrained(folder, out, "fp8", stop_after=4) != 0
    assert pretrained(folder, out, "fp8") == 0
    assert (out / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()
    assert (out / "checkpoint-last" / "ema.safetensors").is_file()
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["precision"] == "fp8"
    plain, back = tmp_path / "bf16", tmp_path / "back"
    assert pretrained(folder, plain, "bf16", weights=whole / "checkpoint-last") == 0
    assert pretrained(folder, back, "fp8", weights=plain / "checkpoint-last") == 0
    assert weights(whole).keys() == weights(plain).keys() == weights(back).keys()
    fresh = tmp_path / "fresh"
    assert pretrained(folder, fresh, "bf16") == 0
    assert losses(whole) != losses(fresh)
    np.testing.assert_allclose(losses(whole), losses(fresh), rtol=0.02)
    assert losses(plain)[0] < losses(fresh)[0]  # it starts from the other's weights


@pytest.mark.parametrize("mode", ["finetune", "linear-probe"])
def test_a_classifier_is_trained(mode: str, tmp_path: Path) -> None:
    changes = ["model.encoder.image_px=16", "model.encoder.width=32", "model.encoder.depth=1", "training.batch=4"]
    changes += ["training.epochs=1", "labels_from=labels", "training.precision=fp8", f"mode={mode}"]
    path = package_data.folder("recipes") / "train" / "classify-demo-tiny.toml"
    chosen = files.read(classify.ClassifyRecipe, path, changes)
    shards = write_scenes(tmp_path / "shards")
    paths = run_paths.RunPaths(shards=shards, out=tmp_path / "run", device="cpu", threads=1)
    assert classify.main(chosen, paths) == 0
    assert all(np.isfinite(losses(tmp_path / "run")))


@pytest.mark.slow
def test_ranks_have_nearly_the_curve_of_one(folder: Path, tmp_path: Path) -> None:
    """Not exactly: each rank scales its own samples by their largest value."""
    run(folder, tmp_path / "one", "--set=training.precision=fp8", ranks=1)
    for parallel in ("ddp", "fsdp"):
        out = tmp_path / parallel
        run(folder, out, "--set=training.precision=fp8", "--parallel", parallel, ranks=2)
        np.testing.assert_allclose(losses(out), losses(tmp_path / "one"), rtol=0.01)
        assert weights(out).keys() == weights(tmp_path / "one").keys()
