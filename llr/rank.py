"""The rank of a model's Jacobian."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from llr import _ops
from llr.accept import a_model_or_matrix, takes, valued
from llr.certify import Progress, certify
from llr.gram import BLOCK_BYTES, evaluate_gram, evaluate_triangle
from llr.jacobian import Plan, execute, prepare
from llr.methods import METHODS, Cost, choose, costs
from llr.parameters import Selection
from llr.problem import Model, Problem, read_problem
from llr.result import RankResult
from llr.roles import a_function, a_precision, real, word
from llr.spectrum import check_finite, count, numerical_rank, svdvals
from llr.surroundings import outside_inference_mode

__all__ = ["METHODS", "RankResult", "rank"]


@takes(
    model=a_model_or_matrix,
    x=valued,
    method=word,
    dtype=a_precision,
    rtol=real,
    atol=real,
    backend=word,
    progress=a_function,
)
@outside_inference_mode
def rank(
    model: Model | Tensor,
    x: Tensor | None = None,
    *,
    method: str = "auto",
    params: Selection = None,
    dtype: torch.dtype | str | None = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    upper: int | None = None,
    max_bits: int = 4096,
    chunk_size: int | None = None,
    backend: str = "auto",
    progress: Progress | None = None,
) -> RankResult:
    """The rank of a model's Jacobian on the samples `x`, with its evidence.

    The rank counts the independent directions in which the model's outputs on `x` can move when
    its parameters move. It is the rank of the (n q, P) matrix of `llr.jacobian`: n samples, q
    outputs, P parameters.

    Args:
        model: an ``nn.Module``, or a callable ``f(params, x)`` with `params` a dict of tensors. Or
            a tensor ``(..., m, n)`` with nothing for `x`: then this is `llr.numerical_rank`. A
            Jacobian (n, q, P) computed before is ranked as ``llr.rank(J.flatten(-3, -2))``: as it
            stands it would count as a batch of n matrices (q, P).
        x: samples, shape (n, ...), n >= 1.
        method: "svd" makes the whole J; "tsqr" never has more than a block of its columns; "gram" takes
            J J' in double-double arithmetic, for an MLP without any J (and gives way to "tsqr" where J's
            entries cannot be squared); "certified" proves a lower bound in ball arithmetic. The first three
            count singular values and agree to rounding. "auto" takes the one of them with the fewest
            operations that fits `llr.memory_budget`.
        params: which parameters count, or their values, as in `llr.jacobian`. Stacked values with a
            leading dimension B give B ranks.
        dtype: the precision. "auto" is float64 for a model, whatever its own precision, and the
            tensor's own dtype for a tensor, since digits that a matrix has lost do not come back.
            None keeps the model's own; a torch.dtype, or its name, converts to it. float32 is for "svd" only.
        rtol: tolerance relative to sigma_1; default ``eps * min(n q, P)``.
        atol: absolute tolerance; default 0. The larger of the two holds.
        upper: an upper bound known from theory; believed. A certificate stops when it gets there.
        max_bits: the precision at which a certificate gives up.
        chunk_size: samples per step, as in `llr.jacobian`.
        backend: which code computes the Jacobian, as in `llr.jacobian`.
        progress: called as ``progress(bits, proved, upper)`` while "certified" works.

    Returns:
        A `RankResult`; ``ambiguous`` tells whether the rank depends on the tolerance, ``method`` and
        ``reason`` how it was found and why so, ``lower``, ``upper`` and ``exact`` what is proved.

    Raises:
        TypeError: `x` missing for a model, arguments that describe a model given for a tensor, a method
            that computes in float64 with another dtype.
        ValueError: no samples, NaN or Inf in the Jacobian, more memory than the budget; a model that
            "certified" cannot read, or an `upper` that it disproves; and what `llr.jacobian` and
            `llr.numerical_rank` refuse.

    Source: Zhang et al., "Optimistic Estimate Uncovers the Potential of Nonlinear Models" (2023),
    for the rank as the optimistic sample size.

    Example:
        >>> import llr, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> llr.rank(model, torch.zeros(5, 2)).rank  # five times the same sample
        1
        >>> llr.rank(model, torch.randn(20, 2), method="certified").exact
        True
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if isinstance(model, Tensor):
        given = [x, params, chunk_size, upper, progress]
        if any(g is not None for g in given) or backend != "auto" or method not in ("auto", "svd"):
            raise TypeError(
                "x, params, chunk_size, backend, upper, progress and other methods than 'svd' describe a "
                "model, but a tensor was given; call llr.rank(tensor, dtype=..., rtol=..., atol=...)"
            )
        matrix = model.to(dtype) if isinstance(dtype, torch.dtype) else model
        return numerical_rank(matrix, rtol=rtol, atol=atol)
    if x is None:
        raise TypeError(
            f"the rank of a model needs samples: llr.rank(model, x); got only a "
            f"{type(model).__name__} (a matrix must be a torch.Tensor)"
        )
    if isinstance(x, Tensor) and x.dim() and x.shape[0] == 0:
        raise ValueError(
            f"x has no samples (shape {tuple(x.shape)}); a rank needs at least one row"
        )
    if upper is not None and (not isinstance(upper, int) or upper < 0):
        raise ValueError(f"upper is {upper!r}; expected a number of dimensions, 0 or more")
    if method == "certified":
        if dtype not in ("auto", None, torch.float64):
            raise TypeError(
                f"dtype is {dtype}, but a certificate is about the exact values of the parameters; leave it "
                "away"
            )
        proof = certify(model, x, params=params, upper=upper, max_bits=max_bits, progress=progress)
        problem = read_problem(model, x, params, torch.float64)
        prepared = prepare(problem, chunk_size, backend)
        # For the eye: what floating point sees of the same matrix, which took far less than its balls did.
        found = _counted(problem, prepared, costs(problem, prepared)["svd"], chunk_size, rtol, atol)
        return replace(
            found,
            rank=proof.rank,
            tol=0.0,
            gap=float("inf"),
            ambiguous=not proof.exact,
            method="certified",
            lower=proof.rank,
            upper=proof.upper,
            bits=proof.bits,
            certificate=proof,
            reason="asked for",
        )
    problem = read_problem(
        model, x, params, torch.float64 if dtype == "auto" else cast(torch.dtype | None, dtype)
    )
    prepared = prepare(problem, chunk_size, backend)
    cost, reason = choose(method, problem, prepared, problem.dtype)
    try:
        found = _counted(problem, prepared, cost, chunk_size, rtol, atol)
    except _ImmoderateSquares:
        reason = "squares of J's entries leave the range of float64, so not gram"
        cost = costs(problem, prepared)["tsqr"]
        found = _counted(problem, prepared, cost, chunk_size, rtol, atol)
    limit = found.upper if upper is None else min(found.upper, upper)
    return replace(found, reason=reason, predicted_bytes=cost.nbytes, upper=limit)


