"""What a search for a two-layer network ends with, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import nn

from llr.models import TwoLayer
from llr.recovery.net import Net
from llr.recovery.phrases import counted
from llr.theory import Dimension

Status = Literal["recovered", "ambiguous", "approximate", "not_found", "accepted"]


@dataclass(frozen=True)
class NoiseTest:
    """Whether the residuals of a fit are what noise of the given size leaves.

    Attributes:
        width: of the network that was fitted.
        statistic: sum of squared residuals over noise_std^2.
        dof: degrees of freedom: observations minus parameters.
        p_value: how often noise alone leaves residuals at least as large (chi-squared, for samples that are
            many enough for the network to be nearly linear in its parameters within the noise).
    """

    width: int
    statistic: float
    dof: int
    p_value: float


@dataclass(frozen=True, eq=False)
class WidthFit:
    """The best fit of one width.

    Attributes:
        width: hidden neurons.
        error: its squared residuals, relative to the targets' mean square.
        roundings: root mean square of the residuals, each over what rounding leaves open in its target.
            Rounded values of a network have at most 1 at the minimum.
        consistent: whether rounding explains the residuals.
        net: the network as tensors; `model` has it as a module.
    """

    width: int
    error: float
    roundings: float
    consistent: bool
    net: Net = field(repr=False)

    @cached_property
    def model(self) -> TwoLayer:
        """The network."""
        return self.net.model()


@dataclass(frozen=True)
class Proved:
    """What is proved in ball arithmetic, whatever the targets are.

    Attributes:
        isolated: within a box around its parameters every network of this width that fits to rounding is
            within `eps` of this one. Nothing is said of parameters outside of the box.
        radius: the size of the box, relative to the parameters.
        eps: relative to the targets' root mean square, on the domain; infinite if not isolated.
        rank: of the Jacobian on the samples, in all of the box; None if not isolated.
    """

    isolated: bool = False
    radius: float = 0.0
    eps: float = math.inf
    rank: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What speaks for the network without proving it.

    Attributes:
        decades: by a measure, the fit would otherwise be a coincidence of about 10^-decades. The starts
            that were tried are taken off.
        n_effective: how many independent observations the samples are; of the output with the fewest.
        needed: the parameters of one output; `n_effective` has to be larger.
        eps: how far rounding leaves the function open on the domain, relative to the targets' root mean
            square: a bound for all networks within the proved box of parameters, computed in float64;
            infinite if the network is not isolated.
        eps_doubled: the same on the box of the samples doubled about its centre.
        rivals_tried: starts that were made to find another network that fits.
    """

    decades: float
    n_effective: int
    needed: int
    eps: float
    eps_doubled: float
    rivals_tried: int


@dataclass(frozen=True)
class Checked:
    """What points that were not fitted show, whatever the function is.

    Attributes:
        share: at most this share of such inputs differs by more than `tolerance`.
        confidence: of that statement.
        points: that were compared.
        beyond: of these, how many differ by more.
        tolerance: absolute: what rounding and conditioning leave open, at the point where it is largest.
        where: how the points were drawn.
    """

    share: float
    confidence: float
    points: int
    beyond: int
    tolerance: float
    where: str


@dataclass(frozen=True)
class Reason:
    """A condition of the status "recovered" that fails.

    Attributes:
        gate: its name: "effective samples", "evidence", "isolation", "conditioning", "alias", "frequency",
            "rivals", "test" or "width".
        value: what was found.
        limit: what was expected.
        text: both in words.
        advice: what would help.
    """

    gate: str
    value: float
    limit: float
    text: str
    advice: str


