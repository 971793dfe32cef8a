"""dim T of two-layer networks: tables, and certified ranks at random degenerate parameters."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers.theory_cases import (
    ANALYTIC,
    POLYNOMIALS,
    activation_of,
    build,
    certified,
    expanded,
    generic_samples,
    random_cases,
    random_two_layer,
    structure,
)
from ranks.test_rank import DEGENERATE, two_layer
from torch import nn

from llr import certify
from llr.models import DeepLinear, Polynomial, TwoLayer
from llr.theory.result import Dimension
from llr.theory.structures.groups import group_neurons
from llr.theory.structures.structure import Row, TwoLayerNet, rank
from llr.theory.tangents import polynomial
from llr.theory.tangents.periodic import _expanded_rank, _rank_in_balls, turned_rank
from llr.theory.tangents.polynomial import alexander_hirschowitz, polynomial_tangent
from llr.theory.tangents.two_layer import (
    affine_part,
    generic_rank,
    has_slope,
    has_value,
    intersection,
    two_layer_tangent,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

W1, W2, W3 = [0.9, -1.3], [1.1, 0.4], [-0.2, 0.7]


def tangent(model: nn.Module) -> Dimension:
    return two_layer_tangent(structure(model))


def random_model(activation: str, d: int, k: int, q: int, *, bias: bool, out: bool) -> TwoLayer:
    g = torch.Generator().manual_seed(k)
    model = TwoLayer(d, k, q, activation=activation, bias=bias, output_bias=out).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def fractions(*rows: tuple[int, ...]) -> list[Row]:
    return [tuple(Fraction(v) for v in row) for row in rows]


class TestTables:
    @pytest.mark.parametrize("act", ["tanh", "sigmoid", "softplus"])
    @pytest.mark.parametrize("name", DEGENERATE)
    def test_degenerate(self, name: str, act: str) -> None:
        neurons, options, expected = DEGENERATE[name]
        dimension = tangent(two_layer(neurons, act=act, **options))
        assert int(dimension) == expected[("tanh", "sigmoid", "softplus").index(act)]

    # Setting (d, q, biases, output biases, k), the value for all and for relu, P.
    GENERIC = (
        ((3, 1, True, False, 3), 15, 12, 15),
        ((3, 1, False, False, 3), 12, 9, 12),
        ((2, 1, True, True, 4), 17, 13, 17),
        ((2, 3, True, False, 3), 18, 15, 18),
    )

    @pytest.mark.parametrize("act", ANALYTIC)
    @pytest.mark.parametrize(("setting", "most", "relu", "P"), GENERIC)
    def test_generic(
        self, act: str, setting: tuple[int, int, bool, bool, int], most: int, relu: int, P: int
    ) -> None:
        d, q, bias, out, k = setting
        model = random_model(act, d, k, q, bias=bias, out=out)
        expected = relu if act == "relu" else most
        for dimension in (tangent(model), generic_rank(model)):
            assert (int(dimension), dimension.n_params) == (expected, P)
        assert certified(model) == expected

    def test_relu_on_a_line(self) -> None:
        for weights, expected in (((1.0, 2.0), 1), ((1.0, -0.5), 2), ((-1.0, 2.0), 2)):
            model = build("relu", [([w], 0.0, [1.0]) for w in weights], bias=False)
            assert (int(tangent(model)), certified(model)) == (expected, expected)
        found = generic_rank(model)
        assert (found.lower, found.upper, found.status, found.n_params) == (1, 2, "bounds", 4)
        alone = generic_rank(TwoLayer(1, 1, 2, activation="relu", bias=False))
        assert (alone.lower, alone.upper, alone.status) == (2, 2, "exact")

    @pytest.mark.parametrize(
        ("phases", "a", "expected"),
        [
            ((0.5,), ((1.0,),), 4),
            ((0.5, 0.5), ((1.0,), (2.0,)), 4),
            ((0.5, 1.0), ((1.0,), (0.0,)), 4),
            ((0.5, 1.0), ((1.0,), (2.0,)), 6),
            ((0.5, 1.0, -2.0), ((1.0,), (2.0,), (1.0,)), 6),
            ((0.5, 1.0), ((0.0,), (0.0,)), 2),
            ((0.5, 1.0), ((1.0, 0.0), (2.0, 0.0)), 8),
            ((0.5, 1.0, 2.0), ((1.0, 0.0), (2.0, 0.0), (3.0, 0.0)), 8),
            ((0.5, 1.0, 2.0), ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), 10),
            ((0.5, 0.5, 2.0, 2.0), ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 2.0)), 12),
        ],
    )
    def test_phases(
        self, phases: tuple[float, ...], a: tuple[tuple[float, ...], ...], expected: int
    ) -> None:
        model = build("sin", [(W1, b, v) for b, v in zip(phases, a, strict=True)])
        mirrored = build("sin", [([-v for v in W1], -b, v) for b, v in zip(phases, a, strict=True)])
        for net in (model, mirrored):
            assert (int(tangent(net)), certified(net)) == (expected, expected)

    POWERS = (
        ("z^2", 3, True, 1, {1: 4, 2: 7, 3: 9, 4: 10, 5: 10}),
        ("z^3", 2, True, 1, {1: 3, 2: 6, 3: 9, 4: 10}),
        ("z^3", 4, True, 1, {6: 30, 7: 34, 8: 35}),
        ("z^4", 2, True, 1, {4: 12, 5: 14, 6: 15}),
        ("z^4", 4, True, 1, {14: 69}),
        ("z + z^2", 2, True, 1, {1: 4, 2: 6, 3: 6}),
        ("z + z^2", 4, True, 1, {1: 6, 2: 10, 3: 13, 4: 15, 5: 15}),
        ("z + z^3", 2, True, 1, {1: 4, 2: 8, 3: 10, 4: 10}),
        ("z + z^3", 2, False, 1, {1: 3, 2: 6, 3: 6}),
        ("1 + 2z - z^2 + z^3 + 3z^4", 2, True, 1, {1: 4, 2: 8, 3: 12, 4: 15, 5: 15}),
        ("z^3", 2, True, 2, {1: 4, 2: 8, 3: 12, 4: 16, 5: 19, 6: 20}),
    )

    @pytest.mark.parametrize(("name", "d", "bias", "q", "ranks"), POWERS)
    def test_polynomials(
        self, name: str, d: int, bias: bool, q: int, ranks: dict[int, int]
    ) -> None:
        for k, expected in ranks.items():
            model = TwoLayer(d, k, q, activation=activation_of(name), bias=bias)
            found = generic_rank(model)
            assert found.lower == expected
            # In one case the rank is below the bound (it is defective); no theorem here covers it.
            assert found.upper == expected + ((name, q, k) == ("z^3", 2, 5))
            assert found.exact == (found.lower == found.upper)
            # The random parameters of the model are as good as any.
            assert int(tangent(model.double())) == expected

    def test_alexander_hirschowitz(self) -> None:
        # Every exception and its neighbours, compared with an exact rank at random integers.
        for n, N, k in (
            (3, 5, 7),
            (4, 3, 5),
            (4, 4, 9),
            (4, 5, 14),
            (2, 3, 2),
            (1, 3, 2),
            (0, 2, 3),
        ):
            for neurons in (k - 1, k, k + 1):
                power = Polynomial([0.0] * n + [1.0])
                net = structure(TwoLayer(N - 1, neurons, activation=power))
                found = polynomial_tangent(polynomial._at_random(net))
                assert int(found) == alexander_hirschowitz(n, N, neurons), (n, N, neurons)


class TestFacts:
    """The zeros of values and slopes decide the rank of a constant neuron."""

    @pytest.mark.parametrize("act", ANALYTIC)
    def test_values_and_slopes(self, act: str) -> None:
        for b in (0.0, 0.5, -0.5, -0.75, -1.0, -1.25):
            value = act in ("sigmoid", "softplus") or (b > 0 if act == "relu" else b != 0)
            slope = act != "relu" or b > 0
            assert has_value(act, Fraction(b)) == value
            assert has_slope(act, Fraction(b)) == slope
            model = build(act, [([0.0, 0.0], b, [1.0])])
            expected = 3 if slope else int(value)
            assert (int(tangent(model)), certified(model)) == (expected, expected)

    @pytest.mark.parametrize(
        ("act", "zero"),
        [("gelu", -0.75179152469356445746), ("silu", -1.2784645427610737951)],
    )
    def test_beside_a_zero_of_the_slope(self, act: str, zero: float) -> None:
        model = build(act, [([0.0, 0.0], zero, [1.0])])
        assert (int(tangent(model)), certified(model)) == (3, 3)

    def test_as_close_as_one_likes(self) -> None:
        # The zero to sixty digits: 128 bits cannot distinguish it from the zero, 256 bits can.
        digits = "-0.75179152469356445745790494677952403966447115342345384838654"
        assert has_slope("gelu", Fraction(digits))

    def test_undecidable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llr.theory.tangents.two_layer._HIGHEST_BITS", 64)
        with pytest.raises(ValueError, match=r"the slope of GELU at b = -3/4 .* move this bias"):
            has_slope("gelu", Fraction(-3, 4))


class TestRandomParameters:
    """Degenerate networks of small integers, with many groups, reflections, zeros and cancellations."""

    @pytest.mark.parametrize("act", ANALYTIC)
    def test_certified(self, act: str) -> None:
        degenerate = 0
        for seed in range(count := random_cases(40)):
            model = random_two_layer(act, seed)
            dimension = tangent(model)
            assert dimension.exact
            assert certified(model, seed) == int(dimension), (seed, str(dimension))
            assert sum(t.dimension for t in dimension.terms) == int(dimension)
            degenerate += int(dimension) < dimension.n_params
        assert degenerate > count // 2

    @pytest.mark.parametrize("name", POLYNOMIALS)
    def test_polynomials(self, name: str) -> None:
        for seed in range(random_cases(20)):
            model = random_two_layer(name, seed)
            found = int(tangent(model))
            assert found == expanded(structure(model)) == certified(model, seed), seed

    def test_float_parameters(self) -> None:
        for act in ANALYTIC:
            model = random_model(act, 2, 2, 2, bias=True, out=True)
            assert certified(model) == int(tangent(model))


class TestSine:
    def test_exact_and_numerical_ranks_agree(self) -> None:
        # Phases in arithmetic progression: sums of phases coincide, so that terms of minors combine.
        chance = random.Random(0)
        full = 0
        for _ in range(count := random_cases(40)):
            q, k = chance.randint(1, 3), chance.randint(1, 7)
            a = [tuple(Fraction(chance.randint(-1, 1)) for _ in range(q)) for _ in range(k)]
            angles = [Fraction(chance.randint(0, 4), 2) for _ in range(k)]
            rows = list(zip(a, angles, strict=True))
            most = min(k, 2 * q)
            exact = _expanded_rank(rows, most)
            assert exact == _rank_in_balls(rows)
            assert turned_rank(a, angles) == (exact, exact)
            full += exact == most
        assert 0 < full < count

    def test_many_outputs(self) -> None:
        # Three phases of one vector have rank 2; with seven outputs the result is left undecided.
        for q in (6, 7):
            a = fractions(*(tuple(int(i == j) for j in range(q)) for i in [0, 0, *range(q)]))
            angles = [Fraction(i) for i in range(len(a))]
            assert turned_rank(a, angles) == ((q + 1, q + 1) if q == 6 else (q + 1, q + 2))
        model = build(
            "sin", [([1.0], float(p), list(map(float, v))) for p, v in zip(angles, a, strict=True)]
        )
        dimension = tangent(model)
        assert (dimension.lower, dimension.upper, dimension.status) == (22, 23, "bounds")
        assert certified(model) == 22
        with pytest.raises(ValueError, match="between 22 and 23"):
            int(dimension)


class TestGroups:
    def test_signs_scales_and_weights(self) -> None:
        neurons = [(W1, 0.5, [1.0]), (W2, 0.5, [2.0]), ([-0.9, 1.3], -0.5, [3.0])]
        for act, weight in (("tanh", -2), ("sigmoid", -2), ("softplus", 4), ("relu", 4)):
            first, second = group_neurons(structure(build(act, neurons))).groups
            assert (first.members, first.signs, first.rank) == ((0, 2), (1, -1), 1)
            assert (first.weight, second.weight) == ((weight,), (2,))
            assert first.w == tuple(map(Fraction, W1))
        assert (
            len(
                group_neurons(
                    structure(build("relu", [(W1, 1.0, [1.0]), ([1.8, -2.6], 2.0, [1.0])]))
                ).groups
            )
            == 1
        )

    def test_relu_scales(self) -> None:
        neurons = [([-0.5, 1.0], 0.25, [1.0]), ([1.5, -3.0], -0.75, [2.0])]
        (group,) = group_neurons(structure(build("relu", neurons))).groups
        assert (group.signs, group.scales, group.weight) == ((1, -1), (1, 3), (7,))
        assert len(group_neurons(structure(build("tanh", neurons))).groups) == 2

    def test_biases_count(self) -> None:
        neurons = [(W1, 0.5, [1.0]), (W1, -0.5, [-1.0])]
        for act, groups in (("tanh", 2), ("sin", 1), ("z^2", 2)):
            assert len(group_neurons(structure(build(act, neurons))).groups) == groups
        assert group_neurons(structure(build("tanh", neurons, bias=False))).groups[0].cancels

    def test_intersection(self) -> None:
        common = intersection(fractions((1, 2, 0), (0, 0, 3)), fractions((1, 2, 5), (1, 0, 0)))
        assert rank(common) == rank([*common, *fractions((1, 2, 5))]) == 1
        assert intersection(fractions((1, 0)), fractions((0, 1))) == []


class TestWords:
    def test_terms(self) -> None:
        neurons = [
            (W1, 0.5, [1.0]),
            (W2, 0.5, [2.0]),
            ([-0.9, 1.3], -0.5, [1.0]),
            (W3, 0.0, [0.0]),
            ([0.0, 0.0], 1.0, [1.0]),
        ]
        dimension = tangent(build("tanh", neurons, output_bias=[0.0]))
        assert str(dimension) == (
            "dim T = 12 of 21 parameters (Theorem 2.2)\n"
            "     +4  neuron 1: 1 (1 + 2 + 1)\n"
            "     +4  neurons 0 and 2 share a hyperplane (opposite signs), outgoing weights of rank 1: "
            "1 + 1 (2 + 1); a phantom group: it cancels in the function\n"
            "     +1  neuron 3 has no outgoing weight: 1\n"
            "     +3  affine functions, together, from the output bias (1); neuron 4, which is constant "
            "(w = 0) (3)"
        )
        assert json.loads(json.dumps(dimension.to_dict()))["upper"] == 12

    def test_other_activations(self) -> None:
        neurons = [(W1, 0.5, [1.0, 0.0]), (W2, 0.5, [2.0, 1.0]), (W1, 0.75, [1.0, 1.0])]
        dimension = tangent(build("sin", neurons))
        assert dimension.statement == "Theorem 2.5"
        assert dimension.terms[1].text == (
            "neurons 0 and 2 share a direction at 2 phases, outgoing weights times phases of rank 2: "
            "2 * 2 + 2 * 2"
        )
        dimension = tangent(build("softplus", [(W1, 0.5, [1.0]), ([-0.9, 1.3], -0.5, [-1.0])]))
        assert "it cancels in the function, but for an affine function" in str(dimension)
        assert "both orientations of neurons 0 and 1 (3)" in str(dimension)
        assert "torch computes the identity beyond 20" in str(dimension)
        assert "neurons 0 and 1, each on its own: 2 (1 + 2 + 1 - 1)" in str(
            tangent(build("relu", [(W1, 0.5, [1.0]), (W2, 0.5, [1.0])]))
        )
        dimension = tangent(build("z^3", [(W1, 0.5, [1.0])]))
        assert "exact rank on the 10 points" in str(dimension)

    def test_many_neurons(self) -> None:
        text = str(tangent(random_model("tanh", 3, 20, 1, bias=True, out=False)))
        assert "20 neurons (0, 1, ..., 19), each on its own: 20 (1 + 3 + 1)" in text

    def test_zero_polynomial(self) -> None:
        model = TwoLayer(2, 3, activation=Polynomial([0.0]))
        assert (int(tangent(model)), int(generic_rank(model))) == (0, 0)

    def test_polynomials_of_unusual_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(polynomial, "ENTRIES", 10)
        full = tangent(build("z + z^3", [(W1, 0.5, [1.0]), (W2, 0.25, [1.0])]))
        assert (full.lower, full.upper, full.status) == (8, 8, "exact")
        twins = tangent(build("z + z^3", [(W1, 0.5, [1.0]), (W1, 0.5, [1.0])]))
        assert (twins.lower, twins.upper, twins.status) == (4, 8, "bounds")

    def test_wrong_models(self) -> None:
        with pytest.raises(
            ValueError, match=r"architecture is a linear network; expected a two-layer"
        ):
            generic_rank(DeepLinear([2, 3, 1]))
        net = structure(build("tanh", [(W1, 0.5, [1.0])]))
        wrong = TwoLayerNet("hardtanh", net.w, net.b, net.a, net.c, net.d, net.q)
        with pytest.raises(ValueError, match=r"activation is 'hardtanh', whose reflection"):
            two_layer_tangent(wrong)
        with pytest.raises(ValueError, match="a two-layer network of hardtanh"):
            generic_rank(wrong)


def test_affine_functions_by_source() -> None:
    net = structure(build("sigmoid", [(W1, 0.5, [1.0]), ([-0.9, 1.3], -0.5, [1.0])]))
    assert [(text, rank(rows)) for text, rows in affine_part(net, group_neurons(net))] == [
        ("both orientations of neurons 0 and 1", 1)
    ]


@pytest.mark.parametrize(
    ("d", "neurons", "expected"),
    [
        (1, [([0.9], 0.3, [0.5])] * 3 + [([-1.7], 0.4, [1.5])] * 2, (5, 6, 6)),
        (2, [(W1, 0.3, [0.5])] * 2 + [(W2, -0.7, [1.5])] * 2, (7, 8, 8)),
        (3, [([0.9, -1.3, 0.5], 0.0, [0.5])] * 3, (3, 4, 4)),
    ],
)
def test_samples_around_the_dimension(
    d: int, neurons: list[Any], expected: tuple[int, ...]
) -> None:
    model = build("tanh", neurons, bias=d < 3)
    size = int(tangent(model))
    ranks = [certify(model, generic_samples(n, d)).rank for n in (size - 1, size, size + 1)]
    assert tuple(ranks) == expected
