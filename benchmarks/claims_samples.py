"""Kinds of data sets whose samples hold little information: too few, similar, on a lattice, or rounded."""

from __future__ import annotations

import math

import torch
from claims_sets import Function, Set, kind, normal, options, planted, uniform
from torch import Tensor

from llr.models import TwoLayer
from llr.operators.formula import ACTIVATIONS
from llr.recovery import Target, recover

# Samples that hold less information than their number suggests.


@kind()
def mirrored(seed, g):
    activation = ("tanh", "erf", "sin")[seed % 3]
    half = normal(g, 6, 2)
    return Set(torch.cat([half, -half]), planted(seed, 2, 2, activation), options(4, activation))


@kind()
def mirrored_and_nearly_odd(seed, g):
    activation = ("gelu", "silu", "softplus")[seed % 3]
    half = normal(g, 4, 2)
    return Set(torch.cat([half, -half]), planted(seed, 2, 2, activation), options(3, activation))


@kind()
def mirrored_to_1e13(seed, g):
    half = normal(g, 6, 2)
    return Set(torch.cat([half, -half + 1e-13 * normal(g, 6, 2)]), planted(seed, 2, 2), options(4))


@kind()
def mirrored_in_part_and_zero(seed, g):
    half = normal(g, 6, 2)
    x = torch.cat([half, -half[: 2 + seed % 4], torch.zeros(1, 2, dtype=torch.float64)])
    return Set(x, planted(seed, 2, 2), options(4))


@kind()
def mirrored_two_outputs(seed, g):
    half = normal(g, 5, 2)
    target = Target.separated(TwoLayer(2, 2, 2, bias=False), seed=seed)
    return Set(torch.cat([half, -half]), target, options(3))


@kind()
def repeated(seed, g):
    return Set(normal(g, 6, 2).repeat(2 + seed % 3, 1), planted(seed, 2, 2), options(4))


@kind()
def nearly_equal(seed, g):
    base = normal(g, 4, 2).repeat(2, 1)
    return Set(base + 10.0 ** -(10 + seed % 4) * normal(g, 8, 2), planted(seed, 2, 2), options(4))


@kind()
def pairs_of_three_neurons(seed, g):
    base = normal(g, 8, 3).repeat(2, 1)
    return Set(base + 1e-12 * normal(g, 16, 3), planted(seed, 3, 3), options(4))


@kind()
def on_a_line(seed, g):
    x = normal(g, 11, 1) * normal(g, 1, 2)
    return Set(x, planted(seed, 2, 2), options(3))


@kind()
def nearly_on_a_line(seed, g):
    x = 0.4 + normal(g, 14, 1) * normal(g, 1, 2) + 1e-12 * normal(g, 14, 2)
    return Set(x, planted(seed, 2, 2, bias=True), options(3, bias=True))


@kind()
def on_a_circle(seed, g):
    t = math.pi * uniform(g, 9, 1)
    return Set(torch.cat([t.cos(), t.sin()], 1), planted(seed, 2, 2), options(3))


@kind()
def symmetric_grid(seed, _):
    line = torch.linspace(-1, 1, 3, dtype=torch.float64) * (1 + 0.1 * seed)
    return Set(torch.cartesian_prod(line, line), planted(seed, 2, 2), options(3))


@kind()
def one_outlier(seed, g):
    x = 10.0 ** -(2 + seed % 3) * normal(g, 7, 1)
    x[0] = 1.5
    return Set(x, planted(seed, 1, 2), options(3))


@kind()
def small_cluster(seed, g):
    x = 0.3 + 10.0 ** -(1 + seed % 4) * normal(g, 13, 2)
    return Set(x, planted(seed, 2, 2, bias=True), options(3, bias=True))


@kind()
def far_from_zero(seed, g):
    target = planted(seed, 1, 1, bias=True)
    return Set(1e7 + normal(g, 8, 1), lambda x: target(x - 1e7), options(2, bias=True))


# Sines and lattices.


