"""Each point of the rank benchmark's scaling is measured in a separate process, and drawn."""

import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from helpers.benchmark_modules import imported, tables

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

NAMES = ("harness", "contenders", "rank_contenders", "rank_scaling", "rank_report", "rank")
CPU = torch.device("cpu")
reads_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@pytest.fixture(scope="module")
def modules():
    with imported(NAMES) as found:
        yield found


def measured(point, longest):
    """A simulated machine: time quadratic in n and linear in P; certificates soon take too long."""
    P = 12 * point.case.widths[1] ** 2
    seconds = 1e-9 * point.case.n**2 * P
    if point.contender == "llr certified" and seconds > 1e-3:
        return {"missing": f"over {longest:g} s", "failed": False}
    return {"seconds": seconds, "growth_bytes": 8 * point.case.n * P, "calls": 1, "rank": 1}


def made_up_scaling(modules, run=measured):
    Case, Sweep = modules.contenders.Case, modules.rank_scaling.Sweep
    sweeps = {
        "P": Sweep("n = 16", tuple(Case((2, h, h, 1), 16) for h in (4, 8, 16, 32))),
        "n": Sweep("h = 8", tuple(Case((2, 8, 8, 1), n) for n in (4, 16, 64))),
    }
    return modules.rank_scaling.scaling(sweeps, CPU, 1, run)


def test_scaling_measures_every_point_once_and_stops_in_time(modules, monkeypatch):
    calls = []
    found = made_up_scaling(modules, lambda *given: calls.append(given[0]) or measured(*given))
    assert len(calls) == len(set(calls))

    def last(axis, contender):
        return [p for p in found[axis]["points"] if p["contender"] == contender][-1]

    assert last("P", "llr gram")["P"] == 2 * 32 + 32 + 32 * 32 + 32 + 32 + 1
    assert last("P", "llr certified")["case"] == "2-32-32-1, n=16"
    assert last("P", "llr certified")["missing"] == "over 60 s"
    assert not modules.rank.failures({"cases": {}, "memory": {}, "scaling": found})
    rows = {
        (row["growing"], row["contender"]): row
        for row in tables(modules.rank_report.scaling_table(found))[0]
    }
    assert rows["P, at n = 16", "llr certified"]["largest case"] == "2-16-16-1, n=16"
    assert rows["P, at n = 16", "llr certified"]["what ended it"] == "over 60 s"
    assert rows["n, at h = 8", "llr svd"]["what ended it"] == "-"

    memory = SimpleNamespace(available=3 * modules.rank.jacobian_bytes(calls[0].case))
    monkeypatch.setattr(modules.rank_scaling.psutil, "virtual_memory", lambda: memory)
    found = made_up_scaling(modules)
    assert last("P", "torch.func + matrix_rank")["missing"].startswith("needs about ")
    assert "missing" not in last("P", "llr gram"), "it holds no J"


def test_the_scaling_figure_is_written(modules, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "rank_scaling.svg"
    modules.rank_scaling.save_figure(made_up_scaling(modules), path)
    drawn = ElementTree.parse(path)
    text = " ".join("".join(node.itertext()) for node in drawn.iter() if node.tag.endswith("text"))
    for name in (*modules.rank_scaling.CONTENDERS, "J itself", "did not get further"):
        assert name in text
    for name in ("seconds", "peak memory, bytes", "parameters P", "samples n", "n = 16", "h = 8"):
        assert name in text
    ids = [node.get("id", "") for node in drawn.iter()]
    assert sum(name.startswith("axes_") for name in ids) == 4


@reads_proc
def test_a_process_of_its_own_measures_time_and_memory(modules):
    scaling = modules.rank_scaling
    case = modules.contenders.Case((10, 256, 256, 1), 64)
    found = scaling.fresh(scaling.Point(case, "torch.func + matrix_rank", "cpu", 1), 120)
    assert found["rank"] == 64
    assert found["seconds"] > 0
    # The pieces, the concatenation and LAPACK's copy; there is no complete copy of the process.
    assert 2 * scaling.jacobian_bytes(case) < found["growth_bytes"]
    assert found["growth_bytes"] < found["peak_bytes"] < found["growth_bytes"] + 3e9


def test_a_process_that_fails_says_why(modules):
    scaling = modules.rank_scaling
    case = modules.contenders.Case((2, 3, 1), 4)
    assert scaling.fresh(scaling.Point(case, "llr svd", "cpu", 1), 0.01) == {
        "missing": "over 0.01 s",
        "failed": False,
    }
    found = scaling.fresh(scaling.Point(case, "llr abacus", "cpu", 1), 120)
    assert found["failed"]
    assert "abacus" in found["missing"]
