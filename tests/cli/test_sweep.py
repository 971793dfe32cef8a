"""``llr sweep`` as users see it: files, lines, exit codes, one-line errors."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
import sys
from pathlib import Path

import pytest
from helpers.sweep_cases import ENVIRONMENT, columns, toml
from rich.console import Console

from llr.cli import sweep as sweep_cli
from llr.recovery.experiment import Setting
from llr.recovery.sweep import Spec, Tally, read_store
from llr.results.progress import duration

from .test_main import refusal, run

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

RUNNER = ("--runner", "helpers.sweep_cases:counted")
OWN = """
architecture = "two-layer"
target = "separated"
strategy = "lm"
d = 2
k = 1
n = [2, 4]
seed = [0, 1]
options.starts = 64
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a spec of eight cells for `helpers.sweep_cases:counted`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    (tmp_path / "spec.toml").write_text(toml(8))
    return tmp_path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class TestRun:
    def test_llrs_own_experiment(self, here: Path) -> None:
        (here / "own.toml").write_text(OWN)
        output = run("sweep", "own.toml").stdout
        assert re.fullmatch(
            r"4 of 4 cells done, 0 failed, 0 left; 4 computed in \S+ s; wrote own.sqlite\n", output
        )
        found = columns(here / "own.sqlite")
        assert found["recovered"] == [False, False, True, True]
        assert found["predicted"] == [3] * 4
        assert sorted(os.listdir(here)) == ["own.sqlite", "own.toml", "spec.toml"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("spec.toml", *RUNNER, "--out", "x"),
            ("run", "spec.toml", *RUNNER, "--out", "x"),
            (*RUNNER, "--out", "x", "spec.toml"),
        ],
    )
    def test_run_may_be_left_out(self, here: Path, arguments: tuple[str, ...]) -> None:
        assert run("sweep", *arguments).stdout.endswith("wrote x\n")
        assert len(columns(here / "x")["n"]) == 8

    def test_again(self) -> None:
        run("sweep", "spec.toml", *RUNNER)
        assert "8 of 8 cells done, 0 failed, 0 left; 0 computed" in run("sweep", "spec.toml").stdout

    def test_failures_are_told(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MENDED", str(here / "mended"))
        arguments = ("sweep", "spec.toml", "--runner", "helpers.sweep_cases:refusing")
        first = run(*arguments, code=1)
        assert first.stdout.startswith("6 of 8 cells done, 2 failed, 0 left")
        assert first.stderr == (
            "`status spec.sqlite` shows the errors, `--retry-failed` tries again\n"
        )
        (here / "mended").touch()
        run(*arguments, code=1)
        assert run(*arguments, "--retry-failed").stdout.startswith("8 of 8 cells done, 0 failed")

    def test_extend(self, here: Path) -> None:
        run("sweep", "spec.toml", *RUNNER)
        (here / "spec.toml").write_text(toml(12))
        assert "is of another spec: 4 cells of this one" in refusal("sweep", "spec.toml")
        assert "12 of 12 cells done" in run("sweep", "spec.toml", "--extend").stdout

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("n = [", r"spec spec.toml: not TOML \("),
            ("widht = 3", r"spec spec.toml: unknown key 'widht' \(did you mean 'width'\?\)"),
            ("n = 4", r"spec spec.toml: missing architecture \(text\), target \(text\), strategy"),
            (toml(8) + "width = []", "width has no values"),
            (toml(8) + "[options]\nstrats = 3", r"cell .*: 'strats' is unknown; expected some of"),
            (toml(8).replace("generic", "genuine"), "cell .*: target is 'genuine'; expected one"),
        ],
    )
    def test_bad_specs(self, here: Path, text: str, message: str) -> None:
        (here / "spec.toml").write_text(text)
        assert re.search(message, refusal("sweep", "spec.toml"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("absent.toml",), "spec absent.toml: cannot be read"),
            (("spec.toml", "--runner", "nowhere:f"), "there is no module 'nowhere'"),
            (
                ("spec.toml", "--out", "spec.toml"),
                "--out spec.toml would overwrite SPEC, which",
            ),
            (("spec.toml", "--lease", 0), "lease is 0.0; expected 0.1 to 3600 seconds"),
        ],
    )
    def test_refused(self, here: Path, arguments: tuple[object, ...], message: str) -> None:
        assert message in refusal("sweep", *arguments)
        assert (here / "spec.toml").read_text() == toml(8)

    def test_a_store_of_another_runner_and_of_a_newer_format(self, here: Path) -> None:
        run("sweep", "spec.toml", *RUNNER)
        said = refusal("sweep", "spec.toml", "--runner", "helpers.sweep_cases:refusing")
        assert (
            "its results are of runner helpers.sweep_cases:counted, not helpers.sweep_cases:refusing"
            in said
        )
        with sqlite3.connect(here / "spec.sqlite") as connection:
            connection.execute("PRAGMA user_version = 2")
        connection.close()
        for arguments in (("spec.toml",), ("status", "spec.sqlite")):
            assert (
                "has format 2, but this version of llr reads format 1: use the version"
                in refusal("sweep", *arguments)
            )

    def test_help(self) -> None:
        text = run("sweep", "--help").stdout
        example = text[text.index("A SPEC:\n") + len("A SPEC:\n") :]
        assert example.replace("\n  ", "\n").strip() == sweep_cli.EXAMPLE.strip()
        for name in ("run", "export", "plot", "status"):
            assert re.search(rf"^  {name} ", text, flags=re.MULTILINE)
        assert "worker" not in text

    def test_the_example_is_a_spec(self, here: Path) -> None:
        (here / "example.toml").write_text(sweep_cli.EXAMPLE)
        cells = Spec.read(here / "example.toml").cells
        assert len(cells) == 2 * 2 * 6 * 20
        for cell in cells:
            Setting.of(cell.values)

    def test_a_mistyped_command(self) -> None:
        assert "No such command 'statsu'" in run("sweep", "statsu", "spec.sqlite", code=2).stderr


