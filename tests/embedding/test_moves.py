"""Embeddings against certified ranks and functions in symbols: the moves, one by one and composed."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.embedding_cases import (
    F64,
    certified,
    convolution,
    mistake,
    narrow_mlp,
    network,
    normal_samples,
    theta,
    wider,
)
from helpers.theory_cases import random_cases
from torch import nn

from llr.embedding import compatible, null, random_compatible, split, widen
from llr.models import (
    Conv1dTwoLayer,
)
from llr.theory.spans.formal import formal
from llr.theory.spans.symbols import Symbols

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

NARROW = [
    (widths, layer)
    for widths in ((1, 2, 2, 1), (2, 2, 3, 1), (1, 2, 2, 2), (1, 2, 2, 2, 1))
    for layer in range(len(widths) - 2)
]
SIGMOIDS = ("sigmoid", "softplus")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def without_bias_after(widths: tuple[int, ...], layer: int) -> nn.Sequential:
    """A network in which one layer, not the first, has no biases."""
    layers: list[nn.Module] = []
    for k, (i, o) in enumerate(pairwise(widths)):
        layers += [nn.Linear(i, o, bias=k != layer + 1, dtype=F64), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(("widths", "layer"), NARROW)
class TestOneNeuron:
    """The effect of one more neuron on dim T; every number is certified without closed forms."""

    def check(
        self, narrow: nn.Module, found: tuple[nn.Module, Any], more: int, absorbed: bool = False
    ) -> None:
        wide, embedding = found
        P = len(theta(narrow))
        d = embedding.narrow[0]
        assert certified(narrow, d) == P
        assert certified(wide, d) == P + more
        if not more:
            assert mistake(narrow, wide, embedding) == ""
        symbols = Symbols()
        if not absorbed:  # else tanh(b) is rounded in a bias
            assert formal(narrow, symbols).outputs == formal(wide, symbols).outputs
        x = normal_samples(9, d)
        torch.testing.assert_close(narrow(x), wide(x), rtol=1e-12, atol=1e-12)
        matrix, constant = embedding.matrix, embedding.constant
        torch.testing.assert_close(
            matrix @ theta(narrow) + constant, theta(wide), rtol=1e-15, atol=0
        )

    @pytest.mark.parametrize(("share", "sign"), [(0.25, 1), (0.0, 1), (1.0, -1), (-1.5, -1)])
    def test_splits_change_nothing(
        self, widths: tuple[int, ...], layer: int, share: float, sign: int
    ) -> None:
        narrow = network(*widths).float().double()  # so that products are exact
        self.check(narrow, split(narrow, layer, 1, share, sign), 0)

    def test_null_neurons(self, widths: tuple[int, ...], layer: int) -> None:
        narrow = network(*widths)
        n_in, n_out = widths[layer], widths[layer + 2]
        self.check(narrow, null(narrow, layer), 0)
        self.check(narrow, null(narrow, layer, bias=0.75), 0)
        new, out = [0.6875] * n_in, [0.8125] * n_out
        self.check(narrow, null(narrow, layer, incoming=new, bias=0.5), n_out)
        self.check(narrow, null(narrow, layer, bias=0.5, outgoing=out), n_in, absorbed=True)

    def test_null_neurons_before_a_layer_without_bias(
        self, widths: tuple[int, ...], layer: int
    ) -> None:
        narrow = without_bias_after(widths, layer)
        self.check(narrow, null(narrow, layer), 0)
        self.check(narrow, null(narrow, layer, bias=0.5), widths[layer + 2])
        # tanh(0) = 0 needs nothing to absorb it.
        found = null(narrow, layer, outgoing=[1.0] * widths[layer + 2])
        self.check(narrow, found, widths[layer] + 1)
        with pytest.raises(ValueError, match="has no biases that could absorb it"):
            null(narrow, layer, bias=0.5, outgoing=[1.0] * widths[layer + 2])

    def test_shares_of_its_own_for_every_neuron(self, widths: tuple[int, ...], layer: int) -> None:
        narrow = network(*widths)
        n_in, n_out = widths[layer], widths[layer + 2]
        found = split(narrow, layer, 0, [0.5, -1.0, 2.0][:n_out])
        self.check(narrow, found, n_in + 1 if n_out >= 2 else 0)


class TestCompositions:
    """Random compositions of moves, and copies that do not keep the function."""

    @pytest.mark.parametrize("seed", range(6))
    def test_known_rank(self, seed: int) -> None:
        narrow = network(1, 2, 2, 1, seed=seed)
        for embed in (widen, random_compatible):
            wide, embedding = embed(narrow, [1, 4, 4, 1], generator(seed))
            assert (embedding.n_narrow, embedding.n_wide) == (13, 33)
            assert certified(wide, 1, seed) == 13
            assert mistake(narrow, wide, embedding) == ""

    def test_any_network(self) -> None:
        shifted = 0
        for seed in range(random_cases(16)):
            narrow = narrow_mlp(seed)
            for embed in (widen, random_compatible):
                wide, embedding = embed(narrow, wider(narrow, seed), generator(seed))
                assert list(embedding.wide) == wider(narrow, seed)
                assert mistake(narrow, wide, embedding) == "", (seed, embed, str(embedding))
                shifted += any("shifted" in step for step in embedding.steps)
        assert shifted > 2

    @pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "silu"])
    @pytest.mark.parametrize("shared", [True, False])
    def test_channels(self, shared: bool, activation: str) -> None:
        for seed in range(4):
            narrow = convolution(5, 3, 2, seed=seed, shared=shared, activation=activation)
            for embed in (widen, random_compatible):
                wide, embedding = embed(narrow, 4, generator(seed))
                assert mistake(narrow, wide, embedding) == ""
                assert (embedding.narrow, embedding.wide) == ((5, 2, 1), (5, 4, 1))
                assert isinstance(wide, Conv1dTwoLayer)
        if activation == "tanh":
            assert certified(wide, 5) == certified(narrow, 5) == (12 if shared else 24)

    def test_single_channels(self) -> None:
        # docs/theory.md, section 4: d = 5, s = 3.
        narrow = convolution(5, 3, 1)
        assert certified(narrow, 5) == 6
        assert certified(split(narrow, 0, 0, 2.0, -1)[0], 5) == 6
        assert certified(split(narrow, 0, 0, [0.5, -1.0, 2.0])[0], 5) == 9
        assert certified(null(narrow, 0)[0], 5) == 6
        assert certified(null(narrow, 0, incoming=[1.0, 2.0, 3.0])[0], 5) == 9
        assert certified(null(narrow, 0, outgoing=[1.0, 0.0, 0.0])[0], 5) == 9
        # Without sharing, every position has its own neuron, independent of the others.
        local = convolution(5, 3, 1, shared=False)
        wide, embedding = split(local, 0, 0, [0.5, -1.0, 2.0])
        assert certified(wide, 5) == certified(local, 5) == 12
        assert mistake(local, wide, embedding) == ""

    def test_rounded_shares_are_different_shares(self) -> None:
        narrow = convolution(5, 3, 1)
        wide, embedding = split(narrow, 0, 0, 0.25)  # 3/4 of 53 bits are 55
        assert embedding.steps == (
            "layer 0: neuron 0 split, copy 1, share 0.25, outgoing weights rounded",
        )
        assert certified(wide, 5) == 9
        with torch.no_grad():
            narrow.out.copy_(narrow.out.float())
        wide, embedding = split(narrow, 0, 0, 0.25)
        assert embedding.steps == ("layer 0: neuron 0 split, copy 1, share 0.25",)
        assert certified(wide, 5) == 6

    def test_the_same_from_the_same_generator(self) -> None:
        narrow = network(2, 3, 2, 1)
        for embed in (widen, random_compatible):
            first, second, third = (
                theta(embed(narrow, [2, 6, 5, 1], generator(seed))[0]) for seed in (1, 1, 2)
            )
            assert torch.equal(first, second)
            assert not torch.equal(first, third)

    def test_constants_are_no_new_signals(self) -> None:
        # s(0) != 0 and the next layer has no biases: a null neuron would add a constant.
        for activation in SIGMOIDS:
            narrow = network(2, 2, 1, activation=activation, output_bias=False)
            assert certified(null(narrow, 0)[0], 2) == certified(narrow, 2) + 1
            for seed in range(8):
                wide, embedding = widen(narrow, [2, 5, 1], generator(seed))
                assert not any("null" in step for step in embedding.steps)
                assert mistake(narrow, wide, embedding) == ""


def section_8(
    al: float, lam: float, t: float, s: float, r: float | None, width: int = 2, u: float = 1.5
) -> tuple[nn.Module, nn.Module]:
    """Split neuron 0 of both layers of 1-n-n-1; copies in the second layer read the first with (u - t, t)."""
    narrow = network(1, width, width, 1, seed=3)
    with torch.no_grad():  # numbers whose sums are exact
        for p in narrow.parameters():
            p.copy_((p * 16).round() / 16)
        narrow[2].weight[0, 0] = u
    W = narrow[2].weight.detach()
    wide = torch.empty(width + 1, width + 1, dtype=F64)
    wide[:width, :width], wide[width, :width] = W, W[0]
    wide[0, [0, width]] = torch.tensor([u - t, t], dtype=F64)
    wide[width, [0, width]] = torch.tensor([u - s, s], dtype=F64)
    for k in range(1, width):
        shift = lam * W[k, 0] if r is None else r
        wide[k, [0, width]] = torch.stack((W[k, 0] - shift, torch.as_tensor(shift, dtype=F64)))
    copies = [*range(width), 0]
    kappas = [[1 - v, *[1.0] * (width - 1), v] for v in (lam, al)]
    return narrow, compatible(narrow, [copies, copies], kappas, [wide])[0]


class TestCompatible:
    """Copies with different weights; the table of the family in docs/theory.md, certified."""

    @pytest.mark.parametrize(
        ("al", "lam", "t", "s"),
        [(0.25, 0.25, 0.375, 0.375), (0.25, 1 / 3, 1, -1), (0.5, 0, 2, -2), (-1.0, -4 / 3, 0.5, 3)],
    )
    def test_one_neuron_in_each_layer(self, al: float, lam: float, t: float, s: float) -> None:
        # (1 - al) t + al s = lambda u, for u = 3/2.
        assert Fraction(1 - al) * Fraction(t) + Fraction(al) * Fraction(s) == pytest.approx(
            lam * 1.5
        )
        narrow, wide = section_8(al, lam, t, s, None, width=1)
        assert certified(narrow, 1) == certified(wide, 1) == 6
        assert not torch.equal(wide[2].weight[0], wide[2].weight[1]) or t == s

    @pytest.mark.parametrize(
        ("al", "lam", "t", "u"),
        [(0.25, 0.25, 0.375, 1.5), (0.25, 0.25, 2.0, 1.5), (0.25, 0, 2.0, 1.5), (0.5, 0.25, 3, 0)],
    )
    def test_two_neurons(self, al: float, lam: float, t: float, u: float) -> None:
        s = (lam * u - (1 - al) * t) / al
        narrow, wide = section_8(al, lam, t, s, None, u=u)
        assert certified(narrow, 1) == certified(wide, 1) == 13

    def test_copies_without_outgoing_weights(self) -> None:
        narrow, wide = section_8(0.0, 0.25, 0.375, 5.0, None)
        assert certified(wide, 1) == certified(narrow, 1) == 13

    @pytest.mark.parametrize(
        ("al", "lam", "t", "s", "r", "condition"),
        [
            (0.25, 0.25, 2.0, -3.5, None, "errors: the weights from neuron 0 of wide layer 0"),
            (0.25, 0.25, 0.375, 0.375, 9.0, "errors: .* copies of neuron 1"),
            (0.0, 0.25, 1.375, 5.0, None, "errors"),
        ],
    )
    def test_violated_errors(
        self, al: float, lam: float, t: float, s: float, r: float | None, condition: str
    ) -> None:
        with pytest.raises(ValueError, match=condition):
            section_8(al, lam, t, s, r)

    def test_violated_signals_and_shares(self) -> None:
        narrow = network(1, 1, 1, 1)
        u = narrow[2].weight.item()
        twice, half = [[0, 0], [0, 0]], [[0.5, 0.5], [0.5, 0.5]]
        with pytest.raises(ValueError, match=r"signals: .* to neuron 1 of wide layer 1 sum to"):
            compatible(narrow, twice, half, [torch.tensor([[u, 0.0], [0.0, u + 1]], dtype=F64)])
        with pytest.raises(ValueError, match=r"shares: .* neuron 0 in layer 1 sum to 0\.75"):
            compatible(narrow, twice, [[0.5, 0.5], [0.5, 0.25]])
        wide, embedding = compatible(
            narrow, twice, half, [torch.tensor([[u, 0.0], [0.0, u]], dtype=F64)]
        )
        assert mistake(narrow, wide, embedding) == ""

    def test_reflected_copies(self) -> None:
        narrow = network(2, 2, 1, 2)
        with torch.no_grad():
            narrow[2].weight.copy_(torch.tensor([[0.75, -1.25]]))
        u, v = narrow[2].weight.detach()[0]
        arguments = [[0, 1, 0], [0, 0]], [[0.5, 1.0, 0.5], [0.5, 0.5]]
        # Signs + + - and + -. Times these, the rows are (2u, v, -u) and (-u, v, 2u).
        block = torch.tensor([[2 * u, v, u], [u, -v, 2 * u]], dtype=F64)
        wide, embedding = compatible(narrow, *arguments, [block], signs=[[1, 1, -1], [1, -1]])
        assert mistake(narrow, wide, embedding) == ""
        with pytest.raises(ValueError, match="signals"):
            compatible(narrow, *arguments, [block], signs=[[1, 1, 1], [1, -1]])

    def test_bad_input(self) -> None:
        narrow = network(1, 2, 2, 1)
        one, origins = [[1.0, 1.0]] * 2, [[0, 1]] * 2
        wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
            (([[0, 1]], one), {}, "origins has 1 entries; expected 2"),
            (([[0, 2], [0, 1]], one), {}, "expected neurons, 0 to 1"),
            (([[0, 0], [0, 1]], one), {}, "leave out neuron 1"),
            ((origins, [[1.0], [1.0, 1.0]]), {}, "expected 2 numbers"),
            ((origins, one, [torch.ones(3, 2)]), {}, r"\(3, 2\); expected a matrix \(2, 2\)"),
            ((origins, one, [torch.full((2, 2), torch.nan)]), {}, "NaN"),
            ((origins, one), {"signs": [[1, 1], [1, 0]]}, "expected 1 or -1"),
        ]
        for arguments, options, message in wrong:
            with pytest.raises(ValueError, match=message):
                compatible(narrow, *arguments, **options)
        with pytest.raises(ValueError, match="since sigmoid is not odd"):
            compatible(network(1, 1, 1, activation="sigmoid"), [[0]], [[1.0]], signs=[[-1]])
