"""The experiments of the theory: each is a sweep with a figure, ``llr reproduce NAME``."""

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
"""The specification of a sweep, with the content of a TOML file."""


@dataclass(frozen=True)
class Experiment:
    """A question, and the grid of cells that answers it.

    Attributes:
        question: the question.
        expected: the answer of the theory.
        full: the grid of the figure.
        quick: a small grid that takes seconds, to see that it works.
        runner: the function that computes a cell.
        figure: the function that draws the rows.
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
        question="From how many samples are three tanh neurons on three inputs recovered?",
        expected="the optimistic sample size is 12: narrow networks need 13, wide ones by gradients far more",
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
        question="From how many samples is one nearly linear tanh neuron on five inputs recovered?",
        expected="6, one more than for a linear function",
        full=_two_layer(d=5, k=1, target="linear-like", n=_range(3, 10), seed=_TWENTY),
        quick=_two_layer(d=2, k=1, target="linear-like", n=[2, 4], seed=_TWO, options=_FEW_STARTS),
    ),
    "cnn": Experiment(
        question="From how many samples is one convolution kernel recovered, in three architectures?",
        expected="6 with shared weights, 12 without sharing, 18 fully connected",
        full=_kernels(n=_range(3, 21), seed=_TWENTY),
        quick=_kernels(d=3, kernel=2, n=[3, 5, 9], seed=_TWO, options=_FEW_STARTS),
    ),
    "matrix": Experiment(
        question="From how many entries does gradient descent from 1e-30 recover a 5 x 5 matrix?",
        expected="r (10 - r): 9 for rank one, 16 for rank two",
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
        question="What changes if a function of a narrow network is embedded in a wider one?",
        expected="neither its rank nor, for a search from narrow to wide, the samples that it needs",
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
        question="Do more neurons need more samples, or more connections?",
        expected="6 samples for any number of neurons; with more connections 6, 12 and 18",
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
    """The results of an experiment.

    Attributes:
        name: the name of the experiment.
        tally: the state of its sweep.
        results: the file of the sweep.
        table: the results as a CSV file.
        figure: the figure, with the predicted sizes marked.
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
    """Run an experiment, or the cells of it that are missing, and draw its figure.

    Args:
        name: one of :data:`EXPERIMENTS`.
        out: a directory, for NAME.sqlite, NAME.csv and the figure.
        quick: use a small grid that takes seconds, to see that it works; its files are called NAME-quick.
        jobs: the number of processes.
        suffix: the suffix of the figure: .png, .pdf or .svg.
        progress: as for :func:`llr.recovery.sweep.run`.

    Raises:
        ValueError: no such experiment; a figure of another kind.
        StoreError: the results cannot be written.
        RuntimeError: cells failed; the same call computes them again.
        ImportError: matplotlib is missing.

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
    assert tally is not None, "only ranks other than 0 get None"
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
