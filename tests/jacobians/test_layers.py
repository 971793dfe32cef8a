"""Models as sequences of layers: every kind of layer, and every use of a parameter that hooks do not see."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from helpers.models import EVERY, F64, Model, affine, affine_params, make, samples
from helpers.oracles import assert_matches, mlp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import llr
from llr.inputs.problem import Problem, read_problem
from llr.jacobians import reference
from llr.jacobians.layers import Factor, stream
from llr.jacobians.signals import read_layers

pytestmark = pytest.mark.filterwarnings(  # torch's own
    "ignore:Using padding='same' with even kernel:UserWarning"
)
Case = tuple[Callable[[], nn.Module], Callable[[], Tensor], set[str]]


def sequential(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(make_layer() for make_layer in layers)).eval()


def named(
    forward: Callable[[Model, Tensor], object], **parts: nn.Module
) -> Callable[[], nn.Module]:
    return lambda: Model(forward, **parts)


def tokens(n: int, length: int, vocabulary: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(vocabulary, (n, length))


def tied() -> nn.Module:
    model = mlp(3, 3, 3, 2)
    model[2].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = mlp(3, 4, 2)
    model[0].register_forward_hook(lambda _module, _args, output: 2 * output)
    model[2].register_forward_pre_hook(lambda _module, args: (args[0] ** 2,))
    return model


def own_forward() -> nn.Module:
    model = mlp(3, 4, 2)
    model[0].forward = lambda x: x @ model[0].weight.T.sin()
    return model


class Squared(nn.Linear):
    """A subclass of Linear that is not linear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight**2, self.bias)


class Labelled(nn.Linear):
    """A linear layer under another name."""


flatten, tanh = nn.Flatten, nn.Tanh

# name -> (model, samples, parameters whose columns are not taken from layers)
KINDS: dict[str, Case] = {
    "depthwise filters": (
        sequential(
            lambda: nn.Conv2d(4, 8, (2, 3), groups=4, stride=(2, 1), padding=(1, 0)),
            tanh,
            flatten,
            lambda: nn.Linear(72, 2),
        ),
        lambda: samples(4, 4, 4, 5),
        set(),
    ),
    "same padding": (
        sequential(
            lambda: nn.Conv2d(4, 6, (2, 3), groups=2, padding="same", dilation=(1, 2)),
            tanh,
            flatten,
            lambda: nn.Linear(120, 2),
        ),
        lambda: samples(4, 4, 4, 5),
        set(),
    ),
    "valid padding": (
        sequential(lambda: nn.Conv1d(2, 3, 2, padding="valid", bias=False), tanh, flatten),
        lambda: samples(4, 2, 5),
        set(),
    ),
    "strided and dilated": (
        sequential(lambda: nn.Conv1d(2, 3, 2, padding=2, stride=2, dilation=3), tanh, flatten),
        lambda: samples(4, 2, 5),
        set(),
    ),
    "circular padding": (
        sequential(lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), tanh, flatten),
        lambda: samples(4, 2, 5),
        {"0.weight", "0.bias"},
    ),
    "transposed filters": (
        sequential(lambda: nn.ConvTranspose1d(2, 3, 3), tanh, flatten, lambda: nn.Linear(21, 1)),
        lambda: samples(4, 2, 5),
        {"0.weight", "0.bias"},
    ),
    "norms": (
        sequential(
            lambda: nn.Conv2d(2, 4, 2),
            lambda: nn.GroupNorm(2, 4),
            tanh,
            lambda: nn.BatchNorm2d(4),
            lambda: nn.InstanceNorm2d(4, affine=True),
            lambda: nn.LayerNorm((4, 3, 4)),
            tanh,
            flatten,
            lambda: nn.RMSNorm(48),
            lambda: nn.LayerNorm(48, elementwise_affine=False),
            lambda: nn.Linear(48, 2),
        ),
        lambda: samples(4, 2, 4, 5),
        {"4.weight", "4.bias"},
    ),
    "a token of no weight": (
        sequential(
            lambda: nn.Embedding(7, 3, padding_idx=2), flatten, tanh, lambda: nn.Linear(12, 2)
        ),
        tokens(6, 4, 7),
        set(),
    ),
    "a large vocabulary": (
        sequential(lambda: nn.Embedding(500, 3), lambda: nn.Linear(3, 3), tanh, flatten),
        tokens(6, 4, 500),
        set(),
    ),
    "two kinds of their own": (
        named(lambda m, x: m.slope(m.form(x, x)), form=nn.Bilinear(3, 3, 4), slope=nn.PReLU()),
        samples,
        {"form.weight", "form.bias", "slope.weight"},
    ),
    "subclasses": (
        sequential(lambda: Labelled(3, 4), tanh, lambda: Squared(4, 2)),
        samples,
        {"2.weight", "2.bias"},
    ),
}
USES: dict[str, Case] = {
    "called twice": (
        named(lambda m, x: m.a(m.a(x).tanh()), a=nn.Linear(3, 3)),
        samples,
        set(),
    ),
    "tied": (tied, samples, {"0.weight"}),
    "used outside of its module": (
        named(
            lambda m, x: F.linear(m.a(x).tanh(), m.a.weight.mT) + m.b(x),
            a=nn.Linear(3, 4),
            b=nn.Linear(3, 3),
        ),
        samples,
        {"a.weight", "a.bias"},
    ),
    "used outside a little": (
        named(lambda m, x: m.a(x).tanh() + 1e-8 * m.a.weight.sum() * x[:, :1], a=nn.Linear(3, 4)),
        samples,
        {"a.weight", "a.bias"},
    ),
    "detached": (
        named(lambda m, x: m.b(x) + m.a(x).detach(), a=nn.Linear(3, 4), b=nn.Linear(3, 4)),
        samples,
        set(),
    ),
    "never called": (
        named(lambda m, x: m.b(x), a=nn.Linear(3, 4), b=nn.Linear(3, 3)),
        samples,
        {"a.weight", "a.bias"},
    ),
    "called by keyword": (
        named(lambda m, x: m.b(input=m.a(input=x)), a=nn.Linear(3, 4), b=nn.LayerNorm(4)),
        samples,
        set(),
    ),
    "work in place": (
        named(lambda m, x: m.b(m.a(x).mul_(2).relu_()), a=nn.Linear(3, 4), b=nn.Linear(4, 2)),
        samples,
        set(),
    ),
    "hooks of the model's own": (hooked, samples, set()),
    "a forward of its own": (own_forward, samples, {"0.weight", "0.bias"}),
    "parametrized": (
        sequential(
            lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
            tanh,
            lambda: nn.Linear(4, 2),
        ),
        samples,
        {
            "0.bias",
            "0.parametrizations.weight.original0",
            "0.parametrizations.weight.original1",
        },
    ),
    "sequences first": (
        named(
            lambda m, x: m.b(m.a(x.transpose(0, 1)).tanh()).transpose(0, 1),
            a=nn.Linear(3, 4),
            b=nn.Linear(4, 2),
        ),
        lambda: samples(4, 6, 3),
        {"a.weight", "a.bias", "b.weight", "b.bias"},
    ),
    "samples and positions merged": (
        named(
            lambda m, x: m.b(m.a(x.flatten(0, 1)).tanh()).view(len(x), -1),
            a=nn.Linear(3, 4),
            b=nn.Linear(4, 2),
        ),
        lambda: samples(4, 6, 3),
        set(),
    ),
    "symmetric samples": (
        # The derivatives by the weights are even or odd: the odd ones sum to zero over these samples.
        lambda: mlp(3, 4, 2, bias=False),
        lambda: torch.cat([s := samples(4), -s.flip(0)]),
        set(),
    ),
}
CASES = KINDS | USES


