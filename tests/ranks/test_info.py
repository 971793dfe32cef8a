"""llr.info and llr.selftest: they report what is installed, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.gpu_stand_in import NAME, stand_in
from helpers.targets import emulated, require_gpus
from torch import Tensor

import llr
from llr.operators import _ops, formula
from llr.ranks.info import Check


@pytest.fixture
def only_tanh(monkeypatch):
    """Restricts self-tests to one activation, which is faster."""
    monkeypatch.setattr(formula, "ACTIVATIONS", {"tanh": formula.ACTIVATIONS["tanh"]})


def test_facts():
    facts = llr.info().facts
    assert facts["torch"] == torch.__version__
    assert facts["llr"] == llr.__version__
    assert facts["backend"] == ("native" if _ops.NATIVE else "torch.func")
    assert facts["because"] == _ops.REASON
    assert facts["threads"] == str(torch.get_num_threads())
    with llr.set_memory_budget("3 GB"):
        assert llr.info().facts["memory budget"] == "3 GB"


def test_facts_print_one_a_line():
    info = llr.info()
    lines = str(info).splitlines()
    assert len(lines) == len(info.facts)
    for line, (name, value) in zip(lines, info.facts.items(), strict=True):
        assert line.startswith(name)
        assert line.endswith(value)


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
def test_facts_of_the_native_library():
    build = _ops.build_info()
    assert build["simd_running"] in build["simd_compiled"].split()
    assert build["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert build["simd_running"] in llr.info().facts["instructions"]
    build["torch"] = "changed"
    assert _ops.build_info()["torch"] != "changed"


def test_facts_without_the_native_library(monkeypatch):
    monkeypatch.setattr(_ops, "NATIVE", False)
    monkeypatch.setattr(_ops, "_library", None)
    monkeypatch.setattr(_ops, "REASON", "it was left out")
    facts = llr.info().facts
    assert (facts["backend"], facts["because"]) == ("torch.func", "it was left out")
    assert "instructions" not in facts
    result = llr.selftest()
    assert result.ok
    assert str(result).startswith("backend: torch.func on cpu (it was left out)")


def test_all_is_well():
    result = llr.selftest()
    assert result.ok
    assert str(result).startswith("backend: ")
    for activation in formula.ACTIVATIONS:
        assert f"mlp_jacobian {activation} float64" in str(result)
        assert f"mlp_jacobian {activation} float32" in str(result)
    assert "first_nonfinite" in str(result)
    assert "WRONG" not in str(result)
    assert str(result).endswith("all agree")


def wrong_entry(result: Tensor) -> Tensor:
    result.view(-1)[-1] += 1e-3
    return result


def nan_entry(result: Tensor) -> Tensor:
    result.view(-1)[0] = float("nan")
    return result


def wrong_for_points(result: Tensor) -> Tensor:
    return result.flip(0) if result.dim() == 4 else result


def no_memory(_: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


FAULTS = {
    "the number of rows": lambda result: result[..., :1, :, :],
    "the order of axes": lambda result: result.mT,
    "an error": no_memory,
    "an entry": wrong_entry,
    "a NaN": nan_entry,
    "parameter points": wrong_for_points,
    "the last digits": lambda result: result * (1 + 3e-5),
}


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
@pytest.mark.usefixtures("only_tanh")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_wrong_jacobian_is_found(fault, monkeypatch):
    right = _ops.mlp_jacobian
    monkeypatch.setattr(_ops, "mlp_jacobian", lambda *arguments: fault(right(*arguments)))
    result = llr.selftest("cpu")
    assert not result.ok
    assert "WRONG" in str(result)
    assert "all agree" not in str(result)
    # The other operators were still tested.
    assert {check.name.split()[0] for check in result.checks if not check.ok} == {"mlp_jacobian"}


OTHERS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "mlp_gram": lambda K: K[:, :1],
    "svdvals": lambda values: values[..., :-1],
    "gram_factor": lambda L: L[:, :-1],
}


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
@pytest.mark.usefixtures("only_tanh")
@pytest.mark.parametrize("operator", list(OTHERS))
def test_a_wrong_shape_is_found(operator, monkeypatch):
    right = getattr(_ops, operator)
    monkeypatch.setattr(_ops, operator, lambda *arguments: OTHERS[operator](right(*arguments)))
    wrong = [check for check in llr.selftest("cpu").checks if not check.ok]
    assert any(check.name.startswith(operator) for check in wrong)
    for check in wrong:
        assert (check.error, check.device) == (float("inf"), "cpu")
        assert check.note.startswith("shape ("), check.note


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
def test_one_wrong_activation_is_named(monkeypatch):
    right = _ops.mlp_jacobian

    def wrong(x: Tensor, weights: list[Tensor], biases: list[Tensor], activation: str) -> Tensor:
        return right(x, weights, biases, "tanh" if activation == "erf" else activation)

    monkeypatch.setattr(_ops, "mlp_jacobian", wrong)
    marked = [line for line in str(llr.selftest("cpu")).splitlines() if line.endswith("WRONG")]
    found = [line.split()[1:4] for line in marked[:-1]]
    assert found == [["erf", "float64", "cpu"], ["erf", "float32", "cpu"]]
    assert marked[-1].startswith("2 of ")


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
@pytest.mark.usefixtures("only_tanh")
def test_a_wrong_step_is_found(monkeypatch):
    right = _ops.lm_solve

    def wrong(theta: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        moved, *rest = right(theta, *arguments, **options)
        moved[-1, -1] = theta[-1, -1]
        return moved, *rest

    monkeypatch.setattr(_ops, "lm_solve", wrong)
    failed = [check.name for check in llr.selftest("cpu").checks if not check.ok]
    assert failed == ["lm_solve 40 samples", "lm_solve 9 samples", "lm_solve factorization"]


BLIND: dict[str, Callable[[list[Tensor]], int]] = {
    "sees nothing": lambda _: -1,
    "sees too much": lambda _: 0,
    "misses infinities": lambda ts: next((i for i, t in enumerate(ts) if t.isnan().any()), -1),
    "misses the last": lambda ts: next(
        (i for i, t in enumerate(ts) if not t[:-1].isfinite().all()), -1
    ),
    "overflows": lambda ts: next((i for i, t in enumerate(ts) if not t.sum().isfinite()), -1),
}


@pytest.mark.usefixtures("only_tanh")
@pytest.mark.parametrize("fault", BLIND.values(), ids=list(BLIND))
def test_a_wrong_search_for_nan_is_found(fault, monkeypatch):
    monkeypatch.setattr(_ops, "first_nonfinite", fault)
    result = llr.selftest("cpu")
    assert not result.ok
    assert [check.name for check in result.checks if not check.ok] == ["first_nonfinite"]


def test_a_check_fails_on_nan():
    assert Check("exact", 0.0, 0.0).ok
    assert not Check("off", 2e-13, 1e-13).ok
    assert not Check("nan", float("nan"), 1e-13).ok


# --- GPUs ---------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_all_is_well_on_gpus():
    require_gpus()
    result = llr.selftest("cuda")
    assert result.ok, result
    assert {check.device for check in result.checks} == {
        f"cuda:{i}" for i in range(torch.cuda.device_count())
    }
    assert f"native on {result.checks[0].device}" in result.backend
    assert "native" in llr.info().facts["cuda:0"]


@pytest.mark.emulated
@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
@pytest.mark.usefixtures("only_tanh")
def test_the_emulated_kernels_pass(monkeypatch):
    with stand_in(monkeypatch, operators=emulated()) as calls:
        result = llr.selftest("cuda")
    assert result.ok, result
    assert set(calls.operators_called) == {"mlp_jacobian", "mlp_gram", "gram_add_", "svdvals"}


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
@pytest.mark.usefixtures("only_tanh")
def test_which_devices_are_tested(monkeypatch):
    with stand_in(monkeypatch) as calls:
        for asked, devices in [
            (None, ["cpu", "cuda:0"]),
            ("cpu", ["cpu"]),
            ("cuda", ["cuda:0"]),
            (torch.device("cuda:0"), ["cuda:0"]),
        ]:
            result = llr.selftest(asked)
            assert result.ok
            assert sorted({check.device for check in result.checks}) == devices
            assert result.backend == "; ".join(f"native on {device}" for device in devices)
            shared = [c for c in result.checks if not c.name.startswith("lm_solve")]  # the CPU's
            kinds = [[c.name for c in shared if c.device == device] for device in devices]
            assert all(names == kinds[0] for names in kinds)
        for unknown in ("cuda:1", "meta"):
            with pytest.raises(
                ValueError, match=f"'{unknown}'; expected one of those visible here: cpu, cuda:0"
            ):
                llr.selftest(unknown)
    assert set(calls.operators_called) == {"mlp_jacobian", "mlp_gram", "gram_add_", "svdvals"}


WRONG_ON_GPU = {
    "mlp_jacobian": ["mlp_jacobian tanh float64", "mlp_jacobian tanh float32"],
    "svdvals": ["svdvals float64", "svdvals float32", "gram_factor"],
    "mlp_gram": ["mlp_gram"],
    "gram_factor": ["gram_factor"],
}


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
@pytest.mark.usefixtures("only_tanh")
@pytest.mark.parametrize("operator", list(WRONG_ON_GPU))
def test_a_gpu_that_computes_wrong_is_named(operator, monkeypatch):
    right = getattr(_ops, operator)

    def wrong(first: Tensor, *arguments: object) -> Tensor:
        return right(first, *arguments) * (1 if first.is_cpu else 1 + 3e-5)

    with stand_in(monkeypatch):
        monkeypatch.setattr(_ops, operator, wrong)
        result = llr.selftest()
    failed = [(check.name, check.device) for check in result.checks if not check.ok]
    assert sorted(failed) == sorted((name, "cuda:0") for name in WRONG_ON_GPU[operator])
    assert str(result).endswith(f"{len(failed)} of {len(result.checks)} are WRONG")


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
@pytest.mark.usefixtures("only_tanh")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"cuda_reason": "no nvcc was found"}, "no nvcc was found"),
        ({"archs": "8.0", "capability": (9, 0)}, "compute capability 9.0"),
    ],
)
def test_gpus_without_kernels(settings, reason, monkeypatch):
    with stand_in(monkeypatch, **settings) as calls:
        facts, result = llr.info().facts, llr.selftest("cuda")
    assert facts["cuda:0"].startswith(f"{NAME}, compute capability 9.0, torch.func (")
    assert reason in facts["cuda:0"]
    assert facts["CUDA kernels"] == (
        "none: no nvcc was found" if "archs" not in settings else "8.0"
    )
    assert result.ok
    assert result.backend.startswith("torch.func on cuda:0 (")
    assert reason in result.backend
    assert calls.operators_called == []


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
def test_facts_of_gpus(monkeypatch):
    with stand_in(monkeypatch, archs="8.0 9.0 12.0+PTX", capability=(12, 1)):
        facts = llr.info().facts
    assert facts["CUDA kernels"] == "8.0 9.0 12.0+PTX"
    assert facts["cuda:0"] == f"{NAME}, compute capability 12.1, native"
    assert "GPUs" not in facts
