"""llr.info and llr.selftest: they say what is there, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import llr
from llr import _ops, reference
from llr.info import Check


@pytest.fixture
def only_tanh(monkeypatch):
    """Self-tests of one activation, which are faster."""
    monkeypatch.setattr(reference, "ACTIVATIONS", {"tanh": reference.ACTIVATIONS["tanh"]})


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
    assert "torch.func (it was left out)" in str(result)


def test_all_is_well():
    result = llr.selftest()
    assert result.ok
    for activation in reference.ACTIVATIONS:
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


FAULTS = {
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
    result = llr.selftest()
    assert not result.ok
    assert "WRONG" in str(result)
    assert "all agree" not in str(result)


@pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
def test_one_wrong_activation_is_named(monkeypatch):
    right = _ops.mlp_jacobian

    def wrong(x: Tensor, weights: list[Tensor], biases: list[Tensor], activation: str) -> Tensor:
        return right(x, weights, biases, "tanh" if activation == "erf" else activation)

    monkeypatch.setattr(_ops, "mlp_jacobian", wrong)
    marked = [line for line in str(llr.selftest()).splitlines() if line.endswith("WRONG")]
    assert [line.split()[1:3] for line in marked[:-1]] == [["erf", "float64"], ["erf", "float32"]]
    assert marked[-1].startswith("2 of ")


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
    result = llr.selftest()
    assert not result.ok
    assert [check.name for check in result.checks if not check.ok] == ["first_nonfinite"]


def test_a_check_fails_on_nan():
    assert Check("exact", 0.0, 0.0).ok
    assert not Check("off", 2e-13, 1e-13).ok
    assert not Check("nan", float("nan"), 1e-13).ok
