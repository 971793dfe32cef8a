"""Proofs about all networks near a fit: by how much another one can differ, in parameters and as a function.

Everything here is computed in ball arithmetic, with bounds rounded outwards. docs/recovery.md has the proof.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flint import arb, arb_mat
from torch import Tensor

from llr.recovery.polish import Polished
from llr.recovery.precise import Point

_FIRST = 4  # the smallest box for which the theorem holds has sides of 4 rho
_SHARE = 0.4  # the next box, as a fraction of the largest that the curvature found so far allows
_LARGEST = 4.0  # largest relative size of a box to try
_BOXES = 6

_SLOPE = {
    "tanh": 1,
    "sigmoid": 0.25,
    "softplus": 1,
    "gelu": 1.13,
    "silu": 1.1,
    "erf": 1.13,
    "sin": 1,
}
"""Bounds of sup |sigma'|."""
_BOUNDED = {"tanh", "sigmoid", "erf", "sin"}
SWITCH = 20  # beyond this, torch's softplus is the identity
JUMP = 2.1e-9  # an upper bound of softplus(z) - z beyond SWITCH


@dataclass(frozen=True)
class Isolation:
    """Proofs about the networks around a fit.

    Attributes:
        isolated: whether the proof succeeded.
        radius: relative size of a box of parameters (the smallest of its sides): every network in the box
            that fits to rounding has parameters within 2 rho, and the Jacobian has full column rank in the
            whole box.
        eps: such a network differs from the fit, rounded to float64, by at most this on the domain, relative
            to the targets' root mean square.
        kappa: the contraction of the smallest box; the proof succeeds if it is at most 1/2. Infinite if no
            bound was found.
        inverse: (P, n q), an approximate left inverse of the weighted Jacobian; None if it is singular.
        rho: (P), the sides of the box of parameters; empty if not isolated.
    """

    isolated: bool
    radius: float
    eps: float
    kappa: float
    inverse: arb_mat | None
    rho: tuple[arb, ...] = ()


def isolation(fit: Polished, corner: Tensor, size: float) -> Isolation:
    """Prove that a fit is the only one in a box around it (python-flint's precision must be set).

    Args:
        fit: a fit at a minimum.
        corner: (d), the largest |x_i| on the domain.
        size: root mean square of the targets.
    """
    C = _inverse(fit)
    if C is None or not fit.form.count <= len(fit.weights):
        return Isolation(False, 0.0, math.inf, math.inf, None)
    P, rows = C.nrows(), C.ncols()
    lengths = arb_mat(P, rows, [c.abs_upper() for c in C.entries()])
    errors = arb_mat(rows, 1, [(1 + r.abs_upper()).upper() for r in fit.residuals])
    rho = [v.upper() for v in (lengths * errors).entries()]
    if not all(v.is_finite() and v > 0 for v in rho):
        return Isolation(False, 0.0, math.inf, math.inf, C)
    first = _kappa(fit, C, rho, _FIRST)
    if not (first is not None and 2 * first <= 1):
        return Isolation(False, 0.0, math.inf, math.inf if first is None else float(first), C)
    box = _largest_box(fit, C, rho, first)
    sides = [box * r / t.abs_lower() for r, t in zip(rho, fit.theta, strict=True) if t != 0]
    radius = min((float(s.lower()) for s in sides), default=math.inf)
    # The network that recover() returns has these parameters rounded to float64.
    factor = (1 / (1 - first)).upper()
    apart = [factor * r + arb(2) ** -53 * abs(t) for r, t in zip(rho, fit.theta, strict=True)]
    bound = (_eps(fit, apart, corner) / arb(size)).upper()
    return Isolation(True, radius, _above(bound), _above(first), C, tuple(rho))


