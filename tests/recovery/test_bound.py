"""The bound of a recovered function's error holds for steep neurons and large domains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from helpers.benchmark_modules import imported

from llr.linalg.balls import precision
from llr.recovery import recover
from llr.recovery.bound import bounds
from llr.recovery.domain import errors
from llr.recovery.isolation import isolation
from llr.recovery.judge import examined
from llr.recovery.net import Net
from llr.recovery.precise import BITS

from .cases import ANALYTIC, F64, data_of, normal, planted

pytestmark = pytest.mark.filterwarnings(
    "ignore:llr runs without its native library:RuntimeWarning", "ignore:neurons .* differ by"
)

SEEDS = 5 * int(os.environ.get("LLR_RANDOM_CASES", "1"))


@pytest.fixture(scope="module")
def claims() -> Iterator[SimpleNamespace]:
    with imported(["claims_sets", "claims_samples", "claims_functions", "claims"]) as modules:
        yield modules


class TestClaimsKeepTheirEps:
    def test_one_steep_neuron(self) -> None:
        """The transition takes a hundredth of the box; the error there is up to 25 times larger."""
        claimed = 0
        for seed in range(4 * SEEDS):
            x = torch.rand(60, 1, generator=torch.Generator().manual_seed(seed), dtype=F64)
            found = recover(x, torch.tanh(200 * (x - 0.5)), max_width=2, budget=600)
            if not found:  # few samples on the transition
                assert [r.gate for r in found.reasons] == ["conditioning"]
                continue
            claimed += 1
            assert found.evidence is not None
            points = torch.linspace(float(x.min()), float(x.max()), 100_001, dtype=F64)[:, None]
            with torch.no_grad():
                off = found.model(points) - torch.tanh(200 * (points - 0.5))
            assert float(off.abs().max()) <= found.evidence.eps
        assert claimed > 3 * SEEDS

    @pytest.mark.parametrize("kind", ["one steep neuron", "steep neurons", "a large domain"])
    def test_random_networks(self, claims: SimpleNamespace, kind: str) -> None:
        made = [claims.claims_sets.data_set(kind, seed) for seed in range(100, 100 + 4 * SEEDS)]
        pairs = [(m, recover(m.x, m.targets, budget=300, **m.options)) for m in made]
        claimed = [(m, found) for m, found in pairs if found]
        assert len(claimed) >= SEEDS
        assert not any(claims.claims.beyond_eps(m, found) for m, found in claimed)

    def test_a_domain_on_which_nothing_is_known_to_four_digits(self) -> None:
        """An error of 1e-8 in weights moves a transition by 0.01 at 1e6, so eps cannot be 2e-6 there."""
        W = torch.tensor([[1.0, 2.0], [-1.0, 0.7]], dtype=F64)
        x = normal(0, 60, 2)
        y = torch.tanh(x @ W.T + torch.tensor([0.5, 0.0])) @ torch.tensor([[1.5], [-1.0]]).double()
        y = (y * 1e6).round() / 1e6
        near, far = (recover(x, y, max_width=2, budget=500, domain=(-d, d)) for d in (3.0, 1e6))
        assert near.status == "recovered"
        assert (far.status, [r.gate for r in far.reasons]) == ("ambiguous", ["conditioning"])


class TestBounds:
    @pytest.mark.parametrize("activation", ANALYTIC)
    @pytest.mark.parametrize("scale", [1.0, 30.0])
    def test_above_what_errors_of_the_targets_do_and_not_far(
        self, activation: str, scale: float
    ) -> None:
        """The first-order error is exact at a point; the bound for a box is above it everywhere."""
        tight = []
        for seed in range(3):
            net = Net(
                scale * normal(seed, 2, 2),
                scale / 2 * normal(seed + 10, 2),
                normal(seed + 20, 1, 2),
                None,
                activation,
            )
            x = normal(seed + 30, 80, 2)
            data = data_of(x, net(x), activation)
            fit = examined(net, data)
            with precision(BITS):
                near = isolation(fit, data.domain.corner, data.size)
                if not near.isolated:
                    continue
                assert near.inverse is not None
                for factor, bound in zip(
                    (1.0, 2.0), bounds(fit, near, data.domain, (1.0, 2.0)), strict=True
                ):
                    points = at_transitions(fit.net, data.domain.low, data.domain.high, factor)
                    first = float(errors(fit, near.inverse, points).max())
                    assert first <= bound
                    tight.append(bound / first)
        assert tight or scale > 1
        # The bound includes softplus's error of 2e-9 beyond its threshold.
        assert activation == "softplus" or all(t < 300 for t in tight)

    def test_two_outputs_and_constants(self) -> None:
        for seed in range(3):
            _, data, net = planted(seed, 2, 2, output_bias=True, extra=8)
            fit = examined(net, data)
            with precision(BITS):
                near = isolation(fit, data.domain.corner, data.size)
                assert near.isolated
                assert near.inverse is not None
                (bound,) = bounds(fit, near, data.domain, (1.0,))
                first = errors(fit, near.inverse, data.domain.points(300, corners=100))
            assert float(first.max()) <= bound
            assert bound / data.size <= 1.1 * near.eps


def at_transitions(net: Net, low: torch.Tensor, high: torch.Tensor, factor: float) -> torch.Tensor:
    """Points of the box scaled by the factor, half of them where some neuron is not saturated."""
    centre, half = (low + high) / 2, factor * (high - low) / 2
    g = torch.Generator().manual_seed(7)
    points = [centre + half * (2 * torch.rand(200, 2, generator=g, dtype=F64) - 1)]
    for w, b in zip(net.w, net.b if net.b is not None else torch.zeros(net.width), strict=True):
        p = centre + half * (2 * torch.rand(200, 2, generator=g, dtype=F64) - 1)
        i = int(w.abs().argmax())
        z = 2 * torch.randn(200, generator=g, dtype=F64)
        p[:, i] += (z - b - p @ w) / w[i]
        points.append(p[((p - centre).abs() <= half).all(1)])
    return torch.cat(points)
