"""Which parameters are columns, and where: params= in all its forms, and llr.layout."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.oracles import assert_matches, mlp
from torch import Tensor, nn
from torch.func import stack_module_state

import llr
from llr.jacobians import reference

F64 = torch.float64
BACKENDS = ["auto", "torch", "loop"]


class Shared(nn.Module):
    """One weight in two places, and another parameter as a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.encode, self.decode = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x))) * self.scale


def normed() -> nn.Module:
    """A model that the operator cannot compute, with the same parameter names as mlp."""
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()


MODELS = {"mlp": lambda: mlp(3, 4, 2), "layer norm": normed, "shared": lambda: Shared().double()}
SELECTIONS = {
    "mlp": [
        "0.weight",
        "*.bias",
        ["2.*"],
        ["2.bias", "0.weight"],
        ["*"],
        ("0.*", "0.bias"),
        "[!0]*",
    ],
    "layer norm": ["1.*", ["0.bias", "2.weight"], "*.weight"],
    "shared": ["scale", "encode.*", ["*.bias", "scale"]],
}


def samples(n: int = 5) -> Tensor:
    return torch.randn(n, 3, dtype=F64)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(MODELS))
def test_columns_follow_named_parameters(kind, backend):
    model, x = MODELS[kind](), samples()
    J = llr.jacobian(model, x, backend=backend)
    start = 0
    for (name, columns), (expected_name, p) in zip(
        llr.layout(model).items(), model.named_parameters(), strict=True
    ):
        assert (name, columns) == (expected_name, slice(start, start + p.numel()))
        start = columns.stop
        alone = reference.jacobian(model, x, {name: p})
        assert_matches(J[..., columns], alone)
    assert J.shape[-1] == start


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "chosen"), [(k, s) for k, selections in SELECTIONS.items() for s in selections]
)
def test_names_and_globs(kind, chosen, backend):
    model, x = MODELS[kind](), samples()
    full, layout = llr.jacobian(model, x, backend=backend), llr.layout(model)
    J = llr.jacobian(model, x, params=chosen, backend=backend)
    names = list(llr.layout(model, params=chosen))
    assert names == [n for n in layout if n in names], (
        "the order is the model's, not the selection's"
    )
    assert_matches(J, torch.cat([full[..., layout[n]] for n in names], -1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(MODELS))
def test_no_graph_hangs_on_the_parameters_that_are_no_columns(kind, backend):
    model, x = MODELS[kind](), samples()
    chosen = next(iter(llr.layout(model)))
    J = llr.jacobian(model, x, params=chosen, backend=backend)
    assert not J.requires_grad
    out = torch.empty_like(J)
    assert not llr.jacobian(model, x, params=chosen, backend=backend, out=out).requires_grad


def test_selections_name_what_they_should():
    model = mlp(3, 4, 2)
    assert list(llr.layout(model, params="*.bias")) == ["0.bias", "2.bias"]
    assert list(llr.layout(model, params=["2.bias", "0.weight"])) == ["0.weight", "2.bias"]
    assert list(llr.layout(model, params="[!0]*")) == ["2.weight", "2.bias"]


def test_a_tied_weight_counts_once():
    model = Shared()
    assert llr.layout(model) == {
        "scale": slice(0, 1),
        "encode.weight": slice(1, 10),
        "encode.bias": slice(10, 13),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(MODELS))
def test_frozen_parameters_are_no_columns(kind, backend):
    model, x = MODELS[kind](), samples()
    full, layout = llr.jacobian(model, x), llr.layout(model)
    frozen = list(layout)[1]
    model.get_parameter(frozen).requires_grad_(False)
    assert frozen not in llr.layout(model)
    J = llr.jacobian(model, x, backend=backend)
    assert_matches(J, torch.cat([full[..., c] for n, c in layout.items() if n != frozen], -1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(MODELS))
def test_values_by_name(kind, backend):
    model, x = MODELS[kind](), samples()
    changed = {name: v + 0.5 for name, v in values(model).items()}
    expected = reference.jacobian(model, x, changed)
    backwards = dict(reversed(changed.items()))
    assert_matches(llr.jacobian(model, x, params=backwards, backend=backend), expected)
    # Only some parameters: the others keep their values, and are not columns.
    name, value = list(changed.items())[1]
    J = llr.jacobian(model, x, params={name: value}, backend=backend)
    assert_matches(J, reference.jacobian(model, x, {name: value}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(MODELS))
def test_values_of_frozen_parameters_make_columns(kind, backend):
    model, x = MODELS[kind](), samples()
    model.requires_grad_(False)
    expected = reference.jacobian(model, x, values(model))
    assert_matches(llr.jacobian(model, x, params=values(model), backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("n", [0, 1, 5])
def test_parameter_points(kind, n, backend):
    models = [MODELS[kind]() for _ in range(3)]
    stacked = {k: v.detach() for k, v in stack_module_state(models)[0].items()}
    if kind == "shared":  # stack_module_state stacks a shared weight under each of its names
        stacked.pop("decode.weight", None)
    x = samples(n)
    J = llr.jacobian(models[0], x, params=stacked, backend=backend)
    assert J.shape[:2] == (3, n)
    for i, model in enumerate(models):
        assert_matches(J[i], llr.jacobian(model, x, backend="loop"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(MODELS))
def test_parameter_points_with_the_rest_frozen(kind, backend):
    model, x = MODELS[kind](), samples()
    name, value = list(values(model).items())[1]
    points = {name: torch.stack([value, value + 1, -value])}
    for p in model.parameters():
        p.requires_grad_(False)
    J = llr.jacobian(model, x, params=points, backend=backend)
    assert J.shape == (3, 5, J.shape[2], value.numel())
    for i in range(3):
        assert_matches(J[i], reference.jacobian(model, x, {name: points[name][i]}))


@pytest.mark.parametrize("backend", ["auto", "torch", "loop"])
def test_parameter_points_with_chunks_and_out(backend):
    models = [mlp(3, 4, 2) for _ in range(3)]
    stacked = {k: v.detach() for k, v in stack_module_state(models)[0].items()}
    x = samples()
    expected = llr.jacobian(models[0], x, params=stacked)
    out = torch.full(expected.shape, float("nan"), dtype=F64)
    J = llr.jacobian(models[0], x, params=stacked, chunk_size=2, out=out, backend=backend)
    assert J is out
    assert_matches(out, expected)


BAD: dict[str, tuple[object, type[Exception], str]] = {
    "no match": (
        "3.*",
        ValueError,
        "'3.*' matches no parameter; expected one of 0.weight, 0.bias, 2",
    ),
    "one of two": (["0.*", "9"], ValueError, "'9' matches no parameter"),
    "nothing": ([], ValueError, "params is empty"),
    "an entry": ([3], TypeError, "an entry of type int"),
    "no values": ({}, ValueError, "params is empty; expected at least one tensor"),
    "unknown name": (
        {"0.weigth": torch.ones(4, 3, dtype=F64)},
        ValueError,
        "params has '0.weigth', which the model does not have; expected names among 0.weight, 0.bias",
    ),
    "shape": (
        {"0.bias": torch.ones(5, dtype=F64)},
        ValueError,
        "params['0.bias'] has shape (5,); expected (4,), or (B, *(4,))",
    ),
    "shape of points": (
        {"0.bias": torch.ones(2, 5, dtype=F64)},
        ValueError,
        "params['0.bias'] has shape (2, 5); expected (4,)",
    ),
    "other points": (
        {"0.bias": torch.ones(2, 4, dtype=F64), "2.bias": torch.ones(3, 2, dtype=F64)},
        ValueError,
        "params['2.bias'] has shape (3, 2), which makes 3 parameter points, but the others make 2",
    ),
    "single and points": (
        {"0.bias": torch.ones(4, dtype=F64), "2.bias": torch.ones(3, 2, dtype=F64)},
        ValueError,
        "but the others make a single parameter point; expected one leading size for all",
    ),
    "no points": (
        {"0.bias": torch.ones(0, 4, dtype=F64)},
        ValueError,
        "params has no parameter points (leading size 0); expected at least one",
    ),
    "no tensor": ({"0.bias": [1, 2, 3, 4]}, TypeError, "params['0.bias'] is list; expected"),
    "dtype": (
        {"0.bias": torch.ones(4)},
        TypeError,
        "x is torch.float64 but the parameters are torch.float32",
    ),
    "dtypes": (
        {"0.bias": torch.ones(4, dtype=F64), "2.bias": torch.ones(2)},
        TypeError,
        "mixed dtypes: '0.bias' is torch.float64, '2.bias' is torch.float32; expected one",
    ),
    "integers": (
        {"0.bias": torch.ones(4, dtype=torch.long)},
        TypeError,
        "parameter '0.bias' is torch.int64; expected float32 or float64",
    ),
    "NaN": (
        {"0.bias": torch.tensor([1, 2, float("nan"), 4], dtype=F64)},
        ValueError,
        "parameter '0.bias' is nan at index (2,); expected finite numbers",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_params(case):
    params, kind, message = BAD[case]
    with pytest.raises(kind, match=re.escape(message)):
        llr.jacobian(mlp(3, 4, 2), samples(), params=params)


def test_only_frozen_parameters_match():
    model = mlp(3, 4, 2)
    model[0].requires_grad_(False)
    for find in (llr.layout, lambda m, params: llr.jacobian(m, samples(), params=params)):
        with pytest.raises(
            ValueError, match=r"'0\.\*' matches only frozen parameters; set requires_grad=True"
        ):
            find(model, params="0.*")


@pytest.mark.parametrize(
    "model", [nn.Tanh(), mlp(3, 2).requires_grad_(False)], ids=["none", "frozen"]
)
def test_no_trainable_parameters(model):
    total = len(list(model.parameters()))
    message = rf"{type(model).__name__} has no trainable parameters \({total} in all"
    with pytest.raises(ValueError, match=message):
        llr.jacobian(model, samples())
    with pytest.raises(ValueError, match=message):
        llr.layout(model)


def test_a_long_list_of_names_is_cut_short():
    with pytest.raises(
        ValueError, match=r"expected one of 0.weight.*10.bias, \.\.\. \(20 in all\)"
    ):
        llr.layout(mlp(*[2] * 11), params="nothing")
