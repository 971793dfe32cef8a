"""The benchmarks on a GPU, tested without one: with stand-ins for the GPU and its events."""

import json
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.benchmark_modules import BENCHMARKS, imported
from helpers.gpu_stand_in import GPU, NAME, on_gpu, stand_in

from llr.operators import _ops

pytestmark = [
    pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's own
]
NAMES = ("gpu", "harness", "contenders", "gpu_model", "jacobian")
NAMES += ("rank_contenders", "rank_scaling", "rank_report", "rank")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def modules():
    with imported(NAMES) as found:
        yield found


class Stream:
    """A simulated GPU clock in seconds, and a log of operations in order."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def run(self, seconds, name):
        def call():
            self.now += seconds
            self.log.append(name)

        return call

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, stream):
        self.stream, self.time, self.done = stream, None, False

    def record(self):
        self.stream.log.append("record")
        self.time = self.stream.now

    def synchronize(self):
        assert self.time is not None, "not recorded"
        self.stream.log.append("wait")
        self.done = True

    def elapsed_time(self, end):
        assert end.done, "a GPU would not have got there yet"
        return 1e3 * (end.time - self.time)  # ms


class HostEvent(Event):
    """An event that measures work on the host in place of the GPU."""

    def __init__(self, enable_timing):
        super().__init__(SimpleNamespace(log=[]))
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()


def test_events_enclose_the_calls(modules):
    stream = Stream()
    clock = modules.gpu.EventClock(stream.event)
    assert clock(stream.run(0.002, "a"), 3) == pytest.approx(0.006)
    assert stream.log == ["record", "a", "a", "a", "record", "wait"]


def test_samples_are_long_enough_for_events(modules):
    stream = Stream()
    runs = {"long": stream.run(0.5, "long"), "short": stream.run(0.0003, "short")}
    clock = modules.gpu.EventClock(stream.event)
    calls, samples = modules.harness.interleaved(runs, clock, seconds=3.6)
    assert calls == {"long": 1, "short": 8}
    assert samples["long"] == pytest.approx([0.5] * 7)
    assert samples["short"] == pytest.approx([0.0003] * 7)
    rounds = [name for name in stream.log if name in runs][-7 * 9 :]
    assert all(set(rounds[i : i + 9]) == set(runs) for i in range(0, len(rounds), 9))


def test_every_device_has_its_clock(modules):
    assert isinstance(modules.harness.clock_of(CPU), modules.harness.WallClock)
    assert isinstance(modules.harness.clock_of(GPU), modules.gpu.EventClock)
    took = modules.harness.clock_of(CPU)(lambda: time.sleep(0.01), 2)
    assert took >= 0.02


@pytest.fixture
def card(modules, monkeypatch):
    """A simulated GPU with the CPU's operators. Gives the calls of nvidia-smi."""
    asked = []

    def smi(command, **_):
        if command[0] != "nvidia-smi":
            return run_really(command, **_)
        asked.append(command)
        return SimpleNamespace(stdout="580.65.06, 1755, 2619, 1980, [N/A], 43\n")

    run_really = subprocess.run
    properties = SimpleNamespace(
        name=NAME,
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=80 << 30,
        L2_cache_size=50 << 20,
        uuid="1234-5678",
    )
    with stand_in(monkeypatch):
        monkeypatch.setattr(modules.gpu.subprocess, "run", smi)
        for name, value in {
            "get_device_properties": lambda _=None: properties,
            "set_device": lambda _: None,
            "synchronize": lambda _=None: None,
            "Event": HostEvent,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(
            modules.gpu, "capture", lambda run: (SimpleNamespace(replay=run), run())
        )
        monkeypatch.setattr(modules.gpu.EventClock.__init__, "__defaults__", (HostEvent,))
        yield asked


def test_facts_of_a_gpu(modules, card):
    facts = modules.gpu.facts(GPU)
    assert facts["name"] == NAME
    assert (facts["capability"], facts["multiprocessors"]) == ("9.0", 132)
    assert facts["cuda"] == torch.version.cuda
    assert facts["driver"] == "580.65.06"
    assert (facts["clock_mhz"], facts["highest_clock_mhz"]) == (1755, 1980)
    assert (facts["watts"], facts["celsius"]) == (None, 43)
    assert "--id=GPU-1234-5678" in card[0]
    assert modules.harness.result_name("rank", GPU) == "rank-stand-in-gpu"
    assert modules.harness.result_name("rank", CPU) == "rank"


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    "failure", [FileNotFoundError("nvidia-smi"), subprocess.CalledProcessError(9, "nvidia-smi")]
)
def test_clocks_are_optional(modules, monkeypatch, failure):
    def fails(*_, **__):
        raise failure

    monkeypatch.setattr(modules.gpu.subprocess, "run", fails)
    assert modules.gpu.state(GPU) == {}
    assert modules.gpu.facts(GPU)["name"] == NAME


