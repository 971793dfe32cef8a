"""Tangent dimensions of convolutions, matrix factorization and deep linear networks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.theory_cases import random_cases
from torch import Tensor, nn

from llr import certify
from llr.embedding import split
from llr.exact import network as exact
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer
from llr.theory import Dimension, generic_rank, read_structure, tangent_dimension
from llr.theory.structures.structure import rank
from llr.theory.tangents.linear import surrounding_ranks

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def integers(*shape: int, seed: int, low: int = -2, high: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).double()


def exact_rank(model: nn.Module, x: Tensor) -> int:
    """The rank of the rational Jacobian, without a closed form."""
    return certify(model, x, params="*").rank


def certified(model: nn.Module, seed: int = 0) -> int:
    P = sum(p.numel() for p in model.parameters())
    d = model.d if isinstance(model, Conv1dTwoLayer) else model[0].in_features
    x = torch.randn(P + 6, d, generator=torch.Generator().manual_seed(seed)).double()
    return certify(model, x, params="*").rank


def shared(kernels: list[list[float]], out: list[list[float]], d: int) -> Conv1dTwoLayer:
    return Conv1dTwoLayer.of(torch.tensor(kernels).double(), torch.tensor(out).double(), d=d)


class TestConvolutions:
    @pytest.mark.parametrize(
        ("d", "s", "k", "with_sharing", "without", "full"),
        [
            (3, 2, 1, 4, 6, 8),
            (4, 2, 1, 5, 9, 15),
            (5, 3, 1, 6, 12, 18),
            (5, 3, 2, 12, 24, 36),
            (6, 2, 2, 14, 30, 70),
            (6, 4, 2, 14, 30, 42),
            (4, 1, 2, 10, 16, 40),
            (4, 4, 2, 10, 10, 10),
        ],
    )
    def test_kernels(
        self, d: int, s: int, k: int, with_sharing: int, without: int, full: int
    ) -> None:
        kernel = torch.tensor([[0.75, -0.5, 1.25, 1.5][:s], [1.0, 0.5, -0.25, 0.75][:s]]).double()[
            :k
        ]
        out = torch.linspace(0.5, 1.5, k * (d + 1 - s)).double().view(k, -1)
        one = Conv1dTwoLayer.of(kernel, out, d=d)
        positions = kernel[:, None].expand(-1, d + 1 - s, -1)
        other = Conv1dTwoLayer.of(positions.clone(), out, d=d)
        assert int(tangent_dimension(one)) == with_sharing == certified(one)
        assert int(tangent_dimension(other)) == without == certified(other)
        rows = [
            torch.cat((torch.zeros(t), v, torch.zeros(d - s - t)))
            for v in kernel
            for t in range(d + 1 - s)
        ]
        dense = TwoLayer.of(torch.stack(rows).double(), None, out.view(-1, 1))
        x = torch.randn(2, d, generator=torch.Generator().manual_seed(0)).double()
        torch.testing.assert_close(dense(x)[:, 0], one(x).view(-1))
        assert int(tangent_dimension(dense)) == full == certified(dense)

    @pytest.mark.parametrize(
        ("kernels", "out", "d", "expected"),
        [
            ([[1, 0], [0, 1]], [[0.5, 1, 2], [1, -1, 3]], 4, 8),
            ([[1, 2, 0], [0, 1, 2]], [[0, 1, 1], [-1, -1, 0]], 5, 8),
            ([[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [2, 4, 6]], 5, 6),
            ([[1, 2, 3], [-1, -2, -3]], [[1, 2, 3], [2, 4, 5]], 5, 9),
            ([[1, 2, 3]] * 3, [[1, 0, 0], [0, 1, 0], [0, 0, 1]], 5, 12),
            ([[1, 2, 3]], [[0, 0, 0]], 5, 3),
            ([[0, 0, 0]], [[1, 0, 0]], 5, 3),
            ([[0, 0, 0]] * 2, [[1, 0, 0], [0, 1, 0]], 5, 4),
        ],
    )
    def test_degenerate_kernels(self, kernels: list, out: list, d: int, expected: int) -> None:
        model = shared(kernels, out, d)
        assert int(tangent_dimension(model)) == expected == certified(model)

    @pytest.mark.parametrize("sharing", [True, False])
    def test_random_degenerate_parameters(self, sharing: bool) -> None:
        chance = random.Random(1)
        for seed in range(random_cases(25)):
            s = chance.randint(1, 3)
            model = Conv1dTwoLayer(
                s + chance.randint(0, 2), s, chance.randint(1, 3), shared=sharing
            )
            model = model.double()
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(integers(*p.shape, seed=seed, low=-1, high=2))
            assert int(tangent_dimension(model)) == certified(model, seed), seed

    def test_other_activations_have_bounds(self) -> None:
        found = tangent_dimension(Conv1dTwoLayer(4, 2, 2, activation="gelu"))
        assert isinstance(found, Dimension)
        assert found.upper == found.n_params == 10


class TestFactorizations:
    @pytest.mark.parametrize(
        ("m", "p", "n", "r", "least", "padded"),
        [(4, 5, 5, 1, 8, 20), (4, 5, 5, 2, 14, 20), (5, 8, 5, 3, 21, 25)],
    )
    def test_table(self, m: int, p: int, n: int, r: int, least: int, padded: int) -> None:
        A, B = torch.zeros(m, p).double(), torch.zeros(p, n).double()
        A[:, :r], B[:r] = torch.randn(m, r).double(), torch.randn(r, n).double()
        found = tangent_dimension(MatrixFactorization.of(A, B))
        assert (int(found), found.n_params) == (least, 80 if p == 8 else 45)
        A[:, r:] = torch.randn(m, p - r).double()
        assert int(tangent_dimension(MatrixFactorization.of(A, B))) == padded - (m - min(m, p)) * r

    def test_observed_entries(self) -> None:
        # Some sets of dim T entries determine all of T. Entries of only two rows determine 2 + 5 - 1
        # dimensions of it, even if there are more of them.
        model = MatrixFactorization.of(integers(4, 1, seed=1, low=1), integers(1, 5, seed=2, low=1))
        pairs = torch.cartesian_prod(torch.arange(4), torch.arange(5))
        size = int(tangent_dimension(model))
        assert size == 8
        chosen = certify(model, pairs, params="*").rows
        assert len(chosen) == exact_rank(model, pairs[list(chosen)]) == size
        assert exact_rank(model, pairs[:10]) == 6

    def test_random_ranks(self) -> None:
        chance = random.Random(0)
        for seed in range(random_cases(60)):
            m, p, n = (chance.randint(1, 4) for _ in range(3))
            A, B = integers(m, p, seed=seed), integers(p, n, seed=seed + 1000)
            for M in (A, B):
                if chance.random() < 0.5:
                    M[:, 0] = 0
            model = MatrixFactorization.of(A, B)
            pairs = torch.cartesian_prod(torch.arange(m), torch.arange(n))
            assert int(tangent_dimension(model)) == exact_rank(model, pairs), seed


class TestDeepLinear:
    @pytest.mark.parametrize(
        ("weights", "expected"),
        [
            ([(4, 3), (2, 4)], 6),
            ([(2, 4), (5, 2), (3, 5)], 10),
            ([(3, 3), None, (3, 3)], 9),
            ([None, None, (3, 3)], 0),
            ([None, None], 0),
        ],
    )
    def test_table(self, weights: list, expected: int) -> None:
        tensors = [
            torch.zeros(3, 3).double() if shape is None else torch.randn(*shape).double()
            for shape in weights
        ]
        assert int(tangent_dimension(DeepLinear.of(*tensors))) == expected

    def test_ranks_above_and_below(self) -> None:
        # p_l of what is above each layer, q_l of what is below.
        for widths, zeros, above, below in (
            ((4, 2, 5, 3), (), [2, 3, 3], [4, 2, 2]),
            ((3, 3, 3, 3), (1,), [0, 3, 3], [3, 3, 0]),
            ((3, 3, 3), (0, 1), [0, 3], [3, 0]),
        ):
            model = DeepLinear(widths)
            with torch.no_grad():
                for layer in zeros:
                    model[layer].weight.zero_()
            assert surrounding_ranks(read_structure(model)) == (above, below)

    def test_a_thin_product(self) -> None:
        thin = torch.outer(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -1.0, 2.0])).double()
        model = DeepLinear.of(torch.randn(3, 2).double(), thin, torch.randn(2, 3).double())
        assert int(tangent_dimension(model)) == 4
        assert surrounding_ranks(read_structure(model)) == ([1, 2, 2], [2, 2, 1])

    def test_random_ranks(self) -> None:
        chance = random.Random(0)
        for seed in range(random_cases(60)):
            widths = [chance.randint(1, 4) for _ in range(chance.randint(2, 5))]
            tensors = [
                integers(o, i, seed=seed + 100 * k, low=-1, high=2)
                for k, (i, o) in enumerate(itertools.pairwise(widths))
            ]
            model = DeepLinear.of(*tensors)
            J = exact.rational_jacobian(model, torch.eye(widths[0]).double()).tolist()
            true = rank([[int(v.p) for v in row] for row in J])
            assert int(tangent_dimension(model)) == true, seed


class TestRefusals:
    def test_unknown_structures(self) -> None:
        model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
        with pytest.raises(ValueError, match=r"no closed form .* llr\.model_rank\(model\)"):
            tangent_dimension(model)
        with pytest.raises(TypeError, match="model is int"):
            tangent_dimension(3)
        with pytest.raises(ValueError, match="two-layer network"):
            generic_rank(DeepLinear([2, 3]))

    def test_parameters(self) -> None:
        model = TwoLayer(2, 3)
        model[0].bias.requires_grad_(False)
        with pytest.raises(ValueError, match=r"'0\.bias' is frozen"):
            tangent_dimension(model)
        model = TwoLayer(2, 3)
        with torch.no_grad():
            model[0].weight[1, 0] = float("nan")
        with pytest.raises(ValueError, match=r"'0\.weight' is nan at index \(1, 0\)"):
            tangent_dimension(model)

    def test_nearly_equal_neurons(self) -> None:
        model = TwoLayer(2, 3).double()
        with torch.no_grad():
            model[0].weight[2] = model[0].weight[0] * (1 + 1e-12)
            model[0].bias[2] = model[0].bias[0]
        with pytest.warns(UserWarning, match=r"neurons 0 and 2 differ by .* exact equality"):
            assert int(tangent_dimension(model)) == 12


@pytest.mark.parametrize("read", [tangent_dimension, lambda m: split(m, 0, 0)])
@pytest.mark.parametrize("change", ["activation", "hook", "forward", "subclass"])
def test_convolutions_that_compute_something_else(
    change: str, read: Callable[[nn.Module], Any]
) -> None:
    """Their class is what the closed forms know, not what they compute."""

    class Doubled(Conv1dTwoLayer):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x) + x[:, :1]

    model = (Doubled if change == "subclass" else Conv1dTwoLayer)(5, 3, 1)
    if change == "activation":
        model.act = nn.Softplus()
    if change == "hook":
        model.register_forward_hook(lambda _, inputs, out: out + inputs[0][:, :1] ** 3)
    if change == "forward":
        model.forward = lambda x: x[:, :1]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"reads a model by its class\. llr\.model_rank"):
        read(model)
