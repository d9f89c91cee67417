"""Run inputs in child processes with limits of time and memory, and report the outcome of each.

Children are forked from a process that has imported everything, and run many inputs each. One that hangs or dies is
replaced. A child gets the next input after it has answered, so that results do not depend on any order.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

from sgdata.errors import SgdataError

HANG_S = 20.0
"""Seconds of processor time, and a quarter of the seconds by the clock: beside other processes inputs only wait."""
PEAK_BYTES = 1 << 30
ADDRESS_BYTES = 4 << 30
"""Address space a child may take beyond that at its start: a larger allocation fails rather than fill the machine."""
SMALL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Input:
    """A mutation by number, or the bytes themselves in `content`; of file `target` of a folder of the corpus."""

    reader: str
    number: int
    seed: int = 0
    folder: str = ""
    target: str = ""
    content: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of reading one mutated input: `kind` is ok, refused, or one of FAILURES.

    `error` names the exception and where it was raised; `parsed`: whether the outermost parser took the input.
    """

    input: Input
    kind: str
    error: str = ""
    detail: str = ""
    parsed: bool = False
    seconds: float = 0.0
    peak: int = 0


FAILURES = ("exception", "hang", "memory", "crash", "message")


class _Hang(BaseException):
    """Raised by the alarm; no `except Exception` catches it."""


# --- inputs --------------------------------------------------------------------------------


def prepared(item: Input, corpus: Path, reader: Any) -> Input:
    """Return the input with its folder, target and content, from the corpus and its number."""
    if item.content is not None:
        return item
    folders = sorted((corpus / item.reader).iterdir())
    rng = Random(f"{item.seed}/{item.reader}/{item.number}")
    folder = folders[item.number % len(folders)]
    targets = sorted({path for pattern in reader.targets for path in folder.glob(pattern) if path.is_file()})
    target = rng.choice(targets)
    content = reader.mutate(rng, target.read_bytes())
    return Input(
        reader=item.reader, number=item.number, seed=item.seed, folder=folder.name,
        target=target.relative_to(folder).as_posix(), content=content,
    )  # fmt: skip


def difference(item: Input, corpus: Path) -> dict[str, Any]:
    """Return an input as a JSON document: the bytes that replace the middle of a file of the corpus."""
    assert item.content is not None
    original = (corpus / item.reader / item.folder / item.target).read_bytes()
    head = _shared(original, item.content)
    tail = _shared(original[head:][::-1], item.content[head:][::-1])
    middle = item.content[head : len(item.content) - tail]
    return {
        "reader": item.reader, "folder": item.folder, "target": item.target, "head": head, "tail": tail,
        "middle": base64.b85encode(zlib.compress(middle, 9)).decode(),
    }  # fmt: skip


