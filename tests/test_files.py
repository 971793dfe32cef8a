"""Samples from files, and whole files or none; what is refused, and how it is said."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import llr
from llr.files import load_inputs, write_atomic


def line(err: pytest.ExceptionInfo) -> str:
    """The message, which must be a single line."""
    assert "\n" not in str(err.value)
    return str(err.value)


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.target),))


class TestNpy:
    @pytest.mark.parametrize(
        "kind", ["<f8", ">f8", "<f4", "<f2", "<i8", ">i4", "u1", "<u8", "?", np.longdouble]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_numbers(self, tmp_path: Path, kind: str | type, dtype: torch.dtype) -> None:
        np.save(tmp_path / "x.npy", np.array([[0, 1], [1, 0], [1, 1]]).astype(kind))
        x = load_inputs(tmp_path / "x.npy", dtype)
        assert x.dtype == dtype
        assert x.tolist() == [[0, 1], [1, 0], [1, 1]]

    def test_float64_is_exact(self, tmp_path: Path) -> None:
        array = np.random.default_rng(0).standard_normal((5, 3))
        np.save(tmp_path / "x.npy", array)
        assert (load_inputs(tmp_path / "x.npy").numpy() == array).all()

    def test_shapes(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npy"
        for shape, expected in (((4,), (4, 1)), ((2, 3, 4), (2, 3, 4)), ((0, 3), (0, 3))):
            np.save(path, np.zeros(shape))
            assert load_inputs(path).shape == expected
        np.save(path, np.asfortranarray(np.arange(6.0).reshape(2, 3)))
        assert load_inputs(path).tolist() == [[0, 1, 2], [3, 4, 5]]

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.array(["a"]), "entries of type <U1; expected real numbers"),
            (np.array([1j]), "complex128; expected real numbers"),
            (np.array([(1, 2)], dtype="i4,i4"), "expected real numbers"),
            (np.float64(3.0), "a single number"),
        ],
    )
    def test_refused(self, tmp_path: Path, array: np.ndarray, message: str) -> None:
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(ValueError, match=r"inputs .*x\.npy") as err:
            load_inputs(tmp_path / "x.npy")
        assert message in line(err)

    def test_pickles_are_not_executed(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npy"
        np.save(path, np.array([Malicious(tmp_path / "executed")], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match="Object arrays cannot be loaded") as err:
            load_inputs(path)
        line(err)
        path.write_bytes(pickle.dumps(Malicious(tmp_path / "executed")))
        with pytest.raises(ValueError, match="cannot be read as an array of numbers"):
            load_inputs(path)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("keep", [0, 5, 60, 130])
    def test_truncated(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "x.npy"
        np.save(path, np.zeros((10, 3)))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"x.npy: cannot be read .* write it with numpy.save"):
            load_inputs(path)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_non_finite(self, tmp_path: Path, bad: float) -> None:
        array = np.zeros((4, 3))
        array[2, 1] = bad
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(
            ValueError, match=rf"x.npy in torch.float64 has 1 .* \({bad}\) at sample 2, index 1"
        ):
            load_inputs(tmp_path / "x.npy")

    def test_overflow_in_the_narrower_dtype(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([1.0, 1e300]))
        with pytest.raises(ValueError, match=r"in torch.float32 has 1 NaN or Inf .* sample 1"):
            load_inputs(tmp_path / "x.npy", torch.float32)


class TestPt:
    def test_tensor(self, tmp_path: Path) -> None:
        x = torch.randn(4, 3, requires_grad=True)
        torch.save(x, tmp_path / "x.pt")
        loaded = load_inputs(tmp_path / "x.pt")
        assert torch.equal(loaded, x.detach().double())
        assert not loaded.requires_grad

    def test_integers_are_kept(self, tmp_path: Path) -> None:
        torch.save(torch.tensor([[1, 2], [3, 4]]), tmp_path / "x.pt")
        assert load_inputs(tmp_path / "x.pt").dtype == torch.int64

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"x": torch.ones(2)}, "expected one tensor, got a dict with x"),
            ([torch.ones(2)], "expected one tensor, got list"),
            (torch.ones(2, dtype=torch.complex64), "complex numbers"),
            (torch.tensor([1.0, float("nan")]), "NaN or Inf"),
        ],
    )
    def test_refused(self, tmp_path: Path, value: object, message: str) -> None:
        torch.save(value, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=message):
            load_inputs(tmp_path / "x.pt")

    def test_pickles_are_not_executed(self, tmp_path: Path) -> None:
        torch.save(Malicious(tmp_path / "executed"), tmp_path / "x.pt")
        with pytest.raises(ValueError, match="llr never unpickles"):
            load_inputs(tmp_path / "x.pt")
        assert not (tmp_path / "executed").exists()


class TestCsv:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1,2\n3,4\n", [[1, 2], [3, 4]]),
            ("a,b\n1,2\n", [[1, 2]]),
            ('"age","sex at birth"\n1,2', [[1, 2]]),
            ("\ufeffa,b\r\n1,2\r\n", [[1, 2]]),
            (" 1 , -2.5e-3\n+3,.5\n\n\n", [[1, -2.5e-3], [3, 0.5]]),
            ("x\n1\n2\n", [[1], [2]]),
            ("1\n2\n", [[1], [2]]),
        ],
    )
    def test_read(self, tmp_path: Path, text: str, expected: list[list[float]]) -> None:
        (tmp_path / "x.csv").write_text(text, newline="")
        assert load_inputs(tmp_path / "x.csv").tolist() == expected

    def test_digits_are_kept(self, tmp_path: Path) -> None:
        value = 0.1234567890123456789
        (tmp_path / "x.csv").write_text(f"{value!r}\n")
        assert load_inputs(tmp_path / "x.csv").item() == value
        assert load_inputs(tmp_path / "x.csv", torch.float32).dtype == torch.float32

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b\n1,2\n3,nan\n", "line 3, column 2 is 'nan'; expected a finite number"),
            ("1,2\n3,inf\n", "line 2, column 2 is 'inf'"),
            ("1,2\n3,\n", "line 2, column 2 is empty"),
            ("1,2\n3,abc\n", "line 2, column 2 is 'abc'"),
            ("1,abc\n3,4\n", "line 1, column 2 is 'abc'"),
            ("1,2\n3,4,5\n", "line 2 has 3 cells, the first row 2"),
            ("a,b\n1,2\n3\n", "line 3 has 1 cells, the first row 2"),
            ("1;2\n3;4\n5;6\n", "line 2, column 1 is '3;4'"),
            ("1\n\n2\n", "line 2 is empty"),
            ("", "no numbers"),
            ("a,b\n", "no numbers"),
            (",a,b\n0,1,2\n", "save with index=False"),
        ],
    )
    def test_refused(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "x.csv"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"inputs .*x\.csv: ") as err:
            load_inputs(path)
        assert message in line(err)

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(b"1,\xff\xfe\n")
        with pytest.raises(ValueError, match="not UTF-8 text"):
            load_inputs(tmp_path / "x.csv")


class TestAnyInputs:
    @pytest.mark.parametrize("name", ["x.txt", "x", "x.npz", "x.pkl"])
    def test_unknown_suffix(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("1")
        with pytest.raises(ValueError, match=r"expected .npy, .csv or .pt, got"):
            load_inputs(tmp_path / name)

    @pytest.mark.parametrize("suffix", [".npy", ".csv", ".pt"])
    def test_missing(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(ValueError, match="there is no such file"):
            load_inputs(tmp_path / f"x{suffix}")
        (tmp_path / f"x{suffix}").mkdir()
        with pytest.raises(ValueError, match="not a file"):
            load_inputs(tmp_path / f"x{suffix}")

    @pytest.mark.parametrize("suffix", [".npy", ".csv", ".pt"])
    def test_random_bytes(self, tmp_path: Path, suffix: str) -> None:
        rng = np.random.default_rng(0)
        path = tmp_path / f"x{suffix}"
        for size in (1, 10, 1000):
            path.write_bytes(b"\x80" + rng.bytes(size))
            with pytest.raises(ValueError, match=f"inputs .*x{suffix}") as err:
                load_inputs(path)
            line(err)


class TestWriteAtomic:
    def test_text_and_bytes(self, tmp_path: Path) -> None:
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

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on Windows")
    def test_killed_process_leaves_the_old_file_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("old")
        code = f"""
            import os, signal
            from llr import files
            files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            files.write_atomic({str(path)!r}, "new" * 100000)
        """
        environment = {**os.environ, "PYTHONPATH": str(Path(llr.__file__).parents[1])}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, check=False, env=environment)
        assert done.returncode == -9
        assert path.read_text() == "old"
