"""Runners and grids for the tests of sweeps; on command lines a runner is helpers.sweep_cases:NAME."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import llr
from llr.recovery.sweep import Spec, StoreError, read_store, run, table
from llr.recovery.sweep.spec import Value

SHARED = {"architecture": "two-layer", "target": "generic", "strategy": "lm"}
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        [str(Path(llr.__file__).parents[1]), str(Path(__file__).parents[1])]
    ),
    "OMP_NUM_THREADS": "1",
}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


def counted(values: Mapping[str, Value]) -> dict[str, Value | None]:
    """Numbers from the cell, and from generators not seeded here. Each call writes a line to $CALLS."""
    if "CALLS" in os.environ:
        line = json.dumps([os.getpid(), *values.values()]) + "\n"
        descriptor = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())  # one write: the process may be killed
        os.close(descriptor)
    time.sleep(float(os.environ.get("SLEEP", "0")))
    A = torch.randn(40, 40)  # depends only on the cell, although from a global generator
    return {
        "loss": float(torch.linalg.svdvals(A @ A)[5]),
        "recovered": int(values["n"]) > 5,
        "predicted": 6,
        "text": f"ü, {values['seed']}",
        "nothing": None,
        "diverged": float("inf"),
    }


def refusing(values: Mapping[str, Value]) -> dict[str, Value]:
    if int(values["seed"]) == 1 and not Path(os.environ["MENDED"]).exists():
        raise LookupError("no\nway")
    return {"recovered": True}


class Particular:
    """A runner that refuses cells before any work."""

    def __call__(self, values: Mapping[str, Value]) -> dict[str, Value]:
        raise AssertionError(f"it must not be called, but was with {values}")

    def check(self, values: Mapping[str, Value]) -> None:
        if values["n"] == 5:
            raise ValueError("n is 5; expected another")


particular = Particular()


def deadly(values: Mapping[str, Value]) -> dict[str, Value]:
    """Kills its process at one of the cells, as faulty native code might."""
    if values["seed"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"recovered": True}


def grid(cells: int, **more: Any) -> Spec:
    return Spec.parse({**SHARED, "n": [5, 6], "seed": {"from": 0, "to": cells // 2 - 1}, **more})


def toml(cells: int) -> str:
    """The TOML file for `grid(cells)`."""
    shared = "".join(f'{name} = "{value}"\n' for name, value in SHARED.items())
    return f"{shared}n = [5, 6]\nseed = {{ from = 0, to = {cells // 2 - 1} }}\n"


def undisturbed(spec: Spec, folder: Path) -> dict[str, list[Any]]:
    """The table of a sweep that runs in one process without being killed."""
    run(spec, folder / "undisturbed.sqlite", runner="helpers.sweep_cases:counted")
    return columns(folder / "undisturbed.sqlite")


def columns(path: Path) -> dict[str, list[Any]]:
    with read_store(path) as store:
        return table(store.rows())


def settled(path: Path) -> set[str]:
    """The keys of the cells with results in a file; none if the file is not complete yet."""
    if not path.is_file():
        return set()
    try:
        with read_store(path) as store:
            return {row.cell.key for row in store.rows() if row.outcome is not None}
    except StoreError as err:
        if "is empty: its sweep has not begun" not in str(err):
            raise
        return set()  # the process was killed while it made the file


def finished(path: Path) -> int:
    return len(settled(path))


def start(*arguments: object, launcher: Sequence[str] = (sys.executable,), **more: Any) -> Any:
    command = [*launcher, "-m", "llr.recovery.sweep", *map(str, arguments)]
    return subprocess.Popen(command, **{"env": ENVIRONMENT, "text": True, **more})


def ranks(number: int, sleep: float) -> list[dict[str, str]]:
    """The environments of the processes of a launcher that does not restart them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**ENVIRONMENT, **group, "RANK": str(i), "SLEEP": str(sleep)} for i in range(number)]


def calls(path: Path) -> Counter[tuple[Any, ...]]:
    """How often each cell was begun."""
    return Counter(tuple(json.loads(line)[1:]) for line in path.read_text().splitlines())
