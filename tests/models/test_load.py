"""Models from specs and weights files; refusals and their messages."""

from __future__ import annotations

import os
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from llr.inputs.activations import ACTIVATIONS
from llr.models.load import load_model

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
    """A Python module with models, in the current directory."""
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
            ({"epoch": 3, "args": {"lr": 0.1}}, "a dict with epoch, args"),
        ],
    )
    def test_not_a_state_dict(self, tmp_path: Path, value: object, described: str) -> None:
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=f"expected a state dict of tensors, got {described}"):
            load_model("mlp:2-1", weights=tmp_path / "w.pt")

    @pytest.mark.parametrize("name", ["w.bin", "w", "w.npz"])
    def test_unknown_suffix(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=r"expected .safetensors, .pt, .pth or .ckpt, got"):
            load_model("mlp:2-1", weights=tmp_path / name)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_missing(self, tmp_path: Path, suffix: str) -> None:
        with pytest.raises(ValueError, match="there is no such file"):
            load_model("mlp:2-1", weights=tmp_path / f"w{suffix}")
        (tmp_path / f"w{suffix}").mkdir()
        with pytest.raises(ValueError, match="is a directory, not a file"):
            load_model("mlp:2-1", weights=tmp_path / f"w{suffix}")


def test_readers_of_files_find_it_there() -> None:
    from llr.inputs import files  # noqa: PLC0415 - loaded on first use

    assert files.load_model is load_model
    assert files.load_inputs.__name__ == "load_inputs"
    with pytest.raises(AttributeError, match="no attribute 'load_nothing'"):
        files.load_nothing  # noqa: B018
