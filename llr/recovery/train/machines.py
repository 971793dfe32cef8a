"""Outputs and gradients of many members at once, as batched matrix products.

A machine holds the structure of a model and no numbers: parameters are rows of ``theta`` (S, P), samples are
``x`` (S, n, ...), or (1, n, ...) if all members share them. One step of an ensemble takes a few launches, for
any S.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from llr.inputs.mlp import MLP
from llr.inputs.parameters import layout
from llr.inputs.problem import Problem, read_problem
from llr.landscape.surface import Surface
from llr.models import Conv1dTwoLayer, MatrixFactorization
from llr.models.parts import departure_from
from llr.operators.formula import ACTIVATIONS
from llr.recovery.train.data import Data

Tape = Any
"""What the backward pass needs from the forward pass; each machine has its own kind."""


class Machine(Protocol):
    """Computes outputs of all members, and products with transposed Jacobians."""

    def prepare(self, x: Tensor) -> Tensor:
        """The samples in the form that the machine takes; called once, before all steps."""

    def forward(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tape]:
        """Outputs (S, n, q), and the tape."""

    def backward(self, theta: Tensor, tape: Tape, delta: Tensor, out: Tensor) -> None:
        """Write J' delta, (S, P), for delta (S, n, q)."""


def machine_for(model: nn.Module, data: Data, starts: Tensor) -> Machine:
    """The fastest machine that computes this model.

    Raises:
        TypeError: a model that is no module, or whose output is not one tensor.
        ValueError: targets that do not fit the outputs, starts that do not fit the parameters; a model that
            :func:`llr.jacobian` refuses.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected an nn.Module")
    # Checks that the model runs on the samples and can be trained.
    Surface.of(model, data.x[0], data.y[0], _squares)
    problem = read_problem(model, data.x[0], None, starts.dtype)
    if starts.shape[1] != problem.columns.count:
        raise ValueError(
            f"starts has {starts.shape[1]} columns; the model has {problem.columns.count} trainable "
            "parameters"
        )
    if problem.columns.fixed:
        return General(model, problem)
    if problem.mlp is not None and all(name is not None for name in _names(problem)):
        return Layers.of(problem.mlp, problem)
    if isinstance(model, Conv1dTwoLayer) and departure_from(model, Conv1dTwoLayer) is None:
        return Kernels(model)
    if (
        isinstance(model, MatrixFactorization)
        and departure_from(model, MatrixFactorization) is None
    ):
        return Factors(model)
    return General(model, problem)


def _squares(outputs: Tensor, y: Tensor) -> Tensor:
    if len(outputs) != len(y) or outputs.numel() != y.numel():
        raise ValueError(
            f"y has {y.shape[1]} numbers for each of {len(y)} samples, but the model's outputs have shape "
            f"{tuple(outputs.shape)}; expected y (n, q) or (B, n, q) with q outputs for each sample"
        )
    return (outputs.reshape(y.shape) - y).square().sum()


def _names(problem: Problem) -> list[str | None]:
    """The names of the MLP's weights and biases, None for missing ones."""
    return [name for name, tensor in problem.chain() if tensor is not None]


