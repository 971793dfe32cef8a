"""Derivatives under vmap, compared with plain autograd one sample and one output at a time.

Modules of torch with wrong rules for vmap, or rules that are wrong without gradient mode; forwards that
register hooks; derivatives that do not exist.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llr
from llr.landscape import criticality
from llr.landscape.surface import Surface, hessian_of

Function = Callable[[Tensor, Tensor], Tensor]
N, SIZE = 40, 3


def _with(x: Tensor, w: Tensor) -> Tensor:
    return w + 2 * torch.eye(SIZE, dtype=w.dtype) + torch.diag_embed(x)


LU: dict[str, Function] = {
    "solve": lambda w, x: torch.linalg.solve(_with(x, w), x[..., None]),
    "solve of rows": lambda w, x: torch.linalg.solve(w + 2 * torch.eye(SIZE, dtype=w.dtype), x.T).T,
    "solve on the right": lambda w, x: torch.linalg.solve(_with(x, w), x[:, None], left=False),
    "solve_ex": lambda w, x: torch.linalg.solve_ex(_with(x, w), x)[0],
    "det": lambda w, x: torch.linalg.det(_with(x, w))[:, None],
    "slogdet": lambda w, x: torch.linalg.slogdet(_with(x, w))[1],
    "logdet": lambda w, x: torch.logdet(w @ w.T + torch.diag_embed(x**2 + 1)),
    "inv": lambda w, x: torch.linalg.inv(_with(x, w)),
    "lu": lambda w, x: torch.linalg.lu(_with(x, w))[2],
    "lu_factor": lambda w, x: torch.linalg.lu_factor(_with(x, w))[0],
    "lu_solve": lambda w, x: torch.linalg.lu_solve(
        *torch.linalg.lu_factor(_with(x, w)), x[..., None]
    ),
}
DISTANCES: dict[str, Function] = {
    f"cdist, p={p:g}": lambda w, x, p=p: torch.cdist(x, w, p=p)
    for p in (1.0, 2.0, 3.0, float("inf"))
}
ALL = LU | DISTANCES


class Model(nn.Module):
    """A function of one parameter (3, 3) and samples of 3 numbers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(SIZE, SIZE))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w, x)


def autograd(model: nn.Module, x: Tensor) -> Tensor:
    """(n, q, P)."""
    parameters = list(model.parameters())
    samples = []
    for sample in x:
        outputs = model(sample[None]).flatten()
        rows = [torch.autograd.grad(y, parameters, retain_graph=True) for y in outputs]
        samples.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]))
    return torch.stack(samples)


def make(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = Model(ALL[name]).double(), torch.randn(N, SIZE).double()
    return model, x, autograd(model, x)


def assert_near(found: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9 * float(truth.abs().max()))


def stacked(model: nn.Module) -> dict[str, Tensor]:
    return {"w": torch.stack([p.detach() for p in (model.w, model.w)])}


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "jacobian": llr.jacobian,
    "a sample at a time": lambda m, x: llr.jacobian(m, x, chunk_size=1),
    "stacked": lambda m, x: llr.jacobian(m, x, params=stacked(m))[1],
    "graph": lambda m, x: llr.jacobian(m, x, create_graph=True).detach(),
    "callable": lambda m, x: llr.jacobian(
        lambda params, x: m.function(params["w"], x),
        x,
        params={"w": m.w.detach()},
    ),
}
MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "gradients": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ALL)
def test_rules_of_vmap(name: str, way: str) -> None:
    model, x, truth = make(name)
    found = WAYS[way](model, x)
    assert_near(found, truth)
    assert not found.requires_grad


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["solve", "slogdet", "cdist, p=2"])
def test_whatever_the_mode(name: str, mode: str) -> None:
    model, x, truth = make(name)
    with MODES[mode]():
        found = llr.jacobian(model, x)
        K = llr.gram(model, x)
    assert_near(found, truth)
    rows = truth.flatten(0, 1)
    assert_near(K.reshape(len(rows), -1), rows @ rows.T)
    assert not found.requires_grad
    assert not K.requires_grad


