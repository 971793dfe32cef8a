"""Models that would not fit in memory are refused before they are built."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

import llr
from llr import models

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestSizes:
    @pytest.mark.parametrize(
        ("build", "parameters"),
        [
            (lambda: models.mlp([2, 10**9, 10**9, 1]), 2 * 10**9 + 10**18 + 10**9 + 2 * 10**9 + 1),
            (lambda: models.TwoLayer(10**9, 10**9), 10**18 + 2 * 10**9),
            (lambda: models.DeepLinear([10**9, 10**9]), 10**18),
            (lambda: models.MatrixFactorization(10**9, 10**9, 1), 10**18 + 10**9),
            (lambda: models.Conv1dTwoLayer(10**9, 1, 10**9), 10**9 + 10**18),
            (
                lambda: models.Conv1dTwoLayer(10**9, 1, 10**9, shared=False),
                2 * 10**18,
            ),
        ],
    )
    def test_of_more_than_memory(self, build: Callable[[], nn.Module], parameters: int) -> None:
        with pytest.raises(ValueError, match=f"a model of {parameters:,} parameters takes .* PB"):
            build()

    @pytest.mark.parametrize(
        "build",
        [
            lambda: models.mlp([3, 5, 4, 2], bias=False),
            lambda: models.mlp([3, 5, 4, 2], output_bias=False),
            lambda: models.TwoLayer(3, 5, 2, output_bias=True),
            lambda: models.DeepLinear([3, 4, 2]),
            lambda: models.MatrixFactorization(4, 2, 5),
            lambda: models.Conv1dTwoLayer(7, 3, 2),
            lambda: models.Conv1dTwoLayer(7, 3, 2, shared=False),
        ],
    )
    def test_the_count_is_that_of_the_model(self, build: Callable[[], nn.Module]) -> None:
        nbytes = 4 * sum(p.numel() for p in build().parameters())
        with llr.set_memory_budget(nbytes):
            build()
        with llr.set_memory_budget(nbytes - 1), pytest.raises(ValueError, match="memory budget"):
            build()
