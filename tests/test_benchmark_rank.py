"""The rank benchmark runs, its results are complete, and its verdicts follow from them. No time is judged."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from llr import reference

# The benchmark runs without the native library too, with fewer contenders.
pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("harness", "contenders", "rank_contenders", "rank_scaling", "rank_report", "rank")
SVD = {"svd-100x81", "svd-32x32", "svd-200x60"}
RANK = {"rank-256", "rank-512"}
PROOF = {"proof-32", "proof-10-10", "proof-40"}
CPU = torch.device("cpu")
reads_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def run(*arguments, **environment):
    command = [sys.executable, str(BENCHMARKS / "rank.py"), *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


def kept_results():
    return {f.name: f.stat().st_mtime_ns for f in (BENCHMARKS / "results").iterdir()}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("results"), kept_results()
    done = run("--quick", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert kept_results() == before
    return folder, done, json.loads((folder / "rank.json").read_text())


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
        for name in NAMES:
            del sys.modules[name]


def tables(text):
    """Each Markdown table as a list of rows, column -> cell."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            head, _, *rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
            assert all(len(row) == len(head) for row in rows)
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def test_quick_run_leaves_two_whole_files(quick):
    folder, done, results = quick
    assert {f.name for f in folder.iterdir()} == {"rank.json", "rank.md"}
    assert set(results["cases"]) == SVD | RANK | PROOF | {"big"}
    assert (folder / "rank.md").read_text() in done.stdout
    for name in results["cases"]:
        assert f"{name} ..." in done.stderr, "no progress line"


def test_every_contender_has_its_samples(quick, modules):
    _, _, results = quick
    library, native = modules.rank_contenders, results["environment"]["llr_info"]["backend"]
    svd = {library.LLR, library.TORCH, library.NUMPY, library.LLR_RANK, library.TORCH_RANK}
    svd |= {library.OP} if native == "native" else set()
    optional = {library.GESDD, library.GEJSV, library.JAX}
    certificates = {library.CERTIFIED, library.VERIFY, library.TORCH_FUNC}
    for name, case in results["cases"].items():
        if name in SVD:
            assert svd <= set(case["samples"]) <= svd | optional
        elif name in RANK:
            assert set(case["samples"]) == set(library.RANKS)
        elif name in PROOF:
            assert set(case["samples"]) == certificates
        for contender, samples in case.get("samples", {}).items():
            assert len(samples) == case["rounds"] == 2
            assert min(samples) > 0
            assert case["median"][contender] == median(samples)


def test_ratios_follow_from_the_samples(quick, modules):
    _, _, results = quick
    library = modules.rank_contenders
    assert f"{library.TORCH} / {library.LLR}" in results["cases"]["svd-32x32"]["ratios"]
    assert f"{library.TORCH_FUNC} / {library.AUTO}" in results["cases"]["rank-256"]["ratios"]
    for case in results["cases"].values():
        for pair, ratio in case.get("ratios", {}).items():
            first, second = (case["samples"][name] for name in pair.split(" / "))
            assert ratio["of_medians"] == median(first) / median(second)


def test_what_was_found_is_right(quick, modules):
    _, _, results = quick
    cases, library = results["cases"], modules.rank_contenders
    for name in SVD:
        full = modules.rank.SVD_CASES[name].short_side
        assert set(cases[name]["difference"]) == {f"rank {full // 2}", f"rank {full}"}
        for errors in cases[name]["difference"].values():
            assert all(0 <= error <= library.AGREEMENT for error in errors.values())
    for name in RANK:
        ranks = {fact["rank"] for fact in cases[name]["said"].values()}
        assert ranks == {2}, "two samples, many parameters"
    assert [found["rank"] for found in cases["big"]["runs"]] == [2]
    for name, P in {"proof-32": 9, "proof-10-10": 22, "proof-40": 15}.items():
        proof = cases[name]
        assert (proof["P"], proof["rank"], proof["exact"]) == (P, P, True)
        assert proof["bits"] >= 53
        assert proof["seconds"] == proof["median"][library.CERTIFIED]


