"""recover(): recovered targets, and which claims are made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from llr.models import TwoLayer
from llr.recovery import RECOVERED, Budget, Recovery, Target, recover
from llr.recovery import recover as recover_function

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

OF_THE_PROTOTYPE = [(1, 1), (1, 2), (2, 2), (3, 3), (5, 2), (5, 3)]
DRAW: dict[str, Callable[..., Target]] = {
    "separated": Target.separated,
    "generic": Target.generic,
}


def found_again(target: Target, n: int, seed: int, **options: object) -> Recovery:
    x, y = target.sample(n, seed=1000 + seed)
    return recover(x, y, seed=seed, **options)  # type: ignore[arg-type]


def is_right(target: Target, found: Recovery) -> bool:
    return found.model is not None and target.error(found.model) < RECOVERED


CASES = int(os.environ.get("LLR_RANDOM_CASES", "10"))


class TestAtOnePointMoreThanTheRank:
    """n = O + 1. Every result that is called recovered must be right."""

    @pytest.mark.parametrize("kind", DRAW)
    @pytest.mark.parametrize(("d", "k"), OF_THE_PROTOTYPE)
    def test_nearly_every_target(self, d: int, k: int, kind: str) -> None:
        right = 0
        for seed in range(CASES):
            target = DRAW[kind](TwoLayer(d, k, bias=False), seed=seed)
            found = found_again(target, k * (d + 1) + 1, seed, max_width=k + 2, bias=False)
            assert is_right(target, found) or not found, (seed, str(found))
            right += bool(found)
        # Three samples cannot distinguish a neuron that is linear to 1e-6 from others.
        assert right >= CASES - 1 - CASES // 40

    @pytest.mark.parametrize(("d", "k"), OF_THE_PROTOTYPE)
    def test_a_few(self, d: int, k: int) -> None:
        for seed in range(100, 103):
            target = Target.separated(TwoLayer(d, k, bias=False), seed=seed)
            found = found_again(target, k * (d + 1) + 1, seed, max_width=k, bias=False)
            assert found, found.claim
            assert is_right(target, found)
            assert (found.width, found.rank, int(found.size)) == (k, k * (d + 1), k * (d + 1))
            assert found.train_error < 1e-22

    @pytest.mark.parametrize(("d", "k"), [(8, 3), (5, 5), (10, 4)])
    def test_larger_networks_at_three_halves_of_the_rank(self, d: int, k: int) -> None:
        right = 0
        for seed in range(8):
            target = Target.separated(TwoLayer(d, k, bias=False), seed=seed)
            found = found_again(target, 3 * k * (d + 1) // 2, seed, max_width=k, bias=False)
            assert is_right(target, found) or not found, (seed, str(found))
            right += bool(found)
        assert right >= 7

    @pytest.mark.parametrize(
        "activation", ["tanh", "sigmoid", "gelu", "silu", "softplus", "erf", "sin"]
    )
    @pytest.mark.parametrize(("bias", "output_bias"), [(True, True), (True, False), (False, False)])
    def test_activations_and_biases(self, activation: str, bias: bool, output_bias: bool) -> None:
        architecture = TwoLayer(2, 2, activation=activation, bias=bias, output_bias=output_bias)
        n = sum(p.numel() for p in architecture.parameters()) + 1
        found = wrong = 0
        for seed in range(3):
            target = Target.separated(architecture, seed=seed)
            options = {"activation": activation, "bias": bias, "output_bias": output_bias}
            result = found_again(target, n, seed, max_width=2, **options)
            found += bool(result)
            wrong += bool(result) and not is_right(target, result)
        assert (found, wrong) == (3, 0)

    def test_several_outputs(self) -> None:
        # One output of the network has 2 * (1 + 3) parameters: nine points are needed, though five give as
        # many observations as there are parameters.
        for seed in range(5):
            target = Target.separated(TwoLayer(3, 2, 2, bias=False), seed=seed)
            found = found_again(target, 9, seed, max_width=3, bias=False)
            assert found, found.claim
            assert is_right(target, found)
            assert found.evidence is not None
            assert (found.evidence.n_effective, found.evidence.needed) == (9, 8)

    def test_a_width_that_is_larger_than_needed_costs_nothing(self) -> None:
        target = Target.separated(TwoLayer(3, 2, bias=False), seed=3)
        for max_width in (2, 5, 40):
            found = found_again(target, 9, 0, max_width=max_width, bias=False)
            assert (bool(found), found.width) == (True, 2)


class TestWhatIsNotRecovered:
    def test_at_the_rank_itself_exact_fits_may_be_wrong(self) -> None:
        """Why O + 1 samples are needed: with n = O, wrong functions would be called recovered."""
        wrong = right = 0
        for seed in range(30):
            target = Target.separated(TwoLayer(2, 2, bias=False), seed=seed)
            found = found_again(target, 6, seed, max_width=2, bias=False, budget=2000)
            assert not found
            exact = [target.error(net) for net in found.interpolants]
            wrong += sum(error > RECOVERED for error in exact)
            right += any(error < RECOVERED for error in exact)
        assert wrong >= 5
        assert right >= 20

    def test_interpolants_are_different_functions_that_fit(self) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=1)
        x, y = target.sample(4, seed=5)
        found = recover(x, y, max_width=2, bias=False, budget=500)
        assert found.status == "ambiguous"
        assert "different functions" in found.claim
        assert len(found.interpolants) > 1
        fresh = torch.randn(200, 2, dtype=torch.float64)
        values = []
        for net in found.interpolants:
            with torch.no_grad():
                assert float(((net(x) - y) ** 2).mean() / (y**2).mean()) < 1e-18
                values.append(net(fresh))
        apart = [(values[0] - v).norm() / v.norm() for v in values[1:]]
        assert min(apart) > 1e-6

    def test_too_narrow(self) -> None:
        target = Target.separated(TwoLayer(2, 3, bias=False), seed=0)
        found = found_again(target, 30, 0, max_width=2, bias=False, budget=300)
        assert (found.status, found.width, found.size) == ("not_found", 2, None)
        assert found.starts == 300
        assert (
            "found in 300 starts (widths tried: 1 to 2); the smallest relative error is"
            in found.claim
        )
        assert "The budget of 300 starts is spent" in found.claim
        assert "a larger budget" in found.advice
        assert not found
        x, y = target.sample(30, seed=1000)
        with torch.no_grad():
            off = float((found.model(x) - y).norm() / y.norm())  # one measure of error in all lines
        lines = str(found).splitlines()
        assert f"relative error is {off:.1e} (root mean square, width 2)" in lines[0]
        assert lines[2].startswith(
            f"  width 2: relative error {off:.1e} (root mean square), Jacobian of"
        )
        assert "optimistic sample size O unknown (the network does not fit); 30 samples" in lines[2]
        assert f"  width 2: relative error {off:.1e}, " in lines[4]

    def test_another_function(self) -> None:
        x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        found = recover(x, x.abs(), max_width=2, budget=200)
        assert found.status == "not_found"

    def test_inputs_in_a_subspace(self) -> None:
        """The fit is exact on all samples, but undetermined in the rest of the space."""
        target = Target.separated(TwoLayer(2, 1, bias=False), seed=0)
        x = torch.randn(10, 1, dtype=torch.float64) @ torch.tensor(
            [[1.0, 2.0]], dtype=torch.float64
        )
        found = recover(x, target(x), max_width=1, bias=False)
        assert found.status == "ambiguous"
        assert "the Jacobian shows 2 of 3 directions" in found.claim
        assert (found.rank, found.proved.rank, found.proved.isolated) == (2, None, False)

    def test_repeated_inputs_count_once(self) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        x, y = target.sample(5, seed=1)
        found = recover(x.repeat(3, 1), y.repeat(3, 1), max_width=2, bias=False, budget=2000)
        assert not found

    def test_relu_is_never_recovered(self) -> None:
        target = Target.separated(TwoLayer(1, 1, activation="relu"), seed=2)
        x = torch.linspace(-3, 3, 30, dtype=torch.float64)[:, None]
        found = recover(x, target(x), max_width=1, activation="relu")
        assert found.status == "ambiguous"
        assert "ReLU" in found.claim
        assert target.error(found.model) < RECOVERED

    def test_neurons_that_are_not_needed_are_taken_out(self) -> None:
        """A larger width that happens to fit before the least one is not the result."""
        for seed in range(10):
            target = Target.separated(TwoLayer(2, 1, bias=False), seed=seed)
            found = found_again(target, 12, seed, max_width=3, bias=False)
            assert found.width == 1


class TestUnits:
    @pytest.mark.parametrize(
        ("scale", "shift", "unit"),
        [(1e3, 0.0, 1.0), (1e-3, 0.0, 1e-6), (1.0, 50.0, 1e5), (10.0, -300.0, 1e-3)],
    )
    def test_data_in_other_units(self, scale: float, shift: float, unit: float) -> None:
        base = Target.separated(TwoLayer(2, 2), seed=4)
        x, y = base.sample(12, seed=5)
        found = recover(x * scale + shift, y * unit, max_width=3)
        assert found, found.claim
        fresh, values = base.sample(500, seed=6)
        with torch.no_grad():
            error = found.model(fresh * scale + shift) / unit - values
        assert float(error.square().mean() / values.square().mean()) < RECOVERED


class TestNoise:
    @staticmethod
    def of(seed: int, *, std: float, n: int = 60, told: float | None = None) -> Recovery:
        target = Target.separated(TwoLayer(1, 2), seed=seed)
        x, y = target.sample(n, seed=seed, noise_std=std)
        return recover(x, y, max_width=3, noise_std=told or std, budget=1500, seed=seed)

    def test_the_right_width_passes_as_often_as_the_level_says(self) -> None:
        runs = 20
        found = [self.of(seed, std=0.01) for seed in range(runs)]
        not_rejected = sum(bool(result) and result.width <= 2 for result in found)
        # One in a hundred is rejected by chance; the probability of three in twenty is 1e-3.
        assert runs - not_rejected <= binom.ppf(1 - 1e-3, runs, 0.01)
        assert sum(result.width == 2 for result in found) >= runs // 2

    def test_numbers_of_the_test(self) -> None:
        found = self.of(1, std=0.01)
        test = next(t for t in found.tests if t.width == found.width)
        assert test.dof == 60 - 3 * test.width
        assert test.statistic == pytest.approx(
            found.train_error * float(self.targets(1).square().sum()) / 0.01**2, rel=1e-6
        )
        assert test.p_value >= 0.01
        assert (found.status, bool(found), found.proved.isolated) == ("accepted", True, False)
        assert "statistical test, no proof" in found.claim
        narrower = [t for t in found.tests if t.width < test.width]
        assert all(t.p_value < 0.01 for t in narrower)

    @staticmethod
    def targets(seed: int) -> Tensor:
        return Target.separated(TwoLayer(1, 2), seed=seed).sample(60, seed=seed, noise_std=0.01)[1]

    def test_too_small_a_noise_is_noticed(self) -> None:
        found = self.of(1, std=0.1, told=0.001)
        assert found.status == "not_found"
        assert "whose residuals are explained by noise of 0.001" in found.claim

    def test_repeated_inputs_may_differ(self) -> None:
        target = Target.separated(TwoLayer(1, 1), seed=1)
        x, y = target.sample(20, seed=1)
        x, y = x.repeat(2, 1), y.repeat(2, 1)
        y = y + 0.01 * torch.randn(
            y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        assert recover(x, y, max_width=2, noise_std=0.01, budget=1000).width == 1

    def test_needs_more_observations_than_parameters(self) -> None:
        x = torch.randn(3, 1, dtype=torch.float64)
        with pytest.raises(ValueError, match="3 observations; expected more than the 3 parameters"):
            recover(x, x, max_width=1, noise_std=0.1)


class TestHow:
    def test_the_same_seed_gives_the_same(self) -> None:
        target = Target.separated(TwoLayer(3, 3, bias=False), seed=0)
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(found_again(target, 13, 0, max_width=3, bias=False))
        finally:
            torch.set_num_threads(threads)
        one, two = (r.to_dict() | {"seconds": 0} for r in results)
        assert one == two

    def test_as_json(self) -> None:
        target = Target.separated(TwoLayer(1, 1, bias=False), seed=0)
        found = found_again(target, 3, 0, max_width=1, bias=False)
        document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert document["status"] == "recovered"
        assert document["model"]["0.weight"] == found.model[0].weight.tolist()
        assert document["proved"]["isolated"] is True
        assert str(found).startswith(
            "recovered: if the samples are rounded values of a tanh network"
        )
        assert (
            ", Jacobian of rank 2 on the samples, optimistic sample size O = 2; 3 samples"
            in str(found)
        )

    def test_progress(self) -> None:
        said: list[tuple[int, float]] = []
        x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        recover(x, x.abs(), max_width=1, budget=100, progress=lambda *now: said.append(now))
        assert [starts for starts, _ in said] == [8, 24, 56, 100]
        assert all(best >= 0 for _, best in said)

    def test_seconds(self) -> None:
        x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        found = recover(x, x.abs(), max_width=1, budget=Budget(starts=None, seconds=0.2))
        assert found.status == "not_found"
        assert found.seconds >= 0.2

    def test_float32_and_vectors(self) -> None:
        target = Target.separated(TwoLayer(2, 1, bias=False), seed=0)
        x, _ = target.sample(6, seed=1)
        x = x.float()
        y = target(x.double())[:, 0]
        assert recover(x, y, max_width=1, bias=False)

    def test_in_inference_mode(self) -> None:
        target = Target.separated(TwoLayer(2, 1, bias=False), seed=0)
        with torch.inference_mode():
            x, y = target.sample(6, seed=1)
            assert recover(x, y, max_width=1, bias=False)


X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = X[:, :1].tanh()


def with_value(t: Tensor, value: float) -> Tensor:
    t = t.clone()
    t[2, 0] = value
    return t


class TestBadInput:
    @pytest.mark.parametrize(
        ("x", "y", "options", "message"),
        [
            (X[:4], Y[:4], {}, "4 samples of 1 output, 4 observations; expected at least 5"),
            (
                torch.cat((X, X[:1])),
                torch.cat((Y, Y[:1] + 0.5)),
                {},
                r"x\[0\] and x\[12\] are the same",
            ),
            (with_value(X, math.nan), Y, {}, r"x is nan at index \(2, 0\); expected finite"),
            (X, with_value(Y, math.inf), {}, r"y is inf at index \(2, 0\); expected finite"),
            (
                X,
                torch.full_like(Y, 0.25),
                {},
                "y is 0.25 for every sample; expected targets that vary",
            ),
            (X, Y[:5], {}, r"y has shape \(5, 1\); expected \(12,\) or \(12, q\)"),
            (X[:, 0], Y[:5], {}, r"y has shape \(5, 1\); expected \(12,\)"),
            (X[:0], Y[:0], {}, "not empty"),
            (X, Y, {"max_width": 0}, "max_width"),
            (X, Y, {"activation": "tanhh"}, "activation is 'tanhh'; expected one of tanh"),
            (X, Y, {"activation": "identity"}, "activation is 'identity'"),
            (X, Y, {"noise_std": 0.0}, "noise_std is 0.0; expected a number > 0"),
            (X, Y, {"noise_std": math.nan}, "noise_std is nan"),
            (X, Y, {"budget": "x"}, r"budget is 'x'; expected .* or Budget\(starts=, seconds=\)"),
            (X[:1], Y[:1], {}, "there is 1 sample of 1 output, 1 observation; expected"),
            (X, Y, {"noise_std": 1e-300}, "noise_std is 1e-300, and y is of size"),
            (
                X,
                Y,
                {"domain": (-1e200, 1.0)},
                "domain has numbers of size 1e.200 in column 0; expected",
            ),
            (X, Y, {"y_error": 1e200}, "y_error is 1e.200"),
            (X, Y, {"budget": 0}, "budget is 0; expected a number of starts"),
        ],
    )
    def test_is_refused(
        self, x: Tensor, y: Tensor, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            recover_function(x, y, **{"max_width": 2, **options})  # type: ignore[arg-type]

    def test_no_tensors(self) -> None:
        with pytest.raises(TypeError, match="x is str; expected a tensor"):
            recover("x.csv", Y, max_width=1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"y is torch\.complex128; expected real"):
            recover(X, Y.to(torch.complex128), max_width=1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"starts": None}, "no limit"),
            ({"seconds": 0.0}, "seconds of the budget is 0.0"),
            ({"starts": 2.5}, "starts of the budget is 2.5"),
        ],
    )
    def test_budgets(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Budget(**options)  # type: ignore[arg-type]


class TestTargets:
    def test_separated(self) -> None:
        for seed in range(20):
            net = Target.separated(TwoLayer(2, 3), seed=seed).model
            incoming = torch.cat((net[0].weight, net[0].bias[:, None]), 1).detach()
            assert float(incoming.norm(dim=1).min()) > 0.5
            assert float(net[2].weight.detach().abs().min()) > 0.3
            pairs = [(i, j) for i in range(3) for j in range(i)]
            gaps = [
                float((incoming[i] + s * incoming[j]).norm()) for i, j in pairs for s in (1, -1)
            ]
            assert min(gaps) > 0.7

    def test_linear_like(self) -> None:
        target = Target.linear_like(TwoLayer(5, 1, bias=False), seed=0)
        x, y = target.sample(200, seed=1)
        residual = y - x @ torch.linalg.lstsq(x, y).solution
        assert 1e-8 < float(residual.square().mean() / y.square().mean()) < 1e-3

    def test_given(self) -> None:
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        target = Target.given(net)
        x = torch.randn(5, 2)
        assert torch.allclose(target(x.double()).float(), net(x), atol=1e-6)
        assert net[0].weight.dtype == torch.float32
        assert int(target.size) == 13

    def test_samples_are_the_same_for_a_seed_and_nested_no_more(self) -> None:
        target = Target.generic(TwoLayer(3, 2), seed=0)
        assert torch.equal(target.sample(4, seed=1)[0], target.sample(4, seed=1)[0])
        assert not torch.equal(target.sample(4, seed=1)[0], target.sample(4, seed=2)[0])

    def test_noise(self) -> None:
        target = Target.generic(TwoLayer(3, 2), seed=0)
        x, y = target.sample(4000, seed=1, noise_std=0.5)
        assert float((y - target(x)).std()) == pytest.approx(0.5, rel=0.05)

    def test_error(self) -> None:
        target = Target.generic(TwoLayer(3, 2), seed=0)
        assert target.error(lambda x: 1.1 * target(x)) == pytest.approx(0.01)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"12 random neurons were never more than 0\.7"):
            Target.separated(TwoLayer(1, 12, bias=False), seed=0)
        with pytest.raises(ValueError, match="expected a two-layer network"):
            Target.linear_like(nn.Sequential(nn.Conv1d(1, 1, 1)), seed=0)
