"""Test the order of flushing and renaming, file systems without locks, and that unfinished outputs are refused."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic
from model_commands import sgmodel
from synthetic_shards import write
from test_left_out_items import archive, build, recipe  # noqa: F401 - the fixtures
from test_pretrain import recipe as training_recipe
from test_pretrain import run_paths_for
from typer.testing import CliRunner

from sgdata import files, heartbeat, output_lock, output_names
from sgdata.builds.build_recipe import BuildRecipe
from sgdata.cli import app
from sgdata.errors import OutputError
from sgdata.packing import pack
from sgmodel.recipes import pretrain
from tests import synthetic_build

Event = tuple[str, Path, Path]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Record every flush and rename of this process, by the path at that time; each is carried out."""
    seen: list[Event] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def recorded(call: Callable[..., None]) -> Callable[..., None]:
        def move(source: Any, target: Any, **options: Any) -> None:
            call(source, target, **options)
            seen.append(("move", Path(target), Path(source)))

        return move

    def flush(handle: int) -> None:
        fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        seen.append(("flush", path, path))

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", recorded(replace))
    monkeypatch.setattr(os, "rename", recorded(rename))
    return seen


def check_order(events: list[Event], place: Path) -> set[str]:
    """Check that what gets a name below `place` was flushed before, and its folder after; return the names."""
    names = set()
    for at, (kind, path, source) in enumerate(events):
        # The heartbeat is removed at the end, and nothing is lost with it.
        if kind != "move" or not path.is_relative_to(place) or path.name.startswith((".checkpoint", heartbeat.NAME)):
            continue
        names.add(path.name)
        assert ("flush", source, source) in events[:at], f"{source} was not flushed before it became {path}"
        assert ("flush", path.parent, path.parent) in events[at:], f"the folder of {path} was not flushed"
    return names


def test_a_build_flushes_before_it_names(
    events: list[Event],
    archive: Path,  # noqa: F811
    recipe: BuildRecipe,  # noqa: F811
    tmp_path: Path,
) -> None:
    build(recipe, archive, tmp_path / "out", scratch=tmp_path / "scratch")
    names = check_order(events, tmp_path / "out")
    assert {output_names.SUMS, output_names.IMAGE, output_names.LOCK} <= names
    # Scratch files are compared with their hashes before a later run uses them (test_reused_files): flushing them
    # would make a build wait for the disk.
    named = {path.suffix for kind, path, _ in events if kind == "move" and path.is_relative_to(tmp_path / "scratch")}
    assert {".bin", ".npy", ".json", ".note"} <= named
    assert not [path for kind, path, _ in events if kind == "flush" and path.is_relative_to(tmp_path / "scratch")]


def test_shards_and_training_flush_before_they_name(events: list[Event], tmp_path: Path) -> None:
    source = synthetic.segmunich_build(tmp_path / "build")
    pack.pack("segmunich", source=source, out=tmp_path / "shards")
    pretrain.main(
        training_recipe("training.epochs=1"), run_paths_for(write(tmp_path / "toy"), tmp_path / "run", save_minutes=0)
    )
    names = check_order(events, tmp_path)
    assert {
        output_names.SUMS,
        output_names.INDEX,
        "segmunich-train-000000.tar",
        "checkpoint-last",
        "checkpoint-best",
    } <= names
    # What was appended is flushed before the list that has its hash.
    listed = [path for _, path, _ in events].index(tmp_path / "run" / output_names.SUMS)
    metrics = tmp_path / "run" / output_names.METRICS
    assert ("flush", metrics, metrics) in events[:listed]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_one_writer_works(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No file system at hand has no locks, so the call of the system is replaced."""

    def refused(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    with caplog.at_level(logging.WARNING, "sgdata"), output_lock.only_writer(tmp_path):
        (tmp_path / "work").touch()
    assert f"file system has no locks ({os.strerror(code)}); let one process write here" in caplog.text


def test_a_lock_that_another_process_holds_is_said_to_be_that(tmp_path: Path) -> None:
    second = output_lock.only_writer(tmp_path)
    with output_lock.only_writer(tmp_path), pytest.raises(OutputError, match="another process is writing here"):
        second.__enter__()


# --- unfinished outputs --------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a build, shards, a run and its checkpoint, all without SHA256SUMS."""
    place = tmp_path_factory.mktemp("unfinished")
    synthetic_build.write(place / "build", (256, 256))
    write(place / "shards")
    pretrain.main(training_recipe("training.epochs=0.5"), run_paths_for(place / "shards", place / "run"))
    pair = {"before": "build", "after": "build", "change": "build/labels.tif"}
    (place / "pair.toml").write_text("".join(f'{name} = "{path}"\n' for name, path in pair.items()))
    for sums in place.rglob(output_names.SUMS):
        sums.unlink()
    return place


@pytest.mark.parametrize(
    "words",
    [
        "shard segmunich --source build --out new",
        "shard pairs --source pair.toml --out new",
        "audit build",
        "audit shards",
        "split build --out new",
        "split shards --out new",
        "release toy 1.0 --source shards --out new --private",
        "show build --out new",
        "show shards --out new",
        "verify build",
    ],
)
def test_commands_refuse_unfinished_data(words: str, outputs: Path, tmp_path: Path) -> None:
    names = {path.name for path in outputs.iterdir()}
    told = [
        str(outputs / word) if word in names else str(tmp_path / word) if word == "new" else word
        for word in words.split()
    ]
    done = CliRunner().invoke(app, told)
    assert type(done.exception).__name__ in {"SourceError", "OutputError"}, done.output
    assert "SHA256SUMS" in str(done.exception)


@pytest.mark.parametrize(
    "words",
    [
        "pretrain pretrain-demo-tiny --shards shards --out new",
        "segment segment-demo-tiny --shards shards --out new",
        "reproduce city --shards shards --out new",
        "predict --input build --weights whole --what embeddings --out new",
        "predict --input shards --weights whole --what embeddings --out new",
        "predict --input build --weights run/checkpoint-last --out new",
        "convert run/checkpoint-last --out new",
    ],
)
def test_programs_refuse_unfinished_data(
    words: str, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(shutil.copytree(outputs / "run" / "checkpoint-last", tmp_path / "whole"))
    files.write_sums(whole)
    places = {"whole": whole, "new": tmp_path / "new"}
    told = [
        places.get(word, outputs / word) if (outputs / word).exists() or word in places else word
        for word in words.split()
    ]
    assert sgmodel(*told) == 2
    assert "is unfinished, without SHA256SUMS" in capsys.readouterr().err


def test_show_of_a_run_under_way_says_so(outputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = CliRunner().invoke(app, ["show", str(outputs / "run"), "--out", str(tmp_path / "page")])
    assert done.exit_code == 0, done.output
    assert "Unfinished: " in (tmp_path / "page" / "index.html").read_text()
