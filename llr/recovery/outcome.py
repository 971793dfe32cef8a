"""The result of a search for a two-layer network, with its proofs, assumptions, evidence and tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from llr.inputs.activations import ACTIVATIONS
from llr.inputs.roles import shown
from llr.models import TwoLayer
from llr.recovery.net import Net
from llr.results import Record
from llr.results.fields import restored
from llr.results.html import Table, Tone, Verdict
from llr.results.networks import numbers
from llr.results.phrases import counted
from llr.theory import Dimension

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Status = Literal["recovered", "ambiguous", "approximate", "not_found", "accepted"]


@dataclass(frozen=True)
class NoiseTest:
    """A test of whether noise of the given size explains the residuals of a fit.

    Attributes:
        width: the width of the network that was fitted.
        statistic: sum of squared residuals divided by noise_std^2.
        dof: degrees of freedom: observations minus parameters.
        p_value: how often noise alone gives residuals at least as large (chi-squared, for so many samples
            that the network is nearly linear in its parameters within the noise).
    """

    width: int
    statistic: float
    dof: int
    p_value: float


@dataclass(frozen=True, eq=False, repr=False)
class WidthFit(Record):
    """The best fit of one width.

    Attributes:
        width: hidden neurons.
        error: its mean squared residual, relative to the targets' mean square.
        roundings: root mean square of the residuals, each divided by the rounding error of its target.
            For rounded values of a network this is at most 1 at the minimum.
        consistent: whether rounding explains the residuals.
        net: the network as tensors; `model` is the network as a module.
    """

    width: int
    error: float
    roundings: float
    consistent: bool
    net: Net

    _order = (
        "0 <= error",
        "0 <= roundings",
    )
    _keys: ClassVar[Mapping[str, str]] = {"net": "model"}
    _also = ("activation",)

    @cached_property
    def model(self) -> TwoLayer:
        """The network."""
        return self.net.model()

    def __str__(self) -> str:
        """One line: the width and its error."""
        return (
            f"width {self.width}: relative error {math.sqrt(self.error):.1e}, {self.roundings:.3g} times "
            "the rounding"
        )

    @property
    def activation(self) -> str:
        """The name of the network's activation."""
        return self.net.activation

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield self.width == self.net.width, f"the width of its network, {self.net.width}"

    def _written(self, name: str, hint: Any, spectrum: bool) -> Any:
        return _numbers(self.model) if name == "net" else super()._written(name, hint, spectrum)

    @classmethod
    def _read(cls, name: str, hint: Any, content: Mapping[str, Any], where: str) -> Any:
        if name == "net":
            return _net(content["model"], _activation(content, where), where)
        return super()._read(name, hint, content, where)


@dataclass(frozen=True)
class Proved:
    """What is proved in ball arithmetic, for any targets.

    Attributes:
        isolated: within a box around its parameters, every network of this width that fits to rounding is
            within `eps` of this one. There is no statement about parameters outside of the box.
        radius: the size of the box, relative to the parameters.
        eps: relative to the targets' root mean square, on the domain; infinite if not isolated.
        rank: the rank of the Jacobian on the samples, in the whole box; None if not isolated.
    """

    isolated: bool = False
    radius: float = 0.0
    eps: float = math.inf
    rank: int | None = None


@dataclass(frozen=True)
class Evidence:
    """Evidence for the network, which is not a proof.

    Attributes:
        decades: if the function were another one, the fit would be a coincidence with a probability of about
            10^-decades. This is an estimate, and takes the number of starts into account.
        n_effective: the number of independent observations in the samples; for the output with the fewest.
        needed: the parameters of one output; `n_effective` has to be larger.
        eps: the uncertainty of the function by rounding on the domain, relative to the targets' root mean
            square: a bound for all networks within the proved box of parameters, computed in float64;
            infinite if the network is not isolated.
        eps_doubled: the same on the box of the samples doubled about its centre.
        rivals_tried: the number of starts that were made to find another network that fits.
    """

    decades: float
    n_effective: int
    needed: int
    eps: float
    eps_doubled: float
    rivals_tried: int


@dataclass(frozen=True)
class Checked:
    """The result of a test at points that were not fitted, which holds for any function.

    Attributes:
        share: at most this share of such inputs differs by more than `tolerance`.
        confidence: the confidence of this statement.
        points: how many points were compared.
        beyond: how many of them differ by more than `tolerance`.
        tolerance: the absolute uncertainty by rounding and conditioning, at the point where it is largest.
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
        text: both as text.
        advice: what would help.
    """

    gate: str
    value: float
    limit: float
    text: str
    advice: str