@pytest.mark.parametrize("method", ["svd", "tsqr", "gram"])
@pytest.mark.parametrize("name", ["solve", "cdist, p=2"])
def test_rank(name: str, method: str) -> None:
    model, x, truth = make(name)
    found = llr.rank(model, x, method=method)
    values = torch.linalg.svdvals(truth.flatten(0, 1))
    torch.testing.assert_close(found.spectrum[: len(values)], values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["cdist, p=1", "cdist, p=2"])
def test_loop_and_its_reason(name: str) -> None:
    model, x, _ = make(name)
    plan = llr.plan(model, x)
    assert plan.backend == "loop"
    assert "not those of autograd" in plan.reason
    with pytest.raises(ValueError, match=r"backend='torch' cannot .* not those of autograd"):
        llr.jacobian(model, x, backend="torch")


@pytest.mark.parametrize("name", LU)
def test_lu_under_vmap(name: str) -> None:
    model, x, truth = make(name)
    assert_near(llr.jacobian(model, x, backend="torch"), truth)


def test_transformed_by_the_caller() -> None:
    """Inside a caller's transform there are no numbers to compare."""
    model, x, truth = make("cdist, p=2")
    function = ALL["cdist, p=2"]
    seen: list[Tensor] = []

    def total(w: Tensor) -> Tensor:
        J = llr.jacobian(lambda params, x: function(params["w"], x), x, params={"w": w})
        seen.append(J)
        return J.sum(), J.detach()

    w = model.w.detach()
    _, (_, J) = torch.func.grad_and_value(total, has_aux=True)(w)
    assert_near(J, truth)


