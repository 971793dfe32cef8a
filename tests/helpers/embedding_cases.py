"""Narrow networks, and what an embedding of them must satisfy."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from llr import certify
from llr.embedding import Embedding, reduce
from llr.models import Conv1dTwoLayer, TwoLayer, mlp
from llr.theory.spans.formal import formal
from llr.theory.spans.formal_span import contained
from llr.theory.spans.symbols import Symbols

F64 = torch.float64
ACTIVATIONS = ("tanh", "erf", "sigmoid", "softplus", "gelu", "silu", "relu", "sin")
Move = Callable[[nn.Module], tuple[nn.Module, Embedding]]


def network(*widths: int, seed: int = 0, **options: object) -> nn.Sequential:
    """An MLP with normally distributed float64 parameters."""
    return normal(mlp(widths, **options), seed)  # type: ignore[arg-type]


def convolution(*sizes: int, seed: int = 0, **options: object) -> Conv1dTwoLayer:
    return normal(Conv1dTwoLayer(*sizes, **options), seed)  # type: ignore[arg-type]


def normal(model: nn.Module, seed: int) -> nn.Module:  # type: ignore[no-any-unimported]
    model, generator = model.double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    return model


def normal_samples(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def theta(model: nn.Module) -> Tensor:
    return parameters_to_vector(model.parameters()).detach()


def moved(model: nn.Module, vector: Tensor) -> nn.Module:
    """The model with other parameters."""
    vector_to_parameters(vector, model.parameters())
    return model


def certified(model: nn.Module, d: int, seed: int = 0) -> int:
    """The certified rank on more samples than parameters, found without closed forms."""
    P = sum(p.numel() for p in model.parameters())
    return certify(model, normal_samples(P + 6, d, seed), params="*").rank


def narrow_mlp(seed: int) -> nn.Sequential:
    """A random MLP of one to four hidden layers that cannot be reduced."""
    chance = random.Random(seed)
    depth = seed % 4 + 1
    while True:
        widths = [
            chance.randint(1, 3),
            *(chance.randint(1, 3) for _ in range(depth)),
            chance.randint(1, 2),
        ]
        bias, output_bias = chance.random() < 0.7, chance.random() < 0.7
        activation = chance.choice(ACTIVATIONS)
        # Without biases, all ReLUs above a layer of width 1 are multiples of only two functions.
        if not (activation == "relu" and not bias and min(widths[:-1]) == 1):
            model = mlp(widths, activation, bias, output_bias)
            return normal(model, seed)


def widths_of(model: nn.Module) -> list[int]:
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return [linear[0].in_features, *(m.out_features for m in linear)]


def wider(model: nn.Module, seed: int) -> list[int]:
    chance = random.Random(-seed - 1)
    first, *hidden, last = widths_of(model)
    return [first, *(n + chance.randint(0, 3) for n in hidden), last]


def mistake(narrow: nn.Module, wide: nn.Module, embedding: Embedding) -> str:
    """The error of an embedding that should keep function and tangent space, as text; empty if correct."""
    d = embedding.narrow[0]
    if not torch.equal(embedding(theta(narrow)), theta(wide)):
        return "the record does not lead to the model"
    symbols = Symbols()
    below, above = formal(narrow, symbols), formal(wide, symbols)
    if below.outputs != above.outputs:
        return "another function"
    if not contained(above.tangents, below.tangents):
        return "the tangent space is larger"
    if not contained(below.tangents, above.tangents):
        return "the tangent space is smaller"
    other = torch.randn(len(theta(narrow)), generator=torch.Generator().manual_seed(5), dtype=F64)
    before = theta(narrow), theta(wide)
    x = normal_samples(9, d)
    with torch.no_grad():
        f = moved(narrow, other)(x)
        g = moved(wide, embedding.matrix @ other + embedding.constant)(x)
    moved(narrow, before[0]), moved(wide, before[1])
    if not torch.allclose(f, g, rtol=1e-9, atol=1e-9):
        return "another function at other parameters"
    return ""


def not_reduced(narrow: nn.Module, wide: nn.Module) -> str:
    """The error of the reduction of a wide network to the narrow one's widths, as text; empty if correct."""
    found = reduce(wide)
    if list(found.widths) != widths_of(narrow):
        return f"widths {found.widths}"
    symbols = Symbols()
    if formal(narrow, symbols).outputs != formal(found.model, symbols).outputs or not found.proved:
        return "another function"
    x = normal_samples(20, found.widths[0], 3)
    with torch.no_grad():
        close = torch.allclose(narrow(x), found.model(x), rtol=1e-12, atol=1e-12)
    return "" if close else "other outputs"


def two_layer(
    activation: str, neurons: list[tuple[float, float, float]], c: float | None = None
) -> TwoLayer:
    """Neurons as (w, b, a), one input, one output."""
    w, b, a = (torch.tensor(part, dtype=F64) for part in zip(*neurons, strict=True))
    out = None if c is None else torch.tensor([c], dtype=F64)
    return TwoLayer.of(w[:, None], b, a[:, None], out, activation=activation)
