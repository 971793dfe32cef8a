"""Files are written completely or not at all, and refused before the work begins."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import llr
from llr.inputs.files.writing import require_directory, require_writable, write_atomic

from .test_files import line


class TestWriteAtomic:
    def test_text_and_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "deep/down").mkdir(parents=True)
        write_atomic(tmp_path / "deep/down/a.txt", "σ\n")
        assert (tmp_path / "deep/down/a.txt").read_bytes() == "σ\n".encode()
        write_atomic(tmp_path / "deep/down/a.txt", b"\0new")
        assert (tmp_path / "deep/down/a.txt").read_bytes() == b"\0new"
        assert [p.name for p in (tmp_path / "deep/down").iterdir()] == ["a.txt"]

    def test_relative_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write_atomic("a.txt", "x")
        assert (tmp_path / "a.txt").read_text() == "x"

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / "a.txt", "x")
        (tmp_path / "b.txt").write_text("x")
        assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode

    def test_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link.txt").symlink_to(tmp_path / "real/file.txt")
        write_atomic(tmp_path / "link.txt", "x")
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "real/file.txt").read_text() == "x"

    @pytest.mark.parametrize("stage", ["fsync", "replace"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
    def test_interrupted(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        stage: str,
        error: type[BaseException],
    ) -> None:
        (tmp_path / "a.txt").write_text("old")

        def stop(*_: object) -> None:
            raise error

        monkeypatch.setattr(os, stage, stop)
        with pytest.raises(error):
            write_atomic(tmp_path / "a.txt", "new")
        assert (tmp_path / "a.txt").read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    def test_onto_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        with pytest.raises(OSError, match="a"):
            write_atomic(tmp_path / "a", "x")
        assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def test_errors_name_what_was_asked_for(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "file" / "a.txt", Path("/proc/a.txt")):
            with pytest.raises(OSError, match=r"a\.txt") as err:
                write_atomic(path, "x")
            assert ".tmp" not in str(err.value)

    def test_missing_directories_are_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no directory .*new'; make it.*a\.txt"):
            write_atomic(tmp_path / "new/a.txt", "x")
        assert not list(tmp_path.iterdir())

    def test_a_device_stays_one(self) -> None:
        with pytest.raises(OSError, match=f"is a device or a pipe.*{os.devnull}"):
            write_atomic(os.devnull, "x")
        write_atomic(os.devnull, "x", devices=True)
        assert not Path(os.devnull).is_file()

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on Windows")
    def test_killed_process_leaves_the_old_file_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("old")
        code = f"""
            import os, signal
            from llr.inputs.files import writing
            writing.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            writing.write_atomic({str(path)!r}, "new" * 100000)
        """
        environment = {**os.environ, "PYTHONPATH": str(Path(llr.__file__).parents[1])}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, check=False, env=environment)
        assert done.returncode == -9
        assert path.read_text() == "old"


class TestBeforeTheWork:
    def test_writable(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("old")
        for path in (tmp_path / "a", tmp_path / "b", os.devnull):
            require_writable(path, "--json")
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_text() == "old"

    def test_not_writable(self, tmp_path: Path) -> None:
        (tmp_path / "circle").symlink_to(tmp_path / "circle")
        for path, message in (
            (tmp_path, "is a directory; expected the name of a file"),
            (tmp_path / "new" / "a", "there is no directory .*new'; make it first"),
            ("/proc/a.png", "cannot be written"),
            (tmp_path / ("a" * 300), "cannot be written"),
            (tmp_path / "circle", "cannot be written"),
        ):
            with pytest.raises(ValueError, match=message) as err:
                require_writable(path, "--json")
            assert line(err).startswith(f"--json {path}: ")
            assert ".tmp" not in str(err.value)

    def test_directories(self, tmp_path: Path) -> None:
        require_directory(tmp_path / "new" / "deep", "--out")
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "file").touch()
        with pytest.raises(
            ValueError, match=r"--out .*file/deep: .*file' is a file; expected a dir"
        ):
            require_directory(tmp_path / "file" / "deep", "--out")
        with pytest.raises(ValueError, match="--out /proc/x: cannot be written into"):
            require_directory("/proc/x", "--out")
