"""Test that the requested device and precision are used, and that a missing GPU is reported in one line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading

import pytest
import torch

from sgdata.errors import SettingError
from sgmodel import devices
from sgmodel.train import signals


def test_bf16_is_used_inside_autocast_only() -> None:
    where = devices.setup_device("cpu", precision="bf16", threads=1)
    x = torch.ones(2, 2)
    with where.autocast():
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32
    with devices.setup_device("cpu", precision="fp32", threads=1).autocast():
        assert (x @ x).dtype == torch.float32


def test_the_number_of_threads_is_applied() -> None:
    devices.setup_device("cpu", precision="fp32", threads=3)
    assert torch.get_num_threads() == 3
    devices.setup_device("cpu", precision="fp32", threads=1)
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    count = """
import resource, torch
from sgmodel import devices
{}
for _ in range(8):  # the first ones until all blocks have found their places
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2**23), torch.ones(2**23)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = []
    for line in ("pass", "assert devices.keep_freed_memory()"):
        command = [sys.executable, "-c", count.format(line)]
        faults.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert faults[1] < 100 < faults[0]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not devices.keep_freed_memory()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_missing_gpu_is_reported_in_one_line() -> None:
    with pytest.raises(SettingError, match="--device 'cuda:0': this torch .* sees no GPU; use --device cpu"):
        devices.setup_device("cuda:0", precision="fp32", threads=1)
    assert devices.setup_device("auto", precision="fp32", threads=1).device.type == "cpu"


def test_signals_are_not_deferred_outside_the_main_thread() -> None:
    answers: list[bool] = []

    def ask() -> None:
        with signals.deferred_signals() as signalled:
            answers.append(signalled())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]


def test_threads_do_not_spin_while_they_wait_for_others() -> None:
    """Spinning took more than half of the CPU seconds of a step beside a dozen other processes."""
    script = "import os, {}; print(os.environ.get('OMP_WAIT_POLICY'))"
    for names, given, expected in (
        ("sgmodel", {}, "passive"),
        ("sgmodel", {"OMP_WAIT_POLICY": "active"}, "active"),
    ):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        command = [sys.executable, "-c", script.format(names)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        assert out.strip() == expected
