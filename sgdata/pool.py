"""Run the same coarse tasks in this process or in several: same results, in the same order."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def run(task: Callable[[T], R], items: Iterable[T], *, workers: int) -> Iterator[R]:
    """`task(item)` for each item, in the order of `items`.

    `task` and its items are picklable where `workers` > 1; at most three items per worker are under way, so
    that memory does not grow with their number. An exception of a task is raised here and ends the run.
    """
    if workers <= 1:
        yield from map(task, items)
        return
    # forkserver: the parent holds threads (GDAL, numba), and a plain fork of those can lock up.
    context = multiprocessing.get_context("forkserver")
    # The server imports the task's module once (1.5 s with numba); each worker is then a quick fork of it.
    context.set_forkserver_preload([getattr(task, "func", task).__module__])
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(executor.submit(task, item))
                if len(pending) >= 3 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)