def test_environment_is_recorded(quick):
    _, _, results = quick
    environment = results["environment"]
    for fact in ("date", "cpu", "threads", "torch", "llr", "llr_info", "load_average", "numpy"):
        assert environment[fact] not in (None, ""), fact
    assert environment["torch"] == torch.__version__
    assert results["settings"]["quick"] is True


def test_markdown_shows_what_the_json_holds(quick, modules):
    folder, _, results = quick
    cases, library, number = results["cases"], modules.rank_contenders, modules.harness.number
    svd, ranks, big, proofs, kept = tables((folder / "rank.md").read_text())

    def pairs(rows):
        first = next(iter(rows[0]))
        return [(row, cases[row[first].partition(":")[0]]) for row in rows]

    assert [len(rows) for rows in (svd, ranks, big, proofs)] == [3, 2, 1, 3]
    for row, case in pairs(svd):
        for name in (library.LLR, library.TORCH, library.NUMPY):
            assert row[f"{name} ms"] == number(1e3 * case["median"][name])
        ratio = case["ratios"][f"{library.TORCH} / {library.LLR}"]["of_medians"]
        assert row["speed-up llr"] == f"{number(ratio)}x"
    for row, case in pairs(ranks):
        assert row["P"] == f"{case['P']:,}"
        assert row["auto takes"] == case["said"][library.AUTO]["method"]
        assert row[f"{library.GRAM} ms"] == number(1e3 * case["median"][library.GRAM])
    for row, case in pairs(big):
        assert row["time"] == f"{number(case['seconds'])} s"
    for row, case in pairs(proofs):
        assert row["bits"] == str(case["bits"])
        assert row["torch float32 says"] == str(case["float32"])
    assert [(row["case"], row["of"]) for row in kept] == [
        (case, what) for case, what, _, _ in modules.rank.PROMISES
    ]
    assert {row["holds"] for row in kept} == {"-"}, "tiny sizes keep no promise and break none"
    assert all(row["measured"] != "-" for row in kept if " / torch.ops" not in row["of"])


def made_up(rank, factor):
    """Cases whose numbers are `factor` times better than promised, at their median."""
    cases = {}
    for name, what, sign, bound in rank.PROMISES:
        case = cases.setdefault(name, {})
        if " / " in what:
            slow, fast = what.split(" / ")
            samples = {fast: [9.0, 1.0, 1.0], slow: [0.1, factor * bound, factor * bound]}
            case["ratios"] = rank.ratios(samples, [(slow, fast)])
        elif sign == "=":
            case[what] = factor >= 1
        else:
            case[what] = bound / factor * (1 - 1e-12)
    return cases


def test_promises_are_judged_by_the_medians(modules):
    rank = modules.rank

    def verdicts(cases, apply=True):
        return [row["holds"] for row in rank.promises(cases, apply)]

    assert set(verdicts(made_up(rank, 1.0))) == {True}
    assert set(verdicts(made_up(rank, 0.99))) == {False}
    assert set(verdicts(made_up(rank, 1.0), apply=False)) == {None}
    assert verdicts({"proof-40": {"exact": True, "seconds": 10.0}}) == [True, False], "under 10 s"
    assert verdicts({"big": {"missing": "over 300 s"}}) == [False, False], (
        "not measured is not kept"
    )
    assert verdicts({"svd-32x32": {"ratios": {}}}) == [False]
    bounds = {row["bound"] for row in rank.promises(made_up(rank, 2), apply=True)}
    assert {"≥ 6", "≥ 30", "< 30 s", "< 2 GB", "yes", "< 10 s"} <= bounds


