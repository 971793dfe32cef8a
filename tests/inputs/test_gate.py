"""Modules that llr reads by their class compute what the class defines; others are not read."""

from __future__ import annotations

import contextlib
import os
import random

import pytest
import torch
from torch import Tensor, nn

import llr
from llr import certify

from .gate_cases import MODELS, MUTATIONS
from .gate_claims import truth, wrong

CASES = int(os.environ.get("LLR_RANDOM_CASES", "40"))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def drawn(seed: int) -> tuple[nn.Module, Tensor, list[str]]:
    """A model, samples, and one or two mutations."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    name = rng.choice(list(MODELS))
    make, shape = MODELS[name]
    model = make().double().eval()
    mutations = rng.sample(list(MUTATIONS), rng.choice([1, 1, 1, 2]))
    x = torch.randn(12, *shape).double()
    if not shape:
        x = model.pairs()  # type: ignore[operator]
    return model, x, [name, *mutations]


def judged(seed: int) -> tuple[list[str], list[str], bool]:
    """The wrong results, the name of the case, and whether the mutated model runs."""
    model, x, names = drawn(seed)
    rng = random.Random(-seed)
    with contextlib.ExitStack() as stack:
        for name in names[1:]:
            changed = MUTATIONS[name](model, rng)
            if changed is not None:
                stack.enter_context(changed)
        J = truth(model, x)
        if J is None or not bool(torch.isfinite(J).all()):
            return [], names, False
        return wrong(model, x, J, raised="dtype" in names), names, True


@pytest.mark.parametrize("name", MODELS)
def test_without_a_mutation_everything_is_read(name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    x = torch.randn(12, *shape).double() if shape else model.pairs()
    assert wrong(model, x, truth(model, x)) == []
    if name not in ("norm", "written"):
        assert certify(model, x).rank > 0


@pytest.mark.parametrize("seed", range(CASES))
def test_nothing_is_said_of_another_function(seed):
    found, names, _ = judged(seed)
    assert not found, names


def test_a_mutation_that_is_undone_is_forgotten():
    model, x = (
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(),
        torch.randn(4, 2).double(),
    )
    assert llr.plan(model, x).backend == "native" or not llr.info()
    model[1].forward = torch.sin
    assert llr.plan(model, x).backend == "torch"
    del model[1].forward
    assert "Tanh" not in llr.plan(model, x).reason
