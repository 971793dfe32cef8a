"""Formal tangent spaces compared with certified ranks: embeddings of deep networks, degenerate networks."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from helpers.theory_cases import random_cases, random_two_layer, structure
from torch import Tensor, nn

from llr import certify
from llr.models import Conv1dTwoLayer, MatrixFactorization, TwoLayer, mlp
from llr.theory import tangent_dimension
from llr.theory.spans.formal import formal, formal_tangent
from llr.theory.spans.formal_span import combination, contained, formal_rank
from llr.theory.spans.symbols import Symbols
from llr.theory.tangents.two_layer import two_layer_tangent

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def random_mlp(
    *widths: int, biases: tuple[bool, ...] | bool = True, seed: int = 0
) -> nn.Sequential:
    """Multiples of 1/16, so that splits are exact."""
    generator = torch.Generator().manual_seed(seed)
    has = (biases,) * (len(widths) - 1) if isinstance(biases, bool) else biases
    layers: list[nn.Module] = []
    for (i, o), bias in zip(itertools.pairwise(widths), has, strict=True):
        layers += [nn.Linear(i, o, bias=bias), nn.Tanh()]
    net = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((torch.randn(p.shape, generator=generator).double() * 16).round() / 16)
            p[p == 0] = 0.3125
    return net


def widened(
    net: nn.Sequential, layer: int, row: Tensor, bias: float, column: Tensor
) -> nn.Sequential:
    """The network with an additional neuron in a hidden layer, with these incoming and outgoing weights."""
    linears = [m for m in net if isinstance(m, nn.Linear)]
    layers: list[nn.Module] = []
    for k, old in enumerate(linears):
        W, b = old.weight.detach(), None if old.bias is None else old.bias.detach()
        if k == layer:
            W = torch.cat((W, row[None]))
            b = None if b is None else torch.cat((b, torch.tensor([bias]).double()))
        if k == layer + 1:
            W = torch.cat((W, column[:, None]), 1)
        new = nn.Linear(W.shape[1], W.shape[0], bias=b is not None).double()
        new.load_state_dict({"weight": W} | ({} if b is None else {"bias": b}))
        layers += [new, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def split(net: nn.Sequential, layer: int, shares: Tensor, sign: int = 1) -> nn.Sequential:
    """Split neuron 0: the copy is reflected for sign = -1, and has these shares of the outgoing weights."""
    before, after = net[2 * layer], net[2 * layer + 2]
    v = after.weight.detach()[:, 0]
    bias = 0.0 if before.bias is None else sign * before.bias[0].item()
    wide = widened(net, layer, sign * before.weight.detach()[0], bias, sign * shares * v)
    with torch.no_grad():
        wide[2 * layer + 2].weight[:, 0] = (1 - shares) * v
    return wide


def rank_of(model: nn.Module, seed: int = 0) -> int:
    """The certified rank, found without closed forms."""
    P = sum(p.numel() for p in model.parameters())
    x = torch.randn(P + 6, model[0].in_features, generator=torch.Generator().manual_seed(seed))
    return certify(model, x.double(), params="*").rank


NARROW = {"1-2-2-1": (1, 2, 2, 1), "2-2-3-1": (2, 2, 3, 1), "1-2-2-2": (1, 2, 2, 2)}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", NARROW)
class TestMoves:
    """The effect of an additional neuron on dim T; every number is certified."""

    def check(self, wide: nn.Sequential, expected: int) -> None:
        assert formal(wide).rank == expected
        assert tangent_dimension(wide).upper == expected
        assert rank_of(wide) == expected

    @pytest.mark.parametrize(("share", "sign"), [(0.25, 1), (0.0, 1), (1.0, -1), (-1.5, -1)])
    def test_splits_change_nothing(self, name: str, layer: int, share: float, sign: int) -> None:
        narrow = random_mlp(*NARROW[name])
        n_out = NARROW[name][layer + 2]
        wide = split(narrow, layer, torch.full((n_out,), share).double(), sign)
        P = sum(p.numel() for p in narrow.parameters())
        self.check(wide, P)
        symbols = Symbols()
        one, two = formal(narrow, symbols), formal(wide, symbols)
        assert one.outputs == two.outputs
        assert contained(two.tangents, one.tangents)
        C = combination(two.tangents, one.tangents)
        assert C is not None
        assert (len(C), len(C[0])) == (len(two.tangents), P)

    def test_null_neurons(self, name: str, layer: int) -> None:
        widths = NARROW[name]
        narrow = random_mlp(*widths)
        n_in, n_out, P = widths[layer], widths[layer + 2], formal(random_mlp(*widths)).rank
        zero_in, zero_out = torch.zeros(n_in).double(), torch.zeros(n_out).double()
        new, out = torch.full((n_in,), 0.6875).double(), torch.full((n_out,), 0.8125).double()
        self.check(widened(narrow, layer, zero_in, 0.5, zero_out), P)
        self.check(widened(narrow, layer, new, 0.5, zero_out), P + n_out)
        self.check(widened(narrow, layer, zero_in, 0.5, out), P + n_in)

    def test_null_neurons_before_a_layer_without_bias(self, name: str, layer: int) -> None:
        widths = NARROW[name]
        biases = tuple(k != layer + 1 for k in range(3))
        narrow = random_mlp(*widths, biases=biases)
        n_in, n_out, P = widths[layer], widths[layer + 2], formal(narrow).rank
        zero_in, zero_out = torch.zeros(n_in).double(), torch.zeros(n_out).double()
        self.check(widened(narrow, layer, zero_in, 0.0, zero_out), P)
        self.check(widened(narrow, layer, zero_in, 0.5, zero_out), P + n_out)

    def test_shares_of_its_own_for_every_neuron(self, name: str, layer: int) -> None:
        widths = NARROW[name]
        narrow = random_mlp(*widths)
        n_in, n_out = widths[layer], widths[layer + 2]
        shares = torch.tensor([0.25, 0.5, -1.0])[:n_out].double()
        more = n_in + 1 if n_out >= 2 else 0
        self.check(split(narrow, layer, shares), formal(narrow).rank + more)


GENERIC = [
    ((2, 3, 3, 1), (25, 24, 18)),
    ((3, 2, 4, 2), (30, 28, 22)),
    ((1, 1, 1, 1), (6, 5, 3)),
    ((1, 2, 2, 2, 1), (19, 18, 12)),
    ((1, 4, 4, 1), (33, 32, 24)),
    ((2, 3, 2, 3, 1), (30, 29, 21)),
    ((1, 3, 1, 3, 1), (20, 19, 12)),
    ((2, 2, 2, 2), (18, 16, 12)),
    ((1, 1, 1, 1, 1, 1), (10, 9, 5)),
]


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize(("widths", "ranks"), GENERIC)
def test_generic_rank(widths: tuple[int, ...], ranks: tuple[int, ...], kind: int) -> None:
    layers = len(widths) - 1
    biases = [(True,) * layers, (True,) * (layers - 1) + (False,), (False,) * layers][kind]
    model = random_mlp(*widths, biases=biases, seed=3)
    found = formal_tangent(model)
    assert found.upper == found.n_params == ranks[kind] == rank_of(model)
    assert found.status == ("almost everywhere" if kind == 0 else "bounds")


@pytest.mark.parametrize(
    "activation", ["tanh", "erf", "sigmoid", "softplus", "gelu", "silu", "relu"]
)
def test_one_hidden_layer(activation: str) -> None:
    exact = 0
    for seed in range(count := random_cases(60)):
        net = structure(random_two_layer(activation, seed))
        found, closed = formal_tangent(net), two_layer_tangent(net).upper
        assert found.upper >= closed
        if found.status == "exact":
            assert found.upper == closed, seed
            exact += 1
    assert exact >= count * 2 // 3


def test_convolutions_are_exact() -> None:
    chance = random.Random(0)
    for seed in range(random_cases(60)):
        d, s, m = chance.randint(2, 5), chance.randint(1, 3), chance.randint(1, 3)
        model = Conv1dTwoLayer(max(d, s), s, m, shared=seed % 2 == 0).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(
                    torch.randint(-1, 2, p.shape, generator=torch.Generator().manual_seed(seed))
                )
        assert formal(model).rank == int(tangent_dimension(model)), seed


def test_dead_and_constant_neurons_are_named() -> None:
    model = random_mlp(2, 3, 2, 1)
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].weight[2], model[0].bias[2] = -model[0].weight[1], -model[0].bias[1]
        model[4].weight[0, 1] = 0
    text = str(tangent_dimension(model))
    assert "layer 0: neuron 0 constant" in text
    assert "layer 0: neurons 1 and 2 are one function, up to its symmetries" in text
    assert "layer 1: neuron 1 without outgoing weights" in text
    assert tangent_dimension(model).upper == rank_of(model)


def test_deep_relu_has_no_single_generic_rank() -> None:
    # At most P = 25 less 6 scalings, and different numbers on open sets of parameters.
    found = set()
    for seed in range(6):
        model = mlp([2, 3, 3, 1], activation="relu").double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_((torch.randn(p.shape, generator=generator) * 16).round() / 16)
        x = torch.randn(300, 2, generator=generator).double() * 8
        r = certify(model, x, params="*").rank
        assert r <= tangent_dimension(model).upper <= 19
        found.add(r)
    assert len(found) > 2


def test_too_large_to_write_out() -> None:
    model = mlp([4, 30, 30, 30, 1], activation="relu").double()
    found = formal_tangent(model)
    assert (found.upper, found.status) == (found.n_params - 90, "bounds")
    with pytest.raises(ValueError, match=r"up to \d+ terms"):
        _ = formal(model).tangents


def test_independent_vectors_are_counted() -> None:
    assert formal_rank(formal(TwoLayer(2, 4)).tangents) == 16
    assert formal_rank([]) == 0


def test_a_factorization_has_no_neurons() -> None:
    with pytest.raises(ValueError, match="no network of neurons"):
        formal(MatrixFactorization(2, 2, 2))
