"""The gated program where there are too many cells to list: over those that a search finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from llr.theory.relu.search import climb, gates
from llr.theory.relu.search import starts as random_starts

Array = np.ndarray[Any, np.dtype[Any]]
_T = TypeVar("_T")

VIOLATED = 1e-8  # above 1
_FEWEST, _STARTS, _ADDED, _MOST_ROUNDS = 50, 200, 100, 60
_PATIENCE = 3  # searches in a row that find nothing


def with_cells_found(
    x: Array,
    normalized: bool,
    without: Array,
    solve: Callable[[Tensor], tuple[_T, Array]],
    starts: Array,
) -> tuple[_T, float]:
    """Solve a program over more and more cells, until a search finds none that is violated.

    Violated are those at which the dual variable is above 1.

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
    n = len(x)
    never = {row.tobytes() for row in without}
    masks: dict[bytes, Array] = {}

    def include(rows: Array) -> bool:
        new = [row for row in rows if row.any() and row.tobytes() not in never | masks.keys()]
        masks.update((row.tobytes(), row) for row in new)
        return bool(new)

    include(np.concatenate((starts, random_starts(x, max(n, _FEWEST), generator))) @ x.T > 0)
    for _ in range(_MOST_ROUNDS):
        solution, lam = solve(torch.from_numpy(np.array(list(masks.values()))))
        highest = 1.0
        for _ in range(_PATIENCE):
            begin = np.concatenate((random_starts(x, _STARTS, generator), starts))
            u, values = climb(gates(x, lam, normalized), x, begin)
            order = np.argsort(-values)
            order = order[values[order] > 1 + VIOLATED]
            fresh = [i for i in order if (x @ u[i] > 0).tobytes() not in never][:_ADDED]
            highest = max([highest, *values[fresh].tolist()])
            if found := include(u[fresh] @ x.T > 0):
                break
        if not found:
            break
    return solution, highest
