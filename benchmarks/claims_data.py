"""Data sets on which a claim of `recover` would be false, or is at risk; for claims.py and the tests.

Every kind makes a set from a seed: samples, targets, and the function that they come from, which is often
no network of the class at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llr.models import TwoLayer
from llr.recovery import Target, recover

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Set:
    """A data set, and how `recover` is called with it."""

    x: Tensor
    truth: Function
    options: dict[str, Any]
    y: Tensor | None = None
    """Targets, where they are not exactly the function's values."""
    in_class: bool = True
    """Whether the function is a network that may be found."""

    @property
    def targets(self) -> Tensor:
        return self.truth(self.x) if self.y is None else self.y


@dataclass(frozen=True)
class Kind:
    make: Callable[[int, torch.Generator], Set]
    apart: bool = False
    """No procedure can tell: counted apart."""


KINDS: dict[str, Kind] = {}


Make = Callable[[int, torch.Generator], Set]


def kind(*, apart: bool = False) -> Callable[[Make], Make]:
    """Register a kind under the name of its function."""

    def register(make: Make) -> Make:
        KINDS[make.__name__.replace("_", " ")] = Kind(make, apart)
        return make

    return register


def data_set(name: str, seed: int) -> Set:
    """The set of a kind with a seed."""
    number = sum(ord(c) * 31**i for i, c in enumerate(name)) % 10**6
    return KINDS[name].make(seed, torch.Generator().manual_seed(number + 10**6 * (seed + 1)))


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def uniform(g: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=g, dtype=torch.float64) - 1


def planted(
    seed: int, d: int, k: int, activation: str = "tanh", draw: str = "separated", **options: Any
) -> Target:
    architecture = TwoLayer(d, k, activation=activation, **{"bias": False, **options})
    return getattr(Target, draw)(architecture, seed=seed)


def options(
    max_width: int,
    activation: str = "tanh",
    bias: bool = False,
    output_bias: bool = False,
    **more: Any,
) -> dict[str, Any]:
    return {
        "max_width": max_width,
        "activation": activation,
        "bias": bias,
        "output_bias": output_bias,
        **more,
    }


def of_first(f: Function) -> Function:
    """A function of the first input."""
    return lambda x: f(x[:, :1])


# Samples that are worth less than their number.


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


# What is no network of the class.

SMOOTH: list[Function] = [
    torch.exp,
    torch.cos,
    lambda t: 1 / (1 + t * t),
    lambda t: torch.log(2 + t),
    lambda t: t * t,
    lambda t: t - t**3,
    lambda t: torch.sqrt(2 + t),
    lambda t: torch.exp(-t * t),
    torch.atan,
    lambda t: t / (2 - t),
    lambda t: torch.special.bessel_j0(3 * t),
    lambda t: torch.special.gammaln(2 + t),
]


@kind()
def smooth_on_an_interval(seed, g):
    half = (1e-4, 1e-3, 0.01, 0.04, 0.2, 1.0)[seed % 6]
    f = SMOOTH[(seed * 5) % len(SMOOTH)]
    return Set(
        half * uniform(g, 16, 1), f, options(4, bias=True, output_bias=seed % 3 > 0), in_class=False
    )


@kind()
def smooth_off_centre(seed, g):
    f = SMOOTH[(seed * 7 + 2) % len(SMOOTH)]
    x = 0.7 + (0.003, 0.02, 0.1)[seed % 3] * uniform(g, 18, 1)
    return Set(x, f, options(4, bias=True, output_bias=True), in_class=False)


@kind()
def smooth_with_other_neurons(seed, g):
    activation = ("sigmoid", "gelu", "silu", "softplus", "erf")[seed % 5]
    f = SMOOTH[(seed * 3 + 1) % len(SMOOTH)]
    x = (0.01, 0.1, 0.5)[seed % 3] * uniform(g, 16, 1)
    return Set(x, f, options(3, activation, bias=True), in_class=False)


@kind()
def smooth_in_the_plane(seed, g):
    f = [
        lambda x: torch.exp(x[:, :1] - x[:, 1:]),
        lambda x: x[:, :1] * x[:, 1:],
        lambda x: 1 / (3 + x[:, :1] + 2 * x[:, 1:]),
        lambda x: torch.cos(x[:, :1]) * torch.exp(x[:, 1:]),
    ][seed % 4]
    x = (0.003, 0.03, 0.2)[seed % 3] * uniform(g, 24, 2)
    return Set(x, f, options(4, bias=True, output_bias=True), in_class=False)


@kind()
def splines(seed, g):
    f = [
        torch.abs,
        lambda t: t.clamp(min=0) ** 2,
        lambda t: t.clamp(min=-0.3) ** 3,
        lambda t: t * t.abs(),
    ][seed % 4]
    return Set(uniform(g, 16, 1), f, options(4, bias=True, output_bias=True), in_class=False)


