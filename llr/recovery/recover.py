"""Find a two-layer network again from about as many samples as its function's optimistic sample size.

Narrow networks are fitted before wide ones, each from many starts. Why an exact fit with more samples than
parameters is the function itself: docs/recovery.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import chdtrc
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from llr.accept import takes, valued, valued_or_function
from llr.models import TwoLayer
from llr.models.parts import check_sizes
from llr.rank import rank
from llr.recovery.lm import Fits, levenberg_marquardt
from llr.recovery.outcome import NoiseTest, Recovery, Status
from llr.recovery.samples import Kind, check, read
from llr.recovery.scaling import Scaling
from llr.recovery.search import (
    EXACT,
    Budget,
    Data,
    Report,
    Spent,
    polished,
    round_of_starts,
)
from llr.roles import a_flag, a_function, a_seed, real, whole, word
from llr.surroundings import outside_inference_mode
from llr.theory import model_rank_of_function

LEVEL = 0.01
"""Of the statistical test with noise: how often a network of the right width is rejected."""

_MOST_INTERPOLANTS = 16
_SAME = 1e-6  # interpolants that differ by less, relative to their size, are one function
_FRESH = 512  # points at which they are compared
_AMBIGUOUS_SHARE = 8  # of the budget goes to networks that cannot be certified
_LEAST_ROUNDS = 4  # that every width gets before the narrowest that passes is taken


@takes(
    x=valued,
    y=valued_or_function,
    max_width=whole,
    activation=word,
    noise_std=real,
    seed=a_seed,
    progress=a_function,
    bias=a_flag,
    output_bias=a_flag,
)
@outside_inference_mode
def recover(
    x: Tensor,
    y: Tensor,
    *,
    max_width: int,
    activation: str = "tanh",
    bias: bool = True,
    output_bias: bool = False,
    budget: Budget | int | None = None,
    noise_std: float | None = None,
    seed: int = 0,
    progress: Report | None = None,
) -> Recovery:
    """Find the two-layer network that made the data.

    Networks of width 1, 2, ... are fitted by Levenberg-Marquardt from many small random starts, narrow ones
    first, in rounds that double. Without noise the status says what a fit is worth:

    * "certified": a network of width j fits to rounding, and there are more samples than the parameters
      j (1 + d + bias) + output_bias that one output of it has. For almost all samples no network of that
      width, other than one of the same function, fits an analytic function on so many points: the network
      *is* the function, whatever that is.
    * "ambiguous": only wider networks fit. There are usually others that fit as well; ``interpolants`` has
      those that were found.
    * "not_found": nothing fits within the budget.

    With ``noise_std`` the residuals are tested: "certified" then says that the narrowest width whose best fit
    is not rejected at the level of one percent, all narrower ones being rejected, was found. That is a
    statistical statement; ``tests`` has its numbers.

    Args:
        x: (n, d) samples.
        y: (n,) or (n, q) targets.
        max_width: hidden neurons at most.
        activation: a name of :data:`llr.models.ACTIVATIONS`. Fits of ReLU networks are never certified: two
            of them may agree on whole regions.
        bias: whether the neurons have biases.
        output_bias: whether the outputs have.
        budget: starts, or a :class:`Budget`; default 100,000 starts.
        noise_std: standard deviation of the noise on y; None for data without noise.
        seed: of the starts: the same seed, data and budget in starts give the same result.
        progress: told the starts so far and the best relative error so far, after every round.

    Raises:
        TypeError: what is no tensor, dtypes that are no numbers.
        ValueError: shapes that do not fit; NaN or infinity; targets that are constant; fewer observations
            than one neuron has parameters; repeated inputs with different targets and no noise; an unknown
            activation.

    Source: docs/recovery.md.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.recovery import Target, recover
        >>> target = Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        >>> x, y = target.sample(7, seed=1)  # O + 1
        >>> found = recover(x, y, max_width=4, bias=False)
        >>> found.status, found.width, int(found.size), target.error(found.model) < 1e-8
        ('certified', 2, 6, True)
    """
    check_sizes(max_width=max_width)
    x, y = read(x, y)
    kind = Kind(x.shape[1], y.shape[1], activation, bias, output_bias)
    check(x, y, kind, noise_std)
    case = _Case(kind, Scaling.of(x, y, shift=bias), x, y, max_width, seed)
    spent = Spent(Budget.of(budget), progress)
    if noise_std is not None:
        return case.with_noise(noise_std, spent)
    return case.without_noise(spent)


@dataclass(frozen=True, eq=False)
class _Case:
    kind: Kind
    scaling: Scaling
    x: Tensor
    y: Tensor
    max_width: int
    seed: int

    @property
    def data(self) -> Data:
        return self.scaling.inside(self.x, self.y)

    def without_noise(self, spent: Spent) -> Recovery:
        distinct = len(torch.unique(self.x, dim=0))
        widths = range(1, self.max_width + 1)
        certifiable = [
            j for j in widths if self.kind.analytic and self.kind.parameters(j, q=1) < distinct
        ]
        others = [j for j in widths if j not in certifiable]
        if certifiable:
            with spent.capped(1 - 1 / _AMBIGUOUS_SHARE if others else 1.0):
                fits = self._search(certifiable, spent)
            if fits is not None:
                return self._certified(fits, spent, distinct)
        found = self._interpolants(others, spent)
        if found:
            return self._ambiguous(found, spent, distinct)
        claim = (
            f"no network of {self._widths} fits; {spent.starts:,} starts came to a relative error of "
            f"{spent.best:.1e}. A larger budget or max_width, another activation, or noise_std= may help"
        )
        return self._recovery("not_found", claim, [], spent)

    def with_noise(self, noise_std: float, spent: Spent) -> Recovery:
        observations = self.y.numel()
        widths = [j for j in range(1, self.max_width + 1) if self.kind.parameters(j) < observations]
        if not widths:
            raise ValueError(
                f"there are {observations} observations; expected more than the {self.kind.parameters(1)} "
                "parameters of one neuron: with noise, residuals are tested"
            )
        best: dict[int, tuple[NoiseTest, Tensor]] = {}
        number, accepted = 0, None
        while accepted is None or number < _LEAST_ROUNDS:
            for j in widths:
                template = self.kind.template(j)
                fits = round_of_starts(template, self.data, number, spent, seed=self.seed)
                if fits is None:
                    break
                fit = polished(template, self.data, fits, near=math.inf)
                test = self._tested(j, fit, noise_std)
                if j not in best or test.statistic < best[j][0].statistic:
                    best[j] = test, fit.theta[0]
            else:
                accepted = next((j for j in best if best[j][0].p_value >= LEVEL), None)
                number += 1
                continue
            break
        tests = [test for test, _ in best.values()]
        accepted = next((t.width for t in tests if t.p_value >= LEVEL), None)
        if accepted is None:
            claim = (
                f"the residuals of every network of {self._widths} are larger than noise of {noise_std:g} "
                f"leaves; {spent.starts:,} starts"
            )
            return self._recovery("not_found", claim, [], spent, tests)
        test, theta = best[accepted]
        narrower = ", all narrower ones are rejected" if accepted > 1 else ""
        claim = (
            f"width {accepted} is not rejected: chi-squared {test.statistic:.4g} with {test.dof} degrees of "
            f"freedom, p = {test.p_value:.2g}{narrower} at the level {LEVEL:g}. A statistical test, no proof"
        )
        return self._recovery("certified", claim, [self._network(accepted, theta)], spent, tests)

    def _tested(self, width: int, fits: Fits, noise_std: float) -> NoiseTest:
        """Of the best of the fits."""
        observations = self.y.numel()
        total = float(fits.loss[0]) * observations * self.scaling.unit**2
        statistic, dof = total / noise_std**2, observations - self.kind.parameters(width)
        return NoiseTest(width, statistic, dof, float(chdtrc(dof, statistic)))

    def _search(self, widths: Sequence[int], spent: Spent) -> tuple[int, Tensor] | None:
        """The first width that has an exact fit, and the fit; narrow ones first in every round."""
        number = 0
        while True:
            for j in widths:
                template = self.kind.template(j)
                fits = round_of_starts(template, self.data, number, spent, seed=self.seed)
                if fits is None:
                    return None
                best = polished(template, self.data, fits)
                if float(best.relative[0]) < EXACT:
                    return self._pruned(j, best.theta[0])
            number += 1

    def _pruned(self, width: int, theta: Tensor) -> tuple[int, Tensor]:
        """The network without neurons that it does as well without."""
        while width > 1:
            net, template = self._inside(width, theta), self.kind.template(width - 1)
            fewer = [self._without(net, i) for i in range(width)]
            fits = levenberg_marquardt(template, torch.stack(fewer), self.data.x, self.data.y)
            best = polished(template, self.data, fits)
            if float(best.relative[0]) >= EXACT:
                break
            width, theta = width - 1, best.theta[0]
        return width, theta

    @staticmethod
    def _without(net: TwoLayer, i: int) -> Tensor:
        """The parameters without neuron i."""
        keep = [k for k in range(net[0].out_features) if k != i]
        kept = [net[0].weight[keep].flatten()]
        kept += [] if net[0].bias is None else [net[0].bias[keep]]
        kept += [net[2].weight[:, keep].flatten()]
        kept += [] if net[2].bias is None else [net[2].bias]
        return torch.cat(kept).detach()

    def _interpolants(self, widths: Sequence[int], spent: Spent) -> list[TwoLayer]:
        """Networks of different functions that fit, of the least width at which any was found."""
        for j in widths:
            template = self.kind.template(j)
            found: list[tuple[TwoLayer, Tensor]] = []
            for number in range(_LEAST_ROUNDS):
                fits = round_of_starts(template, self.data, number, spent, seed=self.seed)
                if fits is None:
                    return [net for net, _ in found]
                for theta in fits.theta[fits.converged]:
                    net = self._network(j, theta)
                    values = self._values(net)
                    if all(_differ(values, other) for _, other in found):
                        found.append((net, values))
                    if len(found) == _MOST_INTERPOLANTS:
                        return [net for net, _ in found]
            if found:
                return [net for net, _ in found]
        return []

    def _values(self, net: TwoLayer) -> Tensor:
        """At points that are distributed as the samples are, roughly."""
        generator = torch.Generator().manual_seed(0)
        fresh = torch.randn(_FRESH, self.kind.d, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            return net(self.scaling.shift + self.scaling.scale * fresh)

    def _certified(self, found: tuple[int, Tensor], spent: Spent, distinct: int) -> Recovery:
        width, theta = found
        net, P = self._inside(width, theta), self.kind.parameters(width)
        seen = int(rank(net, self.data.x, method="certified").rank)
        most = self.kind.parameters(width, q=1)
        if seen < P:
            claim = (
                f"width {width} fits, but on these samples its Jacobian has rank {seen} of {P}: a change of "
                "the parameters goes unseen, as where inputs lie in a subspace or repeat up to sign"
            )
            return self._recovery("ambiguous", claim, [self._outside(net)], spent, seen=seen)
        claim = (
            f"width {width} fits {distinct} different samples, more than the {most} parameters"
            f"{' of one output' if self.kind.q > 1 else ''}: for almost all samples it is the function"
        )
        return self._recovery("certified", claim, [self._outside(net)], spent, seen=seen)

    def _ambiguous(self, found: list[TwoLayer], spent: Spent, distinct: int) -> Recovery:
        width = found[0][0].out_features
        most = self.kind.parameters(width, q=1)
        several = f"{len(found)} different functions" if len(found) > 1 else "one function"
        why = (
            f"{distinct} different samples are not more than its {most} parameters"
            if self.kind.analytic
            else "two ReLU networks may agree on all samples and differ elsewhere"
        )
        claim = f"{several} of width {width} found that fit; {why}, so that others may fit as well"
        return self._recovery("ambiguous", claim, found, spent)

    def _recovery(
        self,
        status: Status,
        claim: str,
        found: list[TwoLayer],
        spent: Spent,
        tests: Sequence[NoiseTest] = (),
        seen: int | None = None,
    ) -> Recovery:
        net = found[0] if found else None
        error = math.inf
        if net is not None:
            with torch.no_grad():
                error = float(((net(self.x) - self.y) ** 2).mean() / (self.y**2).mean())
            if seen is None:
                seen = int(rank(net, self.x).rank)
        return Recovery(
            status=status,
            claim=claim,
            model=net,
            width=None if net is None else net[0].out_features,
            rank=seen,
            size=None if net is None else model_rank_of_function(net),
            train_error=error,
            interpolants=tuple(found),
            tests=tuple(tests),
            starts=spent.starts,
            seconds=spent.seconds,
            n=len(self.x),
        )

    @property
    def _widths(self) -> str:
        return "width 1" if self.max_width == 1 else f"widths 1 to {self.max_width}"

    def _inside(self, width: int, theta: Tensor) -> TwoLayer:
        net = self.kind.template(width)
        vector_to_parameters(theta, net.parameters())
        return net

    def _outside(self, net: TwoLayer) -> TwoLayer:
        return self.scaling.outside(net)

    def _network(self, width: int, theta: Tensor) -> TwoLayer:
        return self._outside(self._inside(width, theta))


def _differ(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) > _SAME * float(other.norm())
