"""The exact program, whose vectors stay within the cells of their patterns, by clarabel and cutting planes.

A program over some cells is solved, and its dual variable looked at over the others: first by a search, then,
where all cells are known, over all of them. Cells where it is too large come in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llr.theory.relu.arguments import Kind
from llr.theory.relu.clarabel_program import Block, least_norms
from llr.theory.relu.nonnegative import nonnegative_least_squares
from llr.theory.relu.search import climb, neurons
from llr.theory.relu.search import starts as random_starts

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[bytes, int]
"""A pattern, as bytes of 0 and 1, and the sign of outgoing weights."""

VIOLATED = 1e-8  # above 1
_ALL_AT_ONCE = 240  # pairs
_FIRST, _STARTS = 40, 150
_MOST_ROUNDS = 60
_PATIENCE = 3  # searches in a row that find nothing
_ADDED = 60  # pairs in one round
_AS_ASKED = "Solved"  # clarabel's word
_USED = 1e-6  # of the objective, what a cell has that the solution uses
_WEIGHT = 1e6  # of equations within least squares


@dataclass(frozen=True)
class ConeSolution:
    """What :func:`solve_cones` found.

    Attributes:
        pairs: the cells in the last program.
        u: a vector for each of them.
        free: the vector of the skip connection; None if there is none in the program.
        lam: (n), the dual variable.
        value: the sum of norms, an upper bound of the least one.
        highest: the largest that lam.(features) was found to be over all cells; 1 is allowed.
        checked: whether that is over all cells.
        feasible: whether there is a solution within the cells of the last program.
        residual: relative, of the equations.
        status: clarabel's word.
    """

    pairs: list[Pair]
    u: list[Array]
    free: Array | None
    lam: Array
    value: float
    highest: float
    checked: bool
    feasible: bool
    residual: float
    status: str


@dataclass
class Cells:
    """Cells of samples, in which the vectors of an exact program may be.

    Attributes:
        x: (n, d).
        kind: the program.
        masks: patterns of all cells, (p, n); None if they are not known.
        without: patterns of cells that are left out.
    """

    x: Array
    kind: Kind
    masks: Array | None
    without: frozenset[bytes] = frozenset()
    _parts: dict[bytes, tuple[Array, Array, Array, Array]] = field(default_factory=dict)

    def pairs(self) -> list[Pair]:
        """All of them, with both signs."""
        return [] if self.masks is None else self.pairs_of(self.masks)

    def pairs_of(self, masks: Array) -> list[Pair]:
        """Those of patterns, with both signs."""
        rows = dict.fromkeys(row.tobytes() for row in masks.astype(np.uint8) if row.any())
        return [(row, sign) for row in rows if row not in self.without for sign in (1, -1)]

    def parts(self, row: bytes) -> tuple[Array, Array, Array, Array]:
        """D X, R, the rows of C u >= 0, and the columns of T.

        First those with R T = I, then the null space of R, with a large weight.
        """
        if row not in self._parts:
            active = np.frombuffer(row, dtype=np.uint8).astype(float)
            C = (2 * active - 1)[:, None] * self.x
            C = C[C.any(axis=1)]
            block = active[:, None] * self.x
            R = T = np.eye(self.x.shape[1])
            if self.kind == "normalized":
                _, s, vt = np.linalg.svd(block, full_matrices=True)
                rank = int((s > s[0] * max(block.shape) * np.finfo(float).eps).sum())
                R = s[:rank, None] * vt[:rank]
                T = np.column_stack((vt[:rank].T / s[:rank], _WEIGHT * vt[rank:].T))
            self._parts[row] = block, R, C, T
        return self._parts[row]

    def height(self, pair: Pair, lam: Array) -> float:
        """The largest +-lam.(D X u) over the u of a cell with norm(R u) <= 1, by least squares."""
        block, _, C, T = self.parts(pair[0])
        z = T.T @ (pair[1] * (lam @ block))
        free = float(np.linalg.norm(z))
        if free == 0:
            return 0.0
        return nonnegative_least_squares((C @ T).T, -z)[1]

    def found(self, lam: Array, starts: Array, above: float) -> dict[Pair, float]:
        """Cells in which a search finds that lam is above a number."""
        seen: dict[Pair, float] = {}
        for sign in (1, -1):
            u, values = climb(
                neurons(self.x, sign * lam, self.kind == "normalized"), self.x, starts
            )
            rows = ((u @ self.x.T) > 0).astype(np.uint8)
            for row, value in zip(rows, values, strict=True):
                pair = row.tobytes(), sign
                if value > above and pair[0] not in self.without:
                    seen[pair] = max(float(value), seen.get(pair, 0.0))
        return seen

    def all_above(self, lam: Array, above: float, known: float) -> tuple[dict[Pair, float], float]:
        """Cells in which lam is above a number, of all there are, and the largest value anywhere.

        Args:
            lam: (n).
            above: the number.
            known: a value that it has somewhere, or that does not matter; cells whose bound without
                half-spaces is below it are not looked at closer.
        """
        assert self.masks is not None
        if self.kind == "normalized":
            bounds = np.linalg.norm(self.masks * lam, axis=1)
        else:
            bounds = np.linalg.norm((self.masks * lam) @ self.x, axis=1)
        seen: dict[Pair, float] = {}
        highest = known
        for pair in self.pairs_of(self.masks[bounds > min(known, above)]):
            value = self.height(pair, lam)
            highest = max(highest, value)
            if value > above:
                seen[pair] = value
        return seen, highest


def solve_cones(
    cells: Cells, basis: Array, y: Array, *, free: bool, starts: Array, seed: int = 0
) -> ConeSolution:
    """The least sum of norms with B' (sum of features) = y, over neurons in all cells.

    Args:
        cells: where neurons may be.
        basis: B, (n, m).
        y: (m).
        free: whether a skip connection is in the program.
        starts: vectors at whose cells the program and searches begin, (s, d).
        seed: of the random starts.

    Raises:
        ImportError: clarabel is not installed.
    """
    generator = np.random.default_rng(seed)
    d = cells.x.shape[1]
    every = cells.pairs()
    allowed = frozenset(every)
    some = np.concatenate((starts, random_starts(cells.x, _FIRST, generator))) @ cells.x.T > 0
    pairs = dict.fromkeys(every if 0 < len(every) <= _ALL_AT_ONCE else cells.pairs_of(some))
    rounds = 0
    while True:
        found = _solved(cells, list(pairs), basis, y, free)
        rounds += 1
        known, above = (1.0, 1 + VIOLATED) if found.feasible else (0.0, VIOLATED)
        new: dict[Pair, float] = {}
        checked = False
        searches = 0 if every and len(pairs) == len(every) else 1 if every else _PATIENCE
        for _ in range(searches):
            random = random_starts(cells.x, _STARTS, generator)
            from_here = np.concatenate((random, starts, np.array(found.u).reshape(-1, d)))
            new.update(cells.found(found.lam, from_here, above))
            new = {pair: value for pair, value in new.items() if not every or pair in allowed}
            known = max([known, *new.values()])
            if new.keys() - pairs.keys():
                break
        if every and not new.keys() - pairs.keys():
            new, known = cells.all_above(found.lam, above, known)
            checked = True
        fresh = sorted(new.keys() - pairs.keys(), key=lambda pair: -new[pair])
        if not fresh or rounds == _MOST_ROUNDS:
            final = replace(found, highest=known, checked=checked)
            return _again(cells, final, basis, y, free) if every and found.feasible else final
        pairs.update(dict.fromkeys(fresh[:_ADDED]))


def _again(cells: Cells, found: ConeSolution, basis: Array, y: Array, free: bool) -> ConeSolution:
    """The program over the cells that the solution uses alone, where clarabel was not as precise as asked."""
    if found.status == _AS_ASKED:
        return found
    sizes = [
        float(np.linalg.norm(cells.parts(row)[1] @ u))
        for (row, _), u in zip(found.pairs, found.u, strict=True)
    ]
    used = [p for p, size in zip(found.pairs, sizes, strict=True) if size > _USED * found.value]
    if not used:
        return found
    fewer = _solved(cells, used, basis, y, free)
    if not fewer.feasible or fewer.status != _AS_ASKED:
        return found
    _, highest = cells.all_above(fewer.lam, 1 + VIOLATED, 1.0)
    same = highest <= max(found.highest, 1 + VIOLATED)
    return replace(fewer, highest=highest, checked=True) if same else found


def _solved(cells: Cells, pairs: list[Pair], basis: Array, y: Array, free: bool) -> ConeSolution:
    """The program over some cells."""
    x = cells.x
    d = x.shape[1]
    blocks = []
    for row, sign in pairs:
        block, R, C, _ = cells.parts(row)
        blocks.append(Block(sign * (basis.T @ block), R, C))
    if free:
        blocks.append(Block(basis.T @ x, np.eye(d), np.zeros((0, d))))
    optimum = least_norms(blocks, y)
    lam = basis @ optimum.lam
    norms = [float(np.linalg.norm(b.R @ u)) for b, u in zip(blocks, optimum.u, strict=True)]
    off = sum(b.M @ u for b, u in zip(blocks, optimum.u, strict=True)) - y
    vectors = optimum.u
    if not optimum.feasible:
        lam = lam / np.linalg.norm(lam)
    return ConeSolution(
        pairs,
        vectors[: len(pairs)],
        vectors[-1] if free else None,
        lam,
        sum(norms),
        math.inf,
        False,
        optimum.feasible,
        float(np.linalg.norm(off) / np.linalg.norm(y)),
        optimum.status,
    )
