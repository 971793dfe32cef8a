"""The file of a sweep: stored results, refusals, and recovery from errors."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.sweep_cases import ENVIRONMENT, grid, settled
from helpers.theory_cases import random_cases

from llr.recovery.sweep import Cell, Outcome, Spec, Store, StoreError, open_store, read_store, run
from llr.recovery.sweep import store as store_module

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

DONE = Outcome({"loss": 0.1, "text": "ü", "none": None, "inf": math.inf}, seconds=1.5, worker="w")
FAILED = Outcome(None, "ValueError: no", "Traceback\n  there", 0.5, "w")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with eight cells, one done and one failed."""
    path = tmp_path / "a b?#%.sqlite"
    with open_store(path, grid(8)) as store:
        first, second, *_ = store.cells()
        store.record(first, DONE)
        store.record(second, FAILED)
    return path


def outcomes(path: Path) -> list[Outcome | None]:
    with read_store(path) as store:
        return [row.outcome for row in store.rows()]


def refusal(path: Path, spec: Spec | None = None, **options: Any) -> str:
    """The message for a file that cannot be opened for writing. Asserts that the file does not change."""
    before = path.read_bytes() if path.is_file() else None
    names = sorted(os.listdir(path.parent))
    with (
        pytest.raises((StoreError, ValueError)) as caught,
        open_store(path, spec or grid(8), **options),
    ):
        pass
    assert (path.read_bytes() if path.is_file() else None) == before
    assert sorted(os.listdir(path.parent)) == names
    message = str(caught.value)
    assert str(path) in message
    return message


class TestContents:
    def test_round_trip(self, path: Path) -> None:
        assert [o for o in outcomes(path) if o] == [DONE, FAILED]
        with open_store(path, grid(8)) as store:
            assert store.cells() == list(grid(8).cells)
            assert store.pending() == list(grid(8).cells[2:])
            assert store.pending(retry_failed=True) == list(grid(8).cells[1:])
            assert (store.runner, store.threads) == ("llr.recovery.experiment:run_cell", 1)

    def test_one_file_remains(self, path: Path) -> None:
        assert os.listdir(path.parent) == [path.name]

    def test_a_result_replaces_a_failure(self, path: Path) -> None:
        with open_store(path, grid(8)) as store:
            store.record(store.cells()[1], DONE)
        assert [o for o in outcomes(path) if o] == [DONE, DONE]

    def test_whole_seconds(self, path: Path) -> None:
        with open_store(path, grid(8)) as store:
            store.record(store.cells()[2], Outcome({}, seconds=2))
        assert Outcome({}, seconds=2.0) in outcomes(path)

    def test_a_result_is_on_disk_before_record_returns(self, path: Path) -> None:
        with open_store(path, grid(8)) as store:
            store.record(store.cells()[2], DONE)
            copy = path.with_name("copy.sqlite")  # as after a crash
            shutil.copy(path, copy)
            assert outcomes(copy) == outcomes(path)
            assert outcomes(copy).count(DONE) == 2

    def test_an_empty_file_becomes_a_store(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "new.sqlite"
        path.parent.mkdir()
        path.touch()
        with open_store(path, grid(4), runner="a:b", threads=3) as store:
            assert (store.runner, store.threads) == ("a:b", 3)

    def test_nothing_to_read_yet(self, tmp_path: Path) -> None:
        path = tmp_path / "new.sqlite"
        path.touch()
        with pytest.raises(StoreError, match=r"new.sqlite is empty: its sweep has not begun"):
            outcomes(path)

    def test_directories_are_made(self, tmp_path: Path) -> None:
        with open_store(tmp_path / "x" / "y" / "new.sqlite", grid(4)) as store:
            assert len(store.cells()) == 4


class TestSpec:
    def test_another_spec(self, path: Path) -> None:
        other = Spec.parse({**dict(grid(8).cells[0].values), "n": [6, 7], "width": 3})
        message = refusal(path, other)
        assert "2 cells of this one are not in it, and 8 of its own not in this one" in message
        assert "width: 3 only in the spec" in message
        assert "n: 7 only in the spec and 5 only in the file" in message
        assert "seed: 1, 2, 3 only in the file" in message
        assert "--extend" in message

    def test_another_combination(self, path: Path) -> None:
        blocks = [{"n": 5, "seed": [0, 1, 2, 3]}, {"n": 6, "seed": 0}]
        shared = {k: v for k, v in grid(8).cells[0].values.items() if k not in ("n", "seed")}
        message = refusal(path, Spec.parse({**shared, "grid": blocks}))
        assert "0 cells of this one are not in it, and 3 of its own" in message
        assert "the same values in other combinations" in message

    def test_extend(self, path: Path) -> None:
        with open_store(path, grid(12), extend=True) as store:
            assert set(store.cells()) == set(grid(12).cells)
            assert store.cells()[:8] == list(grid(8).cells)
            assert len(store.pending()) == 10
        with open_store(path, grid(4), extend=True) as store:
            assert set(store.cells()) == set(grid(12).cells)
        assert [o for o in outcomes(path) if o] == [DONE, FAILED]

    @pytest.mark.parametrize(("name", "value"), [("runner", "own:cell"), ("threads", 2)])
    def test_another_runner(self, path: Path, name: str, value: Any) -> None:
        assert f"results are of {name}" in refusal(path, **{name: value})

    def test_order_in_the_file_does_not_matter(self, path: Path) -> None:
        with open_store(path, Spec(tuple(reversed(grid(8).cells)))) as store:
            assert store.cells() == list(grid(8).cells)


class TestDamage:
    def test_not_a_database(self, path: Path) -> None:
        path.write_bytes(b"some text that somebody wrote\n" * 100)
        assert "is not an SQLite file; it was not changed" in refusal(path)
        with pytest.raises(StoreError, match="is not an SQLite file"):
            outcomes(path)

    def test_another_database(self, path: Path) -> None:
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE mine (x)")
            other.commit()
        assert "not one of a sweep; it was not changed" in refusal(path)

    def test_another_format(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA user_version = 9")
        assert "has format 9, but this version of llr reads format 1" in refusal(path)

    @pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
    def test_truncated(self, path: Path, keep: float) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        assert "is damaged" in refusal(path)

    def test_a_page_of_noise(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[4096 + 8 : 4096 + 300] = bytes(range(256)) + bytes(36)
        path.write_bytes(data)
        assert re.search("is damaged|not one of a sweep", refusal(path))

    @pytest.mark.parametrize(
        ("old", "new", "what"),
        [
            (b'"loss":0.1', b'"loss":0.2', "the result of cell"),
            (b"ValueError: no", b"ValueError: on", "the result of cell"),
            (b'"seed":3', b'"seed":9', "the coordinates of cell"),
        ],
    )
    def test_a_digit(self, path: Path, old: bytes, new: bytes, what: str) -> None:
        """SQLite has no checksums, and would read this without an error."""
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))
        message = refusal(path)
        assert what in message
        assert "nothing was written to it" in message

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"absent: there is no such file"):
            outcomes(tmp_path / "absent")
        (tmp_path / "folder").mkdir()
        assert "unable to open" in refusal(tmp_path / "folder")

    def test_flipped_bits(self, path: Path) -> None:
        """Flipped bits anywhere are detected, or do not change the contents."""
        clean, expected = path.read_bytes(), contents(path)
        dice, noticed = random.Random(0), 0
        for _ in range(random_cases(1000)):
            data = bytearray(clean)
            for _ in range(dice.choice([1, 1, 20])):
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            path.write_bytes(data)
            try:
                assert contents(path) == expected
            except StoreError:
                noticed += 1
            for left in path.parent.glob(f"{glob.escape(path.name)}-*"):
                left.unlink()
        assert noticed > 0