class TestLooking:
    @pytest.fixture(autouse=True)
    def results(self) -> None:
        run("sweep", "spec.toml", *RUNNER)

    def test_status(self) -> None:
        assert run("sweep", "status", "spec.sqlite").stdout == (
            "8 of 8 cells done, 0 failed, 0 left\nrunner helpers.sweep_cases:counted, 1 thread a cell\n"
        )

    def test_status_of_failures(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MENDED", str(here / "mended"))
        (here / "wide.toml").write_text(toml(8) + "width = [1, 2, 3]")
        run("sweep", "wide.toml", "--runner", "helpers.sweep_cases:refusing", code=1)
        lines = run("sweep", "status", "wide.sqlite").stdout.splitlines()
        assert lines[0] == "18 of 24 cells done, 6 failed, 0 left"
        assert len(lines) == 2 + 5 + 1
        assert lines[2].startswith("failed  architecture=two-layer n=5 seed=1")
        assert lines[2].endswith(": LookupError: no way")
        assert lines[-1] == "and 1 more; --tracebacks shows all"
        full = run("sweep", "status", "wide.sqlite", "--tracebacks").stdout
        assert full.count('raise LookupError("no\\nway")') == 6

    def test_export(self, here: Path) -> None:
        assert run("sweep", "export", "spec.sqlite", "t.csv").stdout == ("wrote t.csv, 8 rows\n")
        rows = read_csv(here / "t.csv")
        expected = columns(here / "spec.sqlite")
        assert [float(row["loss"]) for row in rows] == expected["loss"]
        assert "worker" not in rows[0]
        run("sweep", "export", "spec.sqlite", "p.csv", "--provenance")
        assert read_csv(here / "p.csv")[0]["worker"].startswith(f"process {os.getpid()} ")

    @pytest.mark.parametrize(("name", "start"), [("f.png", b"\x89PNG"), ("f.svg", b"<?xml")])
    def test_plot(self, here: Path, name: str, start: bytes) -> None:
        assert run("sweep", "plot", "spec.sqlite", name).stdout == f"wrote {name}\n"
        assert (here / name).read_bytes().startswith(start)

    def test_plot_of_a_part(self, here: Path) -> None:
        run("sweep", "plot", "spec.sqlite", "f.svg", "--where", "seed=1", "--where", "n=5")
        assert "recovered, mean over seeds" in (here / "f.svg").read_text()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ("status", "absent"),
                "absent: there is no such file; `run` creates the file of a sweep",
            ),
            (("status", "plain"), "plain is not an SQLite file; it was not changed"),
            (("export", "spec.sqlite", "t.xls"), "expected a name ending in .csv, .parquet"),
            (("plot", "spec.sqlite", "f.gif"), "expected a name ending in .png"),
            (("plot", "spec.sqlite", "f.png", "--where", "n=7"), "n is one of 5, 6"),
            (("plot", "spec.sqlite", "f.png", "--success", "won"), "no cell has a result 'won'"),
            (("plot", "spec.sqlite", "f.png", "--success", "loss"), "loss is "),
        ],
    )
    def test_refused(self, here: Path, arguments: tuple[str, ...], message: str) -> None:
        (here / "plain").write_text("some text" * 100)
        assert message in refusal("sweep", *arguments)
        assert not (here / "f.png").exists()

    def test_without_optional_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        said = refusal("sweep", "export", "spec.sqlite", "t.parquet")
        assert said == "error: Parquet needs pyarrow: pip install 'llr[parquet]'"
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("llr.results.figures", "llr.ranks.figure"):
            monkeypatch.delattr(name, raising=False)
            monkeypatch.delitem(sys.modules, name, raising=False)
        said = refusal("sweep", "plot", "spec.sqlite", "f.png")
        assert said == "error: figures need matplotlib: pip install 'llr[plot]'"


