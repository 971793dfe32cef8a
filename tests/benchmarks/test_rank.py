"""The rank benchmark runs, its results are complete, and its verdicts are right. Times are not checked."""

import json
import math
import os
import subprocess
import sys
from statistics import median

import pytest
import torch
from helpers.benchmark_modules import BENCHMARKS, imported, tables

from llr.jacobians import reference

# The benchmark runs without the native library too, with fewer contenders.
pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

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
    with imported(NAMES) as found:
        yield found


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
    """Cases whose medians are `factor` times better than promised."""
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
def test_memory_and_scaling_are_reported(modules, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    before, measure = kept_results(), modules.rank_scaling.measure
    # Ten new processes would mostly import torch; other tests here start real ones.
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
        (["--out", __file__], "test_rank.py"),
    ],
)
def test_bad_arguments_end_at_once(modules, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["rank.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        modules.rank.arguments()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
