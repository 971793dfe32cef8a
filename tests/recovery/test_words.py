"""The sentences of a search: a claim says what was tried, and nothing more."""

from __future__ import annotations

import re

import pytest
import torch

from llr.models import TwoLayer
from llr.recovery import Budget, Recovery, recover
from llr.recovery.words import ranges


def planted(width: int, *, output_bias: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    net = TwoLayer(2, width, output_bias=output_bias).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, generator=generator)
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    return x, net(x).detach()


def unrelated(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (2, 1))


def said(found: Recovery) -> tuple[set[int], int]:
    """The widths and the starts that the claim names as tried."""
    match = re.search(
        r"in ([\d,]+) starts? \(widths? tried: ([^()]*?)(?:, of 1 to \d+)?\)", found.claim
    )
    assert match is not None, found.claim
    widths = set()
    for part in match[2].split(", "):
        low, _, high = part.partition(" to ")
        widths |= set(range(int(low), int(high or low) + 1))
    return widths, int(match[1].replace(",", ""))


@pytest.mark.parametrize("noise_std", [None, 1e-3])
@pytest.mark.parametrize("budget", [1, 8, 9, 20, Budget(starts=None, seconds=1e-4)])
def test_a_claim_names_the_widths_that_had_starts(budget: object, noise_std: float | None) -> None:
    x, y = planted(4)
    found = recover(x, y, max_width=6, budget=budget, noise_std=noise_std)
    assert found.status == "not_found"
    assert said(found) == (set(found.fits), found.starts)
    assert len(found.fits) < 6
    assert ", of 1 to 6)" in found.claim
    assert "no network that fits was found" in found.claim or "no network was found" in found.claim
    assert not re.search(r"no network of|every network", str(found))
    assert "a larger budget" in found.advice
    assert "max_width" not in found.advice


def test_a_larger_budget_finds_what_the_small_one_did_not() -> None:
    x, y = planted(4)
    assert recover(x, y, max_width=6, budget=5000).width == 4


@pytest.mark.parametrize("n", [5, 12, 60])
@pytest.mark.parametrize("noise_std", [None, 1e-3])
def test_the_claim_of_a_whole_search(n: int, noise_std: float | None) -> None:
    x, y = unrelated(n)
    found = recover(x, y, max_width=1, budget=500, noise_std=noise_std)
    assert found.status == "not_found"
    assert said(found) == ({1}, found.starts)
    assert "(width tried: 1)" in found.claim
    assert "a larger max_width=" in found.advice


def test_too_few_samples_for_the_widest_network_only() -> None:
    x, y = unrelated(12)
    found = recover(x, y, max_width=3, budget=2000)
    assert said(found)[0] == {1, 2, 3}
    assert "too few to determine one of width 3, " in found.claim


def test_the_smallest_error_and_its_width() -> None:
    x, y = unrelated(60)
    found = recover(x, y, max_width=3, budget=500)
    least = min(found.fits.values(), key=lambda fit: fit.error)
    assert found.width < least.width
    assert (
        f"smallest relative error is {least.error**0.5:.1e} (root mean square, width {least.width})"
        in found.claim
    )
    own = found.fits[found.width].error ** 0.5
    assert (
        f"width {found.width} is the narrowest with at most 2 times as much, {own:.1e}"
        in found.claim
    )


def test_an_approximate_claim_says_what_was_tried() -> None:
    x, y = planted(2)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = recover(x, y + 1e-5 * noise, max_width=3, budget=2000)
    assert found.status == "approximate"
    assert said(found) == (set(found.fits), found.starts)


def test_a_constant_neuron_is_an_output_bias() -> None:
    x, y = planted(3, output_bias=True)
    found = recover(x, y, max_width=6, budget=20_000)
    assert found.status == "ambiguous"
    assert found.advice.startswith("output_bias=True, since a neuron of the fit is constant")
    right = recover(x, y, max_width=6, budget=20_000, output_bias=True)
    assert right.status == "recovered"
    assert right.width == 3
    assert right.advice == ""


def test_no_output_bias_is_advised_without_a_constant_neuron() -> None:
    x, y = planted(3)
    assert "output_bias" not in recover(x[:11], y[:11], max_width=3, budget=2000).advice
    assert "output_bias" not in recover(x, y, max_width=1, budget=500).advice


def test_ranges() -> None:
    assert ranges([5]) == "5"
    assert ranges({3, 1, 2, 8, 9, 11}) == "1 to 3, 8 to 9, 11"
