"""The memory budget, the calls that it refuses, and the measured memory of a Jacobian."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from helpers.oracles import mlp, run_python
from torch import nn

import llr
from llr.inputs.memory import format_bytes, parse_bytes

F64 = torch.float64


@pytest.fixture(autouse=True)
def no_budget(monkeypatch):
    monkeypatch.delenv("LLR_MEMORY_BUDGET", raising=False)
    with llr.set_memory_budget(None):
        yield


# --- numbers of bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("1000000", 10**6),
        ("10 b", 10),
        ("4GB", 4 * 10**9),
        ("4gb", 4 * 10**9),
        (" 2 TB ", 2 * 10**12),
        ("512MiB", 512 * 2**20),
        ("1.5 kib", 1536),
        ("0.5 GiB", 2**29),
        ("2e3 kB", 2 * 10**6),
        ("3 TiB", 3 * 2**40),
        ("7 MB", 7 * 10**6),
    ],
)
def test_parse(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "many", "4 GG", "-1", "0", "0 GB", "nan", "inf GB", "1e999 TB", "1 2", "GB", "0.1 b"],
)
def test_parse_refuses(text):
    with pytest.raises(
        ValueError, match=re.escape(repr(text)) + " is not a number of bytes; expected"
    ):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (282_624_000, "283 MB"),
        (10**10, "10 GB"),
        (67_321_860_000_000, "67.3 TB"),
        (10**18, "1e+03 PB"),
        (999_999, "1 MB"),
    ],
)
def test_format(nbytes, expected):
    assert format_bytes(nbytes) == expected


# --- the budget --------------------------------------------------------------------------------------


def test_default_is_part_of_what_is_free():
    assert 0 < llr.memory_budget() < 2**50


def test_for_good_and_back():
    llr.set_memory_budget("3 GB")
    assert llr.memory_budget() == 3 * 10**9
    llr.set_memory_budget(12345)
    assert llr.memory_budget() == 12345
    llr.set_memory_budget(None)
    assert llr.memory_budget() != 12345


def test_blocks_nest():
    llr.set_memory_budget(1000)
    with llr.set_memory_budget(2000):
        with llr.set_memory_budget("3 kB"):
            assert llr.memory_budget() == 3000
        assert llr.memory_budget() == 2000
        with pytest.raises(KeyError), llr.set_memory_budget(4000):
            raise KeyError
        assert llr.memory_budget() == 2000
    assert llr.memory_budget() == 1000


def test_environment(monkeypatch):
    monkeypatch.setenv("LLR_MEMORY_BUDGET", "5 MB")
    assert llr.memory_budget() == 5 * 10**6
    with llr.set_memory_budget(77):
        assert llr.memory_budget() == 77
    monkeypatch.setenv("LLR_MEMORY_BUDGET", "")
    assert llr.memory_budget() != 5 * 10**6
    monkeypatch.setenv("LLR_MEMORY_BUDGET", "plenty")
    with pytest.raises(ValueError, match="'plenty' is not a number of bytes"):
        llr.memory_budget()


@pytest.mark.parametrize("nbytes", [0, -5, "0", "-3 GB", "some"])
def test_a_bad_budget_changes_nothing(nbytes):
    llr.set_memory_budget(1000)
    with pytest.raises(ValueError, match=r"budget is|is not a number of bytes"):
        llr.set_memory_budget(nbytes)
    assert llr.memory_budget() == 1000


# --- what it refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "torch", "loop"])
def test_larger_than_the_budget(backend):
    model, x = mlp(3, 4, 2), torch.randn(5, 3, dtype=F64)
    nbytes = 5 * 2 * 26 * 8
    with llr.set_memory_budget(nbytes - 1):
        message = (
            rf"shape \(5, 2, 26\) takes 2\.08 kB \({nbytes} bytes\), more than the memory budget of "
            r"2\.08 kB; take fewer samples at a time, choose parameters with params=, or raise the budget"
        )
        with pytest.raises(ValueError, match=message):
            llr.jacobian(model, x, backend=backend)
        assert llr.plan(model, x, backend=backend).nbytes == nbytes
        # Memory that is already allocated does not count.
        out = torch.empty(5, 2, 26, dtype=F64)
        assert llr.jacobian(model, x, backend=backend, out=out) is out
    with llr.set_memory_budget(nbytes):
        assert llr.jacobian(model, x, backend=backend).shape == (5, 2, 26)


def test_parameter_points_count():
    model, x = mlp(3, 4, 2), torch.randn(5, 3, dtype=F64)
    points = {name: torch.stack([p.detach()] * 3) for name, p in model.named_parameters()}
    with (
        llr.set_memory_budget(3 * 5 * 2 * 26 * 8 - 1),
        pytest.raises(ValueError, match="6240 bytes"),
    ):
        llr.jacobian(model, x, params=points)


@pytest.mark.parametrize("n", [10**6, 10**13])
def test_far_larger_than_memory(n):
    # The samples are one expanded row: they take only a few bytes until they are copied.
    model = mlp(10, 256, 4096, 1, dtype=torch.float32)
    columns = sum(p.numel() for p in model.parameters())
    x = torch.zeros(1, 10).expand(n, 10)
    with pytest.raises(
        ValueError, match=rf"\({n * columns * 4} bytes\), more than the memory budget"
    ):
        llr.jacobian(model, x)


def test_far_larger_than_memory_through_torch():
    model = nn.Sequential(nn.Linear(10, 4096), nn.LayerNorm(4096), nn.Linear(4096, 1))
    columns = sum(p.numel() for p in model.parameters())
    x = torch.zeros(1, 10).expand(10**9, 10)
    with pytest.raises(
        ValueError, match=rf"\({10**9 * columns * 4} bytes\), more than the memory budget"
    ):
        llr.jacobian(model, x)


# --- what a Jacobian takes ---------------------------------------------------------------------------

MB = 2**20
# name -> (widths, n, dtype, MB that may be used beside the result)
PEAKS = {
    "wide": ([10, 256, 256, 1], 512, "float64", 32),
    "wide float32": ([10, 256, 256, 1], 1024, "float32", 32),
    "many samples": ([2, 20, 1], 10**6, "float64", 32),
    "many samples float32": ([2, 20, 1], 10**6, "float32", 32),
    "few columns": ([1, 1, 1], 4 * 10**6, "float64", 32),
    "several outputs": ([784, 100, 10], 32, "float64", 32),
    "very wide": ([5, 20000, 1], 100, "float64", 32),
}
MEASURE = """
import json, sys, torch, llr
from helpers.oracles import mlp

def status(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1]) * 1024

def growth(call):
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
    before = status("VmRSS")
    result = call()
    return status("VmHWM") - before, result

found = {}
llr.set_memory_budget("20 GB")
for name, (widths, n, dtype, _) in json.loads(sys.stdin.read()).items():
    dtype = getattr(torch, dtype)
    model, x = mlp(*widths, dtype=dtype), torch.randn(n, widths[0], dtype=dtype)
    llr.jacobian(model, x[:100])
    fresh, result = growth(lambda: llr.jacobian(model, x))
    again, _ = growth(lambda: llr.jacobian(model, x, out=result))
    found[name] = fresh, again, result.nbytes
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def peaks():
    if not sys.platform.startswith("linux"):
        pytest.skip("measured in /proc, which only Linux has")
    run = run_python(MEASURE, stdin=json.dumps(PEAKS))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(PEAKS))
def test_peak_is_the_result_and_little_more(peaks, case):
    fresh, again, nbytes = peaks[case]
    allowed = PEAKS[case][-1] * MB
    assert nbytes > allowed
    assert nbytes * 0.9 < fresh <= nbytes + allowed
    assert again <= allowed
