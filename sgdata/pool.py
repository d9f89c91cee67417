"""Map a function over items in this process, in several, or on a cluster: same results, in the same order."""

from __future__ import annotations

import contextvars
import dataclasses
import importlib
import logging
import multiprocessing
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, popen_forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

from sgdata import files
from sgdata.errors import ServiceError, SettingError, SgdataError

CONNECT_S, ALONE_S = 10, 60
"""Seconds within which a scheduler must answer, and for which it may be without workers, as while they start."""
SIGNAL_S = 0.3
"""Time in which a SIGTERM that ended the workers, sent to all processes of a job, reaches this one as well."""

T = TypeVar("T")
R = TypeVar("R")


class WorkerLostError(SgdataError):
    """A worker was killed, so that its task and those behind it have no result."""


def run(
    task: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    cluster: str | None = None,
    threads: int = 1,
    folder: Path | None = None,
) -> Iterator[R]:
    """Yield `task(item)` for each item, in the order of `items`.

    Args:
        task: Function to call; it and its items must be picklable unless `workers` is 1.
        items: Consumed lazily, at most three items per worker ahead, so that memory does not grow with their number.
        workers: Number of processes.
        cluster: Address of a Dask scheduler to use instead of local processes.
        threads: Number of threads if `workers` is 1.
        folder: Folder that the workers of a cluster must see, since tasks write there.

    Raises:
        WorkerLostError: A worker was killed.
        ServiceError: The scheduler does not answer, is lost or has no workers; workers do not see
            the folder. Exceptions of tasks are raised unchanged.
        SettingError: `cluster` is given, but dask is not installed.
    """
    if cluster:
        yield from _on_cluster(task, items, cluster, folder)
        return
    if max(workers, threads) <= 1:
        yield from map(task, items)
        return
    with _executor(task, workers, threads) as executor, ThreadPoolExecutor(1) as starter:

        def submit(item: T) -> Future[R]:
            if workers > 1:
                # By a thread, which no signal interrupts: a worker that is half started when this process ends would
                # print a traceback after the line that says so.
                return starter.submit(executor.submit, task, item).result()
            # Threads inherit no context variables, by which log lines name the place that they are about.
            return executor.submit(contextvars.copy_context().run, task, item)

        try:
            yield from _in_order(submit, items, 3 * max(workers, threads))
        except BrokenProcessPool:
            time.sleep(SIGNAL_S)
            # Usually the kernel, when memory runs out. Finished results were already yielded.
            raise WorkerLostError(f"one of {workers} workers was killed, for its memory perhaps; give fewer") from None
        finally:
            executor.shutdown(cancel_futures=True)


def _executor(task: Callable[[T], R], workers: int, threads: int) -> Executor:
    if workers <= 1:
        return ThreadPoolExecutor(threads)
    # The server imports the task's module once (1.5 s with numba); each worker is a fork of the server.
    module = getattr(task, "func", task).__module__
    context = _Context() if module != "__main__" else multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    # Processes inherit which signals are blocked: those that a job as a whole gets shall reach this process only.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1))
    try:
        resource_tracker.ensure_running()
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the main process, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Launch(popen_forkserver.Popen):
    """Starts a worker that does not import the user's script: without a guard, it would run again in each worker."""

    def _launch(self, process_obj: Any) -> None:
        main = sys.modules["__main__"]
        # What a worker imports as `__main__` is read from this module; a new one has neither a file nor a name.
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            super()._launch(process_obj)  # type: ignore[misc]
        finally:
            sys.modules["__main__"] = main


class _Process(ForkServerProcess):
    """A process of `_Context`."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _Launch(process_obj)


class _Context(ForkServerContext):
    """Starts processes by a server: forking this process, whose threads (GDAL, numba) hold locks, can deadlock."""

    Process = _Process


def absolute(value: Any) -> Any:
    """Return a dataclass of paths with absolute ones: workers of a cluster have other working directories."""
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, list | tuple):
        return type(value)(absolute(item) for item in value)
    if isinstance(value, dict):
        return {key: absolute(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: absolute(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value


def _on_cluster(task: Callable[[T], R], items: Iterable[T], address: str, folder: Path | None) -> Iterator[R]:
    """Run the tasks on a Dask cluster whose workers share the file system; tasks of lost workers run again."""
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise SettingError(f"--cluster {address}: dask is not installed; pip install 'sgdata[cluster]'") from None
    for name in ("distributed", "distributed.client"):
        # What its log says is raised here, in one line.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise ServiceError(f"--cluster {address}: no Dask scheduler answers: {error!s:.100}; start one there") from None
    with client:
        try:
            _check_workers(client, address, folder)
            # Not pure: tasks write files, so each must run even if an equal one ran before.
            most = 3 * max(len(client.nthreads()), 1)
            yield from _in_order(lambda item: _Task(client.submit(task, item, pure=False), client), items, most)
        except distributed.KilledWorker as error:
            raise WorkerLostError(
                f"--cluster {address}: workers died of one task, for their memory perhaps: {error!s:.160}; start fewer"
            ) from None
        except BaseException as error:  # asyncio's cancellation is no Exception
            if client.status == "running" or isinstance(error, SgdataError | GeneratorExit | KeyboardInterrupt):
                raise
            raise ServiceError(f"--cluster {address}: the scheduler is lost; the same command continues") from None


def _check_workers(client: Any, address: str, folder: Path | None) -> None:
    """Raise ServiceError if a cluster has no workers, or if some do not see what is written to a folder."""
    try:
        client.wait_for_workers(1, timeout=ALONE_S)
    except TimeoutError:
        raise ServiceError(f"--cluster {address}: {NO_WORKERS}") from None
    if folder is None:
        return
    probe = folder.absolute() / f".cluster-{time.monotonic_ns()}"
    files.write(probe, b"")
    try:
        blind = [worker for worker, is_visible in client.run(Path.exists, probe).items() if not is_visible]
    finally:
        probe.unlink()
    if blind:
        raise ServiceError(
            f"--cluster {address}: {len(blind)} workers do not see {probe.parent} ({', '.join(blind):.120}); "
            "give a folder on a file system that all share"
        )


NO_WORKERS = "the scheduler has no workers; start some with `dask worker`"


class _Task:
    """A task on a cluster, whose result is awaited as long as there are workers."""

    def __init__(self, future: Any, client: Any) -> None:
        self.future, self.client = future, client

    def result(self) -> Any:
        """Return the result. Raises ServiceError if there are no workers, and what the task raises."""
        alone_since = None
        while True:
            try:
                return self.future.result(timeout=1)
            except TimeoutError:
                if self.future.done():
                    raise
            if self.client.status != "running" or self.client.nthreads():
                alone_since = None
                continue
            alone_since = alone_since or time.monotonic()
            if time.monotonic() - alone_since > ALONE_S:
                raise ServiceError(f"--cluster {self.client.scheduler.address}: {NO_WORKERS}") from None


def _in_order(submit: Callable[[T], Any], items: Iterable[T], most: int) -> Iterator[Any]:
    """Yield the results of `items` in order, with at most `most` tasks submitted and not yet yielded."""
    pending: deque[Any] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
