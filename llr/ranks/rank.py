"""The rank of a model's Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from llr.exact.network import read_network
from llr.inputs.accept import a_model_or_matrix, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model, Problem, read_problem
from llr.inputs.roles import a_precision, a_progress, check_int, real, word
from llr.jacobians.jacobian import prepare
from llr.jacobians.paths import Plan
from llr.linalg.balls import HIGHEST_BITS, LOWEST_BITS
from llr.ranks.certificates.certificate import Certificate
from llr.ranks.certificates.certify import Progress, certify
from llr.ranks.counting import Count, ImmoderateSquaresError
from llr.ranks.matrices import rank_of_matrix
from llr.ranks.methods import METHODS, choose, costs
from llr.ranks.result import NO_CERTIFICATE, RankResult
from llr.ranks.upper_bounds import bounds_of_model
from llr.results.progress import telling
from llr.theory.tangents.upper import upper_bound

__all__ = ["METHODS", "RankResult", "rank"]

# A certificate takes about N P (200 + min(N, P)) ball operations for N rows and P columns. Up to the first
# number it is made immediately, in about a second at most. The second number is the largest precision then.
_AT_ONCE, _BITS_AT_ONCE = 1e7, 256
_SMALL, _BITS_OF_SMALL = 2e6, 512
_SECONDS_PER_OPERATION = 1e-7

# A closed form takes about 10 microseconds per parameter, as long as _OPERATIONS_PER_PARAMETER of a count. It
# is used for few parameters, or if it does not take longer than the count.
_FEW_PARAMETERS = 2500
_OPERATIONS_PER_PARAMETER = 1e5


@takes(
    model=a_model_or_matrix,
    x=valued,
    method=word,
    dtype=a_precision,
    rtol=real,
    atol=real,
    backend=word,
    progress=a_progress,
)
@outside_inference_mode
@telling(0)
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
    resolve: bool | None = None,
    max_bits: int = 4096,
    chunk_size: int | None = None,
    backend: str = "auto",
    progress: Progress | bool | None = None,
) -> RankResult:
    """The rank of a model's Jacobian on the samples `x`, with its evidence.

    The rank is the number of independent directions in which the model's outputs on `x` can change
    when its parameters change. It is the rank of the (n q, P) matrix of `llr.jacobian`: n samples, q
    outputs, P parameters.

    Singular values above a bound of their error are counted: the rank is at least this count. The rank is
    exact if the count equals an upper bound: from the shape, the number of distinct samples, the number of
    parameters on which outputs depend, a closed form of :mod:`llr.theory`, or `upper`. Otherwise rows and
    columns are multiplied by powers of two, so that the rank does not depend on units, and small cases are
    settled by a certificate. If the rank is still open, the result is ``ambiguous``.

    Args:
        model: an ``nn.Module``, or a callable ``f(params, x)`` with `params` a dict of tensors. Or
            a tensor ``(..., m, n)`` without `x`: then this is `llr.numerical_rank`. For a Jacobian
            (n, q, P) computed before, call ``llr.rank(J.flatten(-3, -2))``: without `flatten` it
            would be a batch of n matrices (q, P).
        x: samples, shape (n, ...), n >= 1.
        method: "svd" forms the whole J; "tsqr" forms only a block of its columns at a time; "gram" computes
            J J' in double-double arithmetic, for an MLP without J ("tsqr" replaces it if the squares of J's
            entries overflow or underflow); "certified" proves a lower bound in ball arithmetic. The first
            three count singular values and agree up to rounding. "auto" takes the one of these three with the
            fewest operations that fits `llr.memory_budget`. It then makes a certificate if the count leaves
            the rank open and N P (200 + min(N, P)) <= 1e7 for N rows and P columns.
        params: which parameters to use, or their values, as in `llr.jacobian`. Stacked values with a
            leading dimension B give B ranks.
        dtype: the precision. "auto" is float64 for a model of any precision, and the tensor's own
            dtype for a tensor, since a conversion cannot restore digits that a matrix has lost.
            None keeps the model's own dtype; a torch.dtype, or its name, converts to it. float32 is
            only for "svd".
        rtol: count the singular values above ``rtol * sigma_1`` instead, without equilibration or proofs.
        atol: count the singular values above `atol` instead. With both, the larger threshold is used.
        upper: an upper bound known from theory; trusted. A certificate stops when it reaches this bound.
        resolve: whether a certificate settles a rank that the count leaves open: True at any cost, False
            never; default: with method "auto", if this is fast.
        max_bits: the precision at which a certificate stops, from 32 to 2^20. A certificate that was not
            requested stops at 512 bits or less.
        chunk_size: samples per step, as in `llr.jacobian`.
        backend: which code computes the Jacobian, as in `llr.jacobian`.
        progress: False for none; or a function, called as ``progress(bits, done, total)``. While the Jacobian
            is computed in chunks, bits is 0, and done and total are numbers of samples, or of parameters for
            "tsqr" and "gram". While a certificate is made, bits is its precision (None for rational
            arithmetic), done the rank that is proved, and total its upper bound. Default: after two seconds a
            line on a terminal or in a notebook.

    Returns:
        A `RankResult`. ``exact``, ``ambiguous`` and ``clear`` tell how certain the rank is; ``lower``,
        ``upper``, ``lower_from`` and ``upper_from`` give its bounds and their sources; ``method`` and
        ``reason`` tell how it was found.

    Raises:
        TypeError: `x` missing for a model, arguments that describe a model given for a tensor, a method
            that computes in float64 with another dtype.
        ValueError: no samples, NaN or Inf in the Jacobian, more memory than the budget; a model that
            "certified" cannot read, or an `upper` that is disproved; and what `llr.jacobian` and
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
    check_int("max_bits", max_bits, LOWEST_BITS, HIGHEST_BITS)
    if isinstance(model, Tensor):
        given = [x, params, chunk_size, upper, progress, resolve]
        if any(g is not None for g in given) or backend != "auto" or method not in ("auto", "svd"):
            raise TypeError(
                "x, params, chunk_size, backend, upper, resolve, progress and other methods than 'svd' "
                "describe a model, but a tensor was given; call llr.rank(tensor, dtype=..., rtol=..., "
                "atol=...)"
            )
        matrix = model.to(dtype) if isinstance(dtype, torch.dtype) else model
        return rank_of_matrix(matrix, "matrix", rtol=rtol, atol=atol)
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
    if resolve not in (None, True, False):
        raise ValueError(f"resolve is {resolve!r}; expected True, False or None")
    prove = partial(certify, model, x, params=params, progress=progress)
    if method == "certified":
        if rtol is not None or atol is not None:
            raise ValueError(
                "rtol and atol count singular values above a tolerance, and method='certified' counts none; "
                "omit one of them"
            )
        if dtype not in ("auto", None, torch.float64):
            raise TypeError(
                f"dtype is {dtype}, but a certificate is about the exact values of the parameters; leave it "
                "away"
            )
        proof = prove(upper=upper, max_bits=max_bits)
        problem = read_problem(model, x, params, torch.float64)
        return _certified(proof, problem, prepare(problem, chunk_size, backend), chunk_size)
    wanted = torch.float64 if dtype == "auto" else cast(torch.dtype | None, dtype)
    problem = read_problem(model, x, params, wanted, raised=True)
    prepared = prepare(problem, chunk_size, backend)
    cost, reason = choose(method, problem, prepared, problem.dtype)
    try:
        counted = Count(problem, prepared, cost, chunk_size, rtol, atol)
        found = counted.measure()
    except ImmoderateSquaresError:
        reason = "squares of J's entries leave the range of float64, so not gram"
        cost = costs(problem, prepared)["tsqr"]
        counted = Count(problem, prepared, cost, chunk_size, rtol, atol)
        found = counted.measure()
    found = replace(found, reason=reason, predicted_bytes=cost.nbytes)
    if upper is not None:
        found = found.at_most(upper, "caller")
    if rtol is not None or atol is not None or not found.open:
        return found
    found = _bounded(found, counted, params)
    if found.open:
        found = counted.equilibrated(found)
    quick = method == "auto" and dtype in ("auto", torch.float64)
    if not found.open or resolve is False or problem.columns.points is not None:
        return found
    read = partial(read_network, model, x, params)
    return _resolved(found, read, prove, upper, max_bits, quick, bool(resolve))


