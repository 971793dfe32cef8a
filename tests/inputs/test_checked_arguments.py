"""Arguments that are checked even if they are not needed, and arguments that exclude each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import llr
from llr import landscape, theory
from llr.models import MatrixFactorization, TwoLayer, mlp
from llr.theory.spans import neurons

NET = mlp([2, 3, 1], generator=torch.Generator().manual_seed(0)).double()
X = torch.randn(20, 2, generator=torch.Generator().manual_seed(1)).double()
LINE = torch.linspace(-1, 1, 5).double()[:, None]
ONE = TwoLayer(1, 2)
SPECTRUM = torch.tensor([3.0, 1.0])


def descend(**options: Any) -> None:
    landscape.flow(ONE.double(), LINE, LINE.sin(), **options)


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "rtol of a proof": (
        lambda: llr.rank(NET, X, method="certified", rtol=1e-3),
        ValueError,
        "rtol and atol count singular values above a tolerance",
    ),
    "atol of a proof": (
        lambda: llr.rank(NET, X, method="certified", atol=0.1),
        ValueError,
        "omit one of them",
    ),
    "resolve": (lambda: llr.rank(NET, X, resolve="yes"), ValueError, "resolve is 'yes'"),
    "no bits": (lambda: llr.rank(NET, X, max_bits=0), ValueError, "max_bits is 0; expected an"),
    "few bits": (lambda: llr.rank(NET, X, max_bits=10), ValueError, "max_bits is 10"),
    "ascending": (
        lambda: llr.tolerance(SPECTRUM.flip(0), 2),
        ValueError,
        "spectrum is no list of singular values",
    ),
    "negative": (lambda: llr.tolerance(-SPECTRUM.flip(0), 2), ValueError, "no list of singular"),
    "NaN": (lambda: llr.tolerance(SPECTRUM * math.nan, 2), ValueError, "no list of singular"),
    "short side": (lambda: llr.tolerance(SPECTRUM, -1), ValueError, "short_side is -1"),
    "long side": (lambda: llr.tolerance(SPECTRUM, 10**30), ValueError, "expected min(m, n)"),
    "digits": (
        lambda: llr.numerical_rank(torch.eye(2), rtol=10**400),
        ValueError,
        "rtol is an integer of 1329 bits",
    ),
    "budget": (
        lambda: llr.set_memory_budget(10**400),
        ValueError,
        "memory budget is beyond 2^128; expected a positive number of bytes",
    ),
    "times": (
        lambda: descend(times=[0.0, math.inf]),
        ValueError,
        "expected at least two increasing finite numbers from 0 on",
    ),
    "margin": (
        lambda: llr.model_rank(NET, margin=10**9),
        ValueError,
        "margin is 1000000000; expected an integer from 1 to 1000000",
    ),
    "neurons of an LSTM": (
        lambda: neurons.independence(nn.LSTM(2, 2)),
        ValueError,
        "what samples a LSTM takes cannot be read off it; give x=",
    ),
    "three layers": (
        lambda: theory.generic_rank(mlp([2, 3, 2, 1])),
        ValueError,
        "architecture is a network of more than two layers; expected a two-layer network",
    ),
    "factors": (
        lambda: theory.generic_rank(MatrixFactorization(3, 2, 3)),
        ValueError,
        "architecture is a matrix factorization; expected",
    ),
    "no network": (lambda: theory.generic_rank(3), TypeError, "architecture is int; expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=re.escape(message)) as found:
        call()
    assert "sample_shape" not in str(found.value)
    assert "\n" not in str(found.value)


def test_a_budget_that_was_refused_is_not_in_force() -> None:
    before = llr.memory_budget()
    with pytest.raises(ValueError, match="memory budget"):
        llr.set_memory_budget(2**63)
    assert llr.memory_budget() < 2**62
    assert before < 2**62


def test_a_flow_that_takes_too_long_says_what_to_change() -> None:
    with pytest.raises(RuntimeError, match=r"max_evaluations=1 gradients\. Raise max_evaluations"):
        descend(times=[0.0, 1.0], max_evaluations=1)
