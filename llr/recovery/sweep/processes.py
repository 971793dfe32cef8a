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
    """Workers that the coordinator starts itself, and replaces when they die."""

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
            self._coordinator.adopt(name)
            self._running[name] = _spawn(self._address, name, self._plan.threads)

    def tend(self) -> None:
        """Bury the dead and replace them.

        Raises:
            RuntimeError: they die and die, and no cell is finished.
        """
        if self._coordinator.left < self._left:
            self._left, self._deaths = self._coordinator.left, 0
        for name, process in list(self._running.items()):
            if process.poll() is not None:
                _await(self._running.pop(name))
                self._coordinator.bury(name)
                self._deaths += bool(self._coordinator.left)
                if self._deaths > 3 * self._number:
                    raise RuntimeError(
                        f"{self._deaths} processes have died since a cell was last finished, the last "
                        f"with exit code {process.returncode}: out of memory, perhaps; try fewer jobs"
                    )
        self._start()

    def stop(self) -> None:
        """End those that still run: at once if there is work left, else when they have seen the end."""
        for name, process in self._running.items():
            if self._coordinator.left:
                process.terminate()
                self._coordinator.bury(name)
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
    """A worker in a new interpreter; nothing is forked, nothing pickled, and no script imported again.

    We hold its standard input: when this process ends, however that happens, the worker notices.
    """
    command = [sys.executable, "-m", "llr.recovery.sweep", "worker"]
    command += [address.host, str(address.port), address.prefix, name]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OMP_NUM_THREADS": str(threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # or a broken connection is told with the stack of C++
    }
    with _deaf_to_interrupts():
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Children inherit that: Ctrl-C goes to all processes of a terminal, and one should answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
