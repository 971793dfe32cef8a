"""Model ranks of functions: the theory's tables, exhaustive searches, certified ranks, and wrong variants."""

from __future__ import annotations

import random
import warnings
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from function_search import REFLECTIONS, Setting, smallest
from theory_cases import build, certified, generic_samples, random_cases, random_two_layer
from torch import Tensor, nn

import llr
from llr import theory
from llr.models import (
    Conv1dTwoLayer,
    DeepLinear,
    MatrixFactorization,
    Polynomial,
    TwoLayer,
    mlp,
)
from llr.theory import model_rank_of_function, optimistic_sample_size, tangent_dimension
from llr.theory import two_layer_function as two_layer

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
        """The numbers of the closed form, and of a search that does not know it."""
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
        """In a wide network they cost what their own width costs."""
        options = {"activation": activation, "bias": bias, "output_bias": output_bias}
        narrow = TwoLayer(d, k, q, dtype=F64, **options, generator=torch.Generator().manual_seed(0))
        kink = activation == "relu"
        expected = k * (q + d + bias - kink) + output_bias * q
        for m in (k, k + 1, 50):
            wide = TwoLayer(d, m, q, dtype=F64, **options)
            assert int(optimistic_sample_size(wide, narrow)) == expected


class TestSearches:
    """Random functions of few neurons: the closed form says what a search over representations finds."""

    @pytest.mark.parametrize("activation", REFLECTIONS)
    def test_constants(self, activation: str) -> None:
        for seed in range(random_cases(12)):
            chance = random.Random(f"{activation} {seed}")
            k, d = chance.randint(0, 2), chance.randint(1, 2)
            m = k + chance.randint(0, 1) if k else chance.randint(1, 2)
            bias, output_bias = chance.random() < 0.7, chance.random() < 0.3
            bias = bias or (activation == "relu" and d == 1)  # else all share one hyperplane
            gamma = chance.choice((0, 0, 1, 2, -3)) if bias or output_bias else 0
            alpha = tuple((chance.choice((1, -1, 2, 3)),) for _ in range(k))
            s = setting(
                activation,
                k,
                m,
                d,
                bias=bias,
                output_bias=output_bias,
                alpha=alpha,
                affine=[[0] * d + [gamma]],
            )
            self.compare(s, seed)

    @pytest.mark.parametrize("activation", ["softplus", "gelu", "silu", "relu"])
    def test_affine_parts_of_the_hinge_class(self, activation: str) -> None:
        """Multiples of a neuron's own preactivation, which reflections make, and other linear functions."""
        for seed in range(random_cases(6)):
            chance = random.Random(f"affine {activation} {seed}")
            k, d = chance.randint(1, 2), 2
            m = k + chance.randint(0, 2 if k == 1 else 1)
            alpha = tuple((chance.choice((1, -1, 2)),) for _ in range(k))
            plane = planes(k, d, True)[0]
            factor = chance.choice((-alpha[0][0], 1, 2))
            affine = [[factor * v for v in plane]]
            s = setting(activation, k, m, d, alpha=alpha, affine=affine, output_bias=True)
            self.compare(s, seed)

    @staticmethod
    def compare(s: Setting, seed: int) -> None:
        least = smallest(s)[0]
        if least < 0:
            with pytest.raises(ValueError, match=r"width|cannot|constant"):
                optimistic_sample_size(*models(s))
            return
        found = optimistic_sample_size(*models(s))
        assert found.lower <= least <= found.upper, (seed, s, str(found))
        assert found.exact, (seed, s, str(found))


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
        """A network with one neuron for each of the function's has the rank that is said, on samples."""
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


