"""Model ranks of functions of two layers: the theory's tables, and functions given by networks."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from helpers.theory_cases import build, certified, random_cases, random_two_layer

from llr.models import (
    TwoLayer,
)
from llr.theory import model_rank_of_function, optimistic_sample_size, tangent_dimension

from .function_search import REFLECTIONS, Setting, smallest

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64
NORMALS = ((1, 2, -1), (2, -1, 1), (3, -2, 2), (4, 1, 1), (5, 1, 4))
BIASES = (1, 3, -2, 5, 7)
OUTGOING = ((1, 2, -1), (3, -1, 2), (2, 1, 1))


def planes(count: int, d: int, bias: bool) -> tuple[tuple[int, ...], ...]:
    """Hyperplanes, pairwise different up to scale."""
    return tuple((*NORMALS[i][:d], BIASES[i] * bias) for i in range(count))


def setting(
    activation: str,
    k: int,
    m: int,
    d: int,
    q: int = 1,
    *,
    bias: bool = True,
    output_bias: bool = False,
    alpha: tuple[tuple[int, ...], ...] | None = None,
    affine: list[list[int | Fraction]] | None = None,
    spare: int = 1,
) -> Setting:
    rows = affine or [[0] * (d + 1) for _ in range(q)]
    return Setting(
        activation,
        planes(k + spare, d, bias),
        tuple(a[:q] for a in (alpha or OUTGOING)[:k]),
        tuple(tuple(Fraction(v) for v in row) for row in rows),
        m,
        bias,
        output_bias,
    )


def models(s: Setting) -> tuple[TwoLayer, TwoLayer]:
    """The architecture, and a network with the function: any constant part is its output bias."""
    neurons: list[tuple[list[float], float, list[float]]] = [
        ([float(v) for v in plane[:-1]], float(plane[-1]), [float(v) for v in alpha])
        for plane, alpha in zip(s.planes, s.alpha, strict=False)
    ]
    linear = [[float(v) for v in row[:-1]] for row in s.affine]
    constant = [float(row[-1]) for row in s.affine]
    for l in range(s.d):  # noqa: E741
        column = [row[l] for row in linear]
        if any(column):  # s(z) - s(-z) = z, of the hinge class
            unit = [float(i == l) for i in range(s.d)]
            neurons += [(unit, 0.0, column), ([-v for v in unit], 0.0, [-v for v in column])]
    neurons = neurons or [([0.0] * s.d, 0.0, [0.0] * s.q)]
    if s.activation in ("sigmoid", "softplus") and not any(any(a) for *_, a in neurons):
        neurons[0] = ([1.0] * s.d, 0.0, [0.0] * s.q)
    out = any(constant) or s.output_bias
    target = build(s.activation, neurons, bias=s.bias, output_bias=constant if out else None)
    architecture = TwoLayer(
        s.d, s.m, s.q, activation=s.activation, bias=s.bias, output_bias=s.output_bias, dtype=F64
    )
    return architecture, target


class TestTwoLayerTables:
    @pytest.mark.parametrize(
        ("k", "m", "d", "q", "bias", "output_bias", "constant", "expected", "largest"),
        [
            (1, 3, 1, 1, True, False, False, 3, 6),
            (2, 4, 2, 1, True, False, False, 8, 12),
            (2, 4, 1, 2, True, True, False, 10, 14),
            (1, 4, 3, 2, False, False, False, 5, 14),
            (0, 3, 2, 1, True, False, False, 0, 7),
            (0, 3, 2, 2, True, True, False, 2, 10),
            (2, 4, 2, 1, True, False, True, 11, 12),
            (1, 3, 3, 2, True, False, True, 11, 15),
            (1, 3, 2, 2, True, True, True, 7, 12),
        ],
    )
    def test_tanh(
        self,
        k: int,
        m: int,
        d: int,
        q: int,
        bias: bool,
        output_bias: bool,
        constant: bool,
        expected: int,
        largest: int,
    ) -> None:
        """The numbers of the closed form, and of an independent search."""
        affine = [[0] * d + [constant * (j + 1)] for j in range(q)]
        s = setting("tanh", k, m, d, q, bias=bias, output_bias=output_bias, affine=affine)
        found = optimistic_sample_size(*models(s))
        assert (found.exact, int(found)) == (True, expected)
        assert smallest(s)[:2] == (expected, largest)

    @pytest.mark.parametrize(
        ("alpha", "gamma", "d", "m", "expected"),
        [
            ((1, 3), 2, 3, 3, 11),
            ((1, 3), -3, 2, 2, 8),
            ((1, 3), -4, 2, 3, 8),
            ((1, 3), 0, 2, 3, 8),
            ((1, 3), 1, 1, 4, 7),
            ((), 0, 2, 3, 1),
            ((), 2, 2, 3, 3),
        ],
    )
    def test_sigmoid(
        self, alpha: tuple[int, ...], gamma: int, d: int, m: int, expected: int
    ) -> None:
        s = setting(
            "sigmoid",
            len(alpha),
            m,
            d,
            alpha=tuple((a,) for a in alpha),
            affine=[[0] * d + [gamma]],
        )
        assert int(optimistic_sample_size(*models(s))) == expected == smallest(s)[0]

    def test_a_sigmoid_that_does_not_fit(self) -> None:
        s = setting("sigmoid", 2, 2, 2, alpha=((1,), (3,)), affine=[[0, 0, 2]])
        assert smallest(s)[0] == -1  # no representation
        with pytest.raises(ValueError, match="width 2"):
            optimistic_sample_size(*models(s))

    @pytest.mark.parametrize("activation", [*REFLECTIONS, "sin"])
    @pytest.mark.parametrize(
        ("d", "q", "bias", "output_bias", "k"),
        [
            (3, 1, True, False, 3),
            (3, 1, False, False, 3),
            (2, 1, True, True, 4),
            (2, 3, True, False, 3),
        ],
    )
    def test_generic_functions_of_narrow_networks(
        self, activation: str, d: int, q: int, bias: bool, output_bias: bool, k: int
    ) -> None:
        """In a wide network they have the same model rank as in a network of their own width."""
        options = {"activation": activation, "bias": bias, "output_bias": output_bias}
        narrow = TwoLayer(d, k, q, dtype=F64, **options, generator=torch.Generator().manual_seed(0))
        kink = activation == "relu"
        expected = k * (q + d + bias - kink) + output_bias * q
        for m in (k, k + 1, 50):
            wide = TwoLayer(d, m, q, dtype=F64, **options)
            assert int(optimistic_sample_size(wide, narrow)) == expected


class TestOwnFunction:
    """`model_rank_of_function` of a network at degenerate parameters: at most its own dim T."""

    @pytest.mark.parametrize("activation", [*REFLECTIONS, "sin"])
    def test_never_above_the_tangent_dimension(self, activation: str) -> None:
        for seed in range(random_cases(30)):
            model = random_two_layer(activation, seed)
            size = model_rank_of_function(model)
            assert 0 <= size.lower <= size.upper <= tangent_dimension(model).upper, seed

    def test_cancelling_neurons(self) -> None:
        net = build("tanh", [([0.9, -1.3], 0.3, [1.0]), ([-0.9, 1.3], -0.3, [1.0])])
        assert (int(tangent_dimension(net)), int(model_rank_of_function(net))) == (4, 0)

    def test_the_representative_that_attains_it(self) -> None:
        """A network with one neuron for each neuron of the function attains the model rank on samples."""
        for seed in range(5):
            chance = random.Random(seed)
            neurons = [
                ([chance.choice((1.0, 2.0)), chance.choice((-1.0, 0.5))], float(i), [1.0 + i])
                for i in range(3)
            ]
            crowded = build(
                "tanh", [*neurons, neurons[0], ([-v for v in neurons[1][0]], -1.0, [0.5])]
            )
            size = model_rank_of_function(crowded)
            kept = [neurons[0], neurons[1], neurons[2]]
            assert int(size) == certified(build("tanh", kept))
