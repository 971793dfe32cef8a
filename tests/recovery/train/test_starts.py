"""Where training starts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import llr
from llr.models import Conv1dTwoLayer, TwoLayer, mlp
from llr.recovery.train import initial

from .cases import F64, some

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestInitial:
    """The distribution of starts."""

    def test_normal(self) -> None:
        theta = some(TwoLayer(3, 4), 2000, 1e-6)
        assert theta.shape == (2000, 20)
        assert theta.dtype == F64
        assert float(theta.std()) == pytest.approx(1e-6, rel=0.03)
        assert abs(float(theta.mean())) < 5e-8

    @pytest.mark.parametrize("kind", ["fan-in", "torch"])
    def test_layers(self, kind: str) -> None:
        model = mlp([3, 16, 2])
        theta = initial(model, 4000, kind=kind, scale=2.0, dtype=torch.float32)
        assert theta.dtype == torch.float32
        uniform = math.sqrt(3) if kind == "torch" else 1
        for name, columns in llr.layout(model).items():
            inputs = 3 if name.startswith("0") else 16
            expected = 2 / math.sqrt(inputs) / uniform
            assert float(theta[:, columns].std()) == pytest.approx(expected, rel=0.03)
            if kind == "torch":
                assert float(theta[:, columns].abs().max()) <= 2 / math.sqrt(inputs)

    def test_generator(self) -> None:
        model = mlp([1, 2, 1])
        assert torch.equal(some(model, 3, seed=4), some(model, 3, seed=4))
        assert not torch.equal(some(model, 3, seed=4), some(model, 3, seed=5))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"count": 0}, "count is 0"),
            ({"scale": 0.0}, "scale is 0.0"),
            ({"scale": math.nan}, "scale is nan"),
            ({"kind": "small"}, "kind is 'small'"),
            ({"model": Conv1dTwoLayer(3, 2, 1), "kind": "torch"}, "is for MLPs"),
        ],
    )
    def test_bad_input(self, options: dict[str, Any], message: str) -> None:
        options = {"model": mlp([1, 2, 1]), "count": 1, **options}
        with pytest.raises(ValueError, match=message):
            initial(options.pop("model"), options.pop("count"), **options)
