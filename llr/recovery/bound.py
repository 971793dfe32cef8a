"""Bounds of the difference of two networks on a box of inputs, if both fit the samples to rounding.

A maximum over points is not a bound: it misses the transitions of steep neurons between the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from flint import arb, arb_mat
from torch import Tensor

from llr.operators.formula import ACTIVATIONS
from llr.recovery.domain import Domain
from llr.recovery.isolation import JUMP, SWITCH, Isolation
from llr.recovery.polish import Polished
from llr.recovery.precise import Form, floats
from llr.recovery.rounding import UNIT

_SLOPE_TURNS = {
    "tanh": (0.0,),
    "sigmoid": (0.0,),
    "erf": (0.0,),
    "softplus": (),
    "gelu": (-math.sqrt(2), math.sqrt(2)),
    "silu": (-2.399357280515468, 2.399357280515468),
}
"""The extrema of the slope; it is monotone between them."""
_TURNS = {"gelu": (-0.7517915524,), "silu": (-1.278464542761,)}
"""The extrema of the activation itself."""

_STEEP, _PER_UNIT = 10, 8  # intervals of preactivations: of equal length up to 10
_PER_OCTAVE = 4  # and of growing length beyond
_MOST = 2**22  # numbers in a tensor
_UP = 1 + 1e-9  # a factor that covers the rounding of this computation


def bounds(fit: Polished, near: Isolation, domain: Domain, factors: Sequence[float]) -> list[float]:
    """Bounds of the difference of a fit from any network near it that fits to rounding, on boxes.

    With C, rho and kappa of the isolation the parameters of such a network are theta + C e + h, where
    |e_i| <= 1 + |r_i| and |h| <= kappa / (1 - kappa) rho. The change of a neuron is bounded on each of many
    intervals of its preactivation z, by the mean value theorem. If x moves along w, the change of w.x + b is
    linear in z; a bound for moves of x across w is added. The bounds of all neurons are added.

    Args:
        fit: an isolated fit.
        near: the proofs about networks near it.
        domain: a box.
        factors: by how much the box is enlarged about its centre.

    Returns:
        For each factor a bound of |f - f^|, the largest over all outputs. It is computed in float64, and
        includes the rounding of the parameters to float64 and of two evaluations.
    """
    form, net, unit = fit.form, fit.net, UNIT["float64"]
    assert near.inverse is not None
    k, d, name = form.k, form.d, form.activation
    errors = torch.tensor([1 + abs(float(r)) for r in fit.residuals], dtype=torch.float64)
    exact = near.inverse.entries()
    C = errors.new_tensor([float(c) for c in exact]).view(form.count, -1) * errors
    sizes = torch.cat([p.flatten().abs() for p in net.parameters])
    rest = sizes.new_tensor([float(r) for r in near.rho]) * (near.kappa / (1 - near.kappa))
    rest_w, rest_b, rest_a, rest_c = form.split(rest + unit * sizes)
    _, _, C_a, C_c = form.split(C)

    centre = domain.low / 2 + domain.high / 2
    half = (domain.high / 2 - domain.low / 2) * C.new_tensor(factors)[:, None]  # (boxes, d)
    corner = centre.abs() + half
    # w.x + b changes by sum_i e_i (at_i + along_i (z - middle)), plus at most `across`.
    at = floats(_at(centre, exact, form)) * errors
    moved = C[: k * d].view(k, d, -1) * half[:, None, :, None]
    w = net.w * half[:, None]
    along = (moved * w[..., None]).sum(2) / w.square().sum(2, keepdim=True).clamp_min(1e-300)
    across = (moved - along[:, :, None] * w[..., None]).abs().sum((2, 3))
    size = corner @ net.w.abs().T + (0.0 if net.b is None else net.b.abs())
    across = across + corner @ rest_w.view(k, d).T + 2 * (d + 2) * unit * size
    across = (across + (rest_b if form.bias else 0.0))[..., None]

    middle = net.before(centre[None])[0]
    reach = w.abs().sum(2)
    z = _knots((middle - reach)[..., None], (middle + reach)[..., None])
    # (boxes, k, q), for each neuron; in chunks, since there may be many samples.
    step = max(1, _MOST // max(1, z[:, 0].numel() * C.shape[1]))
    apart = []
    for i in range(0, k, step):
        some = slice(i, i + step)
        change = (
            along[:, some, None] * (z[:, some] - middle[some, None])[..., None] + at[some, None]
        )
        own = C_a.view(form.q, k, -1)[:, some]
        rounding = rest_a.view(form.q, k)[:, some] + 2 * (k + 6) * unit * net.a[:, some].abs()
        apart.append(
            _apart(name, net.a[:, some], z[:, some], change, across[:, some], own, rounding)
        )
    output = torch.cat(apart, 1).sum(1)
    if net.c is not None:
        output = output + C_c.abs().sum(1) + rest_c + 2 * (k + 2) * unit * net.c.abs()
    return (_UP * output.amax(1)).tolist()


def _apart(
    name: str, a: Tensor, z: Tensor, change: Tensor, across: Tensor, own: Tensor, rounding: Tensor
) -> Tensor:
    """(boxes, k, q): an upper bound of the change of a_j sigma(z_j).

    Args:
        name: the name of the activation.
        a: (q, k).
        z: (boxes, k, m) ends of intervals.
        change: (boxes, k, m, n q), the change of z at these ends by each target's error.
        across: (boxes, k, 1), a bound of the other changes of z.
        own: (q, k, n q), the change of a by each target's error.
        rounding: (q, k), a bound of the other changes of a.
    """
    total = change.abs().sum(3)  # convex in z, so that the maximum is at an end of the interval
    total = torch.maximum(total[..., 1:], total[..., :-1])
    off = (total + across).nan_to_num(math.inf)
    lowest, highest = z[..., :-1] - off, z[..., 1:] + off
    if name == "sin":
        value = slope = torch.zeros_like(off)
        value_off = slope_off = torch.ones_like(off)
    else:
        sigma, derivative = ACTIVATIONS[name]
        value, value_off = _range(sigma, lowest, highest, _TURNS.get(name, ()))
        slope, slope_off = _range(derivative, lowest, highest, _SLOPE_TURNS[name])
    steepest, largest = slope.abs() + slope_off, value.abs() + value_off
    jump = JUMP * (highest > SWITCH) if name == "softplus" else 0.0
    outputs = []
    for a_o, own_o, rounding_o in zip(a[..., None], own, rounding[..., None], strict=True):
        factor, parts = (a_o * slope)[..., None], value[..., None] * own_o[:, None]
        ends = [(factor * c + parts).abs().sum(3) for c in (change[:, :, 1:], change[:, :, :-1])]
        most = torch.maximum(*ends) + value_off * own_o.abs().sum(1, keepdim=True)
        most = most + a_o.abs() * (slope_off * total + steepest * across + jump)
        most = most + largest * rounding_o
        outputs.append(most.nan_to_num(math.inf).amax(2))
    return torch.stack(outputs, 2)


def _at(centre: Tensor, inverse: list[arb], form: Form) -> arb_mat:
    """(k, n q): the change of every w.x + b at the centre, in 256 bits since terms may cancel."""
    k, d = form.k, form.d
    n = len(inverse) // form.count
    x = arb_mat(1, d + form.bias, [*centre.tolist(), *([1] if form.bias else [])])
    rows = list[arb]()
    for j in range(k):
        own = inverse[j * d * n : (j + 1) * d * n]
        if form.bias:
            own = own + inverse[(k * d + j) * n : (k * d + j + 1) * n]
        rows += (x * arb_mat(d + form.bias, n, own)).entries()
    return arb_mat(k, n, rows)


def _knots(low: Tensor, high: Tensor) -> Tensor:
    """(boxes, k, m) ends of intervals that cover [low, high], (boxes, k, 1); some of them are empty."""
    most = float(torch.maximum(low.abs(), high.abs()).max())
    near = torch.linspace(0, _STEEP, _STEEP * _PER_UNIT + 1, dtype=torch.float64)
    octaves = math.log2(most / _STEEP) if _STEEP < most < math.inf else 0.0
    steps = torch.arange(1, math.ceil(octaves * _PER_OCTAVE) + 2, dtype=torch.float64)
    right = torch.cat((near, _STEEP * torch.exp2(steps / _PER_OCTAVE)))
    knots = torch.cat((-right.flip(0), right[1:]))
    return torch.minimum(torch.maximum(knots, low), high)


def _range(
    function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, turns: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Midpoint and half the length of the range of values on [low, high]; `turns` are the extrema."""
    at = [low, high, *(torch.minimum(low.new_tensor(t).maximum(low), high) for t in turns)]
    stacked = function(torch.stack(at))
    least, most = stacked.amin(0), stacked.amax(0)
    return least / 2 + most / 2, (most / 2 - least / 2).nan_to_num(math.inf)
