"""Test training while the server of its shards fails: reads wait, a run that must end saves, and resumes the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import served
from model_commands import sgmodel
from synthetic_shards import write
from test_pretrain import TINY, recipe, run_paths_for

from sgdata import files, output_names
from sgdata.errors import ExitCode, SourceError
from sgmodel.data import loader, tar_source
from sgmodel.recipes import pretrain
from sgmodel.train import run_folder

TAR = "toy-train-000000.tar"
WHOLE = "augment.crop_area=[1.0, 1.0]"


def refuse(handler: served.Files, content: bytes) -> bool:
    handler.drop()
    return True


def test_reads_are_repeated_for_minutes(tmp_path: Path) -> None:
    """By a clock that the waits move: no second of the test is spent waiting."""
    folder = write(tmp_path / "shards")
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    down = [True]
    with served.serving(folder, lambda handler, content: now[0] < down[0] and refuse(handler, content)) as server:
        remote = tar_source.RemoteFolder(server.url, 5.0, 300.0, sleep=sleep, clock=lambda: now[0])
        down[0] = 250.0
        assert remote.whole("contract.json") == (folder / "contract.json").read_bytes()
        assert 250 <= now[0] < 300 and max(waits) <= 20
        down[0] = np.inf
        began = now[0]
        with pytest.raises(SourceError, match=r"contract\.json.*failed \d+ times, try again later"):
            remote.whole("contract.json")
        assert 300 <= now[0] - began < 330
        down[0] = 0
        began = now[0]
        with pytest.raises(SourceError, match=r"nothing\.json.*mend the shards there"):
            remote.whole("nothing.json")  # refused, which no waiting changes
        assert now[0] == began


def held_out(handler: served.Files) -> bool:
    return "toy-val" in handler.path


def train_samples(handler: served.Files) -> bool:
    return TAR in handler.path


CHOSEN = ("picture_every=3", "training.batch=2", "training.epochs=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("outages") / "shards", train=20)  # more than are read ahead of the third step


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain.main(recipe(*CHOSEN), run_paths_for(folder, out))
    return out


@pytest.mark.parametrize("fails", [train_samples, held_out])
def test_a_run_that_must_end_saves_and_resumes_with_the_same_bytes(
    fails: Callable[[served.Files], bool], folder: Path, whole: Path, tmp_path: Path
) -> None:
    """The server drops every connection of one kind from the third step on, in training or in scoring."""
    chosen = recipe(*CHOSEN)
    out, broken = tmp_path / "run", [True]

    def fault(handler: served.Files, content: bytes) -> bool:
        log = out / "metrics.jsonl"
        late = log.exists() and len(log.read_text().splitlines()) >= 2
        return broken[0] and late and fails(handler) and refuse(handler, content)

    with served.serving(folder, fault) as server:
        # Nothing is cached, so that every step asks the server.
        place = tar_source.mirror(server.url, tmp_path / "cache", cache_gb=0, retry_s=0)
        with pytest.raises(SourceError, match=r"toy-(train|val)-000000\.tar.*try again later"):
            pretrain.main(chosen, run_paths_for(place, out))
        saved = run_folder.read_progress(out)
        assert saved.steps >= 2
        broken[0] = False
        pretrain.main(chosen, run_paths_for(place, out))
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (out / "SHA256SUMS").read_bytes() == (whole / "SHA256SUMS").read_bytes()


def test_a_shard_cut_short_while_open_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")
    source = loader.Samples(folder, "train", ("image",))
    source.read(5, "image")
    os.truncate(folder / TAR, 4096)
    with pytest.raises(SourceError, match=f"{TAR}: sample 'toy-00005'"):
        source.read(5, "image")


def test_the_options_reach_reads_and_recipe(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [word for setting in TINY for word in ("--set", setting)]
    with served.serving(folder) as server:
        words = ["pretrain", "pretrain-demo-tiny", "--shards", server.url, "--cache", tmp_path / "cache", *small]
        words += ["--out", tmp_path / "run", "--retry-minutes", "0.5", "--stop-after", "1", "--set", WHOLE]
        assert sgmodel(*words, "--verify", "sometimes") == 2
        assert "training.verify" in capsys.readouterr().err
        assert sgmodel(*words, "--verify", "always") == ExitCode.FINDINGS
    (mark,) = (tmp_path / "cache").glob(f"*/{tar_source.MARK}")
    assert json.loads(mark.read_bytes())["retry_s"] == 30
    assert files.read_plain(tmp_path / "run" / output_names.RECIPE)["training"]["verify"] == "always"
