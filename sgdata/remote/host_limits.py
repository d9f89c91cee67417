"""Limit the requests in flight to each host to what it bears: more while it answers, half when it refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

FIRST, MOST = 32, 64
"""Requests in flight to one host: at the beginning, and at most."""
CAUTIOUS_S = 10.0
"""Time for which the number that a host refused is not tried again."""


class HostLimit:
    """Number of requests that one host is sent at a time.

    The number grows by 1 with every answer until the host first refuses one (429 or 503); then it is halved, and grows
    by 1 with as many answers as are in flight, as TCP does. Requests that were in flight together count as one refusal.
    No request is sent before the time is over for which the host wants none (Retry-After).
    """

    def __init__(self, first: int = FIRST, most: int = MOST, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with `first` requests, of at most `most`; `clock` gives seconds."""
        self.limit, self.most, self.clock = float(first), most, clock
        self.in_flight = self.answers = 0
        self._ceiling, self._ceiling_until, self._resume, self._cut = float(most), 0.0, 0.0, -1.0
        self._state = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[float]:
        """Wait until one more request may be sent; yield the time it began, for `refused`."""
        with self._state:
            while self.in_flight >= int(self.limit) or self.clock() < self._resume:
                self._state.wait(max(min(self._resume - self.clock(), 1.0), 0.001) if self._is_paused else None)
            self.in_flight += 1
            began = self.clock()
        try:
            yield began
        finally:
            with self._state:
                self.in_flight -= 1
                self._state.notify_all()

    @property
    def _is_paused(self) -> bool:
        return self.in_flight < int(self.limit)

    def answered(self) -> None:
        """Note that a request was answered."""
        with self._state:
            self.answers += 1
            has_refused = self._cut >= 0
            if self.clock() >= self._ceiling_until:
                self._ceiling = float(self.most)
            self.limit = min(self.limit + (1 / self.limit if has_refused else 1), self._ceiling)
            self._state.notify_all()

    def refused(self, began: float, wait_s: float) -> None:
        """Note that the host refused a request that began at `began`, and wants none for `wait_s` seconds."""
        with self._state:
            now = self.clock()
            self._resume = max(self._resume, now + wait_s)
            if began > self._cut:  # else it was in flight with the one that was refused first
                self._ceiling = max(self.limit - 1, 1.0)
                self._ceiling_until = now + CAUTIOUS_S
                self.limit = max(self.limit / 2, 1.0)
                self._cut = now
            self._state.notify_all()


@lru_cache(maxsize=1024)
def of_host(host: str) -> HostLimit:
    """Return the limit of a host, the same for all files of this process.

    Args:
        host: Scheme, name and port, as in `http://a.example:8000`.
    """
    return HostLimit()
