"""What theorems say of a planted network, exactly; and what else has to be proved."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from flint import fmpq, fmpq_mat

from llr.theory.relu.closed_forms import exact_rank
from llr.theory.relu.patterns import Patterns
from llr.theory.relu.planted import Planted
from llr.theory.relu.proof import Status
from llr.theory.relu.proofs import Claim

Array = np.ndarray[Any, np.dtype[Any]]


def claim_of(planted: Planted, cones: bool, given: Patterns) -> Claim:
    """What is left to be proved over all cells."""
    rest, _ = planted.others(given.mask)
    free = planted.network.kind == "skip" and not planted.with_skip
    return Claim(planted.network, planted.x, planted.active, rest.numpy(), free, cones)


def copied(planted: Planted, cones: bool, given: Patterns) -> tuple[Status, str] | None:
    """Whether a cell copies the planted skip connection, which only the gated program lets it."""
    used = torch.from_numpy(planted.x.any(axis=1))
    if planted.with_skip and not cones and bool(given.mask[:, used].all(1).any()):
        return (
            "not unique",
            "a cell is open for all samples, and copies the skip connection (Theorem 5)",
        )
    return None


def by_theorem(planted: Planted, cones: bool) -> tuple[Status, str] | None:
    """What needs no cells: the status, and why."""

    def found(status: Status, why: str) -> tuple[Status, str]:
        return status, why

    network, x = planted.network, planted.x
    if planted.unseen is not None:
        return found(
            "not unique", f"neuron {planted.unseen} is 0 on all samples: leaving it out is cheaper"
        )
    if (pair := planted.same_cell) is not None:
        why = f"neurons {pair[0]} and {pair[1]} are in one cell, where a single neuron or none is cheaper"
        return found("not unique", why)
    if network.kind == "normalized":
        ranks = [exact_rank(x[active]) for active in planted.active]
        if min(ranks) < x.shape[1]:
            j = ranks.index(min(ranks))
            why = f"the active samples of neuron {j} have rank {min(ranks)} < d = {x.shape[1]} (Theorem 8)"
            return found("not unique", why)
        if len(ranks) == 1:
            return found(
                "unique", "the active samples of the one normalized neuron have rank d (Theorem 8)"
            )
        return found("undecided", "several normalized neurons, whose active samples have full rank")
    if network.kind == "skip" and network.skip is not None:
        used = x[x.any(axis=1)]
        signs = {_sign(row, network.skip) for row in used}
        if planted.with_skip and cones and not {1, -1} <= signs:
            why = "the skip connection has values of one sign: a neuron does the same at the same norm"
            return found("not unique", why)
        if planted.active[:, x.any(axis=1)].all(axis=1).any():
            why = "a neuron is active at all samples: the skip connection does the same at the same norm"
            return found("not unique", why)
    if not planted.independent and _rank(planted) < len(planted.coefficients):
        return found("not unique", "the planted features are linearly dependent on these samples")
    return None


def _sign(row: Array, w: Array) -> int:
    """The sign of x_i.w, exactly."""
    pairs = zip(row.tolist(), w.tolist(), strict=True)
    value = sum((Fraction(p) * Fraction(q) for p, q in pairs), Fraction(0))
    return (value > 0) - (value < 0)


def _rank(planted: Planted) -> int:
    """The rank of the planted features, exactly."""

    def rationals(a: Array) -> fmpq_mat:
        entries = [fmpq(*float(v).as_integer_ratio()) for v in a.ravel()]
        return fmpq_mat(len(a), a.shape[1], entries)

    network, columns = planted.network, []
    vectors, masks = list(network.w), list(planted.active)
    if planted.with_skip and network.skip is not None:
        vectors, masks = [*vectors, network.skip], [*masks, np.ones(len(planted.x), dtype=bool)]
    for w, mask in zip(vectors, masks, strict=True):
        column = rationals(mask[:, None] * planted.x) * rationals(w[:, None])
        columns += [column[i, 0] for i in range(len(mask))]
    return int(fmpq_mat(len(vectors), len(planted.x), columns).rank())