@dataclass(frozen=True, eq=False, repr=False)
class Recovery(Record):
    """The network found, and the status of the result.

    Attributes:
        status: "recovered", "ambiguous", "approximate", "not_found", or with `noise_std` "accepted"; see
            :func:`recover`. True in a condition if it is "recovered" or "accepted".
        claim: the meaning of the status for these samples, in one sentence.
        advice: what to try next; empty if nothing is needed.
        proved: what is proved, for any targets.
        assumed: the further assumptions of "recovered".
        evidence: evidence for the network; None unless it fits to rounding.
        tested: the result of a test at points that were not fitted; None if there were none.
        reasons: the conditions that fail, each with its number.
        fits: width -> the best fit of every width that was tried.
        model: the network found, of the least width that fits; otherwise the narrowest whose residuals
            are at most twice as large as the smallest ones.
        width: the number of its hidden neurons.
        rank: the rank of its Jacobian on the samples: proved, or the number of directions above rounding.
        size: O, the optimistic sample size of its function; None if it does not fit, or is not isolated.
        train_error: its mean squared residual, relative to the targets' mean square.
        interpolants: networks of different functions that fit as well, if the data do not decide; the
            narrowest first, including `model`.
        tests: with noise, the test of every width that was tried.
        starts: how many starts were made.
        seconds: how long the search took.
        n: the number of samples.
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

    _order = (
        "0 <= train_error",
        "0 <= seconds",
    )
    _keys: ClassVar[Mapping[str, str]] = {"size": "optimistic_sample_size", "n": "samples"}
    _also = ("activation",)

    def __bool__(self) -> bool:
        return self.status in ("recovered", "accepted")

    def __str__(self) -> str:
        """The verdict, what to try, and the numbers; with noise, or if nothing fits, for every width."""
        lines = [f"{self.status.replace('_', ' ')}: {self.claim}"]
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
                    "times the rounding"
                )
        return "\n".join(lines)

    def _size(self) -> str:
        """The optimistic sample size as text."""
        if self.size is not None:
            most = "at most " if self.size.status == "bounds" else ""
            return f"optimistic sample size O = {most}{self.size.upper}"
        fits = self.status in ("recovered", "ambiguous", "accepted")
        why = "it is not proved to be isolated" if fits else "the network does not fit"
        return f"optimistic sample size O unknown ({why})"

    @property
    def activation(self) -> str:
        """The name of the networks' activation."""
        return next(iter(self.fits.values())).net.activation

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the error of the best fit of every width; return the axes.

        Args:
            ax: where to draw; None makes a new figure. Needs matplotlib (``pip install 'llr[plot]'``).
        """
        from llr.recovery import curves  # noqa: PLC0415 - matplotlib is optional

        return curves.widths(self, ax=ax)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield self.width == len(self.model[0].weight), "the width of model"
        yield self.width in self.fits, "a fit of width"
        yield self.proved.isolated or self.proved.rank is None, "no proved rank if not isolated"
        if self.evidence is not None:
            found = self.evidence
            counts = found.n_effective, found.needed, found.rivals_tried
            yield min(counts) >= 0, "no negative counts in evidence"
        if self.tested is not None:
            shares = self.tested.share, self.tested.confidence
            yield all(0 <= v <= 1 for v in shares), "share and confidence from 0 to 1 in tested"
            yield 0 <= self.tested.beyond <= self.tested.points, "beyond from 0 to points in tested"
        for test in self.tests:
            yield min(test.width, test.dof) >= 0, "no negative counts in tests"
            yield 0 <= test.p_value <= 1, "p_value from 0 to 1 in tests"

    def _written(self, name: str, hint: Any, spectrum: bool) -> Any:
        if name == "fits":
            return [fit.to_dict() for fit in self.fits.values()]
        if name == "model":
            return _numbers(self.model)
        if name == "interpolants":
            return [_numbers(net) for net in self.interpolants]
        return super()._written(name, hint, spectrum)

    @classmethod
    def _read(cls, name: str, hint: Any, content: Mapping[str, Any], where: str) -> Any:
        if name not in ("fits", "model", "interpolants"):
            return super()._read(name, hint, content, where)
        value = content[name]
        if name == "model":
            return _net(value, _activation(content, where), where).model()
        if not isinstance(value, list):
            raise ValueError(f"{where} is {shown(value)}; expected a list")
        if name == "fits":
            fits = [restored(fit, WidthFit, f"{where}[{i}]") for i, fit in enumerate(value)]
            if not fits:
                raise ValueError(f"{where} is empty; expected the fit of at least one width")
            return {fit.width: fit for fit in fits}
        activation = _activation(content, where)
        return tuple(_net(net, activation, f"{where}[{i}]").model() for i, net in enumerate(value))

    def _verdict(self) -> Verdict:
        tones: dict[str, Tone] = {"recovered": "good", "accepted": "good", "ambiguous": "doubt"}
        return self.status.replace("_", " "), tones.get(self.status, "bad")

    def _facts(self) -> dict[str, object]:
        size = {} if self.size is None else {"optimistic sample size": self.size.upper}
        facts = super()._facts() | size
        return {name: value for name, value in facts.items() if name not in ("status", "claim")}

    def _table(self) -> Table:
        rows = [
            (f.width, math.sqrt(f.error), f.roundings, f.consistent) for f in self.fits.values()
        ]
        return ("width", "relative error", "roundings", "explained by rounding"), rows


def _numbers(net: nn.Module) -> dict[str, Any]:
    return {name: p.tolist() for name, p in net.state_dict().items()}


def _activation(content: Mapping[str, Any], where: str) -> str:
    found = content.get("activation")
    if not isinstance(found, str) or found not in ACTIVATIONS:
        raise ValueError(
            f"activation of {where} is {shown(found)}; expected one of {', '.join(ACTIVATIONS)}"
        )
    return found


def _net(content: Any, activation: str, where: str) -> Net:
    """The network with these numbers, which have their names in ``state_dict()``."""
    names = {"0.weight": 2, "0.bias": 1, "2.weight": 2, "2.bias": 1}
    if not isinstance(content, dict) or not {"0.weight", "2.weight"} <= set(content) <= set(names):
        raise ValueError(
            f"{where} is {shown(content)}; expected the numbers of a two-layer network"
        )
    w, b, a, c = (
        numbers(content, name, dims, torch.float64, where) if name in content else None
        for name, dims in names.items()
    )
    assert w is not None
    assert a is not None
    if a.shape[1] != len(w) or (b is not None and len(b) != len(w)):
        raise ValueError(f"{where} has layers whose widths do not fit each other")
    if c is not None and len(c) != len(a):
        raise ValueError(f"{where} has {len(c)} output biases; expected {len(a)}")
    return Net(w, b, a, c, activation)
