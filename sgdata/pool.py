"""Run the same coarse tasks in this process or in several: same results, in the same order."""

from __future__ import annotations

import importlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from sgdata.errors import ServiceError, SettingError

CONNECT_S = 10

T = TypeVar("T")
R = TypeVar("R")


def run(
    task: Callable[[T], R], items: Iterable[T], *, workers: int, cluster: str | None = None, threads: int = 1
) -> Iterator[R]:
    """`task(item)` for each item, in the order of `items`; on the Dask scheduler at the address `cluster` if given.

    `task` and its items are picklable where `workers` > 1; at most three items per worker are under way, so
    that memory does not grow with their number. `threads`: how many tasks may run at once in this process, where it
    is the only worker. An exception of a task is raised here and ends the run, and ServiceError where a worker is
    killed or no scheduler answers.
    """
    if cluster:
        yield from _on_cluster(task, items, cluster)
        return
    if max(workers, threads) <= 1:
        yield from map(task, items)
        return
    with _executor(task, workers, threads) as executor:
        try:
            yield from _in_order(lambda item: executor.submit(task, item), items, 3 * max(workers, threads))
        except BrokenProcessPool:
            # The kernel's way where memory runs out; what is finished is kept.
            raise ServiceError(f"one of {workers} workers was killed, for its memory perhaps; give fewer") from None
        finally:
            executor.shutdown(cancel_futures=True)


def _executor(task: Callable[[T], R], workers: int, threads: int) -> Executor:
    if workers <= 1:
        return ThreadPoolExecutor(threads)
    # forkserver: the parent holds threads (GDAL, numba), and a plain fork of those can lock up.
    context = multiprocessing.get_context("forkserver")
    # The server imports the task's module once (1.5 s with numba); each worker is then a quick fork of it.
    context.set_forkserver_preload([getattr(task, "func", task).__module__])
    return ProcessPoolExecutor(workers, mp_context=context)


def _on_cluster(task: Callable[[T], R], items: Iterable[T], address: str) -> Iterator[R]:
    """The same tasks on other machines, which see the same folders. A task of a worker that dies runs again."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise SettingError(f"--cluster {address}: dask is not installed; pip install 'sgdata[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ServiceError(f"--cluster {address}: no Dask scheduler answers: {error!s:.100}; start one there") from None
    with client:
        # Not pure: a task writes files, and must run even if an equal one ran before.
        most = 3 * max(len(client.nthreads()), 1)
        yield from _in_order(lambda item: client.submit(task, item, pure=False), items, most)


def _in_order(submit: Callable[[T], Any], items: Iterable[T], most: int) -> Iterator[Any]:
    """What becomes of `items`, in their order, at most `most` of them under way."""
    pending: deque[Any] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
