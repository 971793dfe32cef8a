"""Networks of small dyadic numbers, and wider networks with the same function, built by hand."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from llr.models import ACTIVATIONS

F64 = torch.float64


def dyadic(
    *widths: int, activation: str = "tanh", biases: bool | Sequence[bool] = True, seed: int = 0
) -> nn.Sequential:
    """Parameters that are multiples of 1/16 and not 0: sums and halves of them are exact."""
    generator = torch.Generator().manual_seed(seed)
    has = [biases] * (len(widths) - 1) if isinstance(biases, bool) else biases
    layers: list[nn.Module] = []
    for (i, o), bias in zip(itertools.pairwise(widths), has, strict=True):
        layers += [nn.Linear(i, o, bias=bias), ACTIVATIONS[activation]()]
    net = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((torch.randn(p.shape, generator=generator).double() * 16).round() / 16)
            p[p == 0] = 0.3125
    return net


def linears(net: nn.Sequential) -> list[nn.Linear]:
    return [m for m in net if isinstance(m, nn.Linear)]


def built(
    net: nn.Sequential, tables: list[tuple[list[list[float]], list[float] | None]]
) -> nn.Sequential:
    """A network with these weights and biases, and the activation of another network."""
    layers: list[nn.Module] = []
    for W, b in tables:
        layer = nn.Linear(len(W[0]), len(W), bias=b is not None, dtype=F64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(W, dtype=F64))
            if b is not None:
                layer.bias.copy_(torch.tensor(b, dtype=F64))
        layers += [layer, copy.deepcopy(net[1])]
    return nn.Sequential(*layers[:-1])


def tables(net: nn.Sequential) -> list[tuple[list[list[float]], list[float] | None]]:
    return [(m.weight.tolist(), None if m.bias is None else m.bias.tolist()) for m in linears(net)]


def with_neuron(
    net: nn.Sequential, layer: int, row: Sequence[float], bias: float, column: Sequence[float]
) -> nn.Sequential:
    """Add a neuron to a hidden layer, with these incoming and outgoing weights."""
    parts = tables(net)
    W, b = parts[layer]
    W.append(list(row))
    if b is not None:
        b.append(bias)
    for weights, c in zip(parts[layer + 1][0], column, strict=True):
        weights.append(c)
    return built(net, parts)


def split(
    net: nn.Sequential, layer: int, shares: Sequence[float], neuron: int = 0, sign: int = 1
) -> nn.Sequential:
    """Split a neuron: the copy is reflected for sign = -1, and has a share for each neuron that reads it."""
    W, b = tables(net)[layer]
    out = [row[neuron] for row in tables(net)[layer + 1][0]]
    row, bias = [sign * v for v in W[neuron]], 0.0 if b is None else sign * b[neuron]
    copied = [sign * share * v for share, v in zip(shares, out, strict=True)]
    wide = with_neuron(net, layer, row, bias, copied)
    with torch.no_grad():
        for k, (share, v) in enumerate(zip(shares, out, strict=True)):
            linears(wide)[layer + 1].weight[k, neuron] = (1 - share) * v
    return wide


def member(
    net: nn.Sequential,
    alpha: float,
    t: float,
    s: float,
    r: Sequence[float] = (),
    *,
    layer: int = 0,
    first: int = 0,
    second: int = 0,
) -> nn.Sequential:
    """A member of the family of lifted networks, built entry by entry."""
    parts = tables(net)
    (W, b), (V, c), (A, _) = parts[layer : layer + 3]
    W.append(list(W[first]))
    V.append(list(V[second]))
    for bias, neuron in ((b, first), (c, second)):
        if bias is not None:
            bias.append(bias[neuron])
    others = iter(r)
    for k, row in enumerate(V):
        reads = t if k == second else s if k == len(V) - 1 else next(others)
        row[first] -= reads
        row.append(reads)
    for row in A:
        row.append(alpha * row[second])
        row[second] *= 1 - alpha
    return built(net, parts)


def reading(
    net: nn.Sequential, layer: int = 0, first: int = 0, second: int = 0
) -> tuple[float, list[float]]:
    """u and v: the weights from neuron `first` to neuron `second` of the next layer, and to others there."""
    column = linears(net)[layer + 1].weight[:, first].tolist()
    return column[second], column[:second] + column[second + 1 :]


def quarters(chance: random.Random, *, zero: bool = False) -> float:
    """A multiple of 1/4 from -2 to 2."""
    return chance.choice([k / 4 for k in range(-8, 9) if k or zero])


def holds(
    u: float, v: Sequence[float], alpha: float, t: float, s: float, r: Sequence[float]
) -> bool:
    """Whether a lambda exists, by the minors of a matrix with two rows."""
    narrow = [Fraction(u), *map(Fraction, v)]
    wide = [(1 - Fraction(alpha)) * Fraction(t) + Fraction(alpha) * Fraction(s), *map(Fraction, r)]
    pairs = itertools.combinations(range(len(narrow)), 2)
    proportional = all(narrow[i] * wide[j] == narrow[j] * wide[i] for i, j in pairs)
    return proportional and (any(narrow) or not any(wide))


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The norm of the gradient of half the mean square, by autograd."""
    loss = ((net(x) - y) ** 2).sum() / (2 * len(x))
    found = torch.autograd.grad(loss, list(net.parameters()))
    return math.sqrt(sum(float((g**2).sum()) for g in found))