class TestConvolutions:
    @pytest.mark.parametrize(
        ("d", "s", "k", "shared", "local", "full"),
        [
            (3, 2, 1, 4, 6, 8),
            (4, 2, 1, 5, 9, 15),
            (5, 3, 1, 6, 12, 18),
            (5, 3, 2, 12, 24, 36),
            (6, 2, 2, 14, 30, 70),
            (6, 4, 2, 14, 30, 42),
            (4, 1, 2, 10, 16, 40),
            (4, 4, 2, 10, 10, 10),
        ],
    )
    def test_one_target_in_three_architectures(
        self, d: int, s: int, k: int, shared: int, local: int, full: int
    ) -> None:
        target = Conv1dTwoLayer(d, s, k, dtype=F64, generator=torch.Generator().manual_seed(k))
        sizes = [
            optimistic_sample_size(net, target)
            for net in (
                Conv1dTwoLayer(d, s, k + 2, dtype=F64),
                Conv1dTwoLayer(d, s, k + 2, shared=False, dtype=F64),
                TwoLayer(d, (k + 1) * (d + 1 - s), bias=False, dtype=F64),
            )
        ]
        assert all(size.exact for size in sizes)
        assert [int(size) for size in sizes] == [shared, local, full]

    @pytest.mark.parametrize("active", [1, 2, 3])
    def test_a_kernel_that_is_active_at_few_positions(self, active: int) -> None:
        out = torch.zeros(1, 3, dtype=F64)
        out[0, :active] = torch.tensor([1.0, -2.0, 0.5], dtype=F64)[:active]
        target = Conv1dTwoLayer(5, 3, 1, dtype=F64)
        with torch.no_grad():
            target.weight.copy_(torch.tensor([[1.0, 2.0, -1.0]], dtype=F64))
            target.out.copy_(out)
        sizes = [
            int(optimistic_sample_size(net, target))
            for net in (
                Conv1dTwoLayer(5, 3, 2, dtype=F64),
                Conv1dTwoLayer(5, 3, 2, shared=False, dtype=F64),
                TwoLayer(5, 6, bias=False, dtype=F64),
            )
        ]
        assert sizes == [6, 4 * active, 6 * active]

    def test_is_the_certified_rank_of_the_narrow_network(self) -> None:
        for shared in (True, False):
            target = Conv1dTwoLayer(
                5, 3, 2, shared=shared, dtype=F64, generator=torch.Generator().manual_seed(0)
            )
            proof = llr.rank(target, generic_samples(60, 5), method="certified")
            assert proof.exact
            assert proof.rank == int(model_rank_of_function(target))


class TestMatricesAndLinearMaps:
    @pytest.mark.parametrize(
        ("m", "n", "p", "r", "expected"),
        [(4, 5, 5, 1, 8), (4, 5, 5, 2, 14), (5, 5, 8, 3, 21), (4, 5, 5, 0, 0)],
    )
    def test_factorizations(self, m: int, n: int, p: int, r: int, expected: int) -> None:
        g = torch.Generator().manual_seed(0)
        A, B = torch.zeros(m, p, dtype=F64), torch.zeros(p, n, dtype=F64)
        A[:, :r] = torch.randint(-3, 4, (m, r), generator=g)
        B[:r] = torch.randint(-3, 4, (r, n), generator=g)
        assert torch.linalg.matrix_rank(A @ B) == r
        A[:, r:] = torch.randint(-3, 4, (m, p - r), generator=g)  # full rank, the same product
        found = model_rank_of_function(MatrixFactorization.of(A, B))
        assert (found.exact, int(found)) == (True, expected)
        assert int(tangent_dimension(MatrixFactorization.of(A, B))) >= expected

    @pytest.mark.parametrize("widths", [(3, 4, 2), (4, 3, 5, 3), (3, 3, 3, 3), (2, 4, 2)])
    def test_linear_maps_of_every_rank(self, widths: tuple[int, ...]) -> None:
        """Against the least dimension among all ranks that inner products of diagonal factors can have."""
        for r in range(min(widths) + 1):
            net = DeepLinear(list(widths), dtype=F64)
            least = min(
                int(tangent_dimension(diagonal(widths, ranks)))
                for ranks in rank_patterns(widths, r)
            )
            with torch.no_grad():
                for layer, ones in zip(linears(net), first_pattern(widths, r), strict=True):
                    layer.copy_(ones)
            found = model_rank_of_function(net)
            assert int(found) == least == r * (widths[0] + widths[-1] - r)

    def test_one_layer(self) -> None:
        assert int(model_rank_of_function(DeepLinear([3, 4], dtype=F64))) == 12


def linears(net: nn.Module) -> list[Tensor]:
    return [p for p in net.parameters() if p.dim() == 2]


def first_pattern(widths: tuple[int, ...], r: int) -> list[Tensor]:
    """Diagonal factors of rank r."""
    return [torch.eye(o, i, dtype=F64) * (torch.arange(i) < r) for i, o in pairwise(widths)]