def _certified(
    proof: Certificate, problem: Problem, prepared: Plan, chunk_size: int | None
) -> RankResult:
    """A proved rank, with the singular values and the upper bounds of the samples beside it."""
    # The singular values are only for display; they take far less time than the certificate.
    cost = costs(problem, prepared)["svd"]
    found = Count(problem, prepared, cost, chunk_size, None, None).measure()
    result = _proved(found, proof)
    for bound in bounds_of_model(problem, prepared.shape[-2]):
        result = result.at_most(*bound)
    return replace(result, reason="asked for")


def _bounded(found: RankResult, counted: Count, params: Selection) -> RankResult:
    """The result with upper bounds that are cheap to compute, in the order of their cost."""
    problem, P = counted.problem, found.n_params
    for bound in bounds_of_model(problem, counted.prepared.shape[-2]):
        found = found.at_most(*bound)
    affordable = P <= _FEW_PARAMETERS or counted.cost.flops >= _OPERATIONS_PER_PARAMETER * P
    if found.open and affordable:
        closed = upper_bound(problem, params)
        if closed is not None:
            found = found.at_most(closed.upper, "theory")
    return found


def _resolved(
    found: RankResult,
    read: Callable[[], object],
    prove: Callable[..., Certificate],
    upper: int | None,
    max_bits: int,
    quick: bool,
    asked: bool,
) -> RankResult:
    """The result of a certificate if it was requested or is fast; else the count, with its cost."""
    N, P = found.n_rows, found.n_params
    work = N * P * (200 + min(N, P))
    if asked:
        proof = prove(upper=upper, max_bits=max_bits)
    else:
        at_once = quick and work <= _AT_ONCE
        most = _BITS_OF_SMALL if work <= _SMALL else _BITS_AT_ONCE
        try:
            if not at_once:
                read()
                seconds = _SECONDS_PER_OPERATION * work
                cost = f"a certificate would take about {seconds:.1g} s (resolve=True)"
                return replace(found, reason=f"{found.reason}; {cost}")
            proof = prove(max_bits=min(max_bits, most))
        except ValueError as obstacle:  # a certificate was not requested
            return replace(found, reason=f"{found.reason}; {NO_CERTIFICATE}{obstacle}")
    below = int(torch.as_tensor(found.lower))
    if proof.rank < below:
        return found.at_most(proof.upper, proof.upper_from)
    left = f"{found.method} left the rank open, with {below} singular values above their error"
    return replace(_proved(found, proof), reason=f"{found.reason}; {left}")


def _proved(found: RankResult, proof: Certificate) -> RankResult:
    """A count replaced by a proof."""
    proved = replace(
        found,
        rank=proof.rank,
        tol=0.0,
        gap=float("inf"),
        ambiguous=proof.rank != proof.upper,
        method="certified",
        lower=proof.rank,
        lower_from="certificate",
        upper=proof.upper,
        upper_from=proof.upper_from,
        counted_above="error",
        bits=proof.bits,
        certificate=proof,
    )
    return proved.at_most(found.upper, found.upper_from)
