"""The gated program where there are too many cells to list: cells that a search finds come in one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from llr.theory.relu.search import climb, gates

Array = np.ndarray[Any, np.dtype[Any]]
_T = TypeVar("_T")

VIOLATED = 1e-8  # above 1
_FEWEST, _STARTS, _ADDED, _MOST_ROUNDS = 50, 200, 100, 60


def with_cells_found(
    x: Array,
    normalized: bool,
    without: Array,
    solve: Callable[[Tensor], tuple[_T, Array]],
    starts: Array,
) -> tuple[_T, float]:
    """Solve a program over more and more cells, until a search finds none at which its dual variable is above 1.

    Args:
        x: (n, d).
        normalized: which program.
        without: patterns that do not come in, (k, n).
        solve: a solution over patterns (p, n), and its dual variable.
        starts: vectors in whose cells it begins, (s, d).

    Returns:
        The last solution; and the largest that its dual variable was found to be, at least 1.
    """
    generator = np.random.default_rng(0)
    n, d = x.shape
    never = {row.tobytes() for row in without}
    masks: dict[bytes, Array] = {}

    def include(rows: Array) -> bool:
        new = [row for row in rows if row.any() and row.tobytes() not in never | masks.keys()]
        masks.update((row.tobytes(), row) for row in new)
        return bool(new)

    include(np.concatenate((starts, generator.standard_normal((max(n, _FEWEST), d)))) @ x.T > 0)
    for _ in range(_MOST_ROUNDS):
        solution, lam = solve(torch.from_numpy(np.array(list(masks.values()))))
        random = generator.standard_normal((_STARTS, d))
        u, values = climb(gates(x, lam, normalized), np.concatenate((random, starts)))
        order = np.argsort(-values)
        order = order[values[order] > 1 + VIOLATED]
        fresh = [i for i in order if (x @ u[i] > 0).tobytes() not in never][:_ADDED]
        highest = max([1.0, *values[fresh].tolist()])
        if not fresh or not include(u[fresh] @ x.T > 0):
            break
    return solution, highest
