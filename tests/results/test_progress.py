"""Progress is seen on a terminal after two seconds, and nowhere else. The clock is the tests'."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llr
from llr.results import progress

from .makers import fast_clock, net, points, proved

SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"


class _Terminal:
    """A pseudo-terminal in the place of standard error."""

    open: Callable[[], None]

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.file = os.fdopen(theirs, "w", buffering=1)

    def seen(self) -> str:
        """What was written since the last look."""
        self.file.flush()
        text = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._ours, 1 << 16):
                text += part
        return text.decode()

    def close(self) -> None:
        self.file.close()
        os.close(self._ours)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Terminal]:
    made = _Terminal()
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    fast_clock(monkeypatch)
    with monkeypatch.context() as patch:
        # Not at once: pytest sets standard error between a fixture and its test.
        made.open = lambda: patch.setattr(sys, "stderr", made.file)
        yield made
    made.close()


class TestTerminal:
    def test_shown_and_taken_away(self, terminal: _Terminal) -> None:
        terminal.open()
        assert proved().rank == 7
        seen = terminal.seen()
        assert "proving at 64 bits: rank >= " in seen
        assert seen.count(HIDE) == seen.count(SHOW) == 1
        assert seen.rindex(SHOW) > seen.rindex(HIDE)

    def test_counted(self, terminal: _Terminal) -> None:
        terminal.open()
        llr.jacobian(net(1, 2, 1), points(14), backend="torch", chunk_size=1)
        assert "Jacobian: samples" in (seen := terminal.seen())
        assert "/14" in seen

    def test_fast_calls_show_nothing(
        self, terminal: _Terminal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal.open()
        monkeypatch.setattr(progress, "clock", lambda: 0.0)
        proved()
        assert terminal.seen() == ""

    @pytest.mark.parametrize("argument", [False, lambda *_: None])
    def test_silenced(self, terminal: _Terminal, argument: Any) -> None:
        terminal.open()
        proved(progress=argument)
        assert terminal.seen() == ""

    def test_piped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = os.pipe()
        with os.fdopen(theirs, "w") as file, os.fdopen(ours) as reader:
            monkeypatch.setattr(sys, "stderr", file)
            fast_clock(monkeypatch)
            proved()
            file.close()
            assert reader.read() == ""

    @pytest.mark.parametrize("closed", [False, True])
    def test_no_standard_error(self, monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
        file = io.StringIO()
        file.close()
        monkeypatch.setattr(sys, "stderr", file if closed else None)
        fast_clock(monkeypatch)
        assert proved().rank == 7

    def test_ctrl_c_leaves_the_terminal_clean(self, terminal: _Terminal) -> None:
        terminal.open()

        def deep(*_: object) -> None:
            for i in range(9):
                progress.step("deep inside", i)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), progress.following(None):
            progress.followed(deep)()
        seen = terminal.seen()
        assert "deep inside" in seen
        assert seen.rindex(SHOW) > seen.rindex(HIDE)
        assert "refresh" not in "".join(t.name for t in threading.enumerate())
        assert proved().rank == 7
        assert "proving" in terminal.seen()

    def test_threads_share_one_line(self, terminal: _Terminal) -> None:
        terminal.open()

        def work() -> None:
            with progress.following(None):
                for i in range(200):
                    progress.step("working", i, 200)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = terminal.seen()
        assert "working" in seen
        assert seen.count(HIDE) == seen.count(SHOW) >= 1

    def test_text_is_no_markup(self, terminal: _Terminal) -> None:
        terminal.open()
        with progress.following(None):
            for _ in range(5):
                progress.step("[red]x[/nothing]")
        assert "[red]x[/nothing]" in terminal.seen()


class TestOthersOnTheTerminal:
    def test_the_time_counts_from_the_start(
        self, terminal: _Terminal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal.open()
        now = [100.0]
        monkeypatch.setattr(progress, "clock", lambda: now[0])
        with progress.following(None):
            now[0] += 4000
            progress.step("late")
        assert "1:06:40" in terminal.seen()

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_what_the_caller_prints_goes_where_it_was_printed_to(
        self, terminal: _Terminal, monkeypatch: pytest.MonkeyPatch, stream: str
    ) -> None:
        terminal.open()
        file = io.StringIO()
        monkeypatch.setattr(sys, "stdout", file)
        with progress.following(None):
            for i in range(9):
                progress.step("working", i)
                print(f"printed {i}", file=getattr(sys, stream))
        seen = terminal.seen()
        assert "working" in seen
        printed = [f"printed {i}" for i in range(9)]
        assert file.getvalue().splitlines() == (printed if stream == "stdout" else [])
        assert all((text in seen) == (stream == "stderr") for text in printed)

    @pytest.mark.parametrize("own_console", [False, True])
    def test_silent_inside_a_display_of_rich(
        self, terminal: _Terminal, monkeypatch: pytest.MonkeyPatch, own_console: bool
    ) -> None:
        import rich  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress  # noqa: PLC0415

        terminal.open()
        monkeypatch.setattr(rich, "_console", None)
        with Progress(console=Console(stderr=True) if own_console else None):
            terminal.seen()
            proved()
        assert "proving" not in terminal.seen()
        proved()
        assert "proving" in terminal.seen()

    def test_silent_beside_a_bar_of_tqdm(self, terminal: _Terminal) -> None:
        tqdm = pytest.importorskip("tqdm.std").tqdm
        terminal.open()
        for _ in tqdm(range(1), file=sys.stderr):
            proved()
        assert "proving" not in terminal.seen()
        for _ in tqdm(range(1), disable=True):
            proved()
        assert "proving" in terminal.seen()


def test_prints_of_a_call_stay_in_a_redirected_file(tmp_path: Path) -> None:
    """In a process of its own, as with ``python script.py > out.txt``."""
    code = r"""
import itertools, torch, llr
from llr.results import progress
ticks = itertools.count()
progress.clock = lambda: float(next(ticks))
class Loud(torch.nn.Linear):
    def forward(self, x):
        print("in the forward")
        return super().forward(x)
llr.jacobian(Loud(2, 1), torch.randn(9, 2), backend="loop", chunk_size=1)
"""
    ours, theirs = pty.openpty()
    out = tmp_path / "out.txt"
    with out.open("w") as file:
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=file, stderr=theirs, env=environment
        )
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # of the end, on Linux
            while part := os.read(ours, 1 << 16):
                seen += part
    os.close(ours)
    assert process.wait() == 0, seen
    assert b"Jacobian: samples" in seen
    assert b"forward" not in seen
    assert out.read_text().count("in the forward\n") >= 9


def test_a_command_shows_it_and_fast_ones_do_not_import_rich(tmp_path: Path) -> None:
    code = r"""
import itertools, sys, torch, llr
from llr.results import progress
progress.clock = lambda: 0.0
llr.certify(torch.nn.Linear(2, 1), torch.randn(5, 2))
assert "rich" not in sys.modules
ticks = itertools.count()
progress.clock = lambda: float(next(ticks))
from llr.cli.main import main
open("x.csv", "w").write("1\n2\n3\n4\n5\n6\n7\n8\n9\n")
main(["certify", "mlp:1-2-1", "--inputs", "x.csv", "--out", "-"])
"""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        cwd=tmp_path,
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # of the end, on Linux
        while part := os.read(ours, 1 << 16):
            seen += part
    os.close(ours)
    out = process.communicate()[0]
    assert process.returncode == 0, seen
    assert b"proving at" in seen
    assert seen.count(SHOW.encode()) == 1
    assert b'"format": "llr rank certificate 1"' in out
