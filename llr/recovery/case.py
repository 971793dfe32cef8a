"""One search: from samples to a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llr import rank
from llr.recovery import noisy, words
from llr.recovery.hunt import Hit, Hunt
from llr.recovery.judge import judged
from llr.recovery.net import Net
from llr.recovery.oracle import compared
from llr.recovery.outcome import (
    Evidence,
    NoiseTest,
    Proved,
    Recovery,
    Status,
    WidthFit,
)
from llr.recovery.search import NEAR
from llr.results.phrases import counted
from llr.theory import model_rank_of_function

_AMBIGUOUS_SHARE = 8  # one eighth of the budget is for networks with as many parameters as samples

Points = tuple[Tensor, Tensor, str]
"""x, y, and a text that says how they were drawn."""


@dataclass(frozen=True, eq=False)
class Case:
    """A search and its largest width."""

    hunt: Hunt
    max_width: int

    def without_noise(self, ask: Callable[[], Points] | None) -> Recovery:
        """Search for the narrowest network that rounding allows, and judge it.

        Args:
            ask: returns points for a test, which the network was not fitted to.
        """
        hunt = self.hunt
        kind, spent = hunt.kind, hunt.spent
        distinct = len(torch.unique(hunt.real.x, dim=0))
        widths = range(1, self.max_width + 1)
        decided = [j for j in widths if kind.analytic and kind.parameters(j, q=1) < distinct]
        others = [j for j in widths if j not in decided]
        if decided:
            with spent.capped(1 - 1 / _AMBIGUOUS_SHARE if others else 1.0):
                hit = hunt.first(decided)
            near = hunt.nearest
            if hit is None and near is not None and near.ratio <= words.NEARLY:
                hit = hunt.first(decided)  # also with the rest of the budget
            if hit is not None:
                return self._judged(hit, ask)
        near = hunt.nearest
        if near is None or near.ratio > words.NEARLY:
            found = hunt.interpolants(others)
            if found:
                reason = words.interpolants(found, distinct, kind)
                result = self._recovery("ambiguous", reason.text, found, reason.advice)
                return replace(result, reasons=(reason,))
        fits = self._fits()
        least = min(fit.error for fit in fits.values())
        # The narrowest network that is about as close as the closest one.
        best = next(fit for fit in fits.values() if fit.error <= words.AS_CLOSE**2 * least)
        net = best.net
        if best.error < NEAR:
            claim, advice = words.approximate(hunt, self.max_width, fits, best)
            return self._recovery("approximate", claim, [net], advice, sized=False)
        claim, advice = words.not_found(hunt, self.max_width, fits, net)
        return self._recovery("not_found", claim, [net], advice, sized=False)

    def _judged(self, hit: Hit, ask: Callable[[], Points] | None) -> Recovery:
        hunt, data = self.hunt, self.hunt.real
        found = judged(hit.fit, data, hunt.spent.starts)
        reasons, nets, tried = list(found.reasons), [found.fit.net], 0
        less = words.narrower(hunt, hit.width) if reasons else None
        reasons += [less] if less is not None else []
        if not reasons:
            rivals, tried = hunt.rivals(found)
            nets += rivals
            if rivals:
                reasons.append(words.rivals(len(rivals)))
        tests = None
        if ask is not None:
            tests = compared(found, data, *ask())
            if tests.beyond:
                reasons.append(words.beyond(tests))
        alone, weight = found.isolation, found.evidence
        proved = Proved()
        if alone.isolated:
            proved = Proved(True, alone.radius, alone.eps, found.fit.form.count)
        status: Status = "recovered"
        claim, advice = words.recovered(found, data, hunt.kind, tests), ""
        if reasons:
            status, claim = "ambiguous", words.ambiguous(found, tuple(reasons), len(data.x))
            advice = words.advice(tuple(reasons))
        return replace(
            self._recovery(
                status,
                claim,
                nets,
                advice,
                seen=proved.rank or weight.seen,
                # The theory is exact, and does not apply to neurons that are equal to rounding only.
                sized=alone.isolated,
            ),
            proved=proved,
            assumed=words.assumptions(hunt.kind, hit.width, data),
            evidence=Evidence(
                weight.decades,
                weight.n_effective,
                weight.needed,
                found.eps,
                found.eps_doubled,
                tried,
            ),
            tested=tests,
            reasons=tuple(reasons),
        )

    def with_noise(self, noise_std: float) -> Recovery:
        """Test the residuals of every width."""
        hunt = self.hunt
        best = noisy.tested_widths(hunt, self.max_width, noise_std)
        tests = [test for test, _ in best.values()]
        width = noisy.accepted(best)
        if width is not None:
            test, theta = best[width]
            advice = noisy.advice(best, width, noise_std)
            net = hunt.network(width, theta)
            return self._recovery("accepted", noisy.claim(test), [net], advice, tests)
        closest = min(tests, key=lambda t: t.statistic)
        claim = (
            f"no network was found whose residuals are explained by noise of {noise_std:g}, in "
            f"{counted(hunt.spent.starts, 'start')} ({words.tried(hunt, self.max_width)})"
        )
        times = math.sqrt(closest.statistic / closest.dof)
        size = (
            f"a value of noise_std= that is {times:.2g} times as large, which the residuals of width "
            f"{closest.width} suggest, if {noise_std:g} may be too small"
        )
        advice = "; ".join([size, *words.larger(hunt, self.max_width), "another activation"])
        net = hunt.network(closest.width, best[closest.width][1])
        return self._recovery("not_found", claim, [net], advice, tests, sized=False)

    def _fits(self) -> dict[int, WidthFit]:
        """The best fit of every width."""
        hunt, fits = self.hunt, dict[int, WidthFit]()
        size = hunt.real.y.square().mean()
        for j in sorted(hunt.best):
            close = hunt.closest.get(j)
            net = hunt.network(j, hunt.best[j][1]) if close is None else close.net
            error = float((net(hunt.real.x) - hunt.real.y).square().mean() / size)
            roundings = hunt.roundings(net) if close is None else close.ratio
            error = error if math.isfinite(error) else math.inf
            fits[j] = WidthFit(j, error, roundings, False, net)
        return fits

    def _recovery(
        self,
        status: Status,
        claim: str,
        found: Sequence[Net],
        advice: str,
        tests: Sequence[NoiseTest] = (),
        *,
        seen: int | None = None,
        sized: bool = True,
    ) -> Recovery:
        """A result without proofs, for the first of the networks found."""
        hunt, nets = self.hunt, [net.model() for net in found]
        net, model = found[0], nets[0]
        error = (net(hunt.real.x) - hunt.real.y).square().mean() / hunt.real.y.square().mean()
        fits = self._fits()
        bias = words.constant(net, hunt.real.x, hunt.real.size) if advice else ""
        if bias:
            advice = f"{bias}; otherwise {advice}"
        consistent = status in ("recovered", "ambiguous")
        roundings = hunt.roundings(net)
        fits[net.width] = WidthFit(net.width, float(error), roundings, consistent, net)
        return Recovery(
            status=status,
            claim=claim,
            advice=advice,
            proved=Proved(),
            assumed=(),
            evidence=None,
            tested=None,
            reasons=(),
            fits=dict(sorted(fits.items())),
            model=model,
            width=net.width,
            rank=int(rank(model, hunt.real.x).rank) if seen is None else seen,
            size=model_rank_of_function(model) if sized else None,
            train_error=float(error),
            interpolants=tuple(nets),
            tests=tuple(tests),
            starts=hunt.spent.starts,
            seconds=hunt.spent.seconds,
            n=len(hunt.real.x),
        )
