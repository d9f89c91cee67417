"""Test what long jobs say while they run, and how they end on signals: heartbeat, status, JSON logs, exit code."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgdata import files, heartbeat, log_lines, output_lock, progress, status
from sgdata.cli import app
from sgdata.errors import ExitCode, SettingError, SourceError
from sgdata.stop_signals import STOPPING
from sgmodel.train import signals

ROOT = Path(__file__).resolve().parents[1]

JOB = """
import sys, time
from pathlib import Path
import typer
from sgdata import output_lock, progress, terminal
from sgdata.public_commands import Outcome, command

app = typer.Typer()

@command(app)
def work(out: Path) -> Outcome[Path]:
    def items():
        for number in range(1000):
            yield number
            print("working", flush=True)
            time.sleep(0.1)
    with output_lock.only_writer(out):
        for each in progress.track(items(), label="tiles", total=1000):
            pass
    return Outcome(value=out)

terminal.run(app, "sgdata")
"""


def start(out: Path, *options: str, job: str = JOB) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", job, str(out), *options]
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_a_command_with_one_line_and_one_code(how: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path / "out")
    assert status.statuses(tmp_path / "out")[0].state == "running"
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    name = "Ctrl-C" if how is signal.SIGINT else how.name
    assert err == f"sgdata: stopped by {name}; what is finished is kept: the same command continues\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert status.statuses(tmp_path / "out")[0].state == "stopped"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_job_is_one_line_too(how: signal.Signals, tmp_path: Path) -> None:
    head = JOB.partition("    def items")[0]
    body = """
    from sgdata import pool
    def items():
        for number in range(1000):
            print("working", flush=True)
            yield 0.1
    with output_lock.only_writer(out):
        for each in pool.run(time.sleep, items(), workers=2):
            pass
    return Outcome(value=out)
"""
    process = start(tmp_path / "out", job=head + body + "terminal.run(app, 'sgdata')\n")
    for _ in range(8):  # until results have come back
        assert process.stdout is not None and process.stdout.readline() == "working\n"
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (ExitCode.INTERRUPTED, 1), err
    assert err.startswith("sgdata: stopped by ")


def test_a_signal_while_workers_start_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(2)\ndef task(number):\n    return number\n")
    # Registered before all else, so that the process still lives when multiprocessing has removed its semaphores.
    head = "import atexit, time\natexit.register(time.sleep, 3)\n" + JOB.partition("    def items")[0]
    body = f"""
    import os
    os.environ["PYTHONPATH"] += ":" + {str(tmp_path)!r}
    sys.path.insert(0, {str(tmp_path)!r})
    import slow_module
    from sgdata import pool
    def items():
        print("working", flush=True)
        yield from range(1000)
    with output_lock.only_writer(out):
        for each in pool.run(slow_module.task, items(), workers=2):
            pass
    return Outcome(value=out)
"""
    process = start(tmp_path / "out", job=head + body + "terminal.run(app, 'sgdata')\n")
    time.sleep(0.5)  # the first worker starts once its module is imported
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert err == "sgdata: stopped by SIGTERM; what is finished is kept: the same command continues\n"


def test_the_lines_of_a_command_are_json(tmp_path: Path) -> None:
    process = start(tmp_path / "out", "--log-format", "json")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    (line,) = map(json.loads, err.splitlines())
    assert line["time"].endswith("+00:00")
    assert (line["level"], line["exit_code"]) == ("error", 130)
    assert line["message"].startswith("stopped by SIGTERM")


def test_progress_as_json_has_its_figures(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sgdata"):
        assert list(progress.track(range(3), label="tiles", total=3)) == [0, 1, 2]
    line = json.loads(log_lines.JsonLines().format(caplog.records[-1]))
    assert {name: line[name] for name in ("level", "stage", "done", "total", "seconds_left")} == {
        "level": "info", "stage": "tiles", "done": 3, "total": 3, "seconds_left": 0,
    }  # fmt: skip


def test_a_folder_of_finished_releases_is_not_stopped(tmp_path: Path) -> None:
    for version in ("1.0", "1.1"):
        files.write(tmp_path / f"r/city-{version}/croissant.json", b"{}")
        files.write_sums(tmp_path / f"r/city-{version}")
    with output_lock.only_writer(tmp_path / "r"):
        assert [(one.folder.name, one.state) for one in status.statuses(tmp_path / "r")] == [("r", "running")]
    assert (tmp_path / "r/.lock").exists()
    shown = [(one.folder.name, one.state) for one in status.statuses(tmp_path / "r")]
    assert shown == [("city-1.0", "finished"), ("city-1.1", "finished")]


def test_a_killed_job_is_shown_as_stopped_at_its_progress(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out)
    deadline = time.monotonic() + 60
    while (found := status.statuses(out)[0].writer) is None or not found.done:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.kill()
    process.communicate(timeout=60)
    (shown,) = status.statuses(tmp_path)  # of a folder of outputs
    assert (shown.state, shown.writer.stage if shown.writer else "") == ("stopped", "tiles")
    assert "the command that writes it continues it; tiles: " in shown.line
    done = CliRunner().invoke(app, ["status", str(out), "--json"])
    assert json.loads(done.stdout)["outputs"][0]["writer"]["total"] == 1000


def test_the_heartbeat_is_in_no_list_of_sums_and_removed(tmp_path: Path) -> None:
    with output_lock.only_writer(tmp_path):
        files.write(tmp_path / "a", b"a")
        while not (tmp_path / heartbeat.NAME).exists():
            time.sleep(0.01)
        files.write_sums(tmp_path)
        assert list(files.read_sums(tmp_path)) == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "SHA256SUMS", "a"]
    assert status.statuses(tmp_path)[0].line == f"{tmp_path}: finished"


def beat(folder: Path, **changes: object) -> Path:
    now = time.time()
    state = {"process": os.getpid(), "host": socket.gethostname(), "began": now, "updated": now} | changes
    files.write(folder / heartbeat.NAME, json.dumps(state).encode())
    return folder


def test_a_writer_on_another_machine_is_judged_by_its_last_sign(tmp_path: Path) -> None:
    beat(tmp_path, host="node-7", stage="composite", done=12, total=48, seconds_left=40)
    (shown,) = status.statuses(tmp_path)
    assert shown.state == "running"
    assert "running; composite: 12 of 48 (25%), 40 s left; process" in shown.line
    beat(tmp_path, host="node-7", updated=time.time() - 120)
    assert status.statuses(tmp_path)[0].state == "stopped"


def test_what_is_no_output_or_damaged_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such folder"):
        status.statuses(tmp_path / "nowhere")
    with pytest.raises(SettingError, match="no output of sgdata"):
        status.statuses(tmp_path)
    files.write(tmp_path / heartbeat.NAME, b'{"process": "x"}')
    with pytest.raises(SourceError, match="remove it"):
        status.statuses(tmp_path)


@pytest.mark.parametrize("how", [signal.SIGINT, *STOPPING])
def test_a_training_defers_the_signals_and_ends_with_the_code(
    how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sgdata")
    with signals.deferred_signals() as stopped:
        assert not stopped()
        os.kill(os.getpid(), how)
        assert stopped()
    assert signals.stop_code() == ExitCode.INTERRUPTED
    with signals.deferred_signals():
        pass
    assert "--stop-after" not in caplog.text
    assert signals.stop_code() == ExitCode.FINDINGS
    assert caplog.messages[-1] == "stopped before the last step, by --stop-after; the same command continues the run"
