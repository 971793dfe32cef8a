"""Two-layer networks at random parameters, most of which are degenerate."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from llr import certify
from llr.models import ACTIVATIONS, Polynomial, TwoLayer
from llr.theory.structures.structure import TwoLayerNet, rank, read_structure

F64 = torch.float64

ANALYTIC = ("tanh", "erf", "sigmoid", "softplus", "gelu", "silu", "relu", "sin")
POLYNOMIALS = {
    "z^2": (0, 0, 1),
    "z^3": (0, 0, 0, 1),
    "z^4": (0, 0, 0, 0, 1),
    "z + z^2": (0, 1, 1),
    "z + z^3": (0, 1, 0, 1),
    "1 + 2z - z^2 + z^3 + 3z^4": (1, 2, -1, 1, 3),
}
NAMES = (*ANALYTIC, *POLYNOMIALS)


def random_cases(default: int) -> int:
    """The number of random cases of a test."""
    return int(os.environ.get("LLR_RANDOM_CASES", default))


def activation_of(name: str) -> nn.Module:
    return Polynomial(POLYNOMIALS[name]) if name in POLYNOMIALS else ACTIVATIONS[name]()


def build(
    activation: str,
    neurons: Sequence[tuple[Sequence[float], float, Sequence[float]]],
    *,
    bias: bool = True,
    output_bias: Sequence[float] | None = None,
) -> TwoLayer:
    """sum_i a_i s(w_i x + b_i) (+ c), neurons as (w, b, a)."""
    w, b, a = (torch.tensor(part, dtype=F64) for part in zip(*neurons, strict=True))
    model = TwoLayer(
        w.shape[1],
        len(neurons),
        a.shape[1],
        activation=activation_of(activation),
        bias=bias,
        output_bias=output_bias is not None,
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(w)
        model[2].weight.copy_(a.T)
        if bias:
            model[0].bias.copy_(b)
        if output_bias is not None:
            model[2].bias.copy_(torch.tensor(output_bias, dtype=F64))
    return model


def random_two_layer(activation: str, seed: int) -> TwoLayer:
    """A network of up to five neurons, of which later ones often repeat, reflect or cancel earlier ones."""
    chance = random.Random(f"{activation} {seed}")
    d, q, m = chance.randint(1, 3), chance.randint(1, 3), chance.randint(1, 5)
    bias, output_bias = chance.random() < 0.7, chance.random() < 0.3
    neurons: list[tuple[list[float], float, list[float]]] = []
    for _ in range(m):
        w = _vector(chance, d) if chance.random() < 0.8 else [0.0] * d
        b, a = chance.choice((0.0, 0.0, 0.5, -0.5, 1.0, -1.0, 0.75)), _vector(chance, q)
        if neurons and chance.random() < 0.6:
            old_w, old_b, old_a = chance.choice(neurons)
            factor = chance.choice((1.0, -1.0))
            if activation == "relu" and chance.random() < 0.5:
                factor *= chance.choice((0.5, 2.0, 3.0))
            w = [factor * v for v in old_w]
            # Sine: one direction at another phase.
            b = factor * old_b if chance.random() < 0.8 else b
            if chance.random() < 0.5:
                a = [chance.choice((1.0, -1.0, 0.5, 0.0)) * v for v in old_a]
        neurons.append((w, b, a))
    c = _vector(chance, q) if output_bias else None
    return build(activation, neurons, bias=bias, output_bias=c)


def _vector(chance: random.Random, size: int) -> list[float]:
    return [chance.choice((0.0, 1.0, -1.0, 0.5, 2.0)) for _ in range(size)]


def generic_samples(n: int, d: int, seed: int = 0) -> Tensor:
    """Random points that are generic: multiples of 2^-30."""
    g = torch.Generator().manual_seed(seed)
    return torch.floor((torch.rand(n, d, dtype=F64, generator=g) * 4 - 2) * 2**30) / 2**30


def structure(model: nn.Module) -> TwoLayerNet:
    net = read_structure(model)
    assert isinstance(net, TwoLayerNet)
    return net


def certified(model: nn.Module, seed: int = 0) -> int:
    """The certified rank on enough random points that the guarantee holds for almost all such samples."""
    net = structure(model)
    if net.activation == "relu":  # every region between the kinks needs points, near and far
        points = generic_samples(500, net.d, seed)
        points[::3] *= 16
        return certify(model, points).rank
    points = generic_samples(net.m * (1 + net.d + net.beta) + 2, net.d, seed)
    return certify(model, points).rank


def expanded(net: TwoLayerNet) -> int:
    """dim T of a polynomial network from the coefficients of its tangent functions."""
    Poly = Counter[tuple[int, ...]]
    origin = (0,) * net.d

    def times(p: Any, r: Any) -> Any:
        out: Poly = Counter()
        for (e, u), (f, v) in product(p.items(), r.items()):
            out[tuple(i + j for i, j in zip(e, f, strict=True))] += u * v
        return out

    def unit(k: int) -> tuple[int, ...]:
        return tuple(int(i == k) for i in range(net.d))

    def compose(coefficients: Any, z: Any) -> Any:
        value: Poly = Counter()
        power: Poly = Counter({origin: Fraction(1)})
        for c in coefficients:
            for e, v in power.items():
                value[e] += c * v
            power = times(power, z)
        return value

    functions: list[dict[tuple[int, tuple[int, ...]], Fraction]] = []
    for i, w in enumerate(net.w):
        z: Any = {unit(k): v for k, v in enumerate(w)}
        z[origin] = Fraction(0) if net.b is None else net.b[i]
        s = compose(net.coefficients, z)
        slope = compose([k * c for k, c in enumerate(net.coefficients)][1:], z)
        functions += [{(j, e): v for e, v in s.items()} for j in range(net.q)]
        inputs = [*({unit(k): Fraction(1)} for k in range(net.d)), {origin: Fraction(1)}]
        for x in inputs[: net.d + net.beta]:
            inner = times(slope, x)
            functions.append(
                {(j, e): net.a[i][j] * v for j in range(net.q) for e, v in inner.items()}
            )
    if net.c is not None:
        functions += [{(j, origin): Fraction(1)} for j in range(net.q)]
    places = sorted({place for f in functions for place in f})
    return rank([[f.get(place, Fraction(0)) for place in places] for f in functions])