def test_buffer_that_requires_a_gradient() -> None:
    class Scaled(Model):
        def __init__(self) -> None:
            super().__init__(LU["inv"])
            self.scale = torch.ones(1, dtype=torch.float64, requires_grad=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * super().forward(x)

    x = torch.randn(N, SIZE).double()
    assert not llr.jacobian(Scaled().double(), x).requires_grad


@pytest.mark.parametrize("name", ["slogdet", "cdist, p=2", "cdist, p=3"])
def test_hessian(name: str) -> None:
    model, x, _ = make(name)
    with torch.no_grad():
        y = torch.randn_like(model(x))

    def loss(theta: Tensor) -> Tensor:
        return ((ALL[name](theta.view(SIZE, SIZE), x) - y) ** 2).sum() / (2 * N)

    surface = Surface.of(model, x, y)
    try:
        truth: Any = torch.autograd.functional.hessian(loss, surface.theta)
    except NotImplementedError as missing:
        assert name == "cdist, p=3", "only releases before 2.14 lack this one"
        pytest.skip(f"this torch has no second derivative: {missing}")
    with torch.no_grad():
        assert_near(hessian_of(surface, surface.theta), truth)


# --- hooks -------------------------------------------------------------------------------------------


class WithHook(nn.Module):
    def __init__(self, register: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.register = nn.Linear(3, 4), nn.Linear(4, 2), register

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        self.register(h)
        return self.b(h)


HOOKS: dict[str, Callable[[Tensor], object]] = {
    "retained": lambda h: h.retain_grad(),
    "looked at": lambda h: h.register_hook(lambda _: None),
    "doubled": lambda h: h.register_hook(lambda g: 2 * g),
    "clipped": lambda h: h.register_hook(lambda g: g.clamp(-0.1, 0.1)),
    "normalised": lambda h: h.register_hook(lambda g: g / (1 + g.norm())),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_on_what_forward_computes(kind: str) -> None:
    """The derivative is autograd's, including hooks that change gradients."""
    torch.manual_seed(0)
    model, x = WithHook(HOOKS[kind]).double(), torch.randn(9, 3).double()
    truth = autograd(model, x)
    assert_near(llr.jacobian(model, x), truth)
    assert_near(llr.jacobian(model, x, backend="loop"), truth)
    rows = truth.flatten(0, 1)
    assert_near(llr.gram(model, x).reshape(len(rows), -1), rows @ rows.T)
    llr.rank(model, x)
    criticality(model, x, torch.randn(9, 2).double())


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_in_forward_hooks(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
        HOOKS[kind](output)

    model[1].register_forward_hook(hook)
    x = torch.randn(9, 3).double()
    assert_near(llr.jacobian(model, x), autograd(model, x))


# --- derivatives that do not exist -------------------------------------------------------------------


class Distance(nn.Module):
    """Not differentiable at x = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) ** 2).sum(-1, keepdim=True).sqrt())


class Chosen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return torch.where(h > 0, h.abs().sqrt(), 0.0)


NOT_DIFFERENTIABLE: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "jacobian": llr.jacobian,
    "loop": lambda m, x: llr.jacobian(m, x, backend="loop"),
    "graph": lambda m, x: llr.jacobian(m, x, create_graph=True),
    "gram": llr.gram,
    "gram of columns": lambda m, x: llr.gram(m, x, backend="dense"),
    "rank": llr.rank,
    "rank by gram": lambda m, x: llr.rank(m, x, method="gram"),
}


@pytest.mark.parametrize("kind", [Distance, Chosen])
@pytest.mark.parametrize("way", NOT_DIFFERENTIABLE)
def test_no_derivative(kind: type[nn.Module], way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3).double()
    x[5] = 0
    expected = r"output 0 of sample 5 by parameter 'a.weight', index .* is nan; .* no derivative"
    with pytest.raises(ValueError, match=expected):
        NOT_DIFFERENTIABLE[way](kind().double(), x)


def test_no_derivative_at_a_later_point() -> None:
    model = Chosen()
    points = torch.ones(2, *model.a.weight.shape)
    points[1] = torch.tensor([1.0, -1.0, 0.0])
    x = torch.ones(1, 3)  # a.weight x is 0 at the second point
    expected = r"output 0 of sample 0 by parameter 'a.weight', index .* at parameter point 1"
    with pytest.raises(ValueError, match=expected):
        llr.jacobian(model, x, params={"a.weight": points})


# --- what is overwritten, and samples that interact --------------------------------------------------


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h.mul_(2)  # the line that is named
        return h


class SetsAColumn(Overwriting):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).exp()
        h[:, 0] = 0  # the line that is named
        return h


def _line(kind: type[nn.Module]) -> int:
    code = kind.forward.__code__
    lines = Path(code.co_filename).read_text().splitlines()
    return next(i for i in range(code.co_firstlineno, 10**6) if "is named" in lines[i - 1])


@pytest.mark.parametrize("kind", [Overwriting, SetsAColumn])
@pytest.mark.parametrize("compute", [llr.jacobian, llr.gram, llr.rank])
def test_line_that_overwrites(kind: type[nn.Module], compute: Callable[..., object]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), kind(), nn.Linear(3, 1)).double()
    place = rf"in {kind.__name__} '1', .*test_vmap_derivatives.py:{_line(kind)}: .* in place"
    with pytest.raises(ValueError, match=place) as caught:
        compute(model, torch.randn(7, 3).double())
    assert "version" not in str(caught.value)


def test_module_that_overwrites() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.ReLU(inplace=True), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"in ReLU '2': .* inplace=False"):
        llr.jacobian(model, torch.randn(7, 3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(4, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), "MultiheadAttention 'self_attn'"),
        (Recurrent(), "LSTM 'cell'"),
    ],
)
def test_sequences_along_the_first_dimension(model: nn.Module, layer: str) -> None:
    x = torch.randn(5, 3, 4)
    for training in (True, False):
        with pytest.raises(ValueError, match=f"interact.*{layer} has batch_first=False") as caught:
            llr.jacobian(model.train(training), x)
        assert ("model.eval()" in str(caught.value)) is training


@pytest.mark.parametrize("training", [True, False])
def test_interacting_otherwise(training: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Softmax(0)).train(training)
    with pytest.raises(ValueError, match="interact") as caught:
        llr.jacobian(model, torch.randn(5, 3))
    assert ("model.eval()" in str(caught.value)) is training
    assert "batch_first" not in str(caught.value)


def test_fast_where_it_is_right() -> None:
    """A model that vmap differentiates correctly does not use the loop."""
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.GELU(), nn.LayerNorm(4), nn.Flatten())
    x = torch.randn(9, 1, 5)
    assert llr.plan(model, x).backend == "torch"
    assert F.mse_loss(llr.jacobian(model, x, backend="torch"), llr.jacobian(model, x)) == 0