def _shared(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts have in common at their start."""
    unequal = (at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(unequal, min(len(one), len(other)))


def restored(document: Mapping[str, Any], corpus: Path) -> Input:
    """Return the input of a document made by `difference`; one without `folder` holds the whole file in `text`."""
    original = (corpus / document["reader"] / document["folder"] / document["target"]).read_bytes()
    if "text" in document:
        content = document["text"].encode()
    else:
        middle = zlib.decompress(base64.b85decode(document["middle"]))
        content = original[: document["head"]] + middle + original[len(original) - document["tail"] :]
    return Input(
        reader=document["reader"], number=0, folder=document["folder"], target=document["target"], content=content
    )


# --- in a child ----------------------------------------------------------------------------


def _peak_reset() -> int:
    """Return the resident bytes now, and have the kernel count the peak from here."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def run_input(item: Input, corpus: Path, scratch: Path, readers: Mapping[str, Any]) -> Outcome:
    """Run one input in this process. The alarm is the caller's."""
    reader = readers[item.reader]
    item = prepared(item, corpus, reader)
    assert item.content is not None
    folder = scratch / "input"
    shutil.rmtree(folder, ignore_errors=True)
    # Links to the files of the corpus: only the mutated one is written.
    shutil.copytree(corpus / item.reader / item.folder, folder, copy_function=os.link)
    path = folder / item.target
    path.unlink(missing_ok=True)
    path.write_bytes(item.content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.parse(item.content)
        parsed = True
    except Exception:
        parsed = False
    start, began = _peak_reset(), time.perf_counter()
    kind, error, detail = "ok", "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder, path)
    except SgdataError as refused:
        kind, error = "refused", type(refused).__name__
        detail = str(refused).replace(str(folder), "")
        if "\n" in str(refused) or not str(refused):
            kind, error = "message", "message of several lines or none"
    except _Hang:
        kind, error, detail = "hang", _place(sys.exc_info()[2]), traceback.format_exc(limit=-12)
    except Exception as raised:
        kind = "exception"
        error = f"{type(raised).__name__} {_place(raised.__traceback__)}"
        detail = traceback.format_exc(limit=-12)
    seconds, peak = time.perf_counter() - began, _status("VmHWM") - start
    if peak > PEAK_BYTES and kind in ("ok", "refused"):
        kind, error = "memory", f"peak of {peak >> 20} MiB"
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(
        input=item, kind=kind, error=error, detail=detail[-3000:], parsed=parsed, seconds=seconds, peak=max(peak, 0)
    )


def _place(trace: Any) -> str:
    """Return `file.py:function` of the innermost frame of the packages under test."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if "/sgdata/" in frame.filename or "/sgmodel/" in frame.filename]
    chosen = (ours or frames)[-1]
    return f"{Path(chosen.filename).name}:{chosen.name}"


def _child(pipe: Connection, corpus: Path, scratch: Path, readers: Mapping[str, Any]) -> None:
    """Answer inputs from the pipe until it closes."""
    scratch.mkdir(parents=True, exist_ok=True)
    os.chdir(scratch)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    logging.disable(logging.CRITICAL)
    limit = _status("VmSize") + ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _alarm)
    for count in itertools.count():
        if count % 20 == 0:  # a full collection takes longer than most inputs
            gc.collect()
        try:
            item = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        try:
            outcome = run_input(item, corpus, scratch, readers)
        except _Hang:  # in the harness's own part of the work
            outcome = Outcome(input=item, kind="hang", error="outside the reader", detail=traceback.format_exc())
        except MemoryError:
            outcome = Outcome(input=item, kind="exception", error="MemoryError outside the reader")
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send(outcome)


def _alarm(*_: object) -> None:
    raise _Hang


# --- in the parent -------------------------------------------------------------------------


class _Worker:
    """A child process and the input it is at."""

    def __init__(self, corpus: Path, scratch: Path, readers: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_child, args=(theirs, corpus, scratch, readers), daemon=True)
        self.process.start()
        theirs.close()
        self.item: Input | None = None
        self.began = 0.0

    def give(self, item: Input) -> None:
        self.item, self.began = item, time.monotonic()
        self.pipe.send(item)

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def run(
    inputs: Iterable[Input], corpus: Path, scratch: Path, readers: Mapping[str, Any], *, workers: int = 2
) -> Iterator[Outcome]:
    """Yield the outcome of each input, in the order in which they end."""
    left = iter(inputs)
    # What is imported is left alone by every collection in the children, and so stays shared between them.
    gc.collect()
    gc.freeze()
    pool = [_Worker(corpus, scratch / str(number), readers) for number in range(workers)]
    try:
        busy = [worker for worker in pool if _feed(worker, left)]
        while busy:
            wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in list(busy):
                outcome = _answer(worker)
                if outcome is None:
                    continue
                yield outcome
                if outcome.kind in ("crash", "hang", "memory"):
                    at = pool.index(worker)
                    busy.remove(worker)
                    worker.end()
                    pool[at] = worker = _Worker(corpus, scratch / str(at), readers)
                    busy.append(worker)
                if not _feed(worker, left):
                    busy.remove(worker)
    finally:
        for worker in pool:
            worker.end()


def _feed(worker: _Worker, left: Iterator[Input]) -> bool:
    item = next(left, None)
    if item is not None:
        worker.give(item)
    return item is not None


def _answer(worker: _Worker) -> Outcome | None:
    """Return the answer of a child, or the outcome of a dead or hanging one; None while it works."""
    assert worker.item is not None
    try:
        if worker.pipe.poll():
            outcome: Outcome = worker.pipe.recv()
            return outcome
    except (EOFError, OSError):
        worker.process.join(1)
        return Outcome(input=worker.item, kind="crash", error=f"exit status {worker.process.exitcode}")
    # The alarm cannot end code in C that never returns, nor a process that waits.
    if time.monotonic() - worker.began > 4 * HANG_S:
        return Outcome(input=worker.item, kind="hang", error="in compiled code, or waiting")
    return None


def make_corpus(out: Path) -> Path:
    """Make the corpus in a process of its own: its libraries start threads, which no fork may meet."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_make_corpus, args=(out,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the corpus cannot be made: exit status {process.exitcode}")
    return out


def _make_corpus(out: Path) -> None:
    importlib.import_module("fuzz_corpus").make(out)


def name_of(document: Mapping[str, Any]) -> str:
    """Return the file name of a stored input."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return f"{document['reader']}-{digest[:10]}.json"


Parser = Callable[[bytes], Any]
