"""Ranks of models, not of samples, against closed forms; and which samples attain them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import mlp
from test_certify import random_net
from test_rank import DEGENERATE, W1, W2, samples, two_layer
from torch import Tensor, nn

import llr
from llr.certify import verify
from llr.guarantee import Guarantee, has_llr_guarantee, llr_sample_size
from llr.model_rank import ModelRank, model_rank
from llr.samplers import read_sampler

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64
ACTIVATIONS = ("tanh", "sigmoid", "softplus")
TWO = [(W1, 0.3, [1.0]), (W2, -0.7, [0.8])]


def generic(*widths: int, biases: str = "all", seed: int = 0) -> nn.Sequential:
    """A tanh network at random parameters, with biases everywhere, in hidden layers only, or none."""
    model = random_net(*widths, seed=seed, output_bias=True)
    linears = [m for m in model if isinstance(m, nn.Linear)]
    for linear in linears if biases == "none" else linears[-1:] if biases == "hidden" else []:
        linear.bias = None
    return model


def linear_net(*weights: Tensor) -> nn.Sequential:
    """The deep linear network W_L ... W_1."""
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=F64) for w in weights]
    with torch.no_grad():
        for layer, w in zip(layers, weights, strict=True):
            layer.weight.copy_(w)
    return nn.Sequential(*layers)


class Entries(nn.Module):
    """(A B)_ij for index pairs (i, j)."""

    def __init__(self, A: Tensor, B: Tensor) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def forward(self, x: Tensor) -> Tensor:
        return (self.A[x[:, 0]] * self.B.T[x[:, 1]]).sum(1)


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Small integers, of which products are exact."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=g).double()


class TestClosedForms:
    @pytest.mark.parametrize("act", ACTIVATIONS)
    @pytest.mark.parametrize("name", DEGENERATE)
    def test_degenerate_two_layer_networks(self, name: str, act: str) -> None:
        neurons, options, expected = DEGENERATE[name]
        model = two_layer(neurons, act=act, **options)
        found = model_rank(model)
        dim = expected[ACTIVATIONS.index(act)]
        assert (found.rank, found.lower, found.upper) == (dim, dim, found.n_params)
        assert found.exact == (dim == found.n_params)
        assert found.saturated
        assert not found.ambiguous
        assert found.result.certificate is not None
        assert verify(found.result.certificate, model, found.samples)
        assert int(llr.rank(model, found.samples).rank) == dim
        # In theory the bounds meet, and the search ends there.
        assert model_rank(model, upper=dim).exact

    @pytest.mark.parametrize("biases", ["all", "hidden", "none"])
    @pytest.mark.parametrize(
        ("widths", "counts"),
        [
            ((2, 3, 3, 1), (25, 24, 18)),
            ((3, 2, 4, 2), (30, 28, 22)),
            ((1, 2, 2, 2, 1), (19, 18, 12)),
            ((1, 1, 1, 1, 1, 1), (10, 9, 5)),
        ],
    )
    def test_generic_deep_networks_are_full(
        self, widths: tuple[int, ...], counts: tuple[int, ...], biases: str
    ) -> None:
        found = model_rank(generic(*widths, biases=biases))
        assert found.exact
        assert found.upper_from == "parameters"
        assert found.rank == counts[("all", "hidden", "none").index(biases)]

    def test_where_float64_is_wrong(self) -> None:
        # 16 distinct neurons on the line: 3 m = 48; singular values down to 1e-30.
        model = random_net(1, 16, 1)
        found = model_rank(model)
        assert (found.rank, found.exact, found.ambiguous) == (48, True, False)
        counted = model_rank(model, certify=False)
        assert counted.rank < 48
        assert counted.lower == 0
        assert counted.ambiguous
        assert "AMBIGUOUS" in str(counted)

    def test_nearly_equal_neurons_are_different(self) -> None:
        # One unit in the last place between them: a clear rank below 8 in floating point, but dim T = 8.
        near = [torch.nextafter(torch.tensor(w, dtype=F64), torch.tensor(9.0)).item() for w in W1]
        model = two_layer([(W1, 0.3, [1.0]), (near, 0.3, [0.8])])
        assert int(llr.rank(model, samples(60, 2)).rank) < 8
        found = model_rank(model)
        assert (found.rank, found.exact) == (8, True)

    def test_copies_cost_nothing(self) -> None:
        # Three neurons, each 20 times over: P = 240, dim T = 3 (2 + 2).
        model = two_layer(
            [(w, b, [0.1 * i]) for w, b, _ in [*TWO, (W1, 2.0, 0)] for i in range(1, 21)]
        )
        found = model_rank(model)
        assert (found.rank, found.lower, found.upper) == (12, 12, 240)
        assert found.n_samples == 12
        counted = model_rank(model, certify=False)
        assert (counted.rank, counted.ambiguous) == (12, False)

    @pytest.mark.parametrize(("m", "n", "p", "r"), [(4, 5, 5, 1), (4, 5, 5, 2), (5, 5, 8, 3)])
    def test_matrix_factorization(self, m: int, n: int, p: int, r: int) -> None:
        g = torch.Generator().manual_seed(0)
        A = torch.zeros(m, p, dtype=F64)
        B = torch.zeros(p, n, dtype=F64)
        A[:, :r] = torch.randn(m, r, generator=g, dtype=F64)
        B[:r] = torch.randn(r, n, generator=g, dtype=F64)
        pairs = torch.cartesian_prod(torch.arange(m), torch.arange(n))
        found = model_rank(Entries(A, B), sampler=pairs)
        assert found.rank == r * (m + n - r)
        assert found.saturated
        assert found.upper == min(m * n, m * p + p * n)
        assert found.trace[-1][0] == m * n
        # The same product with A of full rank, B with zero rows: m r + n ra - ra r.
        A[:, r:] = torch.randn(m, p - r, generator=g, dtype=F64)
        ra = min(m, p)
        assert model_rank(Entries(A, B), sampler=pairs).rank == m * r + n * ra - ra * r

    def test_all_of_a_finite_domain_is_a_proof(self) -> None:
        # Matrix factorisation once more, as a linear network on unit vectors: exact in rationals.
        B, A = integers(6, 5), integers(4, 6, seed=1)
        B[2:] = 0
        A[:, 2:] = 0
        model = linear_net(B, A)
        found = model_rank(model, sampler=torch.eye(5, dtype=F64))
        assert found.rank == 2 * (4 + 5 - 2)
        assert (found.exact, found.upper_from) == (True, "domain")
        everywhere = model_rank(model)
        assert (everywhere.rank, everywhere.upper, everywhere.exact) == (14, 54, False)

    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            ([(4, 3), (2, 4)], 6),
            ([(2, 4), (5, 2), (3, 5)], 10),
            ([(3, 3), None, (3, 3)], 9),
            ([(3, 3), None], 3 * 3),
            ([None, None], 0),
        ],
    )
    def test_deep_linear(self, weights: list[tuple[int, int] | None], expected: int) -> None:
        made = [
            torch.zeros(3, 3) if s is None else integers(*s, seed=i) for i, s in enumerate(weights)
        ]
        found = model_rank(linear_net(*made))
        assert found.rank == found.lower == expected

    def test_rectified(self) -> None:
        # Positive scaling of a neuron costs one dimension each: k (q + d + beta - 1) = 12 of 15.
        model = mlp(3, 3, 1, activation=nn.ReLU)
        model[2].bias = None
        found = model_rank(model)
        assert (found.rank, found.lower, found.upper) == (12, 12, 15)

    def test_without_rules_for_the_model(self) -> None:
        # A shared kernel, d = 5, s = 3: k (d + 1) = 12; only singular values are to be had.
        class Convolution(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.kernels = nn.Conv1d(1, 2, 3, bias=False)
                self.read = nn.Parameter(torch.randn(2, 3))

            def forward(self, x: Tensor) -> Tensor:
                return (torch.tanh(self.kernels(x[:, None])) * self.read).sum((1, 2))

        found = model_rank(Convolution().double(), sample_shape=(5,))
        assert (found.rank, found.lower, found.saturated, found.ambiguous) == (12, 0, True, False)
        assert "not proved" in str(found)
        with pytest.raises(ValueError, match="no rule for Convolution"):
            model_rank(Convolution().double(), sample_shape=(5,), certify=True)

    def test_callable_with_parameters(self) -> None:
        def sine(p: dict[str, Tensor], x: Tensor) -> Tensor:
            return p["a"] * torch.sin(p["w"] * x[:, 0])

        params = {"a": torch.tensor(2.0, dtype=F64), "w": torch.tensor(1.5, dtype=F64)}
        assert model_rank(sine, params=params, sample_shape=(1,)).rank == 2
        params["a"] *= 0
        assert model_rank(sine, params=params, sampler=(-3.0, 3.0), sample_shape=(1,)).rank == 1


class TestSampleSizes:
    """Which prefixes of a sample have the guarantee."""

    SPLIT = (
        # (d, model of P parameters, P, dim T)
        (1, [([0.9], 0.3, 0.5)] * 3 + [([-1.7], 0.4, 1.5)] * 2, {}, 15, 6),
        (2, [(W1, 0.3, 0.5)] * 2 + [(W2, -0.7, 1.5)] * 2, {}, 16, 8),
        (3, [([0.9, -1.3, 0.5], 0.0, 0.5)] * 3, {"beta": False}, 12, 4),
    )

    @pytest.mark.parametrize(("d", "neurons", "options", "P", "dim"), SPLIT)
    @pytest.mark.parametrize("certify", ["auto", False])
    def test_scalar(
        self,
        d: int,
        neurons: list[Any],
        options: dict[str, Any],
        P: int,
        dim: int,
        certify: bool | str,
    ) -> None:
        model = two_layer([(w, b, [a]) for w, b, a in neurons], **options)
        x = samples(dim + 1, d, seed=3)
        found = model_rank(model, certify=certify)
        assert (found.n_params, found.rank, found.n_samples) == (P, dim, dim)
        for n, expected in ((dim - 1, dim - 1), (dim, dim), (dim + 1, dim)):
            verdict = has_llr_guarantee(model, x[:n], model_rank=found, certify=certify)
            assert bool(verdict) == verdict.holds == (n >= dim)
            assert (verdict.rank, verdict.model_rank) == (expected, dim)
            size = llr_sample_size(model, x[:n], model_rank=found, certify=certify)
            assert size == (dim if n >= dim else None)

    @pytest.mark.parametrize(
        ("alphas", "ranks", "size"),
        [
            (([1.0, 2.0], [3.0, -1.0]), (6, 8, 8, 8), 4),
            (([1.0, 2.0], [-2.0, -4.0]), (5, 6, 7, 8), 6),
        ],
    )
    def test_two_outputs(
        self, alphas: tuple[list[float], ...], ranks: tuple[int, ...], size: int
    ) -> None:
        neurons = [([0.9], 0.3, alphas[0]), ([-1.7], 0.4, alphas[1])]
        model, x = two_layer(neurons), samples(10, 1)
        found = model_rank(model)
        assert (found.rank, found.exact, found.n_samples) == (8, True, size)
        for n, expected in zip(range(3, 7), ranks, strict=True):
            verdict = has_llr_guarantee(model, x[:n], model_rank=found)
            assert (verdict.rank, verdict.holds) == (expected, n >= size)
        assert llr_sample_size(model, x) == size
        assert llr_sample_size(model, x, model_rank=8, certify=False) == size

    def test_repeated_points_do_not_count(self) -> None:
        model, x = two_layer(TWO), samples(8, 2)
        assert has_llr_guarantee(model, x)
        bad = x[[0, 1, 2, 3, 3, 2, 1, 0, 4, 5]]
        verdict = has_llr_guarantee(model, bad)
        assert (verdict.holds, verdict.rank, verdict.model_rank) == (False, 6, 8)
        assert "only 6 of the samples differ" in verdict.reason
        assert llr_sample_size(model, torch.cat((bad, x)), model_rank=8) == 10 + 8
        late = torch.cat((x[:1].expand(40, 2), x[1:]))
        assert llr_sample_size(model, late, model_rank=8) == 40 + 7

    def test_mirrored_points_do_not_count_for_odd_functions(self) -> None:
        model = two_layer([(w, 0.0, a) for w, _, a in TWO], beta=False)
        x = samples(3, 2)
        assert has_llr_guarantee(model, torch.cat((x, -x))).rank == 3
        assert has_llr_guarantee(model, samples(6, 2)).holds
        assert model_rank(model).rank == 6

    def test_confined_points_do_not_count(self) -> None:
        model = two_layer(TWO)
        x = samples(40, 2)
        x[:, 1] = 1.0
        # On the line the second weight acts as the bias does.
        assert has_llr_guarantee(model, x).rank == 6
        assert llr_sample_size(model, x) is None

    def test_proofs(self) -> None:
        model, x = random_net(1, 16, 1), samples(48, 1, seed=5)
        verdict = has_llr_guarantee(model, x)
        assert (verdict.holds, verdict.proved) == (True, True)
        assert (
            str(verdict)
            == "LLR guarantee: the rank on 48 samples is that of the model, 48 (proved)"
        )
        few = has_llr_guarantee(model, x[:47], model_rank=48)
        assert (few.holds, few.proved, few.rank) == (False, True, 47)
        assert "47 observations are too few" in few.reason
        counted = has_llr_guarantee(model, x, model_rank=48, certify=False)
        assert (counted.holds, counted.proved) == (False, False)
        assert "ambiguous" in counted.reason
        assert json.loads(json.dumps(few.to_dict(), allow_nan=False))["proved"] is True

    def test_observed_entries(self) -> None:
        # A matrix of rank 1: dim T = m + n - 1, and a set of entries has the guarantee iff the rows and
        # columns it meets form a connected graph that spans all.
        g = torch.Generator().manual_seed(0)
        model = Entries(*(torch.randn(*s, generator=g, dtype=F64) for s in ((3, 1), (1, 4))))
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        tree = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [2, 3]])
        assert has_llr_guarantee(model, tree, sampler=pairs).model_rank == 6
        assert llr_sample_size(model, tree, sampler=pairs) == 6
        cycle = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3]])
        assert has_llr_guarantee(model, cycle, sampler=pairs).rank == 5
        assert llr_sample_size(model, torch.cat((cycle, tree)), sampler=pairs) == 6 + 4
        with pytest.raises(ValueError, match=r"x is torch.int64.*give sampler="):
            has_llr_guarantee(model, tree)

    def test_not_proved_without_an_upper_bound(self) -> None:
        model = two_layer(DEGENERATE["mirror images"][0])
        verdict = has_llr_guarantee(model, samples(9, 2))
        assert (verdict.holds, verdict.proved, verdict.model_rank) == (True, False, 4)
        assert has_llr_guarantee(model, samples(9, 2), model_rank=4).proved

    def test_unsaturated_model_rank_is_said(self) -> None:
        model = two_layer(TWO)
        found = model_rank(model, max_samples=5)
        assert (
            "had not saturated" in has_llr_guarantee(model, samples(5, 2), model_rank=found).reason
        )

    def test_wrong_claims(self) -> None:
        model, x = two_layer(TWO), samples(9, 2)
        with pytest.raises(ValueError, match=r"model_rank=7 is contradicted: .* the rank is 8"):
            has_llr_guarantee(model, x, model_rank=7)
        with pytest.raises(ValueError, match="model_rank is 9, but the model has 8 parameters"):
            llr_sample_size(model, x, model_rank=9)
        for wrong in (-1, 2.0, True):
            with pytest.raises(ValueError, match="expected dim T"):
                has_llr_guarantee(model, x, model_rank=wrong)
        with pytest.raises(TypeError, match="seed= is about finding"):
            has_llr_guarantee(model, x, model_rank=8, seed=1)
        with pytest.raises(ValueError, match="x has no samples"):
            has_llr_guarantee(model, x[:0], model_rank=8)
        with pytest.raises(ValueError, match=r"x has 1 NaN or Inf entries out of 18"):
            has_llr_guarantee(
                model,
                x.index_fill(0, torch.tensor([2]), 1.0).put(
                    torch.tensor([4]), torch.tensor([math.nan], dtype=F64)
                ),
            )
        with pytest.raises(TypeError, match="x is list"):
            has_llr_guarantee(model, [[1.0, 2.0]])

    def test_zero(self) -> None:
        model = two_layer(DEGENERATE["zero"][0])
        assert model_rank(model).n_samples == 1
        assert llr_sample_size(model, samples(3, 2)) == 1


def source(sampler: Any, model: nn.Module | None = None, **options: Any) -> Any:
    given = {"shape": None, "dtype": F64, "device": torch.device("cpu"), "seed": 0} | options
    return read_sampler(sampler, model or mlp(3, 2, 1), **given)


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
        # and M itself, which moves by X E + M Y: exactly what the whole domain gives.
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


class TestSearch:
    def test_reproducible_and_apart_from_the_global_generator(self) -> None:
        model = two_layer(TWO)
        state = torch.get_rng_state()
        first, again = model_rank(model), model_rank(model)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(first.samples, again.samples, rtol=0, atol=0)
        assert json.dumps(first.to_dict()) == json.dumps(again.to_dict())
        assert not torch.equal(model_rank(model, seed=1).samples, first.samples)

    def test_sample_is_a_prefix_and_the_shortest(self) -> None:
        model = two_layer([([0.9], 0.3, [1.0, 2.0]), ([-1.7], 0.4, [-2.0, -4.0])])
        found = model_rank(model)
        torch.testing.assert_close(found.samples, source("normal", model).first(6))
        assert int(llr.rank(model, found.samples).rank) == 8
        assert int(llr.rank(model, found.samples[:-1]).rank) == 7

    def test_trace_doubles(self) -> None:
        # Eight distinct neurons of twelve: dim T = 32 of P = 48.
        model = two_layer([([0.3 * i - 1, 1.0], 0.1 * i, [1.0]) for i in range(7)] + [TWO[0]] * 5)
        seen: list[tuple[int, int, int]] = []
        found = model_rank(model, margin=4, progress=lambda *step: seen.append(step))
        sizes = [n for n, _ in found.trace]
        assert sizes == [8 * 2**i for i in range(len(sizes))]
        assert found.rank == found.trace[-1][1] == 32
        assert sizes[-2] > 32 + 4
        assert [rank for _, rank in found.trace[:2]] == [8, 16]
        assert {upper for *_, upper in seen} == {48}
        assert seen[-1][:2] == found.trace[-1]
        # Of two outputs, half as many points: 16 observations are enough to see rank 5, margin 8.
        assert model_rank(two_layer(DEGENERATE["copies, parallel outputs"][0])).trace == [
            (8, 5),
            (16, 5),
        ]

    def test_too_few_samples_is_a_result(self) -> None:
        found = model_rank(two_layer(TWO), max_samples=6)
        assert (found.rank, found.saturated, found.exact) == (6, False, False)
        assert found.lower == 6
        assert "raise max_samples" in found.reason
        assert "NOT SATURATED" in str(found)

    @pytest.mark.parametrize("certify", ["auto", False])
    def test_sampler_that_repeats_itself(self, certify: bool | str) -> None:
        def stuck(n: int, _: torch.Generator) -> Tensor:
            return torch.ones(n, 2, dtype=F64)

        found = model_rank(two_layer(TWO), sampler=stuck, certify=certify)
        assert (found.rank, found.saturated) == (1, False)
        assert "repeats 1 points" in found.reason

    def test_upper_from_the_caller(self) -> None:
        model = two_layer([(W1, 0.3, [1.0]), (W1, 0.3, [2.0])])
        found = model_rank(model, upper=4)
        assert (found.rank, found.exact, found.upper_from) == (4, True, "caller")
        assert "given the upper bound" in str(found)
        assert (model_rank(model, upper=6).lower, model_rank(model, upper=6).upper) == (4, 6)
        assert model_rank(model, upper=99).upper == 8
        for certify in ("auto", True, False):
            with pytest.raises(ValueError, match="upper=3"):
                model_rank(model, upper=3, certify=certify)

    def test_too_large_to_prove(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = two_layer(TWO)
        monkeypatch.setattr("llr.saturation._WORK", 0.0)
        counted = model_rank(model)
        assert (counted.rank, counted.lower, counted.saturated) == (8, 0, True)
        assert model_rank(model, certify=True).exact
        assert model_rank(model, method="certified").exact
        # Enough for a proof on the sample found, not for those of the search.
        monkeypatch.setattr("llr.saturation._WORK", 8 * 8 * 208.0)
        assert model_rank(model).exact

    def test_proof_that_cannot_follow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Floating point stops at about 25 of 36; proofs are affordable on 32 samples at most.
        model = random_net(1, 12, 1)
        monkeypatch.setattr("llr.saturation._WORK", 32 * 36 * 232.0)
        found = model_rank(model, max_samples=64)
        assert (found.rank, found.lower, found.upper) == (32, 32, 36)
        assert not found.saturated
        assert not found.exact
        assert "certify=True" in found.reason

    def test_count_goes_on_where_a_proof_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The first 24 samples are ambiguous already, and the only ones on which a proof is affordable.
        monkeypatch.setattr("llr.saturation._WORK", 24 * 36 * 224.0)
        found = model_rank(random_net(1, 12, 1), margin=12)
        assert found.lower == 24 < found.rank <= 36
        assert found.ambiguous
        assert found.result.certificate is None

    def test_proof_of_more_than_was_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Two neurons one unit apart with parallel outputs: dim T = 10, of which floating point sees the 5 of
        # one neuron, on 4 points. Only a proof on these is affordable, and finds 4 + 2.
        near = [torch.nextafter(torch.tensor(w, dtype=F64), torch.tensor(9.0)).item() for w in W1]
        model = two_layer([(W1, 0.3, [1.0, 2.0]), (near, 0.3, [2.0, 4.0])])
        counted = model_rank(model, certify=False)
        assert (counted.rank, counted.n_samples, counted.ambiguous) == (5, 4, False)
        assert model_rank(model).exact
        monkeypatch.setattr("llr.saturation._WORK", 8 * 10 * 208.0)
        found = model_rank(model)
        assert (found.rank, found.lower, found.upper) == (6, 6, 10)
        assert (found.ambiguous, found.saturated) == (True, False)

    @pytest.mark.parametrize("method", ["svd", "tsqr", "gram"])
    def test_methods(self, method: str) -> None:
        found = model_rank(mlp(2, 3, 1), method=method, certify=False)
        assert (found.rank, found.result.method, found.lower) == (13, method, 0)

    def test_values_of_the_parameters(self) -> None:
        model = mlp(2, 2, 1)
        assert model_rank(model, params="0.*").rank == 6
        assert model_rank(model, params={"2.weight": torch.zeros(1, 2, dtype=F64)}).rank == 2
        stacked = {name: p.detach().expand(3, *p.shape) for name, p in model.named_parameters()}
        with pytest.raises(ValueError, match="3 stacked parameter points"):
            model_rank(model, params=stacked)

    def test_json(self) -> None:
        found = model_rank(two_layer(TWO))
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert content["samples"] == found.samples.tolist()
        assert content["rank"] == content["result"]["rank"] == 8
        assert content["trace"] == [[16, 8]]
        large = model_rank(mlp(100, 1, 1), certify=False)
        assert large.samples.numel() > 4096
        assert large.to_dict()["samples"] is None
        assert isinstance(found, ModelRank)
        assert str(found) == (
            "model rank 8 of 8 parameters (proved), attained on 8 samples (standard normal of shape (2,), "
            "seed 0)"
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"margin": 0}, "margin is 0"),
            ({"max_samples": 0}, "max_samples is 0"),
            ({"seed": -1}, "seed is -1"),
            ({"upper": -1}, "upper is -1"),
            ({"certify": "yes"}, "certify is 'yes'"),
            ({"method": "qr"}, "method is 'qr'"),
            ({"method": "certified", "certify": False}, "exclude each other"),
        ],
    )
    def test_refused_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model_rank(two_layer(TWO), **options)

    @pytest.mark.parametrize(
        "function", [model_rank, lambda m: has_llr_guarantee(m, samples(9, 2))]
    )
    def test_inference_mode(self, function: Callable[[nn.Module], ModelRank | Guarantee]) -> None:
        model = two_layer(TWO)
        with torch.inference_mode():
            assert function(model)