@pytest.mark.usefixtures("card")
def test_contenders_of_a_gpu_agree(modules):
    library = modules.contenders
    problem = library.build(library.Case((3, 5, 2), 7), torch.float64, GPU)
    out = problem.x.new_empty(problem.shape)
    runs = library.contenders(problem, out)
    on_cpu = library.contenders(
        library.build(library.Case((3, 5, 2), 7), torch.float64, CPU), torch.empty(problem.shape)
    )
    assert runs.keys() - on_cpu.keys() == {library.COPY, library.OP_GRAPH}
    errors = library.check(problem, runs, out)
    assert errors.keys() == runs.keys() - {library.FILL, library.COPY, library.TORCH}
    runs[library.COPY]()
    assert torch.equal(out, torch.full_like(out, 0.5))


def test_a_graph_is_captured_once_and_replayed(modules, monkeypatch):
    log = []
    graph = SimpleNamespace(replay=lambda: log.append("replay"))

    def capture(run):
        log.append("capture")
        return graph, run()

    monkeypatch.setattr(modules.gpu, "capture", capture)
    replay = modules.gpu.graph_of(lambda: "result")
    assert log == []
    assert [replay(), replay()] == ["result", "result"]
    assert log == ["capture", "replay", "replay"]


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("points", [None, 3])
def test_compiled_contenders(modules, monkeypatch, points):
    library, modes = modules.contenders, []

    def compile_(function, *, dynamic, mode):
        assert dynamic is False
        modes.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    for device, expected in ((CPU, ["default"]), (GPU, ["default", "reduce-overhead"])):
        problem = library.build(library.Case((3, 5, 2), 4, points), torch.float64, device)
        runs, missing = library.compiled_contenders(problem)
        assert modes == expected
        assert list(runs) == [library.COMPILED, library.COMPILED_GRAPH][: len(expected)]
        assert missing == {}
        out = problem.x.new_empty(problem.shape)
        assert len(library.check(problem, library.contenders(problem, out) | runs, out)) >= 6
        modes.clear()


def test_what_does_not_compile_is_said(modules, monkeypatch):
    library = modules.contenders

    def compile_(*_, **__):
        def fails(*_):
            raise RuntimeError("no C++ compiler\nand many more lines")

        return fails

    monkeypatch.setattr(torch, "compile", compile_)
    problem = library.build(library.Case((3, 5, 2), 4), torch.float64, CPU)
    assert library.compiled_contenders(problem) == ({}, {library.COMPILED: "no C++ compiler"})


