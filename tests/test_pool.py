"""Test that one process and several give the same results in the same order, with and without progress."""

from __future__ import annotations

import logging
import os

import pytest

from sgdata import pool, progress


def square(number: int) -> int:
    if number == 13:
        raise ValueError("thirteen")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_keep_their_order(workers: int) -> None:
    assert list(pool.run(square, range(12), workers=workers)) == [n * n for n in range(12)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_task_ends_the_run(workers: int) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        list(pool.run(square, range(20), workers=workers))


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(pool.WorkerLostError, match="one of 2 workers was killed"):
        list(pool.run(os._exit, [1], workers=2))


def test_progress_yields_items_and_reports(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sgdata"):
        assert list(progress.track(range(3), label="tiles", total=3)) == [0, 1, 2]
    assert "tiles: 3 of 3" in caplog.text


def test_quiet_progress_prints_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sgdata"):
        assert list(progress.track(range(3), label="tiles", total=3)) == [0, 1, 2]
    assert caplog.text == ""


def test_lines_show_the_remaining_time(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level("INFO", "sgdata"):
        list(progress.track(range(3), label="steps", total=3))
    assert [line.split(", ")[1] for line in caplog.messages[:-1]] == ["44 s left", "22 s left"]
    assert caplog.messages[-1] == "steps: 3 of 3"


def test_durations_are_formatted_for_reading() -> None:
    assert [progress.duration(seconds) for seconds in (0.4, 90, 600, 12_000)] == [
        "0 s",
        "2 min",
        "10 min",
        "3 h 20 min",
    ]
