"""Levenberg-Marquardt as users call it: native, in torch operations, and compared with scipy."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.gpu_stand_in import GPU, on_gpu, stand_in
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import llr
from llr.inputs import warned as warnings_of_llr
from llr.inputs.problem import read_problem
from llr.models import TwoLayer
from llr.operators import _ops
from llr.recovery import Damping, Fits, initial, levenberg_marquardt, lm_native, lm_reference
from llr.recovery.damping import CONVERGED, DAMPING, SKIPPED, STATUS

from .lm_cases import (
    F64,
    KNOWN,
    OTHERS,
    native,
    normal,
    placed,
    problem,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native:RuntimeWarning")


def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "NATIVE", False)
    monkeypatch.setattr(_ops, "REASON", "it was left out")


def agree(one: Fits, other: Fits, allowed: float = 1e-9) -> None:
    assert one.status == other.status
    assert torch.equal(one.iterations, other.iterations)
    assert float((one.theta - other.theta).abs().max()) <= allowed * float(other.theta.abs().max())
    assert float((one.loss.sqrt() - other.loss.sqrt()).abs().max()) <= allowed


# --- Native and in torch operations ----------------------------------------------------------------


@native
@pytest.mark.parametrize("case", KNOWN)
def test_without_the_library_the_same_steps(case, monkeypatch):
    model, theta, x, y = problem(case)
    which = torch.tensor([2, 0, 1, 1, 0])
    if case == "flattened":
        assert x.shape == (3, 30, 2, 3)
    for iterations in (0, 1, 6):
        options = {"which": which, "damping": Damping(iterations=iterations)}
        here = levenberg_marquardt(model, theta, x, y, **options)
        with monkeypatch.context() as patch:
            without_library(patch)
            there = levenberg_marquardt(model, theta, x, y, **options)
        assert (here.method, there.method) == ("native", "torch: it was left out")
        linear = case == "linear"  # reaches the minimum at once, where rounding decides
        agree(here, there, 1e-7 if linear else 1e-9)
        for i in range(5):
            outputs = here.model(i)(x[which[i]]).reshape(y[0].shape)
            loss = (outputs - y[which[i]]).detach().square().mean()
            assert float(here.loss[i]) == pytest.approx(float(loss), rel=1e-12)


@pytest.mark.parametrize("case", OTHERS)
def test_other_models_go_through_torch(case):
    model, theta, x, y = problem(case)
    fits = levenberg_marquardt(model, theta, x[0], y[0])
    assert fits.method.startswith(f"torch: {type(model).__name__} is none of the models")
    before = levenberg_marquardt(model, theta, x[0], y[0], damping=Damping(iterations=0)).loss
    for i in range(5):
        r = fits.model(i)(x[0]).reshape(y[0].shape) - y[0]
        assert float(fits.loss[i]) == pytest.approx(float(r.detach().square().mean()), rel=1e-10)
        assert fits.loss[i] < before[i]


def test_a_frozen_parameter_stays():
    model, theta, x, y = problem("frozen")
    assert theta.shape == (5, 22)
    bias = model[0].bias.clone()
    fits = levenberg_marquardt(model, theta, x[0], y[0])
    for i in range(5):
        assert torch.equal(fits.model(i)[0].bias, bias.double())
    assert (
        fits.loss
        < levenberg_marquardt(model, theta, x[0], y[0], damping=Damping(iterations=0)).loss
    ).all()


def test_a_wrong_jacobian_is_noticed(monkeypatch):
    """A planted bug: the wrong sign of the first layer's derivatives."""
    model, theta, x, y = problem("two-layer")
    options = {"damping": Damping(iterations=6)}
    here = levenberg_marquardt(model, theta, x[0], y[0], **options)
    right = lm_reference.mlp_jacobian

    def wrong(*arguments: Any) -> Tensor:
        J = right(*arguments).clone()
        J[..., :9] *= -1
        return J

    monkeypatch.setattr(lm_reference, "mlp_jacobian", wrong)
    without_library(monkeypatch)
    with pytest.raises(AssertionError):
        agree(here, levenberg_marquardt(model, theta, x[0], y[0], **options))


