"""Linear independence of neurons: relations compared with theorems and certified ranks; planted mistakes."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks.test_rank import F64, samples
from torch import Tensor, nn

from llr.inputs.activations import activation_layer
from llr.linalg import balls
from llr.linalg.elimination import Scaled, find_pivots, prove
from llr.models import (
    Conv1dTwoLayer,
    DeepLinear,
    Erf,
    Polynomial,
    Sine,
    TwoLayer,
    mlp,
)
from llr.theory.spans.neurons import Independence, _networks, _values, independence
from llr.theory.spans.span import Function
from llr.theory.structures import groups

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

CASES = int(os.environ.get("LLR_RANDOM_CASES", "12"))


def layer(w: list[list[float]], b: list[float] | None = None) -> nn.Linear:
    weight = torch.tensor(w, dtype=F64)
    made = nn.Linear(weight.shape[1], len(weight), bias=b is not None, dtype=F64)
    with torch.no_grad():
        made.weight.copy_(weight)
        if b is not None:
            made.bias.copy_(torch.tensor(b, dtype=F64))
    return made


def neurons(activation: str | nn.Module, w: list[list[float]], b: list[float]) -> nn.Sequential:
    return nn.Sequential(layer(w, b), activation_layer(activation))


W = [[1.0, 2.0], [0.5, 0.0], [-1.0, -2.0]]


class TestOneLayer:
    # Activation: independent neurons among s(z), s(z'), s(-z), alone and beside constants.
    @pytest.mark.parametrize(
        ("activation", "counts"),
        [
            ("tanh", (2, 2)),
            ("erf", (2, 2)),
            ("sin", (2, 2)),
            ("sigmoid", (3, 2)),
            ("softplus", (3, 3)),
            ("gelu", (3, 3)),
            ("silu", (3, 3)),
            ("relu", (3, 3)),
        ],
    )
    def test_reflections(self, activation: str, counts: tuple[int, int]) -> None:
        model = neurons(activation, W, [0.25, 1.0, -0.25])
        for constant, count in zip((False, True), counts, strict=True):
            found = independence(model, constant=constant)
            assert (found.lower, found.upper, found.proved) == (count, count, True)
            assert bool(found) == found.independent == (count == 3)
        if activation in ("tanh", "erf", "sin"):
            assert found.relations == ("neuron 2 = -neuron 0",)
        if activation == "sigmoid":
            assert found.relations == ("neuron 2 = -neuron 0 + 1",)

    @pytest.mark.parametrize("activation", ["softplus", "gelu", "silu"])
    def test_differences_of_reflections_are_linear(self, activation: str) -> None:
        # s(z) - s(-z) = z: in one dimension three of them lie in the two-dimensional span of x and 1.
        w, b = [1.0, 2.0, 3.0], [0.5, 0.0, -1.0]
        pairs = [[v] for v in (*w, *(-v for v in w))]
        found = independence(neurons(activation, pairs, [*b, *(-v for v in b)]))
        assert (found.lower, found.upper) == (5, 5)
        assert found.relations[0].startswith("neuron 5 = ")
        beside = independence(neurons(activation, pairs, [*b, *(-v for v in b)]), constant=True)
        assert (beside.lower, beside.upper) == (4, 4)

    def test_relu_goes_by_hyperplanes(self) -> None:
        model = neurons("relu", [[1.0], [2.0], [-1.0], [-3.0], [0.0]], [0.5, 1.0, -0.5, -1.5, -1.0])
        found = independence(model)
        assert (found.lower, found.upper, found.basis) == (2, 2, (0, 2))
        assert found.relations == (
            "neuron 1 = 2 neuron 0",
            "neuron 3 = 3 neuron 2",
            "neuron 4 = 0",
        )

    def test_phases(self) -> None:
        found = independence(neurons("sin", [[1.0]] * 4 + [[-1.0]], [0.0, 0.5, 1.0, 2.0, -0.5]))
        assert (found.lower, found.upper, found.basis) == (2, 2, (0, 1))
        assert found.relations[0] == (
            "neuron 2 is a combination of neurons 0 and 1, which are ahead of it by phases"
        )
        assert found.relations[2] == "neuron 4 = -neuron 1"

    def test_constants(self) -> None:
        model = neurons("tanh", [[0.0], [1.0], [0.0], [0.0]], [0.5, 0.0, 1.0, 0.0])
        found = independence(model)
        assert (found.lower, found.upper, found.basis) == (2, 2, (0, 1))
        assert found.relations == ("neuron 2 is constant", "neuron 3 = 0")
        beside = independence(model, constant=True)
        assert (beside.lower, beside.upper, beside.basis) == (1, 1, (1,))

    @pytest.mark.parametrize("activation", ["sigmoid", "softplus", "gelu", "silu", "tanh", "relu"])
    def test_values_at_zero(self, activation: str) -> None:
        expected = activation in ("sigmoid", "softplus")
        found = independence(neurons(activation, [[0.0]], [0.0]))
        assert (found.lower, found.upper) == (expected, expected)

    def test_polynomials_have_few_dimensions(self) -> None:
        w = [[float(i), 1.0] for i in range(-3, 4)]
        squares = neurons(Polynomial([0, 0, 1]), w, [0.0] * 7)
        found = independence(squares)
        assert (found.lower, found.upper, found.basis) == (3, 3, (0, 1, 2))
        assert found.relations[0] == "neuron 3 = neuron 0 - 3 neuron 1 + 3 neuron 2"
        assert independence(neurons(Polynomial([1, 1, 1]), w, [0.5] * 7)).upper == 6 - 3

    def test_what_floating_point_cannot_tell(self) -> None:
        model = mlp([1, 32, 1], dtype=F64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            model[0].weight *= 0.5
        found = independence(model)
        assert found
        assert found.bits > 64
        assert str(found).startswith("32 of 32 neurons are linearly independent (proved")
        assert torch.linalg.matrix_rank(model[:2](samples(80, 1))) < 24

    def test_too_few_samples(self) -> None:
        found = independence(neurons("tanh", W[:2], [0.0, 1.0]), samples(1, 2))
        assert (found.lower, found.upper, found.proved, bool(found)) == (1, 2, False, False)
        assert str(found).startswith("1 to 2 of 2 neurons")


class TestDeeper:
    def test_copies_of_copies(self) -> None:
        # The second layer's rows differ, but their sums over the copies in the first layer are equal.
        model = nn.Sequential(
            layer([[1.0], [-1.0], [2.0]], [0.5, -0.5, 0.0]),
            nn.Tanh(),
            layer([[1.0, -2.0, 1.0], [2.0, -1.0, 1.0], [-4.0, -1.0, -1.0]], [0.0, 0.0, 0.0]),
            nn.Tanh(),
            layer([[1.0, 1.0, 1.0]], [0.0]),
        )
        found = independence(model)
        assert (found.n_neurons, found.lower, found.upper) == (3, 1, 1)
        assert found.relations == ("neuron 1 = neuron 0", "neuron 2 = -neuron 0")
        assert independence(model, layer=0).basis == (0, 2)

    def test_constants_go_through_layers(self) -> None:
        model = nn.Sequential(
            layer([[0.0], [1.0]], [0.5, 0.25]),
            nn.Sigmoid(),
            layer([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [-1.0, -1.0]], [0.0, 0.5, 0.0, 0.0]),
            nn.Sigmoid(),
        )
        found = independence(model, constant=True)
        assert (found.lower, found.upper, found.basis) == (1, 1, (2,))
        assert found.relations[0] == "neuron 0 is constant"
        assert found.relations[2] == "neuron 3 = -neuron 2 + 1"
        assert independence(model).basis == (0, 2)

    def test_several_depths(self) -> None:
        z = layer([[1.0, 0.5]], [0.25])
        once = nn.Sequential(z, nn.Tanh())
        twice = nn.Sequential(z, nn.Tanh(), layer([[1.0]], [0.0]), nn.Tanh())
        linear = nn.Sequential(z)
        flipped = nn.Sequential(layer([[-1.0, -0.5]], [-0.25]), nn.Softplus())
        soft = nn.Sequential(z, nn.Softplus())
        found = independence([once, twice, linear, soft, flipped, Erf()][:5])
        assert (found.n_neurons, found.lower, found.upper) == (5, 4, 4)
        assert found.relations == ("neuron 4 = -neuron 2 + neuron 3",)
        assert independence([once, twice, nn.Sequential(z, Sine())])

    def test_bounds_that_do_not_meet(self) -> None:
        # A sum of ReLUs is never negative, which does not follow from symmetries.
        once = neurons("relu", [[1.0], [-1.0]], [0.5, 1.0])
        found = independence([once, nn.Sequential(*once, layer([[1.0, 2.0]], [0.0]), nn.ReLU())])
        assert (found.lower, found.upper, found.proved, bool(found)) == (2, 3, False, False)
        assert str(found).startswith("2 to 3 of 3 neurons are linearly independent (proved bounds")

    def test_feature_maps(self) -> None:
        kernels = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)
        model = Conv1dTwoLayer.of(kernels, torch.ones(2, 3, dtype=F64), d=4)
        found = independence(model)
        # tanh(x_2) and tanh(x_3) come from both kernels.
        assert (found.n_neurons, found.lower, found.upper) == (6, 4, 4)
        assert found.relations == ("neuron 3 = neuron 1", "neuron 4 = neuron 2")
        padded = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Tanh()).double()
        assert independence(padded, samples(30, 5)[:, None])

    def test_deep_random_network(self) -> None:
        model = mlp([2, 4, 4, 3], "silu", dtype=F64, generator=torch.Generator().manual_seed(0))
        for number in (None, 0, 1):
            assert independence(model, layer=number)


def random_layers(seed: int, activations: tuple[str, ...]) -> nn.Sequential:
    """Two hidden layers of small integers, so that copies, reflections and constants are frequent."""
    source = random.Random(seed)
    d, m, k = source.choice([1, 1, 2]), source.randint(1, 4), source.randint(1, 4)

    def draw(n: int) -> list[float]:
        return [source.choice([-1, -1, 0, 0, 1, 1, 2]) / 2 for _ in range(n)]

    first, second = (source.choice(activations) for _ in range(2))
    return nn.Sequential(
        layer([draw(d) for _ in range(m)], draw(m)),
        activation_layer(first),
        layer([draw(m) for _ in range(k)], draw(k)),
        activation_layer(second),
    )


ANALYTIC = ("tanh", "erf", "sigmoid", "softplus", "gelu", "silu", "sin")


def rank_of_values(parts: list[nn.Module], x: Tensor, constant: bool) -> int:
    """The rank of the values of all neurons, not only of those reported as a basis."""
    networks = _networks(parts, x, None, 0)
    neurons = range(sum(network.outputs for network in networks))
    A = Scaled(_values(networks, neurons, constant, 512), 512)
    return prove(A, find_pivots(A))[0] - constant


def agrees(model: nn.Sequential, constant: bool, layers: int = 2) -> bool:
    """Whether the count is proved and right, and no relation is false."""
    parts, x = [model[: 2 * layers]], samples(40, model[0].in_features)
    found = independence(parts, x, constant=constant)
    return found.proved and found.lower == rank_of_values(parts, x, constant)


class TestRandomNetworks:
    @pytest.mark.parametrize("constant", [False, True])
    @pytest.mark.parametrize("activation", ANALYTIC)
    def test_relations_are_all(self, activation: str, constant: bool) -> None:
        for seed in range(CASES):
            model = random_layers(seed, (activation,))
            assert agrees(model, constant, 1), seed
            assert agrees(model, constant, 2), seed

    def test_mixed(self) -> None:
        for seed in range(CASES):
            assert agrees(random_layers(seed, (*ANALYTIC, "identity")), seed % 2 == 0), seed

    # Mistakes in the symmetries, and the activations that must detect them.
    def test_relu(self) -> None:
        for seed in range(CASES):
            model = random_layers(seed, ("relu",))
            assert agrees(model, seed % 2 == 0, 1), seed
            x = samples(60, model[0].in_features)
            found = independence([model], x)
            assert found.lower == rank_of_values([model], x, False) <= found.upper, seed

    @pytest.mark.parametrize(
        ("activation", "wrong"),
        [
            ("tanh", "hinge"),
            ("tanh", "odd+const"),
            ("sigmoid", "odd"),
            ("sigmoid", "hinge"),
            ("softplus", "odd"),
            ("silu", "odd+const"),
        ],
    )
    def test_planted_symmetries_are_caught(
        self, activation: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(groups.PARITY, activation, wrong)
        assert not all(
            agrees(random_layers(seed, (activation,)), constant, 1)
            for seed in range(40)
            for constant in (False, True)
        )

    @pytest.mark.parametrize(
        ("name", "wrong", "activation"),
        [
            (
                "llr.theory.spans.symbols._AT_ZERO",
                dict.fromkeys(groups.PARITY, (None, None)),
                "tanh",
            ),
            ("llr.theory.spans.symbols.Symbols.is_constant", lambda _, v: not any(v), "erf"),
            ("llr.theory.spans.symbols.Symbols.is_constant", lambda *_: False, "sigmoid"),
            ("llr.theory.spans.span.Echelon.reduce", lambda _, v: (v, {}), "silu"),
            ("llr.theory.spans.neurons.Function", lambda *parts: Function(parts[0]), "sin"),
            (
                "llr.theory.spans.neurons.Function",
                lambda *parts: Function(parts[0], len(parts) > 1 or None),
                "sin",
            ),
        ],
    )
    def test_planted_mistakes_are_caught(
        self,
        name: str,
        wrong: Any,
        activation: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(name, wrong)
        assert not all(
            agrees(random_layers(seed, (activation,)), constant, number)
            for seed in range(60)
            for constant in (False, True)
            for number in (1, 2)
        )


class TestResult:
    def test_json(self) -> None:
        found = independence(neurons("tanh", W, [0.0, 1.0, 0.0]))
        content = json.loads(json.dumps(found.to_dict()))
        assert content["basis"] == [0, 1]
        assert content["relations"] == ["neuron 2 = -neuron 0"]
        assert (content["independent"], content["proved"]) == (False, True)
        assert isinstance(found, Independence)

    def test_values_are_those_of_the_network(self) -> None:
        model, x = mlp([2, 3, 3, 1], dtype=F64), samples(4, 2)
        (network,) = _networks(model, x, 1, 0)
        found = torch.tensor([float(v) for v in network.values(80).entries()], dtype=F64)
        torch.testing.assert_close(found.view(4, 3), model[:4](x), rtol=1e-13, atol=1e-13)
        with balls.precision(80):
            assert network.values(80)[0, 0].rad() < 1e-20

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: independence([]), ValueError, "neurons is empty"),
            (lambda: independence(mlp([1, 2, 1]), bits=1), ValueError, "bits is 1; expected"),
            (lambda: independence([torch.tanh]), TypeError, "neurons has a builtin_function"),
            (lambda: independence([nn.Tanh()], layer=0), ValueError, "layer is 0, but neurons are"),
            (lambda: independence(mlp([1, 2, 1]), layer=1), ValueError, "has layers 0 to 0"),
            (lambda: independence(nn.Linear(1, 1)), ValueError, "has no layer of neurons"),
            (
                lambda: independence([nn.Linear(1, 1), nn.Linear(2, 1)]),
                ValueError,
                "expected .n, 2",
            ),
            (lambda: independence(nn.LayerNorm(2), samples(3, 2)), ValueError, "no rule for"),
        ],
    )
    def test_bad_input(
        self, call: Callable[[], object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            call()

    def test_linear_networks_have_layers(self) -> None:
        found = independence(DeepLinear([2, 3, 1], dtype=F64))
        assert (found.n_neurons, found.lower, found.upper) == (3, 2, 2)

    def test_two_layer_model(self) -> None:
        model = TwoLayer(2, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
        assert independence(model, constant=True)
