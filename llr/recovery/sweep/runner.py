"""Running one cell by a function named on the command line, with results that depend on the cell only."""

from __future__ import annotations

import contextlib
import json
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llr.inputs.evaluation.surroundings import torch_threads
from llr.inputs.named import named_object
from llr.recovery.sweep.spec import RESERVED, Cell, Value
from llr.results.progress import silent

Result = Mapping[str, Value | None]
Runner = Callable[[dict[str, Value]], Result]

DEFAULT_RUNNER = "llr.recovery.experiment:run_cell"
_MOST_BYTES = 1 << 20  # of a result: the limit of torch's store is 8 MiB, and tables need far less
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Outcome:
    """The outcome of a cell: a result, or the error that its runner raised."""

    values: Result | None
    error: str | None = None
    traceback: str | None = None
    seconds: float = 0.0
    worker: str = ""

    @property
    def status(self) -> str:
        """``done`` or ``failed``."""
        return "done" if self.error is None else "failed"


def load_runner(name: str) -> Runner:
    """Import the function that ``module:callable`` names. Nothing is unpickled.

    The function is called with a dict of the coordinates and returns a mapping of names to text, numbers,
    booleans or None. If it has an attribute ``check``, this is called with each cell's coordinates before
    anything is computed, and raises ValueError for invalid ones.

    Raises:
        ValueError: a malformed name, or no object of that name.
        TypeError: the object cannot be called.
        ImportError: importing the module failed.
    """
    runner = named_object(name, "runner", "module:callable, such as mypkg.experiments:run_cell")
    if not callable(runner):
        raise TypeError(f"runner {name!r} is {type(runner).__name__}; expected a callable")
    return runner


def check_cells(runner: Runner, cells: list[Cell]) -> None:
    """Let a runner refuse cells before any is computed; see :func:`load_runner`."""
    check = getattr(runner, "check", None)
    if check is not None:
        for cell in cells:
            _check(check, cell)


def _check(check: Callable[[dict[str, Value]], object], cell: Cell) -> None:
    try:
        check(dict(cell.values))
    except ValueError as err:
        raise ValueError(f"cell {cell}: {err}") from err


def execute(runner: Runner, cell: Cell, *, threads: int, worker: str) -> Outcome:
    """Run one cell; an exception of the runner is an outcome, too.

    The global generators of torch, numpy and Python are seeded by the cell's key, so that even a runner that
    draws from them gives the same numbers in any process and any order.
    """
    started = time.perf_counter()
    values, error, trace = None, None, None
    with silent(), torch_threads(threads), _seeded(int(cell.key[:8], 16)):
        try:
            values = _plain(runner(dict(cell.values)), cell)
        except (Exception, SystemExit) as err:  # the code of a runner may raise anything
            error = f"{type(err).__name__}: {' '.join(str(err).split())}"
            trace = traceback.format_exc()
    return Outcome(values, error, trace, time.perf_counter() - started, worker)


def _plain(result: Any, cell: Cell) -> Result:
    if not isinstance(result, Mapping):
        raise TypeError(
            f"the runner returned {type(result).__name__}; expected a mapping of names to values"
        )
    for name, value in result.items():
        if type(name) is not str or type(value) not in _PLAIN:
            raise TypeError(
                f"the runner returned {name!r}: {type(value).__name__}; expected str, int, float, bool or "
                "None, with text as names (x.item() converts a number of numpy or torch)"
            )
        if name in cell.values or name in RESERVED:
            raise ValueError(
                f"the runner returned {name!r}, which is a column of the table already"
            )
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise ValueError(
                f"the runner returned {name!r}: an integer beyond 64 bits; expected at most 64 bits"
            )
    size = len(json.dumps(dict(result)))
    if size > _MOST_BYTES:
        raise ValueError(f"the runner returned {size} bytes; expected at most {_MOST_BYTES}")
    return dict(result)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - runners may use it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
