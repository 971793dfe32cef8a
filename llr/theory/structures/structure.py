"""Reads the structure of the theory that a model has, and its parameters as exact numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import torch
from flint import fmpz_mat
from torch import Tensor, nn

from llr.exact.network import read_network
from llr.inputs import gate
from llr.inputs.accept import a_module, takes
from llr.inputs.agreement import probes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.mlp import MLP, NotAnMLP, read_mlp
from llr.inputs.problem import read_problem
from llr.inputs.warned import stacklevel
from llr.linalg.integers import exact_rank
from llr.models import Conv1dTwoLayer, MatrixFactorization, Polynomial
from llr.models.parts import departure_from

Row = tuple[Fraction, ...]
Matrix = tuple[Row, ...]

# Neurons closer than this, relative to their size, may be meant to be equal, but are different in the theory.
_NEAR = 1e-6


@dataclass(frozen=True)
class TwoLayerNet:
    """``sum_i a_i s(w_i . x + b_i) (+ c)``, one hidden layer."""

    activation: str
    """A name of :data:`llr.models.ACTIVATIONS`, or "polynomial"."""
    w: Matrix
    """(m, d)"""
    b: Row | None
    """(m), None without hidden biases."""
    a: Matrix
    """(m, q), the outgoing weights of neuron i."""
    c: Row | None
    """(q), None without output biases."""
    d: int
    q: int
    coefficients: Row = ()
    """The coefficients of a polynomial activation, from the constant term on."""

    @property
    def m(self) -> int:
        """The width."""
        return len(self.w)

    @property
    def beta(self) -> int:
        """1 with hidden biases, else 0."""
        return int(self.b is not None)

    @property
    def n_params(self) -> int:
        """P."""
        return self.m * (self.q + self.d + self.beta) + (0 if self.c is None else self.q)


@dataclass(frozen=True)
class ConvNet:
    """``sum_{l,t} a_{l,t} s(w_l . x[t : t+s])``, with or without (w_{l,t}) shared kernels."""

    activation: str
    kernels: tuple[Matrix, ...]
    """(m, p, s); with sharing the p rows of a channel are equal."""
    a: Matrix
    """(m, p)"""
    d: int
    s: int
    shared: bool

    @property
    def p(self) -> int:
        """The number of positions."""
        return self.d + 1 - self.s

    @property
    def n_params(self) -> int:
        """P."""
        kernels = len(self.kernels) * (1 if self.shared else self.p)
        return kernels * self.s + len(self.kernels) * self.p


@dataclass(frozen=True)
class Factorization:
    """The entries of A B."""

    A: Matrix
    B: Matrix

    @property
    def n_params(self) -> int:
        """P."""
        return sum(len(M) * len(M[0]) for M in (self.A, self.B))


@dataclass(frozen=True)
class LinearNet:
    """``W_L ... W_1 x`` without biases; `weights` from W_1 on."""

    weights: tuple[Matrix, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden widths, outputs."""
        return (len(self.weights[0][0]), *(len(W) for W in self.weights))

    @property
    def n_params(self) -> int:
        """P."""
        return sum(len(W) * len(W[0]) for W in self.weights)


