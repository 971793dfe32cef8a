"""The training benchmark runs, its contenders take the same steps, its tables agree. Times are not tested."""

import json
import os
import subprocess
import sys
from statistics import median

import pytest
import torch
from helpers.benchmark_modules import BENCHMARKS, imported, tables

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

CASES = {"narrow", "wide", "deep", "few"}
CONTENDERS = {"llr", "bmm + autograd", "vmap(grad)", "loop of modules"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def modules():
    with imported(("harness", "training")) as found:
        yield found


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, str(BENCHMARKS / "training.py"), "--quick", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads((folder / "training.json").read_text())


def test_quick_run_leaves_two_whole_files(quick):
    folder, done, results = quick
    assert {f.name for f in folder.iterdir()} == {"training.json", "training.md"}
    assert (folder / "training.md").read_text() in done.stdout
    assert set(results["cases"]) == CASES
    assert results["environment"]["commit"]
    assert results["settings"]["quick"]


def test_tables_follow_from_the_samples(quick):
    folder, _, results = quick
    (rows,) = tables((folder / "training.md").read_text())
    assert {row["case"] for row in rows} == CASES
    for row in rows:
        found = results["cases"][row["case"]]
        seconds = found["seconds_per_member_step"]
        assert set(seconds) == CONTENDERS
        for name, samples in seconds.items():
            assert len(samples) == 2
            assert min(samples) > 0
            rate = float(row[name].replace(",", ""))
            assert rate == pytest.approx(1 / median(samples), rel=0.01)
        for name in CONTENDERS - {"llr"}:
            ratio = float(row[f"{name} / llr"].removesuffix("x"))
            assert ratio == pytest.approx(median(seconds[name]) / median(seconds["llr"]), rel=0.01)


def test_the_loop_is_counted_by_its_own_members(modules, monkeypatch):
    case = modules.training.Case((2, 3, 1), 5, 20, 4)
    times = {"llr": [20.0, 20.0], "loop of modules": [8.0, 8.0]}
    runs = dict.fromkeys(times, lambda: None)
    monkeypatch.setattr(modules.training, "contenders", lambda _: runs)
    monkeypatch.setattr(modules.training, "interleaved", lambda *_: (dict.fromkeys(runs, 1), times))
    settings = type("Settings", (), {"device": CPU, "seconds": 1.0, "quick": True})
    found = modules.training.measured(case, settings)
    # 20 members and 4 steps in 20 s; the loop's 8 members in 8 s.
    assert found["seconds_per_member_step"] == {name: [0.25, 0.25] for name in times}
    assert found["ratios"]["loop of modules / llr"]["of_medians"] == 1


def test_contenders_that_disagree_are_not_timed(modules, monkeypatch):
    problem = modules.training.Problem.of(modules.training.CASES["narrow"].quick(), CPU)
    assert set(modules.training.contenders(problem)) == CONTENDERS
    other = modules.training.by_vmap
    monkeypatch.setattr(modules.training, "by_vmap", lambda p: other(p) + 1e-9)
    with pytest.raises(SystemExit, match=r"vmap\(grad\) ends 1e-09 away from llr"):
        modules.training.contenders(problem)
