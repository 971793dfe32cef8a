"""Patterns: the number of cells, degenerate samples, what is complete and what is not."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.relu_cases import Array, by_random_signs, double

import llr
from llr.linalg.integers import rank_of_floats
from llr.theory.relu import Patterns, cells, degenerate

patterns = llr.relu.patterns
module = sys.modules[patterns.__module__]  # its name is that of the function
GENERAL = [
    (1, 1),
    (5, 1),
    (6, 2),
    (9, 2),
    (2, 3),
    (3, 3),
    (8, 3),
    (11, 3),
    (4, 6),
    (10, 4),
    (70, 2),
]
DEGENERATE: dict[str, list[list[float]]] = {
    "equal": [[1, 2, 3], [1, 2, 3], [0, 1, -1], [2, 0, 1], [1, 1, 1]],
    "opposite": [[1, 2, 3], [-1, -2, -3], [0, 1, -1], [2, 0, 1], [1, 1, 1]],
    "parallel": [[0.1, 0.2, 0.3], [0.2, 0.4, 0.6], [-0.4, -0.8, -1.2], [2, 0, 1], [1, 1, 1]],
    "coplanar": [[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]],
    "coplanar in 4": [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
        [1, 2, 3, 4],
    ],
    "zero": [[0, 0, 0], [1, 2, 3], [0, 0, 0], [0, 1, -1], [1, -1, 5]],
    "rank 2": [[1, 0, 1], [0, 1, 1], [1, 1, 2], [1, -1, 0], [2, 1, 3]],
    "grid": [list(map(float, p)) for p in itertools.product((-1, 0, 1), repeat=3) if any(p)],
    "cubes": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]],
}


def count(n: int, d: int) -> int:
    """2 sum_{k<d} C(n-1, k), by the recursion of deleting and restricting."""
    if n == 0 or d == 0:
        return 1 if n == 0 else 0
    return 2 if n == 1 else count(n - 1, d) + count(n - 1, d - 1) if d > 1 else 2


def gaussian(n: int, d: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, n, d]).standard_normal((n, d))


@pytest.mark.parametrize(("n", "d"), GENERAL)
def test_count_and_method(n: int, d: int) -> None:
    x = gaussian(n, d)
    fast, exact = patterns(double(x)), patterns(double(x), method="exact")
    assert len(fast) == cells.most_cells(n, d) == count(n, d)
    assert fast.complete
    assert exact.complete
    assert torch.equal(fast.mask, exact.mask)
    for found in (fast, exact):
        assert torch.equal(found.witness @ double(x).T > 0, found.mask)


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("method", ["auto", "exact"])
def test_degenerate(name: str, method: str) -> None:
    x = np.array(DEGENERATE[name])
    found = patterns(double(x), method=method)
    assert set(map(tuple, found.mask.tolist())) == by_random_signs(x, 40_000)
    assert len(found) == len(set(map(tuple, found.mask.tolist())))
    assert torch.equal(found.witness @ double(x).T > 0, found.mask)
    assert found.complete


def test_no_pattern_of_a_hyperplane() -> None:
    found = patterns(
        double([[1, 2], [-1, -2]])
    )  # a gate on the hyperplane would have (1, 1) with >=
    assert found.mask.tolist() == [[False, True], [True, False]]


def test_25_5() -> None:
    found = patterns(double(gaussian(25, 5)))
    assert len(found) == 25_902
    assert found.complete


def test_nearly_coplanar_rows_are_settled_in_integers() -> None:
    x = gaussian(6, 3)
    x[5] = x[0] + 3 * x[1]  # rounded: off the plane by 1e-17 or so, one way or the other
    found = patterns(double(x))
    assert found.complete
    rank = rank_of_floats(x[[0, 1, 5]].tolist())
    lost = 2 if rank == 2 else 0  # a triple line instead of three
    assert len(found) == cells.most_cells(6, 3) - lost


def test_large_and_small_numbers() -> None:
    x = gaussian(7, 3) * 10.0 ** np.array([-250, 200, 0, 100, -30, 5, -300])[:, None]
    assert torch.equal(patterns(double(x)).mask, patterns(double(gaussian(7, 3))).mask)


def test_sampling_never_claims_to_be_complete() -> None:
    x = double(gaussian(4, 2))
    found = patterns(x, method="sample", gates=5000, generator=torch.Generator().manual_seed(0))
    assert len(found) == 8 == len(patterns(x))
    assert not found.complete
    few = patterns(x, method="sample", generator=torch.Generator().manual_seed(0))
    again = patterns(x, method="sample", generator=torch.Generator().manual_seed(0))
    assert torch.equal(few.mask, again.mask)


def test_counting_finds_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of the fast path's cells the exact path is taken."""
    x = double(gaussian(8, 3))
    all_of_them, called = patterns(x), []
    monkeypatch.setattr(module, "by_rays", lambda rows: cells.by_rays(rows)[1:])
    exact = degenerate.all_cells
    monkeypatch.setattr(module, "all_cells", lambda *a: called.append(1) or exact(*a))
    assert torch.equal(patterns(x).mask, all_of_them.mask)
    assert called