def _with_slope(activation: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """z -> sigma(z), sigma'(z); the slope is computed from the value if this is cheaper, as torch does."""
    sigma, slope = ACTIVATIONS[activation]

    def tanh(z: Tensor) -> tuple[Tensor, Tensor]:
        a = z.tanh()
        return a, torch.addcmul(a.new_ones(()), a, a, value=-1)

    def sigmoid(z: Tensor) -> tuple[Tensor, Tensor]:
        a = z.sigmoid()
        return a, torch.addcmul(a, a, a, value=-1)

    cheaper = {"tanh": tanh, "sigmoid": sigmoid}
    return cheaper.get(activation, lambda z: (sigma(z), slope(z)))


@dataclass(frozen=True)
class _Place:
    """The position of a tensor in a row of parameters."""

    columns: slice
    shape: tuple[int, ...]

    def of(self, theta: Tensor) -> Tensor:
        """(S, *shape), a view."""
        return theta[:, self.columns].view(len(theta), *self.shape)


class Layers:
    """MLPs: chains of ``torch.baddbmm``."""

    def __init__(self, activation: str, layers: list[tuple[_Place, _Place | None]]) -> None:
        self.layers = layers
        self.activate = _with_slope(activation)

    @classmethod
    def of(cls, mlp: MLP, problem: Problem) -> Layers:
        """The machine of an MLP whose tensors are all columns of the problem."""
        slices = problem.columns.slices()
        places = [
            None if t is None else _Place(slices[str(name)], tuple(t.shape))
            for name, t in problem.chain()
        ]
        layers = [(w, b) for w, b in zip(places[::2], places[1::2], strict=True) if w is not None]
        return cls(mlp.activation, layers)

    def prepare(self, x: Tensor) -> Tensor:
        """Samples as columns (S, d, n): in all tensors neurons are the rows and samples the columns."""
        return x.flatten(2).mT.contiguous()

    def forward(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tape]:
        """Layer by layer."""
        signals, slopes = [x], list[Tensor]()
        for weight, bias in self.layers[:-1]:
            a, slope = self.activate(_affine(signals[-1], weight, bias, theta))
            signals.append(a)
            slopes.append(slope)
        return _affine(signals[-1], *self.layers[-1], theta).mT, (signals, slopes)

    def backward(self, theta: Tensor, tape: Tape, delta: Tensor, out: Tensor) -> None:
        """Layer by layer, from the last one."""
        signals, slopes = tape
        delta = delta.mT
        for k in reversed(range(len(self.layers))):
            weight, bias = self.layers[k]
            weight.of(out).copy_(_products(delta, signals[k].mT))
            if bias is not None:
                torch.sum(delta, -1, out=bias.of(out))
            if k:
                W = weight.of(theta).mT
                # One output: an outer product, for which bmm is slow.
                delta = W * delta if W.shape[-1] == 1 else torch.bmm(W, delta)
                delta.mul_(slopes[k - 1])


def _affine(signal: Tensor, weight: _Place, bias: _Place | None, theta: Tensor) -> Tensor:
    z = _products(weight.of(theta), signal)
    return z if bias is None else z.add_(bias.of(theta)[..., None])


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Products for every member, (S, i, j) and (S, j, k); one large product if all share the right factor."""
    if len(right) == 1:
        return (left.flatten(0, 1) @ right[0]).view(*left.shape[:2], -1)
    return torch.bmm(left, right)


class Kernels:
    """Two-layer networks of convolution kernels: the patches are the samples of the first layer."""

    def __init__(self, model: Conv1dTwoLayer) -> None:
        slices = layout(model)
        self.size, self.positions, self.shared = model.kernel_size, model.positions, model.shared
        self.weight = _Place(slices["weight"], tuple(model.weight.shape))
        self.out = _Place(slices["out"], tuple(model.out.shape))
        self.activate = _with_slope(model.activation)

    def prepare(self, x: Tensor) -> Tensor:
        """Patches (S, n, p, s)."""
        return x.unfold(2, self.size, 1).contiguous()

    def _kernels(self, theta: Tensor) -> Tensor:
        """(S, m, p or 1, s)."""
        w = self.weight.of(theta)
        return w[:, :, None] if self.shared else w

    def forward(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tape]:
        """All kernels at all positions, (S, n, p, m), and their sum with the outgoing weights."""
        S, n = len(theta), x.shape[1]
        x = x.expand(S, -1, -1, -1)
        if self.shared:
            z = torch.bmm(x.flatten(1, 2), self.weight.of(theta).mT)
        else:  # a product for each member and position
            z = torch.einsum("Snps,Smps->Snpm", x, self.weight.of(theta))
        a, slope = self.activate(z.reshape(S, n, self.positions, -1))
        v = self.out.of(theta).mT.reshape(S, -1, 1)
        return torch.bmm(a.flatten(2), v), (x, a, slope, v)

    def backward(self, theta: Tensor, tape: Tape, delta: Tensor, out: Tensor) -> None:
        """The sums over samples, and over positions if kernels are shared."""
        x, a, slope, v = tape
        S, n = len(theta), delta.shape[1]
        dv = torch.bmm(delta.mT, a.flatten(2)).view(S, self.positions, -1)
        self.out.of(out).copy_(dv.mT)
        dz = (delta * v.mT).view(S, n, self.positions, -1) * slope
        if self.shared:
            dw = torch.bmm(dz.flatten(1, 2).mT, x.flatten(1, 2))
        else:
            dw = torch.einsum("Snpm,Snps->Smps", dz, x)
        self.weight.of(out).copy_(dw)


class Factors:
    """Matrix factorizations: computes the whole product; the samples are entries of it."""

    def __init__(self, model: MatrixFactorization) -> None:
        slices = layout(model)
        self.A = _Place(slices["A"], tuple(model.A.shape))
        self.B = _Place(slices["B"], tuple(model.B.shape))

    def prepare(self, x: Tensor) -> Tensor:
        """Places (S, N) in the matrix, row by row."""
        (m, _), (_, n) = self.A.shape, self.B.shape
        i, j = x.long().unbind(-1)
        if bool(((i < 0) | (i >= m) | (j < 0) | (j >= n)).any()):
            raise ValueError(
                f"index pairs lie between {x.amin((0, 1)).tolist()} and {x.amax((0, 1)).tolist()}; "
                f"expected rows 0 to {m - 1} and columns 0 to {n - 1}"
            )
        return i * n + j

    def forward(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tape]:
        """The entries of A B."""
        places = x.expand(len(theta), -1)
        product = torch.bmm(self.A.of(theta), self.B.of(theta))
        return product.flatten(1).gather(1, places)[..., None], places

    def backward(self, theta: Tensor, tape: Tape, delta: Tensor, out: Tensor) -> None:
        """The products of the other factor with the matrix that has delta at the samples' places."""
        (m, _), (_, n) = self.A.shape, self.B.shape
        R = delta.new_zeros(len(theta), m * n).scatter_add_(1, tape, delta[..., 0]).view(-1, m, n)
        self.A.of(out).copy_(torch.bmm(R, self.B.of(theta).mT))
        self.B.of(out).copy_(torch.bmm(self.A.of(theta).mT, R))


class General:
    """Any other model, by ``torch.func``."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        self.problem = replace(problem, model=model)
        self.places = {
            name: _Place(s, tuple(problem.columns.values[name].shape))
            for name, s in problem.columns.slices().items()
        }

    def prepare(self, x: Tensor) -> Tensor:
        """The samples, unchanged."""
        return x

    def forward(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tape]:
        """The model of every member; the tape is its vector-Jacobian product."""
        shared = len(x) == 1 and len(theta) > 1
        samples = x[0] if shared else x

        def one(row: Tensor, sample: Tensor) -> Tensor:
            values = {
                name: row[place.columns].view(place.shape) for name, place in self.places.items()
            }
            outputs = cast(Tensor, self.problem.call(values, sample))
            return outputs.reshape(len(sample), -1)

        def every(rows: Tensor) -> Tensor:
            return vmap(one, in_dims=(0, None if shared else 0))(rows, samples)

        with torch.enable_grad():
            outputs, back = cast(tuple[Tensor, Tape], vjp(every, theta))
        return outputs.detach(), back

    def backward(self, theta: Tensor, tape: Tape, delta: Tensor, out: Tensor) -> None:  # noqa: ARG002
        """By autograd."""
        out.copy_(tape(delta)[0].detach())


class Ensemble:
    """Members, their samples, and the loss ``1/(2 n) sum r^2`` of each, for the n samples that it sees.

    Args:
        machine: the machine of the model.
        x: (S, n, ...) or (1, n, ...), prepared by the machine.
        y: (S, n, q) or (1, n, q).
        weights: (S, n, 1) or (1, n, 1), 1 / (the number of samples seen), or zero.
    """

    def __init__(self, machine: Machine, x: Tensor, y: Tensor, weights: Tensor) -> None:
        self.machine, self.x, self.y, self.weights = machine, x, y, weights
        self.power = (weights * y * y).sum((1, 2))
        """The mean over samples of the squared norm of the targets; (S,) or (1,)."""

    def outputs(self, theta: Tensor) -> Tensor:
        """f, (S, n, q)."""
        return self.machine.forward(theta, self.x)[0]

    def residual(self, theta: Tensor) -> Tensor:
        """f - y, (S, n, q)."""
        return self.outputs(theta) - self.y

    def gradient(self, theta: Tensor, out: Tensor) -> Tensor:
        """Write the gradients of the losses, (S, P), and return the residuals, (S, n, q)."""
        outputs, tape = self.machine.forward(theta, self.x)
        residual = outputs - self.y
        self.machine.backward(theta, tape, residual * self.weights, out)
        return residual

    def loss(self, residual: Tensor) -> Tensor:
        """(S,)."""
        return (self.weights * residual * residual).sum((1, 2)) / 2

    def select(self, rows: Tensor) -> Ensemble:
        """The ensemble of these members only; `rows` are their indices."""
        if len(self.y) == 1:
            return self
        return Ensemble(self.machine, self.x[rows], self.y[rows], self.weights[rows])

    def working_bytes(self, P: int) -> int:
        """Roughly the memory that a step of one member reads and writes."""
        count = 8 * P + 4 * self.y[0].numel() + 2 * math.prod(self.x.shape[1:])
        if isinstance(self.machine, Layers):
            widths = sum(weight.shape[0] for weight, _ in self.machine.layers[:-1])
            count += 3 * widths * self.y.shape[1]
        return count * self.y.element_size()
