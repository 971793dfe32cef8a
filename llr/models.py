"""Models of the theory as ordinary modules: usable wherever llr, or torch, takes a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Erf(nn.Module):
    """The error function as a layer."""

    def forward(self, z: Tensor) -> Tensor:
        """Return erf of every entry."""
        return torch.erf(z)


class Sine(nn.Module):
    """The sine as a layer."""

    def forward(self, z: Tensor) -> Tensor:
        """Return the sine of every entry."""
        return torch.sin(z)


class Polynomial(nn.Module):
    """``c_0 + c_1 z + ... + c_n z^n`` as a layer."""

    def __init__(self, coefficients: Sequence[float]) -> None:
        super().__init__()
        self.coefficients = tuple(float(c) for c in coefficients)

    def forward(self, z: Tensor) -> Tensor:
        """Return the polynomial of every entry."""
        value = torch.zeros_like(z)
        for c in reversed(self.coefficients):
            value = value * z + c
        return value


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "erf": Erf,
    "sin": Sine,
    "identity": nn.Identity,
}


class TwoLayer(nn.Sequential):
    """``sum_i a_i s(w_i . x + b_i) (+ c)``."""

    def __init__(
        self,
        d: int,
        m: int,
        q: int = 1,
        *,
        activation: str | nn.Module = "tanh",
        bias: bool = True,
        output_bias: bool = False,
    ) -> None:
        act = ACTIVATIONS[activation]() if isinstance(activation, str) else activation
        super().__init__(nn.Linear(d, m, bias=bias), act, nn.Linear(m, q, bias=output_bias))


class Conv1dTwoLayer(nn.Module):
    """``sum_{l,t} a_{l,t} s(w_l . x[t : t+s])``: kernels at every position, with or without sharing."""

    def __init__(
        self,
        d: int,
        kernel_size: int,
        channels: int,
        *,
        shared: bool = True,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.d, self.kernel_size, self.channels = d, kernel_size, channels
        self.shared, self.activation = shared, activation
        self.positions = d + 1 - kernel_size
        own = () if shared else (self.positions,)
        self.weight = nn.Parameter(torch.randn(channels, *own, kernel_size) / math.sqrt(kernel_size))
        self.out = nn.Parameter(torch.randn(channels, self.positions) / math.sqrt(channels))
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (n, d) to (n, 1)."""
        patches = x.unfold(1, self.kernel_size, 1)  # (n, p, s)
        kind = "nps,ms->nmp" if self.shared else "nps,mps->nmp"
        hidden = self.act(torch.einsum(kind, patches, self.weight))
        return torch.einsum("nmp,mp->n", hidden, self.out)[:, None]


class MatrixFactorization(nn.Module):
    """The entries of A B, A (m, p), B (p, n); samples are index pairs (i, j)."""

    def __init__(self, m: int, p: int, n: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(m, p) / math.sqrt(p))
        self.B = nn.Parameter(torch.randn(p, n) / math.sqrt(p))

    def forward(self, pairs: Tensor) -> Tensor:
        """Map index pairs (N, 2) to the entries there, (N, 1)."""
        return (self.A[pairs[:, 0]] * self.B[:, pairs[:, 1]].T).sum(-1, keepdim=True)


class DeepLinear(nn.Sequential):
    """``W_L ... W_1 x`` of these widths."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(
            *(nn.Linear(i, o, bias=False) for i, o in zip(widths[:-1], widths[1:], strict=True))
        )


def mlp(
    widths: Sequence[int],
    activation: str = "tanh",
    bias: bool = True,
    output_bias: bool = True,
) -> nn.Sequential:
    """An MLP of these widths."""
    layers: list[nn.Module] = []
    for number, (i, o) in enumerate(zip(widths[:-1], widths[1:], strict=True), 1):
        last = number == len(widths) - 1
        layers.append(nn.Linear(i, o, bias=output_bias if last else bias))
        layers += [] if last else [ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
