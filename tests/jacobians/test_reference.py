"""The reference Jacobian, against finite differences, torch.func, and numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.oracles import ACTIVATIONS, Net, assert_matches, draw, loop_jacobian, mlp
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from llr.jacobians import reference
from llr.operators import formula

F64 = torch.float64


def by_differences(model: nn.Module, x: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of the outputs, one parameter at a time, with an error of about step^2."""
    columns = []
    for p in model.parameters():
        for k in range(p.numel()):
            with torch.no_grad():
                value = p.view(-1)[k].item()
                p.view(-1)[k] = value + step
                above = model(x).flatten(1)
                p.view(-1)[k] = value - step
                below = model(x).flatten(1)
                p.view(-1)[k] = value
            columns.append((above - below) / (2 * step))
    return torch.stack(columns, -1)


def by_torch_func(model: nn.Module, x: Tensor) -> Tensor:
    params = dict(model.named_parameters())
    one = lambda p, s: functional_call(model, p, (s[None],)).flatten()  # noqa: E731
    parts = vmap(jacrev(one), in_dims=(None, 0))(params, x)
    return torch.cat([part.flatten(2) for part in parts.values()], -1).detach()


MODELS = {
    "mlp": lambda: mlp(3, 5, 2),
    "deep": lambda: mlp(3, 4, 4, 4, 1, activation=nn.GELU),
    "layer norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double(),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Tanh(), nn.ConvTranspose1d(2, 1, 2)
    ).double(),
    "bilinear": lambda: Bilinear().double(),
}


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x.cos())


@pytest.mark.parametrize("kind", list(MODELS))
def test_against_finite_differences(kind):
    model, x = MODELS[kind](), torch.randn(4, 3, dtype=F64)
    assert_matches(reference.jacobian(model, x), by_differences(model, x), tolerance=1e-8)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("kind", list(MODELS))
def test_against_torch_func(kind):
    model, x = MODELS[kind](), torch.randn(4, 3, dtype=F64)
    assert_matches(reference.jacobian(model, x), by_torch_func(model, x), tolerance=1e-14)


def test_by_hand():
    # f(x) = v tanh(w x + b) + c at x = 2, w = 0.5, b = -1, v = 3: the hidden value is tanh(0) = 0.
    model = mlp(1, 1, 1)
    with torch.no_grad():
        for p, value in zip(model.parameters(), (0.5, -1.0, 3.0, 7.0), strict=True):
            p.fill_(value)
    J = reference.jacobian(model, torch.tensor([[2.0]], dtype=F64))
    assert J.tolist() == [[[6.0, 3.0, 0.0, 1.0]]]  # v x, v, tanh, 1
    J = reference.jacobian(model, torch.tensor([[4.0]], dtype=F64))
    hidden = math.tanh(1.0)
    slope = 1 - hidden**2
    expected = torch.tensor([[[12 * slope, 3 * slope, hidden, 1.0]]], dtype=F64)
    assert_matches(J, expected, tolerance=1e-15)


def test_what_it_differentiates():
    model, x = mlp(3, 4, 2), torch.randn(3, 3, dtype=F64)
    full = reference.jacobian(model, x)
    model[0].weight.requires_grad_(False)
    assert torch.equal(reference.jacobian(model, x), full[..., 12:])
    some = {"2.bias": model[2].bias, "0.weight": model[0].weight + 1}
    J = reference.jacobian(model, x, some)
    assert J.shape == (3, 2, 14)
    assert torch.equal(J[..., :2], full[..., -2:])
    assert not J.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_outputs_in_their_order():
    params = {"w": torch.tensor([2.0, 3.0], dtype=F64)}

    def model(p: dict[str, Tensor], x: Tensor) -> object:
        y = p["w"] * x
        return {"b": (y[:, 1:], None), "a": [y[:, :1] ** 2, {"constant": torch.ones(len(x), 2)}]}

    J = reference.jacobian(model, torch.tensor([[1.0, 10.0]], dtype=F64), params)
    assert J.tolist() == [[[0, 10], [4, 0], [0, 0], [0, 0]]]
    assert reference.jacobian(model, torch.empty(0, 2, dtype=F64), params).shape == (0, 0, 2)


@pytest.mark.parametrize(
    "output", ["text", 1.5, torch.ones(3, dtype=torch.long), [torch.ones(2).bool()]]
)
def test_outputs_that_are_no_numbers(output):
    with pytest.raises(TypeError, match=r"the model's output (holds a|is a tensor of)"):
        reference.jacobian(lambda _, __: output, torch.ones(1, 2), {"w": torch.ones(2)})


# --- the operator's formula --------------------------------------------------------------------------

FORMULA_NETS = [
    Net((3, 2), 4),
    Net((3, 5, 2), 4, biases=(False, True)),
    Net((2, 4, 3, 4, 1), 3, biases=(True, False, True, False)),
    Net((3, 4, 2), 4, points=3),
    Net((3, 4, 2), 4, points=2, own_x=True),
    Net((3, 4, 2), 0),
]


@pytest.mark.parametrize("net", FORMULA_NETS, ids=lambda n: f"{n.widths}-{n.n}-{n.points}")
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_formula_against_the_loop(activation, net):
    tensors = draw(net)
    assert_matches(formula.mlp_jacobian(*tensors, activation), loop_jacobian(*tensors, activation))


def test_formula_with_columns():
    x, weights, biases = draw(Net((3, 4, 2), 5))
    full = formula.mlp_jacobian(x, weights, biases, "tanh")
    J = formula.mlp_jacobian(x, weights, biases, "tanh", [10, -1, 2, 0])
    assert torch.equal(J, torch.cat([full[..., 24:], full[..., 16:24], full[..., :12]], -1))


def test_formula_can_be_differentiated():
    x, weights, biases = draw(Net((2, 3, 1), 2))
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def call(x: Tensor, w0: Tensor, w1: Tensor, b0: Tensor, b1: Tensor) -> Tensor:
        return formula.mlp_jacobian(x, [w0, w1], [b0, b1], "tanh")

    assert torch.autograd.gradcheck(call, leaves)
