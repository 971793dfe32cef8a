"""Groups of neurons of a two-layer network that share a hyperplane, and so interact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from llr.theory.structures.structure import Row, TwoLayerNet, rank

Parity = Literal["odd", "odd+const", "hinge", "sin", "polynomial"]

PARITY: dict[str, Parity] = {
    "tanh": "odd",
    "erf": "odd",
    "sigmoid": "odd+const",
    "softplus": "hinge",
    "gelu": "hinge",
    "silu": "hinge",
    "relu": "hinge",
    "sin": "sin",
    "polynomial": "polynomial",
}
"""How s(-z) follows from s(z): as -s(z), 1 - s(z), or s(z) - z. Sine and polynomials have other theorems."""

# Up to this many neurons are named one by one.
_LISTED = 8


@dataclass(frozen=True)
class Group:
    """Neurons with one hyperplane; for sine with one w up to sign; for polynomials with equal (w, b).

    Neuron i of the group has ``w_i = sign * scale * w``, and the same for b.
    """

    members: tuple[int, ...]
    """Ascending."""
    signs: tuple[int, ...]
    """1 or -1 for each member, relative to the first one."""
    scales: tuple[Fraction, ...]
    """Positive; 1 except for ReLU, whose hyperplanes are equal up to a factor."""
    w: Row
    """The first member's."""
    b: Fraction | None
    """The first member's; None without hidden biases."""
    rank: int
    """r_g: the number of linearly independent outgoing weights."""
    weight: Row
    """The factor of s(w . x + b) in f, (q); empty for sine, whose members may differ in phase."""

    @property
    def cancels(self) -> bool:
        """Whether the group contributes at most an affine function to f; False for sine."""
        return bool(self.weight) and not any(self.weight)


@dataclass(frozen=True)
class Grouping:
    """The groups of neurons, and the constant neurons."""

    groups: tuple[Group, ...]
    constants: tuple[int, ...]
    """The neurons with w = 0."""


def group_neurons(net: TwoLayerNet) -> Grouping:
    """Divide the neurons into groups that share a hyperplane.

    Functions of neurons in different groups are linearly independent, so dimensions are computed group by
    group.

    Raises:
        ValueError: an activation whose reflection is not known.

    Source: docs/theory.md, Theorem 2.2 and Theorem 2.5.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.theory.structures.structure import read_structure
        >>> model = TwoLayer(1, 3)
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0], [0.0], [-1.0]])), model[0].bias.zero_()
        >>> grouping = group_neurons(read_structure(model))
        >>> grouping.groups[0].members, grouping.groups[0].signs, grouping.constants
        ((0, 2), (1, -1), (1,))
    """
    if net.activation not in PARITY:
        raise ValueError(
            f"activation is {net.activation!r}, whose reflection is not known; expected one of "
            + ", ".join(PARITY)
        )
    found: dict[tuple[Row, Fraction | None], list[tuple[int, int, Fraction]]] = {}
    constants = []
    for i, w in enumerate(net.w):
        if not any(w):
            constants.append(i)
            continue
        key, sign, scale = _hyperplane(net, i)
        found.setdefault(key, []).append((i, sign, scale))
    return Grouping(tuple(_group(net, members) for members in found.values()), tuple(constants))


def _hyperplane(net: TwoLayerNet, i: int) -> tuple[tuple[Row, Fraction | None], int, Fraction]:
    """The hyperplane of neuron i, which its group shares, and the neuron's sign and scale."""
    w, b = net.w[i], None if net.b is None else net.b[i]
    if net.activation == "polynomial":
        return (w, b), 1, Fraction(1)
    leading = next(v for v in w if v)
    sign = 1 if leading > 0 else -1
    scale = abs(leading) if net.activation == "relu" else Fraction(1)
    if net.activation == "sin":
        b = None
    factor = sign * scale
    return (tuple(v / factor for v in w), None if b is None else b / factor), sign, scale


def _group(net: TwoLayerNet, found: Sequence[tuple[int, int, Fraction]]) -> Group:
    first, sign, scale = found[0]
    members = tuple(i for i, _, _ in found)
    signs = tuple(s * sign for _, s, _ in found)
    scales = tuple(s / scale for _, _, s in found)
    return Group(
        members=members,
        signs=signs,
        scales=scales,
        w=net.w[first],
        b=None if net.b is None else net.b[first],
        rank=rank([net.a[i] for i in members]),
        weight=_net_weight(net, members, signs, scales),
    )


def _net_weight(
    net: TwoLayerNet, members: Sequence[int], signs: Sequence[int], scales: Sequence[Fraction]
) -> Row:
    parity = PARITY[net.activation]
    if parity == "sin":
        return ()
    factors = scales
    if parity in ("odd", "odd+const"):
        factors = [Fraction(sign) for sign in signs]
    rows = [[f * v for v in net.a[i]] for i, f in zip(members, factors, strict=True)]
    return tuple(sum(column, Fraction(0)) for column in zip(*rows, strict=True))


def named(members: Sequence[int]) -> str:
    """The neurons as text; if they are many, the first and the last."""
    if len(members) == 1:
        return f"neuron {members[0]}"
    if len(members) > _LISTED:
        first = ", ".join(map(str, members[:2]))
        return f"{len(members)} neurons ({first}, ..., {members[-1]})"
    return f"neurons {', '.join(map(str, members[:-1]))} and {members[-1]}"
