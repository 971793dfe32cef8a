"""Model ranks of functions of networks with several hidden layers: upper bounds by reduction."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from llr.theory.functions.reduction import Reduction, reduce_network
from llr.theory.result import Dimension, Status, Term
from llr.theory.spans.formal import formal_tangent
from llr.theory.structures.structure import DeepNet, Row


def deep_model_rank(target: DeepNet, net: DeepNet) -> Dimension:
    """Bounds of the smallest dim T with which a deep network represents a function.

    Args:
        target: a network with the function and the same number of layers.
        net: the architecture.

    Returns:
        The upper bound is dim T of the reduced target, since splitting neurons keeps T. For tanh with all
        biases almost every network of the reduced widths has this model rank; for constant functions the
        result is exact. Otherwise it has bounds.

    Raises:
        ValueError: a target of another activation, depth, number of inputs or outputs, or one that does not
            fit the architecture after reduction.

    Source: docs/theory.md, 1.4 and Theorem 6.3.

    Example:
        >>> from llr.models import mlp
        >>> from llr.theory import read_structure
        >>> found = deep_model_rank(*(read_structure(mlp(w)) for w in ([1, 2, 2, 1], [1, 5, 4, 1])))
        >>> found.upper, found.status
        (13, 'almost everywhere')
    """
    _check_same_kind(target, net)
    found = reduce_network(target)
    constants = 0 if net.biases[-1] is None else net.widths[-1]
    remarks = tuple(Term(0, step) for step in found.steps)
    if found.constant and (constants or not any(map(any, found.net.weights[-1]))):
        # With all weights 0 only the values of the last hidden layer and the output biases remain.
        size = constants
        if not constants and net.activation in ("sigmoid", "softplus"):
            size = net.widths[-1]
        term = Term(size, "constants: the function does not depend on the inputs")
        return Dimension.between("model rank", size, [term], "Theorem 6.3", net.n_params)
    reduced = _in_architecture(found, net)
    upper, status = _size(reduced, found.exact)
    if _patterns(target) != _patterns(net):
        status = "bounds"
    widths = "-".join(map(str, reduced.widths))
    term = Term(upper, f"the tangent functions of {widths}, which the target reduces to")
    terms = (term, *remarks)
    return Dimension("model rank", constants, upper, status, terms, "Theorem 6.3", net.n_params)


def _check_same_kind(target: DeepNet, net: DeepNet) -> None:
    for name, theirs, ours in (
        ("activation", target.activation, net.activation),
        ("inputs", target.widths[0], net.widths[0]),
        ("outputs", target.widths[-1], net.widths[-1]),
        ("hidden layers", len(target.weights) - 1, len(net.weights) - 1),
    ):
        if theirs != ours:
            raise ValueError(
                f"{name} of the target: {theirs}, of the architecture: {ours}; expected the same"
            )


def _patterns(net: DeepNet) -> list[bool]:
    return [b is not None for b in net.biases]


def _in_architecture(found: Reduction, net: DeepNet) -> DeepNet:
    """The reduced target with the biases that the architecture has."""
    reduced = found.net
    if any(r > n for r, n in zip(reduced.widths, net.widths, strict=True)):
        raise ValueError(
            f"the architecture has widths {list(net.widths)}, but the target needs "
            f"{list(reduced.widths)} after its reduction; llr does not look for other networks"
        )
    biases: list[Row | None] = []
    for layer, (b, ours) in enumerate(zip(reduced.biases, net.biases, strict=True), 1):
        if ours is None and any(b or ()):
            raise ValueError(
                f"layer {layer} of the target has biases, and that of the architecture has none"
            )
        zeros = (Fraction(0),) * reduced.widths[layer]
        biases.append(None if ours is None else (b or zeros))
    return replace(reduced, biases=tuple(biases))


def _size(reduced: DeepNet, exact: bool) -> tuple[int, Status]:
    """An upper bound of dim T of the reduced network, and the status of the model rank."""
    found = formal_tangent(reduced)
    if found.status == "almost everywhere":
        return found.upper, found.status
    if exact:
        return found.upper, "bounds"
    scalings = sum(reduced.widths[1:-1]) if reduced.activation == "relu" else 0
    return reduced.n_params - scalings, "bounds"
