"""Test that no reader ends in a traceback, hangs or exhausts the memory on any bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fuzz_pool
import pytest
import run
from fuzz_mutators import damage
from fuzz_pool import FAILURES, Input
from fuzz_readers import READERS, Reader

SEEDS = sorted((Path(__file__).parent / "seeds").glob("*.json"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuzz_pool.make_corpus(tmp_path_factory.mktemp("fuzz") / "corpus")


def _valid(corpus: Path) -> Iterator[Input]:
    for name, reader in READERS.items():
        for folder in sorted((corpus / name).iterdir()):
            for path in sorted({path for pattern in reader.targets for path in folder.glob(pattern)}):
                target = path.relative_to(folder).as_posix()
                yield Input(reader=name, number=0, folder=folder.name, target=target, content=path.read_bytes())


@pytest.mark.slow
def test_the_corpus_is_valid(corpus: Path, tmp_path: Path) -> None:
    bad = [
        (outcome.input.reader, outcome.input.folder, outcome.error, outcome.detail)
        for outcome in fuzz_pool.run(_valid(corpus), corpus, tmp_path, READERS)
        if outcome.kind != "ok" or not outcome.parsed
    ]
    assert not bad


@pytest.mark.slow
def test_inputs_that_once_failed(corpus: Path, tmp_path: Path) -> None:
    """Each file of `seeds/` is a mutation that once ended in a traceback."""
    inputs = [fuzz_pool.restored(json.loads(path.read_text()), corpus) for path in SEEDS]
    outcomes = list(fuzz_pool.run(inputs, corpus, tmp_path, READERS))
    assert not run.failures(outcomes)


def test_equal_seeds_give_equal_inputs(tmp_path: Path) -> None:
    (tmp_path / "toy/0").mkdir(parents=True)
    (tmp_path / "toy/0/data.bin").write_bytes(bytes(range(256)))
    reader = Reader(targets=("data.bin",), mutate=damage, parse=len, read=lambda folder, path: None)
    made = [
        [fuzz_pool.prepared(Input(reader="toy", number=n, seed=seed), tmp_path, reader) for n in range(20)]
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]
    for item in made[0]:
        assert fuzz_pool.restored(fuzz_pool.difference(item, tmp_path), tmp_path).content == item.content


def _planted(folder: Path, path: Path) -> None:
    """Fail in the way that the file requests."""
    match path.read_bytes():
        case b"traceback":
            raise KeyError("planted")
        case b"hang":
            while True:
                pass
        case b"memory":
            bytearray(fuzz_pool.PEAK_BYTES + (1 << 25))
        case b"lines":
            raise fuzz_pool.SgdataError("")
        case b"refused":
            raise fuzz_pool.SgdataError("one line")


def test_planted_failures_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_pool, "HANG_S", 2.0)
    monkeypatch.setattr(fuzz_pool, "PEAK_BYTES", 1 << 26)
    (tmp_path / "corpus/toy/0").mkdir(parents=True)
    (tmp_path / "corpus/toy/0/data").write_bytes(b"")
    reader = Reader(targets=("data",), mutate=damage, parse=len, read=_planted)
    words = ("traceback", "hang", "memory", "lines", "refused", "fine")
    inputs = [
        Input(reader="toy", number=n, folder="0", target="data", content=word.encode()) for n, word in enumerate(words)
    ]
    outcomes = fuzz_pool.run(inputs, tmp_path / "corpus", tmp_path / "scratch", {"toy": reader}, workers=1)
    kinds = {words[outcome.input.number]: outcome.kind for outcome in outcomes}
    assert kinds == {
        "traceback": "exception", "hang": "hang", "memory": "memory", "lines": "message", "refused": "refused",
        "fine": "ok",
    }  # fmt: skip
    assert {kinds[word] for word in words[:4]} <= set(FAILURES)
