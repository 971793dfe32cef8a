"""Activation patterns of ReLU neurons without biases on samples: the open cells of an arrangement."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llr.inputs.accept import needed, takes
from llr.inputs.roles import a_generator, check_int, maybe, whole, word
from llr.linalg.integers import as_integers, rank_of_floats
from llr.results import Record
from llr.theory.relu.arguments import samples_of
from llr.theory.relu.cells import by_rays, distinct, most_cells, signs
from llr.theory.relu.degenerate import TooMany, all_cells, line

Array = np.ndarray[Any, np.dtype[Any]]
_METHODS = ("auto", "exact", "sample")
_CHECKED = 10**6  # cells, up to which a claim to be complete is checked


@dataclass(frozen=True, eq=False, repr=False)
class Patterns(Record):
    """Patterns ``1[x_i.u > 0]`` of n samples, one for each cell.

    Attributes:
        mask: (p, n), bool, no row twice.
        complete: whether these are all cells, as a proof by counting or by exact arithmetic showed.
        witness: (p, d), float64, a point u in each cell; rounded, so that it may be outside of a cell that is
            narrower than rounding.
    """

    mask: Tensor
    complete: bool
    witness: Tensor

    _long = ("mask", "witness")

    def __len__(self) -> int:
        return len(self.mask)

    def __str__(self) -> str:
        """How many there are, and whether these are all."""
        p, n = self.mask.shape
        all_of_them = "all cells" if self.complete else "perhaps not all cells"
        return (
            f"{p:,} patterns of {n} samples in {self.witness.shape[1]} dimensions ({all_of_them})"
        )


_PROVED: weakref.WeakKeyDictionary[Patterns, Array] = weakref.WeakKeyDictionary()
"""Patterns that were made here, and the samples of which they were proved to be complete."""


@takes(x=needed, method=word, max_cells=whole, generator=a_generator, gates=maybe(whole))
def patterns(
    x: Tensor,
    *,
    method: Literal["auto", "exact", "sample"] = "auto",
    max_cells: int = 10**6,
    generator: torch.Generator | None = None,
    gates: int | None = None,
) -> Patterns:
    """The activation patterns that ReLU neurons without biases can have on samples.

    They belong to the open cells of the hyperplanes x_i.u = 0. Neurons on a hyperplane are left out.

    Args:
        x: samples (n, d), any real dtype; every number is taken as it is.
        method: "auto" tries floating point, and proves that nothing is missing by counting: as many different
            patterns as n hyperplanes can have, each verified with a bound of its rounding. Where this fails,
            because samples are in special position or too close to it, it goes on as "exact", which is
            integer arithmetic all the way. "sample" takes the patterns of random gates and never claims to
            be complete.
        max_cells: more cells are refused; by "auto" already if there may be more.
        generator: of the random gates; default: torch's.
        gates: the number of random gates of "sample"; default: max(n, 50).

    Returns:
        The patterns, sorted; of zero samples 0.

    Raises:
        ValueError: x of another shape or not finite, an unknown method, or more than max_cells cells.

    Example:
        >>> import torch
        >>> import llr
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> found = llr.relu.patterns(x)
        >>> print(found)
        6 patterns of 3 samples in 2 dimensions (all cells)
        >>> found.mask.int().tolist()
        [[0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 1]]
    """
    samples = samples_of(x)
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(map(repr, _METHODS))}")
    check_int("max_cells", max_cells, 1)
    used = samples.any(axis=1)
    if not used.any():
        raise ValueError("all samples are zero; expected a sample that is not")
    if method == "sample":
        n = max(len(samples), 50) if gates is None else gates
        check_int("gates", n, 1)
        drawn = torch.randn(n, samples.shape[1], generator=generator, dtype=torch.float64)
        return _sampled(samples, drawn.numpy())
    # One of several parallel rows: the others have its signs, or the opposite ones.
    integers = [as_integers(row.tolist()) for row in samples[used]]
    lines: dict[tuple[int, ...], int] = {}
    for i, row in enumerate(integers):
        lines.setdefault(line(row), i)
    rows = samples[used][list(lines.values())]
    n, d = rows.shape
    rank = rank_of_floats(rows.tolist()) or d
    most = most_cells(n, rank)
    if method == "auto":
        if most > max_cells:
            raise _too_many(
                samples, most, max_cells, "method='exact' finds out whether there are fewer"
            )
        points = by_rays(rows) if rank == min(n, d) else None
        found = None if points is None else _verified(samples, points)
        if found is not None and len(found[0]) == most:
            return _sorted(*found, True, samples)
    try:
        points_, found_ = all_cells(list(lines), d, max_cells)
    except TooMany:
        raise _too_many(samples, most, max_cells, "cells are counted no further") from None
    of = [list(lines).index(line(row)) for row in integers]
    same = [line(row) == tuple(row) for row in integers]
    mask = np.zeros((len(found_), len(samples)), dtype=bool)
    mask[:, used] = (found_[:, of] > 0) == np.array(same)
    return _sorted(mask, _floats(points_), True, samples)


def _too_many(x: Array, most: int, max_cells: int, remark: str) -> ValueError:
    return ValueError(
        f"{len(x)} samples in {x.shape[1]} dimensions have more than max_cells = {max_cells:,} cells (up to "
        f"{most:,}; {remark}); raise max_cells, or use method='sample', which is not complete"
    )


def checked(given: object, x: Array) -> Patterns:
    """Patterns that somebody gave, for these samples.

    Raises:
        ValueError: patterns of other samples, a pattern twice, or patterns that claim to be complete and are
            not.
        TypeError: no patterns.
    """
    if not isinstance(given, Patterns):
        raise TypeError(
            f"patterns are {type(given).__name__}; expected what llr.relu.patterns(x) returns"
        )
    mask = given.mask
    if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != len(x):
        raise ValueError(
            f"the mask of patterns is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of "
            "shape "
            f"(p, {len(x)}), a column for each sample"
        )
    if len(distinct(mask.numpy())) < len(mask):
        raise ValueError("patterns have a row twice; expected each pattern once")
    if given.complete and not np.array_equal(_PROVED.get(given, x[:0]), x):
        _check_complete(given, x)
    return given


def _check_complete(given: Patterns, x: Array) -> None:
    """Refuse patterns that claim to be complete and are not those of all cells."""
    own = patterns(torch.from_numpy(x), max_cells=max(_CHECKED, 2 * len(given)))
    missing = {row.tobytes() for row in own.mask.numpy()} - {
        row.tobytes() for row in given.mask.numpy()
    }
    if missing or len(own) != len(given):
        raise ValueError(
            f"patterns claim to be complete, but they are not those of all {len(own):,} cells of x: "
            f"{len(missing):,} of these are missing among the {len(given):,} given; set complete=False, "
            "or use "
            "llr.relu.patterns(x)"
        )


def _sampled(x: Array, gates: Array) -> Patterns:
    mask, points = _verified(x, gates)
    return _sorted(mask, points, False, x)


def _verified(x: Array, points: Array) -> tuple[Array, Array]:
    """The different patterns at points whose signs are certain, and such a point for each."""
    used = x.any(axis=1)
    found = signs(x, points)
    certain = (found[:, used] != 0).all(axis=1)
    mask, points = found[certain] > 0, points[certain]
    first = distinct(mask)
    return mask[first], points[first]


def _sorted(mask: Array, points: Array, complete: bool, x: Array) -> Patterns:
    order = distinct(mask)
    norms = np.linalg.norm(points[order], axis=1, keepdims=True)
    witness = torch.from_numpy(points[order] / norms)
    found = Patterns(torch.from_numpy(mask[order]), complete, witness)
    if complete:
        _PROVED[found] = x
    return found


def _floats(points: Array) -> Array:
    """Integer vectors in floating point, scaled."""
    rows = [[float(Fraction(v, max(map(abs, row)))) for v in row] for row in points.tolist()]
    return np.array(rows)
