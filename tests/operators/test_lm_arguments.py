"""Arguments of ``lm_solve``: layouts, shapes, and refusals."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from llr.operators import _ops

from .lm_cases import MODELS, Data, Model, Options, Result, draw, mlp, native, same

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64 = torch.float64
CASES = int(os.environ.get("LLR_RANDOM_CASES", "25"))
CONVERGED, STALLED, LIMIT, FAILED, SKIPPED = range(5)
Function = Callable[[Tensor, Tensor], Tensor]


def test_no_starts():
    for model in (MODELS["deep"], MODELS["factorization"]):
        found = native(model, draw(model, starts=0))
        assert found.theta.shape == (0, model.parameters)
        assert [len(t) for t in found] == [0] * 4
        none = draw(model, starts=0)
        found = native(model, none._replace(x=none.x[:0], y=none.y[:0]))
        assert len(found.status) == 0


def misaligned(t: Tensor) -> Tensor:
    memory = bytearray(b"-" + t.numpy().tobytes())
    return torch.frombuffer(memory, dtype=t.dtype, offset=1).view(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "last dimension first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "strided": lambda t: t.repeat_interleave(3, -1)[..., ::3],
    "between two numbers": misaligned,
    "part of something": lambda t: torch.cat([t + 1, t, t - 1])[len(t) : -len(t)],
    "lazily negated": lambda t: torch.complex(t * 0, -t).conj().imag if t.dtype == F64 else t,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts(layout):
    model = MODELS["no bias"]
    data = draw(model)
    expected = native(model, data, iterations=20)
    views = Data(*(layout(t) for t in data))
    assert all(torch.equal(v, t) for v, t in zip(views, data, strict=True))
    assert same(native(model, views, iterations=20), expected)
    assert all(torch.equal(v, t) for v, t in zip(views, data, strict=True)), "only read"
    one = data._replace(x=data.x[:1].expand(3, -1, -1), y=data.y[:1].expand(3, -1, -1))
    copies = Data(*(t.contiguous() for t in one))
    assert same(native(model, one, iterations=20), native(model, copies, iterations=20))


def test_results_are_new_tensors():
    model = MODELS["tanh"]
    data = draw(model)
    found = native(model, data, iterations=0)
    pointers = {t.untyped_storage().data_ptr() for t in (*found, *data)}
    assert len(pointers) == 8
    assert torch.equal(found.theta, data.theta)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["tanh", "deep", "conv1d", "local1d", "factorization"])
def test_opcheck(name):
    model = MODELS[name]
    description = (model.kind, list(model.sizes), model.activation, list(model.biases))
    op = torch.ops.llr.lm_solve.default
    data = draw(model)
    opcheck(op, (*data, *description), {"iterations": 3})
    opcheck(op, (*draw(model, starts=0), *description), {"first": True})
    views = Data(*(LAYOUTS["last dimension first"](t) for t in data))
    opcheck(op, (*views, *description), {"iterations": 2, "damping": 0.5})


def test_shapes_without_numbers():
    model = MODELS["deep"]
    data = draw(model)
    expected = native(model, data, iterations=0)
    found = native(model, Data(*(t.to("meta") for t in data)))
    for fake, real in zip(found, expected, strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
        assert fake.is_meta
    with pytest.raises(RuntimeError, match="x is on cpu but theta is on meta; expected one device"):
        native(model, data._replace(theta=data.theta.to("meta")))


GOOD = mlp(3, 4, 1, n=5)


def changed(model: Model = GOOD, **changes: Any) -> Callable[[], Result]:
    """A call with some arguments replaced, by values or by functions of the old values."""

    def call() -> Result:
        data, options, other = draw(GOOD)._asdict(), {}, model
        for name, value in changes.items():
            if name in data:
                data[name] = value(data[name])
            elif name in Options._fields:
                options[name] = value
            else:
                other = replace(other, **{name: value})
        return native(other, Data(**data), **options)

    return call


def spoiled(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(t: Tensor) -> Tensor:
        t = t.clone()
        t.view(-1)[-1] = value
        return t

    return spoil


def far(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.flatten()[:1].expand(shape)


FACTORS = Model("factorization", (3, 2, 4), 5, "identity")


def observed(row: float, column: float) -> Callable[[], Result]:
    def call() -> Result:
        data = draw(FACTORS)
        x = data.x.clone()
        x[-1, -1] = torch.tensor([row, column], dtype=F64)
        return native(FACTORS, data._replace(x=x))

    return call


BAD: dict[str, tuple[Callable[[], Result], str]] = {
    "kind": (
        changed(kind="cnn", biases=()),
        r"unknown kind 'cnn'; expected one of mlp, conv1d, local1d",
    ),
    "activation": (changed(activation="step"), "unknown activation 'step'; expected one of"),
    "one width": (changed(sizes=(3,), biases=()), "sizes has 1 entries; expected the widths"),
    "no width": (changed(sizes=(), biases=()), "sizes has 0 entries; expected the widths"),
    "zero width": (changed(sizes=(3, 0, 1)), r"sizes are \[3, 0, 1\]; expected positive ones"),
    "negative width": (changed(sizes=(3, -4, 1)), r"sizes are \[3, -4, 1\]"),
    "huge width": (changed(sizes=(3, 2**62, 1)), r"more than 2\^40 parameters"),
    "many wide layers": (
        changed(sizes=(1, *[2**39, 1] * 3), biases=(False,) * 6),
        r"more than 2\^40 parameters",
    ),
    "biases": (changed(biases=(True,)), "biases has 1 entries; expected 2, one per layer"),
    "biases of a convolution": (
        changed(kind="conv1d", sizes=(3, 2, 1)),
        "biases has 2 entries; expected none for conv1d",
    ),
    "sizes of a convolution": (
        changed(kind="conv1d", sizes=(3, 2), biases=()),
        r"sizes has 2 entries; expected \(d, kernel size, channels\)",
    ),
    "kernel": (
        changed(kind="local1d", sizes=(3, 4, 1), biases=()),
        r"sizes are \[3, 4, 1\]; expected a kernel no longer than d",
    ),
    "channels": (changed(kind="conv1d", sizes=(2, 1, 2**62), biases=()), r"more than 2\^40"),
    "sizes of a factorization": (
        changed(FACTORS, sizes=(3, 2, 4, 1)),
        r"sizes has 4 entries; expected \(rows, rank, columns\)",
    ),
    "activation of a factorization": (
        changed(FACTORS, activation="tanh"),
        "activation is 'tanh'; expected identity, as a factorization has none",
    ),
    "row": (observed(3, 0), "x contains the row 3; expected an integer from 0 to 2"),
    "column": (observed(0, 4), "x contains the column 4; expected an integer from 0 to 3"),
    "negative column": (observed(0, -1), "x contains the column -1; expected an integer"),
    "half a row": (observed(0.5, 0), "x contains the row 0.5; expected an integer"),
    "huge row": (observed(1e300, 0), r"x contains the row 1e\+300; expected an integer"),
    "theta dtype": (changed(theta=Tensor.float), "theta is Float; expected Double"),
    "x dtype": (changed(x=Tensor.float), "x is Float; expected Double"),
    "y dtype": (changed(y=Tensor.cfloat), "y is ComplexFloat; expected Double"),
    "which dtype": (changed(which=Tensor.int), "which is Int; expected Long"),
    "theta shape": (changed(theta=lambda t: t[0]), r"theta has shape \[21\]; expected \(S, P\)"),
    "parameters": (
        changed(theta=lambda t: t[:, 1:]),
        r"theta has shape \[11, 20\]; expected \(S, 21\) for the parameters of this model",
    ),
    "x shape": (changed(x=lambda t: t[0]), r"x has shape \[5, 3\]; expected \(B, n, inputs\)"),
    "inputs": (
        changed(x=lambda t: t[..., :2]),
        r"x has shape \[3, 5, 2\]; expected \(B, n, 3\) with n >= 1",
    ),
    "no samples": (
        changed(x=lambda t: t[:, :0], y=lambda t: t[:, :0]),
        r"x has shape \[3, 0, 3\]; expected \(B, n, 3\) with n >= 1",
    ),
    "y shape": (
        changed(y=lambda t: t[..., 0]),
        r"y has shape \[3, 5\]; expected \(B, n, outputs\)",
    ),
    "outputs": (
        changed(y=lambda t: t.expand(3, 5, 2)),
        r"y has shape \[3, 5, 2\]; expected \(3, 5, 1\) to go with x of shape \[3, 5, 3\]",
    ),
    "samples of y": (
        changed(y=lambda t: t[:, :4]),
        r"y has shape \[3, 4, 1\]; expected \(3, 5, 1\)",
    ),
    "sets of y": (changed(y=lambda t: t[:2]), r"y has shape \[2, 5, 1\]; expected \(3, 5, 1\)"),
    "which shape": (changed(which=lambda t: t[None]), r"which has shape \[1, 11\]; expected \(S\)"),
    "number of which": (
        changed(which=lambda t: t[:9]),
        r"which has shape \[9\]; expected \(11\), a data set for each row of theta",
    ),
    "set": (
        changed(which=lambda t: t + 1),
        r"which\[1\] is 3; expected a data set from 0 to 2|is 3",
    ),
    "negative set": (changed(which=lambda t: t - 1), r"which\[0\] is -1; expected a data set"),
    "no sets": (
        changed(x=lambda t: t[:0], y=lambda t: t[:0]),
        r"which\[0\] is 0; expected a data set",
    ),
    "too many samples": (
        changed(x=far(1, 2**50, 3), y=far(1, 2**50, 1), which=lambda t: t * 0),
        "do not fit into any memory",
    ),
    "targets that are too large": (
        changed(y=lambda t: t * 1e160),
        "y of data set 0 has a sum of squares of inf; expected targets of a size that can be squared",
    ),
    "targets that are too small": (
        changed(y=lambda t: torch.cat([t[:2], t[2:] * 1e-170])),
        "y of data set 2 has a sum of squares of 0; expected targets of a size that can be squared",
    ),
    **{
        f"{value} in {name}": (
            changed(**{name: spoiled(value)}),
            f"{name} has a NaN or an infinity; expected finite numbers",
        )
        for name in ("theta", "x", "y")
        for value in (math.nan, math.inf, -math.inf)
    },
    **{
        f"{name} {value}": (changed(**{name: value}), message)
        for name, value, message in (
            ("damping", 0.0, "damping is 0; expected a positive number"),
            ("damping", math.nan, "damping is nan"),
            ("damping", math.inf, "damping is inf"),
            ("down", -0.5, "down is -0.5; expected a positive number"),
            ("down", 1.5, "down is 1.5 and up is 3; expected down <= 1 < up"),
            ("up", 1.0, "down is 0.2 and up is 1; expected down <= 1 < up"),
            ("up", math.inf, "up is inf; expected a positive number"),
            ("progress", 1.0, "progress is 1; expected 0 <= progress < 1"),
            ("progress", -0.1, "progress is -0.1"),
            ("progress", math.nan, "progress is nan"),
            ("stall", 0, "stall is 0; expected at least 1"),
            ("iterations", -1, "iterations is -1; expected at least 0"),
            ("tol", -1e-9, "tol is -1e-09; expected a number >= 0"),
            ("tol", math.nan, "tol is nan"),
        )
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, message = BAD[case]
    with pytest.raises(RuntimeError, match=f"lm_solve: .*{message}"):
        call()


def test_good_arguments_are_good():
    changed()()
    observed(2, 3)()
    native(replace(FACTORS), draw(FACTORS))
