"""Upper bounds of ranks from equal samples and from parameters without effect."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import llr
from llr.inputs.activations import ACTIVATIONS, activation_layer
from llr.inputs.problem import read_problem
from llr.ranks.upper_bounds import bounds_of_matrices, bounds_of_model

F64 = torch.float64

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(*widths: int, activation: str = "tanh", bias: bool | str = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(widths)):
        has = bias is True or (bias == "output" and k == len(widths) - 2)
        layers += [nn.Linear(a, b, bias=has), activation_layer(activation)]
    return nn.Sequential(*layers[:-1]).double()


def bounds(model: nn.Module, x: Tensor, params: object = None) -> dict[str, int]:
    problem = read_problem(model, x, params, F64)
    return {why: bound for bound, why in bounds_of_model(problem, model(x).shape[-1])}


class TestSamples:
    def test_repeated(self) -> None:
        x = normal(7, 2)
        result = llr.rank(network(2, 20, 1), torch.cat((x, x, x[:3])))
        assert (result.rank, result.exact, result.upper_from) == (7, True, "different samples")
        assert llr.rank(network(2, 20, 2), torch.cat((x, x))).upper == 14

    def test_one_bit_is_a_difference(self) -> None:
        x = normal(3, 2)
        x[2] = x[1]
        assert bounds(network(2, 3, 1), x)["different samples"] == 2
        x[2, 0] = torch.nextafter(x[2, 0], torch.tensor(9.0).double())
        assert bounds(network(2, 3, 1), x)["different samples"] == 3

    def test_zeros_of_either_sign_are_equal(self) -> None:
        x = normal(5, 2)
        x[3], x[4] = 0.0, -0.0
        assert bounds(network(2, 3, 1), x)["different samples"] == 4

        class Signed(nn.Module):
            """A custom function may distinguish -0 from 0."""

            def __init__(self) -> None:
                super().__init__()
                self.last = nn.Linear(2, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(torch.copysign(torch.ones_like(x), x))

        assert bounds(Signed().double(), x)["different samples"] == 5

    def test_tokens_and_a_model_without_rules(self) -> None:
        class Words(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.out = nn.Embedding(5, 3), nn.Linear(3, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.out(torch.tanh(self.words(x)).sum(1))

        x = torch.tensor([[0, 1], [0, 1], [2, 3]])
        result = llr.rank(Words(), x)
        assert (result.rank, result.upper, result.upper_from) == (2, 2, "different samples")
        assert not result.exact
        # The upper bound is proved. But the errors of this model are only estimated, so nothing proves that
        # the rank is not smaller.
        assert result.ambiguous

    @pytest.mark.parametrize("activation", ["tanh", "erf", "sin", "identity"])
    def test_odd_networks(self, activation: str) -> None:
        x = normal(6, 3)
        x = torch.cat((x, -x[:4], torch.zeros(2, 3), x[:1]))
        model = network(3, 30, 1, activation=activation, bias=False)
        found = bounds(model, x)
        assert found["samples up to sign"] == 6
        assert found["different samples"] == 11
        result = llr.rank(model, x)
        exact = torch.linalg.matrix_rank(llr.jacobian(model, x)[:, 0].detach())
        assert result.rank == exact <= 6
        if activation != "identity":
            assert (result.exact, result.upper_from) == (True, "samples up to sign")

    def test_with_a_bias_of_the_outputs(self) -> None:
        x = normal(6, 3)
        model = network(3, 30, 2, bias="output")
        found = bounds(model, torch.cat((x, -x)))
        assert found["samples up to sign"] == 2 * 6 + 2
        assert llr.rank(model, torch.cat((x, -x))).exact
        model[2].bias.requires_grad_(False)
        assert bounds(model, torch.cat((x, -x)))["samples up to sign"] == 12

    @pytest.mark.parametrize("bias", [False, "output"])
    @pytest.mark.parametrize(("activation", "more"), [("sigmoid", 1), ("gelu", 3), ("silu", 3)])
    def test_nearly_odd_and_nearly_even(self, activation: str, more: int, bias: bool | str) -> None:
        x = normal(7, 3)
        x = torch.cat((x, -x, torch.zeros(1, 3)))
        model = network(3, 30, 1, activation=activation, bias=bias)
        expected = 7 + more + (bias == "output" and activation != "sigmoid")
        result = llr.rank(model, x, resolve=False)
        assert (result.rank, result.exact, result.upper_from) == (
            expected,
            True,
            "samples up to sign",
        )

    @pytest.mark.parametrize(
        ("activation", "bias"), [("tanh", True), ("softplus", False), ("relu", False)]
    )
    def test_others_are_not_odd(self, activation: str, bias: bool) -> None:
        x = normal(6, 3)
        assert "samples up to sign" not in bounds(
            network(3, 5, 1, activation=activation, bias=bias), torch.cat((x, -x))
        )

    def test_negative_zero(self) -> None:
        x = torch.tensor([[0.0, 1.0], [-0.0, -1.0], [-0.0, 1.0]]).double()
        assert bounds(network(2, 9, 1, bias=False), x)["samples up to sign"] == 1


class TestParameters:
    @pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
    @pytest.mark.parametrize("seed", range(6))
    def test_never_below_what_is_there(self, activation: str, seed: int) -> None:
        torch.manual_seed(seed)
        model = network(3, 4, 3, 2, activation=activation, bias=seed % 2 == 0)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(torch.rand_like(p) > 0.45)
        x = normal(5, 3, seed=seed) * (torch.rand(1, 3) > 0.3)
        J = llr.jacobian(model, x).detach().flatten(0, 1)
        alive = bounds(model, x)["live parameters"]
        assert (J != 0).any(0).sum() <= alive <= J.shape[1]

    def test_no_way_to_an_output(self) -> None:
        model = network(2, 3, 4, 1)
        with torch.no_grad():
            model[4].weight[0, :3] = 0  # one neuron of the second layer is left
        result = llr.rank(model, normal(60, 2))
        # 3 x 3 before it, 3 + 1 into it; 4 + 1 out
        assert result.upper <= 9 + 4 + 5
        assert result.exact

    def test_an_input_that_is_zero(self) -> None:
        x = normal(30, 3)
        x[:, 1] = 0
        result = llr.rank(nn.Linear(3, 2).double(), x)
        assert (result.rank, result.exact) == (6, True)

    def test_chosen_columns(self) -> None:
        model = network(2, 3, 1)
        with torch.no_grad():
            model[2].weight[0, 0] = 0
        assert bounds(model, normal(9, 2), "0.*")["live parameters"] == 6
        assert bounds(model, normal(9, 2), "2.*")["live parameters"] == 4


class TestMatrices:
    def test_rows_and_columns(self) -> None:
        A = normal(5, 4)
        A[3], A[:, 2] = A[1], 0
        (rows, why), (columns, _) = bounds_of_matrices(A[None])
        assert (int(rows), int(columns), why) == (4, 3, "different rows")
        assert llr.numerical_rank(A).exact
        assert llr.numerical_rank(torch.ones(3, 4)).exact

    def test_each_of_a_batch(self) -> None:
        A = torch.zeros(3, 3, 4)
        A[0, 0], A[1, :, 1] = 1, 1
        assert [b.tolist() for b, _ in bounds_of_matrices(A)] == [[1, 1, 0], [1, 1, 0]]
        A[1, :, 1] = torch.arange(3)
        assert [b.tolist() for b, _ in bounds_of_matrices(A)] == [[1, 2, 0], [1, 1, 0]]
        assert llr.numerical_rank(torch.zeros(2, 3, 4)).exact

    def test_large_batches_count_what_is_not_zero(self) -> None:
        A = torch.zeros(1, 3, 4).expand(10_000, 3, 4).clone()
        A[0, 0], A[1, :, 1] = 1, 1
        (rows, why), (columns, _) = bounds_of_matrices(A)
        assert (rows[:3].tolist(), columns[:3].tolist(), why) == ([1, 3, 0], [4, 1, 0], "zeros")