class TestProgress:
    @pytest.mark.parametrize(
        ("now", "text"),
        [
            (Tally(10, 0, 0), "no estimate yet"),
            (Tally(10, 5, 1, 3, 60.0), "1 min 20 s to go"),
            (Tally(10, 10, 0, 5, 60.0), "0 s to go"),
        ],
    )
    def test_the_time_that_is_left(self, now: Tally, text: str) -> None:
        assert now.remaining == text

    def test_a_terminal_needs_no_log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        console = Console(file=io.StringIO(), force_terminal=True)
        monkeypatch.setattr(sweep_cli, "console_beside", lambda _: console)
        assert sweep_cli.logging() is None

    def test_lines_of_a_log(self, capsys: pytest.CaptureFixture[str]) -> None:
        report = sweep_cli.logging()
        assert report is not None
        for second in range(0, 101, 5):
            report(Tally(40, second // 5, 0, second // 5, float(second)))
        report(Tally(40, 40, 0, 40, 500.0))  # the end is a separate line
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines() == [
            f"{second // 5} of 40 cells done, 0 failed, {40 - second // 5} left; {second // 5} "
            f"computed in {second:.1f} s, {left} to go"
            for second, left in ((30, "2 min 50 s"), (60, "2 min 20 s"), (90, "1 min 50 s"))
        ]

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.2, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 0 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h 0 min"),
            (86_399, "23 h 59 min"),
            (200_000, "2 d 7 h"),
        ],
    )
    def test_durations(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


def test_files_are_plain_sqlite(here: Path) -> None:
    """Other programs read the results without llr."""
    run("sweep", "spec.toml", *RUNNER)
    with sqlite3.connect(here / "spec.sqlite") as connection:
        found = connection.execute(
            'SELECT coordinates, "values" FROM cells JOIN results USING (key) ORDER BY position'
        ).fetchall()
    connection.close()
    with read_store(here / "spec.sqlite") as store:
        rows = {row.cell.json: row.outcome for row in store.rows()}
    assert len(found) == 8
    for coordinates, values in found:
        outcome = rows[coordinates]
        assert outcome is not None
        assert json.loads(values) == outcome.values
