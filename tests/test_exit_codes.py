"""Test that exit codes come from one table and mean the same in every command."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import sgdata
from sgdata import files, terminal
from sgdata.audits.findings import AuditReport, CheckResult
from sgdata.cli import app
from sgdata.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for package in ("sgdata", "sgmodel") for path in (ROOT / package).rglob("*.py"))
# Functions whose return value becomes the exit code of the process.
PROGRAMS = {"program", "main"}


def literal_codes(tree: ast.Module) -> Iterator[int]:
    """Yield the line of every exit code that is written as a number."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"SystemExit", "sys.exit", "typer.Exit", "exit"}:
            yield from (node.lineno for value in node.args if isinstance(value, ast.Constant))
        if isinstance(node, ast.FunctionDef) and node.name in PROGRAMS:
            returns = [each for each in ast.walk(node) if isinstance(each, ast.Return)]
            yield from (each.lineno for each in returns if isinstance(each.value, ast.Constant))


def test_the_table() -> None:
    codes = {"DONE": 0, "BUG": 1, "REFUSED": 2, "FINDINGS": 3, "INTERRUPTED": 130}
    assert {code.name: code.value for code in ExitCode} == codes
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(codes.values())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, typer.Abort])
def test_an_interrupted_command_ends_with_the_code_of_the_table(
    interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = typer.Typer()
    monkeypatch.setattr(terminal, "clean_output", lambda: None)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    @interrupted.command()
    def work() -> None:
        raise interruption

    with pytest.raises(SystemExit) as ended:
        terminal.run(interrupted, "sgdata", [])
    assert ended.value.code == ExitCode.INTERRUPTED


@pytest.mark.parametrize("program", ["sgdata", "sgmodel"])
def test_ctrl_c_during_imports_ends_in_one_line(program: str) -> None:
    code = f"""
import sys
class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from sgdata import start
start.{program}()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (ExitCode.INTERRUPTED, f"{program}: stopped by Ctrl-C\n")


@pytest.mark.parametrize("program", ["sgdata", "sgmodel"])
def test_the_scripts_of_the_wheel_start_the_programs(program: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts[program].split(":")
    code = f"import sys; sys.argv = ['{program}', '--version']; from {module} import {name}; sys.exit({name}())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"{program} {sgdata.__version__}\n")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_exit_code_is_written_as_a_number(path: Path) -> None:
    assert not list(literal_codes(ast.parse(path.read_text())))


def run(*arguments: str) -> int:
    return CliRunner().invoke(app, arguments).exit_code


@pytest.mark.parametrize(("findings", "code"), [(0, ExitCode.DONE), (1, ExitCode.FINDINGS)])
def test_verify_drift_and_audit_report_differences_alike(
    findings: int, code: ExitCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(tmp_path / "a", b"a")
    files.write_sums(tmp_path)
    if findings:
        files.write(tmp_path / "b", b"b")
    assert run("verify", str(tmp_path)) == code

    monkeypatch.setattr("sgdata.scenes.lock.read", lambda path: path)
    monkeypatch.setattr(
        "sgdata.scenes.catalog_drift.find_drift", lambda lock, where, **options: ["S2A: vanished"] * findings
    )
    assert run("drift", str(tmp_path)) == code

    check = CheckResult(name="readable", state="finding" if findings else "pass", message="", figures={}, where=())
    report = AuditReport(subject="toy 1", kind="shards", samples=1, checks=(check,), findings=findings)
    monkeypatch.setattr("sgdata.audits.collect_evidence.detect_subject", lambda path, **options: path)
    monkeypatch.setattr("sgdata.audits.collect_evidence.collect_evidence", lambda subject, **options: subject)
    monkeypatch.setattr("sgdata.audits.checks.run_checks", lambda evidence: report)
    assert run("audit", str(tmp_path)) == code


@pytest.mark.parametrize("command", [["verify", "nowhere"], ["drift", "nowhere"], ["audit", "nowhere"], ["nonsense"]])
def test_invalid_input_is_refused(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "sgdata.cli", *command], capture_output=True, check=False)
    assert done.returncode == ExitCode.REFUSED
