"""Running a sweep: the same numbers in every mode, failures, refusals and reports."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import sweep_cases
from helpers.sweep_cases import ENVIRONMENT, columns, grid, ranks, settled, start, toml, undisturbed

from llr.recovery.sweep import Cell, Outcome, Spec, Tally, processes, read_store, run, tally
from llr.recovery.sweep import spec as spec_module
from llr.recovery.sweep.runner import execute, load_runner

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.sqlite"


@pytest.fixture(autouse=True)
def processes_find_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])


def failures(path: Path) -> dict[int, str]:
    with read_store(path) as store:
        failed = [row for row in store.rows() if row.outcome and row.outcome.error]
    return {int(row.cell.values["seed"]): str(row.outcome and row.outcome.error) for row in failed}


class TestModes:
    def test_processes(self, tmp_path: Path, out: Path) -> None:
        end = run(grid(8), out, runner="helpers.sweep_cases:counted", jobs=2)
        assert end is not None
        assert (end.done, end.now, end.left) == (8, 8, 0)
        assert columns(out) == undisturbed(grid(8), tmp_path)

    def test_ranks_without_torchrun(self, tmp_path: Path) -> None:
        """Ranks as other launchers start them on two machines: only the first has the spec and the file."""
        machines = [tmp_path / "first", tmp_path / "second"]
        for machine in machines:
            machine.mkdir()
        (machines[0] / "spec.toml").write_text(toml(40))
        arguments = ("spec.toml", "--runner", "helpers.sweep_cases:counted")
        started = [
            start(*arguments, env=group, cwd=machine, stdout=subprocess.PIPE)
            for machine, group in zip(machines, ranks(2, sleep=0.1), strict=True)
        ]
        said = [process.communicate(timeout=120)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0]
        assert said[0].startswith("40 of 40 cells done")
        assert said[1] == ""
        assert os.listdir(machines[1]) == []
        assert columns(machines[0] / "spec.sqlite") == undisturbed(grid(40), tmp_path)
        with read_store(machines[0] / "spec.sqlite") as store:
            workers = {row.outcome.worker.split(" (")[0] for row in store.rows() if row.outcome}
        assert "rank 1" in workers
        assert len(workers) == 2

    def test_torchrun_refuses_jobs(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        group = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        for name, value in group.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match="jobs is 2 under torchrun; expected 1"):
            run(grid(4), out, jobs=2)

    def test_a_group_of_one_is_no_group(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        group = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        for name, value in group.items():
            monkeypatch.setenv(name, value)
        end = run(grid(4), out, runner="helpers.sweep_cases:counted")
        assert end is not None
        assert end.done == 4


class TestResume:
    def test_nothing_is_repeated(
        self, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
        seen: list[Tally] = []

        def stop(now: Tally) -> None:
            seen.append(now)
            if now.done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(grid(8), out, runner="helpers.sweep_cases:counted", progress=stop)
        assert [now.done for now in seen] == [0, 1, 2, 3]
        assert len(settled(out)) == 3
        end = run(grid(8), out)
        assert end is not None
        assert (end.done, end.now) == (8, 5)
        again = run(grid(8), out, jobs=2)
        assert again is not None
        assert (again.done, again.now) == (8, 0)
        assert set(sweep_cases.calls(tmp_path / "calls").values()) == {1}
        monkeypatch.delenv("CALLS")
        assert columns(out) == undisturbed(grid(8), tmp_path)

    def test_a_result_is_on_disk_when_it_is_reported(self, out: Path) -> None:
        found = []
        run(
            grid(6),
            out,
            runner="helpers.sweep_cases:counted",
            progress=lambda now: found.append(len(settled(out)) - now.done),
        )
        assert found == [0] * 7


class TestFailures:
    def test_errors_are_results(
        self, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MENDED", str(tmp_path / "mended"))
        end = run(grid(8), out, runner="helpers.sweep_cases:refusing")
        assert end is not None
        assert (end.done, end.failed, end.left) == (6, 2, 0)
        assert failures(out) == {1: "LookupError: no way"}
        settled_again = run(grid(8), out)
        assert settled_again is not None
        assert (settled_again.failed, settled_again.now) == (2, 0)
        (tmp_path / "mended").touch()
        seen: list[Tally] = []
        mended = run(grid(8), out, retry_failed=True, progress=seen.append)
        assert [(now.done, now.failed, now.left) for now in seen] == [
            (6, 0, 2),
            (7, 0, 1),
            (8, 0, 0),
        ]
        assert mended == seen[-1]

    def test_a_cell_that_kills_its_process(self, out: Path) -> None:
        """After it has killed three processes, the cell counts as failed; the others are computed."""
        spec = Spec.parse({**sweep_cases.SHARED, "n": 5, "seed": [0, 1, 2, 3, 4]})
        end = run(spec, out, runner="helpers.sweep_cases:deadly", jobs=2)
        assert end is not None
        assert (end.done, end.failed, end.left) == (4, 1, 0)
        assert set(failures(out)) == {2}
        assert "its process died 3 times" in failures(out)[2]

    def test_cells_are_refused_before_any_work(self, out: Path) -> None:
        with pytest.raises(ValueError, match=r"cell .* n=5 .*: n is 5; expected another"):
            run(grid(8), out, runner="helpers.sweep_cases:particular")
        assert settled(out) == set()

    def test_an_error_while_processes_compute(self, out: Path) -> None:
        """An error such as a full disk: the processes end, and written results stay."""

        def full(now: Tally) -> None:
            if now.done == 3:
                raise OSError("no space")

        with pytest.raises(OSError, match="no space"):
            run(grid(40), out, runner="helpers.sweep_cases:counted", jobs=2, progress=full)
        assert len(settled(out)) == 3
        assert not [p for p in psutil.Process().children() if "llr.recovery.sweep" in p.cmdline()]
        end = run(grid(40), out)
        assert end is not None
        assert (end.done, end.now) == (40, 37)

    def test_processes_that_die_and_die(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Processes that die before they compute anything, as without memory for torch."""

        def spawn(*_: object) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-c", "raise SystemExit(9)"], stdin=subprocess.PIPE
            )

        monkeypatch.setattr(processes, "_spawn", spawn)
        with pytest.raises(
            RuntimeError, match=r"7 processes have died .* with exit code 9: out of"
        ):
            run(grid(8), out, runner="helpers.sweep_cases:counted", jobs=2)
        assert settled(out) == set()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"jobs": 0}, "jobs is 0 and threads is None; expected at least 1 of each"),
            ({"threads": 0}, "threads is 0"),
            ({"lease": 0.01}, "lease is 0.01; expected 0.1 to 3600 seconds"),
            ({"lease": float("nan")}, "lease is nan"),
        ],
    )
    def test_arguments(self, out: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run(grid(4), out, runner="helpers.sweep_cases:counted", **options)
        assert not out.exists()


class TestRunner:
    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("nocolon", ValueError, "runner 'nocolon': expected module:callable"),
            ("absent_module:f", ValueError, "there is no module 'absent_module'"),
            (
                "helpers.sweep_cases:absent",
                ValueError,
                "module 'helpers.sweep_cases' has no 'absent'",
            ),
            ("helpers.sweep_cases:SHARED", TypeError, "is dict; expected a callable"),
        ],
    )
    def test_names(self, name: str, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            load_runner(name)

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (3, "TypeError: the runner returned int; expected a mapping"),
            ({"x": torch.ones(())}, "'x': Tensor; expected str, int, float, bool or None"),
            ({"x": [1]}, "'x': list"),
            ({1: 1}, "1: int"),
            ({"n": 1}, "'n', which is a column of the table already"),
            ({"error": 1.0}, "'error', which is a column"),
            ({"x": 2**63}, "'x': an integer beyond 64 bits"),
            ({"x": "y" * (1 << 20)}, "bytes; expected at most 1048576"),
        ],
    )
    def test_results(self, result: Any, message: str) -> None:
        outcome = execute(lambda _: result, Cell({"n": 1}), threads=1, worker="w")
        assert outcome.values is None
        assert message in str(outcome.error)
        assert "Traceback" in str(outcome.traceback)

    def test_generators_and_threads_are_as_before(self) -> None:
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        inside: list[int] = []

        def draw(_: object) -> dict[str, Any]:
            inside.append(torch.get_num_threads())
            return {"x": float(torch.rand(()))}

        first = execute(draw, Cell({"n": 1}), threads=threads + 1, worker="w")
        second = execute(draw, Cell({"n": 1}), threads=threads + 1, worker="w")
        other = execute(draw, Cell({"n": 2}), threads=threads + 1, worker="w")
        assert first.values == second.values
        assert first.values != other.values
        assert inside == [threads + 1] * 3
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.get_rng_state(), state)

    def test_exit_is_an_error_but_an_interrupt_is_not(self) -> None:
        outcome = execute(lambda _: sys.exit(3), Cell({"n": 1}), threads=1, worker="w")
        assert outcome.error == "SystemExit: 3"

        def interrupted(_: object) -> Any:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            execute(interrupted, Cell({"n": 1}), threads=1, worker="w")


