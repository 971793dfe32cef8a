"""Tangent dimensions of two-layer networks, in closed form at every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

from flint import arb, fmpq, fmpq_mat
from torch import nn

from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.linalg.balls import ACTIVATIONS, precision
from llr.theory.result import Dimension, Term
from llr.theory.structures.groups import PARITY as PARITY
from llr.theory.structures.groups import Group as Group
from llr.theory.structures.groups import Grouping as Grouping
from llr.theory.structures.groups import group_neurons as group_neurons
from llr.theory.structures.groups import named
from llr.theory.structures.structure import (
    ConvNet,
    Factorization,
    LinearNet,
    Row,
    Structure,
    TwoLayerNet,
    outer,
    rank,
    read_structure,
    unit_vectors,
)
from llr.theory.tangents.periodic import phases, sine_group
from llr.theory.tangents.polynomial import polynomial_generic_rank, polynomial_tangent

# The slope of GELU has a zero near -0.75; a hundred bits distinguish it from the float64 numbers beside it.
_HIGHEST_BITS = 1 << 16

Affine = tuple[str, list[Row]]
"""The source of affine functions R^d -> R^q in T, and vectors in R^(q (d + 1)) that span them."""


def two_layer_tangent(net: TwoLayerNet) -> Dimension:
    """dim T of a two-layer network, at any parameters.

    It is the rank of the Jacobian on all samples together, and so the largest rank on any samples.

    Args:
        net: the result of :func:`llr.theory.read_structure` for such a network.

    Returns:
        "dim T": a sum over groups of neurons with one hyperplane, and the affine functions that constant
        neurons and reflected neurons add. It is exact except for sine and polynomials of unusual size.

    Raises:
        ValueError: an activation without a theorem.

    Source: docs/theory.md, Theorems 2.2, 2.5 and 2.6.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.theory.structures.structure import read_structure
        >>> model = TwoLayer(2, 2)
        >>> with torch.no_grad():
        ...     model[0].weight[1], model[0].bias[1] = -model[0].weight[0], -model[0].bias[0]
        >>> dimension = two_layer_tangent(read_structure(model))
        >>> int(dimension), dimension.n_params
        (4, 8)
        >>> print(dimension.terms[0].text)
        neurons 0 and 1 share a hyperplane (opposite signs), outgoing weights of rank 1: 1 + 1 (2 + 1)
    """
    if net.activation == "polynomial":
        return polynomial_tangent(net)
    grouping = group_neurons(net)
    lower = upper = 0
    terms: list[Term] = []
    alone: list[int] = []
    for group in grouping.groups:
        least, most = group_dimension(net, group)
        lower, upper = lower + least, upper + most
        if len(group.members) == 1 and group.rank == 1:
            alone += group.members
        else:
            terms.append(Term(most, _describe(net, group)))
    if alone:
        dimension, words = net.q + net.d + net.beta - kink(net), named(alone)
        if len(alone) > 1:
            words += ", each on its own"
        terms.insert(0, Term(len(alone) * dimension, f"{words}: {len(alone)} ({_price(net, 1)})"))
    affine = affine_part(net, grouping)
    if affine:
        added = affine_dimension(affine)
        terms.append(Term(added, _describe_affine(affine)))
        lower, upper = lower + added, upper + added
    if net.activation == "softplus":
        terms.append(
            Term(0, "softplus is taken as log(1 + e^z); torch computes the identity beyond 20")
        )
    return Dimension(
        what="dim T",
        lower=lower,
        upper=upper,
        status="exact" if lower == upper else "bounds",
        terms=tuple(terms),
        statement="Theorem 2.5" if net.activation == "sin" else "Theorem 2.2",
        n_params=net.n_params,
    )


@outside_inference_mode
def generic_rank(architecture: nn.Module | TwoLayerNet) -> Dimension:
    """dim T at almost all parameters of a two-layer architecture.

    It is less than P for ReLU, whose neurons can be rescaled, and for polynomials, if the space of
    polynomials is too small.

    Args:
        architecture: a two-layer network; its parameters are not used.

    Raises:
        ValueError: a model of another kind.

    Source: docs/theory.md, Theorems 2.4 and 2.6.

    Example:
        >>> from llr.models import TwoLayer
        >>> int(generic_rank(TwoLayer(3, 5))), int(generic_rank(TwoLayer(3, 5, activation="relu")))
        (25, 20)
    """
    net = read_structure(architecture) if isinstance(architecture, nn.Module) else architecture
    if not isinstance(net, Structure):
        raise TypeError(f"architecture is {type(net).__name__}; expected a module such as TwoLayer")
    if not isinstance(net, TwoLayerNet) or net.activation not in PARITY:
        raise ValueError(
            f"architecture is {_words(net)}; expected a two-layer network with one of {', '.join(PARITY)}. "
            "llr.model_rank finds the rank of any model at random parameters"
        )
    if net.activation == "polynomial":
        return polynomial_generic_rank(net)
    each = net.q + net.d + net.beta - kink(net)
    constants = 0 if net.c is None else net.q
    terms = [Term(net.m * each, f"{net.m} neurons: {net.m} ({_price(net, 1)})")]
    lower = upper = net.m * each
    if net.activation == "relu" and net.d + net.beta == 1:
        # Only max(x, 0) and max(-x, 0) exist; which occur depends on the signs of the weights.
        lower, upper = net.q, min(net.m, 2) * net.q
        terms = [Term(upper, f"{min(net.m, 2)} different neurons at most: max(x, 0), max(-x, 0)")]
    if constants:
        terms.append(Term(constants, "constants, from the output bias"))
    return Dimension(
        what="generic rank",
        lower=lower + constants,
        upper=upper + constants,
        status="exact" if lower == upper else "bounds",
        terms=tuple(terms),
        statement="Theorem 2.5" if net.activation == "sin" else "Theorem 2.4",
        n_params=net.n_params,
    )


def kink(net: TwoLayerNet) -> int:
    """h: 1 for ReLU, whose values s(z) = z s'(z) are already among its derivatives; else 0."""
    return int(net.activation == "relu")


