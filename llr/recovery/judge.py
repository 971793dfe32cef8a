"""The judgement of one network that fits: proofs, evidence, and the conditions that fail."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import scipy.linalg
import torch
from torch import Tensor

from llr import jacobian
from llr.linalg.balls import precision
from llr.recovery.alias import aliases
from llr.recovery.bound import bounds
from llr.recovery.domain import Domain
from llr.recovery.evidence import Evidence, evidence
from llr.recovery.isolation import Isolation, isolation
from llr.recovery.net import Net
from llr.recovery.outcome import Reason
from llr.recovery.polish import Polished, polished
from llr.recovery.precise import BITS, Form
from llr.recovery.rounding import Rounding
from llr.results.phrases import counted

DIGITS = 1e-4
"""Functions that differ by less than this, relatively, count as equal."""
_OPEN, _OPEN_DOUBLED = (
    2e-4,
    6e-4,
)  # limits of the bounds of the error by rounding; the errors are smaller
DECADES = 4.0
"""The least evidence for a fit, in decades, after the number of starts is taken into account."""

_ALL = 400  # up to so many observations, all are used
_PER_PARAMETER = 20  # of a larger set, so many observations for each parameter are used
_FRESH = 512  # points at which the size of a function is estimated
_REST = 3.0  # most roundings of unused samples: two, and one of the evaluation in float64


@dataclass(frozen=True, eq=False)
class Judgement:
    """A consistent fit, with its proofs and evidence."""

    fit: Polished
    isolation: Isolation
    evidence: Evidence
    eps: float
    """A bound on the domain, relative to the targets' root mean square; infinite if not isolated."""
    eps_doubled: float
    """The same bound on the doubled box."""
    frequencies: Tensor | None
    """For a sine network: frequencies that are invisible on the samples."""
    reasons: tuple[Reason, ...]
    """The conditions that fail."""


@dataclass(frozen=True, eq=False)
class Data64:
    """Samples in the caller's units, and their rounding."""

    x: Tensor
    y: Tensor
    rounding: Rounding
    domain: Domain
    activation: str
    max_frequency: float | None

    @property
    def size(self) -> float:
        """Root mean square of the targets."""
        return float(self.y.square().mean().sqrt())


def examined(net: Net, data: Data64) -> Polished:
    """Polish a fit on all samples, or on the most informative ones of a large set; then test the others."""
    rows = _rows(net, data)
    x, y, rounding = data.x, data.y, data.rounding
    if rows is not None:
        moved = None if rounding.x is None else rounding.x[rows]
        rounding = replace(rounding, y=rounding.y[rows], x=moved)
        x, y = x[rows], y[rows]
    with precision(BITS):
        fit = polished(net, x, y, rounding)
    if rows is None:
        return fit
    off = (fit.net(data.x) - data.y).abs()
    delta = data.rounding.delta(fit.net, data.x, data.y)
    rest = float((off / delta).nan_to_num(math.inf).max())
    return replace(fit, rows=rows, rest=rest / _REST)


def _rows(net: Net, data: Data64) -> Tensor | None:
    """The samples of a large set that are used; None for all."""
    (n, q), form = data.y.shape, Form.of(net)
    if n * q <= max(_ALL, 2 * _PER_PARAMETER * form.count):
        return None
    keep = max(_ALL, _PER_PARAMETER * form.count) // q
    first = _gradients(net, data)
    pivots = scipy.linalg.qr(first.T.numpy(), mode="r", pivoting=True)[1][: form.count] // q
    generator = torch.Generator().manual_seed(0)
    others = torch.randperm(n, generator=generator)
    rows = torch.cat((torch.from_numpy(pivots.copy()).long(), others))
    chosen = dict.fromkeys(rows.tolist())
    return torch.tensor(sorted(list(chosen)[:keep]))


def _gradients(net: Net, data: Data64) -> Tensor:
    """(n q, P) in float64, in units of the rounding."""
    J = jacobian(net.model(), data.x).flatten(0, 1)
    delta = data.rounding.delta(net, data.x, data.y).flatten()
    return (J / delta[:, None]).nan_to_num(0.0, 0.0, 0.0)


