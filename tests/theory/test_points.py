"""How many points a model with several outputs needs: other models, reports, and wrong variants."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.theory_cases import build
from torch import nn

from llr.models import Conv1dTwoLayer, MatrixFactorization, TwoLayer, mlp
from llr.theory import points_needed
from llr.theory.functions import points

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64


def two_neurons(a: list[list[float]]) -> TwoLayer:
    return build("tanh", [([0.9], 0.3, a[0]), ([-1.7], 0.4, a[1])])


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
