"""Models, data and calls for the tests of the operator for least squares."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from helpers.oracles import ACTIVATIONS
from torch import Tensor

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64 = torch.float64
CASES = int(os.environ.get("LLR_RANDOM_CASES", "25"))
CONVERGED, STALLED, LIMIT, FAILED, SKIPPED = range(5)
Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Model:
    """The operator's description of a model, and the number of samples in these tests."""

    kind: str
    sizes: tuple[int, ...]
    n: int
    activation: str = "tanh"
    biases: tuple[bool, ...] = ()

    @property
    def outputs(self) -> int:
        return self.sizes[-1] if self.kind == "mlp" else 1

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters, in the operator's order."""
        if self.kind == "mlp":
            pairs = zip(itertools.pairwise(self.sizes), self.biases, strict=True)
            return [s for (i, o), b in pairs for s in ([(o, i), (o,)] if b else [(o, i)])]
        if self.kind == "factorization":
            rows, rank, columns = self.sizes
            return [(rows, rank), (rank, columns)]
        d, kernel, channels = self.sizes
        own = () if self.kind == "conv1d" else (d + 1 - kernel,)
        return [(channels, *own, kernel), (channels, d + 1 - kernel)]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def samples(self, sets: int, seed: int) -> Tensor:
        if self.kind == "factorization":
            pairs = [
                torch.randint(m, (sets, self.n), generator=torch.Generator().manual_seed(seed + k))
                for k, m in enumerate((self.sizes[0], self.sizes[2]))
            ]
            return torch.stack(pairs, -1).double()
        return normal(sets, self.n, self.sizes[0], seed=seed)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """The outputs (n, q) at parameters (P), computed with torch."""
        sigma = ACTIVATIONS[self.activation]
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = [t.view(s) for t, s in zip(theta.split(sizes), self.shapes, strict=True)]
        if self.kind == "factorization":
            i, j = x.long().unbind(-1)
            return (parts[0][i] * parts[1].T[j]).sum(-1, keepdim=True)
        if self.kind != "mlp":
            weight, out = parts
            patches = x.unfold(1, weight.shape[-1], 1)  # (n, positions, kernel)
            kernels = weight[:, None] if weight.dim() == 2 else weight
            return (sigma((patches[:, None] * kernels).sum(-1)) * out).sum((1, 2))[:, None]
        rest = iter(parts)
        for layer, bias in enumerate(self.biases):
            x = (sigma(x) if layer else x) @ next(rest).T
            x = x + next(rest) if bias else x
        return x


def mlp(*sizes: int, n: int, activation: str = "tanh", biases: Any = True) -> Model:
    has = (biases,) * (len(sizes) - 1) if isinstance(biases, bool) else tuple(biases)
    return Model("mlp", sizes, n, activation, has)


MODELS: dict[str, Model] = {
    **{a: mlp(3, 3, 1, n=20, activation=a) for a in ACTIVATIONS},
    **{f"{a}, few samples": mlp(3, 4, 2, n=4, activation=a) for a in ACTIVATIONS},
    "no bias": mlp(3, 3, 1, n=20, biases=False),
    "no output bias": mlp(3, 3, 1, n=20, biases=(True, False)),
    "output bias alone": mlp(3, 3, 2, n=20, biases=(False, True)),
    "no bias, few samples": mlp(3, 5, 1, n=6, biases=False),
    "no output bias, few samples": mlp(3, 5, 2, n=5, biases=(True, False)),
    "linear": mlp(3, 2, n=9),
    "linear, few samples": mlp(9, 2, n=4, biases=False),
    "one number": mlp(1, 1, n=1, biases=False),
    "one neuron": mlp(1, 1, 1, n=5),
    "deep": mlp(3, 4, 5, 2, n=30),
    "deep, few samples": mlp(3, 4, 5, 2, n=7, biases=(True, False, True)),
    "deeper": mlp(2, 3, 2, 4, 1, n=40, activation="silu"),
    "deeper, few samples": mlp(2, 7, 5, 9, 3, n=5, activation="sin"),
    "wide": mlp(5, 50, 1, n=30),
    **{
        f"{kind}{more}": Model(kind, sizes, n, activation)
        for kind in ("conv1d", "local1d")
        for more, sizes, n, activation in (
            ("", (5, 3, 1), 20, "tanh"),
            (", two channels", (6, 2, 2), 40, "sin"),
            (", few samples", (7, 3, 3), 6, "gelu"),
            (", whole kernel", (4, 4, 2), 12, "sigmoid"),
            (", kernel of one", (3, 1, 2), 5, "erf"),
        )
    },
    "factorization": Model("factorization", (3, 2, 4), 20, "identity"),
    "factorization, few entries": Model("factorization", (5, 3, 4), 9, "identity"),
    "factorization, rank one": Model("factorization", (4, 1, 3), 8, "identity"),
    "factorization, one entry": Model("factorization", (1, 1, 1), 1, "identity"),
}


class Options(NamedTuple):
    """The operator's options, with the schema's defaults."""

    damping: float = 1.0
    down: float = 0.2
    up: float = 3.0
    progress: float = 0.0
    stall: int = 20
    iterations: int = 160
    tol: float = 1e-20
    first: bool = False


class Result(NamedTuple):
    theta: Tensor
    loss: Tensor
    iterations: Tensor
    status: Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Data(NamedTuple):
    """Starts and data sets; the targets are outputs at other parameters, plus noise."""

    theta: Tensor
    x: Tensor
    y: Tensor
    which: Tensor


def draw(
    model: Model, starts: int = 11, sets: int = 3, scale: float = 0.7, noise: float = 0.3
) -> Data:
    x = model.samples(sets, seed=1)
    teachers = normal(sets, model.parameters, seed=4)
    exact = torch.stack([model(t, each) for t, each in zip(teachers, x, strict=True)])
    y = exact + noise * normal(*exact.shape, seed=5)
    which = torch.arange(starts) * 7 % sets
    return Data(scale * normal(starts, model.parameters, seed=6), x, y, which)


def native(model: Model, data: Data, **options: Any) -> Result:
    chosen = Options(**options)._asdict()
    description = (model.kind, list(model.sizes), model.activation, list(model.biases))
    return Result(*torch.ops.llr.lm_solve(*data, *description, **chosen))


def same(a: Result, b: Result, rows: Tensor | slice = slice(None)) -> bool:
    return all(torch.equal(s, t[rows]) for s, t in zip(a, b, strict=True))
