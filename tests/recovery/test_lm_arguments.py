"""Arguments that `levenberg_marquardt` and `Damping` refuse, with and without the native library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llr.recovery import Damping, Fits, levenberg_marquardt

from .test_lm import problem, without_library

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native:RuntimeWarning")


def fit(case: str = "two-layer", **changes: Any) -> Callable[[], Fits]:
    """A call with some arguments replaced, by values or by functions of the old values."""

    def call() -> Fits:
        model, theta, x, y = problem(case, sets=1)
        arguments: dict[str, Any] = {"model": model, "starts": theta, "x": x[0], "y": y[0]}
        for name, value in changes.items():
            changed = name in arguments and name != "model" and callable(value)
            arguments[name] = value(arguments[name]) if changed else value
        return levenberg_marquardt(**arguments)

    return call


def spoiled(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(t: Tensor) -> Tensor:
        t = t.clone()
        t[1, 0] = value
        return t

    return spoil


BAD: dict[str, tuple[Callable[[], Fits], type[Exception], str]] = {
    "model": (
        fit(model=torch.tanh),
        TypeError,
        "model is builtin_function_or_method; expected an nn.Module",
    ),
    "starts": (fit(starts="0"), TypeError, r"starts is str; expected a tensor"),
    "starts dtype": (
        fit(starts=Tensor.float),
        TypeError,
        r"float32; expected float64 \(starts.double",
    ),
    "starts shape": (fit(starts=lambda t: t[0]), ValueError, r"shape \(15,\); expected \(S, P\)"),
    "columns": (
        fit(starts=lambda t: t[:, 1:]),
        ValueError,
        r"shape \(5, 14\); expected \(S, 15\), a column for each trainable parameter",
    ),
    "x": (fit(x=None), TypeError, "x is NoneType; expected a tensor"),
    "y dtype": (fit(y=Tensor.float), TypeError, r"y is torch.float32; expected float64"),
    "y shape": (fit(y=lambda t: t[:, 0]), ValueError, r"y has shape \(20,\); expected \(n, q\)"),
    "samples": (
        fit(y=lambda t: t[1:]),
        ValueError,
        r"x has shape \(1, 20, 3\) and y \(1, 19, 1\); expected as many samples in both",
    ),
    "no samples": (
        fit(x=lambda t: t[:0], y=lambda t: t[:0]),
        ValueError,
        "expected at least one sample",
    ),
    "outputs": (
        fit(y=lambda t: t.expand(20, 2)),
        ValueError,
        r"y has shape \(1, 20, 2\); expected 1 numbers for each sample",
    ),
    "outputs of others": (
        fit("tied", y=lambda t: t[:, :2]),
        ValueError,
        r"y has shape \(1, 7, 2\); expected 3 numbers for each sample",
    ),
    "inputs": (fit(x=lambda t: t[:, :2]), ValueError, "2"),
    "damping name": (
        fit(damping="quick"),
        ValueError,
        "damping is 'quick'; expected 'fast', 'slow'",
    ),
    "damping type": (fit(damping=1.0), TypeError, "damping is float; expected 'fast', 'slow' or"),
    "tol": (fit(tol=-1.0), ValueError, "tol is -1.0; expected a finite number, 0 or more"),
    "tol type": (fit(tol="small"), ValueError, "tol is 'small'; expected a finite number"),
    "which": (fit(which="0"), TypeError, "which is str; expected a tensor"),
    "which dtype": (
        fit(which=torch.zeros(5)),
        TypeError,
        "which is torch.float32; expected integers",
    ),
    "which shape": (
        fit(which=torch.zeros(4, dtype=torch.int64)),
        ValueError,
        r"which has shape \(4,\); expected \(5,\)",
    ),
    "set": (
        fit(which=torch.tensor([0, 0, 0, 1, 0])),
        ValueError,
        r"which\[3\] is 1; expected a data set from 0 to 0",
    ),
    "sets without which": (
        fit(x=lambda t: t.expand(3, 20, 3), y=lambda t: t.expand(3, 20, 1)),
        ValueError,
        "there are 3 data sets and 5 starts; expected which=",
    ),
    "no numbers": (
        fit(y=lambda t: t.to("meta")),
        TypeError,
        "y is on the meta device, which holds",
    ),
    "large targets": (
        fit(y=lambda t: t * 1e200),
        ValueError,
        "y of data set 0 has a sum of squares of inf; .*: scale them",
    ),
    "small targets": (fit(y=lambda t: t * 1e-200), ValueError, "has a sum of squares of 0.0"),
    "random": (
        fit(model=nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1))),
        ValueError,
        "Dropout '1' is active",
    ),
    "row": (
        fit("factorization", x=lambda t: t + torch.tensor([1, 0])),
        ValueError,
        r"x has the index pair \(3, 1\); expected rows from 0 to 2 and columns from 0 to 3",
    ),
    "negative column": (
        fit("factorization", x=lambda t: t - torch.tensor([0, 1])),
        ValueError,
        r"x has the index pair \(0, -1\); expected rows",
    ),
    **{
        f"{value} in {name}": (
            fit(**{name: spoiled(value)}),
            ValueError,
            f"{name} (is {value} at|has a NaN or an infinity)",
        )
        for name, value in itertools.product(("starts", "x", "y"), (math.nan, math.inf, -math.inf))
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("case", ["row", "NaN in x", "random", "inputs", "outputs"])
def test_bad_arguments_without_the_library(case, monkeypatch):
    without_library(monkeypatch)
    call, error, message = BAD[case.replace("NaN", "nan")]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, "start is 0.0; expected a positive number"),
        ({"start": math.inf}, "start is inf"),
        ({"down": "half"}, "down is 'half'"),
        ({"down": 1.5}, r"down is 1.5 and up is 3.0; expected down <= 1 < up"),
        ({"up": 1.0}, r"down is 0.2 and up is 1.0; expected down <= 1 < up"),
        ({"progress": 1.0}, "progress is 1.0; expected 0 <= progress < 1"),
        ({"progress": math.nan}, "progress is nan"),
        ({"stall": 0}, "stall is 0; expected an integer, at least 1"),
        ({"iterations": -1}, "iterations is -1; expected an integer, at least 0"),
        ({"iterations": 1.5}, "iterations is 1.5"),
    ],
)
def test_bad_damping(options, message):
    with pytest.raises(ValueError, match=message):
        Damping(**options)
