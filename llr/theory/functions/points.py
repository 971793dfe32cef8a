"""The number of sample points that a model with several outputs needs, at its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, islice
from typing import Literal

import torch
from flint import fmpq, fmpq_mat
from torch import nn

from llr.exact import network as exact
from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.linalg.elimination import Scaled, find_pivots, prove
from llr.results import Record
from llr.results.html import Verdict
from llr.results.phrases import counted
from llr.theory.result import Dimension
from llr.theory.structures.groups import group_neurons
from llr.theory.structures.structure import (
    LinearNet,
    Matrix,
    Row,
    Structure,
    TwoLayerNet,
    rank,
    read_structure,
    warn_of_near_copies,
)
from llr.theory.tangents.linear import surrounding_ranks
from llr.theory.tangents.tangent import dimension_of, incoming
from llr.theory.tangents.two_layer import has_value, two_layer_tangent

# At most this many subspaces of the outputs, divided by the number of neurons, are examined, smallest first.
_SUBSPACES = 20_000
# Jacobians with more entries are not ranked in balls; at this size it takes seconds.
_ENTRIES = 10_000
_BITS = (64, 128, 256, 512)
_SAMPLES = 3
# Beyond 20 torch's softplus is the identity and not the analytic function.
_SOFTPLUS_MOST = 19


@dataclass(frozen=True, repr=False)
class Points(Record):
    """The number of sample points needed for the LLR guarantee.

    Attributes:
        lower: no sample of fewer points has the LLR guarantee.
        upper: some sample of this many points has it; for an analytic model, almost every such sample.
        status: "exact" if these are equal, "bounds" otherwise.
        reason: the reasons for `lower` and `upper`, as text.
        outputs: q.
        dimension: dim T, a lower bound of n q.
    """

    lower: int
    upper: int
    status: Literal["exact", "bounds"]
    reason: str
    outputs: int
    dimension: Dimension

    _order = ("lower <= upper",)

    def __int__(self) -> int:
        if self.status != "exact":
            raise ValueError(
                f"the points are between {self.lower} and {self.upper}, no single number: {self.reason}; "
                "read .lower and .upper"
            )
        return self.lower

    def __str__(self) -> str:
        """The number and its reason."""
        value = counted(self.lower, "point")
        if self.status != "exact":
            value = f"{self.lower} to {counted(self.upper, 'point')}"
        of = f"{counted(self.outputs, 'output')} each"
        return f"{value} of {of} ({self.reason}; Proposition 2.7)\n{self.dimension}"

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield (
            (self.status == "exact") == (self.lower == self.upper),
            "status exact if lower is upper",
        )

    def _verdict(self) -> Verdict:
        return self.status, "good" if self.status == "exact" else "doubt"


@takes(model=a_module)
@outside_inference_mode
def points_needed(model: nn.Module) -> Points:
    """The smallest number of sample points with which a model has the LLR guarantee at its parameters.

    A point gives q observations, but not all are useful: for functions of T with values in a subspace U of
    the outputs, a point gives only dim U numbers, so that for every U

        n >= dim (functions of T with values in U) / dim U.

    The maximum over the spans of outgoing weights is a proved lower bound. That this many random points
    suffice is observed on random networks and is not a theorem. If the model is small enough, a determinant
    in balls on random points proves it for this model.

    Args:
        model: as for :func:`llr.theory.tangent_dimension`.

    Returns:
        The status is "exact" by closed form for linear networks and for one output with a known dim T, and if
        the determinant proves the number, also for deep networks; "bounds" otherwise.

    Raises:
        TypeError: `model` is not a module.
        ValueError: what :func:`llr.theory.tangent_dimension` refuses.

    Warns:
        UserWarning: two neurons are nearly, but not exactly, equal.

    Source: docs/theory.md, Proposition 2.7.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.theory import points_needed, tangent_dimension
        >>> w, b = torch.tensor([[0.9], [-1.7]]), torch.tensor([0.3, 0.4])
        >>> parallel = TwoLayer.of(w, b, torch.tensor([[1.0, 2.0], [-2.0, -4.0]]))
        >>> int(tangent_dimension(parallel)), int(points_needed(parallel))
        (8, 6)
    """
    net = read_structure(model)
    warn_of_near_copies(incoming(net))
    size, q = dimension_of(net), _outputs(net)
    if isinstance(net, LinearNet):
        above, below = surrounding_ranks(net)
        grown = [q for p, q, old in zip(above, below, (0, *above), strict=False) if p > old]
        n = max(grown, default=0)
        return Points(n, n, "exact", f"inputs of {n} dimensions matter", q, size)
    lower = -(-size.lower // q)
    reason = f"n times {q} observations are at least dim T"
    if q > 1 and isinstance(net, TwoLayerNet) and not net.coefficients:
        lower, space = max(_bounds(net, size), key=lambda bound: bound[0])
        if space < q:
            reason = (
                f"functions with values in {space} of {q} dimensions see {space} numbers a point"
            )
    # Each point after the first adds to the rank.
    upper = size.upper - _seen_by_one(net, size) + 1 if size.upper else 0
    if not size.exact and _suffices(model, net, -(-size.upper // q), size.upper):
        lower = upper = -(-size.upper // q)
        reason += (
            f"; a determinant on random points shows that it is {size.upper}, and that they do"
        )
    elif lower < upper and size.exact and _suffices(model, net, lower, int(size)):
        upper = lower
        reason += "; a determinant on random points shows that it is enough"
    elif lower < upper:
        reason += "; random networks need no more, which is observed, not proved"
    status: Literal["exact", "bounds"] = "exact" if lower == upper else "bounds"
    return Points(lower, upper, status, reason, q, size)


def _outputs(net: Structure) -> int:
    if isinstance(net, TwoLayerNet):
        return net.q
    widths = getattr(net, "widths", (1,))  # convolutions and factorizations have one output
    return int(widths[-1])


def _bounds(net: TwoLayerNet, size: Dimension) -> Iterator[tuple[int, int]]:
    """For each examined subspace U the number of points that it needs, and its dimension.

    T modulo the functions with values in U is the tangent space of the network with its outgoing weights
    modulo U.
    """
    yield -(-size.lower // net.q), net.q
    for U in islice(_subspaces(net), max(1, _SUBSPACES // net.m)):
        values = size.lower - two_layer_tangent(_modulo(net, U)).upper
        yield -(-values // len(U)), len(U)


def _modulo(net: TwoLayerNet, U: Matrix) -> TwoLayerNet:
    """The network with outputs in R^q modulo U."""
    entries = [fmpq(v.numerator, v.denominator) for row in U for v in row]
    reduced = fmpq_mat(len(U), net.q, entries).rref()[0].tolist()
    rows = [[Fraction(int(v.p), int(v.q)) for v in row] for row in reduced]
    pivots = [next(j for j, v in enumerate(row) if v) for row in rows]
    others = [j for j in range(net.q) if j not in pivots]

    def project(v: Row) -> Row:
        return tuple(
            v[j] - sum(v[p] * u[j] for p, u in zip(pivots, rows, strict=True)) for j in others
        )

    c = None if net.c is None else project(net.c)
    return replace(net, a=tuple(map(project, net.a)), c=c, q=len(others))


def _subspaces(net: TwoLayerNet) -> Iterator[Matrix]:
    """Bases of the spans of few outgoing weights."""
    lines = list(dict.fromkeys(_line(a) for a in net.a if any(a)))
    for u in range(1, net.q):
        for basis in combinations(lines, u):
            if rank(basis) == u:
                yield basis


def _line(a: Row) -> Row:
    leading = next(v for v in a if v)
    return tuple(v / leading for v in a)


def _seen_by_one(net: Structure, size: Dimension) -> int:
    """A lower bound of the rank on almost every single point: q if T has all outputs times some function."""
    q = _outputs(net)
    if isinstance(net, TwoLayerNet):
        found = group_neurons(net)
        at_zero = [Fraction(0) if net.b is None else net.b[i] for i in found.constants]
        valued = not net.coefficients and any(has_value(net.activation, b) for b in at_zero)
        return q if net.c is not None or found.groups or valued else min(size.upper, 1)
    biases = getattr(net, "biases", (None,))
    return q if biases[-1] is not None else min(size.upper, 1)


def _suffices(model: nn.Module, net: Structure, n: int, size: int) -> bool:
    """Whether a determinant in balls proves that the rank on n random points is dim T."""
    first = next(model.parameters())
    if n * _outputs(net) * net.n_params > _ENTRIES or n * _outputs(net) < size:
        return False
    widths = getattr(net, "widths", None)
    d = net.d if isinstance(net, TwoLayerNet) else int(widths[0]) if widths else 0
    for seed in range(_SAMPLES):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, d, generator=generator, dtype=torch.float64).to(first)
        if getattr(net, "activation", "") == "softplus" and not _is_analytic(net, x):
            continue
        for bits in _BITS:
            A = Scaled(exact.jacobian(model, x, bits=bits), bits)
            if prove(A, find_pivots(A))[0] == size:
                return True
    return False


def _is_analytic(net: Structure, x: torch.Tensor) -> bool:
    """Whether no preactivation of the samples is near or above the threshold of softplus."""
    if not isinstance(net, TwoLayerNet):
        return False
    points = [[Fraction(v) for v in row] for row in x.double().tolist()]
    for i, w in enumerate(net.w):
        b = Fraction(0) if net.b is None else net.b[i]
        for point in points:
            if abs(b + sum(u * v for u, v in zip(w, point, strict=True))) > _SOFTPLUS_MOST:
                return False
    return True