def contents(path: Path) -> tuple[Any, ...]:
    """The contents of a file, as llr reads it."""
    with read_store(path) as store:
        rows = [(row.cell, row.outcome, row.finished) for row in store.rows()]
        return store.runner, store.threads, rows


@contextlib.contextmanager
def powerless() -> Iterator[None]:
    """Within the block, run as a user to whom permissions apply; root ignores them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public(path: Path) -> Iterator[Path]:
    """A copy of the file that every user can read; other users cannot read pytest's temporary folders."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "sweep.sqlite")
        shutil.copy(path, copy)
        yield copy
        Path(folder).chmod(0o777)


class TestPermissions:
    def test_read_only_file(self, public: Path) -> None:
        public.parent.chmod(0o777)
        public.chmod(0o444)
        with powerless():
            message = refusal(public)
            assert outcomes(public).count(DONE) == 1
        assert "the results that were in it are intact: allow writing to the file" in message

    def test_read_only_directory(self, public: Path) -> None:
        public.parent.chmod(0o555)
        public.chmod(0o666)
        with powerless():
            message = refusal(public)
            assert outcomes(public).count(DONE) == 1
        assert "SQLite also creates files in its directory" in message

    def test_nowhere(self) -> None:
        with pytest.raises(StoreError, match="cannot be written"), open_store("/proc/x/s", grid(4)):
            pass