@kind()
def sine_on_a_grid(seed, g):
    step = (1.0, 0.1, 0.03, 1 / 7, 0.002, 2.5)[seed % 6]
    x = step / 4 + step * torch.randperm(14, generator=g)[:12, None].double()
    w = (0.9 + 0.75 * (seed // 6 % 7)) / step
    return Set(x, lambda x: torch.sin(w * x + 0.3), options(2, "sin", bias=True))


@kind()
def sine_on_a_lattice(_, g):
    x = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 2)
    x = x @ (torch.eye(2, dtype=torch.float64) + 0.4 * normal(g, 2, 2))
    w = normal(g, 2, 1) * 5
    return Set(x, lambda x: torch.sin(x @ w + 0.2), options(2, "sin", bias=True))


@kind()
def sine_of_rounded_inputs(seed, g):
    x = (normal(g, 12, 1) * 50).round() / 50
    w = 100 * math.pi - 1.1 - 0.1 * seed
    return Set(x, lambda x: torch.sin(w * x + 0.3), options(2, "sin", bias=True))


# Noise and rounding.


@kind()
def faint_noise(seed, g):
    d, k = ((1, 1), (1, 2), (2, 2), (3, 3))[seed % 4]
    target = planted(seed, d, k)
    x = normal(g, k * (d + 1) + 1 + (seed % 3) * k, d)
    y = target(x) + 10.0 ** -(8 + seed % 8) * normal(g, len(x), 1)
    return Set(x, target, options(k + 1), y)


@kind()
def in_float32(seed, g):
    d, k = ((1, 1), (2, 2), (3, 2))[seed % 3]
    target = planted(seed, d, k)
    x = normal(g, k * (d + 1) * (1 + seed % 3) + 1, d)
    return Set(x, target, options(k + 1), target(x).float())


@kind()
def in_decimals(seed, g):
    d, k = ((1, 1), (2, 2))[seed % 2]
    target, unit = planted(seed, d, k), 10.0 ** (3 + seed % 6)
    x = normal(g, k * (d + 1) * (1 + seed % 3) + 1, d)
    return Set(x, target, options(k + 1), (target(x) * unit).round() / unit)


@kind()
def rounded_table(seed, g):
    target, unit = planted(seed, 2, 2), 10.0 ** (4 + seed % 4)
    x = normal(g, 7 * (1 + seed % 4), 2)
    return Set((x * unit).round() / unit, target, options(3), (target(x) * unit).round() / unit)


@kind()
def inputs_in_float32(seed, g):
    target = planted(seed, 2, 2)
    x = normal(g, 8 + seed, 2)
    return Set(x.float().double(), target, options(3), target(x))


@kind()
def random_values(seed, g):
    d, k = ((2, 2), (1, 2))[seed % 2]
    x = normal(g, k * (d + 1) + 1, d)
    return Set(
        x,
        lambda x: torch.full_like(x[:, :1], math.nan),
        options(3),
        normal(g, len(x), 1),
        in_class=False,
    )


@kind()
def extreme_units(seed, g):
    target, unit = planted(seed, 2, 2), 10.0 ** (30 * (seed % 8) - 100)
    return Set(unit * normal(g, 9, 2), lambda x: target(x / unit) / unit, options(3))


@kind()
def linear_ends(seed, g):
    activation = ("gelu", "silu", "softplus")[seed % 3]
    target = planted(seed, 1, 2, activation, bias=True)
    with torch.no_grad():
        target.model[0].weight.copy_(torch.tensor([[3.0], [5.0 + seed]]))
        target.model[0].bias.copy_(torch.tensor([60.0, 80.0]))
    return Set(normal(g, 12, 1), target, options(2, activation, bias=True))


# Functions that no procedure can determine from the samples (docs/recovery.md): counted separately.


@kind(apart=True)
def bump_between_the_samples(seed, g):
    x = normal(g, 24, 1)
    x = x[(x[:, 0] - 0.5).abs() > 0.2]

    def truth(t: Tensor) -> Tensor:
        bump = torch.tanh(300 * (t - 0.45)) - torch.tanh(300 * (t - 0.55))
        return torch.tanh(t - 0.1 * seed) + 0.4 * bump

    return Set(x, truth, options(3, bias=True), in_class=False)


@kind(apart=True)
def samples_chosen_where_two_agree(seed, g):
    target = planted(seed, 2, 2)
    rival, start = None, normal(g, 6, 2)
    for attempt in range(40):
        start, fresh = normal(g, 6, 2), normal(g, 100, 2)
        found = recover(start, target(start), max_width=2, bias=False, budget=400, seed=attempt)
        for net in found.interpolants:
            with torch.no_grad():
                if float((net(fresh) - target(fresh)).abs().max()) > 0.05:
                    rival = net
        if rival is not None:
            break
    points = [start]
    while rival is not None and sum(map(len, points)) < (7, 9, 13)[seed % 3]:
        a, b = normal(g, 1, 2), normal(g, 1, 2)

        def gap(p: Tensor) -> float:
            with torch.no_grad():
                return float(target(p) - rival(p))

        if gap(a) * gap(b) < 0:
            for _ in range(60):
                c = (a + b) / 2
                a, b = (a, c) if gap(a) * gap(c) <= 0 else (c, b)
            points.append((a + b) / 2)
    return Set(torch.cat(points), target, options(3))


# Functions with steep neurons, and claims about regions without samples.


def _network(g: torch.Generator, d: int, k: int, activation: str, scale: float) -> Function:
    sigma = ACTIVATIONS[activation][0]
    W, b, a = scale * normal(g, k, d), scale / 2 * normal(g, k), normal(g, 1, k)
    return lambda x: sigma(x @ W.T + b) @ a.T


def _stored(y: Tensor, decimals: int | None) -> Tensor:
    return y if decimals is None else (y * 10.0**decimals).round() / 10.0**decimals


@kind()
def one_steep_neuron(seed, g):
    w = (20.0, 60.0, 200.0)[seed % 3]
    x = (uniform(g, 60, 1) + 1) / 2
    return Set(x, lambda z: torch.tanh(w * (z - 0.5)), options(2, bias=True))


@kind()
def steep_neurons(seed, g):
    activation = ("tanh", "erf", "sigmoid", "gelu")[seed % 4]
    d, k, scale = 1 + seed % 3, 1 + seed // 3 % 2, (3.0, 10.0, 30.0, 100.0, 300.0)[seed % 5]
    f, x = _network(g, d, k, activation, scale), normal(g, 60, d)
    y = _stored(f(x), (None, 8, 7, 6, 5)[seed // 2 % 5])
    return Set(x, f, options(k, activation, bias=True), y=y)


@kind()
def a_large_domain(seed, g):
    f, x = _network(g, 2, 2, ("tanh", "erf", "sigmoid")[seed % 3], 1.0), normal(g, 60, 2)
    reach = 10.0 ** (1 + seed % 9)
    y = _stored(f(x), (None, 8, 6, 5)[seed % 4])
    return Set(
        x,
        f,
        options(2, ("tanh", "erf", "sigmoid")[seed % 3], bias=True, domain=(-reach, reach)),
        y=y,
    )