def group_dimension(net: TwoLayerNet, group: Group) -> tuple[int, int]:
    """Bounds of the number of dimensions that a group adds, without affine functions."""
    if net.activation == "sin":
        return sine_group(net, group)
    dimension = net.q + group.rank * (net.d + net.beta - kink(net))
    return dimension, dimension


def affine_part(net: TwoLayerNet, grouping: Grouping) -> list[Affine]:
    """Spanning vectors of B, the affine functions in T, by source."""
    found: list[Affine] = []
    if net.c is not None:
        found.append(("the output bias", constants(net)))
    for i in grouping.constants:
        rows = constant_neuron(net, i)
        if rows:
            found.append((f"neuron {i}, which is constant (w = 0)", rows))
    for group in grouping.groups:
        rows = reflections(net, group)
        if rows:
            found.append((f"both orientations of {named(group.members)}", rows))
    return found


def affine_dimension(affine: Sequence[Affine]) -> int:
    """dim B: the rank over all sources, since several neurons may give the same affine function."""
    return rank([row for _, rows in affine for row in rows])


def constants(net: TwoLayerNet) -> list[Row]:
    """R^q times the function 1."""
    one = unit_vectors(net.d + 1)[-1]
    return [outer(e, one) for e in unit_vectors(net.q)]


def constant_neuron(net: TwoLayerNet, i: int) -> list[Row]:
    """What neuron i with w_i = 0 adds to B: R^q if its value is not 0, a_i L if its slope is not 0."""
    b = Fraction(0) if net.b is None else net.b[i]
    rows = constants(net) if has_value(net.activation, b) else []
    if any(net.a[i]) and has_slope(net.activation, b):
        rows = [*rows, *(outer(net.a[i], x) for x in linear_functions(net))]
    return rows


def reflections(net: TwoLayerNet, group: Group) -> list[Row]:
    """What a group adds to B if both orientations of its hyperplane occur."""
    if len(set(group.signs)) == 1:
        return []
    if PARITY[net.activation] == "odd+const":
        return constants(net)
    if PARITY[net.activation] != "hinge":
        return []
    z = (*group.w, group.b or Fraction(0))
    rows = [outer(e, z) for e in unit_vectors(net.q)]
    sides = (
        [net.a[i] for i, s in zip(group.members, group.signs, strict=True) if s == side]
        for side in (1, -1)
    )
    return [*rows, *(outer(a, x) for a in intersection(*sides) for x in linear_functions(net))]


