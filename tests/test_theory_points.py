"""How many points a model of several outputs needs: Proposition 2.7 against certified ranks."""

from __future__ import annotations

import json
import random

import pytest
import torch
from theory_cases import build, generic_samples, random_cases
from torch import nn

from llr.certify import certify
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.theory import points, points_needed, tangent_dimension

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64


def ranks(model: nn.Module, d: int, most: int) -> list[int]:
    """Certified ranks on 1, 2, ... of the same random points."""
    x = generic_samples(most, d, seed=5)
    return [certify(model, x[:n]).rank for n in range(1, most + 1)]


def two_neurons(a: list[list[float]]) -> TwoLayer:
    return build("tanh", [([0.9], 0.3, a[0]), ([-1.7], 0.4, a[1])])


class TestTheTable:
    """Section 2.5: one input, two outputs, two neurons, dim T = 8."""

    @pytest.mark.parametrize(
        ("outgoing", "needed", "certified"),
        [
            ([[1.0, 2.0], [-2.0, 1.0]], 4, [6, 8, 8, 8]),
            ([[1.0, 2.0], [-2.0, -4.0]], 6, [5, 6, 7, 8]),
        ],
    )
    def test_generic_and_parallel_weights(
        self, outgoing: list[list[float]], needed: int, certified: list[int]
    ) -> None:
        net = two_neurons(outgoing)
        assert int(tangent_dimension(net)) == 8
        assert int(points_needed(net)) == needed
        assert ranks(net, 1, 6)[2:] == certified

    def test_one_output_needs_the_dimension(self) -> None:
        for d, k, m, bias, size in [(1, 2, 5, True, 6), (2, 2, 4, True, 8), (3, 1, 3, False, 4)]:
            g = torch.Generator().manual_seed(0)
            narrow = TwoLayer(d, k, bias=bias, dtype=F64, generator=g)
            net = TwoLayer(d, m, bias=bias, dtype=F64)
            with torch.no_grad():  # spare neurons are copies without outgoing weights
                for p, q in zip(net.parameters(), narrow.parameters(), strict=True):
                    p.zero_()
                    p[tuple(slice(n) for n in q.shape)] = q
                net[0].weight[k:] = narrow[0].weight[0]
                if bias:
                    net[0].bias[k:] = narrow[0].bias[0]
            assert int(points_needed(net)) == size == int(tangent_dimension(net))
            assert ranks(net, d, size + 1)[-3:] == [size - 1, size, size]


class TestRandomNetworks:
    @pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu", "relu", "sin"])
    def test_bounds_hold_and_random_points_attain_them(self, activation: str) -> None:
        more_than_counting = 0
        for seed in range(random_cases(8)):
            chance = random.Random(f"{activation} {seed}")
            d, q, k = chance.randint(1, 2), chance.randint(2, 3), chance.randint(1, 4)
            directions = [[float(chance.randint(-2, 2)) for _ in range(q)] for _ in range(2)]
            neurons = [
                (
                    [chance.choice((1.0, -1.5, 0.5, 2.0, 2.5)) for _ in range(d)],
                    float(i) / 4 - 0.375,
                    chance.choice(directions),
                )
                for i in range(k)
            ]
            net = build(activation, neurons)
            found, size = points_needed(net), int(tangent_dimension(net))
            most = max(found.upper, 1)
            x = generic_samples(4 * most + 40 * (activation == "relu"), d, seed)
            assert -(-size // q) <= found.lower <= found.upper, seed
            if found.lower:  # fewer points never see all of it
                assert certify(net, x[: found.lower - 1]).rank < size if found.lower > 1 else size
            if activation != "relu" and size:  # of an analytic model almost every sample does
                assert certify(net, x[: found.upper]).rank == size, seed
            more_than_counting += found.lower > -(-size // q)
        assert more_than_counting > 0

    def test_linear_networks(self) -> None:
        for seed in range(6):
            g = torch.Generator().manual_seed(seed)
            widths = [int(v) for v in torch.randint(1, 5, (4,), generator=g)]
            net = DeepLinear(widths, dtype=F64, generator=g)
            n, size = int(points_needed(net)), int(tangent_dimension(net))
            found = ranks(net, widths[0], n + 1)
            assert found[n - 1] == size == found[n]
            assert n == 1 or found[n - 2] < size


class TestOthers:
    def test_convolutions_and_deep_networks(self) -> None:
        assert int(points_needed(Conv1dTwoLayer(4, 2, 1, dtype=F64))) == 5
        found = points_needed(mlp([1, 2, 2, 1], dtype=F64))
        assert found.upper == 13 == found.dimension.upper

    def test_matrices_count_entries(self) -> None:
        net = MatrixFactorization(4, 1, 5, dtype=F64)
        assert points_needed(net).upper == 8

    def test_words_and_json(self) -> None:
        found = points_needed(two_neurons([[1.0, 2.0], [-2.0, -4.0]]))
        assert "functions with values in 1 of 2 dimensions" in str(found)
        assert json.loads(json.dumps(found.to_dict()))["lower"] == 6

    def test_bounds_are_no_number(self) -> None:
        net = TwoLayer(3, 40, 4, dtype=F64)  # too large for a determinant here
        found = points_needed(net)
        assert found.lower < found.upper
        with pytest.raises(ValueError, match=r"between \d+ and \d+, no single number"):
            int(found)

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match=r"llr\.model_rank"):
            points_needed(nn.LSTM(2, 1))
        with pytest.warns(UserWarning, match="count as different"):
            points_needed(build("tanh", [([1.0], 0.5, [1.0]), ([1.0 + 1e-13], 0.5, [1.0])]))


def wrong() -> int:
    cases = [[[1.0, 2.0], [-2.0, 1.0]], [[1.0, 2.0], [-2.0, -4.0]], [[1.0, 0.0], [0.0, 1.0]]]
    truth = [4, 6, 4]
    return sum(points_needed(two_neurons(a)).lower != n for a, n in zip(cases, truth, strict=True))


class TestMutants:
    def test_the_rule_passes(self) -> None:
        assert wrong() == 0

    def test_observations_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(points, "_subspaces", lambda _: iter(()))
        assert wrong() > 0

    def test_a_point_counted_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(points, "_bounds", lambda *_: iter([(8, 1)]))
        assert wrong() > 0

    def test_no_outputs_taken_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(points, "_modulo", lambda net, _: net)
        assert wrong() > 0