def test_every_case_has_a_promise(modules):
    assert {case for case, *_ in modules.rank.PROMISES} == set(modules.rank.CASES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda values: values * (1 + 1e-9), "differs from torch.linalg.svdvals"),
        (lambda values: values * math.nan, "differs from torch.linalg.svdvals"),
        (lambda values: values.float(), "torch.float32"),
        (lambda values: values[:, 1:], "expected torch.float64"),
        (lambda values: values.flip(-1), "differs"),
    ],
)
def test_a_disagreement_of_singular_values_is_refused(modules, wrong, message):
    library = modules.rank_contenders
    case = library.Matrices(3, 9, 5)
    runs = library.svd_contenders(library.matrices(case, 5, CPU), None)
    assert library.check_svd(runs, case, 5, CPU).keys() >= {library.LLR, library.NUMPY}
    right = runs[library.LLR]
    runs[library.LLR] = lambda: wrong(right())
    with pytest.raises(library.Disagreement, match=message):
        library.check_svd(runs, case, 5, CPU)


def test_a_wrong_rank_is_refused(modules):
    library = modules.rank_contenders
    case = library.Matrices(3, 9, 5)
    A = library.matrices(case, 2, CPU)
    assert torch.linalg.matrix_rank(A).tolist() == [2, 2, 2]
    runs = library.svd_contenders(A, None)
    library.check_svd(runs, case, 2, CPU)
    with pytest.raises(library.Disagreement, match=r"of rank 3, is \[2\]"):
        library.check_svd(runs, case, 3, CPU)


def test_a_disagreement_of_ranks_is_refused(modules):
    library = modules.rank_contenders
    model, x = library.network(modules.contenders.Case((3, 4, 4, 1), 6), CPU)
    runs = {name: library.rank_contender(name, model, x) for name in library.RANKS}
    said, errors = library.check_ranks(runs, model, x)
    assert {fact["rank"] for fact in said.values()} == {6}
    assert errors.keys() == set(library.RANKS) - {library.TORCH_FUNC}
    few = {**runs, library.GRAM: library.rank_contender(library.GRAM, model, x[:5])}
    with pytest.raises(library.Disagreement, match="5 singular values; expected 6"):
        library.check_ranks(few, model, x)
    near = {**runs, library.GRAM: library.rank_contender(library.GRAM, model, x * (1 + 1e-9))}
    with pytest.raises(library.Disagreement, match="llr gram differs"):
        library.check_ranks(near, model, x)
    low = {**runs, library.TORCH_FUNC: lambda: torch.tensor(5)}
    with pytest.raises(library.Disagreement, match=r"matrix_rank: 5"):
        library.check_ranks(low, model, x)


def test_a_refused_certificate_is_refused(modules, monkeypatch):
    library = modules.rank_contenders
    model, x = library.proof_network(modules.rank.PROOF_CASES["proof-32"].quick)

    class Refused:
        reason = "a row is missing"

        def __bool__(self):
            return False

    monkeypatch.setattr(library, "verify", lambda *_: Refused())
    with pytest.raises(library.Disagreement, match="a row is missing"):
        library.proof_contenders(model, x)


def test_a_planted_disagreement_stops_the_run(modules, monkeypatch, tmp_path, capsys):
    library, right = modules.rank_contenders, modules.rank.svd_contenders

    def planted(A, jax):
        return right(A, jax) | {library.NUMPY: lambda: torch.linalg.svdvals(A).numpy() * 1.001}

    monkeypatch.setattr(modules.rank, "svd_contenders", planted)
    arguments = ["rank.py", "--quick", "--cases", "svd-32x32", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=r"numpy differs .* Nothing was timed"):
        modules.rank.main()
    assert not any(tmp_path.iterdir())
    assert "|" not in capsys.readouterr().out


def test_jacobian_by_torch_is_the_reference(modules):
    library = modules.rank_contenders
    model, x = library.network(modules.contenders.Case((3, 5, 2), 4), CPU)
    expected = reference.jacobian(model, x, dict(model.named_parameters())).flatten(0, 1)
    torch.testing.assert_close(library.jacobian_by_torch(model, x), expected.detach())


