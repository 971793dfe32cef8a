"""Levenberg-Marquardt for many problems at once in plain torch operations: any model, any device.

This is the algorithm of the native operator, step by step, and replaces it where it is not available: see
:func:`llr.recovery.levenberg_marquardt`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from llr.inputs.evaluation.forward_errors import derivatives
from llr.inputs.evaluation.outputs import output_leaves
from llr.inputs.problem import Problem
from llr.operators.formula import ACTIVATIONS, mlp_jacobian
from llr.recovery import damping as codes
from llr.recovery.damping import CONVERGED, FAILED, LIMIT, SKIPPED, STALLED, Damping
from llr.results.progress import step


class Functions(NamedTuple):
    """A model at many parameter points, each with its own samples."""

    outputs: Callable[[Tensor, Tensor], Tensor]
    """theta (S, P), x (S, n, ...) -> (S, n, q)"""
    jacobian: Callable[[Tensor, Tensor], Tensor]
    """theta (S, P), x (S, n, ...) -> (S, n, q, P)"""


class Solution(NamedTuple):
    """The end of each start, in the form of the native operator."""

    theta: Tensor
    """(S, P)"""
    loss: Tensor
    """(S), mean squared residual; infinite for starts that failed or were skipped."""
    iterations: Tensor
    """(S), int64"""
    status: Tensor
    """(S), int64: the index into :data:`llr.recovery.damping.STATUS`."""


def of_mlp(widths: Sequence[int], biases: Sequence[bool], activation: str) -> Functions:
    """An MLP with parameters W_1, b_1, W_2, ..., by the closed form of its Jacobian."""
    sigma = ACTIVATIONS[activation][0]
    shapes = [
        shape
        for (i, o), bias in zip(pairwise(widths), biases, strict=True)
        for shape in ([(o, i), (o,)] if bias else [(o, i)])
    ]
    sizes = [torch.Size(shape).numel() for shape in shapes]

    def layers(theta: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        parts = iter(zip(theta.split(sizes, -1), shapes, strict=True))
        tensors = (part.unflatten(-1, shape) for part, shape in parts)
        weights: list[Tensor] = []
        present: list[Tensor | None] = []
        for bias in biases:
            weights.append(next(tensors))
            present.append(next(tensors) if bias else None)
        return weights, present

    def outputs(theta: Tensor, x: Tensor) -> Tensor:
        weights, present = layers(theta)
        for number, (w, b) in enumerate(zip(weights, present, strict=True)):
            x = sigma(x) if number else x
            x = x @ w.mT if b is None else torch.baddbmm(b[:, None], x, w.mT)
        return x

    def jacobian(theta: Tensor, x: Tensor) -> Tensor:
        return mlp_jacobian(x, *layers(theta), activation)

    return Functions(outputs, jacobian)


def of_problem(problem: Problem) -> Functions:
    """Any model whose outputs for a sample depend only on that sample, by torch.func."""
    columns = problem.columns
    shapes = {name: value.shape for name, value in columns.values.items()}
    sizes = [value.numel() for value in columns.values.values()]

    def sample(theta: Tensor, x: Tensor) -> Tensor:
        parts = zip(shapes.items(), theta.split(sizes), strict=True)
        values = {name: part.view(shape) for (name, shape), part in parts}
        return torch.cat([leaf.flatten() for leaf in output_leaves(problem.call(values, x[None]))])

    def outputs(theta: Tensor, x: Tensor) -> Tensor:
        return vmap(vmap(sample, in_dims=(None, 0)))(theta, x)

    def jacobian(theta: Tensor, x: Tensor) -> Tensor:
        with derivatives(x[0]):
            return vmap(vmap(jacrev(sample), in_dims=(None, 0)))(theta, x)

    return Functions(outputs, jacobian)


@dataclass
class _Pool:
    """The starts in progress, one row for each."""

    start: Tensor
    theta: Tensor
    x: Tensor
    y: Tensor
    goal: Tensor
    loss: Tensor
    damping: Tensor
    stalled: Tensor
    iterations: Tensor
    J: Tensor
    A: Tensor
    """J'J or JJ', the smaller one."""
    right: Tensor
    """J'r or r."""

    def kept(self, rows: Tensor) -> _Pool:
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def joined(self, other: _Pool) -> _Pool:
        names = [f.name for f in fields(self)]
        return _Pool(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in names))