def rank_patterns(widths: tuple[int, ...], r: int) -> list[tuple[tuple[int, ...], ...]]:
    """Which diagonal entries of each factor are 1: the first r of all, and any of the others."""
    found: list[tuple[tuple[int, ...], ...]] = [()]
    for i, o in pairwise(widths):
        others = range(r, min(i, o))
        extra = [c for size in range(len(others) + 1) for c in combinations(others, size)]
        found = [(*before, (*range(r), *e)) for before in found for e in extra]
    common = [set.intersection(*map(set, f)) if f else set() for f in found]
    return [f for f, c in zip(found, common, strict=True) if len(c) == r]


def diagonal(widths: tuple[int, ...], pattern: tuple[tuple[int, ...], ...]) -> DeepLinear:
    net = DeepLinear(list(widths), dtype=F64)
    with torch.no_grad():
        for p, ones in zip(linears(net), pattern, strict=True):
            p.zero_()
            for i in ones:
                p[i, i] = 1
    return net


class TestSineAndPolynomials:
    def test_sine_counts_directions(self) -> None:
        # Four phases of one direction, and another direction, make two neurons.
        neurons = [
            ([1.0, 2.0], b, [a]) for b, a in ((0.0, 1.0), (0.5, 2.0), (1.0, -1.0), (0.75, 1.0))
        ]
        net = build("sin", [*neurons, ([2.0, -1.0], 0.25, [1.0])])
        assert int(model_rank_of_function(net)) == 2 * (2 + 2)
        assert int(tangent_dimension(net)) > 8

    def test_polynomials_have_bounds_that_hold(self) -> None:
        for seed in range(5):
            g = torch.Generator().manual_seed(seed)
            narrow = TwoLayer(2, 2, activation=Polynomial([0, 0, 0, 1]), dtype=F64, generator=g)
            wide = TwoLayer(2, 6, activation=Polynomial([0, 0, 0, 1]), dtype=F64)
            found = optimistic_sample_size(wide, narrow)
            assert found.lower <= int(tangent_dimension(narrow)) == found.upper == 6


class TestDeepNetworks:
    @pytest.mark.parametrize(
        ("widths", "size"),
        [
            ((2, 3, 3, 1), 25),
            ((1, 4, 4, 1), 33),
            ((3, 2, 4, 2), 30),
            ((1, 1, 1, 1), 6),
            ((1, 2, 2, 2, 1), 19),
            ((2, 3, 2, 3, 1), 30),
        ],
    )
    def test_a_narrow_function_in_a_wide_network(self, widths: tuple[int, ...], size: int) -> None:
        g = torch.Generator().manual_seed(0)
        narrow = mlp(list(widths), dtype=F64, generator=g)
        wide = mlp([widths[0], *(w + 3 for w in widths[1:-1]), widths[-1]], dtype=F64)
        found = optimistic_sample_size(wide, narrow)
        assert (found.upper, found.status) == (size, "almost everywhere")

    def test_reduction(self) -> None:
        """Copies, reflections, constants and dead neurons in two layers: 1-4-4-1 is 1-2-2-1 in truth."""
        g = torch.Generator().manual_seed(3)
        narrow = mlp([1, 2, 2, 1], dtype=F64, generator=g)
        wide = mlp([1, 4, 4, 1], dtype=F64)
        n, w = (
            [m for m in narrow if isinstance(m, nn.Linear)],
            [m for m in wide if isinstance(m, nn.Linear)],
        )
        with torch.no_grad():
            for p in wide.parameters():
                p.zero_()
            for p in narrow.parameters():
                p.copy_((p * 16).round() / 16 + 0.0625)
            w[0].weight[:2], w[0].bias[:2] = n[0].weight, n[0].bias
            w[0].weight[2], w[0].bias[2] = -n[0].weight[0], -n[0].bias[0]  # a reflected copy
            w[0].bias[3] = 0.0  # a neuron without incoming weights: zero
            w[1].weight[:2, 1], w[1].bias[:2] = n[1].weight[:, 1], n[1].bias
            w[1].weight[:2, 0], w[1].weight[:2, 2] = 2 * n[1].weight[:, 0], n[1].weight[:, 0]
            w[1].weight[2], w[1].bias[2] = w[1].weight[0], w[1].bias[0]
            w[2].weight[0, :2], w[2].bias[:] = n[2].weight[0], n[2].bias
            w[2].weight[0, 0] *= 0.75
            w[2].weight[0, 2] = n[2].weight[0, 0] * 0.25
        x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
        assert torch.allclose(narrow(x), wide(x), atol=1e-12)
        found = model_rank_of_function(wide)
        assert (found.upper, found.status) == (13, "almost everywhere")
        assert found.upper == llr.rank(narrow, generic_samples(40, 1), method="certified").rank

    def test_other_activations_have_upper_bounds(self) -> None:
        net = mlp([2, 3, 3, 1], activation="gelu", dtype=F64)
        assert model_rank_of_function(net).status == "bounds"


