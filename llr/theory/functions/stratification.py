"""The classes of functions of an architecture, and the number of samples that each class needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from torch import nn

from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.results import Record
from llr.results.html import Table
from llr.results.phrases import counted
from llr.theory.functions.hinge_function import affine_size
from llr.theory.functions.prices import makes_constants
from llr.theory.result import Status
from llr.theory.structures.groups import PARITY
from llr.theory.structures.structure import (
    ConvNet,
    DeepNet,
    Factorization,
    LinearNet,
    Structure,
    TwoLayerNet,
    read_structure,
    unit_vectors,
)
from llr.theory.tangents.linear import matrix_rank_cost
from llr.theory.tangents.polynomial import polynomial_generic_rank
from llr.theory.tangents.two_layer import kink

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The most narrower networks that are listed for a deep network.
_ROWS = 10_000


@dataclass(frozen=True)
class FunctionClass:
    """Functions of one model rank.

    Attributes:
        rank: their model rank; an upper bound if the status is "bounds".
        text: a description of the class.
        status: as for :class:`llr.theory.Dimension`.
    """

    rank: int
    text: str
    status: Status


@dataclass(frozen=True, repr=False)
class Stratification(Record):
    """The classes of functions of an architecture, by rank.

    Attributes:
        architecture: a description of the architecture.
        n_params: P, the number of its parameters.
        rows: the classes, by ascending rank.
    """

    architecture: str
    n_params: int
    rows: tuple[FunctionClass, ...]

    def _rules(self) -> Iterator[tuple[bool, str]]:
        ranks = [row.rank for row in self.rows]
        yield ranks == sorted(ranks), "rows by ascending rank"
        yield all(0 <= rank <= self.n_params for rank in ranks), "ranks from 0 to n_params"

    def __str__(self) -> str:
        """A table."""
        head = f"{self.architecture}, {counted(self.n_params, 'parameter')}"
        width = max(len(str(self.n_params)), 4)
        lines = []
        for row in self.rows:
            most = {"exact": "", "almost everywhere": "  (almost all)", "bounds": "  (at most)"}
            lines.append(f"  {row.rank:>{width}}  {row.text}{most[row.status]}")
        return "\n".join([head, f"  {'rank':>{width}}  functions", *lines])

    def plot(self, ax: Axes | None = None) -> Axes:
        """The axes of a figure of the rank of every class.

        Args:
            ax: where to draw; None makes a new figure. Needs matplotlib (``pip install 'llr[plot]'``).
        """
        from llr.theory import figure  # noqa: PLC0415 - matplotlib is optional

        return figure.stratification(self, ax=ax)

    def _table(self) -> Table:
        return ("functions", "rank", ""), [(row.text, row.rank, row.status) for row in self.rows]


@takes(architecture=a_module)
@outside_inference_mode
def rank_stratification(architecture: nn.Module) -> Stratification:
    """The classes of functions that an architecture represents, and their model ranks.

    A function of few neurons or kernels, or of small rank, needs few samples for any number of parameters of
    the architecture. The table lists the number of samples for each class of functions.

    Args:
        architecture: a model; its parameters are not used.

    Returns:
        A table with a row for each class.

        Two layers: functions of k neurons, alone or with constants and affine functions. For several outputs
        of softplus, GELU, SiLU and ReLU only one affine part at a time: functions with two affine parts, or
        with a multiple of a preactivation not parallel to the outgoing weights, have ranks in between.
        Polynomials: zero, and generic functions. Convolutions: k kernels with nonzero weights at both ends,
        or without sharing k active places. Matrices and linear maps: every rank. Deep networks: the generic
        functions of every narrower network.

    Raises:
        TypeError: no module.
        ValueError: a model of no known structure; a deep network with more than ten thousand narrower ones.

    Source: docs/theory.md, Theorems 2.3 to 2.6, 3.2, 4.1, 5.1 and 6.3.

    Example:
        >>> from llr.models import TwoLayer
        >>> from llr.theory import rank_stratification
        >>> print(rank_stratification(TwoLayer(2, 2)))
        two-layer network of tanh, 2 inputs, width 2, 1 output, 8 parameters
          rank  functions
             0  zero
             3  a constant
             4  1 neuron
             7  1 neuron and a constant
             8  2 neurons
    """
    net = read_structure(architecture)
    words, rows = _table(net)
    ordered = sorted(rows, key=lambda row: row.rank)
    return Stratification(words, net.n_params, tuple(ordered))


def _table(net: Structure) -> tuple[str, Iterator[FunctionClass]]:
    if isinstance(net, TwoLayerNet):
        words = (
            f"two-layer network of {net.activation}, {counted(net.d, 'input')}, width {net.m}, "
            f"{counted(net.q, 'output')}"
        )
        parity = PARITY[net.activation]
        if parity == "polynomial":
            return words, _polynomials(net)
        return words, _sines(net) if parity == "sin" else _neurons(net)
    if isinstance(net, ConvNet):
        kind = "shared" if net.shared else "locally connected"
        words = f"{kind} convolution of {net.activation}, {counted(net.d, 'input')}"
        return f"{words}, {counted(len(net.kernels), 'kernel')} of length {net.s}", _kernels(net)
    if isinstance(net, Factorization):
        m, p, n = len(net.A), len(net.B), len(net.B[0])
        return f"matrix factorization ({m} x {p}) ({p} x {n})", _matrices(m, n, min(m, n, p))
    widths = "-".join(map(str, net.widths))
    if isinstance(net, LinearNet):
        return f"linear network {widths}", _linear_maps(net)
    if net.activation == "identity":
        return f"linear network {widths} with biases", _linear_maps(net)
    return f"network {widths} of {net.activation}", _narrower(net)


def _neurons(net: TwoLayerNet) -> Iterator[FunctionClass]:
    """k neurons, without and with constants and affine functions that reflections do not make."""
    parity, q = PARITY[net.activation], net.q
    out = 0 if net.c is None else q
    # On a line through 0 the neurons of ReLU share one hyperplane.
    most = min(net.m, 1) if _one_hyperplane(net) else net.m
    for k in range(most + 1):
        base = k * (q + net.d + net.beta - kink(net)) + out
        if not k and not out and net.activation in ("sigmoid", "softplus"):
            base = q  # the value of any neuron
        yield _exactly(base, _functions(k, out))
        if k < net.m and not out and makes_constants(net):
            yield from _constants(net, k, base if k else 0)
        if parity == "hinge":
            yield from _affine(net, k, base if k or out else 0)


def _constants(net: TwoLayerNet, k: int, base: int) -> Iterator[FunctionClass]:
    sigmoid = net.activation == "sigmoid"
    if sigmoid and k:
        along = "a constant" if net.q == 1 else "a constant along an outgoing weight"
        yield _exactly(base + net.q, _functions(k, 0, along))
        if net.q == 1:
            return
    flat = net.activation in ("gelu", "silu")
    other = "another constant" if sigmoid and k else "a constant"
    yield _exactly(base + net.q + (0 if flat else net.d), _functions(k, 0, other))


def _affine(net: TwoLayerNet, k: int, base: int) -> Iterator[FunctionClass]:
    """Linear parts: multiples of neurons in both orientations, and pairs that leave a linear function."""
    units, slopes = unit_vectors(net.d + 1), net.d + net.beta - kink(net)
    spare, out = net.m - k, int(net.c is not None)
    if k and spare:
        several = min(k, spare) if net.q == 1 else 1  # one output: all share them
        text = "a multiple of the preactivation of one"
        if several > 1:
            text = f"multiples of the preactivations of up to {several}"
        yield _exactly(base + affine_size(net, units[:1], 1, False), _functions(k, out, text))
    if k and _one_hyperplane(net):
        return  # a neuron has the only hyperplane
    for r in range(1, min(net.q, net.d, spare // 2) + 1):
        size = base + r * (net.q + slopes) + affine_size(net, units[:r], r, False)
        text = "a linear function" if net.q == 1 else f"a linear function of rank {r}"
        status: Status = "exact" if net.q == 1 or not k else "bounds"
        yield FunctionClass(size, _functions(k, out, text), status)


def _one_hyperplane(net: TwoLayerNet) -> bool:
    return net.activation == "relu" and net.d + net.beta == 1


def _sines(net: TwoLayerNet) -> Iterator[FunctionClass]:
    """Directions at one phase and, for several outputs, at two; a constant without an output bias."""
    q, d = net.q, net.d
    out = 0 if net.c is None else q
    two_phases = q > 1 and net.b is not None
    for both in range(net.m // 2 + 1 if two_phases else 1):
        for one in range(net.m - 2 * both + 1):
            size = one * (q + d + net.beta) + both * (2 * q + 2 * d) + out
            parts = [f"{counted(one, 'direction')} at one phase"] if one else []
            parts += [f"{counted(both, 'direction')} at two phases"] if both else []
            words = " and ".join(parts)
            yield _exactly(size, _joined(words, "any constant" * bool(out)) or "zero")
            if not out and net.b is not None and one + 2 * both < net.m:
                yield _exactly(size + q, _joined(words, "a constant"))


def _polynomials(net: TwoLayerNet) -> Iterator[FunctionClass]:
    """Zero, and generic functions of k neurons, until more neurons do not raise the rank."""
    out = int(net.c is not None)
    always = bool(out or net.coefficients[0])  # otherwise a neuron of w = b = a = 0 has no tangents
    # With hidden biases a neuron may be at a root of the polynomial, if it has any.
    known = out or net.b is None or not always
    yield FunctionClass(net.q * always, _functions(0, out), "exact" if known else "bounds")
    most = polynomial_generic_rank(net).upper
    for k in range(1, net.m + 1):
        narrow = replace(net, w=net.w[:k], b=None if net.b is None else net.b[:k], a=net.a[:k])
        found = polynomial_generic_rank(narrow)
        status: Status = "almost everywhere" if found.exact else "bounds"
        yield FunctionClass(found.upper, _functions(k, out), status)
        if found.upper == most:
            return


def _kernels(net: ConvNet) -> Iterator[FunctionClass]:
    odd = PARITY.get(net.activation) == "odd"
    if net.shared or not odd:
        each = net.p + net.s if net.shared else net.p * (net.s + 1)
        # 1 for the value of any kernel, if it cannot be zero.
        yield _exactly(int(net.activation in ("sigmoid", "softplus")), "zero")
        for k in range(1, len(net.kernels) + 1):
            status: Status = "exact" if odd else "bounds"
            yield FunctionClass(k * each, f"{counted(k, 'kernel')} of length {net.s}", status)
        return
    yield _exactly(0, "zero")
    for c in range(1, len(net.kernels) * net.p + 1):
        yield _exactly(c * (net.s + 1), f"{counted(c, 'kernel')} at one position each")


def _matrices(rows: int, columns: int, most: int) -> Iterator[FunctionClass]:
    for r in range(most + 1):
        yield _exactly(_rank_size(rows, columns, r), f"matrices of rank {r}")


def _linear_maps(net: LinearNet | DeepNet) -> Iterator[FunctionClass]:
    biases = net.biases if isinstance(net, DeepNet) else (None,)
    constants = 0 if biases[-1] is None else net.widths[-1]
    exact = bool(constants) or not any(b is not None for b in biases)
    words = "" if isinstance(net, LinearNet) else ", any constant" if constants else ", a constant"
    rows, columns = net.widths[-1], net.widths[0]
    if len(net.weights) == 1:
        yield _exactly(rows * columns + constants, f"all linear maps{words}")
        return
    for r in range(min(net.widths) + 1):
        size = _rank_size(rows, columns, r) + constants
        if exact:
            yield _exactly(size, f"linear maps of rank {r}{words}")
            continue
        # The constants of hidden biases: at most dim T of the narrowest network that can represent them.
        inner = [min(r + 1, width) for width in net.widths[1:-1]]
        narrow = zip([columns, *inner], [*inner, rows], biases, strict=True)
        most = sum(i * o + (0 if b is None else o) for i, o, b in narrow)
        yield FunctionClass(most, f"linear maps of rank {r}{words}", "bounds")


def _narrower(net: DeepNet) -> Iterator[FunctionClass]:
    """The networks of all smaller widths, at almost all parameters, and the constants."""
    count = prod(net.widths[1:-1])
    if count > _ROWS:
        raise ValueError(
            f"the architecture has {count} narrower ones, of widths up to {list(net.widths)}; expected at "
            f"most {_ROWS}. optimistic_sample_size(architecture, target) finds the rank of one function"
        )
    constants = 0 if net.biases[-1] is None else net.widths[-1]
    full = net.activation == "tanh" and all(b is not None for b in net.biases)
    status: Status = "almost everywhere" if full else "bounds"
    if constants:
        yield _exactly(constants, "a constant")
    else:
        always = net.activation in ("sigmoid", "softplus")
        yield _exactly(net.widths[-1] if always else 0, "zero")
    for hidden in product(*(range(1, width + 1) for width in net.widths[1:-1])):
        widths = [net.widths[0], *hidden, net.widths[-1]]
        size = sum(
            i * o + (0 if b is None else o)
            for i, o, b in zip(widths, widths[1:], net.biases, strict=False)
        )
        if net.activation == "relu":
            size -= sum(hidden)  # a positive factor moves through each neuron
        yield FunctionClass(size, "functions of " + "-".join(map(str, widths)), status)


def _rank_size(rows: int, columns: int, r: int) -> int:
    return sum(t.dimension for t in matrix_rank_cost(rows, columns, r))


def _exactly(size: int, words: str) -> FunctionClass:
    return FunctionClass(size, words, "exact")


def _functions(k: int, out: int, further: str = "") -> str:
    """The text for k neurons and a further part, with any constant if there is an output bias."""
    words = _joined(counted(k, "neuron") if k else "", further)
    return _joined(words, "any constant" * bool(out)) or "zero"


def _joined(words: str, further: str) -> str:
    return f"{words} and {further}" if words and further else words or further
