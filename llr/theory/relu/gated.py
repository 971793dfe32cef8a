"""The gated minimum-norm program: least sum of norms of u_j with sum_j A_j u_j = y.

Proximal point on u, outside; inside a semismooth Newton method on the dual variable lam, which has n entries
however many groups there are. Mostly few groups are active, and only these enter a Hessian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llr.linalg.deadline import poll
from llr.theory.relu.groups import Groups, Within

_MOST_OUTER = 60
_MOST_NEWTON = 80  # steps of Newton's method within one step of the proximal point method
_GROWTH, _FEW = 10.0, 20  # of the steps, after so few steps of Newton's method
_MOST_STEPS = (
    1e4,
    1e7,
)  # of the proximal point method, in units of the largest group: at first, and ever
_ARMIJO, _MOST_HALVINGS = 1e-4, 40
_NOISE = 1e-14  # of values that are sums of some hundred numbers
_RIDGE, _DAMPING = 1e-13, 1e-2
"""Added to the Hessian, in units of its mean diagonal: always, and in proportion to the relative gradient.
Groups that are active away from the solution may not span the rows."""
_FIRST_STEP = 10.0  # in units of a lower bound of the objective over n
_FIRST = 2.0  # the first lam, in units of the largest feasible one in that direction: some groups are active


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` found.

    Attributes:
        u: (p, width).
        lam: (n), with norm(A_j' lam) <= 1 for all j.
        value: the objective at u, an upper bound of the least one up to the residual.
        bound: the dual objective at lam, a lower bound.
        residual: the norm of sum_j A_j u_j - y, relative to that of y; 0 where it is penalized.
        newton: steps of Newton's method.
    """

    u: Tensor
    lam: Tensor
    value: float
    bound: float
    residual: float
    newton: int

    @property
    def gap(self) -> float:
        """How far the value may be above the least one, relative to it."""
        return (self.value - self.bound) / max(abs(self.value), torch.finfo(torch.float64).tiny)


def solve(
    groups: Groups,
    y: Tensor,
    *,
    tolerance: float = 1e-9,
    penalty: float = 0.0,
) -> Solution:
    """The least sum of norm(u_j) with sum_j A_j u_j = y.

    Args:
        groups: the A_j; y is in the span of their columns.
        y: (n), not zero.
        tolerance: of the relative gap, and of the residual.
        penalty: r > 0 for the program sum norm(u_j) + norm(sum_j A_j u_j - y)^2 / (2 r) instead.

    Returns:
        The best that was found; whether its gap and residual are within the tolerance is for the caller to
        see.
    """
    # lam = B mu, in coordinates in which the sum of A_j A_j' is the identity: sizes of rows do not matter.
    basis = torch.eye(len(y), dtype=y.dtype) if penalty else _whitening(groups)
    inner, z = (groups, y) if penalty else (Within(groups, basis), basis.T @ y)
    size = float(z.norm())
    mu = _FIRST * z / inner.pull(z).norm(dim=1).max()
    u = y.new_zeros(groups.count, groups.width)
    step = _FIRST_STEP * float(mu @ z) / inner.rows
    best, newton = _judged(groups, u, basis @ mu, y, penalty, 0), 0
    most, before = _MOST_STEPS[0], math.inf
    for outer in range(_MOST_OUTER):
        poll()
        accuracy = size * max(tolerance / 10, 10.0 ** -(outer + 1))
        there, moved, steps, reached = _proximal_step(inner, z, u, mu, step, penalty, accuracy)
        newton += steps
        found = _judged(groups, moved, basis @ there, y, penalty, newton)
        if _error(found) <= _error(best):
            best = found
        if _error(best) <= tolerance:
            break
        if reached:
            u, mu = moved, there
            if _error(found) > before / 2:  # too slow
                most = min(_GROWTH * most, _MOST_STEPS[1])
            longest = max(most * float(u.norm(dim=1).max()), step)
            step = min(step * (_GROWTH if steps <= _FEW else 1.0), longest)
        else:  # too long a step for Newton's method, or for rounding
            step /= _GROWTH
            most = max(most / _GROWTH, _MOST_STEPS[0])
        before = _error(found)
    return best


def _whitening(groups: Groups) -> Tensor:
    """B with B' (sum of A_j A_j') B = I, on the span of the groups' columns."""
    everything = torch.arange(groups.count)
    ones = torch.ones(groups.count, dtype=torch.float64)
    nothing = torch.zeros(groups.count, groups.width, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(groups.curvature(everything, ones, 0 * ones, nothing))
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] / values[kept].sqrt()