def test_closed_form_and_torch_func_are_the_same_functions():
    model, theta, x, _ = problem("deep")
    general = lm_reference.of_problem(read_problem(model, x[0], None, F64))
    known = lm_reference.of_mlp((3, 4, 3, 2), (True, True, True), "softplus")
    sets = x[torch.tensor([2, 0, 1, 1, 0])]
    for a, b in zip(general, known, strict=True):
        assert float((a(theta, sets) - b(theta, sets)).abs().max()) <= 1e-13


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_the_torch_path_refills_its_pool(batch, first):
    model = TwoLayer(2, 2, bias=False)
    target = placed(TwoLayer(2, 2, bias=False), normal(6, seed=5))
    x = normal(3, 9, 2, seed=6)
    y = torch.stack([target(each) for each in x]).detach()
    y[1] += normal(9, 1, seed=7)  # noise, which no model fits
    starts = initial(model, 40, scale=0.5, generator=torch.Generator().manual_seed(1))
    functions = lm_reference.of_mlp((2, 2, 1), (False, False), "tanh")
    which = torch.arange(40) % 3
    found = lm_reference.solve(
        functions, starts, x, y, which, DAMPING["fast"], 1e-20, first=first, batch=batch
    )
    every = levenberg_marquardt(model, starts, x, y, which=which, damping="fast")
    for k in range(3):
        mine = (which == k).nonzero()[:, 0]
        won = mine[every.converged[mine]]
        assert (k == 1) == (len(won) == 0)
        last = int(won[0]) if first and len(won) else 40
        assert torch.equal(found.status[mine] == SKIPPED, mine > last)
    kept = found.status != SKIPPED
    assert torch.equal((found.status == CONVERGED)[kept], every.converged[kept])
    assert torch.equal(found.theta[~kept], starts[~kept])
    assert found.loss[~kept].isinf().all()
    assert not found.iterations[~kept].any()


@native
@pytest.mark.parametrize("first", [False, True])
def test_blocks_of_starts_do_not_change_the_results(monkeypatch, first):
    target, x = TwoLayer(2, 2, bias=False).double(), normal(12, 2)
    y = target(x).detach()
    starts = initial(target, 300, generator=torch.Generator().manual_seed(1))
    sets = x.expand(3, -1, -1).contiguous(), torch.stack([y, y + 0.3, 2 * y])
    which = torch.arange(300) % 3
    whole = levenberg_marquardt(target, starts, *sets, which=which, first=first)
    monkeypatch.setattr(lm_native, "_BLOCK_FLOPS", 0)
    calls: list[tuple[int, int]] = []
    parts = levenberg_marquardt(
        target, starts, *sets, which=which, first=first, progress=lambda *c: calls.append(c)
    )
    for name in ("theta", "loss", "relative", "iterations", "codes"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
    assert bool(whole.converged.any())
    assert len(calls) > 3
    assert calls[-1] == (300, 300)


# --- What it says ------------------------------------------------------------------------------------


def test_a_function_is_found_again():
    """The optimistic sample size of two tanh neurons is 6; two samples more, and 40 starts."""
    found = 0
    for seed in range(5):
        target = placed(TwoLayer(2, 2, bias=False), normal(6, seed=seed))
        x, fresh = normal(8, 2, seed=seed + 20), normal(100, 2, seed=99)
        model = TwoLayer(2, 2, bias=False)
        before = parameters_to_vector(model.parameters()).clone()
        starts = initial(model, 40, scale=0.1, generator=torch.Generator().manual_seed(seed))
        y = target(x).detach()
        fits = levenberg_marquardt(model, starts, x, y)
        assert torch.equal(parameters_to_vector(model.parameters()), before)
        for i in fits.converged.nonzero()[:, 0].tolist():
            error = (fits.model(i)(fresh) - target(fresh)).square().mean()
            found += bool(error < 1e-12 * target(fresh).square().mean())
            assert float(fits.relative[i]) <= 1e-20
            assert float(fits.loss[i]) == pytest.approx(
                float(fits.relative[i]) * float(y.square().mean()), rel=1e-12
            )
        assert str(fits).startswith("40 starts: ")
        assert f"{int(fits.converged.sum())} converged" in str(fits)
        assert fits.status == [STATUS[c] for c in fits.codes]
    assert found >= 50


@native
@pytest.mark.usefixtures("threads")
def test_the_same_bits_for_a_seed_on_any_number_of_threads():
    model, theta, x, y = problem("deep", starts=50)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        theta = initial(model, 50, scale=0.3, generator=torch.Generator().manual_seed(7))
        fits = levenberg_marquardt(model, theta, x, y, which=torch.arange(50) % 3, first=True)
        found.append(fits)
    for other in found[1:]:
        for name in ("theta", "loss", "relative", "iterations", "codes"):
            assert torch.equal(getattr(found[0], name), getattr(other, name))


def test_data_sets_and_their_starts():
    model, theta, x, y = problem("two-layer", starts=3)
    each = levenberg_marquardt(model, theta, x, y)  # one data set for each
    named = levenberg_marquardt(
        model, theta, x, y, which=torch.tensor([0, 1, 2], dtype=torch.int32)
    )
    agree(each, named, 0.0)
    for i in range(3):
        alone = levenberg_marquardt(model, theta[i : i + 1], x[i], y[i])
        assert torch.equal(alone.codes, each.codes[i : i + 1])
        assert torch.allclose(alone.theta[0], each.theta[i], rtol=1e-6)
    none = levenberg_marquardt(model, theta[:0], x[0], y[0])
    assert (none.theta.shape, none.status, str(none)) == ((0, 15), [], "0 starts: ")


def test_dampings_by_name_are_their_numbers():
    model, theta, x, y = problem("no bias", sets=1)
    found = {}
    for name, numbers in {"fast": Damping(), "slow": Damping(10.0, 0.7, 2.0, 40, 250)}.items():
        found[name] = levenberg_marquardt(model, theta, x[0], y[0], damping=name)
        agree(found[name], levenberg_marquardt(model, theta, x[0], y[0], damping=numbers), 0.0)
    assert not torch.equal(found["fast"].theta, found["slow"].theta)
    assert (found["slow"].iterations <= 250).all()


def test_targets_that_are_all_zero():
    model, theta, x, y = problem("two-layer", sets=1)
    fits = levenberg_marquardt(model, theta, x[0], 0 * y[0], tol=1e-10)
    assert fits.converged.all()
    assert torch.equal(fits.relative, fits.loss)
    assert (fits.loss <= 1e-10).all()


def test_a_start_whose_loss_overflows():
    for case in ("two-layer", "tied"):
        model, theta, x, y = problem(case, sets=1)
        theta[2] = 1e200
        fits = levenberg_marquardt(model, theta, x[0], y[0])
        assert fits.status[2] == "failed"
        assert "failed" not in fits.status[:2] + fits.status[3:]
        assert torch.equal(fits.theta[2], theta[2])
        assert float(fits.loss[2]) == math.inf == float(fits.relative[2])


def test_what_the_caller_may_have_switched_on():
    model, theta, x, y = problem("two-layer", sets=1)
    expected = levenberg_marquardt(model, theta, x[0], y[0])
    with torch.inference_mode():
        agree(levenberg_marquardt(model, theta.clone(), x[0].clone(), y[0].clone()), expected, 0.0)
    tracked = levenberg_marquardt(model, theta.requires_grad_(), x[0].requires_grad_(), y[0])
    agree(tracked, expected, 0.0)
    assert not tracked.theta.requires_grad
    x32 = x[0].detach().float()
    agree(
        levenberg_marquardt(model, theta, x32, y[0]),
        levenberg_marquardt(model, theta, x32.double(), y[0]),
        0.0,
    )


def test_without_the_library_it_says_so(monkeypatch):
    model, theta, x, y = problem("two-layer", sets=1)
    without_library(monkeypatch)
    warnings_of_llr._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="without its native library") as warned:
        fits = levenberg_marquardt(model, theta, x[0], y[0])
    warnings_of_llr._warn_once.cache_clear()
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert fits.method == "torch: it was left out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as with the native library
        levenberg_marquardt(*problem("tied", sets=1)[:2], *(t[0] for t in problem("tied")[2:]))


