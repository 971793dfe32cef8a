"""Kinds of data sets whose function is not a network of the class, or hardly differs from such a function."""

from __future__ import annotations

import math

import torch
from claims_sets import Function, Set, kind, normal, options, planted, uniform

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
    seen = size > 1e-12  # smaller ones are hidden by rounding
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
