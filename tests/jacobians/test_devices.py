"""llr on a GPU: which code computes, the messages if there is none, the same results as on the CPU.

Without a GPU, a stand-in replaces it: with the CPU's operators, and with the emulated CUDA kernels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import targets
from helpers.gpu_stand_in import GPU, NAME, OnGPU, forget, on_gpu, stand_in
from helpers.models import EVERY, F64, LOOPED, make, samples
from helpers.oracles import assert_matches, mlp
from torch import Tensor, nn

import llr
from llr.inputs import warned
from llr.inputs.problem import read_problem
from llr.jacobians.gram import evaluate_gram
from llr.jacobians.jacobian import evaluate
from llr.operators import _ops

pytestmark = [
    pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON),
]
Move = Callable[[Any], Any]


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def move(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Move]:
    """A function that copies a model or a tensor to a GPU."""
    if request.param == "cuda":
        targets.require_gpus()
        yield lambda value: copy.deepcopy(value).to("cuda")
        return
    operators = targets.emulated() if request.param == "emulated" else torch.ops.llr
    with stand_in(monkeypatch, operators=operators):
        yield on_gpu


@pytest.fixture
def no_memory_of_warnings() -> Iterator[None]:
    forget()
    yield
    forget()


# --- where there are kernels --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_operators_compute_networks(dtype, move):
    model, x = mlp(3, 17, 5, 2).to(dtype), samples(40, 3).to(dtype)
    there, x_there = move(model), move(x)
    J, path = evaluate(there, x_there)
    assert (J.device.type, path) == ("cuda", "native mlp")
    assert_matches(J.cpu(), llr.jacobian(model, x), None if dtype == F64 else 1e-6)
    out = torch.empty_like(J)
    assert llr.jacobian(there, x_there, out=out) is out
    assert torch.equal(out, J)
    assert llr.plan(there, x_there, backend="native").backend == "native"
    for precision in ("float64", "double-double"):
        K, path = evaluate_gram(read_problem(there, x_there, None, F64), precision=precision)
        assert (K.device.type, path) == ("cuda", "native mlp")
        assert_matches(K.cpu(), llr.gram(model, x, precision=precision))


def test_parameter_points(move):
    model, x = mlp(3, 9, 2), samples(7, 3)
    points = {name: torch.randn(4, *p.shape, dtype=F64) for name, p in model.named_parameters()}
    there = {name: move(p) for name, p in points.items()}
    assert_matches(
        llr.jacobian(move(model), move(x), params=there).cpu(),
        llr.jacobian(model, x, params=points),
    )
    assert torch.equal(
        llr.rank(move(model), move(x), params=there).rank.cpu(),
        llr.rank(model, x, params=points).rank,
    )


def symmetric() -> nn.Sequential:
    """A model with every neuron twice: the two have the same five directions."""
    model = mlp(3, 10, 1)
    with torch.no_grad():
        model[0].weight[5:], model[0].bias[5:] = model[0].weight[:5], model[0].bias[:5]
    return model


RANKED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "few samples": (lambda: mlp(3, 16, 2), lambda: samples(20, 3), 40),
    "many samples": (lambda: mlp(3, 16, 1), lambda: samples(150, 3), 81),
    "symmetric": (symmetric, lambda: samples(90, 3), 26),
    "the same samples": (lambda: mlp(3, 8, 2), lambda: samples(3, 3).repeat(5, 1), 6),
    "deep": (lambda: mlp(4, 6, 5, 3), lambda: samples(12, 4), 36),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double(),
        lambda: samples(5, 3),
        10,
    ),
}


@pytest.mark.parametrize("method", ["auto", "svd", "tsqr", "gram", "certified"])
@pytest.mark.parametrize("case", list(RANKED))
def test_the_same_rank(case, method, move):
    if case == "layer norm" and method == "certified":
        pytest.skip("has no certificate")
    make_model, make_samples, rank = RANKED[case]
    model, x = make_model(), make_samples()
    here, there = llr.rank(model, x, method=method), llr.rank(move(model), move(x), method=method)
    assert here.rank == there.rank == rank
    assert there.spectrum.device.type == "cuda"
    assert_matches(there.spectrum.cpu(), here.spectrum)
    assert (there.ambiguous, there.method, there.path) == (here.ambiguous, here.method, here.path)


@pytest.mark.parametrize("case", list(EVERY))
def test_every_model(case, move):
    if case in LOOPED and move is on_gpu:
        pytest.skip("RNNs ask cuDNN, which only a real GPU has")
    model, x = make(case)
    there, x_there = move(model), move(x)
    J = llr.jacobian(there, x_there)
    assert J.device.type == "cuda"
    assert_matches(J.cpu(), llr.jacobian(model, x))
    K = llr.gram(there, x_there)
    assert K.device.type == "cuda"
    assert_matches(K.cpu(), llr.gram(model, x))
    for method in ("svd", "tsqr", "gram"):
        found = llr.rank(there, x_there, method=method)
        assert found.rank == llr.rank(model, x, method=method).rank


def test_the_rank_of_a_model(move):
    model = mlp(2, 5, 1)
    assert llr.model_rank(move(model)).rank == llr.model_rank(model).rank == 21


def test_matrices(move):
    A = torch.randn(5, 30, 12, dtype=F64)
    A[..., -1] = A[..., 0]
    values = llr.svdvals(move(A))
    assert values.device.type == "cuda"
    assert_matches(values.cpu(), llr.svdvals(A))
    assert llr.numerical_rank(move(A)).rank.tolist() == [11] * 5
    A[2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"1 NaN or Inf entries .* at batch 2, row 0, column 0"):
        llr.svdvals(move(A))


def test_the_factor_of_a_gram_matrix_comes_back_to_the_gpu(move):
    model, x = mlp(3, 4, 2), samples(9, 3)
    K = llr.gram(move(model), move(x), precision="double-double").reshape(2, 18, 18)
    L = _ops.gram_factor(K)
    assert L.device.type == "cuda"
    assert_matches((L @ L.mT).cpu(), K[0].cpu(), 1e-14)


def test_first_nonfinite(move):
    clean = [torch.ones(3), torch.ones(0), torch.ones((), dtype=F64), torch.full((5,), 3e38)]
    assert _ops.first_nonfinite([move(t) for t in clean]) == -1
    for index, bad in [(0, "nan"), (2, "-inf"), (3, "inf"), (3, "nan")]:
        spoiled = [t.clone() for t in clean]
        spoiled[index].view(-1)[-1] = float(bad)
        assert _ops.first_nonfinite([move(t) for t in spoiled]) == index
        spoiled[3][0] = float("nan")
        assert _ops.first_nonfinite([move(t) for t in spoiled]) == index


def test_which_operators_are_called(monkeypatch):
    for method, operators in {
        "svd": ["mlp_jacobian", "svdvals"],
        "gram": ["mlp_gram", "svdvals"],
        "tsqr": ["svdvals"],
    }.items():
        with stand_in(monkeypatch) as calls:
            llr.rank(on_gpu(mlp(3, 4, 2)), on_gpu(samples()), method=method)
        assert calls.operators_called == operators
    with stand_in(monkeypatch) as calls:
        llr.gram(on_gpu(make("layer norm")[0]), on_gpu(make("layer norm")[1]))
    assert set(calls.operators_called) == {"gram_add_"}


def test_a_jacobian_waits_for_the_gpu_once(monkeypatch):
    """One wait, for the search for NaN in x and all six parameters."""
    with stand_in(monkeypatch) as calls:
        model, x = on_gpu(mlp(3, 4, 4, 2)), on_gpu(samples())
        llr.jacobian(model, x)
    assert calls.operators_called == ["mlp_jacobian"]
    assert calls.waits == 1


def test_the_gpus_own_memory_counts(monkeypatch):
    model, x = mlp(10, 200, 2), samples(300, 10)  # 300 x 2 x 2602 doubles: 12.5 MB
    with stand_in(monkeypatch):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (40_000_000, 2**34))
        there, x_there = on_gpu(model), on_gpu(torch.cat((x, x)))
        with pytest.raises(ValueError, match=r"25 MB .* more than the memory budget of 20 MB"):
            llr.jacobian(there, x_there)
        assert llr.jacobian(model, torch.cat((x, x))).nbytes > 20_000_000
        # Memory that torch has reserved but does not use counts as free.
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _=None: 30_000_000)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _=None: 10_000_000)
        assert llr.memory_budget("cuda") == 30_000_000
        assert llr.plan(there, x_there).nbytes > 20_000_000


# --- where there are none -----------------------------------------------------------------------------


def everything(model: nn.Module, x: Tensor) -> tuple[Tensor, str]:
    """Calls of every kind that use kernels if there are any."""
    J, path = evaluate(model, x)
    llr.plan(model, x)
    llr.gram(model, x)
    llr.rank(model, x)
    llr.rank(model, x, method="gram")
    llr.svdvals(x)
    return J, path


@pytest.mark.usefixtures("no_memory_of_warnings")
def test_a_build_without_cuda_kernels_falls_back_with_one_warning(monkeypatch):
    model, x = mlp(3, 4, 2), samples()
    with stand_in(monkeypatch, cuda_reason="no nvcc was found") as calls:
        there, x_there = on_gpu(model), on_gpu(x)
        with pytest.warns(RuntimeWarning) as warned:
            J, path = evaluate(there, x_there)
        everything(there, x_there)  # another warning would be an error
        assert llr.plan(there, x_there).reason == "no CUDA kernels in this build: no nvcc was found"
        for compute in (llr.jacobian, llr.gram):
            with pytest.raises(ValueError, match=r"backend='native' .*: no nvcc was found"):
                compute(there, x_there, backend="native")
    [warning] = warned
    assert "without its native operators on this GPU" in str(warning.message)
    assert "no nvcc was found" in str(warning.message)
    assert warning.filename == __file__
    assert (type(J), path) == (OnGPU, "torch.func vmap")
    assert_matches(J.cpu(), llr.jacobian(model, x))
    assert calls.operators_called == []


@pytest.mark.usefixtures("no_memory_of_warnings")
def test_no_library_at_all_is_said_once_for_all_devices(monkeypatch):
    model, x = mlp(3, 4, 2), samples()
    expected = llr.jacobian(model, x)
    with stand_in(monkeypatch):
        monkeypatch.setattr(_ops, "NATIVE", False)
        monkeypatch.setattr(_ops, "REASON", "it was left out")
        with pytest.warns(RuntimeWarning, match="without its native library") as warned:
            (J, path), here = everything(on_gpu(model), on_gpu(x)), everything(model, x)
    assert len(warned) == 1
    assert_matches(here[0], expected)
    assert (J.device, path) == (GPU, "torch.func vmap")
    assert_matches(J.cpu(), expected)


@pytest.mark.usefixtures("no_memory_of_warnings")
def test_a_gpu_that_the_kernels_were_not_built_for(monkeypatch):
    with stand_in(monkeypatch, archs="8.0 9.0", capability=(12, 0)) as calls:
        model, x = on_gpu(mlp(3, 4, 2)), on_gpu(samples())
        with pytest.warns(RuntimeWarning) as warned:
            everything(model, x)
    [warning] = warned
    for part in ("8.0 9.0", NAME, "compute capability 12.0", "TORCH_CUDA_ARCH_LIST=12.0"):
        assert part in str(warning.message)
    assert calls.operators_called == []


@pytest.mark.parametrize(
    ("archs", "runs", "does_not"),
    [
        ("8.0 9.0", [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 5), (10, 0), (12, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("8.0 9.0 12.0+PTX", [(8, 0), (9, 0), (12, 0), (12, 1), (13, 0)], [(7, 5), (10, 0)]),
        ("8.0+PTX", [(8, 0), (9, 0), (12, 0)], [(7, 5)]),
        ("9.0a", [(9, 0)], [(8, 0), (9, 1), (10, 0)]),
        ("10.0a+PTX 9.0", [(9, 0), (10, 0)], [(10, 3), (12, 0)]),
        ("10.0f+PTX", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("8.0;9.0", [(8, 6), (9, 0)], [(10, 0)]),
        ("", [(7, 0), (12, 0)], []),
        ("8.0 9.0", [(8, 0), (8, 6), (8, 9)], [(8, 7)]),
        ("8.7 9.0", [(8, 7), (9, 0)], [(8, 9)]),
        ("8.0+PTX", [(8, 0), (8, 7), (9, 0)], []),
    ],
)
def test_which_gpus_run_which_code(archs, runs, does_not):
    assert all(_ops._covers(archs, capability) for capability in runs)
    assert not any(_ops._covers(archs, capability) for capability in does_not)


@pytest.mark.usefixtures("no_memory_of_warnings")
def test_other_devices_go_without_a_warning():
    assert _ops.why_no_kernel(torch.device("meta")) == "no native kernel for meta"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warned.warn_of_no_kernel(torch.device("mps"), "no native kernel for mps")
    K = torch.zeros(3, 3, dtype=F64)
    assert _ops.has_kernel(K, K)
    assert not _ops.has_kernel(K, K.to("meta"))


# --- the stand-in itself ------------------------------------------------------------------------------


def test_the_stand_in_keeps_devices_apart(monkeypatch):
    x = samples()
    with stand_in(monkeypatch):
        there = on_gpu(x)
        assert (there.device, there.is_cuda, there.is_cpu) == (GPU, True, False)
        for result in (there + 1, there @ there.mT, there.new_zeros(2), torch.zeros(2, device=GPU)):
            assert result.device == GPU
        for result in (there.cpu(), there.to("cpu"), torch.zeros(2), torch.eye(2, device="cpu")):
            assert result.is_cpu
        for mixed in (lambda: there + x, lambda: torch.cat((x, there)), lambda: x @ there.mT):
            with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
                mixed()
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            there.numpy()
        assert x.to(GPU).device == GPU
        assert float((there * torch.tensor(2.0)).sum()) == pytest.approx(2 * float(x.sum()))
