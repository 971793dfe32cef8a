"""How many sample points a model of several outputs needs, at its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import combinations, islice
from typing import Any, Literal

import torch
from torch import nn

from llr import exact
from llr.elimination import Scaled, find_pivots, prove
from llr.theory.groups import Group, group_neurons
from llr.theory.linear import surrounding_ranks
from llr.theory.periodic import phases, turned_rank
from llr.theory.result import Dimension
from llr.theory.structure import (
    LinearNet,
    Matrix,
    Row,
    Structure,
    TwoLayerNet,
    outer,
    rank,
    read_structure,
    unit_vectors,
    warn_of_near_copies,
)
from llr.theory.tangent import dimension_of, incoming
from llr.theory.two_layer import affine_part, kink

# Subspaces of the outputs that are looked at, the smallest first: so many, times the neurons.
_SUBSPACES = 20_000
# Jacobians of more entries are not ranked in balls, which takes seconds here.
_ENTRIES = 10_000
_BITS = (64, 128, 256, 512)
_SAMPLES = 3
# Beyond 20 torch's softplus is the identity, and says nothing of the analytic function.
_SOFTPLUS_MOST = 19


@dataclass(frozen=True)
class Points:
    """How many points a sample takes.

    Attributes:
        lower: no sample of fewer points has the LLR guarantee.
        upper: some sample of so many points has it; of an analytic model, almost every one.
        status: "exact" if these are equal, "bounds" otherwise.
        reason: what `lower` and `upper` rest on, in words.
        outputs: q.
        dimension: dim T, what n q has to be at least.
    """

    lower: int
    upper: int
    status: Literal["exact", "bounds"]
    reason: str
    outputs: int
    dimension: Dimension

    def __int__(self) -> int:
        if self.status != "exact":
            raise ValueError(
                f"the points are between {self.lower} and {self.upper}, no single number: {self.reason}; "
                "read .lower and .upper"
            )
        return self.lower

    def __str__(self) -> str:
        """The number and its reason."""
        value = str(self.lower) if self.status == "exact" else f"{self.lower} to {self.upper}"
        of = f"{self.outputs} output{'s' * (self.outputs > 1)} each"
        return f"{value} points of {of} ({self.reason}; Proposition 2.7)\n{self.dimension}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return asdict(self)


def points_needed(model: nn.Module) -> Points:
    """The fewest sample points with which a model has the LLR guarantee at its parameters.

    A point gives q observations, but they are not free to choose: functions of T with values in a subspace U
    of the outputs are seen by dim U numbers for each point, so that for every U

        n >= dim (functions of T with values in U) / dim U.

    The maximum over the spans of outgoing weights is proved. That so many random points suffice is what
    random networks show, not a theorem; for this model a determinant in balls, on random points, proves it
    where the model is small enough.

    Args:
        model: as for :func:`llr.theory.tangent_dimension`.

    Returns:
        "exact" for one output and linear networks, by closed form, and where the determinant settles it;
        bounds otherwise.

    Raises:
        TypeError: no module.
        ValueError: what :func:`llr.theory.tangent_dimension` refuses.

    Warns:
        UserWarning: two neurons that are nearly, not exactly, equal.

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
        lower, space = max(_bounds(net), key=lambda bound: bound[0])
        if space < q:
            reason = (
                f"functions with values in {space} of {q} dimensions see {space} numbers a point"
            )
    # The first point sees all outputs, if it sees any, and each one after it adds to the rank.
    upper = size.upper if q == 1 or size.upper < q else size.upper - q + 1
    if lower < upper and size.exact and _suffices(model, net, lower, int(size)):
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


def _bounds(net: TwoLayerNet) -> Iterator[tuple[int, int]]:
    """For each subspace U that is looked at: how many points it takes, and its dimension."""
    affine = [row for _, rows in affine_part(net, group_neurons(net)) for row in rows]
    groups = group_neurons(net).groups
    for U in islice(_subspaces(net), max(1, _SUBSPACES // net.m)):
        u = len(U)
        size = sum(_values_in(net, group, U) for group in groups)
        whole = [outer(e, x) for e in U for x in unit_vectors(net.d + 1)]
        size += _common(affine, whole)
        yield -(-size // u), u


def _subspaces(net: TwoLayerNet) -> Iterator[Matrix]:
    """Bases of R^q, and of the spans of few outgoing weights."""
    yield tuple(unit_vectors(net.q))
    lines = list(dict.fromkeys(_line(a) for a in net.a if any(a)))
    for u in range(1, net.q):
        for basis in combinations(lines, u):
            if rank(basis) == u:
                yield basis


def _line(a: Row) -> Row:
    leading = next(v for v in a if v)
    return tuple(v / leading for v in a)


def _values_in(net: TwoLayerNet, group: Group, U: Matrix) -> int:
    """How many dimensions of a group have values in U; at least, for sines of several phases."""
    a = [net.a[i] for i in group.members]
    if net.activation == "sin" and len(set(phases(net, group))) > 1:
        kept = [
            (row, phi)
            for row, phi in zip(a, phases(net, group), strict=True)
            if rank([*U, row]) == len(U)
        ]
        turned = turned_rank(*zip(*kept, strict=True))[0] if kept else 0
        return 2 * len(U) + net.d * turned
    return len(U) + (net.d + net.beta - kink(net)) * _common(a, U)


def _common(one: Sequence[Row], other: Sequence[Row]) -> int:
    """The dimension of the intersection of two spans."""
    return rank(one) + rank(other) - rank([*one, *other])


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
    """Whether no preactivation of the samples comes near the threshold of softplus."""
    if not isinstance(net, TwoLayerNet):
        return False
    points = [[Fraction(v) for v in row] for row in x.double().tolist()]
    for i, w in enumerate(net.w):
        b = Fraction(0) if net.b is None else net.b[i]
        for point in points:
            if abs(b + sum(u * v for u, v in zip(w, point, strict=True))) > _SOFTPLUS_MOST:
                return False
    return True
