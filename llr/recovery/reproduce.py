"""The experiments of the theory, as sweeps with a figure each: ``llr reproduce NAME``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llr.inputs.accept import takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.named import named_object
from llr.inputs.roles import a_progress, word
from llr.recovery.sweep import Row, Spec, Tally, export, read_store, run
from llr.results import Record
from llr.results.progress import followed

Document = Mapping[str, Any]
"""A sweep's specification, as a TOML file would say it."""


@dataclass(frozen=True)
class Experiment:
    """A question, and the grid that answers it.

    Attributes:
        question: what is asked.
        expected: what the theory says.
        full: the grid of the figure.
        quick: one of seconds, to see that it works.
        runner: what computes a cell.
        figure: draws the rows.
    """

    question: str
    expected: str
    full: Document
    quick: Document
    runner: str = "llr.recovery.experiment:run_cell"
    figure: str = "llr.recovery.sweep.figure:draw"


def _two_layer(**others: Any) -> dict[str, Any]:
    return {
        "architecture": "two-layer",
        "target": "separated",
        "strategy": "lm",
        "bias": False,
    } | others


def _kernels(**others: Any) -> dict[str, Any]:
    return {
        "architecture": ["cnn-shared", "cnn-local", "cnn-full"],
        "target": "separated",
        "strategy": "lm",
        "d": 5,
        "kernel": 3,
        "k": 1,
    } | others


def _matrix(**others: Any) -> dict[str, Any]:
    return {
        "architecture": "matrix",
        "target": "generic",
        "strategy": "gd",
        "d": 5,
        "width": 5,
        "options": {"init": 1e-30, "steps": 40_000},
    } | others


