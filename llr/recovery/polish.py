"""Least squares in 256 bits: brings a fit in float64 to its minimum, even if it is very ill-conditioned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from flint import arb, arb_mat
from torch import Tensor

from llr.recovery.net import Net
from llr.recovery.precise import Form, Inputs, Point, middle
from llr.recovery.rounding import Rounding

_STEPS, _MOST_SLOW, _TRIES = 200, 12, 16
_FAR = 1e6  # above this sum of squares per target, only half as many slow steps are allowed
_SLOW = 0.9  # a step is slow if it leaves more than this fraction of the sum of squares
_SETTLED = 1e-6  # a step that would lower the sum of squares by a smaller fraction is not taken
_NOTHING = 1e-12  # a sum of squares, in squared roundings, that counts as zero


@dataclass(frozen=True, eq=False)
class Polished:
    """A fit at a minimum of its residuals, which are divided by the rounding errors of the targets."""

    form: Form
    theta: list[arb]
    inputs: Inputs
    point: Point
    """The network on the samples, at theta."""
    weights: list[arb]
    """(n q), exact; 1 / rounding, so that weighted residuals are in units of the rounding."""
    delta: Tensor
    """(n, q), the rounding of each target."""
    residuals: list[arb]
    """(n q) balls: the weighted residuals."""
    ratio: float
    """Root mean square of the weighted residuals: at most 1 for rounded values of this network."""
    worst: float
    """The largest weighted residual."""
    net: Net
    """The network in float64."""
    rows: Tensor | None = None
    """The samples that were used; None for all."""
    rest: float = 0.0
    """The largest residual of the other samples, relative to the largest one that is allowed."""

    @property
    def consistent(self) -> bool:
        """Whether rounding explains the residuals.

        If the targets are rounded values of a network, the minimum is at most the value at that network,
        which is at most 1.
        """
        return self.ratio <= 1 and self.worst <= 2 and self.rest <= 1


def polished(net: Net, x: Tensor, y: Tensor, rounding: Rounding) -> Polished:
    """Minimise the weighted residuals by Levenberg-Marquardt in 256 bits.

    python-flint's precision must be set.

    Args:
        net: the network to start from, in float64.
        x: (n, d) samples.
        y: (n, q) targets.
        rounding: the rounding of the targets.
    """
    form = Form.of(net)
    inputs, Y = Inputs(x, form), [arb(v) for v in y.flatten().tolist()]
    start = form.parameters(net)
    theta, point = _minimum(inputs, Y, _weights(rounding.delta(net, x, y)), start)
    rounded = form.network(theta)
    delta = rounding.delta(rounded, x, y)
    if not rounding.usable(delta, x, y):
        # Neurons that cancel may grow without bound; their own rounding would then explain any residual.
        theta, point, rounded, delta = start, inputs.at(start), net, rounding.delta(net, x, y)
    weights = _weights(delta)
    residuals = [(t - v) * w for t, v, w in zip(Y, point.values(), weights, strict=True)]
    sizes = [abs(float(r)) for r in residuals]
    ratio = math.sqrt(sum(r * r for r in sizes) / len(sizes))
    worst = max(sizes)
    if not (math.isfinite(ratio) and rounding.usable(delta, x, y)):
        ratio = worst = math.inf
    return Polished(form, theta, inputs, point, weights, delta, residuals, ratio, worst, rounded)


def _weights(delta: Tensor) -> list[arb]:
    """1 / rounding, rounded down, so that what is proved with these weights holds for the roundings."""
    inverse = torch.nextafter(1 / delta, torch.zeros_like(delta))
    return [arb(v) for v in inverse.flatten().tolist()]


def _minimum(
    inputs: Inputs, Y: list[arb], weights: list[arb], theta: list[arb]
) -> tuple[list[arb], Point]:
    rows = len(Y)

    def residuals(point: Point) -> tuple[list[arb], arb]:
        r = [((t - v) * w).mid() for t, v, w in zip(Y, point.values(), weights, strict=True)]
        return r, _squares(r)

    point = inputs.at(theta)
    r, total = residuals(point)
    damping, slow = arb(0), 0
    for _ in range(_STEPS):
        if not total.is_finite() or total < _NOTHING:
            break
        M = point.jacobian(weights).mid()
        T = M.transpose()
        N = (T * M).mid()
        toward = (T * arb_mat(rows, 1, r)).mid()
        taken = None
        for _ in range(_TRIES):
            step = _step(N, toward, damping)
            if step is not None:
                if damping == 0 and _gain(step, toward) < total * _SETTLED:
                    break  # at the minimum
                trial = [(t + s).mid() for t, s in zip(theta, step, strict=True)]
                trial, at = _with_best_outer(inputs.at(trial), trial, Y, weights)
                left, squares = residuals(at)
                if squares.is_finite() and squares < total:
                    taken = trial, at, left, squares
                    break
            damping = arb(2) ** -60 if damping == 0 else (damping * 64).mid()
        if taken is None:
            break
        slow = slow + 1 if taken[3] > total * _SLOW else 0
        theta, point, r, total = taken
        damping = arb(0) if damping < arb(2) ** -60 else (damping / 1024).mid()
        if slow > (_MOST_SLOW if total < rows * _FAR else _MOST_SLOW // 2):
            break
    return theta, point


def _with_best_outer(
    point: Point, theta: list[arb], Y: list[arb], weights: list[arb]
) -> tuple[list[arb], Point]:
    """Replace the outer weights by those that fit best; the other parameters stay the same.

    If a neuron is nearly linear, a large outer weight has nearly the same effect as a large inner one. The
    minimum then lies in a narrow curved valley, along which plain steps are tiny.
    """
    form, n = point.form, len(point.inputs)
    k, q = form.k, form.q
    width = k + form.output_bias
    outer, constants = list[arb](), list[arb]()
    for o in range(q):
        own = [weights[i * q + o] for i in range(n)]
        entries = list[arb]()
        for i, w in enumerate(own):
            entries += [(h * w).mid() for h in point.h[i * k : (i + 1) * k]]
            entries += [w] if form.output_bias else []
        H = arb_mat(n, width, entries)
        T = H.transpose()
        targets = arb_mat(n, 1, [(Y[i * q + o] * w).mid() for i, w in enumerate(own)])
        solution = _step((T * H).mid(), (T * targets).mid(), arb(0))
        if solution is None:
            return theta, point
        outer += solution[:k]
        constants += solution[k:]
    first = k * (form.d + form.bias)
    point.A, point.c = outer, constants
    return [*theta[:first], *outer, *constants], point


def _squares(r: list[arb]) -> arb:
    m = arb_mat(1, len(r), r)
    return (m * m.transpose())[0, 0].mid()


def _gain(step: list[arb], toward: arb_mat) -> arb:
    """The decrease of the sum of squares of the linearised residuals."""
    return (arb_mat(1, len(step), step) * toward)[0, 0].mid()


def _step(N: arb_mat, toward: arb_mat, damping: arb) -> list[arb] | None:
    P = N.nrows()
    if damping != 0:
        factor = 1 + damping
        entries = N.entries()
        for i in range(P):
            entries[i * (P + 1)] = entries[i * (P + 1)] * factor
        N = arb_mat(P, P, entries).mid()
    try:
        step = middle(N.solve(toward, algorithm="approx").entries())
    except ZeroDivisionError:
        return None
    return step if all(s.is_finite() for s in step) else None
