"""The four methods of llr.rank: they agree, their memory, the automatic choice, and what is proved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import torch
from helpers.models import EVERY, make
from helpers.oracles import mlp, run_python
from torch import nn

import llr
from llr import verify
from llr.inputs.problem import read_problem
from llr.jacobians import reference
from llr.jacobians.jacobian import prepare
from llr.operators import _ops
from llr.ranks.methods import choose, costs

from .test_rank import DEGENERATE, samples, two_layer

F64 = torch.float64
FLOAT_METHODS = ("svd", "tsqr", "gram")
native = pytest.mark.skipif(not _ops.NATIVE, reason="needs the native library")

pytestmark = pytest.mark.filterwarnings(
    "ignore:llr runs without its native library:RuntimeWarning",
)


@pytest.fixture(autouse=True)
def no_budget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LLR_MEMORY_BUDGET", raising=False)
    with llr.set_memory_budget(None):
        yield


class TestAgreement:
    @pytest.mark.parametrize("case", EVERY)
    def test_every_model(self, case: str) -> None:
        torch.manual_seed(0)
        model, x = make(case)
        J = reference.jacobian(model, x).flatten(0, 1)
        exact = torch.linalg.svdvals(J)
        for method in FLOAT_METHODS:
            result = llr.rank(model, x, method=method)
            assert result.method == method
            assert result.spectrum.shape == exact.shape
            error = (result.spectrum - exact).abs().max()
            assert error <= 10 * min(J.shape) * 2.0**-52 * exact[0], method
            assert result.rank == int(torch.linalg.matrix_rank(J)), method
            assert (result.n_rows, result.n_params) == tuple(J.shape)

    @pytest.mark.parametrize("method", FLOAT_METHODS)
    @pytest.mark.parametrize("name", DEGENERATE)
    def test_known_ranks(self, name: str, method: str) -> None:
        neurons, options, (expected, *_) = DEGENERATE[name]
        result = llr.rank(two_layer(neurons, **options), samples(60, 2), method=method)
        assert result.rank == expected
        assert not result.ambiguous

    @pytest.mark.parametrize("method", FLOAT_METHODS)
    def test_small_singular_values(self, method: str) -> None:
        # Singular values fall to 1e-13 of the first; a float64 Gram matrix loses those below 1e-8.
        model, x = two_layer([([1.0 + 0.3 * i], 0.1 * i, [1.0]) for i in range(8)]), samples(48, 1)
        J = llr.jacobian(model, x)[:, 0]
        exact = torch.linalg.svdvals(J)
        assert exact[-1] < 1e-12 * exact[0]
        found = llr.rank(model, x, method=method).spectrum
        assert (found - exact).abs().max() <= 10 * 24 * 2.0**-52 * exact[0]
        plain = torch.linalg.eigvalsh(llr.gram(model, x).reshape(48, 48)).flip(0)[:24]
        lost = (plain.clamp(min=0).sqrt() - exact).abs().max()
        assert lost > 1e4 * (found - exact).abs().max()

    @pytest.mark.parametrize("method", FLOAT_METHODS)
    def test_stacked_points(self, method: str) -> None:
        models = [mlp(3, 4, 2) for _ in range(3)]
        with torch.no_grad():
            models[1][0].weight.zero_()
        x = samples(30, 3)
        stacked, _ = torch.func.stack_module_state(models)
        result = llr.rank(models[0], x, params=stacked, method=method)
        expected = [llr.rank(m, x, method="svd") for m in models]
        assert result.rank.tolist() == [r.rank for r in expected]
        for row, one in zip(result.spectrum, expected, strict=True):
            torch.testing.assert_close(row, one.spectrum, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("method", FLOAT_METHODS)
    def test_more_rows_than_columns_and_fewer(self, method: str) -> None:
        model = mlp(3, 4, 2)
        for n in (1, 2, 12, 13, 14, 60):
            result = llr.rank(model, samples(n, 3), method=method)
            assert result.rank == min(2 * n, 26)
            assert len(result.spectrum) == min(2 * n, 26) == result.upper


class TestChoice:
    def test_tall_small_matrix_is_taken_whole(self) -> None:
        result = llr.rank(mlp(3, 4, 1), samples(500, 3))
        assert result.method == "svd"
        assert "operations in" in result.reason

    def test_wide_net_needs_no_jacobian(self) -> None:
        result = llr.rank(mlp(10, 256, 256, 1), samples(64, 10))
        assert result.method == "gram"
        assert result.predicted_bytes < 64 * 68_865 * 8 / 20

    def test_memory_decides(self) -> None:
        model, x = nn.Sequential(nn.Linear(300, 20), nn.LayerNorm(20)).double(), samples(5, 300)
        assert llr.rank(model, x, params="0.*").method == "svd"
        whole = llr.plan(model, x, params="0.*").nbytes
        with llr.set_memory_budget(whole // 4):
            result = llr.rank(model, x, params="0.*")
            with pytest.raises(ValueError, match="more than the memory budget"):
                llr.jacobian(model, x)
        assert result.method in ("tsqr", "gram")
        assert result.rank == 5 * 19  # LayerNorm subtracts the mean of every sample
        assert result.actual_bytes <= result.predicted_bytes <= whole // 4

    @pytest.mark.parametrize("method", FLOAT_METHODS)
    def test_what_does_not_fit_is_refused(self, method: str) -> None:
        model, x = mlp(3, 40, 1), samples(300, 3)
        problem = read_problem(model, x, None)
        needed = costs(problem, prepare(problem))[method].nbytes
        with (
            llr.set_memory_budget(needed // 2),
            pytest.raises(ValueError, match=rf"method='{method}' takes .*\(\d+ bytes\), more"),
        ):
            llr.rank(model, x, method=method)

    def test_nothing_fits(self) -> None:
        with (
            llr.set_memory_budget(1000),
            pytest.raises(ValueError, match=r"more than the memory budget of 1 kB \(others: "),
        ):
            llr.rank(mlp(3, 40, 1), samples(300, 3))

    def test_cheapest_that_fits(self) -> None:
        for n, width in ((5, 300), (400, 3), (100, 20)):
            problem = read_problem(mlp(3, width, 1), samples(n, 3), None)
            prepared = prepare(problem)
            estimates = costs(problem, prepared)
            taken, _ = choose("auto", problem, prepared, F64)
            assert taken.flops == min(c.flops for c in estimates.values())

    def test_float32_is_for_svd(self) -> None:
        model, x = mlp(3, 400, 1), samples(40, 3)
        result = llr.rank(model, x, dtype=torch.float32)
        assert (result.method, result.dtype) == ("svd", torch.float32)
        for method in ("tsqr", "gram"):
            with pytest.raises(
                TypeError, match=f"method='{method}' computes in float64, but dtype"
            ):
                llr.rank(model, x, dtype=torch.float32, method=method)

    @native
    @pytest.mark.slow
    @pytest.mark.parametrize("method", FLOAT_METHODS)
    def test_peak_is_as_predicted(self, method: str) -> None:
        # In a separate process: the growth beyond the memory of loading and a first call.
        code = f"""
