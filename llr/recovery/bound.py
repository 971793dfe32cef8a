"""How far apart two networks can be on a box of inputs, if both fit the samples to rounding.

Unlike a maximum over points, which misses the transitions of steep neurons between them, this is a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from flint import arb, arb_mat
from torch import Tensor

from llr.recovery.domain import Domain
from llr.recovery.polish import Polished
from llr.recovery.precise import floats
from llr.recovery.rounding import UNIT
from llr.reference import ACTIVATIONS

_SLOPE_TURNS = {
    "tanh": (0.0,),
    "sigmoid": (0.0,),
    "erf": (0.0,),
    "softplus": (),
    "gelu": (-math.sqrt(2), math.sqrt(2)),
    "silu": (-2.399357280515468, 2.399357280515468),
}
"""Where the slope has its extrema; it is monotone between them."""
_TURNS = {"gelu": (-0.7517915524,), "silu": (-1.278464542761,)}
"""Where the activation itself has one."""
_SWITCH, _JUMP = 20.0, 2.1e-9  # torch's softplus leaves out at most this beyond the switch

_STEEP, _PER_UNIT = 10, 8  # intervals of preactivations: equally long near zero
_PER_OCTAVE = 4  # and growing beyond
_UP = 1 + 1e-9  # more than the rounding of the computation itself


def bound(
    fit: Polished, inverse: arb_mat, rho: Sequence[arb], kappa: float, domain: Domain
) -> float:
    """At most so far from the fit is any network near it that fits to rounding, everywhere on a box.

    With C, rho and kappa of :mod:`llr.recovery.isolation`, the parameters of such a network are
    theta + C e + h with |e_i| <= 1 + |r_i| and |h| <= kappa / (1 - kappa) rho. What this does to a neuron is
    bounded on each of many intervals of its preactivation z, by the mean value theorem. There the change of
    w.x + b is linear in z, where x moves along w, plus what x does across w. Neurons are added up.

    Args:
        fit: an isolated one.
        inverse: C, (P, n q).
        rho: (P), of the isolation.
        kappa: of the isolation, at most 1/2.
        domain: the box.

    Returns:
        A bound on |f - f^| for each output, the largest; computed in float64, with the rounding of the
        parameters to float64 and of two evaluations.
    """
    form, net, unit = fit.form, fit.net, UNIT["float64"]
    k, d, b = form.k, form.d, int(form.bias)
    name, first = form.activation, k * (d + b)
    low, high = domain.low, domain.high
    centre, half = low / 2 + high / 2, high / 2 - low / 2
    errors = torch.tensor([1 + abs(float(r)) for r in fit.residuals], dtype=torch.float64)
    C = floats(inverse) * errors
    sizes = torch.cat([p.flatten().abs() for p in net.parameters])
    rest = kappa / (1 - kappa) * sizes.new_tensor([float(r) for r in rho]) + unit * sizes
    rest_w, rest_b, rest_a, rest_c = form.split(rest)
    _, _, C_a, C_c = form.split(C)

    # w.x + b moves by sum_i e_i (at_i + across_i.t + along_i (z - z_centre)), |t| <= 1.
    at = floats((_at(centre, fit) * _rows(inverse, first)).mid()) * errors
    moved = C[: k * d].view(k, d, -1) * half[:, None]
    w = net.w * half
    square = w.square().sum(1).clamp_min(1e-300)
    along = (moved * w[:, :, None]).sum(1) / square[:, None]
    across = (moved - along[:, None] * w[:, :, None]).abs().sum((1, 2))
    size = net.w.abs() @ domain.corner + (net.b.abs() if net.b is not None else 0.0)
    across = across + rest_w.view(k, d) @ domain.corner + 2 * (d + 2) * unit * size
    across = across + (rest_b if b else 0.0)

    middle = net.before(centre[None])[0]
    reach = w.abs().sum(1)
    z = _knots(middle - reach, middle + reach)
    change = at[:, None] + along[:, None] * (z - middle[:, None])[:, :, None]  # convex in z
    total = change.abs().sum(2)
    total = torch.maximum(total[:, 1:], total[:, :-1])
    off = (total + across[:, None]).nan_to_num(math.inf)
    lowest, highest = z[:, :-1] - off, z[:, 1:] + off
    value, value_off = _range(ACTIVATIONS[name][0], lowest, highest, _TURNS.get(name, ()))
    if name == "sin":
        slope, slope_off = torch.zeros_like(value), torch.ones_like(value)
        value, value_off = slope, slope_off
    else:
        slope, slope_off = _range(ACTIVATIONS[name][1], lowest, highest, _SLOPE_TURNS[name])
    jump = _JUMP * (highest > _SWITCH) if name == "softplus" else torch.zeros_like(value)
    steepest, largest = slope.abs() + slope_off, value.abs() + value_off
    worst = 0.0
    for o in range(form.q):
        a = net.a[o][:, None]
        own = C_a[o * k : (o + 1) * k]
        parts = (value[:, :, None] * own[:, None]).nan_to_num(math.inf)
        factor = (a * slope)[:, :, None]
        both = torch.maximum(
            (factor * change[:, 1:] + parts).abs().sum(2),
            (factor * change[:, :-1] + parts).abs().sum(2),
        )
        both = both + a.abs() * (slope_off * total + steepest * across[:, None] + jump)
        both = both + value_off * own.abs().sum(1, keepdim=True)
        both = both + largest * rest_a[o * k : (o + 1) * k, None]
        both = both + 2 * (k + 6) * unit * a.abs() * largest
        sum_ = float(both.nan_to_num(math.inf).amax(1).sum())
        if net.c is not None:
            sum_ += float(C_c[o].abs().sum() + rest_c[o] + 2 * (k + 2) * unit * net.c[o].abs())
        worst = max(worst, sum_)
    return worst * _UP


def _at(centre: Tensor, fit: Polished) -> arb_mat:
    """(k, k (d + b)): the change of every w.x + b at the centre by changes of W and b."""
    form = fit.form
    k, d, b = form.k, form.d, int(form.bias)
    x = [arb(v) for v in centre.tolist()]
    entries = [arb(0)] * (k * k * (d + b))
    for j in range(k):
        row = j * k * (d + b)
        entries[row + j * d : row + (j + 1) * d] = x
        if form.bias:
            entries[row + k * d + j] = arb(1)
    return arb_mat(k, k * (d + b), entries)


def _rows(m: arb_mat, count: int) -> arb_mat:
    return arb_mat(count, m.ncols(), m.entries()[: count * m.ncols()])


def _knots(low: Tensor, high: Tensor) -> Tensor:
    """(k, s + 1) ends of intervals that cover [low, high]; some of them are empty."""
    most = float(torch.maximum(low.abs(), high.abs()).max())
    near = torch.linspace(0, _STEEP, _STEEP * _PER_UNIT + 1, dtype=torch.float64)
    octaves = math.log2(most / _STEEP) if _STEEP < most < math.inf else 0.0
    steps = torch.arange(1, math.ceil(octaves * _PER_OCTAVE) + 2, dtype=torch.float64)
    right = torch.cat((near, _STEEP * torch.exp2(steps / _PER_OCTAVE)))
    knots = torch.cat((-right.flip(0), right[1:]))
    return torch.minimum(torch.maximum(knots[None], low[:, None]), high[:, None])


def _range(
    function: object, low: Tensor, high: Tensor, turns: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Middle and half the length of the values between low and high; monotone between the turns."""
    values = [function(low), function(high)]  # type: ignore[operator]
    for t in turns:
        between = torch.minimum(torch.maximum(low.new_tensor(t), low), high)
        values.append(function(between))  # type: ignore[operator]
    stacked = torch.stack(values)
    least, most = stacked.amin(0), stacked.amax(0)
    return least / 2 + most / 2, (most / 2 - least / 2).nan_to_num(math.inf)
