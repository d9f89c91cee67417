"""Fixtures shared by all tests. The network is blocked but for loopback (see pyproject.toml)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# On a busy machine any example may take long: a deadline would test the machine, not the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Beside other processes the threads of one small tensor operation wait for each other: twenty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the folder of test data 'shared/{name}' is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def real() -> Path:
    """Return the folder of small real samples, which are outside the repository because of their licences."""
    return shared_folder("real")


@pytest.fixture(scope="session")
def parity() -> Path:
    """Return the folder of reference outputs of the original SpectralGPT, which is outside the repository."""
    return shared_folder("parity")


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulate an archive of 2 km with 4 dates of the first epoch."""
    from sgdata.simulation.archive import simulate

    return simulate(tmp_path_factory.mktemp("city") / "archive", seed=1, size_km=2, dates=4, ground="plain")