class TestLock:
    def test_one_writer(self, path: Path) -> None:
        with open_store(path, grid(8)):
            with (
                pytest.raises(StoreError, match=rf"process {os.getpid()} on .* is writing to it"),
                open_store(path, grid(8)),
            ):
                pass
            assert outcomes(path).count(DONE) == 1  # reading is possible
        with open_store(path, grid(8)):
            pass

    def test_many_at_once(self, path: Path) -> None:
        """There are never two writers at a time."""
        inside, most, served = [], [], []

        def visit() -> None:
            for _ in range(30):
                with contextlib.suppress(StoreError), open_store(path, grid(8)):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    served.append(1)

        threads = [threading.Thread(target=visit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert served
        assert set(most) == {1}
        assert os.listdir(path.parent) == [path.name]

    def test_the_lock_of_the_dead_is_free(self, path: Path) -> None:
        code = (
            "import os, signal; from helpers.sweep_cases import grid\n"
            "from llr.recovery.sweep import open_store\n"
            f"with open_store({str(path)!r}, grid(8)): os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == -9
        assert len(os.listdir(path.parent)) == 2
        with open_store(path, grid(8)):
            pass
        assert os.listdir(path.parent) == [path.name]


def record_pending(store: Store, outcome: Outcome, written: list[Cell]) -> None:
    for cell in store.pending():
        store.record(cell, outcome)
        written.append(cell)


class TestFullDisk:
    @pytest.mark.parametrize("free", [0, 1])
    def test_sqlite_is_full(self, path: Path, free: int) -> None:
        written: list[Cell] = []
        with open_store(path, grid(8)) as store:
            connection = store._connection
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages + free}")
            big = Outcome({"text": "x" * 3000}, worker="w")
            message = "is full; the results that were in it are intact"
            with pytest.raises(StoreError, match=message):
                record_pending(store, big, written)
            assert written == store.cells()[2 : 2 + len(written)]
        with open_store(path, grid(8)) as store:
            assert store.pending() == store.cells()[2 + len(written) :]
            for cell in store.pending():
                store.record(cell, big)
        assert outcomes(path).count(big) == 6

    @pytest.mark.parametrize("limit", [1000, 20_000, 60_000])
    def test_no_file_may_grow(self, tmp_path: Path, limit: int) -> None:
        """A sweep whose disk becomes full at different moments: its message, and the file that it leaves."""
        spec, out = tmp_path / "spec.toml", tmp_path / "spec.sqlite"
        spec.write_text(
            'architecture = "a"\ntarget = "t"\nstrategy = "s"\nn = 5\nseed = { from = 0, to = 99 }\n'
        )
        code = (
            "import resource, sys; from llr.cli.sweep import sweep\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            f"sweep(['run', {str(spec)!r}, '--runner', 'helpers.sweep_cases:counted'])"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {out}")
        assert len(done.stderr.splitlines()) == 1
        assert "free some disk space, and run the same command again" in done.stderr
        before = len(settled(out))
        again = run(Spec.read(spec), out, runner="helpers.sweep_cases:counted")
        assert again is not None
        assert (again.done, again.now) == (100, 100 - before)
        assert before > 0 or limit < 50_000
        run(Spec.read(spec), tmp_path / "other", runner="helpers.sweep_cases:counted")
        results = [[o and o.values for o in outcomes(p)] for p in (out, tmp_path / "other")]
        assert results[0] == results[1]

    def test_a_full_file_system(self, path: Path, tmp_path: Path) -> None:
        mount = tmp_path / "mount"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", mount]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
        try:
            small = mount / "s.sqlite"
            shutil.copy(path, small)
            (mount / "ballast").write_bytes(bytes(50_000))
            big = Outcome({"text": "x" * 8000}, worker="w")
            with open_store(small, grid(8)) as store:
                with pytest.raises(StoreError, match="are intact: free some disk space"):
                    record_pending(store, big, [])
                left = len(store.pending())
            assert left > 0
            (mount / "ballast").unlink()
            with open_store(small, grid(8)) as store:
                assert len(store.pending()) == left
                store.record(store.pending()[0], DONE)
            assert outcomes(small).count(DONE) == 2
        finally:
            subprocess.run(["umount", mount], check=True)


def test_a_commit_cut_off_is_undone(path: Path) -> None:
    """A journal left by a killed writer: the next process to open the file undoes the incomplete change."""
    journal = path.with_name(path.name + "-journal")
    code = (
        "import os, signal, sqlite3, sys\n"
        f"c = sqlite3.connect({str(path)!r}, isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('PRAGMA cache_spill = 1'); c.execute('BEGIN')\n"
        "c.execute('DELETE FROM results')\n"
        "c.execute(\"INSERT INTO about SELECT value || hex(randomblob(9000)), 'x' FROM about\")\n"
        "c.execute(\"INSERT INTO about SELECT name || hex(randomblob(9000)), 'x' FROM about\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    before = path.read_bytes()
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert journal.exists()
    assert path.read_bytes() != before, "nothing was half done"
    assert [o for o in outcomes(path) if o] == [DONE, FAILED]
    assert not journal.exists()


def test_the_message_for_each_problem() -> None:
    """Messages for each problem; SQLite's texts come from its table of errors."""
    expected = {
        "database or disk is full": "free some disk space",
        "disk I/O error": "free some disk space",
        "attempt to write a readonly database": "allow writing",
        "unable to open database file": "allow writing",
        "database is locked": "another program has locked it",
        "database disk image is malformed": "is damaged",
        "file is not a database": "was not changed",
        "something new": "the problem is solved",
    }
    for problem, advice in expected.items():
        assert advice in str(store_module._explanation(Path("f"), problem))