import torch, llr
from pathlib import Path
from helpers.oracles import mlp
def status(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024
model, x = mlp(10, 256, 256, 1), torch.randn(512, 10, dtype=torch.float64)
llr.rank(model, x[:8], method={method!r})
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
result = llr.rank(model, x, method={method!r})
print(status("VmHWM") - before, result.predicted_bytes, result.actual_bytes, result.rank)
"""
        done = run_python(code)
        assert done.returncode == 0, done.stderr
        grown, predicted, actual, rank = map(int, done.stdout.split())
        assert rank == 512
        assert actual <= predicted
        assert grown <= 1.2 * predicted + (64 << 20)


class TestCertified:
    def test_what_floating_point_cannot_see(self) -> None:
        g = torch.Generator().manual_seed(0)
        w, b, a = (torch.randn(12, 1, generator=g, dtype=F64) for _ in range(3))
        model = two_layer(list(zip(w.tolist(), b[:, 0].tolist(), a.tolist(), strict=True)))
        x = samples(72, 1, seed=1)
        blurred = llr.rank(model, x, resolve=False)
        assert blurred.rank < 36
        assert blurred.ambiguous
        assert "resolve=True tries a proof" in str(blurred)
        assert (blurred.lower, blurred.upper, blurred.exact) == (blurred.rank, 36, False)
        result = llr.rank(model, x, method="certified")
        assert (result.rank, result.lower, result.upper, result.exact) == (36, 36, 36, True)
        assert not result.ambiguous
        assert result.bits >= 64
        assert verify(result.certificate, model, x)
        torch.testing.assert_close(result.spectrum, blurred.spectrum, rtol=0, atol=1e-12)
        assert str(result) == f"rank 36 of a 72 x 36 matrix, proved (certified, {result.bits} bits)"

    def test_bounds_that_do_not_meet(self) -> None:
        neurons = [([0.5, -1.0], 0.3, [1.0]), ([0.5, -1.0], 0.3, [2.0])]
        model, x = two_layer(neurons), samples(40, 2)
        assert llr.rank(model, x, method="certified").exact  # thanks to the closed form
        result = llr.rank(model, x, method="certified", params="*", max_bits=512)
        assert (result.rank, result.lower, result.upper) == (4, 4, 8)
        assert result.ambiguous
        assert not result.exact
        assert re.match(r"rank between 4 and 8 of a 40 x 8 matrix, proved", str(result))
        known = llr.rank(model, x, method="certified", upper=4)
        assert known.exact
        with pytest.raises(ValueError, match="disprove"):
            llr.rank(model, x, method="certified", upper=3)

    def test_upper_bound_of_a_count(self) -> None:
        model, x = mlp(2, 3, 1), samples(40, 2)
        assert llr.rank(model, x, upper=13).upper_from == "shape"
        assert llr.rank(model, x, upper=99).upper == 13
        with pytest.raises(ValueError, match=r"upper=9 is disproved: .* rank is at least 13"):
            llr.rank(model, x, upper=9)

    def test_relu_is_exact(self) -> None:
        torch.manual_seed(0)
        model = mlp(2, 4, 1, activation=nn.ReLU)
        result = llr.rank(model, samples(60, 2), method="certified")
        assert result.exact
        assert result.bits is None
        assert "rationals" in str(result)
        assert result.rank == llr.rank(model, samples(60, 2)).rank

    def test_json(self) -> None:
        result = llr.rank(mlp(2, 3, 1), samples(30, 2), method="certified")
        kept = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert kept["exact"] is True
        assert kept["gap"] is None
        assert llr.Certificate.from_dict(kept["certificate"]) == result.certificate

    def test_float32_parameters_are_exact_numbers(self) -> None:
        torch.manual_seed(0)
        model, x = mlp(2, 3, 1, dtype=torch.float32), torch.randn(30, 2)
        assert llr.rank(model, x, method="certified").exact


class TestWhatIsKnown:
    """The fields exact, ambiguous and clear, and the sources of bounds."""

    def test_random_networks(self) -> None:
        # No rank that is not ambiguous is wrong, and no lower bound is above the proved rank.
        told = 0
        for seed in range(12):
            torch.manual_seed(seed)
            widths = (1, 2 + seed % 4, 1) if seed % 2 else (1, 1, 2, 1, 1)
            model = mlp(*widths, activation=(nn.Tanh, nn.Sigmoid, nn.SiLU)[seed % 3])
            for p in model.parameters():
                nn.init.normal_(p)
            x = samples(20, 1, seed=seed)
            proof = llr.rank(model, x, method="certified", max_bits=1024)
            for method in FLOAT_METHODS:
                counted = llr.rank(model, x, method=method)
                assert counted.lower_from == "error bound"
                assert counted.lower <= proof.rank
                assert counted.ambiguous or counted.rank == proof.rank
            answer = llr.rank(model, x)
            assert answer.ambiguous or answer.rank == proof.rank
            told += answer.exact
        assert told >= 10

    def test_the_closed_form_is_met(self) -> None:
        twins = [([0.5, -1.0], 0.3, [1.0]), ([0.5, -1.0], 0.3, [2.0])]
        result = llr.rank(two_layer(twins), samples(40, 2), method="svd")
        assert (result.rank, result.exact, result.upper_from) == (4, True, "theory")
        assert "exact: upper bound by theory" in str(result)

    def test_larger_ones_say_what_a_proof_would_take(self) -> None:
        torch.manual_seed(0)
        model, x = mlp(1, 40, 1), samples(400, 1)
        result = llr.rank(model, x)
        assert (result.ambiguous, result.clear) == (True, False)
        assert "a certificate would take about" in result.reason
        assert result.lower == result.rank < result.upper == 121

    def test_never_and_whatever_it_takes(self) -> None:
        torch.manual_seed(0)
        model, x = mlp(1, 12, 1), samples(50, 1)
        assert llr.rank(model, x, resolve=False).ambiguous
        for method in FLOAT_METHODS:
            assert llr.rank(model, x, method=method).ambiguous
            assert llr.rank(model, x, method=method, resolve=True).exact
        with pytest.raises(TypeError, match="resolve"):
            llr.rank(torch.eye(3), resolve=True)

    def test_a_tolerance_asks_something_else(self) -> None:
        torch.manual_seed(0)
        model, x = mlp(1, 12, 1), samples(50, 1)
        result = llr.rank(model, x, rtol=1e-3)
        assert result.counted_above == "tolerance"
        assert result.method != "certified"
        assert result.rank < result.lower < 37
        assert not result.exact
        tol = float(result.spectrum[3])
        assert llr.rank(model, x, atol=tol).ambiguous  # one value equals the tolerance

    def test_other_layers_are_estimated(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)).double()
        x = samples(20, 3)
        result = llr.rank(model, x)
        assert (result.lower_from, result.rank, result.upper) == ("estimate", 20, 20)
        assert result.clear
        assert result.ambiguous
        assert not result.exact
        assert "the error is estimated, not bounded" in str(result)
        assert llr.rank(model, torch.cat((x, x))).upper == 40 - 20

    def test_what_cancels_inside_is_never_sure(self) -> None:
        class Cancels(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.last = nn.Linear(3, 1, bias=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.last((x + 1e10) - 1e10)

        torch.manual_seed(0)
        line = torch.randn(20, 1).double() * torch.tensor([[1.0, 2.0, 4.0]]).double()  # rank 1
        for method in ("auto", "svd", "tsqr"):
            result = llr.rank(Cancels(), line, method=method)
            assert result.ambiguous
            assert not result.exact
        points = {"last.weight": torch.randn(4, 1, 3)}
        assert bool(llr.rank(Cancels(), line, params=points).ambiguous.all())

    def test_a_preactivation_that_no_proof_likes(self) -> None:
        model = mlp(1, 2, 1)
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
            model[2].weight.fill_(1.0)
            model[0].bias.copy_(torch.tensor([0.0, 40.0]))
        result = llr.rank(model, samples(20, 1))
        assert result.rank == result.upper or result.ambiguous


class TestBadInput:
    def test_method(self) -> None:
        with pytest.raises(ValueError, match=r"method is 'qr'; expected one of auto, svd, tsqr"):
            llr.rank(mlp(2, 2, 1), samples(3, 2), method="qr")

    @pytest.mark.parametrize("method", ["tsqr", "gram", "certified"])
    def test_methods_for_a_matrix(self, method: str) -> None:
        with pytest.raises(TypeError, match="describe a model"):
            llr.rank(torch.eye(3), method=method)

    @pytest.mark.parametrize("upper", [-1, 2.5, "3"])
    def test_upper(self, upper: object) -> None:
        with pytest.raises(
            ValueError, match=f"upper is {upper!r}; expected a number of dimensions"
        ):
            llr.rank(mlp(2, 2, 1), samples(3, 2), upper=upper)

    @pytest.mark.parametrize("method", [*FLOAT_METHODS, "certified"])
    def test_nan(self, method: str) -> None:
        x = samples(5, 2)
        x[3, 1] = float("nan")
        with pytest.raises(ValueError, match="x is nan at index"):
            llr.rank(mlp(2, 2, 1), x, method=method)

    @pytest.mark.parametrize("method", FLOAT_METHODS)
    def test_overflowing_jacobian(self, method: str) -> None:
        model = mlp(1, 2, 1, activation=nn.SiLU)
        with torch.no_grad():
            model[2].weight.fill_(1e308)
        with pytest.raises(ValueError, match=r"NaN or Inf|too large"):
            llr.rank(model, 1e4 * samples(5, 1), method=method)

    @pytest.mark.parametrize("scale", [1e-200, 1e-140, 1e140, 1e200])
    def test_squares_out_of_range(self, scale: float) -> None:
        model, x = nn.Sequential(nn.Linear(3, 2, bias=False)).double(), scale * samples(10, 3)
        result = llr.rank(model, x, method="gram")
        assert result.rank == 6
        assert result.method == "tsqr"
        assert "leave the range" in result.reason
        torch.testing.assert_close(
            result.spectrum / scale, llr.rank(model, x / scale).spectrum, rtol=1e-12, atol=0
        )

    def test_zero_jacobian(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
        for method in FLOAT_METHODS:
            assert llr.rank(model, torch.zeros(4, 3, dtype=F64), method=method).rank == 0

    def test_certificate_in_float32(self) -> None:
        with pytest.raises(TypeError, match="a certificate is about the exact values"):
            llr.rank(mlp(2, 2, 1), samples(3, 2), method="certified", dtype=torch.float32)

    def test_certificate_of_an_unknown_layer(self) -> None:
        model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double()
        with pytest.raises(ValueError, match=r"LayerNorm.*method=.svd"):
            llr.rank(model, samples(3, 2), method="certified")
