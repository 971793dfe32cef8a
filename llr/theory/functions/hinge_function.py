"""Model ranks of functions of softplus, GELU, SiLU and ReLU, whose reflections leave affine functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import combinations, product
from math import comb
from typing import Literal

from llr.theory.functions.neuron_sum import NeuronSum, without_constants
from llr.theory.functions.prices import (
    Rank,
    makes_constants,
    not_in_width,
    of_neurons,
    require_constant_neuron,
)
from llr.theory.functions.subset_sums import is_sum_modulo, reachable
from llr.theory.result import Term
from llr.theory.structures.structure import Matrix, Row, TwoLayerNet, outer, rank, unit_vectors
from llr.theory.tangents.two_layer import constants, kink

# The most plans for the affine part that are tried one by one, which takes a few seconds.
_PLANS = 600
# Up to this many neurons all reflections are tried before pairs make the rest.
_REFLECTED = 6

Constant = Literal["none", "flat", "along", "new"]
"""The neuron with w = 0: there is none; it is at a zero of the slope (GELU, SiLU); its outgoing weight is a
combination of those of the twins; it has any outgoing weight."""


@dataclass(frozen=True)
class _Plan:
    """A plan to make the part of the affine function that reflections do not make, with spare neurons."""

    extra: int
    """The dimensions that the plan adds to dim T."""
    twins: tuple[int, ...] = ()
    """Neurons in both orientations, with parallel outgoing weights: any multiple of alpha_g z_g."""
    splits: tuple[int, ...] = ()
    """Neurons in both orientations, with any outgoing weights: R^q z_g."""
    free: int = 0
    """For one output: the number of twins, which may be any."""
    constant: Constant = "none"
    pairs: int = 0
    """Pairs of neurons that cancel except for an affine function: any vector times any affine function."""

    @property
    def text(self) -> str:
        parts = []
        if self.twins or self.free:
            parts.append("neurons in both orientations")
        if self.splits:
            parts.append("neurons in both orientations with outgoing weights of rank 2")
        if self.constant == "flat":
            parts.append("a neuron with w = 0 where the slope is zero")
        elif self.constant != "none":
            parts.append("a neuron with w = 0")
        if self.pairs:
            pairs = "a pair" if self.pairs == 1 else f"{self.pairs} pairs"
            parts.append(f"{pairs} of neurons that leave an affine function only")
        return f"affine functions, from {' and '.join(parts)}"


def hinge_rank(f: NeuronSum, net: TwoLayerNet, known: int | None) -> Rank:
    """Bounds of the smallest dim T with the function in the architecture `net`.

    The affine part of f costs nothing if reflections of its neurons make it. The rest comes from neurons in
    both orientations, a neuron with w = 0, and pairs that cancel each other. The cheapest plan is found for
    one output, and also for several outputs unless pairs compete with other plans.

    Args:
        f: the function.
        net: the architecture.
        known: a dimension with which the architecture certainly represents f; None if there is none.

    Returns:
        A lower bound, and the summands of an upper bound; equal if the cheapest plan is known.

    Raises:
        ValueError: the function does not fit, or llr cannot tell whether it does.

    Source: docs/theory.md, Theorem 2.4.
    """
    case = _Case(f, net)
    terms = of_neurons(f, net)
    base = sum(t.dimension for t in terms)
    if f.k == 0 and case.is_reached(_Plan(0)):
        if net.activation == "softplus" and net.c is None:
            terms.append(Term(net.q, "constants, the value of any neuron"))
        return sum(t.dimension for t in terms), terms
    if net.c is None and f.constant and not makes_constants(net):
        require_constant_neuron(f, net)
    plans, least_untried = case.plans()
    found, least = None, least_untried
    for plan in plans:
        reached = case.is_reached(plan)
        if reached:
            found = plan
            break
        if reached is None:
            least = _least(least, plan.extra)
    pairs = case.pairs()
    lower = _least(least, None if found is None else found.extra, case.least_with_pairs(pairs))
    best = min((p for p in (found, pairs) if p is not None), key=lambda p: p.extra, default=None)
    if known is not None and (best is None or known < base + best.extra):
        price = Term(known - base, "affine functions, as the target's own neurons make them")
        return base if lower is None else min(base + lower, known), [*terms, price]
    if best is None and lower is None:
        needs = "more neurons than there are besides its own to make its affine part"
        raise not_in_width(net, f"{f.k} neurons in the function and {needs}")
    if best is None or lower is None:
        raise ValueError(
            f"whether {net.m} neurons make the affine part of the target is more than llr can tell; give the "
            "architecture more neurons"
        )
    if best.extra:
        terms.append(Term(best.extra, best.text))
    return base + lower, terms


@dataclass(frozen=True)
class _Case:
    """A function and an architecture, and the plans for making the affine part."""

    f: NeuronSum
    net: TwoLayerNet

    @property
    def spare(self) -> int:
        return self.net.m - self.f.k

    @property
    def slopes(self) -> int:
        """The cost of another direction of outgoing weights in a group."""
        return self.net.d + self.net.beta - kink(self.net)

    @property
    def free_constants(self) -> bool:
        return self.net.c is not None

    @cached_property
    def forced(self) -> bool:
        """Whether only a neuron with w = 0 can make constants: all hyperplanes contain the origin."""
        return not self.free_constants and not self.net.beta and self.f.constant

    @cached_property
    def goal(self) -> Row:
        return tuple(-v for v in self.f.affine)

    @cached_property
    def hyperplanes(self) -> Matrix:
        return tuple((*w, b) for w, b in zip(self.f.w, self.f.b, strict=True))

    def is_reached(self, plan: _Plan) -> bool | None:
        """Whether the plan makes the affine part, together with reflections of the other neurons."""
        f, d, q = self.f, self.net.d, self.net.q
        goal, planes, further = self.goal, f.planes, f.further
        if plan.free or q == 1:
            if self.free_constants or plan.constant != "none":
                (goal,), planes, further = (
                    without_constants((goal,), d),
                    without_constants(planes, d),
                    (),
                )
            return reachable(goal, further, planes, plan.free)
        generators = [planes[g] for g in plan.twins]
        generators += [outer(e, self.hyperplanes[g]) for g in plan.splits for e in unit_vectors(q)]
        if self.free_constants or plan.constant in ("flat", "new"):
            generators += constants(self.net)
        elif plan.constant == "along":
            one = unit_vectors(d + 1)[-1]
            generators += [outer(f.alpha[g], one) for g in plan.twins]
        rest = [v for g, v in enumerate(planes) if g not in (*plan.twins, *plan.splits)]
        return is_sum_modulo(goal, further, rest, generators)

    def plans(self) -> tuple[list[_Plan], int | None]:
        """Plans without pairs, the cheapest first, and a lower bound of the cost of all omitted plans."""
        if self.net.q == 1:
            found = list(self._plans_of_one_output())
            return sorted(found, key=lambda p: p.extra), None
        k, most = self.f.k, 0
        sizes = [comb(k, t) * 2**t * len(self._constants()) for t in range(min(k, self.spare) + 1)]
        while most + 1 < len(sizes) and sum(sizes[: most + 2]) <= _PLANS:
            most += 1
        found = [p for t in range(most + 1) for p in self._plans_of_size(t)]
        left_out = None
        if most + 1 < len(
            sizes
        ):  # every omitted plan contains one of the largest plans here, and one of size 1
            left_out = min(p.extra for p in found if len(p.twins) + len(p.splits) == most)
            one = self.hyperplanes[:1]
            split = affine_size(self.net, one, 0, False) + self.slopes
            left_out = max(left_out, min(affine_size(self.net, one, 1, False), split))
        return sorted(found, key=lambda p: p.extra), left_out

    def _constants(self) -> tuple[Constant, ...]:
        """The kinds of neurons with w = 0 that are possible."""
        if self.free_constants or not makes_constants(self.net):
            return ("none",)
        if self.net.activation in ("gelu", "silu"):
            return ("none", "flat")
        return ("none", "along", "new")

    def _plans_of_one_output(self) -> Iterator[_Plan]:
        for constant in self._constants():
            if constant == "along":
                continue
            neurons = int(constant != "none")
            left = self.spare - neurons
            if left < 0:
                continue
            size = affine_size(self.net, (), int(constant == "new"), bool(neurons))
            yield _Plan(size, constant=constant)
            free = min(left, self.f.k)
            if free:
                size = affine_size(self.net, self.hyperplanes[:1], 1, bool(neurons))
                yield _Plan(size, free=free, constant=constant)

    def _plans_of_size(self, size: int) -> Iterator[_Plan]:
        for chosen in combinations(range(self.f.k), size):
            for split in product((False, True), repeat=size):
                twins = tuple(g for g, s in zip(chosen, split, strict=True) if not s)
                splits = tuple(g for g, s in zip(chosen, split, strict=True) if s)
                for constant in self._constants():
                    if size + (constant != "none") > self.spare:
                        continue
                    directions = rank([self.f.alpha[g] for g in twins])
                    if constant == "along" and not twins:
                        continue
                    if constant == "new":
                        directions = min(directions + 1, self.net.q)
                    planes = [self.hyperplanes[g] for g in chosen]
                    extra = affine_size(self.net, planes, directions, constant != "none")
                    extra += len(splits) * self.slopes
                    yield _Plan(extra, twins, splits, constant=constant)

    def least_with_pairs(self, pairs: _Plan | None) -> int | None:
        """A lower bound of the cost of a plan with pairs; None if there is no such plan.

        If the function has no neurons, only pairs make linear functions, and the smallest number of pairs is
        best. If a single pair takes all spare neurons, only reflections compete with it.
        """
        remaining = self.spare - 2 - self.forced
        if remaining < 0:
            return None
        if self.f.k == 0 or (remaining == 0 and self.f.k <= _REFLECTED):
            return None if pairs is None else pairs.extra
        some = unit_vectors(self.net.d + 1)[:1]
        return self.net.q + self.slopes + affine_size(self.net, some, 1, self.forced)

    def pairs(self) -> _Plan | None:
        """The cheapest plan with pairs and a neuron with w = 0, after reflections; None if none fits."""
        k = self.f.k
        chosen = product((False, True), repeat=k) if k <= _REFLECTED else [(False,) * k]
        found = [self._pairs_after(flips) for flips in chosen]
        return min((p for p in found if p is not None), key=lambda p: p.extra, default=None)

    def _pairs_after(self, flips: Sequence[bool]) -> _Plan | None:
        d, q = self.net.d, self.net.q
        taken = [v for v, flip in zip(self.f.planes, flips, strict=True) if flip]
        left = [sum(column, Fraction(0)) for column in zip(self.f.affine, *taken, strict=True)]
        rows = [left[j * (d + 1) : (j + 1) * (d + 1)] for j in range(q)]
        linear = [(*row[:d], Fraction(0)) for row in rows]
        columns = list(zip(*linear, strict=True))
        pairs = rank(linear)
        if not pairs:
            return None
        last = [[row[d] for row in rows], *(v[d :: d + 1] for v in self.f.further)]
        within = rank([*columns, *last]) == pairs
        constant: Constant = "none"
        directions = pairs
        if not self.free_constants and (not within if self.net.beta else self.f.constant):
            constant = "flat" if "flat" in self._constants() else "new"
            directions += constant == "new" and not within
        if 2 * pairs + (constant != "none") > self.spare:
            return None
        extra = pairs * (q + self.slopes)
        extra += affine_size(self.net, linear, directions, constant != "none")
        return _Plan(extra, constant=constant, pairs=pairs)


def affine_size(net: TwoLayerNet, planes: Sequence[Row], directions: int, one: bool) -> int:
    """dim B without the output bias: R^q times the planes and, if `one`, 1; and `directions` times L."""
    free = net.c is not None
    rows = list(planes)
    if (one or free) and net.beta:
        rows.append(unit_vectors(net.d + 1)[-1])
    wide = rank(rows)
    size = net.q * wide + directions * (net.d + net.beta - wide)
    if (one or free) and not net.beta:
        size += net.q
    return size - (net.q if free else 0)


def _least(*values: int | None) -> int | None:
    return min((v for v in values if v is not None), default=None)