def _inverse(fit: Polished) -> arb_mat | None:
    M = fit.point.jacobian(fit.weights).mid()
    T = M.transpose()
    try:
        C = (T * M).mid().solve(T, algorithm="approx").mid()
    except ZeroDivisionError:
        return None
    return C if all(c.is_finite() for c in C.entries()) else None


def _largest_box(fit: Polished, C: arb_mat, rho: list[arb], kappa: arb) -> float:
    """The largest factor of rho for which the proof holds, among those tried; the curvature guides them."""
    proved, limit = float(_FIRST), math.inf
    relative = [float(r / t.abs_lower()) for r, t in zip(rho, fit.theta, strict=True) if t != 0]
    largest = _LARGEST / min(relative, default=1.0)
    for _ in range(_BOXES):
        grown = _SHARE / float(kappa) if kappa > 0 else math.inf
        trial = min(proved * max(grown, 1.0), largest)
        if not trial < limit:
            trial = math.sqrt(proved * limit)
        if trial <= 1.5 * proved:
            break
        found = _kappa(fit, C, rho, trial)
        if found is not None and 2 * found <= 1:
            proved, kappa = trial, found
        else:
            limit = trial
            if limit < 4 * proved:
                break
    return proved


def _kappa(fit: Polished, C: arb_mat, rho: list[arb], factor: float) -> arb | None:
    """An upper bound of max_l sum_k |E_lk| rho_k / rho_l in the box; None if the network is not smooth."""
    P = C.nrows()
    box = [arb(t, factor * r) for t, r in zip(fit.theta, rho, strict=True)]
    point = fit.inputs.at(box)
    if not _smooth(point):
        return None
    E = (C * point.jacobian(fit.weights)).entries()
    for i in range(P):
        E[i * (P + 1)] = E[i * (P + 1)] - 1
    if not all(e.is_finite() for e in E):
        return None
    sums = (arb_mat(P, P, [e.abs_upper() for e in E]) * arb_mat(P, 1, rho)).entries()
    kappa = arb(0)
    for total, r in zip(sums, rho, strict=True):
        quotient = (total / r).upper()
        if not quotient.is_finite():
            return None
        if quotient > kappa:
            kappa = quotient
    return kappa


def _smooth(point: Point) -> bool:
    """Whether sigma is differentiable on every preactivation's ball."""
    name = point.form.activation
    if name == "relu":
        return False
    if name != "softplus":
        return True
    return all(z < SWITCH or z > SWITCH for z in point.z)


def _eps(fit: Polished, rho: Sequence[arb], corner: Tensor) -> arb:
    """An upper bound of |f - f^| for |x| <= corner, for parameters within rho."""
    form = fit.form
    k, d = form.k, form.d
    x = [arb(v) for v in corner.tolist()]
    slope = arb(_SLOPE[form.activation])
    W, b, A, _ = form.split([t.abs_upper() for t in fit.theta])
    rW, rb, rA, rc = form.split(rho)
    worst = arb(0)
    for o in range(form.q):
        total = arb(rc[o]) if form.output_bias else arb(0)
        for j in range(k):
            z, dz = (b[j] + rb[j], rb[j]) if form.bias else (arb(0), arb(0))
            for i in range(d):
                z = z + (W[j * d + i] + rW[j * d + i]) * x[i]
                dz = dz + rW[j * d + i] * x[i]
            a, da = A[o * k + j], rA[o * k + j]
            # softplus(z) <= |z| + log 2; gelu and silu are at most |z|.
            h = arb(1) if form.activation in _BOUNDED else z + 1
            jump = arb(JUMP) if form.activation == "softplus" and not z < SWITCH else arb(0)
            total = total + da * h + (a + da) * (slope * dz + jump)
        upper = total.upper()
        worst = upper if upper > worst else worst
    return worst


def _above(bound: arb) -> float:
    """A float64 that is not smaller than the bound."""
    value = float(bound)
    return (
        value
        if not math.isfinite(value) or arb(value) >= bound
        else math.nextafter(value, math.inf)
    )
