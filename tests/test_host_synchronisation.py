"""Test without a GPU that a GPU run does not wait for its host: on the meta device a wait is an error or is noted."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from synthetic_shards import contract
from torch.utils._python_dispatch import TorchDispatchMode

from sgdata import files, package_data
from sgdata.errors import SettingError
from sgmodel import devices
from sgmodel.data import loader, normalise
from sgmodel.models import encoder, mae, transformer
from sgmodel.recipes import pretrain
from sgmodel.train import optim

META = torch.device("meta")


class Waits(TorchDispatchMode):
    """Note each copy to the device for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sent = "_to_copy" in str(func) and kwargs.get("device") == META and args[0].device != META
        if sent and not kwargs.get("non_blocking"):
            self.copies.append(f"{tuple(args[0].shape)} {args[0].dtype}")
        return func(*args, **kwargs)


def setting(*overrides: str) -> pretrain.Setup:
    path = package_data.folder("recipes") / "train" / "pretrain-fmow-base.toml"
    recipe = files.read(pretrain.PretrainRecipe, path, ("model.depth=1", "decoder.depth=1", *overrides))
    where = devices.Runtime(device=META, precision="fp32")
    if recipe.normalise.scheme == "zscore":
        ones = (1.0,) * 12
        recipe = dataclasses.replace(recipe, normalise=dataclasses.replace(recipe.normalise, mean=ones, std=ones))
    stored = contract(120)
    how = normalise.resolve(recipe.normalise, stored)
    # The last band replaces a missing one.
    band_indices = [*range(11), 3]
    return pretrain.Setup(
        recipe=recipe, stored=stored, contract=stored, band_indices=band_indices, normalisation=how, launch=where
    )


@pytest.mark.parametrize("scheme", ["minmax", "zscore", "clip"])
@pytest.mark.parametrize("masking", ["random", "tube", "spectral"])
@pytest.mark.parametrize("native", [False, True])
def test_the_host_never_waits_within_a_step(
    monkeypatch: pytest.MonkeyPatch, scheme: str, masking: str, native: bool
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no meta device
    ratio = "0.5" if masking == "spectral" else "0.9"
    made = setting(
        f"normalise.scheme={scheme if scheme != 'clip' else 'zscore'}",
        f"objective.masking={masking}",
        f"mask_ratio={ratio}",
        "augment.quarter_turns=true",
    )
    made = dataclasses.replace(made, normalisation=dataclasses.replace(made.normalisation, scheme=scheme))
    sides = {"image_10m": (4, 120), "image_20m": (6, 60), "image_60m": (2, 20)} if native else {"image": (12, 120)}
    batch = loader.Batch(
        keys=("a", "b"),
        samples=torch.arange(2),
        epoch=torch.zeros(2, dtype=torch.int64),
        valid_size=torch.full((2, 2), 120),
        arrays={name: torch.zeros(2, n, px, px, dtype=torch.uint16) for name, (n, px) in sides.items()},
    )
    with META:
        model = pretrain.build(made.recipe)
    # A figure fetched from the device (item, tolist, nonzero, a mask as an index) is an error there.
    with Waits() as waits:
        pretrain.objective(made, model, batch)["loss"].backward()  # type: ignore[no-untyped-call]
    assert waits.copies == []


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # Python 3.13.0 alone
@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_compile_makes_one_graph_of_the_forward_pass(size: str) -> None:
    with META:
        config = dataclasses.replace(getattr(encoder, size)(image_px=16), depth=1)
        model = mae.MaskedAutoencoder(encoder.Encoder(config), mae.DecoderConfig(depth=1))
        images, noise = torch.empty(2, 12, 16, 16), torch.empty(2, config.tokens)
    assert config.width // config.heads % 8 == 0  # what flash attention wants
    transformer.recompute_activations(model)
    torch.compile(model, backend="eager", fullgraph=True)(images, noise=noise, ratio=0.75)
    torch._dynamo.reset()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(devices.distributed, "join", lambda device: None)
    for text in ("auto", "cuda", "cuda:1", "cpu"):
        devices.setup_device(text, precision="fp32", threads=1)
    assert taken == [torch.device("cuda", number) for number in (0, 0, 1)]
    for text, message in (
        ("cuda:2", "GPU 2 is wanted, this machine has 2"),
        ("gpu", "expected auto"),
        ("cuda:x", "GPU x"),
    ):
        with pytest.raises(SettingError, match=message):
            devices.setup_device(text, precision="fp32", threads=1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.setup_device("auto", precision="fp32", threads=1).device == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(SettingError, match="GPU 3 is wanted, this machine has 2"):
        devices.setup_device("auto", precision="fp32", threads=1)


def test_adamw_is_one_kernel() -> None:
    recipe = optim.OptimizerRecipe(lr=1e-3, schedule="cosine", warmup_epochs=0, weight_decay=0.05)
    assert optim.adamw(torch.nn.Linear(2, 2), recipe).defaults["fused"]