class TestBadInput:
    def test_a_model_of_no_known_structure(self) -> None:
        with pytest.raises(ValueError, match=r"llr\.model_rank"):
            model_rank_of_function(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))

    def test_not_finite(self) -> None:
        net = TwoLayer(2, 2)
        with torch.no_grad():
            net[0].weight[0, 0] = torch.nan
        with pytest.raises(ValueError, match="nan"):
            model_rank_of_function(net)

    def test_no_module(self) -> None:
        with pytest.raises(TypeError):
            model_rank_of_function(torch.ones(2))  # type: ignore[arg-type]

    def test_nearly_equal_neurons(self) -> None:
        net = build("tanh", [([1.0, 2.0], 0.5, [1.0]), ([1.0, 2.0 + 1e-12], 0.5, [1.0])])
        with pytest.warns(UserWarning, match=r"differ by 1\.0e-12 only"):
            assert int(model_rank_of_function(net)) == 8

    @pytest.mark.parametrize(
        ("architecture", "target", "message"),
        [
            (TwoLayer(3, 2), TwoLayer(2, 2), "inputs of the target: 2, of the architecture: 3"),
            (TwoLayer(2, 2, 2), TwoLayer(2, 2), "outputs of the target: 1"),
            (TwoLayer(2, 2, activation="relu"), TwoLayer(2, 2), "activation of the target: tanh"),
            (TwoLayer(2, 1), TwoLayer(2, 2), "width 1"),
            (TwoLayer(2, 2, bias=False), TwoLayer(2, 2), "no hidden biases"),
            (MatrixFactorization(3, 1, 3), TwoLayer(2, 2), "expected targets of the same kind"),
            (MatrixFactorization(3, 1, 3), MatrixFactorization(3, 2, 3), "rank 2"),
        ],
    )
    def test_architectures_that_do_not_have_the_function(
        self, architecture: nn.Module, target: nn.Module, message: str
    ) -> None:
        with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
            optimistic_sample_size(architecture, target)


# What is wrong, as a replacement of the closed form: the comparisons above must tell each from the truth.
def own_dimension(target: Any, architecture: Any) -> Any:
    """No minimum: what the target's own parameters have."""
    return two_layer.two_layer_tangent(two_layer.in_architecture(target, architecture))


MUTANTS: dict[str, tuple[str, Any]] = {
    "constants forgotten": ("constant_neuron_price", lambda _: theory.Term(0, "nothing")),
    "constants cost q": ("constant_neuron_price", lambda net: theory.Term(net.q, "a constant")),
    "neurons counted once too often": (
        "of_neurons",
        lambda f, net: [theory.Term((f.k + 1) * (net.q + net.d + net.beta), "neurons")],
    ),
    "biases forgotten": (
        "of_neurons",
        lambda f, net: [
            theory.Term(f.k * (net.q + net.d) + net.q * (net.c is not None), "neurons")
        ],
    ),
    "output biases forgotten": (
        "of_neurons",
        lambda f, net: [theory.Term(f.k * (net.q + net.d + net.beta), "neurons")],
    ),
}


def mistakes() -> int:
    """How many of random functions of tanh are given another rank than a search finds."""
    wrong = 0
    for seed in range(12):
        chance = random.Random(f"mutants {seed}")
        k, d = chance.randint(1, 2), chance.randint(1, 2)
        bias, output_bias = chance.random() < 0.8, chance.random() < 0.4
        gamma = chance.choice((0, 1)) if bias or output_bias else 0
        s = setting(
            "tanh",
            k,
            k + 1,
            d,
            bias=bias,
            output_bias=output_bias,
            affine=[[0] * d + [gamma]],
            spare=0,
        )
        wrong += optimistic_sample_size(*models(s)).upper != smallest(s)[0]
    return wrong


def test_the_closed_form_passes() -> None:
    assert mistakes() == 0


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_layer, *MUTANTS[mutant])
    assert mistakes() > 0


def test_no_minimum_is_caught() -> None:
    net = build("tanh", [([1.0], 0.5, [1.0]), ([1.0], 0.5, [-1.0]), ([2.0], 1.0, [1.0])])
    structure = theory.read_structure(net)
    assert own_dimension(structure, structure).upper != int(model_rank_of_function(net))