def _error(found: Solution) -> float:
    return max(abs(found.gap), found.residual)


def _judged(
    groups: Groups, u: Tensor, lam: Tensor, y: Tensor, penalty: float, newton: int
) -> Solution:
    """Both objectives, with lam scaled so that it is feasible."""
    norms = u.norm(dim=1)
    active = norms.nonzero()[:, 0]
    off = groups.push(active, u[active]) - y
    largest = float(groups.pull(lam).norm(dim=1).max())
    lam = lam / max(1.0, largest)
    value, bound = float(norms.sum()), float(lam @ y)
    if penalty:
        value += float(off @ off) / (2 * penalty)
        bound -= penalty / 2 * float(lam @ lam)
        return Solution(u, lam, value, bound, 0.0, newton)
    return Solution(u, lam, value, bound, float(off.norm() / y.norm()), newton)


def _proximal_step(
    groups: Groups,
    y: Tensor,
    u: Tensor,
    lam: Tensor,
    s: float,
    penalty: float,
    accuracy: float,
) -> tuple[Tensor, Tensor, int, bool]:
    """The minimizer of sum norm(v_j) + norm(v - u)^2 / (2 s) with sum_j A_j v_j = y.

    Returns:
        Its lam, itself, the steps that it took, and whether it is as accurate as asked for.
    """
    w, size = u + s * groups.pull(lam), float(y.norm())
    newton = 0
    for newton in range(_MOST_NEWTON):  # noqa: B007 - told below
        norms = w.norm(dim=1)
        active = (norms > s).nonzero()[:, 0]
        q = s / norms[active]
        shrunk = w[active] * (1 - q)[:, None]
        gradient = groups.push(active, shrunk) + penalty * lam - y
        if float(gradient.norm()) <= accuracy:
            break
        e = w[active] / norms[active][:, None]
        H = s * groups.curvature(active, 1 - q, q, e)
        ridge = (_RIDGE + _DAMPING * min(1.0, float(gradient.norm()) / size)) * float(H.trace())
        H.diagonal().add_(penalty + ridge / len(H))
        direction = _solved(H, -gradient)
        slope = float(gradient @ direction)
        along = s * groups.pull(direction)
        here = _dual(norms, lam, y, s, penalty)
        t = 1.0
        noise = _NOISE * (abs(here) + abs(float(lam @ y)))
        for _ in range(_MOST_HALVINGS):
            there = _dual((w + t * along).norm(dim=1), lam + t * direction, y, s, penalty)
            if there <= here + _ARMIJO * t * slope:
                break
            if there <= here + noise and _slope(groups, w + t * along, lam + t * direction,
                                                direction, y, s, penalty) <= -slope / 2:  # fmt: skip
                break  # rounding hides the descent, but the slope has not turned
            t /= 2
        else:
            break
        lam, w = lam + t * direction, w + t * along
    norms = w.norm(dim=1, keepdim=True)
    reached = float(gradient.norm()) <= accuracy
    return lam, torch.where(norms > s, w * (1 - s / norms.clamp(min=s)), 0.0), newton + 1, reached


def _dual(norms: Tensor, lam: Tensor, y: Tensor, s: float, penalty: float) -> float:
    """The function of lam that a proximal step minimizes."""
    excess = (norms - s).clamp(min=0)
    return float(excess @ excess) / (2 * s) - float(lam @ y) + penalty / 2 * float(lam @ lam)


def _slope(
    groups: Groups, w: Tensor, lam: Tensor, direction: Tensor, y: Tensor, s: float, penalty: float
) -> float:
    """The derivative of that function along a direction."""
    norms = w.norm(dim=1)
    active = (norms > s).nonzero()[:, 0]
    outputs = groups.push(active, w[active] * (1 - s / norms[active])[:, None])
    return float((outputs + penalty * lam - y) @ direction)


def _solved(H: Tensor, b: Tensor) -> Tensor:
    """H^-1 b for a positive semidefinite H, made definite where rounding asks for it."""
    extra = 0.0
    while True:
        L, info = torch.linalg.cholesky_ex(H + extra * torch.eye(len(H), dtype=H.dtype))
        if int(info) == 0:
            return torch.cholesky_solve(b[:, None], L)[:, 0]
        extra = max(10 * extra, 1e-12 * float(H.trace()))
