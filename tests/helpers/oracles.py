"""Networks, tensors and slow computations that several test files compare with.

Needs torch and numpy only: the operator tests run in environments that have little else.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llr.jacobians import reference

TESTS = Path(__file__).parents[1]

# Functions of torch, differentiated by torch: independent of llr.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "silu": F.silu,
    "erf": torch.erf,
    "sin": torch.sin,
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

RELATIVE = {torch.float64: 1e-13, torch.float32: 1e-5}
"""Allowed ratio of the largest error to the largest entry."""


@dataclass(frozen=True)
class Net:
    """Sizes of a test network and of the samples put through it."""

    widths: tuple[int, ...]
    n: int = 5
    biases: tuple[bool, ...] | bool = True
    points: int | None = None
    own_x: bool = False
    """Whether every parameter point has its own samples."""

    @property
    def parameters(self) -> int:
        pairs = zip(itertools.pairwise(self.widths), self.has_bias, strict=True)
        return sum(out * (into + has) for (into, out), has in pairs)

    @property
    def numbers(self) -> int:
        """Size of the Jacobian, over all parameter points."""
        points = 1 if self.points is None else self.points
        return points * self.n * self.widths[-1] * self.parameters

    @property
    def has_bias(self) -> tuple[bool, ...]:
        layers = len(self.widths) - 1
        return (self.biases,) * layers if isinstance(self.biases, bool) else self.biases


def name(value: object) -> str:
    """A short test id for a net or its sizes."""
    if isinstance(value, Net):
        biases = "" if value.biases is True else "-b" + "".join(str(int(b)) for b in value.has_bias)
        points = "" if value.points is None else f"-B{value.points}{'x' * value.own_x}"
        return "-".join(map(str, value.widths)) + f"-n{value.n}{biases}{points}"
    return str(value)


class Tensors(NamedTuple):
    """The arguments of the operator, in its order."""

    x: Tensor
    weights: list[Tensor]
    biases: list[Tensor | None]


def draw(
    net: Net, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> Tensors:
    """Random samples and parameters; they depend only on the net and the seed, not on the dtype."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    batch = () if net.points is None else (net.points,)
    x = normal(*(batch if net.own_x else ()), net.n, net.widths[0])
    pairs = [(out, into) for into, out in itertools.pairwise(net.widths)]
    weights = [normal(*batch, out, into) / into**0.5 for out, into in pairs]
    biases = [
        normal(*batch, out) / 2 if has else None
        for (out, _), has in zip(pairs, net.has_bias, strict=True)
    ]
    return Tensors(x, weights, biases)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def on_grid(J: Tensor, bits: int = 60) -> Tensor:
    """Rounded to multiples of 2^-bits."""
    return (J * 2.0**bits).round() / 2.0**bits


def as_integers(t: Tensor, bits: int) -> np.ndarray:
    """The doubles times 2^bits, as Python integers; an error if one of these is not an integer."""
    scaled = [Fraction(v) * 2**bits for v in t.flatten().tolist()]
    assert all(v.denominator == 1 for v in scaled)
    return np.array([int(v) for v in scaled], dtype=object).reshape(t.shape)


def chain(
    params: Mapping[str, Tensor], x: Tensor, layers: int, sigma: Callable[[Tensor], Tensor]
) -> Tensor:
    """The network that the operator differentiates, as a plain function of w0, b0, w1, ..."""
    for layer in range(layers):
        x = F.linear(x, params[f"w{layer}"], params.get(f"b{layer}"))
        x = sigma(x) if layer + 1 < layers else x
    return x


def loop_jacobian(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], activation: str
) -> Tensor:
    """The operator's result in float64 from a loop of autograd over points, samples and outputs."""
    points = weights[0].shape[0] if weights[0].dim() == 3 else (len(x) if x.dim() == 3 else None)
    if points is not None:
        return torch.stack(
            [
                loop_jacobian(
                    x[i] if x.dim() == 3 else x,
                    [w[i] if w.dim() == 3 else w for w in weights],
                    [b if b is None or b.dim() == 1 else b[i] for b in biases],
                    activation,
                )
                for i in range(points)
            ]
        )
    params: dict[str, Tensor] = {}
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        params[f"w{layer}"] = w.detach().double()
        if b is not None:
            params[f"b{layer}"] = b.detach().double()
    sigma = ACTIVATIONS[activation]
    model = lambda p, s: chain(p, s, len(weights), sigma)  # noqa: E731
    result = reference.jacobian(model, x.detach().double(), params)
    # With no sample the loop cannot know the number of outputs.
    return result if len(x) else result.new_zeros(0, weights[-1].shape[0], result.shape[-1])


def exact_rows(
    x: Sequence[Any],
    weights: Sequence[Sequence[Sequence[Any]]],
    biases: Sequence[Sequence[Any] | None],
    sigma: Callable[[Any], Any],
    slope: Callable[[Any], Any],
) -> list[list[Any]]:
    """One sample's rows (q, P), for arguments of any type of number."""
    inputs, slopes = [list(x)], []
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        z = [sum(wij * a for wij, a in zip(row, inputs[-1], strict=True)) for row in w]
        z = z if b is None else [zi + bi for zi, bi in zip(z, b, strict=True)]
        inputs.append([sigma(zi) for zi in z])
        slopes.append([slope(zi) for zi in z])
    rows = []
    for output in range(len(weights[-1])):
        delta = [int(i == output) for i in range(len(weights[-1]))]
        blocks: list[list[Any]] = []
        for layer in reversed(range(len(weights))):
            bias = [] if biases[layer] is None else delta
            blocks.insert(0, [d * a for d in delta for a in inputs[layer]] + bias)
            if layer > 0:
                w = weights[layer]
                back = [
                    sum(d * row[j] for d, row in zip(delta, w, strict=True))
                    for j in range(len(w[0]))
                ]
                delta = [d * s for d, s in zip(back, slopes[layer - 1], strict=True)]
        rows.append([value for block in blocks for value in block])
    return rows


def mlp(
    *widths: int,
    activation: Callable[[], nn.Module] = nn.Tanh,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """An ``nn.Sequential`` of linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layers += [activation()] if layers else []
        layers.append(nn.Linear(into, out, bias=bias, dtype=dtype))
    return nn.Sequential(*layers)


def error(result: Tensor, expected: Tensor) -> float:
    """Largest error over largest expected entry; NaN if there is one anywhere in the result."""
    assert result.shape == expected.shape, f"{tuple(result.shape)} is not {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    difference = float((result.detach().double() - expected.detach().double()).abs().max())
    scale = float(expected.detach().abs().max())
    assert math.isfinite(scale), "the expected values are not finite"
    return difference if scale == 0 else difference / scale


def assert_matches(result: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Assert the same shape, and equality within the allowed error of the result's dtype."""
    allowed = RELATIVE[result.dtype] if tolerance is None else tolerance
    found = error(result, expected)
    assert found <= allowed, f"relative error {found:.3g}, allowed {allowed:.3g}"


def run_python(
    code: str, *, stdin: str = "", timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that can import the helpers."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=TESTS,  # not the root of the checkout, so that the installed llr is tested
        env=os.environ | environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