def solve(
    functions: Functions,
    starts: Tensor,
    x: Tensor,
    y: Tensor,
    which: Tensor,
    damping: Damping,
    tol: float,
    first: bool = False,
    batch: int = 1024,
) -> Solution:
    """Run every start until it ends, `batch` of them at a time.

    Args:
        functions: the model.
        starts: (S, P), float64.
        x: (B, n, ...).
        y: (B, n, q).
        which: (S), the data set of each start.
        damping: lambda and the limits of a start.
        tol: a start has converged if its sum of squared residuals is at most `tol` times that of y (times
            n q, if y is zero).
        first: skip the starts of a data set after its first one that converges.
        batch: how many starts share the batched operations. Results depend on it by rounding only.
    """
    count, device = len(starts), starts.device
    solution = Solution(
        starts.clone(),
        starts.new_full((count,), torch.inf),
        torch.zeros(count, dtype=torch.int64, device=device),
        torch.full((count,), SKIPPED, device=device),
    )
    squares = y.square().sum((1, 2))
    goals = tol * torch.where(squares > 0, squares, float(y[0].numel()))
    accepted = torch.full((len(x),), count, device=device)  # per data set, the first that converged
    queue = torch.arange(count, device=device)
    pool: _Pool | None = None
    while len(queue) or pool is not None:
        running = 0 if pool is None else len(pool.start)
        step("Levenberg-Marquardt: starts", count - len(queue) - running, count)
        free = batch - (0 if pool is None else len(pool.start))
        if free > batch // 4 or pool is None:
            if first:
                queue = queue[queue < accepted[which[queue]]]
            taken, queue = queue[:free], queue[free:]
            if len(taken):
                begun = _begin(functions, taken, starts, x, y, which, goals, damping)
                pool = begun if pool is None else pool.joined(begun)
        if pool is None:
            break
        status = _status(pool, damping, torch.zeros_like(pool.start, dtype=torch.bool))
        if not bool((status >= 0).any()):  # ended starts are removed before the next step
            status = _iterate(functions, pool, damping)
        ended = status >= 0
        if bool(ended.any()):
            done = pool.kept(ended)
            at, status = done.start, status[ended]
            solution.theta[at] = done.theta
            solution.loss[at] = done.loss / y[0].numel()
            solution.iterations[at] = done.iterations
            solution.status[at] = status
            won = at[status == CONVERGED]
            accepted.scatter_reduce_(0, which[won], won, "amin")
            ended |= first & (pool.start > accepted[which[pool.start]])
            pool = None if bool(ended.all()) else pool.kept(~ended)
    if first:
        late = torch.arange(count, device=device) > accepted[which]
        solution.theta[late] = starts[late]
        solution.loss[late] = torch.inf
        solution.iterations[late] = 0
        solution.status[late] = SKIPPED
    return solution


def _begin(
    functions: Functions,
    taken: Tensor,
    starts: Tensor,
    x: Tensor,
    y: Tensor,
    which: Tensor,
    goals: Tensor,
    damping: Damping,
) -> _Pool:
    theta, sets = starts[taken], which[taken]
    residuals = functions.outputs(theta, x[sets]) - y[sets]
    loss = residuals.square().sum((1, 2))
    loss = torch.where(loss.isnan(), torch.inf, loss)
    zero = torch.zeros_like(taken)
    J, A, right = _linearise(functions, theta, x[sets], residuals)
    lambdas = torch.full_like(loss, damping.start)
    return _Pool(
        taken, theta, x[sets], y[sets], goals[sets], loss, lambdas, zero, zero, J, A, right
    )


def _linearise(
    functions: Functions, theta: Tensor, x: Tensor, residuals: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    J, r = functions.jacobian(theta, x).flatten(1, 2), residuals.flatten(1)
    if J.shape[1] < J.shape[2]:
        return J, J @ J.mT, r
    return J[:, :0], J.mT @ J, (J.mT @ r[..., None])[..., 0]


def _status(pool: _Pool, damping: Damping, vanished: Tensor) -> Tensor:
    """A code for starts that have ended, -1 for those that continue."""
    status = torch.full_like(pool.start, -1)
    status[pool.iterations >= damping.iterations] = LIMIT
    status[(pool.stalled >= damping.stall) | vanished] = STALLED
    status[torch.isinf(pool.loss)] = FAILED
    status[pool.loss <= pool.goal] = CONVERGED
    return status


def _iterate(functions: Functions, pool: _Pool, damping: Damping) -> Tensor:
    """Try one step of every start, and take it or reject it; return their status."""
    diagonal = pool.A.diagonal(dim1=1, dim2=2) + pool.damping[:, None]
    L, info = torch.linalg.cholesky_ex(
        pool.A.diagonal_scatter(diagonal, dim1=1, dim2=2), check_errors=False
    )
    pivots = L.diagonal(dim1=1, dim2=2).square()
    good = (info == 0) & (pivots > codes.LOST * diagonal).all(1)
    step = torch.cholesky_solve(pool.right[..., None], L)[..., 0]
    if pool.J.shape[1]:
        step = (pool.J.mT @ step[..., None])[..., 0]
    trial = torch.where(good[:, None], pool.theta - step, pool.theta)
    vanished = good & (step.abs().amax(1) <= codes.VANISHING * pool.theta.abs().amax(1))
    residuals = functions.outputs(trial, pool.x) - pool.y
    loss = residuals.square().sum((1, 2))
    better = loss < pool.loss
    progress = better & (loss <= pool.loss * (1 - damping.progress))
    pool.damping = torch.where(
        better,
        (pool.damping * damping.down).clamp(min=codes.LEAST),
        (pool.damping * damping.up).clamp(max=codes.MOST),
    )
    pool.stalled = torch.where(progress, 0, pool.stalled + 1)
    pool.iterations = pool.iterations + 1
    pool.loss = torch.where(better, loss, pool.loss)
    pool.theta = torch.where(better[:, None], trial, pool.theta)
    status = _status(pool, damping, vanished)
    moved = (better & (status < 0)).nonzero()[:, 0]
    if len(moved):
        J, A, right = _linearise(functions, pool.theta[moved], pool.x[moved], residuals[moved])
        pool.J[moved], pool.A[moved], pool.right[moved] = J, A, right
    return status