def linear_functions(net: TwoLayerNet) -> list[Row]:
    """L: the inputs, and 1 with hidden biases, as vectors of R^(d + 1)."""
    return unit_vectors(net.d + 1)[: net.d + net.beta]


def intersection(one: Sequence[Row], other: Sequence[Row]) -> list[Row]:
    """A basis, in integers, of the intersection of the spans of two sets of vectors."""
    q = len(one[0])
    nothing = (Fraction(0),) * q
    # Zassenhaus: in the echelon form, rows whose left half is zero have the basis in their right half.
    stacked = [*((*row, *row) for row in one), *((*row, *nothing) for row in other)]
    entries = [fmpq(v.numerator, v.denominator) for row in stacked for v in row]
    reduced, r = fmpq_mat(len(stacked), 2 * q, entries).rref()
    common = []
    for row in reduced.tolist()[:r]:
        if not any(row[:q]):
            whole = lcm(*(int(v.q) for v in row))
            common.append(tuple(Fraction(int(v.p), int(v.q)) * whole for v in row[q:]))
    return common


def has_value(activation: str, b: Fraction) -> bool:
    """Whether s(b) differs from 0."""
    if activation in ("sigmoid", "softplus"):
        return True
    if activation == "relu":
        return b > 0
    return b != 0  # for sine, too: a rational b is no multiple of pi except 0


def has_slope(activation: str, b: Fraction) -> bool:
    """Whether s'(b) differs from 0; ReLU's slope at 0 is 0, as torch has it.

    At a zero of the slope e^b = -1 - b for SiLU, and cos b = 0 for sine. By Lindemann's theorem no rational b
    satisfies either. The slope of GELU has the derivative (2 - b^2) exp(-b^2 / 2) / sqrt(2 pi), so it falls
    from 0 to a negative value, rises and falls to 1: it has one zero, between -1 and 0.
    """
    if activation == "relu":
        return b > 0
    if activation != "gelu" or not -1 < b < 0:
        return True
    slope, bits = ACTIVATIONS["gelu"][1], 128
    while bits <= _HIGHEST_BITS:
        with precision(bits):
            value = slope(arb(fmpq(b.numerator, b.denominator)))
        if not value.contains(0):
            return True
        bits *= 2
    raise ValueError(
        f"the slope of GELU at b = {b} differs from 0 by less than {_HIGHEST_BITS} bits show; move this bias"
    )


def _price(net: TwoLayerNet, r: int) -> str:
    """``q + r (d + beta - h)`` as text with numbers."""
    inner = f"{net.d}" + " + 1" * net.beta + " - 1" * kink(net)
    return f"{net.q} + {inner}" if r == 1 else f"{net.q} + {r} ({inner})"


def _describe(net: TwoLayerNet, group: Group) -> str:
    """A description of a group of several neurons, or of one without outgoing weight."""
    words = named(group.members)
    if len(group.members) == 1:
        return f"{words} has no outgoing weight: {net.q}"
    share = "share a direction" if net.activation == "sin" else "share a hyperplane"
    if len(set(group.signs)) > 1:
        share += " (opposite signs)"
    if net.activation == "sin" and len(angles := set(phases(net, group))) > 1:
        turned = (group_dimension(net, group)[1] - 2 * net.q) // net.d
        return (
            f"{words} {share} at {len(angles)} phases, outgoing weights times phases of rank {turned}: "
            f"2 * {net.q} + {turned} * {net.d}"
        )
    inner = f"{net.d}" + " + 1" * net.beta + " - 1" * kink(net)
    text = (
        f"{words} {share}, outgoing weights of rank {group.rank}: {net.q} + {group.rank} ({inner})"
    )
    if group.cancels:
        rest = ", but for an affine function" if PARITY[net.activation] == "hinge" else ""
        text += f"; a phantom group: it cancels in the function{rest}"
    return text


def _describe_affine(affine: Sequence[Affine]) -> str:
    sources = [f"{source} ({rank(rows)})" for source, rows in affine]
    together = ", together" if len(sources) > 1 else ""
    return f"affine functions{together}, from {'; '.join(sources)}"


def _words(structure: object) -> str:
    if isinstance(structure, TwoLayerNet):
        return f"a two-layer network of {structure.activation}"
    names = {
        ConvNet: "a convolution",
        Factorization: "a matrix factorization",
        LinearNet: "a linear network",
    }
    return names.get(type(structure), "a network of more than two layers")
