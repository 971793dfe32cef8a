"""The search without noise: the narrowest network that rounding allows, and others that fit as well."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llr.models import TwoLayer
from llr.recovery.damping import SKIPPED
from llr.recovery.judge import DIGITS, Data64, Judgement, examined
from llr.recovery.lm import Fits, levenberg_marquardt
from llr.recovery.net import Net
from llr.recovery.polish import Polished
from llr.recovery.samples import Kind
from llr.recovery.scaling import Scaling
from llr.recovery.search import (
    FITTED,
    NEAR,
    Budget,
    Data,
    Spent,
    many_first,
    polished,
    round_of_starts,
)

LEAST_ROUNDS = 4
"""How many rounds every width gets before a wider network counts as the narrowest."""

_CLOSE = 1e-16  # relative squared error below which a fit is polished in 256 bits
_CANDIDATES = 3  # fits of a round that are polished in 256 bits
_SAME_LOSS = (
    1e-6  # fits with squared errors this close, relatively, count as the same rejected minimum
)
_FAILURES = 4  # after so many rejected fits at a width, only better fits are polished
_BETTER = 0.25  # better: the squared error is below this times the smallest one of rejected fits
_HOPELESS = 10.0  # a polished fit above so many roundings is at another minimum, and is rejected
_RIVAL_SETS, _RIVAL_STARTS, _RIVAL_SEED = 12, 512, 7919
_RIVAL_WORK = (
    8000  # n P^2 up to which all of these starts are made; starts of larger problems take longer
)
_LEAST_RIVAL_STARTS = 32
_APART = (
    1e-3  # fits that differ by less on the doubled box are expected to be equal after polishing
)
_MOST_INTERPOLANTS = 16
_SAME = 1e-6  # interpolants that differ by less, relative to their size, are one function
_FRESH = 512  # points at which interpolants are compared
_WITHIN = 2.0  # most roundings of interpolants, which are evaluated in float64 only


@dataclass(frozen=True, eq=False)
class Hit:
    """A consistent fit."""

    width: int
    theta: Tensor
    """The parameters, in the units of the search."""
    fit: Polished


@dataclass(eq=False)
class Hunt:
    """A search and the fits that it has found so far."""

    kind: Kind
    scaling: Scaling
    data: Data
    """The samples, in the units of the search."""
    real: Data64
    seed: int
    noise: float
    """Typical rounding of the targets, relative to their root mean square."""
    spent: Spent
    rounds: dict[int, int] = field(default_factory=dict)
    """width -> how many rounds were made."""
    best: dict[int, tuple[float, Tensor]] = field(default_factory=dict)
    """width -> the smallest relative squared error, and its parameters."""
    closest: dict[int, Polished] = field(default_factory=dict)
    """width -> the closest of the polished fits that are not consistent."""
    rejected: dict[int, list[float]] = field(default_factory=dict)
    """width -> relative squared errors of fits that were polished and rejected."""
    templates: dict[int, TwoLayer] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """Relative squared error at which a start has converged."""
        return max(FITTED, (3 * self.noise) ** 2)

    @property
    def close(self) -> float:
        """Relative squared error below which a fit may be consistent."""
        return max(_CLOSE, (30 * self.noise) ** 2)

    @property
    def nearest(self) -> Polished | None:
        """The closest of the polished fits that are not consistent, for all widths."""
        return min(self.closest.values(), key=lambda fit: fit.ratio, default=None)

    def first(self, widths: Sequence[int]) -> Hit | None:
        """The first width with a consistent fit; every round begins with narrow networks."""
        while True:
            for j in widths:
                fits = self._round(j, self.spent)
                if fits is None:
                    return None
                hit = self._consistent(j, fits)
                if hit is not None:
                    return self._least(hit, widths)
            if not widths:
                return None

    def _round(self, width: int, spent: Spent) -> Fits | None:
        number = self.rounds.get(width, 0)
        fits = round_of_starts(
            self.template(width), self.data, number, spent, seed=self.seed, tol=self.tolerance
        )
        if fits is not None:
            self.rounds[width] = number + 1
            self.note(width, fits)
        return fits

    def note(self, width: int, fits: Fits) -> None:
        """Remember the best fit of a width."""
        errors = fits.relative.nan_to_num(math.inf)
        at = int(errors.argmin())
        if width not in self.best or float(errors[at]) < self.best[width][0]:
            self.best[width] = float(errors[at]), fits.theta[at]

    def _candidates(self, width: int, fits: Fits) -> Iterator[tuple[Tensor, float]]:
        near = max(NEAR, self.close)
        if not float(fits.relative.nan_to_num(math.inf).min()) < near:
            return
        better = polished(self.template(width), self.data, fits, near=near)
        self.note(width, better)
        order = zip(better.theta[:_CANDIDATES], better.relative.tolist(), strict=False)
        for theta, error in order:
            if error < self.close and self._promises(width, error):
                yield theta, error

    def _promises(self, width: int, error: float) -> bool:
        """Whether to polish a fit: it differs from the rejected fits, and these are few or it is better."""
        known = self.rejected.get(width, [])
        if any(abs(error - e) <= _SAME_LOSS * e for e in known):
            return False
        return len(known) < _FAILURES or error < _BETTER * min(known)

    def _consistent(self, width: int, fits: Fits) -> Hit | None:
        for theta, error in self._candidates(width, fits):
            fit = examined(self.network(width, theta), self.real)
            if fit.consistent:
                return Hit(width, theta, fit)
            least = self.closest[width].ratio if width in self.closest else math.inf
            if fit.ratio < least:
                self.closest[width] = fit
            if fit.ratio > _HOPELESS:
                self.rejected.setdefault(width, []).append(error)
        return None

    def _least(self, hit: Hit, widths: Sequence[int]) -> Hit:
        """The narrowest consistent fit: every narrower width gets its rounds, then neurons are removed."""
        spare = Spent(Budget(starts=2**62), None)
        for j in widths:
            if j >= hit.width:
                break
            found = None
            while found is None and self.rounds.get(j, 0) < LEAST_ROUNDS:
                fits = self._round(j, spare)
                assert fits is not None  # the spare budget is not spent
                found = self._consistent(j, fits)
            if found is not None:
                hit = found
                break
        self.spent.starts += spare.starts
        while hit.width > 1:
            fewer = self._without_one(hit)
            if fewer is None:
                break
            hit = fewer
        return hit

    def _without_one(self, hit: Hit) -> Hit | None:
        """A consistent network with one neuron less, fitted from starts with one neuron removed."""
        net, template = self.kind.net(hit.width, hit.theta), self.template(hit.width - 1)
        parts = [net.without(i).parameters for i in range(hit.width)]
        fewer = torch.stack([torch.cat([t.flatten() for t in p]) for p in parts])
        fits = levenberg_marquardt(template, fewer, self.data.x, self.data.y, tol=self.tolerance)
        return self._consistent(hit.width - 1, fits)

    def rivals(self, found: Judgement) -> tuple[list[Net], int]:
        """Consistent networks of the same width with other functions, and the number of starts made."""
        width = found.fit.form.k
        far = self.real.domain.doubled.points()
        own = found.fit.net(far)
        size, others = float(own.abs().max()), list[Net]()
        work = self.data.y.numel() * self.kind.parameters(width) ** 2
        each = max(_LEAST_RIVAL_STARTS, min(_RIVAL_STARTS, _RIVAL_STARTS * _RIVAL_WORK // work))
        fits = many_first(
            self.template(width),
            self.data,
            (_RIVAL_SETS, each),
            seed=self.seed + _RIVAL_SEED,
            tol=self.tolerance,
        )
        for theta in fits.theta[fits.relative < self.close]:
            net = self.network(width, theta)
            values = net(far)
            # After polishing, this fit would be one of the known networks.
            if any(
                _apart(values, known(far)) < _APART * size for known in (found.fit.net, *others)
            ):
                continue
            fit = examined(net, self.real)
            gaps = [_apart(fit.net(far), known(far)) / size for known in (found.fit.net, *others)]
            if fit.consistent and min(gaps) > 2 * found.eps_doubled + DIGITS:
                others.append(fit.net)
        return others, int((fits.codes != SKIPPED).sum())

    def interpolants(self, widths: Sequence[int]) -> list[Net]:
        """Networks of different functions that fit to rounding, of the least width with such a network."""
        for j in widths:
            found: list[tuple[Net, Tensor]] = []
            for _ in range(LEAST_ROUNDS):
                fits = self._round(j, self.spent)
                if fits is None:
                    return [net for net, _ in found]
                self._collect(j, fits, found)
                if len(found) == _MOST_INTERPOLANTS:
                    break
            if found:
                return [net for net, _ in found]
        return []

    def _collect(self, width: int, fits: Fits, found: list[tuple[Net, Tensor]]) -> None:
        if not bool(fits.converged.any()):
            return
        best = polished(self.template(width), self.data, fits, near=max(self.close, self.tolerance))
        self.note(width, best)
        for theta in best.theta:
            net = self.network(width, theta)
            if not self.roundings(net) <= _WITHIN:
                continue
            values = self._values(net)
            if all(_differ(values, other) for _, other in found):
                found.append((net, values))
            if len(found) == _MOST_INTERPOLANTS:
                return

    def roundings(self, net: Net) -> float:
        """Root mean square of the residuals in float64, in units of the rounding."""
        off = net(self.real.x) - self.real.y
        delta = self.real.rounding.delta(net, self.real.x, self.real.y)
        return float((off / delta).square().mean().sqrt().nan_to_num(math.inf))

    def network(self, width: int, theta: Tensor) -> Net:
        """The network with these parameters, in the caller's units."""
        return self.scaling.outside(self.kind.net(width, theta))

    def template(self, width: int) -> TwoLayer:
        """A network of this width; its parameters do not matter."""
        if width not in self.templates:
            self.templates[width] = self.kind.template(width)
        return self.templates[width]

    def _values(self, net: Net) -> Tensor:
        """Values at random points with about the mean and spread of the samples."""
        generator = torch.Generator().manual_seed(0)
        fresh = torch.randn(_FRESH, self.kind.d, generator=generator, dtype=torch.float64)
        return net(self.scaling.shift + self.scaling.scale * fresh)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _differ(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) > _SAME * float(other.norm())