def _counted(
    problem: Problem,
    prepared: Plan,
    cost: Cost,
    chunk_size: int | None,
    rtol: float | None,
    atol: float | None,
) -> RankResult:
    """The singular values by this method, and how many count."""
    *_, n, q, P = prepared.shape
    N = n * q
    if cost.method == "svd":
        J, path = execute(problem, prepared)
        check_finite(J, "the Jacobian", ("sample", "output", "parameter"))
        J = J.flatten(-3, -2)
        values, held = svdvals(J), J.nbytes
    elif cost.method == "tsqr":
        R, path = evaluate_triangle(problem, q, chunk_size=chunk_size)
        values, held = svdvals(R), min(R.nbytes + min(BLOCK_BYTES, 16 * N * P), cost.nbytes)
    else:
        K, path = evaluate_gram(problem, q, chunk_size=chunk_size)
        K = K.reshape(*K.shape[:-4], N, N)
        if not _squares_are_moderate(K):
            raise _ImmoderateSquares
        L = _ops.gram_factor(K)
        # The factor is made in two parts of double-double before it is rounded.
        values, held = svdvals(L), 2 * K.nbytes + 2 * L.nbytes
    short = min(N, P)
    values = torch.nn.functional.pad(values, (0, max(0, short - values.shape[-1])))[..., :short]
    found = count(values, N, P, rtol=rtol, atol=atol, method=cost.method)
    return replace(found, path=path, actual_bytes=held)


class _ImmoderateSquares(Exception):
    pass


def _squares_are_moderate(K: Tensor) -> bool:
    """Whether K is finite, and large enough for the last bits of double-double to be numbers as well."""
    top = K[0].diagonal(dim1=-2, dim2=-1).amax(-1)
    return bool(((top > 2.0**-800) & (top < 2.0**900)).all())