class TestTally:
    def test_eta(self) -> None:
        now = Tally(total=10, done=4, failed=1, now=2, seconds=3.0)
        assert now.left == 5
        assert now.eta == 7.5  # 1.5 seconds a cell; the three found in the file took none
        assert Tally(total=10, done=4, failed=1, seconds=3.0).eta is None
        assert str(now) == "4 of 10 cells done, 1 failed, 5 left; 2 computed in 3.0 s"
        assert str(Tally(3, 1, 0)) == "1 of 3 cells done, 0 failed, 2 left"

    def test_of_a_file(self, out: Path) -> None:
        run(grid(4), out, runner="helpers.sweep_cases:counted")
        run(grid(10), out, extend=True, progress=None)
        with read_store(out) as store:
            assert tally(store) == Tally(10, 10, 0)
            assert all(isinstance(row.outcome, Outcome) for row in store.rows())


def test_toml_before_python_3_11(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There, tomli reads the file; it has the same functions."""
    tomli = types.ModuleType("tomli")
    used: list[str] = []

    def loads(text: str) -> dict[str, Any]:
        used.append(text)
        return {**sweep_cases.SHARED, "n": 4, "seed": 0}

    tomli.loads, tomli.TOMLDecodeError = loads, ValueError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tomli", tomli)
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    source = importlib.util.spec_from_file_location("old_spec", spec_module.__file__)
    assert source is not None
    assert source.loader is not None
    old = importlib.util.module_from_spec(source)
    monkeypatch.setitem(sys.modules, "old_spec", old)
    source.loader.exec_module(old)
    path = tmp_path / "spec.toml"
    path.write_text("a file")
    assert [cell.key for cell in old.Spec.read(path).cells] == [
        cell.key for cell in Spec.parse(loads("")).cells
    ]
    assert used[0] == "a file"
