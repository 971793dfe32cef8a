"""Sources of samples: names, boxes, finite domains, callables; and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.oracles import mlp
from ranks.test_model_rank import Entries, source
from torch import nn

import llr
from llr import model_rank

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestSamplers:
    @pytest.mark.parametrize(
        "sampler",
        [
            "normal",
            "uniform",
            (0.0, 2.0),
            (torch.tensor([-1.0, 2.0, 5.0]), torch.tensor([0.0, 3.0, 9.0])),
            lambda n, g: torch.rand(n, 3, generator=g),
            torch.arange(600.0).reshape(200, 3),
        ],
    )
    def test_prefixes_stay(self, sampler: Any) -> None:
        once, stepwise = source(sampler), source(sampler)
        few = stepwise.first(5).clone()
        assert few.shape == (5, 3)
        more = stepwise.first(150)
        torch.testing.assert_close(more[:5], few, rtol=0, atol=0)
        assert stepwise.distinct(150) == 150
        if not callable(sampler):  # a callable may depend on how many points it is asked for
            torch.testing.assert_close(once.first(150), more, rtol=0, atol=0)
            other = source(sampler, seed=1).first(150)
            assert not torch.equal(other, more)

    def test_distributions(self) -> None:
        normal = source("normal").first(4000)
        assert abs(normal.mean()) < 0.05
        assert abs(normal.std() - 1) < 0.05
        uniform = source("uniform").first(4000)
        assert uniform.min() >= -1
        assert uniform.max() <= 1
        assert abs(uniform.var() - 1 / 3) < 0.02
        low, high = torch.tensor([0.0, -2.0, 7.0]), torch.tensor([1.0, 5.0, 7.5])
        box = source((low, high)).first(4000)
        assert bool(((box >= low) & (box <= high)).all())
        torch.testing.assert_close(box.mean(0), ((low + high) / 2).double(), rtol=0, atol=0.1)
        assert source((0.0, high)).first(1).shape == (1, 3)

    def test_domain_is_taken_once_each(self) -> None:
        points = torch.arange(30).reshape(10, 3)
        found = source(points)
        assert found.limit == 10
        assert found.first(99).shape == (10, 3)
        torch.testing.assert_close(found.first(10).sort(0).values, points)
        assert not torch.equal(found.first(10), points)

    def test_dtype_is_that_of_the_model(self) -> None:
        model = mlp(3, 2, 1, dtype=torch.float32)
        found = model_rank(model)
        assert found.samples.dtype == torch.float32
        # The same points, rounded.
        torch.testing.assert_close(found.samples, source("normal").first(11).float())
        assert (found.rank, found.exact) == (11, True)
        model(found.samples)

    @pytest.mark.parametrize(
        ("model", "shape"),
        [
            (nn.Sequential(nn.Flatten(), nn.Linear(6, 2), nn.Tanh()), (6,)),
            (nn.Sequential(nn.Sequential(nn.Identity(), nn.Linear(4, 3)), nn.LayerNorm(3)), (4,)),
            (nn.Sequential(nn.Unflatten(1, (2, 5)), nn.Conv1d(2, 3, 2)), (10,)),
            (nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 2)), (3,)),
        ],
    )
    def test_shape_of_a_sample(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        assert source("normal", model).first(7).shape == (7, *shape)
        model_rank(model.double(), certify=False, max_samples=2)

    def test_tokens(self) -> None:
        model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2)).double()
        few = source("normal", model)
        assert few.limit == 49
        assert sorted(map(tuple, few.first(49).tolist())) == [
            (i, j) for i in range(7) for j in range(7)
        ]
        found = model_rank(model)
        # f = M (e_i, e_j) + c: the images of the embedding under M_1 and M_2 (2 x 3, of rank 2)
        # and M itself, whose tangent space is X E + M Y: exactly what the whole domain gives.
        J = llr.jacobian(model, few.first(49)).flatten(0, 1)
        assert found.rank == torch.linalg.matrix_rank(J)
        assert found.upper_from == "parameters"
        many = source("uniform", nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(12, 2)))
        assert many.limit is None
        assert 0 <= many.first(500).min() < many.first(500).max() < 50

    @pytest.mark.parametrize(
        ("sampler", "error", "message"),
        [
            ("cauchy", ValueError, "sampler is 'cauchy'; expected"),
            (3, TypeError, "sampler is int; expected"),
            ([0.0, 1.0], TypeError, "sampler is list; expected"),
            ((0.0, 1.0, 2.0), ValueError, "a tuple of 3"),
            ((1.0, 1.0), ValueError, "low = 1.0 to high = 1.0"),
            ((2.0, -1.0), ValueError, "low = 2.0 to high = -1.0"),
            ((0.0, math.inf), ValueError, "finite numbers low < high"),
            ((math.nan, 1.0), ValueError, "finite numbers low < high"),
            ((torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])), ValueError, r"at index \(1,\)"),
            ((torch.zeros(3), torch.ones(2)), ValueError, "shapes that expand to one sample"),
            (torch.zeros(0, 3), ValueError, "expected points"),
            (torch.tensor(1.0), ValueError, "expected points"),
            (torch.tensor([[1.0, 2.0, math.nan]]), ValueError, "sampler has 1 NaN or Inf"),
            (lambda n, _: torch.zeros(n + 1, 3), ValueError, r"expected 1 points, \(1, \.\.\.\)"),
            (lambda n, _: [0.0] * n, TypeError, "returned is list"),
            (lambda n, _: torch.full((n, 3), math.inf), ValueError, "NaN or Inf"),
            (lambda n, g: torch.rand(n, 3 - (n > 1), generator=g), ValueError, "samples of shape"),
        ],
    )
    def test_refused(self, sampler: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            model_rank(mlp(3, 2, 1), sampler=sampler)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten()), r"any size \(2, L\)"),
            (nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()), r"any size \(2, H, W\)"),
            (nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)), r"sample_shape=\(L,\)"),
            (nn.TransformerEncoderLayer(4, 2), "cannot be read off it"),
            (Entries(torch.ones(2, 2), torch.ones(2, 2)), "sample_shape="),
        ],
    )
    def test_shape_that_cannot_be_told(self, model: nn.Module, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model_rank(model)

    @pytest.mark.parametrize("shape", [(0,), (2.0,), "3", (-1, 2)])
    def test_malformed_shape(self, shape: Any) -> None:
        with pytest.raises(ValueError, match="sample_shape is"):
            model_rank(mlp(3, 2, 1), sample_shape=shape)
