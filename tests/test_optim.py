"""Test schedules step by step against the released code, and which parameters are decayed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from baselines import build, spectralgpt
from torch import nn

from sgmodel.models import encoder, state_keys
from sgmodel.train import optim

PRETRAIN = optim.OptimizerRecipe(lr=3.2e-3, schedule="cosine", warmup_epochs=20, weight_decay=0.05, betas=(0.9, 0.95))


def make(lr: float, warmup: float, epochs: int, per_epoch: int, rule: str = "cosine") -> np.ndarray:
    recipe = optim.OptimizerRecipe(lr=lr, schedule=rule, warmup_epochs=warmup, weight_decay=0.0)  # type: ignore[arg-type]
    rate = optim.schedule(recipe, steps_per_epoch=per_epoch, total=epochs * per_epoch)
    return np.array([rate(step) * 1e6 for step in range(epochs * per_epoch)])


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "warmup", "per_epoch"),
    [("pretrain_stage1", 3.2e-3, 200, 20, 3), ("finetune_cls", 2e-4, 150, 20, 4)],
)
def test_cosine_equals_the_released_one(
    parity: Path, name: str, lr: float, epochs: int, warmup: int, per_epoch: int
) -> None:
    theirs = np.load(parity / "schedules.npz")[f"{name}/lr_and_lr_times_0.75cubed"][:, 0]
    np.testing.assert_allclose(make(lr, warmup, epochs, per_epoch), theirs, rtol=2e-6, atol=1e-5)


def test_poly_equals_the_released_one(parity: Path) -> None:
    theirs = np.load(parity / "schedules.npz")["segmunich/lr_per_step_10_steps_per_epoch"]
    np.testing.assert_allclose(make(1e-4, 15, 250, 10, "poly"), theirs, rtol=1e-6, atol=1e-5)


def test_the_rate_of_change_detection_falls_once_an_epoch(parity: Path) -> None:
    theirs = np.load(parity / "schedules.npz")["oscd/lr_per_epoch"]
    ours = make(1e-4, 0, 300, 3, "exponential")
    np.testing.assert_allclose(ours, theirs.repeat(3), rtol=1e-5)


def test_a_run_shorter_than_its_warm_up_still_has_a_schedule() -> None:
    rates = make(1e-3, 20, 2, 3)
    assert rates[0] == 0
    assert np.all(np.isfinite(rates))


def test_biases_and_norms_escape_the_decay_and_tables_do_not() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    model.register_parameter("pos_embed_spatial", nn.Parameter(nn.init.zeros_(nn.Linear(4, 2).weight)[None]))
    decayed, spared = optim.groups(model, PRETRAIN)
    assert sorted(p.ndim for p in decayed["params"]) == [2, 3]
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert spared["weight_decay"] == 0.0


def test_decay_all_leaves_nothing_out() -> None:
    recipe = optim.OptimizerRecipe(lr=1e-4, schedule="poly", warmup_epochs=15, weight_decay=1e-5, weight_decay_on="all")
    (decayed,) = optim.groups(nn.Linear(3, 2), recipe)
    assert len(decayed["params"]) == 2


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    (spared,) = optim.groups(model, PRETRAIN)
    assert spared["params"] == [model.bias]


def test_layer_decay_equals_the_released_one_for_every_parameter(parity: Path) -> None:
    theirs = np.load(parity / "classify_small_sep_pos.npz", allow_pickle=False)
    model = build("classifier", spectralgpt(encoder.EncoderConfig(image_px=32, width=96, depth=3, heads=4)), 12, 19)
    recipe = dataclasses.replace(PRETRAIN, weight_decay_on="matrices-except-pos-embed", layer_decay=0.75)
    names = {id(parameter): name for name, parameter in state_keys.parameters(model).items()}
    ours = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optim.groups(model, recipe)
        for parameter in group["params"]
    }
    columns = (theirs[name].tolist() for name in ("param_names", "lr_scale", "weight_decay"))
    expected = {name: (pytest.approx(scale), pytest.approx(decay)) for name, scale, decay in zip(*columns, strict=True)}
    assert ours == expected


def test_layer_decay_by_name() -> None:
    """A joint position table is in the lowest layer, and the blocks of a wrapped backbone are numbered as usual."""
    recipe = dataclasses.replace(PRETRAIN, layer_decay=0.5)
    joint = build(
        "classifier",
        spectralgpt(encoder.EncoderConfig(image_px=16, width=8, depth=2, heads=2, pos_embed="joint")),
        12,
        3,
    )
    part = joint.backbone.encoder
    model = nn.ModuleDict({"backbone": joint, "plain": nn.Linear(2, 2)})
    scale = {id(p): group["lr_scale"] for group in optim.groups(model, recipe) for p in group["params"]}
    assert scale[id(part.pos_embed)] == scale[id(part.patch_embed.proj.weight)] == 0.125
    assert scale[id(part.blocks[0].mlp.fc1.weight)] == 0.25
    assert scale[id(joint.head.weight)] == scale[id(model["plain"].weight)] == 1.0
    (only,) = {group["lr_scale"] for group in optim.groups(nn.Linear(2, 2), recipe)}
    assert only == 1.0


def test_layers_of_a_pyramid_count_through_its_stages() -> None:
    model = nn.Module()
    stages = nn.ModuleList(
        nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(2))}) for _ in range(2)
    )
    model.add_module("layers", stages)
    model.add_module("head", nn.Linear(2, 2))
    made = optim.groups(model, dataclasses.replace(PRETRAIN, layer_decay=0.5))
    scale = {id(p): group["lr_scale"] for group in made for p in group["params"]}
    rates = [scale[id(block.weight)] for stage in stages for block in stage["blocks"]]
    assert rates == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert scale[id(model.head.weight)] == 1.0


def test_a_layer_decay_without_effect_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    recipe = optim.OptimizerRecipe(lr=1e-3, schedule="cosine", warmup_epochs=0, weight_decay=0.05, layer_decay=0.75)
    assert {group["lr_scale"] for group in optim.groups(model, recipe)} == {1.0}
    assert "layer_decay 0.75 has no effect" in caplog.text
