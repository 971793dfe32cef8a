"""Fixtures for all tests. Imports only torch, numpy and pytest, as the operator tests have nothing else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import helpers.openmp  # noqa: F401 - before torch
import pytest
import torch
from helpers import targets
from helpers.targets import Target

from llr.operators import _ops

# A shell makes background processes ignore Ctrl-C, and the processes that tests start would inherit that.
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "emulated: CUDA kernels on the CPU, compiled on first use")


def pytest_report_header() -> str:
    return (
        f"torch {torch.__version__}, native library: {_ops.REASON}; "
        f"CUDA kernels: {_ops.CUDA_REASON or 'built'}"
    )


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Every test begins with the same seed and must leave torch's global settings as they were."""
    torch.manual_seed(0)

    def settings() -> tuple[object, ...]:
        return torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()

    before = settings()
    yield
    assert settings() == before


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


on_gpu = pytest.param("cuda", marks=pytest.mark.cuda)
emulated = pytest.param("emulated", marks=pytest.mark.emulated)


@pytest.fixture(params=["cpu", on_gpu])
def device(request: pytest.FixtureRequest) -> str:
    """Runs the test on every device that the operators have kernels for."""
    return targets.target(request.param).device


@pytest.fixture(scope="session", params=["cpu", emulated, on_gpu])
def target(request: pytest.FixtureRequest) -> Target:
    """Runs the test on every device, and with the emulated CUDA kernels on the CPU."""
    return targets.target(request.param)
