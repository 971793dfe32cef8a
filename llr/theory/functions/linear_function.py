"""Model ranks of matrices and of linear and affine maps."""

from __future__ import annotations

from flint import fmpq_mat

from llr.theory.result import Dimension, Term
from llr.theory.spans.formal import formal_tangent
from llr.theory.structures.structure import DeepNet, Factorization, LinearNet
from llr.theory.tangents.linear import exactly, linear_map, matrix_rank_cost, product_rank, rational


def factorization_model_rank(target: Factorization, net: Factorization) -> Dimension:
    """The smallest dim T with which A B is a given matrix: r (m + n - r) for a matrix of rank r.

    Args:
        target: factors of the matrix.
        net: the architecture.

    Raises:
        ValueError: a matrix of another shape, or with a rank above the inner size.

    Source: docs/theory.md, Theorem 4.1.

    Example:
        >>> from llr.models import MatrixFactorization
        >>> from llr.theory import read_structure
        >>> one, wide = (read_structure(MatrixFactorization(4, p, 5)) for p in (1, 7))
        >>> int(factorization_model_rank(one, wide))
        8
    """
    shapes = [(len(f.A), len(f.B[0])) for f in (target, net)]
    _require_same("shape", shapes[0], shapes[1])
    r = product_rank(rational(target.A) * rational(target.B))
    if r > len(net.B):
        raise ValueError(
            f"the architecture has inner size {len(net.B)}, but the target is a matrix of rank {r}"
        )
    return exactly("model rank", matrix_rank_cost(*shapes[0], r), "Theorem 4.1", net.n_params)


def linear_model_rank(target: LinearNet | DeepNet, net: LinearNet | DeepNet) -> Dimension:
    """The smallest dim T with which layers without activations represent a given linear or affine map.

    Args:
        target: a network with the map.
        net: the architecture; both may have biases.

    Returns:
        r (n_0 + n_L - r) for a map of rank r, n_0 n_L for a single layer, and n_L more for output biases.
        It is exact unless only hidden layers have biases.

    Raises:
        ValueError: a map of other sizes, with a rank above a hidden width, or with a constant part although
            the architecture has no biases.

    Source: docs/theory.md, Theorem 5.1.

    Example:
        >>> from llr.models import DeepLinear
        >>> from llr.theory import read_structure
        >>> target, wide = (read_structure(DeepLinear(w)) for w in ([3, 1, 2], [3, 6, 5, 2]))
        >>> int(linear_model_rank(target, wide))
        4
    """
    ends = [(n.widths[0], n.widths[-1]) for n in (target, net)]
    _require_same("inputs and outputs", ends[0], ends[1])
    product, constant = affine_map(target)
    r, hidden = product_rank(product), net.widths[1:-1]
    if hidden and r > min(hidden):
        raise ValueError(
            f"the architecture has hidden widths {list(hidden)}, but the target is a map of rank {r}"
        )
    *_, last = biases = _all_biases(net)
    if constant and not any(biases):
        raise ValueError(
            "the target has a constant part, and the architecture has no biases (bias=True or "
            "output_bias=True)"
        )
    inputs, outputs = ends[0]
    terms = (
        matrix_rank_cost(outputs, inputs, r)
        if hidden
        else (Term(inputs * outputs, f"all maps of a single layer: {outputs} x {inputs}"),)
    )
    if last:
        terms = (*terms, Term(outputs, "constants, from the output bias"))
    if last or not any(biases):
        return exactly("model rank", terms, "Theorem 5.1", net.n_params)
    # Only hidden layers have biases: their constants may need additional neurons.
    lower = sum(t.dimension for t in terms)
    term = Term(net.n_params, "parameters")
    if _is_part(target, net):
        size = formal_tangent(target).upper
        term = Term(size, "at most, from the target as it stands")
    return Dimension.between("model rank", lower, [term], "Theorem 5.1", net.n_params)


def _is_part(target: LinearNet | DeepNet, net: LinearNet | DeepNet) -> bool:
    """Whether splitting neurons of the target gives the architecture."""
    if len(target.weights) != len(net.weights) or _all_biases(target) != _all_biases(net):
        return False
    return all(ours >= theirs for ours, theirs in zip(net.widths, target.widths, strict=True))


def affine_map(net: LinearNet | DeepNet) -> tuple[fmpq_mat, bool]:
    """The matrix of layers without activations, and whether their function has a constant part."""
    linear = LinearNet(net.weights)
    if isinstance(net, LinearNet):
        return linear_map(linear), False
    constant = fmpq_mat(net.widths[0], 1, [0] * net.widths[0])
    for W, b in zip(net.weights, net.biases, strict=True):
        constant = rational(W) * constant
        if b is not None:
            constant += rational(tuple((v,) for v in b))
    return linear_map(linear), any(v != 0 for v in constant.entries())


def _all_biases(net: LinearNet | DeepNet) -> list[bool]:
    """Which layers have biases."""
    if isinstance(net, LinearNet):
        return [False] * len(net.weights)
    return [b is not None for b in net.biases]


def _require_same(what: str, theirs: object, ours: object) -> None:
    if ours != theirs:
        raise ValueError(
            f"{what} of the target: {theirs}, of the architecture: {ours}; expected the same"
        )
