"""The information in samples: rounding, evidence, aliases, fractions of fresh points."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import beta, binom
from torch import Tensor

from llr.linalg.balls import precision
from llr.models import TwoLayer
from llr.recovery import Target
from llr.recovery.alias import aliases
from llr.recovery.evidence import evidence
from llr.recovery.judge import examined
from llr.recovery.net import Net
from llr.recovery.oracle import largest_share
from llr.recovery.precise import BITS

from .cases import ANALYTIC, F64, data_of, fifty_digits, normal, planted

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestRounding:
    @pytest.mark.parametrize(
        ("y", "words"),
        [
            (normal(0, 20, 1), "y computed in float64"),
            (normal(0, 20, 1).float(), "y computed in float32"),
            (normal(0, 20, 1).float().double(), "y computed in float32"),
            (torch.tensor(np.round(normal(0, 20, 1).numpy(), 6)), "y rounded to 6 decimals"),
            (
                torch.tensor(np.round(normal(0, 20, 1).numpy(), 6)).float(),
                "y rounded to 6 decimals",
            ),
            (
                1e5 * torch.tensor(np.round(normal(0, 20, 1).numpy(), 2)),
                "y rounded to 3 significant digits",
            ),
            ((normal(0, 20, 1) > 0).double(), "y rounded to integers"),
            (normal(0, 20, 1).half(), "y computed in float16"),
        ],
    )
    def test_what_values_look_like(self, y: Tensor, words: str) -> None:
        assert data_of(normal(1, 20, 2), y).rounding.words.startswith(words)

    def test_significant_digits(self) -> None:
        v = normal(2, 30, 1) * torch.exp(3 * normal(3, 30, 1))
        y = torch.tensor([[float(f"{t:.5g}")] for t in v[:, 0].tolist()], dtype=F64)
        rounding = data_of(normal(1, 30, 2), y).rounding
        assert "5 significant digits" in rounding.words
        assert bool(((v - y).abs() <= rounding.y * (1 + 1e-9)).all())

    def test_float32_written_as_text(self) -> None:
        y = torch.tensor(
            [[float(str(v))] for v in normal(4, 30).numpy().astype(np.float32)], dtype=F64
        )
        assert not torch.equal(y, y.float().double())
        assert data_of(normal(1, 30, 2), y).rounding.words.startswith("y computed in float32")

    def test_ordinary_numbers_are_never_taken_for_rounded(self) -> None:
        for seed in range(200):
            y = normal(seed, 4, 1) * 10.0 ** (seed % 40 - 20)
            assert data_of(normal(1, 4, 1), y).rounding.words == "y computed in float64"

    @pytest.mark.parametrize("activation", [*ANALYTIC, "relu"])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_delta_bounds_what_a_forward_pass_is_off_by(
        self, activation: str, dtype: torch.dtype
    ) -> None:
        """Against mpmath with 50 digits."""
        for seed in range(4):
            target = Target.generic(
                TwoLayer(3, 4, 2, activation=activation, output_bias=True), seed=seed
            )
            model = target.model.to(dtype)
            x = normal(seed, 12, 3).to(dtype)
            with torch.no_grad():
                y = model(x)
            net = Net.of(model.double(), activation)  # type: ignore[arg-type]
            data = data_of(x.double(), y, activation)
            delta = data.rounding.delta(net, x.double(), y.double())
            exact = fifty_digits(net, x.double())
            off = torch.tensor(
                [
                    [float(abs(mpmath.mpf(a) - b)) for a, b in zip(r, s, strict=True)]
                    for r, s in zip(y.double().tolist(), exact, strict=True)
                ]
            )
            assert bool((off <= delta).all())
            assert float((delta / y.double().abs()).median()) < 1e3 * data.rounding.unit

    def test_inputs_of_a_rounded_table(self) -> None:
        x, y = normal(5, 30, 2), normal(6, 30, 1)
        both = data_of((x * 1e5).round() / 1e5, (y * 1e4).round() / 1e4).rounding
        assert both.x is not None
        assert both.x.unique().tolist() == pytest.approx([5e-6])
        assert "x to 5 decimals" in both.words
        grid = (
            torch.linspace(0, 1, 30, dtype=F64)[:, None].mul(29).round() / 10
        )  # chosen, not rounded
        assert data_of(grid, (y * 1e4).round() / 1e4).rounding.x is None
        assert data_of((x * 1e5).round() / 1e5, y).rounding.x is None
        assert (
            data_of((x * 1e5).round() / 1e5, (y * 1e4).round() / 1e4, x_error=0).rounding.x is None
        )

    def test_what_the_caller_says(self) -> None:
        x, y = normal(5, 9, 2), normal(6, 9, 1)
        assert data_of(x, y, y_error="float32").rounding.unit == 2.0**-24
        assert float(data_of(x, y, y_error=1e-3).rounding.y.max()) == 1e-3
        per_sample = data_of(x, y, y_error=torch.arange(9.0), x_error=torch.tensor([2.0**-20, 0.0]))
        assert per_sample.rounding.y[:, 0].tolist() == list(range(9))
        assert per_sample.rounding.x is not None
        assert per_sample.rounding.x[3].tolist() == [2.0**-20, 0.0]


class TestEvidence:
    @pytest.mark.parametrize(
        ("activation", "expected"), [("tanh", 6), ("erf", 6), ("sin", 6), ("gelu", 8), ("silu", 8)]
    )
    def test_mirrored_samples(self, activation: str, expected: int) -> None:
        """x and -x are one observation of an odd network; of gelu and silu, six pairs are 6 + 2."""
        target = Target.separated(TwoLayer(2, 2, activation=activation, bias=False), seed=1)
        half = normal(1, 6, 2)
        x = torch.cat((half, -half))
        data = data_of(x, target(x), activation)
        fit = examined(Net.of(target.model, activation), data)  # type: ignore[arg-type]
        with precision(BITS):
            assert evidence(fit, data.x, data.y, 8).n_effective == expected

    def test_with_biases_mirrored_samples_are_as_good_as_others(self) -> None:
        target = Target.separated(TwoLayer(2, 1), seed=1)
        half = normal(1, 4, 2)
        x = torch.cat((half, -half))
        data = data_of(x, target(x))
        with precision(BITS):
            found = evidence(examined(Net.of(target.model, "tanh"), data), x, data.y, 8)  # type: ignore[arg-type]
        assert found.n_effective == 8

    @pytest.mark.parametrize("apart", [1e-15, 1e-14, 1e-13])
    def test_samples_that_are_nearly_equal(self, apart: float) -> None:
        target = Target.separated(TwoLayer(2, 2, bias=False), seed=3)
        base = normal(2, 5, 2)
        x = base.repeat(2, 1) + apart * normal(3, 10, 2)
        data = data_of(x, target(x))
        with precision(BITS):
            found = evidence(examined(Net.of(target.model, "tanh"), data), x, data.y, 8)  # type: ignore[arg-type]
        assert found.n_effective <= 6 + 1
        assert found.decades < 4

    def test_more_samples_and_starts(self) -> None:
        decades = []
        for extra in (1, 3, 6):
            _, data, net = planted(4, 2, 2, extra=extra, bias=False)
            with precision(BITS):
                decades.append(evidence(examined(net, data), data.x, data.y, 1).decades)
        assert decades == sorted(decades)
        with precision(BITS):
            fewer = evidence(examined(net, data), data.x, data.y, 1000).decades
        assert fewer == pytest.approx(decades[-1] - 3)

    def test_several_outputs_count_alone(self) -> None:
        target = Target.separated(TwoLayer(3, 2, 2, bias=False), seed=0)
        x, y = target.sample(9, seed=1)
        with precision(BITS):
            found = evidence(examined(Net.of(target.model, "tanh"), data_of(x, y)), x, y, 8)  # type: ignore[arg-type]
        assert (found.n_effective, found.needed) == (9, 8)


class TestAliases:
    @pytest.mark.parametrize("step", [1.0, 0.25, 1 / 3, 1e-3, 17.0])
    def test_grids(self, step: float) -> None:
        x = 0.2 + step * torch.tensor([[0.0], [3], [4], [9], [11], [20]], dtype=F64)
        found = aliases(x)
        assert found is not None
        assert float(found[0].abs()) == pytest.approx(2 * math.pi / step)

    def test_lattices_in_space(self) -> None:
        for seed in range(5):
            basis = normal(seed, 3, 3)
            integers = torch.randint(-4, 5, (14, 3), generator=torch.Generator().manual_seed(seed))
            x = integers.double() @ basis + 0.3
            found = aliases(x)
            assert found is not None
            turns = (x - x[0]) @ found.T / (2 * math.pi)
            assert float((turns - turns.round()).abs().max()) < 1e-6

    def test_a_stripe_of_the_plane(self) -> None:
        x = torch.stack((torch.arange(12.0, dtype=F64) * 0.5, normal(1, 12)), 1)
        found = aliases(x)
        assert found is not None
        assert found[0].abs().tolist() == pytest.approx([4 * math.pi, 0.0], abs=1e-6)

    def test_random_samples_have_none(self) -> None:
        for seed in range(20):
            assert aliases(normal(seed, 12, 1 + seed % 3)) is None


class TestShares:
    @pytest.mark.parametrize("points", [3, 45, 1000])
    @pytest.mark.parametrize("beyond", [0, 1, 2])
    def test_against_scipy(self, beyond: int, points: int) -> None:
        share = largest_share(beyond, points)
        assert share == pytest.approx(beta.ppf(0.95, beyond + 1, points - beyond))
        # With a larger fraction, so few would be seen in less than one case in twenty.
        assert binom.cdf(beyond, points, share * (1 + 1e-9)) == pytest.approx(0.05, rel=1e-4)

    def test_ends(self) -> None:
        assert largest_share(5, 5) == 1.0
        assert largest_share(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
