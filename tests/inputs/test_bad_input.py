"""Arguments that llr.jacobian refuses. Messages name the value, what was expected, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.models import F32, F64, Model, affine, affine_params, make, samples
from helpers.oracles import mlp
from torch import Tensor, nn

import llr
from llr import embedding, landscape, lifting, models, recovery
from llr.recovery.train import train

BACKENDS = ["auto", "torch", "loop"]

GOOD = mlp(3, 4, 2)
MIXED = nn.Sequential(nn.Linear(3, 4).double(), nn.Tanh(), nn.Linear(4, 2))
FROZEN_MIXED = nn.Sequential(
    nn.Linear(3, 4).double(), nn.Tanh(), nn.Linear(4, 2).requires_grad_(False)
)
NORMED = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double()


def spoiled(index: tuple[int, ...], value: float) -> Tensor:
    x = torch.zeros(5, 3, dtype=F64)
    x[index] = value
    return x


def spoiled_model(name: str, frozen: bool) -> nn.Module:
    model = mlp(3, 4, 2)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] = float("inf")
    model.get_parameter(name).requires_grad_(not frozen)
    return model


X = torch.zeros(5, 3, dtype=F64)
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "NaN in x": (
        lambda: llr.jacobian(GOOD, spoiled((3, 2), float("nan"))),
        ValueError,
        "x is nan at index (3, 2); expected finite numbers",
    ),
    "infinity in x": (
        lambda: llr.jacobian(NORMED, spoiled((0, 1), -float("inf"))),
        ValueError,
        "x is -inf at index (0, 1); expected finite numbers",
    ),
    "infinity in a parameter": (
        lambda: llr.jacobian(spoiled_model("2.weight", frozen=False), X),
        ValueError,
        "parameter '2.weight' is inf at index (0, 1); expected finite numbers",
    ),
    "infinity in a frozen parameter": (
        lambda: llr.jacobian(spoiled_model("0.bias", frozen=True), X),
        ValueError,
        "parameter '0.bias' is inf at index (1,); expected finite numbers",
    ),
    "trailing dimension": (
        lambda: llr.jacobian(GOOD, X[:, :2]),
        ValueError,
        "x has shape (5, 2); expected (n, 3) for a 3-4-2 tanh MLP",
    ),
    "one sample without its dimension": (
        lambda: llr.jacobian(GOOD, X[0]),
        ValueError,
        "x has shape (3,); expected (n, 3)",
    ),
    "a single number": (
        lambda: llr.jacobian(GOOD, X[0, 0]),
        ValueError,
        "x is a single number; expected samples along a first dimension",
    ),
    "dtype of x": (
        lambda: llr.jacobian(GOOD, X.float()),
        TypeError,
        "x is torch.float32 but the parameters are torch.float64; expected one dtype (x.to(torch.float64)",
    ),
    "complex x": (
        lambda: llr.jacobian(GOOD, X.cdouble()),
        TypeError,
        "x is torch.complex128; expected real numbers, as the parameters are (",
    ),
    "integer x": (
        lambda: llr.jacobian(GOOD, X.long()),
        TypeError,
        "x is torch.int64; expected torch.float64 as the parameters (x.to(torch.float64))",
    ),
    "dtypes of parameters": (
        lambda: llr.jacobian(MIXED, X),
        TypeError,
        "mixed dtypes: '0.weight' is torch.float64, '2.weight' is torch.float32; expected one",
    ),
    "dtype of a frozen parameter": (
        lambda: llr.jacobian(FROZEN_MIXED, X),
        TypeError,
        "'2.weight' is torch.float32",
    ),
    "half precision": (
        lambda: llr.jacobian(mlp(3, 2, dtype=torch.float16), X.half()),
        TypeError,
        "parameter '0.weight' is torch.float16; expected float32 or float64 (model.double())",
    ),
    "device of x": (
        lambda: llr.jacobian(GOOD, X.to("meta")),
        ValueError,
        "parameter '0.weight' is on cpu but x is on meta; expected one device",
    ),
    "device of a parameter": (
        lambda: llr.jacobian(
            nn.Sequential(GOOD[0], nn.Tanh(), nn.Linear(4, 2, device="meta", dtype=F64)), X
        ),
        ValueError,
        "parameter '2.weight' is on meta but x is on cpu; expected one device",
    ),
    "x is a list of unequal rows": (
        lambda: llr.jacobian(GOOD, [[1.0, 2, 3], [1.0]]),
        ValueError,
        "x is a list whose rows differ in length; expected rows of one shape",
    ),
    "x is an array of objects": (
        lambda: llr.jacobian(GOOD, np.array([[1.0, "2", 3.0]], dtype=object)),
        TypeError,
        "x has an entry of type str at index (0, 1); expected numbers only",
    ),
    "no model": (
        lambda: llr.jacobian("model.pt", X),
        TypeError,
        "model is str; expected an nn.Module or a callable f(params, x)",
    ),
    "callable without params": (
        lambda: llr.jacobian(affine, X),
        TypeError,
        "a callable model needs params= a mapping of names to tensors",
    ),
    "callable with names": (
        lambda: llr.jacobian(affine, X, params=["w"]),
        TypeError,
        "mapping of names to tensors, with which it is called as model(params, x); got list",
    ),
    "callable with no params": (
        lambda: llr.jacobian(affine, X, params={}),
        ValueError,
        "params is empty; expected at least one tensor",
    ),
    "backend": (
        lambda: llr.jacobian(GOOD, X, backend="cuda"),
        ValueError,
        "backend is 'cuda'; expected one of auto, native, torch, loop",
    ),
    "native backend": (
        lambda: llr.jacobian(NORMED, X, backend="native"),
        ValueError,
        "backend='native' cannot compute this model: LayerNorm is no linear layer; backend='auto' goes",
    ),
    "native backend for a callable": (
        lambda: llr.jacobian(affine, X, params=affine_params(), backend="native"),
        ValueError,
        "backend='native' cannot compute this model: a callable",
    ),
    **{
        f"chunk_size {value}": (
            lambda value=value: llr.jacobian(GOOD, X, chunk_size=value),
            ValueError,
            f"chunk_size is {value!r}; expected a positive number of samples",
        )
        for value in (0, -1, 1.5, "2")
    },
    "shape of out": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 26, dtype=F64)),
        ValueError,
        "out has shape (5, 26); expected (5, 2, 26)",
    ),
    "dtype of out": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 2, 26)),
        TypeError,
        "out is torch.float32 on cpu; expected torch.float64 on cpu",
    ),
    "device of out": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 2, 26, dtype=F64, device="meta")),
        TypeError,
        "out is torch.float64 on meta; expected torch.float64 on cpu",
    ),
    "out that needs a gradient": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 2, 26, dtype=F64, requires_grad=True)),
        ValueError,
        "out requires a gradient; expected a plain tensor (out.detach())",
    ),
    **{
        f"{name} out": (
            lambda make=make: llr.jacobian(GOOD, X, out=make()),
            TypeError,
            f"out is a Tensor ({name}); expected a dense torch.Tensor to write into",
        )
        for name, make in {
            "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "torch.sparse_coo": lambda: torch.zeros(5, 2, 26, dtype=F64).to_sparse(),
            "quantized": lambda: torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8),
        }.items()
    },
    "out and a graph": (
        lambda: llr.jacobian(GOOD, X, out=torch.empty(5, 2, 26, dtype=F64), create_graph=True),
        ValueError,
        "out= and create_graph=True exclude each other",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*[qQ]uantiz")
@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_that_overlaps(backend):
    model, x = mlp(3, 4, 2), samples()
    with pytest.raises((RuntimeError, ValueError), match=r"overlap|single memory location"):
        llr.jacobian(model, x, out=torch.zeros(1, dtype=F64).expand(5, 2, 26), backend=backend)
    memory = torch.randn(5 * 2 * 26, dtype=F64)
    with pytest.raises((RuntimeError, ValueError), match=r"overlap|single memory location"):
        llr.jacobian(model, memory[-15:].view(5, 3), out=memory.view(5, 2, 26), backend=backend)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_empty_layers():
    hollow = nn.Sequential(nn.Linear(3, 0), nn.Tanh(), nn.Linear(0, 2)).double()
    J = llr.jacobian(hollow, X)
    assert torch.equal(J, torch.eye(2, dtype=F64).expand(5, 2, 2))  # the last bias alone
    assert torch.equal(llr.jacobian(nn.Linear(0, 2).double(), X[:, :0]), J)


def test_a_backend_asked_for_is_not_replaced():
    model, x = make("lstm")
    with pytest.raises(ValueError, match=r"cannot be evaluated on samples .* in LSTM"):
        llr.jacobian(model, x, backend="torch")


def test_an_error_in_forward_is_passed_on():
    def broken(_: Model, __: Tensor) -> Tensor:
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        llr.jacobian(Model(broken, a=nn.Linear(3, 2)), samples(dtype=F32))


def test_plan_prints():
    model, x = mlp(10, 64, 1), samples(5, 10)
    plan = llr.plan(model, x, backend="loop")
    assert (
        str(plan)
        == "J (5, 1, 769) float64, 30.8 kB: autograd loop (asked for), 5 samples at a time"
    )
    assert (plan.shape, plan.nbytes, plan.dtype) == ((5, 1, 769), 5 * 769 * 8, F64)


def _complex(call: Callable[[Tensor, Tensor], object], what: str = "y") -> None:
    """A complex x or y is refused, and the message does not advise to drop the imaginary part."""
    x = samples(9, 2)
    y = x.sum(1, keepdim=True)
    given = (x.cdouble(), y) if what == "x" else (x, y.cdouble())
    with pytest.raises(
        TypeError, match=rf"^{what} is torch.complex128; expected real numbers"
    ) as refused:
        call(*given)
    assert ".double()" not in str(refused.value)
    assert ".to(torch.float" not in str(refused.value)


def test_complex_numbers_are_not_made_real():
    model = mlp(2, 3, 1)
    start = torch.randn(2, 13, dtype=F64)
    for call in (
        lambda x, y: landscape.criticality(model, x, y),
        lambda x, y: landscape.hessian_spectrum(model, x, y),
        lambda x, y: landscape.flow(model, x, y, [0.0, 1.0]),
        lambda x, y: lifting.lifted_critical_points(model, x, y),
        lambda x, y: recovery.recover(x, y, max_width=1),
        lambda x, y: train(model, start, x, y),
    ):
        _complex(call, "x")
        _complex(call, "y")
    for one in (llr.rank, llr.jacobian, llr.gram, llr.plan, llr.certify, landscape.rate):
        _complex(lambda x, _, one=one: one(model, x), "x")
    for call, name in (
        (lambda t: recovery.levenberg_marquardt(model, t, X[:, :2], X[:, :1]), "starts"),
        (lambda t: train(model, t, X[:, :2], X[:, :1]), "starts"),
        (lambda t: models.TwoLayer.of(t, None, t.mT), "w"),
        (lambda t: llr.tolerance(t, 2), "spectrum"),
        (lambda t: embedding.split(model, 0, 0, t), "share"),
        (lambda t: llr.model_rank(model, sampler=(t[0, 0], 1.0)), "sampler"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"{name} (is|has)") as refused:
            call(start.cdouble())
        assert ".double()" not in str(refused.value)
