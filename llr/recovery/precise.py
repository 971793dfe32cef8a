"""Two-layer networks with parameters in 256 bits: their values and Jacobians on samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flint import arb, arb_mat
from torch import Tensor

from llr.linalg.balls import ACTIVATIONS, Function
from llr.recovery.net import Net

BITS = 256

Pair = tuple[arb, arb]


def _tanh(z: arb) -> Pair:
    h = z.tanh()
    return h, 1 - h * h


def _sigmoid(z: arb) -> Pair:
    h = ACTIVATIONS["sigmoid"][0](z)
    t = h - arb(0.5)
    return h, arb(0.25) - t * t


_BOTH = {"tanh": _tanh, "sigmoid": _sigmoid, "sin": lambda z: z.sin_cos()}
"""Activation and slope computed together, for the cost of one of them and with equally narrow balls."""


@dataclass(frozen=True)
class Form:
    """A two-layer network without its parameters theta: W (k, d), b (k), A (q, k), c (q)."""

    k: int
    d: int
    q: int
    bias: bool
    output_bias: bool
    activation: str

    @classmethod
    def of(cls, net: Net) -> Form:
        """The form of a network."""
        (k, d), q = net.w.shape, len(net.a)
        return cls(k, d, q, net.b is not None, net.c is not None, net.activation)

    @property
    def count(self) -> int:
        """P."""
        return self.k * (self.d + self.bias + self.q) + self.q * self.output_bias

    def parameters(self, net: Net) -> list[arb]:
        """The parameters theta of a network, exactly."""
        return [arb(v) for p in net.parameters for v in p.flatten().tolist()]

    def network(self, theta: Sequence[arb]) -> Net:
        """The network with parameters theta, rounded to float64."""
        flat = torch.tensor([float(t.mid()) for t in theta], dtype=torch.float64)
        w, b, a, c = self.split(flat)
        return Net(
            w.view(self.k, self.d),
            b if self.bias else None,
            a.view(self.q, self.k),
            c if self.output_bias else None,
            self.activation,
        )

    def split(self, theta: Any) -> tuple[Any, Any, Any, Any]:
        """W, b, A, c, each as a flat list, which is empty if the network has none."""
        i = self.k * self.d
        j = i + self.k * self.bias
        m = j + self.q * self.k
        return theta[:i], theta[i:j], theta[j:m], theta[m:]

    def one_output(self, o: int) -> list[int]:
        """The indices of the parameters on which output o depends."""
        first = self.k * (self.d + self.bias)
        own = [first + o * self.k + j for j in range(self.k)]
        return [*range(first), *own, *([first + self.q * self.k + o] if self.output_bias else [])]


class Inputs:
    """Samples as exact numbers, with a last column of ones if the neurons have biases."""

    def __init__(self, x: Tensor, form: Form) -> None:
        self.form = form
        ends = [arb(1)] if form.bias else []
        self.rows = [[*map(arb, row), *ends] for row in x.tolist()]
        self.matrix = arb_mat(len(self.rows), form.d + form.bias, [v for r in self.rows for v in r])

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, theta: Sequence[arb]) -> Point:
        """The network on these samples, for parameters that may be balls."""
        return Point(self, theta)


class Point:
    """A network on samples: preactivations, activations and slopes, (n k) each."""

    def __init__(self, inputs: Inputs, theta: Sequence[arb]) -> None:
        form = self.form = inputs.form
        self.inputs = inputs
        W, b, self.A, self.c = form.split(theta)
        d = form.d
        columns = [[*W[j * d : (j + 1) * d], *([b[j]] if form.bias else [])] for j in range(form.k)]
        V = arb_mat(d + form.bias, form.k, [c[i] for i in range(d + form.bias) for c in columns])
        self.z: list[arb] = (inputs.matrix * V).entries()
        both = _BOTH.get(form.activation)
        if both is None:
            value, slope = ACTIVATIONS[form.activation]
            self.h = [value(z) for z in self.z]
            self._slope: Function | None = slope
            self._g: list[arb] = []
        else:
            pairs = [both(z) for z in self.z]
            self.h, self._g = [h for h, _ in pairs], [g for _, g in pairs]
            self._slope = None

    @property
    def g(self) -> list[arb]:
        """Slopes."""
        if self._slope is not None:
            self._g, self._slope = [self._slope(z) for z in self.z], None
        return self._g

    def values(self) -> list[arb]:
        """(n q), sample by sample."""
        form, n = self.form, len(self.inputs)
        H = arb_mat(n, form.k, self.h)
        A = arb_mat(form.q, form.k, list(self.A))
        F = (H * A.transpose()).entries()
        if form.output_bias:
            F = [f + self.c[i % form.q] for i, f in enumerate(F)]
        return F

    def jacobian(self, weights: Sequence[arb] | None = None) -> arb_mat:
        """(n q, P), each row multiplied by its weight."""
        form, zero = self.form, arb(0)
        k, q = form.k, form.q
        h, g = self.h, self.g
        entries: list[arb] = []
        for i, x in enumerate(self.inputs.rows):
            hi, gi = h[i * k : (i + 1) * k], g[i * k : (i + 1) * k]
            for o in range(q):
                a = self.A[o * k : (o + 1) * k]
                if weights is None:
                    ag, wh, one = [s * t for s, t in zip(a, gi, strict=True)], hi, arb(1)
                else:
                    w = weights[i * q + o]
                    ag = [s * t * w for s, t in zip(a, gi, strict=True)]
                    wh, one = [t * w for t in hi], w
                for t in ag:
                    entries += [t * v for v in x[: form.d]]
                if form.bias:
                    entries += ag
                for p in range(q):
                    entries += wh if p == o else [zero] * k
                if form.output_bias:
                    entries += [one if p == o else zero for p in range(q)]
        return arb_mat(len(self.inputs) * q, form.count, entries)


def middle(v: Sequence[arb]) -> list[arb]:
    """Midpoints."""
    return [t.mid() for t in v]


def floats(m: arb_mat) -> Tensor:
    """Midpoints in float64."""
    flat = torch.tensor([float(t) for t in m.mid().entries()], dtype=torch.float64)
    return flat.reshape(m.nrows(), m.ncols())
