"""Test that a training step does not wait for the device, and what becomes of a step that fails meanwhile.

Steps run on torch's meta device, whose tensors have no values: whatever would copy one to the host raises an error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_shards import contract, pair, pair_contract, sample, write, write_scenes
from test_pretrain import recipe, run_paths_for
from test_scoring_memory import case
from torch import Tensor, nn
from torch.optim import adam

from sgdata import files
from sgdata.errors import ExitCode
from sgdata.shards import write_shards
from sgmodel import devices
from sgmodel.data import loader, windows
from sgmodel.recipes import pretrain
from sgmodel.train import loop, training

PROGRAMS = ["segment", "detect_change", "classify", "pretrain", "contrast"]


class OnMeta(devices.Runtime):
    """The meta device, for which torch has no autocast."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


class Unread(loop.StepResult):
    """The one value that the host reads of a step, which here has none."""

    def read(self) -> loop.StepMetrics:
        return loop.StepMetrics({"loss": 1.0}, 1.0)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> OnMeta:
    monkeypatch.setattr(loop, "StepResult", Unread)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *args, **kwargs: None)
    return OnMeta(device=torch.device("meta"), precision="fp32")


def run_steps(
    program: str, folder: Path, launch: devices.Runtime, change: Any = lambda terms: terms
) -> list[loop.Step]:
    made = case(program, ("training.batch=4", "training.accumulate=2"))
    if program == "detect_change":
        write_shards.write(
            [pair(f"city-{n}", "train", 64, 64, seed=n) for n in range(4)], folder, contract=pair_contract()
        )
    else:
        (write_scenes if program == "classify" else write)(folder, train=8, val=1)
    source = loader.Samples(folder, "train", made.members)
    setting: Any = training.resolve(made.recipe, source.contract, run_paths_for(folder, folder))
    model: nn.Module = made.build(setting.recipe).to(launch.device)
    setting = replace(setting, launch=launch)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    updates = loop.UpdateSettings(
        forward=model, optimizer=optimizer, schedule=lambda step: 0.1, micro_batches=2, clip_norm=1.0
    )
    trained = windows.WindowedSamples(source, setting.recipe.windows) if program == "detect_change" else source
    batches = loader.load(trained, iter([next(loader.in_order(4, 4))] * 3), threads=1)
    return list(loop.steps(lambda part: change(made.objective(setting, model, part)), batches, updates, launch))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_step_never_waits_for_the_device(program: str, tmp_path: Path, on_meta: OnMeta) -> None:
    steps = run_steps(program, tmp_path, on_meta)
    assert [step.index for step in steps] == [0, 1, 2]
    assert all(step.failed.is_meta for step in steps)


@pytest.mark.parametrize("wait", [lambda loss: loss.item(), lambda loss: loss.tolist(), bool, lambda loss: loss.cpu()])
def test_one_wait_in_a_step_is_found(wait: Any, tmp_path: Path, on_meta: OnMeta) -> None:
    def look(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        wait(terms["loss"])
        return terms

    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run_steps("pretrain", tmp_path, on_meta, look)


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_step_that_fails_leaves_the_run_at_the_step_before(log_every: int, tmp_path: Path) -> None:
    made = [sample(n, "train", 32, 32) for n in range(8)]
    settings = ("training.ema_decay=0.5", f"training.log_every={log_every}", "training.accumulate=1")
    poison = ("normalise.scheme=minmax", "normalise.eps=0", "training.optimizer.warmup_epochs=0")
    write_shards.write(made, tmp_path / "shards", contract=contract(32))
    source = loader.Samples(tmp_path / "shards", "train", ("image",))
    _, second = source.stream(4, seed=recipe().training.seed, first=0, last=2)
    bad = next(one for one in made if one.key == source.keys[second.samples[0]])
    bad.arrays["image"][3] = 1000  # a constant band, which min-max without eps divides by zero
    write_shards.write(made, tmp_path / "bad", contract=contract(32))
    runs = {name: run_paths_for(tmp_path / "bad", tmp_path / name) for name in ("failed", "stopped")}
    with pytest.raises(loop.NotFiniteError, match=f"step 1: loss nan.*not finite for 1 of 4 samples: {bad.key}"):
        pretrain.main(recipe(*settings, *poison), runs["failed"])
    stopped = replace(runs["stopped"], stop_after=1)
    assert pretrain.main(recipe(*settings, *poison), stopped) == ExitCode.FINDINGS
    folders = [tmp_path / name / "checkpoint-last" for name in runs]
    assert files.read_sums(folders[0]) == files.read_sums(folders[1])
    assert "ema.safetensors" in files.read_sums(folders[0])
    lines = [json.loads(line) for line in (tmp_path / "failed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0]


def test_the_scale_of_half_precision_is_that_of_the_weights() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for failed, gradient, expected in ((0.0, 1.0, 8.0), (1.0, float("inf"), 8.0), (0.0, float("inf"), 4.0)):
        weight = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([weight], fused=True)
        scaler.scale(torch.ones(()))
        weight.grad = torch.full((2,), gradient)
        scaler.unscale_(optimizer)
        loop._update_scale(scaler, torch.tensor(failed))
        assert scaler.get_scale() == expected


def test_a_batch_stays_as_it_is_until_the_next_but_one_is_requested(tmp_path: Path) -> None:
    write(tmp_path, train=8, val=0)
    source = loader.Samples(tmp_path, "train", ("image",))
    batches: Iterator[loader.Batch] = loader.load(source, loader.in_order(8, 1), threads=1)
    before = None
    for batch in batches:
        if before is not None:
            held, values = before
            assert torch.equal(held.arrays["image"], values)
        before = batch, batch.arrays["image"].clone()
