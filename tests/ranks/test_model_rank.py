"""Ranks of models, independent of samples, compared with closed forms; and which samples attain them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.oracles import mlp
from torch import Tensor, nn

import llr
from llr import model_rank, verify
from llr.inputs.samplers import read_sampler
from llr.ranks.guarantee import Guarantee, has_llr_guarantee
from llr.ranks.model_rank import ModelRank

from .certificates.test_certify import random_net
from .test_rank import DEGENERATE, W1, W2, samples, two_layer

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
    """Small integers, whose products are exact."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=g).double()


def source(sampler: Any, model: nn.Module | None = None, **options: Any) -> Any:
    given = {"shape": None, "dtype": F64, "device": torch.device("cpu"), "seed": 0} | options
    return read_sampler(sampler, model or mlp(3, 2, 1), **given)


class TestClosedForms:
    @pytest.mark.parametrize("act", ACTIVATIONS)
    @pytest.mark.parametrize("name", DEGENERATE)
    def test_degenerate_two_layer_networks(self, name: str, act: str) -> None:
        neurons, options, expected = DEGENERATE[name]
        model = two_layer(neurons, act=act, **options)
        found = model_rank(model)
        dim = expected[ACTIVATIONS.index(act)]
        # torch's softplus is not analytic, so the closed form does not bound the rank on samples.
        upper = found.n_params if act == "softplus" else dim
        assert (found.rank, found.lower, found.upper) == (dim, dim, upper)
        assert found.exact == (dim == upper)
        assert found.saturated
        assert not found.ambiguous
        assert found.result.certificate is not None
        assert verify(found.result.certificate, model, found.samples)
        assert int(llr.rank(model, found.samples).rank) == dim
        # The search ends at the theory's upper bound.
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
        counted = llr.rank(model, samples(60, 2), resolve=False)
        assert counted.rank < 8
        assert (counted.clear, counted.ambiguous) == (True, True)
        found = model_rank(model)
        assert (found.rank, found.exact) == (8, True)

    def test_copies_cost_nothing(self) -> None:
        # Three neurons, each 20 times over: P = 240, dim T = 3 (2 + 2).
        model = two_layer(
            [(w, b, [0.1 * i]) for w, b, _ in [*TWO, (W1, 2.0, 0)] for i in range(1, 21)]
        )
        found = model_rank(model)
        assert (found.rank, found.lower, found.upper, found.upper_from) == (12, 12, 12, "theory")
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
        found = model_rank(model, sampler=torch.eye(5, dtype=F64), params="*")
        assert found.rank == 2 * (4 + 5 - 2)
        assert (found.exact, found.upper_from) == (True, "domain")
        everywhere = model_rank(model, params="*")
        assert (everywhere.rank, everywhere.upper, everywhere.exact) == (14, 54, False)
        known = model_rank(model)
        assert (known.rank, known.upper_from, known.exact) == (14, "theory", True)

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
        # Positive scaling of a neuron reduces the rank by one per neuron: k (q + d + beta - 1) = 12 of 15.
        model = mlp(3, 3, 1, activation=nn.ReLU)
        model[2].bias = None
        found = model_rank(model)
        assert (found.rank, found.lower, found.upper) == (12, 12, 15)

    def test_without_rules_for_the_model(self) -> None:
        # A shared kernel, d = 5, s = 3: k (d + 1) = 12; only singular values are available.
        class Convolution(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.kernels = nn.Conv1d(1, 2, 3, bias=False)
                self.read = nn.Parameter(torch.randn(2, 3))

            def forward(self, x: Tensor) -> Tensor:
                return (torch.tanh(self.kernels(x[:, None])) * self.read).sum((1, 2))

        found = model_rank(Convolution().double(), sample_shape=(5,))
        assert (found.rank, found.lower, found.saturated) == (12, 0, True)
        assert (found.ambiguous, found.clear) == (True, True)  # the error of J is an estimate here
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
        found = model_rank(model, params="*", margin=4, progress=lambda *step: seen.append(step))
        sizes = [n for n, _ in found.trace]
        assert sizes == [8 * 2**i for i in range(len(sizes))]
        assert found.rank == found.trace[-1][1] == 32
        assert sizes[-2] > 32 + 4
        assert [rank for _, rank in found.trace[:2]] == [8, 16]
        assert {upper for *_, upper in seen} == {48}
        assert seen[-1][:2] == found.trace[-1]
        # Of two outputs, half as many points: 16 observations are enough to see rank 5, margin 8.
        parallel = two_layer(DEGENERATE["copies, parallel outputs"][0])
        assert model_rank(parallel, params="*").trace == [(8, 5), (16, 5)]
        assert model_rank(parallel).trace == [(8, 5)]

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
        found = model_rank(model, params="*", upper=4)
        assert (found.rank, found.exact, found.upper_from) == (4, True, "caller")
        assert "given the upper bound" in str(found)
        beyond = model_rank(model, params="*", upper=6)
        assert (beyond.lower, beyond.upper) == (4, 6)
        assert model_rank(model, params="*", upper=99).upper == 8
        assert model_rank(model, upper=6).upper_from == "theory"
        for certify in ("auto", True, False):
            with pytest.raises(ValueError, match="upper=3"):
                model_rank(model, upper=3, certify=certify)

    def test_too_large_to_prove(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = two_layer(TWO)
        monkeypatch.setattr("llr.ranks.saturation._WORK", 0.0)
        counted = model_rank(model)
        assert (counted.rank, counted.lower, counted.saturated) == (8, 0, True)
        assert model_rank(model, certify=True).exact
        assert model_rank(model, method="certified").exact
        # The time allows a proof on the sample found, but not on those of the search.
        monkeypatch.setattr("llr.ranks.saturation._WORK", 8 * 8 * 208.0)
        assert model_rank(model).exact

    def test_proof_that_cannot_follow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Floating point stops at about 25 of 36; proofs are affordable on 32 samples at most.
        model = random_net(1, 12, 1)
        monkeypatch.setattr("llr.ranks.saturation._WORK", 32 * 36 * 232.0)
        found = model_rank(model, max_samples=64)
        assert (found.rank, found.lower, found.upper) == (32, 32, 36)
        assert not found.saturated
        assert not found.exact
        assert "certify=True" in found.reason

    def test_count_goes_on_where_a_proof_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The first 24 samples are ambiguous already, and the only ones on which a proof is affordable.
        monkeypatch.setattr("llr.ranks.saturation._WORK", 24 * 36 * 224.0)
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
        assert (counted.rank, counted.n_samples) == (5, 4)
        assert (counted.ambiguous, counted.clear) == (True, True)
        assert "AMBIGUOUS (clear gap)" in str(counted)
        assert model_rank(model).exact
        monkeypatch.setattr("llr.ranks.saturation._WORK", 8 * 10 * 208.0)
        found = model_rank(model)
        assert (found.rank, found.lower, found.upper) == (6, 6, 10)
        assert (found.ambiguous, found.clear, found.saturated) == (True, False, False)

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
        content = json.loads(json.dumps(found.to_dict(spectrum=True), allow_nan=False))
        assert content["samples"] == found.samples.tolist()
        assert content["rank"] == content["result"]["rank"] == 8
        assert content["trace"] == [[16, 8]]
        assert "samples" not in found.to_dict()
        again = ModelRank.from_dict(found.to_dict())
        assert again.n_samples == 8
        assert str(again) == str(found)
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