@pytest.mark.parametrize("case", ["two-layer", "deep"])
def test_on_a_gpu_it_runs_in_torch_operations(case, monkeypatch):
    model, theta, x, y = problem(case, sets=1)
    options = {"damping": Damping(iterations=6)}
    here = levenberg_marquardt(model, theta, x[0], y[0], **options)
    with stand_in(monkeypatch) as calls:
        there = levenberg_marquardt(
            on_gpu(model), on_gpu(theta), on_gpu(x[0]), on_gpu(y[0]), **options
        )
        assert there.theta.device == GPU
        known = f"the native library fits on the CPU only, not on {GPU}"
        assert there.method == f"torch: {known}"
        assert "lm_solve" not in " ".join(calls.operators_called)
        moved = replace(
            there,
            **{n: getattr(there, n).cpu() for n in ("theta", "loss", "iterations", "codes")},
        )
    agree(moved, here)


@native
@pytest.mark.usefixtures("threads")
def test_memory():
    model, theta, x, y = problem("two-layer", sets=1)
    one = 8 * (20 * 15 + 3 * 15**2)
    torch.set_num_threads(1)
    with llr.set_memory_budget(8 * one):
        here = levenberg_marquardt(model, theta, x[0], y[0], damping=Damping(iterations=5))
    with llr.set_memory_budget(8 * one - 1):
        there = levenberg_marquardt(model, theta, x[0], y[0], damping=Damping(iterations=5))
    assert here.method == "native"
    assert there.method.startswith("torch: 8 simultaneous starts take ")
    agree(here, there)
    with llr.set_memory_budget(one - 1), pytest.raises(ValueError, match="of one start take 7"):
        levenberg_marquardt(model, theta, x[0], y[0])
