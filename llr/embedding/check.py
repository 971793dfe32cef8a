"""Whether two networks have the same function, and which tangent directions only the wide one has."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from flint import arb_mat, fmpq_mat
from torch import Tensor, nn

from llr.embedding.exceptions import exceptions
from llr.embedding.network import Network, read
from llr.embedding.rounding import before_rounding, rounding_of
from llr.exact.kinks import off_analytic
from llr.exact.network import read_network
from llr.inputs.accept import a_module, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_seed
from llr.landscape.critical_targets import error_of, relative_gradients
from llr.linalg.balls import Number
from llr.linalg.elimination import Scaled, find_pivots, prove
from llr.linalg.integers import exact_rank, integer_rows
from llr.ranks.certificates.certify import certify
from llr.results import Record, html
from llr.results.phrases import there_are
from llr.theory.spans.formal import Formal, formal
from llr.theory.spans.formal_span import contained, formal_rank
from llr.theory.spans.symbols import Symbols

_BITS, _MOST_BITS = 64, 4096
# At this precision, a rank that has stopped growing is not limited by the precision.
_ENOUGH_BITS = 512
# Functions of torch that are not analytic on some samples: on kinks of ReLU, and beyond 20 for softplus.
_PIECEWISE = ("relu", "softplus")


@dataclass(frozen=True, repr=False)
class Bounds(Record):
    """Proved bounds of a dimension.

    Attributes:
        lower: a certified rank on the samples.
        upper: the rank of the tangent functions in symbols.
    """

    lower: int
    upper: int

    _order = ("lower <= upper",)

    @property
    def exact(self) -> bool:
        """Whether both bounds agree."""
        return self.lower == self.upper

    def __str__(self) -> str:
        return str(self.upper) if self.exact else f"{self.lower} to {self.upper}"


@dataclass(frozen=True, repr=False)
class Check(Record):
    """The comparison of a wide network with a narrow one; true if functions and tangent spaces are equal.

    Attributes:
        same_function: whether the outputs agree on the samples, to rounding.
        proved_same: whether both are proved to be one function of real numbers, for the exact parameters.
        max_difference: the largest difference of the outputs.
        critical: whether the wide network is critical for targets for which the narrow one is critical; None
            if there are no more observations than the narrow rank, so that only zero residuals are critical.
        narrow_gradient: ||J'e|| / (sigma_1 ||e||) of the narrow network with these targets.
        wide_gradient: the same of the wide network.
        narrow: dim T of the narrow network.
        wide: dim T of the wide one.
        joint: dim of the sum of both, the rank of [J_wide, J_narrow].
        tangent: "equal", "larger" (the wide tangent space contains the narrow one), "smaller", "neither"
            (none contains the other), or "undecided".
        excess: how many directions the wide tangent space has in addition to the narrow one.
        missing: how many directions of the narrow tangent space the wide one lacks.
        reasons: what is new in the wide network, as text, if it has additional directions.
        n_observations: samples times outputs.
    """

    same_function: bool
    proved_same: bool
    max_difference: float
    critical: bool | None
    narrow_gradient: float
    wide_gradient: float
    narrow: Bounds
    wide: Bounds
    joint: Bounds
    tangent: str
    excess: Bounds
    missing: Bounds
    reasons: tuple[str, ...]
    n_observations: int

    _order = (
        "0 <= max_difference",
        "0 <= narrow_gradient",
        "0 <= wide_gradient",
    )
    _also = ("verdict",)

    def __bool__(self) -> bool:
        return self.same_function and self.tangent == "equal"

    @property
    def verdict(self) -> str:
        """The relation of the tangent spaces as text, such as "larger by 2"."""
        if self.tangent == "larger":
            return f"larger by {self.excess}"
        if self.tangent == "smaller":
            return f"smaller by {self.missing}"
        if self.tangent == "neither":
            return f"neither contains the other: {self.excess} new directions, {self.missing} lost"
        if self.tangent == "undecided" and self.n_observations < self.joint.upper:
            return (
                f"undecided: {there_are(self.n_observations, 'observation')}, and the dimensions may be "
                f"{self.joint.upper}; take more samples"
            )
        return self.tangent

    def __str__(self) -> str:
        """Function, criticality, ranks, and a line for each reason."""
        how = "proved" if self.proved_same else f"to {self.max_difference:.2g}"
        same = f"same function ({how})" if self.same_function else "different functions"
        kept = {
            True: "criticality kept",
            False: "criticality lost",
            None: "too few samples for criticality",
        }
        head = (
            f"{same}, {kept[self.critical]}, tangent space {self.verdict} (narrow {self.narrow}, wide "
            f"{self.wide}, joint {self.joint})"
        )
        return "\n".join([head, *(f"  {reason}" for reason in self.reasons)])

    def _rules(self) -> Iterator[tuple[bool, str]]:
        found = _relation(self.excess, self.missing)
        yield self.tangent == found, f"tangent to be {found!r} by excess and missing"
        for name, bounds, part in (
            ("excess", self.excess, self.narrow),
            ("missing", self.missing, self.wide),
        ):
            fits = bounds in (Bounds(0, 0), _gap(self.joint, part))
            yield fits, f"{name} to be the difference of the dimensions, or 0"

    def _verdict(self) -> html.Verdict:
        if not self.same_function:
            return "different functions", "bad"
        tone: html.Tone = "good" if self else "doubt" if self.tangent == "undecided" else "bad"
        return f"tangent space {self.verdict}", tone

    def _facts(self) -> dict[str, object]:
        bounds = {name: str(getattr(self, name)) for name in ("narrow", "wide", "joint")}
        return super()._facts() | {f"dim T, {name}": value for name, value in bounds.items()}

    def _table(self) -> html.Table | None:
        return (("reasons",), [(reason,) for reason in self.reasons]) if self.reasons else None


@takes(narrow=a_module, wide=a_module, x=valued, y=valued, seed=a_seed)
@outside_inference_mode
def check(
    narrow: nn.Module, wide: nn.Module, x: Tensor, y: Tensor | None = None, *, seed: int = 0
) -> Check:
    """Whether a wide network is an embedding of a narrow one, and whether it is as easy to recover.

    The check compares the functions, their critical points and their tangent spaces. A critical point stays
    critical for all samples and targets if and only if the wide tangent space is contained in the narrow one.
    The number of samples for local recovery stays the same if the tangent spaces are equal. Upper bounds of
    dimensions are ranks of formal tangent functions, lower bounds are certified ranks on the samples.
    Containment is proved in symbols; that it fails is proved by the ranks. If wide biases compensate for
    constants such as tanh(1), the functions are equal to rounding only. The narrow tangent space is then that
    of the network before its biases were rounded.

    Args:
        narrow: an MLP as `llr.jacobian` recognises it, or a ``Conv1dTwoLayer``.
        wide: another model with the same inputs and outputs; usually, but not necessarily, with more neurons.
        x: (n, ...) samples; with more observations than the joint dimension nothing stays undecided.
        y: targets, of the shape of the outputs. Criticality is tested at the targets nearest to `y` for
            which the narrow network is at a critical point of its squared error; default: random targets. The
            test is in float64 and misses directions that rounding hides; the ranks do not.
        seed: the seed of random targets.

    Returns:
        A `Check`.

    Raises:
        TypeError: models that are no modules; samples or targets that are no floating-point tensors.
        ValueError: models that :func:`llr.embedding.split` refuses; different inputs or outputs; samples or
            targets of wrong shapes, that are not finite, or at which a closed form does not hold (on a kink
            of ReLU, beyond 20 for softplus); networks that do not fit the memory budget.

    Source: docs/theory.md, 10.1 to 10.4 and Theorem 6.2.

    Example:
        >>> import torch
        >>> from llr.embedding import check, null, split
        >>> from llr.models import TwoLayer
        >>> narrow, x = TwoLayer(1, 2).double(), torch.linspace(-2, 2, 20)[:, None].double()
        >>> print(check(narrow, split(narrow, 0, 0, share=2)[0], x).verdict)
        equal
        >>> print(check(narrow, null(narrow, 0, incoming=[0.5])[0], x))
        same function (proved), criticality lost, tangent space larger by 1 (narrow 6, wide 7, joint 7)
          layer 0: neuron 2 is dead, but has new incoming weights: a new signal
    """
    below, above = read(narrow)[0], read(wide)[0]
    ends = [(net.widths[0], net.widths[-1]) for net in (below, above)]
    if ends[0] != ends[1]:
        raise ValueError(
            f"narrow has {ends[0][0]} inputs and {ends[0][1]} outputs, wide {ends[1][0]} and {ends[1][1]}; "
            "expected the same"
        )
    x = _samples(x, below)
    small, large = (copy.deepcopy(model).cpu().double().eval() for model in (narrow, wide))
    with torch.no_grad():
        out, other = (model(x).reshape(len(x), -1) for model in (small, large))
    difference = float((out - other).abs().max())
    if y is None:
        generator = torch.Generator().manual_seed(seed)
        error = torch.randn(out.numel(), generator=generator, dtype=out.dtype)
    else:
        error = error_of(out, y)
    narrow_gradient, wide_gradient, critical = relative_gradients(small, large, x, error)
    symbols = Symbols()
    functions = formal(small, symbols), formal(large, symbols)
    same = difference <= rounding_of(x.reshape(len(x), -1), below, above)
    proved = functions[0].outputs == functions[1].outputs
    rounded = same and not proved and len(below.weights) == len(above.weights)
    if rounded:
        functions = before_rounding(small, below, functions[1]), functions[1]
    ranks, inside = _dimensions(small, large, x, *functions, rounded)
    excess = Bounds(0, 0) if inside[0] else _gap(ranks[2], ranks[0])
    missing = Bounds(0, 0) if inside[1] else _gap(ranks[2], ranks[1])
    reasons = exceptions(below, above, *functions) if excess.upper else ()
    return Check(
        same_function=same,
        proved_same=proved,
        max_difference=difference,
        critical=critical,
        narrow_gradient=narrow_gradient,
        wide_gradient=wide_gradient,
        narrow=ranks[0],
        wide=ranks[1],
        joint=ranks[2],
        tangent=_relation(excess, missing),
        excess=excess,
        missing=missing,
        reasons=reasons,
        n_observations=out.numel(),
    )


def _dimensions(
    narrow: nn.Module, wide: nn.Module, x: Tensor, below: Formal, above: Formal, rounded: bool
) -> tuple[tuple[Bounds, Bounds, Bounds], tuple[bool, bool]]:
    """dim T of both and of their sum; whether wide is in narrow, and narrow in wide.

    If `rounded`, the narrow model only approximates the network in symbols, and the rank of both together is
    not computed from it.
    """
    inside = (False, False)
    most = [below.net.n_params, above.net.n_params]
    total = sum(most)
    if _written_out(below) and _written_out(above):
        inside = (
            contained(above.tangents, below.tangents),
            contained(below.tangents, above.tangents),
        )
        most = [below.rank, above.rank]
        total = formal_rank([*above.tangents, *below.tangents])
    lowers: list[int] = []
    for model, net, upper in zip((narrow, wide), (below, above), most, strict=True):
        # A contained space does not have a larger rank; this holds on these samples, too.
        known = lowers[0] if lowers and inside[1] else 0
        lowers.append(known if known == upper else _certified(model, net, x, upper))
    ranks = [Bounds(lower, upper) for lower, upper in zip(lowers, most, strict=True)]
    lower = max(lowers)
    if lower < total and not rounded and not any(inside):
        lower = max(lower, _joint_rank(wide, narrow, x, total))
    return (ranks[0], ranks[1], Bounds(lower, total)), inside


def _certified(model: nn.Module, net: Formal, x: Tensor, upper: int) -> int:
    """A certified rank on the samples, which is at most dim T where the formulas hold."""
    piecewise = getattr(net.net, "activation", "") in _PIECEWISE
    if piecewise and (where := off_analytic(read_network(model, x))):
        raise ValueError(f"{where}; take other samples")
    return certify(model, x, upper=upper, max_bits=_MOST_BITS).rank


def _written_out(net: Formal) -> bool:
    """Whether the network is small enough to write out its tangent functions."""
    try:
        return bool(net.tangents)
    except ValueError:
        return False


def _joint_rank(wide: nn.Module, narrow: nn.Module, x: Tensor, goal: int) -> int:
    """A certified lower bound of the rank of [J_wide, J_narrow]."""
    networks = [read_network(model, x) for model in (wide, narrow)]
    rows, columns = networks[0].n_rows, sum(network.n_params for network in networks)
    if all(network.rational for network in networks):
        J = fmpq_mat(rows, columns, _beside(*(net.rational_jacobian() for net in networks)))
        return exact_rank(integer_rows(J)[0])[0]
    best, bits = 0, _BITS
    while True:
        A = Scaled(arb_mat(rows, columns, _beside(*(net.jacobian(bits) for net in networks))), bits)
        before, best = best, max(best, prove(A, find_pivots(A))[0])
        if best >= min(goal, rows) or bits >= _MOST_BITS:
            return best
        if best == before and bits >= _ENOUGH_BITS:
            return best
        bits *= 2


def _beside(one: Any, two: Any) -> list[Number]:
    """The entries of two matrices, side by side."""
    return [v for rows in zip(one.tolist(), two.tolist(), strict=True) for row in rows for v in row]


def _gap(joint: Bounds, part: Bounds) -> Bounds:
    """By how much the dimension of a sum exceeds that of a part."""
    return Bounds(max(0, joint.lower - part.upper), max(0, joint.upper - part.lower))


def _relation(excess: Bounds, missing: Bounds) -> str:
    if excess.upper == 0 and missing.upper == 0:
        return "equal"
    if excess.lower > 0 and missing.lower > 0:
        return "neither"
    if excess.lower > 0 and missing.upper == 0:
        return "larger"
    if missing.lower > 0 and excess.upper == 0:
        return "smaller"
    return "undecided"


def _samples(x: Tensor, network: Network) -> Tensor:
    """The samples in float64 on the CPU, checked."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {found}; expected a floating-point tensor of samples")
    d = network.widths[0]
    fits = x.dim() >= 2 and x[0].numel() == d if len(x.shape) and len(x) else False
    if not fits or (x.dim() > 2 and not network.flattens):
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (n, {d}), at least one sample")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x has NaN or infinity; expected finite samples")
    return x.detach().cpu().double()