def judged(fit: Polished, data: Data64, starts: int) -> Judgement:
    """Check all conditions of a fit.

    Args:
        fit: a consistent fit.
        data: the samples that were fitted.
        starts: the number of starts that were tried before it was found.
    """
    x, y = (data.x, data.y) if fit.rows is None else (data.x[fit.rows], data.y[fit.rows])
    near = data.domain
    size = data.size
    with precision(BITS):
        alone = isolation(fit, near.corner, size)
        weight = evidence(fit, x, y, starts)
        eps = eps_doubled = math.inf
        if alone.isolated:
            found = bounds(fit, alone, near, (1.0,) if near.given else (1.0, 2.0))
            eps, eps_doubled = found[0] / size, found[-1] / size
    frequencies = aliases(data.x) if data.activation == "sin" else None
    reasons = [
        *_observations(weight),
        *_surprise(weight, starts),
        *_uniqueness(alone, weight, fit, data.activation),
        *_condition(alone, eps, eps_doubled / _share(fit.net, data), near),
        *_unseen(frequencies, fit, data),
    ]
    return Judgement(fit, alone, weight, eps, eps_doubled, frequencies, tuple(reasons))


def _share(net: Net, data: Data64) -> float:
    """The size of the function on the doubled box relative to the targets; at most 1."""
    values = net(data.domain.doubled.points(_FRESH, corners=0))
    return min(1.0, float(values.square().mean().sqrt()) / data.size)


def _observations(found: Evidence) -> list[Reason]:
    if found.n_effective > found.needed:
        return []
    return [
        Reason(
            "effective samples",
            found.n_effective,
            found.needed + 1,
            f"the samples have {found.n_effective} independent observations; more than {found.needed} needed",
            "samples in general position: neither repeated nor mirrored nor nearly equal",
        )
    ]


def _surprise(found: Evidence, starts: int) -> list[Reason]:
    if found.decades >= DECADES:
        return []
    return [
        Reason(
            "evidence",
            found.decades,
            DECADES,
            f"evidence of {found.decades:.1f} decades after {counted(starts, 'start')}; {DECADES:g} needed",
            "more samples, or samples over a wider range",
        )
    ]


def _uniqueness(found: Isolation, weight: Evidence, fit: Polished, activation: str) -> list[Reason]:
    if found.isolated:
        return []
    P = fit.form.count
    if activation == "relu":
        text = "two ReLU networks may agree on all samples and differ elsewhere"
    elif weight.seen < P:
        text = (
            f"not isolated: on these samples the Jacobian shows {weight.seen} of {P} directions above "
            "rounding, so that changes of the parameters can be invisible"
        )
    else:
        text = (
            "not isolated: no box around the parameters was proved to be free of other networks that fit "
            f"(contraction {found.kappa:.2g}, expected at most 0.5)"
        )
    return [
        Reason(
            "isolation",
            found.kappa,
            0.5,
            text,
            "samples where the function varies, more samples, or targets with more digits",
        )
    ]


def _condition(found: Isolation, eps: float, doubled: float, near: Domain) -> list[Reason]:
    if not found.isolated:  # without isolation there is no bound
        return []
    value, limit, where = eps, _OPEN, near.name
    if eps <= limit and not near.given:
        value, limit, where = doubled, _OPEN_DOUBLED, "twice the box of the samples"
    if value <= limit:
        return []
    return [
        Reason(
            "conditioning",
            value,
            limit,
            f"rounding leaves an uncertainty of up to {value:.1e} of the function's size on {where}, more "
            f"than {limit:.0e}",
            "more samples, samples where the function varies most, targets with more digits, or domain= for "
            "a smaller box",
        )
    ]


def _unseen(frequencies: Tensor | None, fit: Polished, data: Data64) -> list[Reason]:
    largest = float(fit.net.w.norm(dim=1).max())
    bound = data.max_frequency
    if data.activation == "sin" and bound is not None and largest > bound:
        return [
            Reason(
                "frequency",
                largest,
                bound,
                f"the network has a frequency of {largest:.4g}, above max_frequency = {bound:.4g}",
                "samples closer to each other, or a larger max_frequency=",
            )
        ]
    if frequencies is None:
        return []
    # A vector of a reduced basis is at most 2^((d - 1) / 2) times as long as the shortest one.
    shortest = float(frequencies[0].norm()) / 2 ** ((data.x.shape[1] - 1) / 2)
    if bound is not None and shortest > bound + largest:
        return []
    size = float(frequencies[0].norm())
    return [
        Reason(
            "alias",
            size,
            math.inf if bound is None else bound + largest,
            f"the samples lie on a lattice, on which an additional frequency of {size:.6g} is invisible",
            "samples off the lattice, or max_frequency= if the frequencies are known to be bounded",
        )
    ]
