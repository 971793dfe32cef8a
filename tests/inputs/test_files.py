"""Samples from files, writing of complete files or none, refusals and their messages."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import llr
from llr.inputs.files.layout import Layout
from llr.inputs.files.load import as_taken_by, load_inputs

SUFFIXES = [".csv", ".tsv", ".txt", ".dat", ".npy", ".npz", ".pt", ".safetensors"]


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

    def test_small_numbers_are_not_zero(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([[1, 2], [3, np.longdouble("1e-4000")]]))
        with pytest.raises(ValueError, match=r"1e-4000 at sample 1, column 1 is 0 in float64"):
            load_inputs(tmp_path / "x.npy")

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

    def test_of_a_dict(self, tmp_path: Path) -> None:
        torch.save({"x": torch.ones(2, 1), "y": torch.zeros(2, 1), "n": 3}, tmp_path / "x.pt")
        assert load_inputs(tmp_path / "x.pt", key="y").tolist() == [[0], [0]]
        torch.save({"x": torch.ones(2, 1)}, tmp_path / "x.pt")
        assert load_inputs(tmp_path / "x.pt").tolist() == [[1], [1]]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"x": torch.ones(2), "y": torch.ones(2)}, "got a dict with x, y; --inputs-key names"),
            ({"x": torch.ones(2), "n": 3}, "got a dict with x, n; --inputs-key names"),
            (torch.eye(2).to_sparse(), "such as x.to_dense()"),
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


class TestNpz:
    def test_one_or_named(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        x, y = np.arange(6.0).reshape(2, 3), np.arange(4)
        np.savez(path, x)
        assert load_inputs(path).tolist() == x.tolist()
        np.savez_compressed(path, x=x, y=y)
        assert load_inputs(path, key="x").tolist() == x.tolist()
        assert load_inputs(path, key="y").dtype == torch.int64
        for key in (None, "z"):
            with pytest.raises(ValueError, match=r"--inputs-key names one of its arrays: x, y"):
                load_inputs(path, key=key)

    def test_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez(path, x=np.array([Malicious(tmp_path / "executed")], dtype=object))
        with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
            load_inputs(path)
        assert not (tmp_path / "executed").exists()
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match=r"not an .npz file"):
            load_inputs(path)

    def test_a_bomb_is_not_unpacked(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1_000_000))
        with llr.set_memory_budget(1 << 20), pytest.raises(ValueError, match="8 MB, more than"):
            load_inputs(tmp_path / "x.npz")


class TestSafetensors:
    def test_one_or_named(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        safetensors.torch.save_file({"x": torch.ones(2, 3), "n": torch.tensor([1, 2])}, path)
        assert load_inputs(path, key="x").dtype == torch.float64
        assert load_inputs(path, key="n").tolist() == [[1], [2]]
        with pytest.raises(ValueError, match=r"names one of its arrays: (n, x|x, n)"):
            load_inputs(path)


class TestCsv:
    """CSV files; test_tables.py tests how their text is read."""

    def test_read(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("a;b\n1,5;2\n")
        assert load_inputs(tmp_path / "x.csv").tolist() == [[1.5, 2]]
        assert load_inputs(tmp_path / "x.csv", torch.float32).dtype == torch.float32
        assert load_inputs(tmp_path / "x.csv", layout=Layout(columns="b")).tolist() == [[2]]

    def test_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("a,b\n1,2\n3,\n")
        with pytest.raises(ValueError, match=r"inputs .*x\.csv: line 3, column 2 is empty") as err:
            load_inputs(tmp_path / "x.csv")
        line(err)
        with pytest.raises(ValueError, match=r"targets .*x\.csv: line 3, column 2 is empty"):
            load_inputs(tmp_path / "x.csv", what="targets")

    def test_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b\n1 2\n")))
        assert load_inputs("-").tolist() == [[1, 2]]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1,?\n")))
        with pytest.raises(ValueError, match="inputs standard input: line 1, column 2"):
            load_inputs("-")


class Words(nn.Module):
    """Reads tokens without an embedding layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 3, dtype=torch.float64))
        self.seen = []

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(words))
        return self.table[words].sum(1)


