"""The cost of each method for a rank, and the choice between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.problem import Problem
from llr.jacobians.gram import BLOCK_BYTES, LEAST_COLUMNS, signal_bytes
from llr.jacobians.paths import Plan, is_native

METHODS = ("auto", "svd", "tsqr", "gram", "certified")

# A multiply-add in double-double takes about ten operations on doubles, as fast as those of a matrix product.
_DOUBLE_DOUBLE = 10

_WIDEST_AT_ONCE = 128  # the short side up to which one kernel computes many matrices
_GPU_SCRATCH = (
    256 << 20
)  # the memory of such a kernel on a GPU for a whole batch of matrices that need less each


@dataclass(frozen=True)
class Cost:
    """An estimate of what a method would take."""

    method: str
    flops: float
    nbytes: int
    """The memory used at a time, besides the model and its samples."""


def costs(problem: Problem, prepared: Plan) -> dict[str, Cost]:
    """Estimates for "svd", "tsqr" and "gram", by name.

    With N rows, P columns and s the smaller of N and P: "svd" takes 2 N P s + 3 s^3 operations and the memory
    of J and of `_beside`. "tsqr" takes 2 P N^2 + 3 s^3 operations and the memory of three triangular factors
    of N^2 numbers, and of blocks of columns. "gram" takes about 5 N^2 (sum of widths) + 9 N^3 operations for
    an MLP, at most 5 N^2 P + 9 N^3 for another module, and the memory of six matrices of N^2 numbers (K and
    its factor in two parts each, and the rounded factor, twice; for a GPU partly in the CPU's memory) and of
    the signals of an MLP, or of blocks of columns. All is multiplied by the number of parameter points,
    except for memory that "tsqr" and "gram" use for one point at a time.
    """
    *points, n, q, P = prepared.shape
    N, batch = n * q, math.prod(points)
    s = min(N, P)
    square, J = 8 * N * N, 8 * N * P
    device, values = problem.x.device, 3.0 * s**3
    terms = P if problem.mlp is None else sum(a + b for a, b in pairwise(problem.mlp.widths))
    gram = _DOUBLE_DOUBLE * (0.5 * N * N * terms + 0.6 * N**3) + 3.0 * N**3
    held = 6 * square if not points else 4 * square + 2 * batch * square
    native = is_native(problem)
    gram_bytes = held + signal_bytes(problem) if native else _with_blocks(held, N, J, device)
    estimates = [
        Cost("svd", 2.0 * N * P * s + values, prepared.nbytes + _beside(J, s, batch, device)),
        Cost("tsqr", 2.0 * P * N * N + values, _with_blocks(3 * square, N, J, device)),
        Cost("gram", gram, gram_bytes),
    ]
    return {c.method: Cost(c.method, batch * c.flops, c.nbytes) for c in estimates}


def _beside(J: int, s: int, batch: int, device: torch.device) -> int:
    """The memory for singular values of a batch of matrices of J bytes, besides the matrices.

    Matrices with a short side s up to 128 need none on the CPU; a GPU makes copies reduced to a quarter of
    the rows, a sixteenth, .... Larger ones are reduced to an eighth, by QR of blocks of rows: one block per
    thread, or 64 blocks on a GPU.
    """
    if device.type == "cuda":
        if s <= _WIDEST_AT_ONCE:
            return min(batch * J // 3, max(J // 3, _GPU_SCRATCH))
        return J // 8 + 3 * min(64 * 128 * s * s, J)
    if s <= _WIDEST_AT_ONCE:
        return 0
    return J // 8 + torch.get_num_threads() * 3 * min(64 * s * s, J)


def _with_blocks(held: int, N: int, J: int, device: torch.device) -> int:
    """The memory together with that of blocks of columns, which are smaller if memory is short."""
    generous = held + min(BLOCK_BYTES, 2 * J)
    if fits(generous, device):
        return generous
    return max(held + 8 * N * LEAST_COLUMNS, min(generous, memory_budget(device)))


def choose(method: str, problem: Problem, prepared: Plan, dtype: torch.dtype) -> tuple[Cost, str]:
    """The method to take, with its cost, and the reason.

    Raises:
        ValueError: no method, or not the requested method, fits the memory budget.
        TypeError: float32 was requested for a method that computes only in float64.
    """
    estimates = costs(problem, prepared)
    device = problem.x.device
    if method != "auto":
        if method != "svd" and dtype != torch.float64:
            raise TypeError(
                f"method={method!r} computes in float64, but dtype is {dtype}; omit dtype, or take "
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
        f"memory budget of {format_bytes(memory_budget(device))} (others: {others}); take fewer samples, "
        "choose parameters with params=, or raise the budget with llr.set_memory_budget(bytes)"
    )
