"""Test that the requested device and precision are used, and that a missing GPU is reported in one line."""

from __future__ import annotations

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
