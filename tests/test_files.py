"""Models, weights and samples from files; what is refused, and how it is said."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import llr
from llr.files import ACTIVATIONS, load_inputs, load_model, write_atomic

ZOO = """
    import torch
    from torch import nn

    existing = nn.Linear(2, 3)
    number = 5

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.register_buffer("scale", torch.ones(1))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a

    class Factory:
        @staticmethod
        def build():
            return nn.Linear(4, 1)

    def build():
        return nn.Sequential(nn.Linear(2, 5), nn.Tanh())

    def fails():
        raise KeyError("no such thing")

    def returns_text():
        return "model"
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of models in the current directory."""
    (tmp_path / "zoo_of_models.py").write_text(textwrap.dedent(ZOO))
    (tmp_path / "imports_missing.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "broken_syntax.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in ("zoo_of_models", "imports_missing", "broken_syntax"):
        sys.modules.pop(name, None)


def line(err: pytest.ExceptionInfo) -> str:
    """The message, which must be a single line."""
    assert "\n" not in str(err.value)
    return str(err.value)


class TestWidths:
    def test_layers(self) -> None:
        model = load_model("mlp:10-64-32-3")
        assert [type(m).__name__ for m in model] == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
        assert [tuple(p.shape) for p in model.parameters()] == [
            (64, 10),
            (64,),
            (32, 64),
            (32,),
            (3, 32),
            (3,),
        ]
        assert {p.dtype for p in model.parameters()} == {torch.float64}

    def test_single_layer(self) -> None:
        assert [type(m) for m in load_model("mlp:3-2")] == [nn.Linear]

    @pytest.mark.parametrize(
        ("name", "function"),
        [
            ("tanh", np.tanh),
            ("sigmoid", lambda z: 1 / (1 + np.exp(-z))),
            ("relu", lambda z: np.maximum(z, 0)),
            ("softplus", lambda z: np.log1p(np.exp(z))),
            ("gelu", lambda z: z / 2 * (1 + torch.erf(torch.from_numpy(z) / 2**0.5).numpy())),
            ("silu", lambda z: z / (1 + np.exp(-z))),
            ("erf", lambda z: torch.erf(torch.from_numpy(z)).numpy()),
            ("sin", np.sin),
            ("identity", lambda z: z),
        ],
    )
    def test_activations(self, name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
        z = np.linspace(-3, 3, 13)
        model = load_model("mlp:2-2-2", activation=name)
        assert np.allclose(model[1](torch.from_numpy(z)).numpy(), function(z), rtol=1e-14)

    def test_all_activations_are_tested(self) -> None:
        covered = self.test_activations.pytestmark[0].args[1]
        assert {name for name, _ in covered} == set(ACTIVATIONS)

    def test_seed(self) -> None:
        def weights(seed: int) -> torch.Tensor:
            return load_model("mlp:3-4-1", seed=seed)[0].weight

        assert torch.equal(weights(1), weights(1))
        assert not torch.equal(weights(1), weights(2))

    def test_global_generator_is_left_alone(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        load_model("mlp:3-4-1", seed=1)
        assert torch.equal(torch.rand(3), expected)

    def test_dtype(self) -> None:
        assert load_model("mlp:2-1", dtype=None)[0].weight.dtype == torch.float32
        assert load_model("mlp:2-1", dtype=torch.float32)[0].weight.dtype == torch.float32

    @pytest.mark.parametrize(
        "spec",
        ["mlp:", "mlp:10", "mlp:10-", "mlp:10-0-1", "mlp:10--1", "mlp:10-x-1", "mlp:1-2.5-1"],
    )
    def test_bad_widths(self, spec: str) -> None:
        with pytest.raises(ValueError, match="at least two positive widths") as err:
            load_model(spec)
        assert repr(spec) in line(err)

    def test_unknown_activation(self) -> None:
        with pytest.raises(ValueError, match=r"'swish': expected one of tanh, sigmoid"):
            load_model("mlp:2-2-1", activation="swish")


@pytest.mark.usefixtures("zoo")
class TestNamedModels:
    @pytest.mark.parametrize(
        ("name", "shape"),
        [("build", (5, 2)), ("existing", (3, 2)), ("Net", (1, 2)), ("Factory.build", (1, 4))],
    )
    def test_found(self, name: str, shape: tuple[int, ...]) -> None:
        model = load_model(f"zoo_of_models:{name}")
        weight = next(model.parameters())
        assert weight.shape == shape
        assert weight.dtype == torch.float64

    def test_buffers_follow_the_dtype(self) -> None:
        model = load_model("zoo_of_models:Net")
        assert model.scale.dtype == torch.float64
        assert model.count.dtype == torch.int64
        assert load_model("zoo_of_models:Net", dtype=None).scale.dtype == torch.float32

    def test_seed(self) -> None:
        one, two, three = (load_model("zoo_of_models:build", seed=s)[0].weight for s in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, three)

    def test_a_users_module_called_mlp(self, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (zoo / "mlp.py").write_text("from torch import nn\nbuild = lambda: nn.Linear(7, 1)\n")
        monkeypatch.delitem(sys.modules, "mlp", raising=False)
        assert load_model("mlp:build").in_features == 7
        sys.modules.pop("mlp")

    @pytest.mark.parametrize("spec", ["zoo_of_models", ":build", "zoo_of_models:", "", "a file.py"])
    def test_malformed(self, spec: str) -> None:
        with pytest.raises(ValueError, match="expected module:callable, such as"):
            load_model(spec)

    @pytest.mark.parametrize(
        ("spec", "error", "message"),
        [
            ("not_there:build", ValueError, "there is no module 'not_there'"),
            ("zoo_of_models.sub:build", ValueError, "there is no module 'zoo_of_models.sub'"),
            ("zoo_of_models:nothing", ValueError, "module 'zoo_of_models' has no 'nothing'"),
            ("zoo_of_models:number", TypeError, "is int; expected an nn.Module or a callable"),
            ("zoo_of_models:returns_text", TypeError, "returned str; expected an nn.Module"),
            ("zoo_of_models:fails", RuntimeError, "raised KeyError: 'no such thing'"),
            ("imports_missing:build", ModuleNotFoundError, "a_module_that_is_not_there"),
        ],
    )
    def test_not_a_model(self, spec: str, error: type[Exception], message: str) -> None:
        with pytest.raises(error) as err:
            load_model(spec)
        assert message in line(err)

    def test_cause_is_kept(self) -> None:
        with pytest.raises(RuntimeError) as err:
            load_model("zoo_of_models:fails")
        assert isinstance(err.value.__cause__, KeyError)


def save_weights(values: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(values, path)
    else:
        torch.save(values, path)
    return path


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.target),))


class TestWeights:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_values_arrive_exactly(self, tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
        values = {k: v.to(dtype) for k, v in load_model("mlp:3-4-1", seed=7).state_dict().items()}
        path = save_weights(values, tmp_path / f"w{suffix}")
        loaded = load_model("mlp:3-4-1", weights=path).state_dict()
        for name, value in values.items():
            assert torch.equal(loaded[name], value.double())

    def test_mismatch_lists_everything(self, tmp_path: Path) -> None:
        values = {
            "0.weight": torch.zeros(4, 3),
            "0.bias": torch.zeros(5),
            "1.weight": torch.zeros(2),
            "2.weight": torch.zeros(1, 4),
        }
        path = save_weights(values, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match="do not match the model") as err:
            load_model("mlp:3-4-1", weights=path)
        text = line(err)
        assert str(path) in text
        assert "missing: 2.bias" in text
        assert "unexpected: 1.weight" in text
        assert "of another shape: 0.bias (5,) (the model has (4,))" in text
        assert "0.weight" not in text

    def test_long_lists_are_cut(self, tmp_path: Path) -> None:
        path = save_weights(
            {f"x{i}": torch.zeros(1) for i in range(20)}, tmp_path / "w.safetensors"
        )
        with pytest.raises(ValueError, match=r"unexpected: x0, .* and 14 more"):
            load_model("mlp:3-4-1", weights=path)

    def test_nothing_is_loaded_on_mismatch(self, zoo: Path) -> None:
        path = save_weights({"weight": torch.zeros(3, 2)}, zoo / "w.safetensors")
        existing = load_model("zoo_of_models:existing")
        with pytest.raises(ValueError, match="missing: bias"):
            load_model("zoo_of_models:existing", weights=path)
        assert existing.weight.abs().min() > 0

    def test_own_dtype_must_match(self, tmp_path: Path) -> None:
        values = {k: v.double() for k, v in load_model("mlp:3-4-1").state_dict().items()}
        path = save_weights(values, tmp_path / "w.pt")
        with pytest.raises(
            ValueError, match=r"0.weight torch.float64 \(the model has torch.float32\)"
        ):
            load_model("mlp:3-4-1", weights=path, dtype=None)

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
    def test_not_real_numbers(self, tmp_path: Path, dtype: torch.dtype) -> None:
        values = {k: v.to(dtype) for k, v in load_model("mlp:2-1").state_dict().items()}
        with pytest.raises(ValueError, match=f"of another dtype: 0.weight {dtype}"):
            load_model("mlp:2-1", weights=save_weights(values, tmp_path / "w.pt"))

    @pytest.mark.usefixtures("zoo")
    def test_tied_parameters_need_one_name(self, tmp_path: Path) -> None:
        values = {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2)}
        path = save_weights(values, tmp_path / "w.safetensors")
        model = load_model("zoo_of_models:Tied", weights=path)
        assert torch.equal(model.b.weight.float(), torch.ones(2, 2))

    @pytest.mark.usefixtures("zoo")
    def test_buffers_are_part(self, tmp_path: Path) -> None:
        values = {"layer.weight": torch.ones(1, 2), "layer.bias": torch.zeros(1)}
        with pytest.raises(ValueError, match="missing: scale, count"):
            load_model("zoo_of_models:Net", weights=save_weights(values, tmp_path / "w.pt"))
        values |= {"scale": torch.tensor([3.0]), "count": torch.tensor(4)}
        model = load_model("zoo_of_models:Net", weights=save_weights(values, tmp_path / "w.pt"))
        assert (model.scale.item(), model.count.item()) == (3.0, 4)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
    @pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x08" + b"\0" * 7 + b"{}garbag"])
    def test_malformed(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a (safetensors|torch) file") as err:
            load_model("mlp:2-1", weights=path)
        assert str(path) in line(err)

    def test_truncated(self, tmp_path: Path) -> None:
        path = save_weights(load_model("mlp:9-90-1").state_dict(), tmp_path / "w.safetensors")
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match="not a safetensors file"):
            load_model("mlp:9-90-1", weights=path)

    @pytest.mark.parametrize("suffix", [".pt", ".pth"])
    def test_pickles_are_not_executed(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"w{suffix}"
        for save in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))):
            save({"0.weight": Malicious(tmp_path / "executed")}, path)
            with pytest.raises(
                ValueError, match="more than plain tensors, which llr never unpickles"
            ):
                load_model("mlp:2-1", weights=path)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        ("value", "described"),
        [
            (torch.ones(2), "Tensor"),
            ([torch.ones(2)], "list"),
            (
                {"state_dict": {"0.weight": torch.ones(1)}, "epoch": 3},
                "a dict with state_dict, epoch",
            ),
        ],
    )
    def test_not_a_state_dict(self, tmp_path: Path, value: object, described: str) -> None:
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=f"expected a state dict of tensors, got {described}"):
            load_model("mlp:2-1", weights=tmp_path / "w.pt")

    @pytest.mark.parametrize("name", ["w.bin", "w", "w.npz"])
    def test_unknown_suffix(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=r"expected .safetensors, .pt or .pth, got"):
            load_model("mlp:2-1", weights=tmp_path / name)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_missing(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(ValueError, match="there is no such file"):
            load_model("mlp:2-1", weights=tmp_path / f"w{suffix}")
        (tmp_path / f"w{suffix}").mkdir()
        with pytest.raises(ValueError, match="not a file"):
            load_model("mlp:2-1", weights=tmp_path / f"w{suffix}")


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
