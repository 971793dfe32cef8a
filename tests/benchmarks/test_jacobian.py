"""The benchmark runs, its results are complete, and its verdicts are right. Times are not checked."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch
from helpers.benchmark_modules import imported, tables

from llr.jacobians import reference

# The benchmark runs without the native library too, with fewer contenders.
pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = {"A", "B", "D", "E", "F"}
ALWAYS = {
    "fill",
    "llr out=",
    "llr fresh",
    "torch.func",
    "torch.func + cat",
    "by hand out=",
}


def run(*arguments, **environment):
    command = [sys.executable, str(BENCHMARKS / "jacobian.py"), *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    done = run("--quick", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads((folder / "jacobian.json").read_text())


@pytest.fixture(scope="module")
def benchmark_modules():
    with imported(("harness", "contenders", "jacobian")) as found:
        yield found.harness, found.contenders, found.jacobian


def test_quick_run_leaves_two_whole_files(quick):
    folder, done, results = quick
    assert {f.name for f in folder.iterdir()} == {"jacobian.json", "jacobian.md"}
    assert set(results["cases"]) == CASES
    for name in CASES:
        assert f"\n{name}: " in f"\n{done.stderr}", "no progress line"
    assert (folder / "jacobian.md").read_text() in done.stdout


def test_every_contender_has_its_samples(quick):
    _, _, results = quick
    optional = {"JAX"} if results["environment"]["jax"] else set()
    if results["environment"]["llr_info"]["backend"] == "native":
        optional |= {"op out=", "op fresh"}
    for case in results["cases"].values():
        assert set(case["seconds"]) == ALWAYS | optional
        assert set(case["difference"]) == (ALWAYS | optional) - {"fill", "torch.func"}
        assert all(0 <= error <= 1e-10 for error in case["difference"].values())
        assert case["bytes"] == math.prod(case["shape"]) * 8
        for name, samples in case["seconds"].items():
            assert len(samples) == case["rounds"] == 2
            assert min(samples) > 0
            assert case["median"][name] == median(samples)
            assert case["calls_per_sample"][name] >= 1


def test_environment_is_recorded(quick):
    _, _, results = quick
    environment = results["environment"]
    for fact in ("date", "cpu", "threads", "torch", "llr", "llr_info", "load_average"):
        assert environment[fact] not in (None, ""), fact
    assert environment["torch"] == torch.__version__
    assert environment["llr_info"]["torch"] == torch.__version__
    assert results["settings"]["quick"] is True


def test_ratios_follow_from_the_samples(quick):
    _, _, results = quick
    for case in results["cases"].values():
        assert "torch.func + cat / llr fresh" in case["ratios"]
        for pair, ratio in case["ratios"].items():
            a, _, b = pair.partition(" / ")
            first, second = case["seconds"][a], case["seconds"][b]
            assert ratio["of_medians"] == median(first) / median(second)
            each = [s / t for s, t in zip(first, second, strict=True)]
            assert ratio["median_of_rounds"] == median(each)


def test_markdown_shows_what_the_json_holds(quick, benchmark_modules):
    folder, _, results = quick
    harness, _, _ = benchmark_modules
    times, kept = tables((folder / "jacobian.md").read_text())
    assert [row["case"].partition(":")[0] for row in times] == list(results["cases"])
    for row, case in zip(times, results["cases"].values(), strict=True):
        assert row["fill ms"] == harness.number(1e3 * case["median"]["fill"])
        assert row["llr `out=` ms"] == harness.number(1e3 * case["median"]["llr out="])
        speed_up = case["ratios"]["torch.func + cat / llr fresh"]["of_medians"]
        assert row["speed-up fresh"] == f"{harness.number(speed_up)}x"
        assert ("JAX ms" in row) == ("JAX" in case["median"])
    assert [row["measured"] for row in kept] == [
        harness.number(p["measured"]) for p in results["promises"]
    ]
    assert {row["holds"] for row in kept} == {"-"}, "tiny sizes keep no promise and break none"


def test_jax_is_optional(tmp_path):
    (tmp_path / "jax.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("--quick", "--cases", "D", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "JAX is not installed" in done.stdout
    assert "JAX ms" not in done.stdout


def test_promises_are_judged_by_the_ratio_of_medians(benchmark_modules):
    _, _, jacobian = benchmark_modules

    def verdicts(out, cat, op):
        ratios = {
            "llr out= / fill": {"of_medians": out},
            "torch.func + cat / llr fresh": {"of_medians": cat},
            "torch.func + cat / llr out=": {"of_medians": cat},
        }
        if op is not None:
            ratios["torch.func + cat / op fresh"] = {"of_medians": op}
        cases = {name: {"ratios": ratios} for name in CASES}
        rows = jacobian.promises(cases, apply=True)
        return {(row["case"], row["ratio"], row["holds"]) for row in rows}

    assert {holds for *_, holds in verdicts(1.0, 15.0, 30.0)} == {True}
    assert {holds for *_, holds in verdicts(1.11, 1.9, 29.0)} == {False}
    between = verdicts(1.05, 15.0, None)
    assert ("B", "llr out= / fill", False) in between
    assert ("E", "llr out= / fill", True) in between
    assert ("D", "torch.func + cat / op fresh", False) in between, "not measured is not kept"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("points", [None, 3])
@pytest.mark.parametrize("widths", [(4, 3, 1), (3, 5, 4, 2), (6, 2)])
def test_contenders_agree_with_the_reference(benchmark_modules, widths, points, dtype):
    _, contenders, _ = benchmark_modules
    case = contenders.Case(widths, n=7, points=points)
    problem = contenders.build(case, dtype, torch.device("cpu"))
    out = problem.x.new_empty(problem.shape)
    runs = contenders.contenders(problem, out)
    assert contenders.check(problem, runs, out).keys() >= {"llr fresh", "by hand out="}
    for point in range(points or 1):
        values = {n: v if points is None else v[point] for n, v in problem.values.items()}
        expected = reference.jacobian(problem.model, problem.x, values)
        result = contenders.by_hand(problem.x, problem.weights, problem.biases, out)
        torch.testing.assert_close(result if points is None else result[point], expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda J: J * (1 + 1e-9), "differs from torch.func"),
        (lambda J: J * math.nan, "differs from torch.func"),
        (lambda J: J.float(), "torch.float32"),
        (lambda J: J.flatten(), "expected torch.float64"),
    ],
)
def test_disagreement_is_refused(benchmark_modules, wrong, message):
    _, contenders, _ = benchmark_modules
    case = contenders.Case((2, 4, 1), n=3)
    problem = contenders.build(case, torch.float64, torch.device("cpu"))
    out = problem.x.new_empty(problem.shape)
    runs = contenders.contenders(problem, out)
    right = runs["llr fresh"]
    runs["llr fresh"] = lambda: wrong(right())
    with pytest.raises(contenders.Disagreement, match=message):
        contenders.check(problem, runs, out)
    runs["llr fresh"] = right
    runs["llr out="] = lambda: out  # writes nothing
    with pytest.raises(contenders.Disagreement, match="llr out="):
        contenders.check(problem, runs, out)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_peak_memory_holds_the_result():
    done = run("--quick", "--peak", "E", "torch.func + cat")
    assert done.returncode == 0, done.stderr
    result = 2 * 10 * 79510 * 8
    # The pieces and the concatenation take twice the result; there is no complete copy of the process.
    assert 1.5 * result < int(done.stdout) < 10 * result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads is 0; expected at least 1"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "float16"], "float16"),
        (["--out", __file__], "test_jacobian.py"),
    ],
)
def test_bad_arguments_end_at_once(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_write_leaves_the_old_file(benchmark_modules, tmp_path):
    harness, _, _ = benchmark_modules
    target = tmp_path / "result.md"
    harness.write(target, "old ×")
    with pytest.raises(UnicodeEncodeError):
        harness.write(target, "new \udcff")
    assert target.read_text(encoding="utf-8") == "old ×"
    assert list(tmp_path.iterdir()) == [target]


def test_load_of_others_is_warned_of(benchmark_modules):
    harness, _, _ = benchmark_modules
    threads = torch.get_num_threads()
    assert harness.load_warning(0.1, threads) is None
    assert "2.0 at the start" in harness.load_warning(2.0)
    assert "at the end" in harness.load_warning(0.1, threads + 2.0)
