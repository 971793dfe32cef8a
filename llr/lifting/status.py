"""Whether the tangent functions of a wide network lie in the span of those of a narrow one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

import torch
from flint import arb, arb_mat, fmpq
from torch import Tensor, nn

from llr.inputs.accept import a_module, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_seed, check_int
from llr.lifting.pair import Pair
from llr.lifting.ranks import RankBounds, rank_bounds
from llr.linalg.balls import HIGHEST_BITS, LOWEST_BITS, precision
from llr.results import Record
from llr.results.html import Verdict
from llr.results.phrases import counted
from llr.theory.spans.formal import Formal
from llr.theory.spans.formal_span import combination
from llr.theory.spans.symbols import Vector, primitive

Agreement = Literal["exact", "rounding"]

_CHECK_BITS = 512  # precision at which J_wide = J_narrow C is compared entry by entry
_VALUE_BITS = 128
# Functions that differ by more than so many times the effect of rounding all parameters count as different.
_MARGIN = 100.0


@dataclass(frozen=True, eq=False, repr=False)
class LiftStatus(Record):
    """Whether T_wide is within T_narrow, for two networks of the same function; true if it is.

    Attributes:
        contained: True or False, proved for the networks as exact numbers; None if it is not decided, which
            `reason` explains.
        agreement: how the functions agree: "exact", which is proved, or to "rounding" on the samples.
        difference: the largest difference of the outputs on the samples; 0 if they agree exactly.
        narrow: bounds of dim T_narrow.
        wide: bounds of dim T_wide.
        joint: bounds of dim (T_wide + T_narrow), the rank of [J_wide, J_narrow].
        matrix: C of J_wide = J_narrow C, (P_narrow, P_wide), each entry rounded to float64; None if no C is
            known.
        deviation: an upper bound of the absolute values of the entries of J_wide - J_narrow C on the samples,
            for the exact C, computed at 512 bits; None without C.
        radius: the largest radius of the balls that enclose these entries; all balls contain 0.
        distance: the distance of the columns of J_wide from the span of those of J_narrow, in float64 and
            relative to the largest column; only computed if the functions agree to rounding.
        n_samples: the number of samples at which the Jacobians were evaluated.
        reason: what the verdict follows from.
    """

    contained: bool | None
    agreement: Agreement
    difference: float
    narrow: RankBounds
    wide: RankBounds
    joint: RankBounds
    matrix: Tensor | None
    deviation: float | None
    radius: float | None
    distance: float | None
    n_samples: int
    reason: str

    _order = (
        "0 <= difference",
        "0 <= deviation",
        "0 <= radius",
        "0 <= distance",
    )
    _long = ("matrix",)
    _also = ("proved",)

    @property
    def proved(self) -> bool:
        """Whether the verdict is proved for these networks, including the equality of the functions."""
        return self.contained is not None and self.agreement == "exact"

    def __bool__(self) -> bool:
        return self.contained is True

    def __str__(self) -> str:
        """The verdict, the ranks, and what the verdict follows from."""
        verdict = {
            True: "contained: critical for every sample for which the narrow network is",
            False: "not contained: critical for special samples only",
            None: "undecided",
        }[self.contained]
        same = "exactly" if self.agreement == "exact" else f"to {self.difference:.1e}"
        return (
            f"{verdict} ({'proved' if self.proved else 'not proved'})\n"
            f"  ranks {self.narrow} / {self.wide} / {self.joint} (narrow / wide / joint); functions equal "
            f"{same}\n  {self.reason}"
        )

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield (
            self.agreement != "exact" or self.difference == 0,
            "difference 0 for an exact agreement",
        )
        grown = self.joint.lower > self.narrow.upper
        yield not (self.contained and grown), "joint to be no larger than narrow where contained"
        same = self.joint.upper <= self.narrow.lower
        yield (
            not (self.contained is False and same),
            "joint to be larger than narrow where not contained",
        )

    def _verdict(self) -> Verdict:
        if self.contained is None:
            return "undecided", "doubt"
        words = "contained" if self.contained else "not contained"
        return words + (", proved" if self.proved else ""), "good" if self.contained else "bad"

    def _facts(self) -> dict[str, object]:
        bounds = {name: str(getattr(self, name)) for name in ("narrow", "wide", "joint")}
        return super()._facts() | {f"rank, {name}": value for name, value in bounds.items()}


@takes(narrow=a_module, wide=a_module, x=valued, seed=a_seed)
@outside_inference_mode
def lift_status(
    narrow: nn.Module,
    wide: nn.Module,
    x: Tensor | None = None,
    *,
    bits: int = 64,
    max_bits: int = 2048,
    seed: int = 0,
) -> LiftStatus:
    """Whether a wide network is critical on every sample on which the narrow network is.

    The gradient of any loss is J'e, and both networks have the same outputs, so the same e. The wide network
    is critical with the narrow one, for all samples and targets, if and only if its tangent
    functions are combinations of the narrow network's: T_wide within T_narrow.

    Containment is proved by the matrix C of J_wide = J_narrow C. It is found in exact arithmetic as an
    identity of functions, and checked on the samples in ball arithmetic. For one hidden layer, containment
    may also be proved by the closed form of the dimension of both together. That containment fails is proved
    by a determinant: the rank of [J_wide, J_narrow] is larger than dim T_narrow can be.

    Args:
        narrow: an MLP of any depth, or a convolution of :mod:`llr.models`; its parameters are taken as exact
            numbers.
        wide: another network that represents the same function.
        x: (n, ...) samples to evaluate at, away from the kinks of ReLU; default: standard normal ones, more
            than both networks have parameters.
        bits: the first precision of the ranks; it is doubled until the bounds are equal or stop growing.
        max_bits: the last precision.
        seed: the seed of the default samples.

    Returns:
        A `LiftStatus`, true if T_wide is within T_narrow. If the functions agree to rounding only, the
        tangent functions may do so, too. The verdict is then None unless the tangent functions differ
        clearly.

    Raises:
        TypeError: a model that is no module.
        ValueError: networks of different functions, inputs or outputs; a matrix factorization or another
            structure without a theory in :mod:`llr.theory`; frozen or non-finite parameters; samples on a
            kink of ReLU, or beyond the threshold of softplus; networks too wide and deep to be written out;
            precisions out of range.

    Source: docs/theory.md, Theorem 7.1; Zhang et al., "Embedding Principle of Loss Landscape of Deep Neural
    Networks" (2021).

    Example:
        >>> import torch
        >>> from llr.lifting import lift_status
        >>> from llr.models import TwoLayer
        >>> w, a = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.25], [0.5]])
        >>> narrow = TwoLayer.of(w[:1], None, a.sum(0, keepdim=True))
        >>> print(lift_status(narrow, TwoLayer.of(w, None, a)))
        contained: critical for every sample for which the narrow network is (proved)
          ranks 2 / 2 / 2 (narrow / wide / joint); functions equal exactly
          J_wide = J_narrow C for an exact C, also entry by entry in balls on 22 samples
    """
    check_int("bits", bits, LOWEST_BITS, HIGHEST_BITS)
    check_int("max_bits", max_bits, bits, HIGHEST_BITS)
    pair = Pair.of(narrow, wide, x, seed)
    agreement, difference = _agreement(pair)
    found = combination(pair.two.tangents, pair.one.tangents)
    C = None if found is None else _of_functions(pair, found)
    deviation, radius = (None, None) if C is None else _check(pair, C)

    jacobians = cache(lambda bits: [network.jacobian(bits) for network in pair.networks])
    matrices: list[Callable[[int], arb_mat]] = [
        lambda bits: jacobians(bits)[0],
        lambda bits: jacobians(bits)[1],
        lambda bits: _beside(*reversed(jacobians(bits))),
    ]
    ranks = [
        rank_bounds(matrix, upper, bits=bits, max_bits=max_bits)
        for matrix, upper in zip(matrices, pair.upper_bounds(), strict=True)
    ]
    distance = None if agreement == "exact" else _distance(*(_floats(J) for J in jacobians(bits)))
    contained, reason = _verdict(ranks[0], ranks[2], C is not None, pair, difference, distance)
    return LiftStatus(
        contained=contained,
        agreement=agreement,
        difference=difference,
        narrow=ranks[0],
        wide=ranks[1],
        joint=ranks[2],
        matrix=None if C is None else _floats(C),
        deviation=deviation,
        radius=radius,
        distance=distance,
        n_samples=pair.n_samples,
        reason=reason,
    )


def _agreement(pair: Pair) -> tuple[Agreement, float]:
    """How the functions agree, and by how much they differ on the samples."""
    if pair.one.outputs == pair.two.outputs:
        return "exact", 0.0
    allowed = 0.0
    for network in pair.networks:
        theta = torch.cat([v.detach().flatten() for v in network.problem.columns.values.values()])
        allowed += float((_floats(network.jacobian(LOWEST_BITS)).abs() @ theta.abs().cpu()).max())
    with precision(_VALUE_BITS):
        outputs = [network.values(_VALUE_BITS) for network in pair.networks]
        found = float(max(v.abs_upper() for v in (outputs[1] - outputs[0]).entries()))
    allowed *= _MARGIN * pair.eps
    if not found <= allowed:
        raise ValueError(
            f"the outputs of the networks differ by up to {found:.3g} on {pair.n_samples} samples, where "
            f"rounding their parameters explains at most {allowed:.1g}; expected networks of one function"
        )
    return "rounding", found


def _of_functions(pair: Pair, found: Sequence[Sequence[Fraction]]) -> arb_mat:
    """The C of J_wide = J_narrow C in balls.

    `found` combines formal tangent functions, which omit constant factors; these are restored here.
    """
    with precision(_CHECK_BITS):
        narrow, wide = ([_factor(form, v) for v in form.tangents] for form in (pair.one, pair.two))
        entries = [
            wide[i] * arb(fmpq(found[i][j].numerator, found[i][j].denominator)) / narrow[j]
            for j in range(len(narrow))
            for i in range(len(wide))
        ]
        return arb_mat(len(narrow), len(wide), entries)


def _factor(form: Formal, v: Vector) -> arb:
    return form.symbols.value({primitive(v)[0]: Fraction(1)})


def _check(pair: Pair, C: arb_mat) -> tuple[float, float]:
    """The largest absolute value and the largest radius of the entries of J_wide - J_narrow C."""
    narrow, wide = (network.jacobian(_CHECK_BITS) for network in pair.networks)
    with precision(_CHECK_BITS):
        entries = (wide - narrow * C).entries()
        if not all(v.contains(0) for v in entries):
            raise RuntimeError(
                "J_wide differs from J_narrow C, which is certain, but formally both are the same: this is a "
                "mistake in llr, please report it with both models"
            )
        largest = max((v.abs_upper() for v in entries), default=arb(0))
        return float(largest), float(max((v.rad() for v in entries), default=arb(0)))


def _beside(A: arb_mat, B: arb_mat) -> arb_mat:
    rows = [u + v for u, v in zip(A.tolist(), B.tolist(), strict=True)]
    return arb_mat(len(rows), A.ncols() + B.ncols(), [v for row in rows for v in row])


def _floats(J: arb_mat) -> Tensor:
    values = [float(v) for v in J.entries()]
    return torch.tensor(values, dtype=torch.float64).view(J.nrows(), J.ncols())


def _distance(narrow: Tensor, wide: Tensor) -> float:
    """How far columns of `wide` are from the span of those of `narrow`, relative to the largest."""
    U, values, _ = torch.linalg.svd(narrow, full_matrices=False)
    U = U[:, values > max(narrow.shape) * torch.finfo(torch.float64).eps * values[0]]
    largest = float(wide.norm(dim=0).max())
    return float((wide - U @ (U.mT @ wide)).norm(dim=0).max()) / largest if largest else 0.0


def _verdict(
    narrow: RankBounds,
    joint: RankBounds,
    combined: bool,
    pair: Pair,
    difference: float,
    distance: float | None,
) -> tuple[bool | None, str]:
    """Whether T_wide is within T_narrow, and how that is known."""
    if combined:
        return True, (
            "J_wide = J_narrow C for an exact C, also entry by entry in balls on "
            f"{counted(pair.n_samples, 'sample')}"
        )
    if joint.upper <= narrow.lower:
        return True, (
            f"dim (T_wide + T_narrow) is {joint.upper} by its closed form, and the rank of J_narrow is at "
            f"least {narrow.lower}"
        )
    if joint.lower <= narrow.upper:
        return None, (
            f"no C was found, and the proved rank of [J_wide, J_narrow], {joint.lower}, is not larger than "
            f"{narrow.upper}, the upper bound of dim T_narrow"
        )
    apart = math.sqrt(pair.eps)
    if distance is not None and distance <= apart:
        return None, (
            f"the functions differ by up to {difference:.1e} and the tangent functions by {distance:.1e}. "
            "For the exact parameters T_wide is not contained, but rounding may be the reason; take "
            "parameters that floating point holds exactly"
        )
    return False, (
        f"the rank of [J_wide, J_narrow] is at least {joint.lower}, and dim T_narrow at most {narrow.upper}"
    )