def _range(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


_TWENTY, _TEN, _TWO = _range(0, 19), _range(0, 9), [0, 1]
_FEW_STARTS = {"starts": 64}

EXPERIMENTS: dict[str, Experiment] = {
    "two-layer": Experiment(
        question="How many samples of three tanh neurons on three inputs find them again?",
        expected="the optimistic sample size is 12: narrow networks take 13, wide ones by gradients far more",
        full={
            "grid": [
                _two_layer(d=3, k=3, n=_range(9, 20), seed=_TWENTY, width=[3, 4, 5]),
                _two_layer(
                    d=3,
                    k=3,
                    n=[13, 16, 20, 24, 30, 36],
                    seed=_TEN,
                    width=50,
                    strategy=["gd", "adam-annealed", "adam-merge-lm"],
                ),
            ],
        },
        quick={
            "grid": [
                _two_layer(d=2, k=1, n=[2, 4], seed=_TWO, width=[1, 2], options=_FEW_STARTS),
                _two_layer(
                    d=2, k=1, n=4, seed=_TWO, width=5, strategy="gd", options={"steps": 200}
                ),
            ]
        },
    ),
    "linear": Experiment(
        question="How many samples of one tanh neuron that is nearly linear, on five inputs?",
        expected="6, one more than of a linear function",
        full=_two_layer(d=5, k=1, target="linear-like", n=_range(3, 10), seed=_TWENTY),
        quick=_two_layer(d=2, k=1, target="linear-like", n=[2, 4], seed=_TWO, options=_FEW_STARTS),
    ),
    "cnn": Experiment(
        question="How many samples of one convolution kernel, in three architectures that contain it?",
        expected="6 with shared weights, 12 without sharing, 18 fully connected",
        full=_kernels(n=_range(3, 21), seed=_TWENTY),
        quick=_kernels(d=3, kernel=2, n=[3, 5, 9], seed=_TWO, options=_FEW_STARTS),
    ),
    "matrix": Experiment(
        question="How many entries of a 5 x 5 matrix, for gradient descent on full factors from 1e-30?",
        expected="r (10 - r): 9 of rank one, 16 of rank two",
        full={
            "grid": [
                _matrix(rank=1, n=_range(6, 12), seed=_TWENTY),
                _matrix(rank=2, n=_range(13, 19), seed=_TWENTY),
            ]
        },
        quick=_matrix(d=3, width=3, rank=1, n=[4, 6], seed=_TWO),
    ),
    "activation": Experiment(
        question="Does the activation matter?",
        expected="k (d + 1) = 8 for two neurons on three inputs; ReLU, whose neurons can be rescaled, 6",
        full=_two_layer(
            d=3,
            k=2,
            n=_range(4, 14),
            seed=_TWENTY,
            activation=["tanh", "sigmoid", "relu", "gelu"],
        ),
        quick=_two_layer(
            d=2, k=1, n=[4], seed=_TWO, activation=["tanh", "relu"], options=_FEW_STARTS
        ),
    ),
    "embedding": Experiment(
        question="What does a wider network change for a function that a narrow one has?",
        expected="neither its rank nor, for a search from narrow to wide, the samples that it takes",
        full=_two_layer(
            d=3, k=2, n=9, seed=_TWENTY, width=[2, 3, 4, 6, 8], strategy=["recover", "lm"]
        ),
        quick=_two_layer(
            d=2, k=1, n=4, seed=_TWO, width=[1, 2], strategy=["recover", "lm"], options=_FEW_STARTS
        ),
        runner="llr.recovery.embedded:run_cell",
        figure="llr.recovery.figure:embedded",
    ),
    "free-width": Experiment(
        question="What costs samples: more neurons, or more connections?",
        expected="neurons are free, 6 samples for any width; connections are not: 6, 12, 18",
        full={
            "grid": [
                _two_layer(
                    d=5,
                    k=1,
                    n=_range(4, 20),
                    seed=_TEN,
                    width=[1, 2, 4, 8, 16],
                    strategy="recover",
                ),
                _kernels(n=_range(4, 20), seed=_TEN, width=1),
            ]
        },
        quick={
            "grid": [
                _two_layer(
                    d=2,
                    k=1,
                    n=[4],
                    seed=_TWO,
                    width=[1, 3],
                    strategy="recover",
                    options=_FEW_STARTS,
                ),
                _kernels(d=3, kernel=2, n=[5], seed=_TWO, width=1, options=_FEW_STARTS),
            ]
        },
    ),
}


@dataclass(frozen=True, repr=False)
class Reproduction(Record):
    """What an experiment left.

    Attributes:
        name: of the experiment.
        tally: of its cells.
        results: the sweep's file.
        table: the same as CSV.
        figure: drawn from it, the predicted sizes marked.
    """

    name: str
    tally: Tally
    results: Path
    table: Path
    figure: Path

    def __str__(self) -> str:
        """One line: the experiment, its cells, and the figure."""
        return f"{self.name}: {self.tally}; figure {self.figure}"

    def _facts(self) -> dict[str, object]:
        files = {name: str(getattr(self, name)) for name in ("results", "table", "figure")}
        return {"cells": self.tally.total, "failed": self.tally.failed, **files}


@takes(name=word, suffix=word, progress=a_progress)
@outside_inference_mode
@followed
def reproduce(
    name: str,
    out: str | os.PathLike[str] = "runs/reproduce",
    *,
    quick: bool = False,
    jobs: int = 1,
    suffix: str = ".png",
    progress: Callable[[Tally], None] | bool | None = None,
) -> Reproduction:
    """Run an experiment, or what is left of it, and draw its figure.

    Args:
        name: one of :data:`EXPERIMENTS`.
        out: a directory, for NAME.sqlite, NAME.csv and the figure.
        quick: a grid of seconds, to see that it works; its files are called NAME-quick.
        jobs: processes.
        suffix: of the figure: .png, .pdf or .svg.
        progress: as for :func:`llr.recovery.sweep.run`.

    Raises:
        ValueError: no such experiment; a figure of another kind.
        StoreError: the results cannot be written.
        RuntimeError: cells failed; the same call tries them again.
        ImportError: figures need matplotlib.

    Example:
        >>> import tempfile
        >>> from llr.recovery import reproduce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(reproduce("linear", folder, quick=True).tally.done)
        4
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment is {name!r}; expected one of {', '.join(EXPERIMENTS)}")
    experiment, stem = EXPERIMENTS[name], f"{name}-quick" if quick else name
    plot = importlib.import_module("llr.results.figures")  # needs matplotlib, which is optional
    draw: Any = named_object(experiment.figure, "figure", "module:callable")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    results, table = folder / f"{stem}.sqlite", folder / f"{stem}.csv"
    figure = folder / f"{stem}{suffix}"
    plot.require_format(figure)
    spec = Spec.parse(experiment.quick if quick else experiment.full)
    tally = run(
        spec, results, runner=experiment.runner, jobs=jobs, retry_failed=True, progress=progress
    )
    assert tally is not None, "only ranks other than 0 get none"
    with read_store(results) as store:
        export(store, table)
        if tally.failed:
            raise RuntimeError(f"{tally.failed} cells failed, such as {_a_failure(store.rows())}")
        plot.save(draw(store.rows()), figure)
    return Reproduction(name, tally, results, table, figure)


def _a_failure(rows: Sequence[Row]) -> str:
    failed = next(row for row in rows if row.status == "failed")
    assert failed.outcome is not None
    return f"{failed.cell}: {failed.outcome.error}"