@dataclass(frozen=True, eq=False)
class Recovery:
    """What was found, and what may be said of it.

    Attributes:
        status: "recovered", "ambiguous", "approximate", "not_found", or with `noise_std` "accepted"; see
            :func:`recover`. True in a condition if it is "recovered" or "accepted".
        claim: what that means here, in one sentence.
        advice: what to try next; empty if nothing is needed.
        proved: what is proved, whatever the targets are.
        assumed: what else "recovered" rests on.
        evidence: what speaks for the network without proving it; None unless it fits to rounding.
        tested: what points that were not fitted say; None if there were none.
        reasons: the conditions that fail, each with its number.
        fits: width -> the best fit of every width that was tried.
        model: the network found, of the least width that fits; else the best fit of all.
        width: its hidden neurons.
        rank: of its Jacobian on the samples: proved, or the directions that show above rounding.
        size: O, the optimistic sample size of its function; None if it does not fit, or is not isolated.
        train_error: its squared residuals, relative to the targets' mean square.
        interpolants: networks of different functions that fit as well, where the data do not decide; the
            narrowest first, `model` among them.
        tests: with noise, the test of every width that was looked at.
        starts: how many starts were made.
        seconds: how long it took.
        n: samples.
    """

    status: Status
    claim: str
    advice: str
    proved: Proved
    assumed: tuple[str, ...]
    evidence: Evidence | None
    tested: Checked | None
    reasons: tuple[Reason, ...]
    fits: Mapping[int, WidthFit]
    model: TwoLayer
    width: int
    rank: int
    size: Dimension | None
    train_error: float
    interpolants: tuple[TwoLayer, ...]
    tests: tuple[NoiseTest, ...]
    starts: int
    seconds: float
    n: int

    def __bool__(self) -> bool:
        return self.status in ("recovered", "accepted")

    def __str__(self) -> str:
        """The verdict, what to try, and the numbers; with noise, or where nothing fits, of every width."""
        lines = [f"{self.status}: {self.claim}"]
        lines += [f"  try: {self.advice}"] if self.advice else []
        lines.append(
            f"  width {self.width}: relative error {math.sqrt(self.train_error):.1e} (root mean square), "
            f"Jacobian of rank {self.rank} on the samples, {self._size()}; {counted(self.n, 'sample')}, "
            f"{counted(self.starts, 'start')}, {self.seconds:.2g} s"
        )
        for test in sorted(self.tests, key=lambda t: t.width):
            lines.append(
                f"  width {test.width}: chi-squared {test.statistic:.4g} with "
                f"{counted(test.dof, 'degree')} of freedom, p = {test.p_value:.2g}"
            )
        if not self.tests and self.status in ("approximate", "not_found"):
            for fit in self.fits.values():
                lines.append(
                    f"  width {fit.width}: relative error {math.sqrt(fit.error):.1e}, {fit.roundings:.3g} "
                    "times what rounding leaves"
                )
        return "\n".join(lines)

    def _size(self) -> str:
        """The optimistic sample size in words."""
        if self.size is not None:
            most = "at most " if self.size.status == "bounds" else ""
            return f"optimistic sample size O = {most}{self.size.upper}"
        fits = self.status in ("recovered", "ambiguous", "accepted")
        why = "not proved to be the only fit near it" if fits else "it does not fit"
        return f"optimistic sample size O unknown ({why})"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON; networks as lists of numbers, null for what is infinite."""
        return {
            "status": self.status,
            "claim": self.claim,
            "advice": self.advice,
            "proved": _plain(self.proved),
            "assumed": list(self.assumed),
            "evidence": None if self.evidence is None else _plain(self.evidence),
            "tested": None if self.tested is None else _plain(self.tested),
            "reasons": [_plain(reason) for reason in self.reasons],
            "fits": [
                {
                    "width": fit.width,
                    "model": _numbers(fit.model),
                    "error": _finite(fit.error),
                    "roundings": _finite(fit.roundings),
                    "consistent": fit.consistent,
                }
                for fit in self.fits.values()
            ],
            "width": self.width,
            "rank": self.rank,
            "optimistic_sample_size": None if self.size is None else self.size.to_dict(),
            "train_error": _finite(self.train_error),
            "model": _numbers(self.model),
            "interpolants": [_numbers(net) for net in self.interpolants],
            "tests": [_plain(test) for test in self.tests],
            "starts": self.starts,
            "seconds": self.seconds,
            "samples": self.n,
        }


def _plain(part: object) -> dict[str, Any]:
    return {name: _finite(value) for name, value in vars(part).items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(net: nn.Module) -> dict[str, Any]:
    return {name: p.tolist() for name, p in net.state_dict().items()}
