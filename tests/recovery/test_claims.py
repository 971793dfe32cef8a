"""Reports of recover(): claims, advice, rounded numbers, and options."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.sweep_cases import columns, grid
from torch import Tensor, nn

from llr.models import TwoLayer
from llr.recovery import Target, recover
from llr.recovery.experiment import run_cell
from llr.recovery.sweep import run
from llr.recovery.sweep.spec import Value

from .test_functions import asked_function

pytestmark = pytest.mark.filterwarnings(
    "ignore:llr runs without its native library:RuntimeWarning", "ignore:neurons .* differ by"
)

F64 = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class TestWhatIsSaid:
    def test_recovered(self) -> None:
        target = Target.separated(TwoLayer(3, 3, bias=False), seed=2)
        x, y = target.sample(13, seed=4)
        found = recover(x, y, max_width=5, bias=False)
        assert (found.status, bool(found), found.advice, found.reasons) == (
            "recovered",
            True,
            "",
            (),
        )
        for word in ("(assumed;", "(evidence)", "(proved)", "at most 3 neurons without biases"):
            assert word in found.claim
        assert "certified" not in str(found.to_dict())
        assert (found.proved.rank, found.rank) == (12, 12)
        assert 0 < found.proved.radius < 1
        assert found.evidence is not None
        assert found.evidence.decades > 4
        assert 0 < found.evidence.eps <= found.evidence.eps_doubled < 1e-8
        assert found.evidence.eps / 2 < found.proved.eps
        assert found.evidence.rivals_tried >= 12
        assert (
            found.assumed[0] == "the function is a tanh network of at most 3 neurons without biases"
        )
        assert "chosen without knowledge" in found.assumed[-1]

    def test_fits_of_every_width(self) -> None:
        target = Target.separated(TwoLayer(3, 3, bias=False), seed=2)
        x, y = target.sample(20, seed=4)
        found = recover(x, y, max_width=5, bias=False)
        assert list(found.fits) == [1, 2, 3]
        assert [fit.consistent for fit in found.fits.values()] == [False, False, True]
        for width, fit in found.fits.items():
            assert fit.model[0].out_features == width
            with torch.no_grad():
                error = float(((fit.model(x) - y) ** 2).mean() / (y**2).mean())
            assert fit.error == pytest.approx(error, rel=1e-6, abs=1e-30)
        assert found.fits[3].roundings <= 1 < 1e6 < found.fits[2].roundings

    def test_approximate(self) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        x, y = target.sample(30, seed=1, noise_std=1e-9)
        found = recover(x, y, max_width=2, bias=False, budget=500)
        assert (found.status, bool(found), found.width) == ("approximate", False, 2)
        assert "the samples are not its values" in found.claim
        assert "The budget of 500 starts is spent" in found.claim
        assert found.fits[2].roundings > 100
        suggested = float(found.advice.split("noise_std=")[1].split()[0])
        assert 0.5e-9 < suggested < 2e-9
        noisy = recover(x, y, max_width=2, bias=False, budget=500, noise_std=suggested)
        assert (noisy.status, noisy.width) == ("accepted", 2)
        document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert document["evidence"] is None

    def test_why_it_stopped(self) -> None:
        """If the budget was not used up, the advice does not ask for a larger one."""
        x = normal(0, 30, 1)
        y = x.abs() + 0.3 * (3 * x).sin()
        relu = recover(x, y, max_width=2, activation="relu", budget=100_000)
        assert relu.status == "not_found"
        assert relu.starts == 240
        assert "had 4 rounds of starts" in relu.claim
        assert "larger budget" not in relu.advice
        spent = recover(x, y, max_width=1, budget=50)
        assert "larger budget" in spent.advice

    def test_accepted_says_what_is_doubtful(self) -> None:
        """Rounded inputs add noise: twice the given noise_std; the true width is 2."""
        x, w = normal(1, 30, 3), normal(2, 2, 3)
        y = torch.tanh(x @ w.T + torch.tensor([0.3, -0.4])) @ torch.tensor([1.0, -2.0], dtype=F64)
        x, y = (x * 1e6).round() / 1e6, (y * 1e6).round() / 1e6
        found = recover(x, y, max_width=4, noise_std=3e-7, budget=2000)
        assert (found.status, found.width) == ("accepted", 4)
        assert "since width 2 has residuals of only" in found.advice
        assert "4 is the widest network that was tried" in found.advice
        assert str(found).count("chi-squared") == 5
        assert "certified" not in str(found)

    def test_a_width_that_is_too_small_for_the_noise(self) -> None:
        target = Target.separated(TwoLayer(1, 2), seed=1)
        x, y = target.sample(60, seed=1, noise_std=0.1)
        found = recover(x, y, max_width=3, noise_std=0.001, budget=500)
        assert found.status == "not_found"
        assert "times as large" in found.advice


class TestShortNumbers:
    @pytest.mark.parametrize(
        ("store", "words"),
        [
            (lambda y: y.float(), "y computed in float32"),
            (lambda y: y.float().double(), "y computed in float32"),
            (lambda y: (y * 1e8).round() / 1e8, "y rounded to 8 decimals"),
            (lambda y: (y * 1e6).round() / 1e6, "y rounded to 6 decimals"),
        ],
    )
    def test_recognised_and_fitted_to_that(
        self, store: Callable[[Tensor], Tensor], words: str
    ) -> None:
        right = 0
        for seed in range(4):
            target = Target.separated(TwoLayer(2, 2, bias=False), seed=seed)
            x = target.inputs(24, seed=seed + 5)
            found = recover(x, store(target(x)), max_width=4, bias=False)
            assert (found.width, found.starts < 2000) == (2, True), str(found)
            assert any(words in said for said in found.assumed)
            assert found.fits[2].consistent
            if found:
                right += 1
                assert target.error(found.model) < 1e-8
        assert right >= 3

    def test_the_default_of_torch(self) -> None:
        """A float32 module and 100 samples take a second, not 100,000 starts."""
        for seed in (0, 1):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))
            x = torch.randn(100, 5)
            found = recover(x, net(x).detach(), max_width=6, output_bias=True)
            assert (found.width, found.starts < 2000, found.fits[3].consistent) == (3, True, True)
            assert found.status in ("recovered", "ambiguous")
            with torch.no_grad():
                fresh = torch.randn(500, 5)
                error = found.model(fresh.double()).float() - net(fresh)
                assert float(error.norm() / net(fresh).norm()) < 1e-4

    def test_a_table_with_six_digits(self) -> None:
        """With rounded inputs and targets the width is 2, although four neurons would fit the rounding."""
        x, w = normal(3, 40, 3), normal(4, 2, 3)
        y = torch.tanh(x @ w.T + torch.tensor([0.3, -0.4])) @ torch.tensor([1.0, -2.0], dtype=F64)
        rounded = (x * 1e6).round() / 1e6
        found = recover(rounded, (y * 1e6).round() / 1e6, max_width=8)
        assert (found.width, found.fits[2].consistent) == (2, True)
        assert any("x to 6 decimals" in said for said in found.assumed)
        # With exact targets of unrounded inputs, the advice names the option, and the option helps.
        exact = recover(rounded, y, max_width=2, budget=500)
        assert (exact.status, exact.width) == ("approximate", 2)
        assert "x_error=5e-07" in exact.advice
        told = recover(rounded, y, max_width=2, x_error=5e-7)
        assert (told.status, told.width) == ("recovered", 2)
        assert any("every x of at most 5e-07" in said for said in told.assumed)

    def test_errors_that_are_told(self) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        x = target.inputs(40, seed=1)
        off = 1e-7 * (
            2 * torch.rand(40, 1, generator=torch.Generator().manual_seed(0), dtype=F64) - 1
        )
        assert (
            recover(x, target(x) + off, max_width=2, bias=False, budget=200).status == "approximate"
        )
        found = recover(x, target(x) + off, max_width=2, bias=False, y_error=1e-7)
        assert (found.status, found.width) == ("recovered", 2)
        assert found.evidence is not None
        points = x.amin(0) + (x.amax(0) - x.amin(0)) * torch.rand(500, 2, dtype=F64)
        with torch.no_grad():
            worst = float((found.model(points) - target(points)).abs().max())
        assert worst <= found.evidence.eps * float(target(x).square().mean().sqrt())


class TestOptions:
    def test_max_frequency(self) -> None:
        """On a grid of step 0.1, frequencies 2 and 2 + 20 pi agree, unless they are known to be small."""
        x = 0.1 * torch.randperm(40, generator=torch.Generator().manual_seed(0))[:12, None].double()
        truth = torch.sin(2 * x + 0.3)
        options = {"max_width": 2, "activation": "sin"}
        found = recover(x, truth, **options)  # type: ignore[arg-type]
        assert [r.gate for r in found.reasons] == ["alias"]
        assert found.reasons[0].value == pytest.approx(62.83185, rel=1e-6)
        assert "max_frequency=" in found.advice
        bounded = recover(x, truth, max_frequency=10.0, **options)  # type: ignore[arg-type]
        assert bounded.status == "recovered"
        assert "no frequency is above 10" in bounded.assumed
        wide = recover(x, truth, max_frequency=70.0, **options)  # type: ignore[arg-type]
        assert wide.status == "ambiguous"
        narrow = recover(x, truth, max_frequency=1.0, **options)  # type: ignore[arg-type]
        assert [r.gate for r in narrow.reasons] == ["frequency"]

    def test_domain(self) -> None:
        target = Target.separated(TwoLayer(1, 2), seed=3)
        x, y = target.sample(14, seed=1)
        near, far = (recover(x, y, max_width=2, domain=d) for d in [(-0.5, 0.5), (-50.0, 50.0)])
        assert near.evidence is not None
        assert far.evidence is not None
        assert near.evidence.eps < far.evidence.eps
        assert near.proved.eps < far.proved.eps
        assert "the domain given" in near.claim

    def test_a_function_that_is_asked(self) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        x, _ = target.sample(7, seed=1)
        seen: list[Tensor] = []

        def function(points: Tensor) -> Tensor:
            seen.append(points)
            return target(points)[:, 0]

        found = recover(x, function, max_width=3, bias=False)
        assert found.status == "recovered"
        assert found.tested is not None
        assert (found.tested.beyond, found.tested.points) == (0, 1000)
        assert found.tested.share == pytest.approx(1 - 0.05**0.001)
        assert "(tested)" in found.claim
        assert [len(points) for points in seen] == [7, 1000]
        assert bool((seen[1].amin(0) >= x.amin(0)).all() & (seen[1].amax(0) <= x.amax(0)).all())

    def test_a_sampler(self) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        x, _ = target.sample(9, seed=1)
        found = recover(
            x,
            target,
            max_width=3,
            bias=False,
            sampler=lambda m: target.inputs(m, seed=77),
            fresh_points=300,
        )
        assert found.tested is not None
        assert (found.tested.points, found.tested.where) == (300, "fresh points of the sampler")
        assert found.tested.share == pytest.approx(1 - 0.05 ** (1 / 300))

    def test_a_float32_module_is_asked_in_float32(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 1, bias=False))
        found = recover(torch.randn(40, 2), net, max_width=2)
        assert found.tested is not None
        assert (found.width, found.tested.beyond) == (1, 0)

    def test_samples_that_are_held_out(self) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        x, y = target.sample(52, seed=1)
        found = recover(x[:7], y[:7], max_width=3, bias=False, held_out=(x[7:], y[7:]))
        assert found.tested is not None
        assert (found.tested.points, found.tested.beyond) == (45, 0)
        assert found.tested.share == pytest.approx(1 - 0.05 ** (1 / 45))
        y[20] += 1e-10
        found = recover(x[:7], y[:7], max_width=3, bias=False, held_out=(x[7:], y[7:]))
        assert (found.status, [r.gate for r in found.reasons]) == ("ambiguous", ["test"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"y_error": "single"}, "y_error is 'single'; expected a number, a tensor, or one of"),
            ({"y_error": -1.0}, r"y_error is -1\.0; expected finite numbers, 0 or more"),
            (
                {"y_error": torch.ones(3)},
                r"y_error has shape \(3,\); expected a number, or the shape",
            ),
            ({"x_error": float("nan")}, "x_error is nan"),
            ({"domain": (1.0, 0.0)}, "expected finite bounds, low < high"),
            ({"domain": (torch.zeros(3), 1.0)}, r"domain has a bound of shape \(3,\)"),
            ({"max_frequency": 3.0}, "for the activation 'sin', not for 'tanh'"),
            ({"max_frequency": 0.0, "activation": "sin"}, "max_frequency is 0.0"),
            (
                {"sampler": lambda m: torch.zeros(m, 2)},
                "draws points at which a callable y is evaluated",
            ),
            ({"noise_std": 0.1, "y_error": 0.1}, "noise_std= cannot be combined with"),
            ({"held_out": (torch.zeros(4, 3), torch.zeros(4))}, "held_out has shapes"),
        ],
    )
    def test_are_refused(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            recover(normal(0, 12, 2), normal(1, 12, 1), **{"max_width": 1, **options})  # type: ignore[arg-type]

    def test_functions_that_give_something_else(self) -> None:
        with pytest.raises(TypeError, match=r"y\(x\) is None; expected a tensor"):
            recover(normal(0, 12, 2), lambda _: None, max_width=1)  # type: ignore[arg-type, return-value]
        with pytest.raises(ValueError, match=r"y\(x\) has shape \(1,\); expected \(12,\)"):
            recover(normal(0, 12, 2), lambda _: [1.0], max_width=1)  # type: ignore[arg-type, return-value]
        with pytest.raises(ValueError, match=r"y\(x\) has shape \(3,\); expected \(12,\)"):
            recover(normal(0, 12, 2), lambda _: torch.zeros(3), max_width=1)
        with pytest.raises(TypeError, match="domain is 3; expected"):
            recover(normal(0, 12, 2), normal(1, 12, 1), max_width=1, domain=3)  # type: ignore[arg-type]


class TestWords:
    def test_of_the_noise(self) -> None:
        x = normal(0, 40, 2)
        y = asked_function(x) + 0.01 * normal(1, 40, 1)
        small = recover(x, y, max_width=1, noise_std=1e-4, budget=100)
        assert (small.status, "may be too small" in small.advice) == ("not_found", True)
        large = recover(x, y, max_width=3, noise_std=1.0, budget=100)
        assert (large.status, large.width) == ("accepted", 1)
        assert "1 may be too large" in large.advice

    def test_articles(self) -> None:
        x = normal(0, 20, 1)
        found = recover(x, torch.erf(2 * x + 0.3), max_width=1, activation="erf")
        assert found.assumed[0] == "the function is an erf network of one neuron"
        assert "values of an erf network" in found.claim


def with_verdict(values: Mapping[str, Value]) -> dict[str, Value]:
    """A cell as a user's runner may have stored it, with the terms of an older version."""
    return {"recovered": True, "verdict": "certified" if values["n"] == 5 else "ambiguous"}


def test_sweeps_with_the_words_of_before_can_be_read(tmp_path: Path) -> None:
    """Sweeps of llr store no status; results of other runners do not change."""
    run(grid(4), tmp_path / "old.sqlite", runner="recovery.test_claims:with_verdict")
    found = columns(tmp_path / "old.sqlite")
    assert sorted(set(found["verdict"])) == ["ambiguous", "certified"]
    cell = run_cell({"d": 2, "k": 1, "n": 4, "strategy": "recover"})
    assert "certified" not in cell.values()


def test_threads_get_what_they_get_alone() -> None:
    """The precision of ball arithmetic is global to the process; results must not depend on other threads."""

    def found(seed: int) -> dict[str, object]:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=seed)
        x, y = target.sample(7 + seed, seed=seed)
        return recover(x, y, max_width=3, bias=False).to_dict() | {"seconds": 0}

    alone = [found(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(found, range(8))) == alone
