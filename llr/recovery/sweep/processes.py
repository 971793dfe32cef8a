"""Worker processes on the coordinator's machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

from llr.recovery.sweep.board import Address, Plan
from llr.recovery.sweep.coordinator import Coordinator


class Processes:
    """Worker processes that the coordinator starts itself, and replaces when they die."""

    def __init__(self, coordinator: Coordinator, address: Address, number: int, plan: Plan) -> None:
        self._coordinator, self._address, self._plan = coordinator, address, plan
        self._number = number
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._started = 0
        self._deaths = 0
        self._left = coordinator.left

    def __enter__(self) -> Processes:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        while self._coordinator.left and len(self._running) < self._number:
            self._started += 1
            name = f"process {self._started} of {os.getpid()} ({socket.gethostname()})"
            self._coordinator.add_own(name)
            self._running[name] = _spawn(self._address, name, self._plan.threads)

    def replace_ended(self) -> None:
        """Replace processes that have ended.

        Raises:
            RuntimeError: processes end repeatedly, and no cell is finished.
        """
        if self._coordinator.left < self._left:
            self._left, self._deaths = self._coordinator.left, 0
        for name, process in list(self._running.items()):
            if process.poll() is not None:
                _await(self._running.pop(name))
                self._coordinator.mark_ended(name)
                self._deaths += bool(self._coordinator.left)
                if self._deaths > 3 * self._number:
                    raise RuntimeError(
                        f"{self._deaths} processes have died since a cell was last finished, the last "
                        f"with exit code {process.returncode}: out of memory, perhaps; try fewer jobs"
                    )
        self._start()

    def stop(self) -> None:
        """End running processes: at once if cells are left, otherwise after they have read the end."""
        for name, process in self._running.items():
            if self._coordinator.left:
                process.terminate()
                self._coordinator.mark_ended(name)
        for process in self._running.values():
            _await(process)
        self._running.clear()


def _await(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
    with process:  # closes its standard input
        process.wait()


def _spawn(address: Address, name: str, threads: int) -> subprocess.Popen[bytes]:
    """Start a worker in a new interpreter. Nothing is forked or pickled, and no script is imported again.

    This process holds the standard input of the worker. When it ends in any way, the worker notices.
    """
    command = [sys.executable, "-m", "llr.recovery.sweep", "worker"]
    command += [address.host, str(address.port), address.prefix, name]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OMP_NUM_THREADS": str(threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # otherwise torch prints a C++ stack for a broken connection
    }
    with _ignoring_interrupts():
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in children started in the block: it goes to all processes, and only one should react."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
