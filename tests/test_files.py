"""Test strict documents, canonical bytes, atomic writes, checksums and locking."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdata import files, output_lock, output_names
from sgdata.errors import OutputError, SettingError, SourceError


@dataclass(frozen=True, kw_only=True)
class Inner:
    method: str = "medoid"
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    bands: tuple[str, ...]
    date: dt.date
    composite: Inner = Inner()
    steps: tuple[Inner, ...] = ()
    limit: int | None = None


TEXT = 'bands = ["B01"]\ndate = 2020-01-01\n[composite]\nrate = 3\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT)
    return path


def test_read_fills_nested_dataclasses(recipe: Path) -> None:
    read = files.read(Recipe, recipe)
    assert read == Recipe(bands=("B01",), date=dt.date(2020, 1, 1), composite=Inner(rate=3.0))


def test_overrides_replace_settings(recipe: Path) -> None:
    read = files.read(
        Recipe, recipe, ["composite.rate=1e-4", "composite.method=median", 'bands=["B02", "B03"]', "limit=3"]
    )
    assert read.composite == Inner(method="median", rate=1e-4)
    assert (read.bands, read.limit) == (("B02", "B03"), 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("composite.methd=x", "'composite.methd' is not a setting; did you mean 'composite.method'?"),
        ("bnds=3", "did you mean 'bands'?"),
        ("steps=[{rat=1}]", "'steps[0].rat' is not a setting; did you mean 'steps[0].rate'?"),
        ("composite.rate=fast", "'composite.rate' is 'fast'"),
        ("limit=true", "'limit' is true: expected an integer"),
        ("limit=1.5", "'limit' is 1.5"),
        ("bands=7", "'bands' is 7"),
        ("bands.more=7", "'bands' is ['B01'], expected a table; set 'bands' itself"),
        ("bands=[B02, B03]", "quote its strings"),
        ("nonsense", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(SettingError) as error:
        files.read(Recipe, recipe, [override])
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"bands = [", b"\xff\xfe", b"bands"])
def test_a_broken_document_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(SettingError, match="broken.toml"):
        files.read(Recipe, path)


def test_a_missing_setting_is_named_and_a_misspelt_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("date = 2020-01-01\n")
    with pytest.raises(SettingError, match="'bands' is missing"):
        files.read(Recipe, path)
    path.write_text('date = 2020-01-01\nband = ["B01"]\n')
    with pytest.raises(SettingError, match="'band' is not a setting; did you mean 'bands'"):
        files.read(Recipe, path)


def test_a_missing_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such file"):
        files.read(Recipe, tmp_path / "absent.toml")


def test_toml_round_trip(recipe: Path, tmp_path: Path) -> None:
    read = files.read(Recipe, recipe)
    again = tmp_path / "again.toml"
    again.write_bytes(files.toml(read))
    assert files.read(Recipe, again) == read


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)))
def test_canonical_json_does_not_depend_on_order(content: dict[str, object]) -> None:
    backwards = dict(reversed(content.items()))
    assert files.canonical_json(content) == files.canonical_json(backwards)


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="[Oo]ut of range"):
        files.canonical_json({"a": float("nan")})


def test_plain_accepts_numpy_scalars_and_dataclasses() -> None:
    assert files.to_plain({"a": np.float32(0.5), "b": Inner(), "c": (1, Path("x"))}) == {
        "a": 0.5,
        "b": {"method": "medoid", "rate": 1.0},
        "c": [1, "x"],
    }


def test_threads_that_write_one_file_do_not_take_each_others_temporary(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def write(number: int) -> None:
        with files.replacing(tmp_path / "a", durable=False) as temporary:
            together.wait()
            temporary.write_bytes(bytes([number]) * 9)
            together.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(set((tmp_path / "a").read_bytes())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write(path, b"old")
    with pytest.raises(RuntimeError, match="stop"), files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_writing_where_one_may_not_is_one_line(tmp_path: Path) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_bytes(b"")
    with pytest.raises((OutputError, NotADirectoryError, FileExistsError)):
        files.write(blocker / "file", b"x")


def test_sums_are_sorted_and_skip_files_with_timestamps(tmp_path: Path) -> None:
    for name in ("b/y", "a", "b/timings.jsonl", "tensorboard/x", ".lock"):
        files.write(tmp_path / name, name.encode())
    files.write_sums(tmp_path)
    lines = (tmp_path / output_names.SUMS).read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["a", "b/y"]
    assert lines[0].startswith(files.sha256(b"a"))
    assert files.sha256_file(tmp_path / "a") == files.sha256(b"a")


def write_meanwhile(folder: Path, answers: multiprocessing.Queue[str]) -> None:
    try:
        with output_lock.only_writer(folder):
            answers.put("wrote")
    except OutputError as error:
        answers.put(str(error))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with output_lock.only_writer(tmp_path / "out"):
        other = context.Process(target=write_meanwhile, args=(tmp_path / "out", answers))
        other.start()
        assert "another process is writing here" in answers.get(timeout=60)
        other.join()
    with output_lock.only_writer(tmp_path / "out"):
        pass


def test_existing_names_the_expected_kind(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a folder of patches"):
        files.require_file(tmp_path / "absent", "a folder of patches")


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        OutputError, match="deeper: cannot be written: .*MB are free on the disk of .*choose another --out"
    ):
        files.write(tmp_path / "file" / "deeper" / "lock.json", b"{}")