def case_of(case: str) -> tuple[nn.Module, Tensor]:
    model, x, _ = CASES[case]
    return model().double(), x()


def problem_of(model: nn.Module, x: Tensor) -> Problem:
    """The problem of a model that is treated as layers, even if it is an MLP."""
    problem = read_problem(model, x, None, F64)
    problem.mlp, problem.why_not_mlp = None, "the test takes it for a module"
    return problem


def gram_of(parts: Iterable[Factor | Tensor]) -> Tensor:
    """The Gram matrix by a third method, without a layer's own formula."""
    total = torch.zeros(())
    for part in parts:
        for block in part.blocks(10**6) if isinstance(part, Factor) else [part]:
            total = total + block @ block.T
    return total


def expected_gram(model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    J = reference.jacobian(model, x)
    return torch.einsum("icp,jdp->icjd", J, J).reshape(len(x) * J.shape[1], -1), J.shape[1]


@pytest.mark.parametrize("case", list(CASES))
def test_each_column_is_found_where_it_belongs(case):
    model, x = case_of(case)
    K, q = expected_gram(model, x)
    layers = read_layers(problem_of(model, x), q)
    assert set(layers.others) == CASES[case][2]
    covered = [name for layer in layers.known for name in layer.names] + layers.others
    assert sorted(covered) == sorted(name for name, _ in model.named_parameters())
    assert_matches(gram_of(stream(layers, 1 << 20)), K)


@pytest.mark.parametrize("case", [*EVERY, *CASES])
def test_little_room_and_small_chunks_change_nothing(case):
    model, x = make(case) if case in EVERY else case_of(case)
    K, q = expected_gram(model, x)
    layers = read_layers(problem_of(model, x), q)
    J_bytes = 8 * len(K) * sum(p.numel() for p in model.parameters())
    for parts, chunk_size in ((3, 3), (10, None)):
        assert_matches(gram_of(stream(layers, J_bytes // parts, chunk_size)), K)


@pytest.mark.parametrize("case", ["mlp", "one token", "valid padding", "two kinds of their own"])
def test_a_column_at_a_time(case):
    model, x = make(case) if case in EVERY else case_of(case)
    K, q = expected_gram(model, x)
    layers = read_layers(problem_of(model, x), q)
    assert_matches(gram_of(stream(layers, 8)), K)


@pytest.mark.parametrize("case", [*EVERY, *CASES])
def test_operands_and_blocks_say_the_same(case):
    model, x = make(case) if case in EVERY else case_of(case)
    layers = read_layers(problem_of(model, x), expected_gram(model, x)[1])
    for factor in stream(layers, 1 << 20):
        if not isinstance(factor, Factor):
            continue
        delta, a = factor.operands()
        rows = torch.einsum("nth,ntw->nhw", delta, a).flatten(1)
        rows = torch.cat([rows, delta.sum(1)], 1) if factor.bias else rows
        for width in (1, 4, 10**6):
            blocks = list(factor.blocks(width))
            assert all(block.shape[1] <= width for block in blocks)
            together = torch.cat(blocks, 1)
            assert_matches(together @ together.T, rows @ rows.T)


def test_the_layers_of_an_mlp_need_no_hooks():
    model, x = mlp(3, 5, 4, 2), samples()
    K, q = expected_gram(model, x)
    problem = read_problem(model, x, None, F64)
    assert problem.mlp is not None
    assert_matches(gram_of(stream(read_layers(problem, q), 1 << 20)), K)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ("0.bias", "2.weight"))
    problem = read_problem(model, x, None, F64)
    layers = read_layers(problem, q)
    assert [layer.names for layer in layers.known] == [["0.bias"], ["2.weight"]]
    assert_matches(gram_of(stream(layers, 1 << 20)), expected_gram(model, x)[0])


def test_callables_have_no_layers():
    params, x = affine_params(), samples()
    problem = read_problem(affine, x, params, F64)
    layers = read_layers(problem, 2)
    assert layers.known == []
    assert layers.others == ["w", "b", "scale"]
    J = reference.jacobian(affine, x, params).flatten(0, 1)
    for budget in (8, 200, 10**6):
        assert_matches(gram_of(stream(layers, budget)), J @ J.T)


@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_a_use_that_shows_at_some_samples_only(chunk_size, caplog):
    def forward(m: Model, x: Tensor) -> Tensor:
        return m.a(x).tanh() + (x[:, :1] > 0) * F.linear(x, m.a.weight)

    model = Model(forward, a=nn.Linear(3, 4)).double()
    x = samples(9) * torch.tensor([[0.0, 1, 1]] * 5 + [[1.0, 1, 1]] * 4)
    K, q = expected_gram(model, x)
    layers = read_layers(problem_of(model, x), q)
    assert layers.others == []
    for budget in (200, 10**6):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="llr"):
            assert_matches(gram_of(stream(layers, budget, chunk_size)), K)
        assert caplog.text.count("'a'") == 1


def test_planted_errors_are_found(monkeypatch):
    # The comparison with autograd is needed: without it the result is wrong.
    model, x = case_of("used outside of its module")
    K, q = expected_gram(model, x)
    monkeypatch.setattr("llr.jacobians.signals._agrees", lambda *_: True)
    layers = read_layers(problem_of(model, x), q)
    assert layers.others == []
    found = gram_of(stream(layers, 1 << 20))
    assert (found - K).abs().max() > 0.01 * K.abs().max()


class Largest(TorchDispatchMode):
    """Notes the largest memory block behind any tensor that an operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, Tensor):
                self.nbytes = max(self.nbytes, t.untyped_storage().nbytes())
        return result


WIDE = {
    "linear": (
        sequential(
            lambda: nn.Linear(3, 60), lambda: nn.LayerNorm(60), tanh, lambda: nn.Linear(60, 60)
        ),
        lambda: samples(30),
    ),
    "filters": (
        sequential(lambda: nn.Conv1d(3, 40, 3), tanh, lambda: nn.Conv1d(40, 40, 2), flatten),
        lambda: samples(30, 3, 4),
    ),
    "lstm": (
        named(
            lambda m, x: m.out(m.rnn(x)[0][:, -1]),
            rnn=nn.LSTM(3, 12, batch_first=True),
            out=nn.Linear(12, 20),
        ),
        lambda: samples(10, 2, 3),
    ),
}


@pytest.mark.parametrize("case", list(WIDE))
def test_memory_stays_far_below_the_jacobian(case):
    model, x = WIDE[case][0]().double(), WIDE[case][1]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        J = llr.jacobian(model, x)
    K = J.flatten(0, 1) @ J.flatten(0, 1).T
    budget = J.nbytes // 12
    largest = Largest()
    layers = read_layers(problem_of(model, x), J.shape[1])
    with largest, torch.no_grad():
        parts = list(stream(layers, budget))
    assert largest.nbytes <= 4 * budget < J.nbytes
    assert_matches(gram_of(parts), K)