@dataclass(frozen=True)
class DeepNet:
    """An MLP of another kind: several hidden layers, or linear layers with biases."""

    activation: str
    weights: tuple[Matrix, ...]
    biases: tuple[Row | None, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden widths, outputs."""
        return (len(self.weights[0][0]), *(len(W) for W in self.weights))

    @property
    def n_params(self) -> int:
        """P."""
        biases = sum(len(b) for b in self.biases if b is not None)
        return biases + sum(len(W) * len(W[0]) for W in self.weights)


Structure = TwoLayerNet | ConvNet | Factorization | LinearNet | DeepNet


@takes(model=a_module)
@outside_inference_mode
def read_structure(model: nn.Module) -> Structure:
    """The structure of the theory that the model has, at its parameters.

    Args:
        model: an MLP as `llr.jacobian` recognises it, or one of :mod:`llr.models`; all parameters count.

    Raises:
        TypeError: `model` is not a module.
        ValueError: a model of none of these structures, frozen parameters, parameters that are not finite.

    Example:
        >>> from llr.models import TwoLayer
        >>> from llr.theory import read_structure
        >>> read_structure(TwoLayer(2, 3)).m
        3
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected an nn.Module")
    _check_parameters(model)
    for kind in (Conv1dTwoLayer, MatrixFactorization):
        if isinstance(model, kind) and (found := departure_from(model, kind)):
            raise _other(model, found)
    if isinstance(model, Conv1dTwoLayer):
        _confirm(model, (model.d,))
        return _convolution(model)
    if isinstance(model, MatrixFactorization):
        _confirm(model, None)
        return Factorization(exact_matrix(model.A), exact_matrix(model.B))
    polynomial = _polynomial(model)
    if polynomial is not None:
        _confirm(model, (polynomial.d,))
        return polynomial
    try:
        mlp = confirmed_mlp(model)
    except NotAnMLP as departure:
        raise ValueError(
            f"the theory has no closed form for this {type(model).__name__}: {departure}. It knows MLPs and "
            "the models of llr.models; llr.model_rank(model) finds the rank of any model numerically"
        ) from departure
    if 0 in mlp.widths:
        raise ValueError(
            f"the {mlp} has a layer of width 0; the theory is about layers of at least one neuron"
        )
    used = {id(t) for t in (*mlp.weights, *mlp.biases)}
    own = {id(p) for p in model.parameters()}
    if any(id(t) not in own for t in (*mlp.weights, *mlp.biases) if t is not None):
        raise _other(model, "a weight or bias that is no parameter")
    for name, p in model.named_parameters():
        if id(p) not in used:
            raise ValueError(
                f"parameter {name!r} belongs to no layer of the {mlp}; remove it, or let "
                "llr.model_rank(model) find the rank numerically"
            )
    weights = tuple(exact_matrix(W) for W in mlp.weights)
    biases = tuple(None if b is None else exact_row(b) for b in mlp.biases)
    if mlp.activation == "identity" or len(weights) == 1:
        if any(b is not None for b in biases):
            return DeepNet("identity", weights, biases)
        return LinearNet(weights)
    if len(weights) == 2:
        return _two_layer(mlp.activation, weights, biases)
    return DeepNet(mlp.activation, weights, biases)


def confirmed_mlp(model: nn.Module) -> MLP:
    """The module as an MLP, compared with it in numbers; NotAnMLP as for :func:`llr.inputs.mlp.read_mlp`."""
    mlp = read_mlp(model)
    device = mlp.weights[0].device
    if (torch.float64, device) in mlp.confirmed or device.type == "meta":
        return mlp
    problem = read_problem(
        model, probes(mlp.weights[0].new_empty(0, mlp.widths[0])), None, torch.float64
    )
    if problem.mlp is None:
        raise NotAnMLP(problem.why_not_mlp)
    return mlp


def _other(model: nn.Module, found: str) -> ValueError:
    return ValueError(
        f"this {type(model).__name__} has {found}: the theory reads a model by its class. "
        "llr.model_rank(model) finds the rank of any model numerically"
    )


def _confirm(model: nn.Module, shape: tuple[int, ...] | None) -> None:
    """Compare a model with its steps in exact arithmetic, again only after its parts have changed.

    Args:
        model: a model whose parts have been checked.
        shape: of a sample; None for a model of index pairs.
    """

    def check() -> str:
        if isinstance(model, MatrixFactorization):
            x = model.pairs()[:: max(1, len(model.pairs()) // 4)]
        else:
            p = next(model.parameters())
            x = probes(p.new_empty(0, *(shape or ())))
        try:
            read_network(model, x)
        except ValueError as error:
            return str(error)
        return ""

    if why := gate.confirmed(model, check):
        raise ValueError(why)


def _two_layer(
    activation: str,
    weights: Sequence[Matrix],
    biases: Sequence[Row | None],
    coefficients: Row = (),
) -> TwoLayerNet:
    first, last = weights
    return TwoLayerNet(
        activation=activation,
        w=first,
        b=biases[0],
        a=tuple(zip(*last, strict=True)),
        c=biases[1],
        d=len(first[0]),
        q=len(last),
        coefficients=coefficients,
    )


def _polynomial(model: nn.Module) -> TwoLayerNet | None:
    """An ``nn.Sequential`` of a linear layer, a polynomial and a linear layer, if it is one."""
    if not isinstance(model, nn.Sequential) or len(model._modules) != 3:
        return None
    first, act, last = model._modules.values()
    if not (type(first) is nn.Linear and type(act) is Polynomial and type(last) is nn.Linear):
        return None
    if why := gate.parts_departure(model):
        raise _other(model, why)
    layers = cast(list[nn.Linear], [first, last])
    for layer in layers:
        if layer._parameters.get("weight") is None or "bias" not in layer._parameters:
            raise _other(model, "a weight or bias that is no parameter")
    weights = [exact_matrix(layer.weight) for layer in layers]
    biases = [
        None if layer.bias is None else exact_row(cast(Tensor, layer.bias)) for layer in layers
    ]
    coefficients = tuple(Fraction(c) for c in act.coefficients)
    return _two_layer("polynomial", weights, biases, coefficients)


def _convolution(model: Conv1dTwoLayer) -> ConvNet:
    weight, p = model.weight, model.positions
    if model.shared:
        weight = weight[:, None].expand(-1, p, -1)
    kernels = tuple(exact_matrix(channel) for channel in weight)
    return ConvNet(
        activation=model.activation,
        kernels=kernels,
        a=exact_matrix(model.out),
        d=model.d,
        s=model.kernel_size,
        shared=model.shared,
    )


def _check_parameters(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if not p.requires_grad:
            raise ValueError(
                f"parameter {name!r} is frozen, but the theory counts all parameters; set requires_grad=True "
                "or let llr.model_rank(model) find the rank of the others numerically"
            )
        bad = ~torch.isfinite(p.detach())
        if bool(bad.any()):
            at = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"parameter {name!r} is {float(p.detach()[at])} at index {at}; expected finite numbers"
            )


def exact_row(t: Tensor) -> Row:
    """The entries of a vector as exact numbers."""
    return tuple(Fraction(v) for v in t.detach().double().tolist())


def exact_matrix(t: Tensor) -> Matrix:
    """The entries of a matrix as exact numbers."""
    return tuple(exact_row(row) for row in t)


def rank(rows: Sequence[Sequence[Fraction | int]]) -> int:
    """The rank of a matrix of exact numbers, exactly."""
    rows = [row for row in rows if any(row)]
    if not rows:
        return 0
    whole = [int(v) for row in rows for v in _whole(row)]
    return exact_rank(fmpz_mat(len(rows), len(rows[0]), whole))[0]


def unit_vectors(size: int) -> list[Row]:
    """The unit vectors of `size` coordinates."""
    return [tuple(Fraction(i == j) for j in range(size)) for i in range(size)]


def outer(a: Row, x: Row) -> Row:
    """The products of the entries, one row of the outer product after the other."""
    return tuple(u * v for u in a for v in x)


def _whole(row: Sequence[Fraction | int]) -> Sequence[Fraction | int]:
    """The row multiplied by an integer so that its entries are integers."""
    denominator = math.lcm(*(Fraction(v).denominator for v in row))
    return [v * denominator for v in row]


def warn_of_near_copies(rows: Sequence[Row], what: str = "neurons") -> None:
    """Warn if two rows differ, up to sign, by so little that equality may have been meant.

    Args:
        rows: incoming weights and biases of neurons, one row each.
        what: the name of the rows in the message, in the plural.
    """
    values = torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64)
    if len(values) < 2:
        return
    size = values.abs().amax(-1)
    scale = torch.maximum(size[:, None], size[None])
    gaps = torch.minimum(
        (values[:, None] - values[None]).abs().amax(-1),
        (values[:, None] + values[None]).abs().amax(-1),
    )
    near = (gaps <= _NEAR * scale).triu(diagonal=1)
    for i, j in near.nonzero().tolist():
        if rows[i] != rows[j] and rows[i] != tuple(-v for v in rows[j]):
            warnings.warn(
                f"{what} {i} and {j} differ by {float(gaps[i, j]):.1e} only, and count as different: the "
                "theory uses exact equality. Merge them first if they are meant to be the same",
                stacklevel=stacklevel(),
            )
            return
