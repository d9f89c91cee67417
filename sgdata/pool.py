"""Map a function over items in this process, in several, or on a cluster: same results, in the same order."""

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
    """Yield `task(item)` for each item, in the order of `items`.

    Args:
        task: Function to call; it and its items must be picklable unless `workers` is 1.
        items: Consumed lazily, at most three items per worker ahead, so that memory does not grow with their number.
        workers: Number of processes.
        cluster: Address of a Dask scheduler to use instead of local processes.
        threads: Number of threads if `workers` is 1.

    Raises:
        ServiceError: A worker was killed, or the scheduler does not answer. Exceptions of tasks are raised unchanged.
        SettingError: `cluster` is given, but dask is not installed.
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
            # Usually the kernel, when memory runs out. Finished results were already yielded.
            raise ServiceError(f"one of {workers} workers was killed, for its memory perhaps; give fewer") from None
        finally:
            executor.shutdown(cancel_futures=True)


def _executor(task: Callable[[T], R], workers: int, threads: int) -> Executor:
    if workers <= 1:
        return ThreadPoolExecutor(threads)
    # forkserver: the parent has threads (GDAL, numba), and forking a process with threads can deadlock.
    context = multiprocessing.get_context("forkserver")
    # The server imports the task's module once (1.5 s with numba); each worker is a fork of the server.
    context.set_forkserver_preload([getattr(task, "func", task).__module__])
    return ProcessPoolExecutor(workers, mp_context=context)


def _on_cluster(task: Callable[[T], R], items: Iterable[T], address: str) -> Iterator[R]:
    """Run the tasks on a Dask cluster whose workers share the file system; tasks of lost workers run again."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise SettingError(f"--cluster {address}: dask is not installed; pip install 'sgdata[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ServiceError(f"--cluster {address}: no Dask scheduler answers: {error!s:.100}; start one there") from None
    with client:
        # Not pure: tasks write files, so each must run even if an equal one ran before.
        most = 3 * max(len(client.nthreads()), 1)
        yield from _in_order(lambda item: client.submit(task, item, pure=False), items, most)


def _in_order(submit: Callable[[T], Any], items: Iterable[T], most: int) -> Iterator[Any]:
    """Yield the results of `items` in order, with at most `most` tasks submitted and not yet yielded."""
    pending: deque[Any] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
