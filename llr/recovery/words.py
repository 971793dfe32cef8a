"""The results of a search without noise as sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from llr.operators.formula import ACTIVATIONS
from llr.recovery.domain import Domain
from llr.recovery.hunt import LEAST_ROUNDS, Hunt
from llr.recovery.judge import Data64, Judgement
from llr.recovery.net import Net
from llr.recovery.outcome import Checked, Reason, WidthFit
from llr.recovery.samples import Kind
from llr.results.phrases import a, counted

NEARLY = 1e3
"""In roundings: a fit this close, with more samples than parameters, is reported even if it is rejected."""

AS_CLOSE = 2.0
"""Fits are about as close as the best if their residuals are at most so many times as large."""

_CONSTANT = 1e-6  # a neuron is constant if its values differ by less than this share of the largest


def kind_in_words(kind: Kind, width: int) -> str:
    """The class of networks of at most this width."""
    neurons = "one neuron" if width == 1 else f"at most {width} neurons"
    parts = [] if kind.bias else ["without biases"]
    parts += ["with an output bias"] if kind.output_bias else []
    return " ".join([f"{kind.activation} network of {neurons}", *parts])


def assumptions(kind: Kind, width: int, data: Data64) -> tuple[str, ...]:
    """The assumptions of "recovered" that no computation can check."""
    said = [f"the function is {a(kind_in_words(kind, width))}", data.rounding.words]
    if data.rounding.x is None:
        said.append("the inputs are exact")
    said.append("the samples were chosen without knowledge of the function")
    if kind.activation == "sin" and data.max_frequency is not None:
        said.append(f"no frequency is above {data.max_frequency:.6g}")
    return tuple(said)


def recovered(found: Judgement, data: Data64, kind: Kind, tests: Checked | None) -> str:
    """The claim: what is assumed, what follows, how improbable it is otherwise, and what is proved."""
    width = found.fit.form.k
    sentence = (
        f"if the samples are rounded values of {a(kind_in_words(kind, width))} (assumed; "
        f"{data.rounding.words}), the function is this one, to {found.eps:.1e} of its size on "
        f"{data.domain.name}; otherwise {counted(len(data.x), 'sample')} would agree by a coincidence of "
        f"probability about 10^-{found.evidence.decades:.0f} (evidence). No other such network that fits has "
        f"parameters within {found.isolation.radius:.1e} of these, relatively (proved)"
    )
    return sentence + _test(tests)


def _test(tests: Checked | None) -> str:
    if tests is None:
        return ""
    return (
        f". On {tests.points} {tests.where}: at most {tests.share:.2%} of such inputs differ by more "
        f"than {tests.tolerance:.1e}, at a confidence of {tests.confidence:.0%} (tested)"
    )


def rivals(count: int) -> Reason:
    """The reason that other networks fit as well."""
    text = f"{count} other function{'s' * (count > 1)} of this width found that fit"
    return Reason("rivals", count, 0, text, "more samples")


def beyond(tests: Checked) -> Reason:
    """The reason that points of the test differ from the network."""
    text = f"{tests.beyond} of {tests.points} {tests.where} differ from it beyond rounding"
    return Reason("test", tests.beyond, 0, text, "those points as samples, or a larger max_width=")


def narrower(hunt: Hunt, width: int) -> Reason | None:
    """The reason that a narrower network comes close: inexact data may keep it from fitting."""
    close = [fit for j, fit in sorted(hunt.closest.items()) if j < width and fit.ratio <= NEARLY]
    if not close:
        return None
    fit = close[0]
    text = f"the residuals of width {fit.form.k} are only {fit.ratio:.2g} times the rounding"
    moved = rounded_inputs(hunt.real, fit.net)
    return Reason(
        "width", fit.ratio, 1.0, text, moved or "y_error= if the targets are stored less exactly"
    )


def ambiguous(found: Judgement, reasons: tuple[Reason, ...], n: int) -> str:
    """The claim of an ambiguous result, with every condition that fails."""
    why = "; ".join(reason.text for reason in reasons)
    fits = f"width {found.fit.form.k} fits {counted(n, 'sample')} to rounding"
    return f"{fits}, but the data do not decide for it: {why}"


def advice(reasons: tuple[Reason, ...]) -> str:
    """The advice of all reasons."""
    return "; ".join(dict.fromkeys(reason.advice for reason in reasons))


def interpolants(found: list[Net], distinct: int, kind: Kind) -> Reason:
    """The reason that a fit with as many parameters as samples does not decide."""
    width = found[0].width
    most = kind.parameters(width, q=1)
    several = f"{len(found)} different functions" if len(found) > 1 else "one function"
    if kind.analytic:
        why = f"{distinct} different samples are not more than its {most} parameters"
        help_ = f"more than {most} samples"
        return Reason("width", distinct, most + 1, _others(several, width, why), help_)
    why = "two ReLU networks may agree on all samples and differ elsewhere"
    return Reason(
        "isolation",
        math.inf,
        0.5,
        _others(several, width, why),
        "a smooth activation, or fresh points to test the network on (held_out=, or a callable y)",
    )


def _others(several: str, width: int, why: str) -> str:
    return f"{several} of width {width} found that fit; {why}, so that others may fit as well"


def approximate(
    hunt: Hunt, max_width: int, fits: Mapping[int, WidthFit], best: WidthFit
) -> tuple[str, str]:
    """The claim and the advice for a fit that is close, but not to rounding."""
    data, net, error = hunt.real, best.net, best.error
    off = math.sqrt(error) * data.size
    claim = (
        f"width {net.width} comes within {off:.2g} of the samples (root mean square, {math.sqrt(error):.1e} "
        f"of their size), {best.roundings:.2g} times the rounding "
        f"({data.rounding.words}): the samples are not its values"
    )
    if best.error > min(fit.error for fit in fits.values()):
        claim += f"; the {_smallest(fits)}{_narrowest(fits, net)}"
    claim += (
        f". No network that fits was found in {counted(hunt.spent.starts, 'start')} "
        f"({tried(hunt, max_width)}). {stopped(hunt, max_width)}"
    )
    spare = data.y.numel() - hunt.kind.parameters(net.width)
    std = off * math.sqrt(data.y.numel() / spare) if spare > 0 else off
    hints = []
    moved = rounded_inputs(data, net)
    if moved:
        hints.append(moved)
    hints.append(
        f"noise_std={std:.2g} if the targets are noisy; y_error= if they are stored less exactly"
    )
    hints.append(f"otherwise {', '.join([*larger(hunt, max_width), 'another activation'])}")
    return claim, "; ".join(hints)


def rounded_inputs(data: Data64, net: Net) -> str:
    """Advice if rounding of the inputs would explain the residuals; empty otherwise."""
    if data.rounding.x is not None or data.rounding.inputs is None:
        return ""
    worst = float(data.rounding.inputs.max())
    supposed = replace(data.rounding, x=data.rounding.inputs)
    delta = supposed.delta(net, data.x, data.y)
    if float(((net(data.x) - data.y) / delta).square().mean().sqrt()) > 1:
        return ""
    return (
        f"x_error={worst:.2g}, since x looks like {data.rounding.x_stored}: inputs rounded after y was "
        "computed would explain it"
    )


def not_found(
    hunt: Hunt, max_width: int, fits: Mapping[int, WidthFit], net: Net
) -> tuple[str, str]:
    """The claim and the advice for a search in which no network came close.

    Args:
        hunt: the search.
        max_width: the largest width that was asked for.
        fits: the best fit of every width that was tried.
        net: the network that is returned.
    """
    claim = (
        f"no network that fits was found in {counted(hunt.spent.starts, 'start')} "
        f"({tried(hunt, max_width)}); the {_smallest(fits)}{_narrowest(fits, net)}. "
        f"{stopped(hunt, max_width)}"
    )
    hints = [*larger(hunt, max_width), "another activation", "noise_std= if the targets are noisy"]
    return claim, "; ".join(hints)


def larger(hunt: Hunt, max_width: int) -> list[str]:
    """Advice to search longer, and for wider networks if all of these widths were tried."""
    if hunt.spent.stopped:
        return []
    if len(hunt.rounds) < max_width:
        return ["a larger budget, so that the other widths are tried"]
    spent = hunt.spent.left(1) <= 0 or len(_undetermined(hunt, max_width)) < max_width
    return (["a larger budget"] if spent else []) + ["a larger max_width="]


def _undetermined(hunt: Hunt, max_width: int) -> list[int]:
    """The widths for which there are too few samples."""
    if not hunt.kind.analytic:
        return list(range(1, max_width + 1))
    distinct = len(torch.unique(hunt.real.x, dim=0))
    return [j for j in range(1, max_width + 1) if hunt.kind.parameters(j, q=1) >= distinct]


def tried(hunt: Hunt, max_width: int) -> str:
    """Which widths had any starts, and of which widths."""
    done = ranges(hunt.rounds)
    if len(hunt.rounds) == max_width:
        return f"width{'s' * (max_width > 1)} tried: {done}"
    return f"widths tried: {done}, of 1 to {max_width}"


def ranges(numbers: Iterable[int]) -> str:
    """Integers as text.

    Example:
        >>> from llr.recovery.words import ranges
        >>> ranges([1, 2, 3, 7])
        '1 to 3, 7'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _smallest(fits: Mapping[int, WidthFit]) -> str:
    least = min(fits.values(), key=lambda fit: fit.error)
    return f"smallest relative error is {math.sqrt(least.error):.1e} (root mean square, width {least.width})"


