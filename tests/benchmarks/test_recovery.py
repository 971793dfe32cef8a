"""The benchmark of recovery runs, and its verdicts follow from the measurements. Times are not checked."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from helpers.benchmark_modules import imported, tables
from torch.func import jacrev

from llr.operators import _ops
from llr.recovery.damping import DAMPING

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "recovery.py"
NAMES = ("harness", "recovery_contenders", "recovery_thresholds", "recovery")
ALWAYS = {"torch ops, fast", "torch ops, slow", "scipy trf", "scipy trf, own stop", "scipy lm"}
LLR = {"llr, fast", "llr, slow"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--quick", "--out", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads((folder / "recovery.json").read_text())


@pytest.fixture(scope="module")
def modules():
    with imported(NAMES) as found:
        yield found


def test_every_contender_has_its_samples(quick):
    folder, done, results = quick
    assert (folder / "recovery.md").read_text() in done.stdout
    assert set(results["cases"]) == {"narrow", "wide"}
    assert results["environment"]["threads"] == 1
    for case in results["cases"].values():
        times = case["seconds_per_problem"]
        assert ALWAYS <= set(times) <= ALWAYS | LLR | {"optimistix"}
        assert (set(times) >= LLR) == _ops.NATIVE
        for name, samples in times.items():
            assert len(samples) == 2
            assert min(samples) > 0
            assert 0 <= case["recovered"][name] <= case["fitted"][name] <= 1
            assert case["problems"][name] == (2 if name.startswith("scipy") else 16)
        for pair, ratio in case["ratios"].items():
            a, _, b = pair.partition(" / ")
            assert ratio["of_medians"] == median(times[a]) / median(times[b])
        work = case["operations_per_problem"]
        assert work["total"] == pytest.approx(sum(work[k] for k in ("outputs", "normal", "system")))
        assert 1 <= work["taken"] <= work["trials"] <= 162


def test_markdown_shows_what_the_json_holds(quick, modules):
    folder, _, results = quick
    number = modules.harness.number
    shown = tables((folder / "recovery.md").read_text())
    cases = list(results["cases"].values())
    for rows, case in zip(shown[:2], cases, strict=True):
        assert [row["solver"] for row in rows] == list(case["seconds_per_problem"])
        for row in rows:
            per_second = 1 / median(case["seconds_per_problem"][row["solver"]])
            assert row["starts/s"] == number(per_second)
            assert row["fitted/s"] == number(case["fitted"][row["solver"]] * per_second)
    if _ops.NATIVE:
        assert {row["holds"] for row in shown[2]} == {"-"}, (
            "tiny sizes keep no promise and break none"
        )
    assert [row["strategy"] for row in shown[-1]] == [t["strategy"] for t in results["thresholds"]]


def found(slow_fitted, fast_fitted, ratio):
    """The measurements of a case, with given numbers."""
    a, b = "torch ops, fast", "llr, fast"
    return {
        "ratios": {f"{a} / {b}": {"of_medians": ratio}},
        "fitted": {a: slow_fitted, b: fast_fitted},
        "problems": {a: 400, b: 400},
    }


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        (found(0.5, 0.5, 25.0), True),
        (found(0.5, 0.46, 25.0), True),
        (found(0.5, 0.44, 25.0), False),
        (found(0.5, 0.9, 19.0), False),
    ],
)
def test_a_promise_is_kept_with_as_many_fits(modules, measured, holds):
    [promise] = modules.recovery.promises({"narrow": measured}, True)
    assert promise["holds"] is holds
    [promise] = modules.recovery.promises({"narrow": measured}, False)
    assert promise["holds"] is None


def test_a_false_claim_ends_the_run(modules):
    them = modules.recovery_contenders
    problems = them.Problems.of(them.CASES["narrow"].quick())
    true = them.by_torch("slow")(problems)
    shares = them.judge("true", problems, true)
    assert 0 < shares.recovered <= shares.fitted
    claimed = true._replace(theta=true.theta + 1e-8)
    with pytest.raises(SystemExit, match=r"liar reports \d+ starts as converged"):
        them.judge("liar", problems, claimed)
    silent = claimed._replace(converged=torch.zeros_like(true.converged))
    assert them.judge("silent", problems, silent) == (0.0, 0.0)


@pytest.mark.parametrize("missing", [0, 4])
def test_what_scipy_is_given(modules, missing):
    them = modules.recovery_contenders
    problems = them.Problems.of(them.CASES["narrow"].quick())
    x, y, theta = problems.x[1], problems.y[1], problems.starts[9] * 5
    watch = them._Watch(x.numpy(), y.numpy(), None, missing)

    def residuals(theta):
        return (problems.functions.outputs(theta[None], x[None])[0] - y)[:, 0]

    n = len(x)
    r, J = watch.residuals(theta.numpy()), watch.jacobian(theta.numpy())
    assert r.shape == (n + missing,)
    assert not r[n:].any()
    assert not J[n:].any()
    assert np.abs(r[:n] - residuals(theta).numpy()).max() < 1e-14
    assert np.abs(J[:n] - jacrev(residuals)(theta).numpy()).max() < 1e-14


def test_the_rule_that_stops_scipy(modules):
    them = modules.recovery_contenders
    problems = them.Problems.of(them.CASES["narrow"].quick())
    x, y, theta = problems.x[0].numpy(), problems.y[0].numpy(), problems.starts[0].numpy()
    rule = DAMPING["fast"]
    watch = them._Watch(x, y, rule, 0)
    for _ in range(rule.stall):  # only the first one lowers the loss (from infinity)
        watch.residuals(theta)
    with pytest.raises(them._Stopped):
        watch.residuals(theta)
    watch = them._Watch(x, 0 * y + 1e-30, rule, 0)
    watch.goal = 1.0
    with pytest.raises(them._Stopped):
        watch.residuals(0 * theta)


def test_the_smallest_sample_size(modules):
    smallest = modules.recovery_thresholds.smallest
    assert smallest({5: 0.0, 6: 0.95, 7: 1.0}) == 6
    assert smallest({5: 1.0, 6: 0.9, 7: 1.0}) == 7
    assert smallest({5: 1.0, 6: 0.9}) is None
    family = modules.recovery_thresholds.Family(3, 3)
    assert family.sample_sizes == [11, 12, 13, 14, 16, 18, 24, 36]


def test_operations_are_those_of_the_smaller_matrix(modules):
    them = modules.recovery_contenders
    for case, order in ((them.CASES["narrow"], 18), (them.CASES["wide"], 30)):
        work = modules.recovery.operations(them.Problems.of(case.quick()))
        assert order**3 / 3 < work["system"] / work["trials"] < order**3 / 3 + 5000
