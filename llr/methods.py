"""What each way to a rank would cost, and which one to take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from llr.gram import BLOCK_BYTES
from llr.jacobian import Plan
from llr.memory import fits, format_bytes, memory_budget
from llr.problem import Problem

METHODS = ("auto", "svd", "tsqr", "gram", "certified")

# A multiply-add in double-double is about ten operations on doubles; they run as fast as a matrix product's.
_DOUBLE_DOUBLE = 10


@dataclass(frozen=True)
class Cost:
    """An estimate of what a method would take."""

    method: str
    flops: float
    nbytes: int
    """Held at a time beside the model and its samples."""


def costs(problem: Problem, prepared: Plan) -> dict[str, Cost]:
    """Estimates for "svd", "tsqr" and "gram", by name.

    With N rows, P columns and s the shorter of the two: an SVD takes 2 N P s + 3 s^3 operations and holds J;
    tsqr takes 2 P N^2 + 3 s^3 and holds a triangle of N^2 / 2 and a block of columns; gram takes about
    5 N^2 (sum of widths) + 9 N^3 for an MLP, 5 N^2 P + 9 N^3 at most for another module, and holds six
    matrices of N^2 doubles (K and its factor, two parts each, and the factor rounded, twice) with the signals
    of an MLP. Every number is times the number of parameter points, but for bytes of the last two methods.
    """
    *points, n, q, P = prepared.shape
    N, batch = n * q, math.prod(points)
    s = min(N, P)
    values = 3.0 * s**3
    terms, signals = P, 0
    if problem.mlp is not None:
        widths = problem.mlp.widths
        terms = sum(a + b for a, b in pairwise(widths))
        signals = 8 * n * (widths[0] + (2 + q) * sum(widths[1:-1]) + q * q)
    square = 8 * N * N
    block = min(BLOCK_BYTES, 8 * N * P)
    gram = _DOUBLE_DOUBLE * (0.5 * N * N * terms + 0.6 * N**3) + 3.0 * N**3
    estimates = [
        Cost("svd", 2.0 * N * P * s + values, prepared.nbytes + 8 * batch * s),
        Cost("tsqr", 2.0 * P * N * N + values, 3 * square + 3 * block),
        Cost("gram", gram, 6 * square + max(signals, 0 if problem.mlp else block)),
    ]
    return {c.method: Cost(c.method, batch * c.flops, c.nbytes) for c in estimates}


def choose(method: str, problem: Problem, prepared: Plan, dtype: torch.dtype) -> tuple[Cost, str]:
    """The method to take, with its cost, and why.

    Raises:
        ValueError: nothing fits the memory budget, or the method that was asked for does not.
        TypeError: a method that computes in float64 only, asked for in float32.
    """
    estimates = costs(problem, prepared)
    device = problem.x.device
    if method != "auto":
        if method != "svd" and dtype != torch.float64:
            raise TypeError(
                f"method={method!r} computes in float64, but dtype is {dtype}; leave dtype away, or take "
                "method='svd'"
            )
        cost = estimates[method]
        if not fits(cost.nbytes, device):
            raise ValueError(_too_large(cost, estimates, device))
        return cost, "asked for"
    if dtype != torch.float64:
        return estimates["svd"], f"the others compute in float64, not {dtype}"
    feasible = [cost for cost in estimates.values() if fits(cost.nbytes, device)]
    if not feasible:
        smallest = min(estimates.values(), key=lambda cost: cost.nbytes)
        raise ValueError(_too_large(smallest, estimates, device))
    best = min(feasible, key=lambda cost: cost.flops)
    others = ", ".join(
        f"{c.method} {c.flops:.2g} in {format_bytes(c.nbytes)}"
        + ("" if c in feasible else " (too large)")
        for c in estimates.values()
        if c is not best
    )
    return best, f"about {best.flops:.2g} operations in {format_bytes(best.nbytes)}; {others}"


def _too_large(cost: Cost, estimates: dict[str, Cost], device: torch.device) -> str:
    others = ", ".join(
        f"{c.method} {format_bytes(c.nbytes)}" for c in estimates.values() if c is not cost
    )
    return (
        f"method={cost.method!r} takes {format_bytes(cost.nbytes)} ({cost.nbytes} bytes), more than the "
        f"memory budget of {format_bytes(memory_budget(device))} (others: {others}); take fewer samples, choose "
        "parameters with params=, or raise the budget with llr.set_memory_budget(bytes)"
    )