def test_signs_are_open_where_rounding_leaves_them() -> None:
    x, u = (
        np.array([[1.0, 1e-17], [3.0, 1.0]]),
        np.array([[0.0, 1.0], [1.0, -3.0], [1.0, -3.0000000000000004]]),
    )
    assert cells.signs(x, u).tolist() == [[1, 1], [1, 0], [1, 0]]


def test_too_many_cells() -> None:
    with pytest.raises(ValueError, match=r"more than max_cells = 100 cells \(up to 112;"):
        patterns(double(gaussian(11, 3)), max_cells=100)
    assert len(patterns(double(gaussian(11, 3)), max_cells=112)) == 112
    few = double(DEGENERATE["equal"])  # fewer than their bound: 4 different rows have 14
    assert len(patterns(few, max_cells=14)) == 14
    grid = double(
        DEGENERATE["grid"]
    )  # 13 different lines, which would have 158 cells in general position
    with pytest.raises(ValueError, match="method='exact' finds out whether there are fewer"):
        patterns(grid, max_cells=150)
    assert len(patterns(grid, max_cells=150, method="exact")) == len(patterns(grid)) < 150
    with pytest.raises(ValueError, match="counted no further"):
        patterns(grid, max_cells=20, method="exact")


class TestClaims:
    """Patterns that are handed in."""

    x = double(gaussian(9, 3))
    target = llr.models.SkipTwoLayer.of(torch.ones(3))

    def refused(self, given: object, why: str, kind: type[Exception] = ValueError) -> None:
        for call in (llr.relu.isometry, llr.relu.recovers):
            with pytest.raises(kind, match=why):
                call(self.x, self.target, patterns=given)

    def test_one_cell_less(self) -> None:
        own = patterns(self.x)
        self.refused(
            Patterns(own.mask[1:], True, own.witness[1:]),
            "claim to be complete.*1 of these are missing",
        )

    def test_one_cell_too_many(self) -> None:
        own = patterns(self.x)
        known = set(map(tuple, own.mask.tolist()))
        other = next(p for p in itertools.product((False, True), repeat=9) if p not in known)
        mask = torch.cat((own.mask, torch.tensor([other])))
        self.refused(
            Patterns(mask, True, torch.cat((own.witness, own.witness[:1]))), "claim to be complete"
        )

    def test_other_samples(self) -> None:
        self.refused(patterns(double(gaussian(9, 3, seed=1))), "claim to be complete")
        self.refused(patterns(double(gaussian(8, 3))), r"expected torch.bool of shape \(p, 9\)")

    def test_no_patterns(self) -> None:
        self.refused(torch.ones(3, 9), "expected what llr.relu.patterns", TypeError)

    def test_a_row_twice(self) -> None:
        own = patterns(self.x)
        mask = torch.cat((own.mask, own.mask[:1]))
        self.refused(replace(own, mask=mask), "a row twice")

    def test_degenerate_samples(self) -> None:
        x = double(DEGENERATE["grid"])
        own = patterns(x)
        again = Patterns(own.mask, True, own.witness)
        target = llr.models.SkipTwoLayer.of(torch.tensor([1.0, 2.0, 5.0]))
        assert llr.relu.isometry(x, target, patterns=again).complete
        with pytest.raises(ValueError, match="1 of these are missing"):
            llr.relu.isometry(x, target, patterns=Patterns(own.mask[1:], True, own.witness[1:]))

    def test_the_same_without_their_proof(self) -> None:
        own = patterns(self.x)
        again = Patterns(own.mask, True, own.witness)
        assert llr.relu.isometry(self.x, self.target, patterns=again).complete


def test_str() -> None:
    assert (
        str(patterns(double(gaussian(8, 3))))
        == "58 patterns of 8 samples in 3 dimensions (all cells)"
    )
    assert math.prod(patterns(double(gaussian(8, 3))).mask.shape) == 58 * 8