@pytest.mark.parametrize(("name", "P"), [("proof-32", 96), ("proof-10-10", 141), ("proof-40", 200)])
def test_proof_networks_are_exact_binary_numbers(modules, name, P):
    case = modules.rank.PROOF_CASES[name]
    model, x = modules.rank_contenders.proof_network(case)
    again, x_again = modules.rank_contenders.proof_network(case)
    assert sum(p.numel() for p in model.parameters()) == P < len(x) == case.n
    assert torch.equal(x, x_again)
    for value, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(value, same)
        assert torch.equal(value * 2**20, torch.round(value * 2**20))
    if name == "proof-32":  # what the certificate is for
        assert torch.linalg.matrix_rank(modules.rank_contenders.jacobian_by_torch(model, x)) < 60


def test_parameters_are_counted(modules):
    for case in modules.rank.RANK_CASES.values():
        model, _ = modules.rank_contenders.network(case, CPU)
        assert modules.rank.parameters(case) == sum(p.numel() for p in model.parameters())
    for sweep in modules.rank_scaling.SWEEPS.values():
        name, _, size = sweep.fixed.partition(" = ")
        sizes = {"P": modules.rank.parameters, "n": lambda case: case.n}
        fixed = {sizes[name](case) for case in sweep.cases}
        assert fixed == {int(size.replace(",", ""))}


def measured(point, longest):
    """A made-up machine: quadratic in n, linear in P; certificates soon take too long."""
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


def test_failures_are_named(modules):
    broken = {"missing": "ValueError: no", "failed": True}
    late = {"missing": "over 60 s", "failed": False}
    results = {
        "cases": {"big": {**broken}, "proof-40": {}},
        "memory": {"rank-256": {"llr gram": late, "llr svd": broken}},
        "scaling": {"P": {"points": [{"case": "c", "contender": "llr tsqr", **broken}]}},
    }
    assert [line.partition(":")[0] for line in modules.rank.failures(results)] == [
        "big",
        "rank-256, llr svd",
        "c, llr tsqr",
    ]


@reads_proc
def test_a_process_of_its_own_measures_time_and_memory(modules):
    scaling = modules.rank_scaling
    case = modules.contenders.Case((10, 256, 256, 1), 64)
    found = scaling.fresh(scaling.Point(case, "torch.func + matrix_rank", "cpu", 1), 120)
    assert found["rank"] == 64
    assert found["seconds"] > 0
    # The pieces, the concatenation and LAPACK's copy; no whole copy of the process.
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


@reads_proc
def test_memory_and_scaling_are_reported(modules, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    before, measure = kept_results(), modules.rank_scaling.measure
    # Ten fresh processes would spend their time on importing torch; others here start real ones.
    monkeypatch.setattr(modules.rank, "fresh", lambda point, _: measure(point))
    arguments = ["--quick", "--cases", "rank-256", "--memory", "--scaling", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["rank.py", *arguments])
    modules.rank.main()
    assert kept_results() == before
    names = {"rank.json", "rank.md", "rank_scaling.svg"}
    assert {f.name for f in tmp_path.iterdir()} == names
    results = json.loads((tmp_path / "rank.json").read_text())
    measured = results["memory"]["rank-256"]
    assert set(measured) == set(modules.rank_contenders.RANKS)
    assert {found["rank"] for found in measured.values()} == {2}
    for sweep in results["scaling"].values():
        contenders = [point["contender"] for point in sweep["points"]]
        assert contenders == list(modules.rank_scaling.CONTENDERS)
        assert all(point["seconds"] > 0 and point["rank"] == 8 for point in sweep["points"])
    *_, memory, grown = tables((tmp_path / "rank.md").read_text())
    assert memory[0]["case"] == "rank-256"
    assert {row["what ended it"] for row in grown} == {"-"}
    assert "(rank_scaling.svg)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads is 0; expected at least 1"),
        (["--cases", "abacus"], "abacus"),
        (["--device", "abacus"], "abacus"),
        (["--out", __file__], "test_benchmark_rank.py"),
    ],
)
def test_bad_arguments_end_at_once(modules, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["rank.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        modules.rank.arguments()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
