"""Tests of the retry loop: waiting times, what is retried, and sessions that retry by themselves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from sgdata.remote import retry

POLICY = retry.RetryPolicy(tries=4, wait_s=1, factor=3, longest_wait_s=10)


def answer_with(header: str) -> requests.Response:
    answer = requests.Response()
    answer.headers["Retry-After"] = header
    return answer


def test_waits_grow_to_the_limit_and_the_last_error_is_raised() -> None:
    errors = [retry.TransientError(str(number)) for number in range(4)]
    waits: list[float] = []

    def operation() -> None:
        raise errors[len(waits)]

    with pytest.raises(retry.TransientError, match="3"):
        retry.call(operation, POLICY, sleep=waits.append)
    assert waits == [1, 3, 9]


@pytest.mark.parametrize(("asked_s", "expected_s"), [(0, 1), (7, 7), (999, 10)])
def test_a_server_can_ask_for_a_longer_wait(asked_s: float, expected_s: float) -> None:
    waits: list[float] = []

    def operation() -> str:
        if not waits:
            raise retry.TransientError("busy", wait_s=asked_s)
        return "done"

    assert retry.call(operation, POLICY, sleep=waits.append) == "done"
    assert waits == [expected_s]


def test_other_errors_are_raised_at_once() -> None:
    waits: list[float] = []
    with pytest.raises(ZeroDivisionError):
        retry.call(lambda: 1 / 0, POLICY, sleep=waits.append)
    with pytest.raises(ZeroDivisionError):
        retry.call(lambda: 1 / 0, POLICY, retry_on=(KeyError, ValueError), sleep=waits.append)
    assert waits == []
    with pytest.raises(ZeroDivisionError):
        retry.call(lambda: 1 / 0, POLICY, retry_on=lambda error: "division" in str(error), sleep=waits.append)
    assert len(waits) == POLICY.tries - 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("17", 17), ("Thu, 01 Jan 1970 00:02:00 GMT", 20), ("Thu, 01 Jan 1970 00:01:00 GMT", 0), ("", 0), ("soon", 0)],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float) -> None:
    assert retry.retry_after_s(answer_with(header), clock=lambda: 100) == seconds


class Handler(BaseHTTPRequestHandler):
    """A handler that answers with the statuses of `script`, then with 200."""

    script: list[int]

    def do_GET(self) -> None:
        status = self.script.pop(0) if self.script else 200
        self.send_response(status)
        self.send_header("Retry-After", "5")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("script", "status", "waits"),
    [([503, 429], 200, [5, 5]), ([404, 500], 404, []), ([504] * 9, 504, [5, 5, 9])],
)
def test_a_session_retries_and_returns_the_last_response(
    script: list[int], status: int, waits: list[float], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "script", script, raising=False)
    slept: list[float] = []
    with requests.Session() as session:
        retry.retry_session(session, POLICY, sleep=slept.append)
        answer = session.get(url)
        assert (answer.status_code, answer.content, slept) == (status, b"ok", waits)


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "nothing-has-this-name.invalid"])
def test_a_session_gives_up_soon_where_no_server_is(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    with socket.socket() as free:  # bound and closed: nothing listens there
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    waits: list[float] = []
    session = requests.Session()
    retry.retry_session(session, POLICY, sleep=waits.append)
    if "{}" not in host:
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(requests.ConnectionError):
        session.get(f"http://{host.format(port)}/")
    assert waits == [1, 3]

    def signed() -> None:
        try:
            session.get(f"http://{host.format(port)}/")
        except requests.ConnectionError as error:
            raise retry.TransientError("no token") from error

    with pytest.raises(retry.TransientError):
        retry.call(signed, POLICY, sleep=waits.append)
    assert len(waits) == 2 + 3 * 2 + 2


def test_a_session_retries_connections_that_fail() -> None:
    """Of a server that accepts them and closes them without an answer."""
    slept: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server, requests.Session() as session:

        def drop() -> None:
            for _ in range(POLICY.tries):
                server.accept()[0].close()

        threading.Thread(target=drop, daemon=True).start()
        retry.retry_session(session, POLICY, sleep=slept.append)
        with pytest.raises(requests.ConnectionError):
            session.get(f"http://127.0.0.1:{server.getsockname()[1]}/")
    assert slept == [1, 3, 9]