class TestIntegers:
    words = torch.tensor([[1, 2], [3, 8]])

    @pytest.mark.parametrize(
        ("model", "dtype"),
        [
            (nn.Embedding(9, 2), torch.int64),
            (nn.EmbeddingBag(9, 2, mode="sum"), torch.int64),
            (Words(), torch.int64),
            (nn.Linear(2, 1), torch.float64),
            (nn.Sequential(nn.Linear(2, 1), nn.Embedding(2, 2)), torch.float64),  # neither
            (nn.Tanh(), torch.float64),
        ],
    )
    def test_are_kept_where_the_model_takes_them(self, model: nn.Module, dtype: object) -> None:
        taken = as_taken_by(model.double(), self.words, torch.float64)
        assert taken.dtype == dtype
        assert torch.equal(taken, self.words.to(taken.dtype))
        assert getattr(model, "seen", []) == [], "a copy is tried"

    @pytest.mark.parametrize("kind", ["u1", "i1", "<u2", ">i4", "<u8"])
    def test_of_any_size(self, tmp_path: Path, kind: str) -> None:
        np.save(tmp_path / "x.npy", self.words.numpy().astype(kind))
        x = load_inputs(tmp_path / "x.npy")
        assert not x.is_floating_point()
        assert as_taken_by(nn.Embedding(9, 2), x, torch.float32).tolist() == self.words.tolist()

    @pytest.mark.parametrize("kind", ["npy", "npz", "pt", "safetensors"])
    @pytest.mark.parametrize(
        "number", [2**53 + 1, -(2**53) - 1, 2**62 + 1, -(2**63) + 1, 2**63 + 1, 2**64 - 1]
    )
    def test_that_float64_rounds_are_refused(self, tmp_path: Path, kind: str, number: int) -> None:
        path = tmp_path / f"x.{kind}"
        x = np.array([[1, 2], [3, number]], dtype=np.uint64 if number > 2**63 else np.int64)
        write = {
            "npy": lambda: np.save(path, x),
            "npz": lambda: np.savez(path, x=x),
            "pt": lambda: torch.save(torch.from_numpy(x), path),
            "safetensors": lambda: safetensors.torch.save_file({"x": torch.from_numpy(x)}, path),
        }
        try:
            write[kind]()
        except KeyError:
            assert kind == "safetensors" and x.dtype == np.uint64  # noqa: PT018 - an old release
            pytest.skip("this safetensors writes no uint64")
        message = rf"the integer {number} at sample 1, column 1 is {int(float(number))} in float64"
        with pytest.raises(ValueError, match=message):
            load_inputs(path, torch.float64)
        with pytest.raises(ValueError, match=message):
            as_taken_by(nn.Linear(2, 1).double(), load_inputs(path), torch.float64)

    def test_that_float64_holds(self, tmp_path: Path) -> None:
        x = np.array([[2**53, -(2**53)], [2**60, 2**53 + 2]])
        np.save(tmp_path / "x.npy", x)
        assert load_inputs(tmp_path / "x.npy", torch.float64).tolist() == x.tolist()
        np.save(tmp_path / "x.npy", np.array([[1], [2**63 + 2**60]], dtype=np.uint64))
        assert load_inputs(tmp_path / "x.npy").tolist() == [[1], [2.0**63 + 2.0**60]]

    def test_whole_numbers_written_as_fractions(self) -> None:
        written = self.words.double()
        assert as_taken_by(nn.Embedding(9, 2), written, torch.float64).dtype == torch.int64
        assert as_taken_by(nn.Linear(2, 1), written, torch.float32).dtype == torch.float32
        assert as_taken_by(nn.Embedding(9, 2), written + 0.5, torch.float64).dtype == torch.float64

    def test_truth_values(self) -> None:
        class Masked(nn.Module):
            def forward(self, mask: torch.Tensor) -> torch.Tensor:
                return (~mask & torch.tensor([True, False])).sum(1)

        mask = torch.tensor([[True, False]])
        assert as_taken_by(nn.Linear(2, 1), mask, torch.float32).tolist() == [[1, 0]]
        assert as_taken_by(Masked(), mask, torch.float32).dtype in (torch.bool, torch.int64)

    def test_rounded_numbers_are_no_tokens(self) -> None:
        class Digits(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.long() % 10

        x = torch.tensor([[2**24 + 1]])
        assert as_taken_by(Digits(), x, torch.float32).dtype == torch.int64
        assert as_taken_by(Digits(), x, torch.float64).dtype == torch.float64


class TestAnyInputs:
    @pytest.mark.parametrize("name", ["x.xlsx", "x", "x.pkl"])
    def test_unknown_suffix(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("1")
        with pytest.raises(
            ValueError, match=r"expected .csv, .tsv, .txt, .dat, .npy, .npz, .pt or"
        ):
            load_inputs(tmp_path / name)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_missing(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(ValueError, match="there is no such file"):
            load_inputs(tmp_path / f"x{suffix}")
        (tmp_path / f"x{suffix}").mkdir()
        with pytest.raises(ValueError, match="is a directory, not a file"):
            load_inputs(tmp_path / f"x{suffix}")

    def test_options_that_mean_nothing(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.ones(3))
        with pytest.raises(ValueError, match=r"--sep is for text; a .npy file needs none"):
            load_inputs(tmp_path / "x.npy", layout=Layout(sep=","))
        with pytest.raises(ValueError, match=r"--inputs-key is for .npz, .pt and .safetensors"):
            load_inputs(tmp_path / "x.npy", key="x")

    def test_larger_than_memory(self, tmp_path: Path) -> None:
        with (tmp_path / "x.csv").open("wb") as file:
            file.truncate(1 << 42)  # sparse: takes no disk space
        with pytest.raises(ValueError, match=r"has 4.4 TB, more than the memory budget"):
            load_inputs(tmp_path / "x.csv")
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 42,)}
        )
        (tmp_path / "x.npy").write_bytes(header.getvalue() + bytes(64))
        with pytest.raises(ValueError, match="it ends before its 4398046511104 entries"):
            load_inputs(tmp_path / "x.npy")

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_random_bytes(self, tmp_path: Path, suffix: str) -> None:
        rng = np.random.default_rng(0)
        path = tmp_path / f"x{suffix}"
        for size in (1, 10, 1000):
            path.write_bytes(b"\x80" + rng.bytes(size))
            with pytest.raises(ValueError, match=f"inputs .*x{suffix}") as err:
                load_inputs(path)
            line(err)
