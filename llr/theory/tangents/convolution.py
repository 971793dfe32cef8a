"""Convolutions of one layer: tangent dimensions at every parameter, and their neurons."""

from __future__ import annotations

from fractions import Fraction

from llr.theory.result import Dimension, Term
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import ConvNet, Row, rank


def convolution_tangent(net: ConvNet) -> Dimension:
    """dim T of a convolution of an odd activation, at any parameters.

    A kernel at a position is a neuron with weights on a few inputs. Neurons that are equal up to sign have
    the same functions, for any kernels and positions. With weight sharing the derivative by a kernel is a sum
    over its positions.

    Args:
        net: the result of :func:`llr.theory.read_structure` for a `Conv1dTwoLayer` of tanh or erf.

    Returns:
        "dim T", exact: the number of distinct neurons plus the rank of the derivatives by the kernels.

    Raises:
        ValueError: another activation.

    Source: docs/theory.md, Theorem 3.1.

    Example:
        >>> from llr.models import Conv1dTwoLayer
        >>> from llr.theory import read_structure
        >>> print(convolution_tangent(read_structure(Conv1dTwoLayer(5, 3, 1))))
        dim T = 6 of 6 parameters (Theorem 3.1)
             +3  values: 3 different neurons among 1 x 3 (kernels x positions)
             +3  derivatives by the entries of the kernels, shared by 3 positions: a rank
    """
    require_odd(net)
    at = {v: g for g, v in enumerate(dict.fromkeys(_up_to_sign(v) for v in all_neurons(net)))}
    zero = (Fraction(0),) * net.d
    values = sum(1 for v in at if v != zero)
    rows: list[Row] = []
    for kernels, weights in zip(net.kernels, net.a, strict=True):
        positions = range(net.p)
        for tied in [positions] if net.shared else [(t,) for t in positions]:
            for j in range(net.s):
                row = [Fraction(0)] * (len(at) * net.d)
                for t in tied:
                    g = at[_up_to_sign(placed(net, kernels[t], t))]
                    row[g * net.d + t + j] = weights[t]
                rows.append(tuple(row))
    derivatives = rank(rows)
    sharing = f"shared by {net.p} positions" if net.shared else "each position with its own"
    m = len(net.kernels)
    return Dimension(
        what="dim T",
        lower=values + derivatives,
        upper=values + derivatives,
        status="exact",
        terms=(
            Term(
                values,
                f"values: {values} different neurons among {m} x {net.p} (kernels x positions)",
            ),
            Term(derivatives, f"derivatives by the entries of the kernels, {sharing}: a rank"),
        ),
        statement="Theorem 3.1",
        n_params=net.n_params,
    )


def require_odd(net: ConvNet) -> None:
    """Refuse activations whose convolutions have no closed form."""
    if PARITY.get(net.activation) != "odd":
        raise ValueError(
            f"activation of the convolution is {net.activation!r}; expected tanh or erf. For others "
            "llr.theory.tangent_dimension(model) has bounds"
        )


def placed(net: ConvNet, kernel: Row, position: int) -> Row:
    """The weights on the d inputs of a kernel at this position."""
    before = (Fraction(0),) * position
    return (*before, *kernel, *(Fraction(0),) * (net.d - net.s - position))


def all_neurons(net: ConvNet) -> list[Row]:
    """Every kernel at every position, position by position, as weights on the d inputs."""
    return [placed(net, kernels[t], t) for kernels in net.kernels for t in range(net.p)]


def _up_to_sign(v: Row) -> Row:
    """v or -v, so that the first nonzero entry is positive."""
    leading = next((x for x in v if x), Fraction(1))
    return v if leading > 0 else tuple(-x for x in v)