@pytest.mark.slow
def test_torch_compiles_its_contender(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "jacobian.py"), "--quick", "--compile"]
    command += ["--cases", "D", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    case = json.loads((tmp_path / "jacobian.json").read_text())["cases"]["D"]
    if case["missing"]:
        assert f"D without torch.compile: {case['missing']['torch.compile']}." in done.stdout
        pytest.skip(case["missing"]["torch.compile"])
    assert case["difference"]["torch.compile"] <= 1e-10
    assert "torch.compile ms" in done.stdout


@pytest.mark.usefixtures("card")
def test_the_whole_run_on_a_gpu(modules, monkeypatch, tmp_path, capsys):
    jacobian = modules.jacobian
    known = modules.gpu_model.GPUS["NVIDIA H100 80GB HBM3"]
    monkeypatch.setitem(jacobian.GPUS, NAME, known)
    arguments = ["--device", "cuda", "--dtype", "float32", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["jacobian.py", *arguments])
    every = jacobian.arguments()
    assert set(every.cases) == set(jacobian.CASES) | set(jacobian.GPU_CASES)
    assert every.compile is True
    monkeypatch.setattr(sys, "argv", ["jacobian.py", "--quick", *arguments, "--cases", "A", "H"])
    monkeypatch.setattr(jacobian, "import_jax", lambda _: None)
    jacobian.main()
    name = "jacobian-float32-stand-in-gpu"
    assert {f.name for f in tmp_path.iterdir()} == {f"{name}.json", f"{name}.md"}
    results = json.loads((tmp_path / f"{name}.json").read_text())
    assert set(results["cases"]) == {"A", "H"}
    assert results["environment"]["gpu"]["driver"] == "580.65.06"
    for key, case in results["cases"].items():
        copy = 2 * case["bytes"] / case["median"]["copy"]
        reached = case["bytes"] / case["median"]["op graph"] / copy
        assert case["of copy"] == pytest.approx(reached)
        quick = (jacobian.CASES | jacobian.GPU_CASES)[key].quick
        work = jacobian.modelled(quick.widths, quick.n, quick.points, 4, known, copy)
        assert case["expected"]["of copy"] == pytest.approx(work.limits["memory"] / work.seconds)
        assert case["gpu"]["clock_mhz"] == 1755
    text = capsys.readouterr().out
    assert "driver 580.65.06, CUDA " in text
    assert "1755 of 1980 MHz at the start" in text
    assert "| of copy | expected | limited by | MHz |" in text
    assert "this run has other settings" in text, "promises for the CPU do not apply to a GPU"


@pytest.mark.usefixtures("card")
def test_an_unknown_gpu_has_no_expectations(modules, monkeypatch, tmp_path, capsys):
    arguments = ["--quick", "--device", "cuda", "--cases", "D", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["jacobian.py", *arguments])
    monkeypatch.setattr(modules.jacobian, "import_jax", lambda _: None)
    modules.jacobian.main()
    case = json.loads((tmp_path / "jacobian-stand-in-gpu.json").read_text())["cases"]["D"]
    assert case["expected"] is None
    assert case["of copy"] > 0
    assert "| - | - | 1,755 |" in capsys.readouterr().out


def test_no_gpu_is_an_error_at_once(modules, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for module in (modules.jacobian, modules.rank):
        monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--device", "cuda"])
        with pytest.raises(SystemExit) as ended:
            module.arguments()
        assert ended.value.code == 2
        assert re.search("CUDA|NVIDIA", capsys.readouterr().err)


# --- ranks --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("card")
def test_drivers_of_cusolver_are_timed_by_name(modules, monkeypatch):
    library, asked = modules.rank_contenders, []

    def svdvals(A, *, driver=None):
        asked.append(driver)
        return really(A)

    really = torch.linalg.svdvals
    case = library.Matrices(3, 9, 5)
    runs = library.svd_contenders(library.matrices(case, 5, GPU), None)
    assert set(library.DRIVERS) <= set(runs)
    assert {library.GESDD, library.GEJSV}.isdisjoint(runs), "of the CPU"
    monkeypatch.setattr(torch.linalg, "svdvals", svdvals)
    again = library.svd_contenders(library.matrices(case, 5, GPU), None)
    for name in library.DRIVERS:
        again[name]()
    assert asked == ["gesvd", "gesvdj", "gesvda"]
    assert library.check_svd(
        runs | dict.fromkeys(library.DRIVERS, again[library.TORCH]), case, 5, GPU
    )


@pytest.mark.usefixtures("card")
def test_what_cusolver_gets_wrong_is_not_timed(modules):
    library = modules.rank_contenders
    case = library.Matrices(3, 9, 5)
    A = library.matrices(case, 5, GPU)
    runs = library.svd_contenders(A, None)
    right = runs[library.TORCH]

    def diverges():
        raise torch.linalg.LinAlgError("no convergence\nat all")

    gesvd, gesvdj, gesvda = library.DRIVERS
    runs |= {gesvd: right, gesvdj: diverges, gesvda: lambda: right() * (1 + 1e-9)}
    excused = {}
    errors = library.check_svd(runs, case, 5, GPU, excused)
    assert excused.keys() == {gesvdj, gesvda}
    assert excused[gesvdj] == "no convergence"
    assert "differs from numpy by 1.0e-09" in excused[gesvda]
    assert {library.OP, library.LLR, library.TORCH, gesvd} <= errors.keys()
    timed = modules.rank.timed(runs, SimpleNamespace(device=GPU, quick=True), 0, excused)
    assert timed["samples"].keys() == runs.keys() - excused.keys()
    runs[library.LLR] = lambda: right() * (1 + 1e-9)
    with pytest.raises(library.Disagreement, match=r"llr\.svdvals differs"):
        library.check_svd(runs, case, 5, GPU, excused)


@pytest.mark.usefixtures("card")
def test_grams_agree(modules):
    library = modules.rank_contenders
    model, x = library.network(modules.contenders.Case((3, 5, 2), 6), CPU)
    on_cpu = library.gram_contenders(model, x)
    assert set(on_cpu) == set(library.GRAMS)
    runs = library.gram_contenders(on_gpu(model), on_gpu(x))
    assert set(runs) == set(library.GRAMS) | {
        f"{library.GRAM_OP} graph",
        f"{library.GRAM_DD} graph",
    }
    for some in (on_cpu, runs):
        errors = library.check_grams(some)
        assert errors.keys() == some.keys() - {library.GRAM_TORCH}
        wrong = some | {library.GRAM_DD: lambda runs=some: runs[library.GRAM_OP]() * (1 + 1e-9)}
        with pytest.raises(library.Disagreement, match="double-double differs"):
            library.check_grams(wrong)


@pytest.mark.usefixtures("card")
def test_ranks_on_a_gpu(modules, monkeypatch, tmp_path, capsys):
    rank = modules.rank
    really = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda A, **_: really(A))
    monkeypatch.setitem(rank.GPUS, NAME, modules.gpu_model.GPUS["NVIDIA H100 80GB HBM3"])
    monkeypatch.setattr(rank, "import_jax", lambda _: None)
    arguments = ["--quick", "--device", "cuda", "--out", str(tmp_path)]
    arguments += ["--cases", "svd-32x32", "gram-512"]
    monkeypatch.setattr(sys, "argv", ["rank.py", *arguments])
    rank.main()
    assert {f.suffix for f in tmp_path.glob("rank-stand-in-gpu.*")} == {".json", ".md"}
    cases = json.loads((tmp_path / "rank-stand-in-gpu.json").read_text())["cases"]
    assert list(cases["svd-32x32"]["expected"]) == [modules.rank_contenders.OP]
    assert len(cases["gram-512"]["expected"]) == 2
    text = capsys.readouterr().out
    assert "torch.linalg.svdvals gesvda ms" in text
    assert "| case | operator | expected ms | measured ms | reached |" in text
    monkeypatch.setattr(sys, "argv", ["rank.py", "--device", "cuda", "--out", str(tmp_path)])
    assert rank.arguments().cases == list(rank.GPU_CASES)
