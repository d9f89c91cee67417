"""Retry failed network operations with exponential back-off: one policy type and one loop, built on tenacity."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import requests
    import tenacity

T = TypeVar("T")

LARGEST_BODY = 2**16
"""Bytes that are read of the page that comes with an error."""

ABSENT_TRIES = 3
"""Tries where nothing answers at an address: a server that starts anew is back soon, a misspelt name never."""

# Request Timeout, Too Early, Too Many Requests and the server errors that pass (RFC 9110, RFC 6585, RFC 8470).
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Number of tries and the waiting time between them.

    Attributes:
        tries: Number of calls before the last error is raised; at most `ABSENT_TRIES` where no server answers.
        lasting_s: Seconds for which a call is repeated at least, with more tries if need be.
        wait_s: Seconds to wait after the first failure.
        factor: Ratio of each further wait to the one before.
        longest_wait_s: Upper limit of a wait in seconds, also of one that a server asks for.
    """

    tries: int = 5
    wait_s: float = 2.0
    factor: float = 2.0
    longest_wait_s: float = 300.0
    lasting_s: float = 0.0


class TransientError(Exception):
    """A failure worth another try; `wait_s` is the shortest time to wait in seconds."""

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        """Store the message and the shortest waiting time."""
        super().__init__(message)
        self.wait_s = wait_s


class BusyError(TransientError):
    """An HTTP response with a status in TRANSIENT_STATUS; a `Retry-After` header gives the shortest wait."""

    def __init__(self, answer: requests.Response, *, clock: Callable[[], float] = time.time) -> None:
        """Store the response; `clock` as in `retry_after_s`."""
        super().__init__(f"answers {answer.status_code} {answer.reason}", wait_s=retry_after_s(answer, clock=clock))
        self.answer = answer


class RefusedError(Exception):
    """A server refuses a request with a status that no second try changes, except with another signature.

    `renewals` is the number of signatures that were tried for it before.
    """

    def __init__(self, status: int) -> None:
        """Store the status."""
        super().__init__(f"HTTP response code {status}")
        self.status, self.renewals = status, 0


def call(
    operation: Callable[[], T],
    policy: RetryPolicy,
    *,
    retry_on: type[Exception] | tuple[type[Exception], ...] | Callable[[BaseException], bool] = TransientError,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Call `operation` until it succeeds, fails for good or has used up the tries of the policy.

    Args:
        operation: Function without arguments; called once per try.
        policy: Number of tries and waiting times.
        retry_on: Exceptions worth another try: types, or a function that decides.
        sleep: Function that waits; tests replace it.
        clock: Function that returns seconds; tests replace it.

    Returns:
        The value of the first successful call.

    Raises:
        Exception: The exception of the last call.
    """
    import tenacity  # not at the top: it imports asyncio and, where installed, tornado

    backoff = tenacity.wait_exponential(multiplier=policy.wait_s, exp_base=policy.factor, max=policy.longest_wait_s)

    def is_transient(error: BaseException) -> bool:
        return isinstance(error, retry_on) if isinstance(retry_on, type | tuple) else retry_on(error)

    def wait_s(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        least = error.wait_s if isinstance(error, TransientError) else 0.0
        return min(max(backoff(state), least), policy.longest_wait_s)

    began = clock()

    def is_over(state: tenacity.RetryCallState) -> bool:
        tries = min(policy.tries, ABSENT_TRIES) if _is_absent(state.outcome) else policy.tries
        return state.attempt_number >= tries and clock() - began >= policy.lasting_s

    retrying = tenacity.Retrying(
        stop=is_over,
        wait=wait_s,
        retry=tenacity.retry_if_exception(is_transient),
        sleep=sleep,
        reraise=True,
    )
    return retrying(operation)


def _is_absent(outcome: tenacity.Future | None) -> bool:
    """Return whether a call failed because the name of a host is unknown, or it refuses connections at once."""
    from urllib3.exceptions import NewConnectionError

    error = outcome.exception() if outcome else None
    while error is not None:
        # requests keeps the error of urllib3 in its own, as the reason of the last of its tries.
        if isinstance(getattr(error.args[0] if error.args else None, "reason", None), NewConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def retry_after_s(answer: requests.Response, *, clock: Callable[[], float] = time.time) -> float:
    """Return the seconds that the `Retry-After` header of an HTTP response asks for, 0 if it has none.

    Both forms of RFC 9110 are read, a number of seconds and a date; `clock` gives the seconds since 1970.
    """
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - clock())
    except ValueError:
        return 0.0


def retry_session(
    session: requests.Session, policy: RetryPolicy, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Retry the requests of `session` on connection errors and on a status in TRANSIENT_STATUS.

    After the last try the session returns the response, or raises the connection error, as it would without retries.
    """
    import requests

    class RetryAdapter(requests.adapters.HTTPAdapter):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            def attempt() -> requests.Response:
                answer = super(RetryAdapter, self).send(*args, **kwargs)
                if answer.status_code in TRANSIENT_STATUS:
                    # Reading the body gives the connection back to the pool; a page of an error may be of any size.
                    answer._content = answer.raw.read(LARGEST_BODY, decode_content=True)
                    raise BusyError(answer)
                return answer

            expected = (TransientError, requests.ConnectionError, requests.Timeout)
            try:
                return call(attempt, policy, retry_on=expected, sleep=sleep)
            except BusyError as error:
                return error.answer

    session.mount("https://", RetryAdapter())
    session.mount("http://", RetryAdapter())