@kind()
def step_labels(seed, g):
    activation, c = ("sigmoid", "tanh")[seed % 2], 0.35 - 0.1 * seed
    truth = (
        (lambda t: (t > c).double()) if activation == "sigmoid" else (lambda t: torch.sign(t - c))
    )
    return Set(normal(g, 20, 1), truth, options(3, activation, bias=True), in_class=False)


@kind()
def scaled_steps(seed, g):
    w, size = normal(g, 2, 1), math.sqrt(2 + seed)
    return Set(
        normal(g, 24, 2),
        lambda x: size * ((x @ w) > 0.1).double(),
        options(3, "sigmoid", bias=True),
        in_class=False,
    )


@kind()
def classes_and_integers(seed, g):
    if seed % 2:
        truth = lambda x: (2 * x[:, :1] - x[:, 1:]).round()  # noqa: E731
    else:
        truth = lambda x: (x[:, :1] > 0).double() + (x[:, 1:] > 0.4).double()  # noqa: E731
    return Set(
        normal(g, 15, 2), truth, options(3, "sigmoid", bias=True, output_bias=True), in_class=False
    )


@kind()
def saturated(seed, g):
    steep = 10.0 ** (1.5 + 0.3 * (seed % 7))
    return Set(normal(g, 20, 1), lambda x: torch.tanh(steep * (x - 0.2)), options(3, bias=True))


@kind()
def saturated_beside_another(seed, g):
    x = normal(g, 26, 1)
    x = x[(x[:, 0] - 0.3).abs() > 0.15]
    return Set(
        x,
        lambda x: torch.tanh(300 * (x - 0.3)) + 0.5 * torch.tanh(x + 0.1 * seed),
        options(3, bias=True),
    )


@kind()
def constant_neuron(seed, g):
    truth = lambda x: 0.7 * torch.tanh(x * (1 + 0.1 * seed) - 0.2) + 0.4 * torch.tanh(3 * x + 60)  # noqa: E731
    return Set(normal(g, 14, 1), truth, options(3, bias=True))


@kind()
def other_activation(seed, g):
    own, used = [
        ("erf", "tanh"),
        ("gelu", "silu"),
        ("softplus", "silu"),
        ("sin", "tanh"),
        ("tanh", "erf"),
    ][seed % 5]
    return Set(normal(g, 16, 2), planted(seed, 2, 2, own), options(4, used), in_class=False)


@kind()
def too_wide(seed, g):
    d = 1 + seed % 2
    return Set(
        normal(g, 3 * (d + 1) + 2, d),
        planted(seed, d, 5, draw="generic"),
        options(3),
        in_class=False,
    )


@kind()
def wide_and_nearly_linear(seed, g):
    target = planted(seed, 1, 12, draw="generic")
    return Set((0.02, 0.1)[seed % 2] * uniform(g, 12, 1), target, options(4), in_class=False)


@kind()
def deep(seed, g):
    W, V, u = normal(g, 2, 3), normal(g, 3, 2), normal(g, 2, 1)
    x = (0.05, 0.3, 1.0)[seed % 3] * normal(g, 24, 2)
    return Set(
        x,
        lambda x: torch.tanh(torch.tanh(x @ W + 0.2) @ V) @ u,
        options(4, bias=True, output_bias=True),
        in_class=False,
    )


@kind()
def nearly_merged(seed, g):
    target = planted(seed, 2, 3)
    with torch.no_grad():
        w = target.model[0].weight
        w[2] = w[1] + 10.0 ** -(2 + seed % 6) * torch.tensor([1.0, -0.7], dtype=torch.float64)
    return Set(normal(g, 11, 2), target, options(4))


@kind()
def derivative_of_a_neuron(_, g):
    w = normal(g, 2, 1)
    truth = lambda x: x[:, :1] / torch.cosh(x @ w) ** 2  # noqa: E731
    return Set(normal(g, 14, 2), truth, options(3), in_class=False)


@kind()
def weak_neurons_beside(seed, g):
    strong, weak, size = planted(seed, 2, 2), planted(seed + 70, 2, 3), 10.0 ** -(9 + seed % 6)
    seen = size > 1e-12  # below, rounding hides them
    truth = lambda x: strong(x) + size * weak(x)  # noqa: E731
    return Set(normal(g, 10, 2), truth, options(2), in_class=not seen)


@kind()
def nearly_constant(seed, g):
    target = planted(seed, 1, 2, bias=True)
    return Set(
        normal(g, 16, 1),
        lambda x: 1 + 1e-12 * target(x),
        options(3, bias=True, output_bias=seed % 2 == 0),
    )


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


# What no procedure can tell from the samples (docs/recovery.md): counted apart.


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