def _narrowest(fits: Mapping[int, WidthFit], net: Net) -> str:
    """Why this network is returned, if it is not the closest one."""
    own = fits[net.width].error
    if own <= min(fit.error for fit in fits.values()):
        return ""
    return (
        f", and width {net.width} is the narrowest with at most {AS_CLOSE:g} times as much, "
        f"{math.sqrt(own):.1e}"
    )


def constant(net: Net, x: Tensor, size: float) -> str:
    """Advice if a neuron acts as an output bias, which the network does not have; empty otherwise."""
    if net.c is not None:
        return ""
    values = ACTIVATIONS[net.activation][0](net.before(x))
    largest = values.abs().amax(0)
    flat = values.amax(0) - values.amin(0) <= _CONSTANT * largest
    counts = largest * net.a.abs().amax(0) > _CONSTANT * size
    if len(x) < 2 or not bool((flat & counts).any()):
        return ""
    return "output_bias=True, since a neuron of the fit is constant on the samples"


def stopped(hunt: Hunt, max_width: int) -> str:
    """Why the search ended."""
    if hunt.spent.stopped:
        return "The search was interrupted"
    budget = hunt.spent.budget
    if budget.starts is not None and hunt.spent.starts >= budget.starts:
        return f"The budget of {counted(budget.starts, 'start')} is spent"
    if hunt.spent.left(1) <= 0:
        return f"The budget of {budget.seconds:g} seconds is spent"
    if not hunt.kind.analytic:
        return (
            f"Every width had {LEAST_ROUNDS} rounds of starts; ReLU networks that fit may differ from the "
            "function, so that no more are made"
        )
    few = _undetermined(hunt, max_width)
    return (
        f"The samples are too few to determine {'a network' if len(few) > 1 else 'one'} of "
        f"width{'s' * (len(few) > 1)} {ranges(few)}, so that {'these' if len(few) > 1 else 'it'} had no more "
        f"than {LEAST_ROUNDS} rounds of starts"
        + ("" if len(few) == max_width else ", and the share of the budget for the others is spent")
    )


def where(domain: Domain, sampled: bool) -> str:
    """A text that says how fresh points are drawn."""
    return "fresh points of the sampler" if sampled else f"fresh points, uniform on {domain.name}"
