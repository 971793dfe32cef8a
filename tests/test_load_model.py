"""Models from specs and weights files; what is refused, and how it is said."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from llr.activations import ACTIVATIONS
from llr.files import load_model

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


class Net(nn.Module):
    """With batch statistics, a scalar, and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.inner = nn.Sequential(nn.Linear(4, 2), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.inner(torch.tanh(self.b(self.a(x))))


class Versioned(Net):
    def get_extra_state(self) -> object:
        return {"version": 3}

    def set_extra_state(self, state: object) -> None:
        self.version = state


class Renamed(Net):
    """Translates the names of an older version, as modules may."""

    def _load_from_state_dict(self, values, prefix, *args):  # type: ignore[no-untyped-def]
        for name in [n for n in values if n.startswith(f"{prefix}old_")]:
            values[prefix + name.removeprefix(f"{prefix}old_")] = values.pop(name)
        super()._load_from_state_dict(values, prefix, *args)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Load what is given from a file into a model; a notice is expected as `says`."""
    own = types.ModuleType("own_nets")
    own.Net, own.Versioned, own.Renamed = Net, Versioned, Renamed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_nets", own)

    def load(
        values: object, *, model: str = "Net", says: str | None = None, **options: Any
    ) -> nn.Module:
        torch.save(values, tmp_path / "w.pt")
        if says is None:
            return load_model(f"own_nets:{model}", weights=tmp_path / "w.pt", **options)
        with pytest.warns(UserWarning, match=says) as record:
            net = load_model(f"own_nets:{model}", weights=tmp_path / "w.pt", **options)
        assert all("\n" not in str(warning.message) for warning in record)
        return net

    return load


def state(model: type[nn.Module] = Net) -> dict[str, Any]:
    torch.manual_seed(5)
    return dict(model().state_dict())


def same(net: nn.Module, values: dict[str, Any]) -> bool:
    own = net.state_dict()
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return all(torch.equal(own[name].float(), value.float()) for name, value in tensors.items())


class TestCheckpointsThatTorchTakes:
    def test_without_the_count_of_batches(self, kept: Callable[..., nn.Module]) -> None:
        values = {name: v for name, v in state().items() if "num_batches" not in name}
        assert same(kept(values), values)
        with_metadata = Net().state_dict()  # which says that the count belongs to it
        del with_metadata["b.num_batches_tracked"]
        assert same(kept(with_metadata), with_metadata)

    def test_extra_state(self, kept: Callable[..., nn.Module]) -> None:
        net = kept(state(Versioned), model="Versioned")
        assert net.version == {"version": 3}
        with pytest.raises(ValueError, match="unexpected: _extra_state"):
            kept(state(Versioned))
        with pytest.raises(ValueError, match="missing: _extra_state"):
            kept(state(), model="Versioned")

    def test_names_that_the_model_translates(self, kept: Callable[..., nn.Module]) -> None:
        values = state()
        old = {("old_scale" if name == "scale" else name): v for name, v in values.items()}
        assert same(kept(old, model="Renamed"), values)
        with pytest.raises(ValueError, match="missing: scale; unexpected: old_scale"):
            kept(old)

    def test_a_number_kept_as_a_vector(self, kept: Callable[..., nn.Module]) -> None:
        values = {**state(), "scale": torch.tensor([7.0])}
        assert kept(values).scale.item() == 7.0
        with pytest.raises(ValueError, match=r"of another shape: scale \(2,\)"):
            kept({**values, "scale": torch.ones(2)})

    @pytest.mark.parametrize(
        "prefix",
        [
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "_fsdp_wrapped_module.",
            "model.",
            "net.net.",
        ],
    )
    def test_prefixes(self, kept: Callable[..., nn.Module], prefix: str) -> None:
        values = state()
        found = kept({prefix + name: v for name, v in values.items()}, says="without their prefix")
        assert same(found, values)

    def test_a_part_that_was_compiled(self, kept: Callable[..., nn.Module]) -> None:
        values = state()
        compiled = {name.replace("inner.", "inner._orig_mod."): v for name, v in values.items()}
        assert same(kept(compiled, says="'_orig_mod.'"), values)

    def test_prefixes_of_something_else(self, kept: Callable[..., nn.Module]) -> None:
        values = state()
        with pytest.raises(ValueError, match=r"missing: scale.*unexpected: net.scale"):
            kept({"net." + name: v for name, v in values.items()} | {"other.x": torch.ones(1)})
        del values["scale"]
        with pytest.raises(
            ValueError,
            match=r"w.pt without their prefix 'module.' do not match the model; missing: scale$",
        ):
            kept({"module." + name: v for name, v in values.items()})

    def test_under_a_key(self, kept: Callable[..., nn.Module]) -> None:
        values = state()
        for name in ("model", "state_dict"):
            found = {name: values, "epoch": 3, "best": np.float64(0.5), "names": ["a"]}
            assert same(kept(found, says=f"taken from its entry '{name}'"), values)
            assert same(kept(found, key=name), values)
        optimizer = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(4, 3)}}}
        found = {"model": values, "optimizer": optimizer, "momenta": {"m0": torch.ones(2)}}
        assert same(kept(found, says="its entry 'model'"), values)

    def test_several(self, kept: Callable[..., nn.Module]) -> None:
        values, other = state(), {name: v + 1 for name, v in state().items()}
        found = {"model": values, "ema": {"shadow": other}, "teacher": other, "epoch": 1}
        with pytest.raises(ValueError, match="--key names one of model, teacher"):
            kept(found)
        assert same(kept(found, key="teacher"), other)
        assert same(kept(found, key="ema.shadow"), other)
        for key, message in (
            ("student", "no 'student' for --key student; it has a dict with model, ema, teacher"),
            ("ema", "--key ema leads to a dict with shadow; expected a state dict"),
            ("ema.mean", "no 'mean' for --key ema.mean; it has a dict with shadow"),
            ("epoch", "--key epoch leads to int"),
        ):
            with pytest.raises(ValueError, match=message):
                kept(found, key=key)

    def test_lightning(self, kept: Callable[..., nn.Module]) -> None:
        values = state()
        found = {"state_dict": {f"model.{name}": v for name, v in values.items()}, "epoch": 1}
        assert same(kept(found, says="prefix 'model.'|entry 'state_dict'"), values)

    def test_plain_values_beside(self, kept: Callable[..., nn.Module]) -> None:
        values = state()
        assert same(kept({**values, "epoch": 3, "accuracy": np.float32(0.5), "note": "x"}), values)

    def test_what_would_have_to_be_unpickled_is_named(self, kept: Callable[..., nn.Module]) -> None:
        with pytest.raises(ValueError, match=r"never unpickles \(it has a argparse.Namespace\)"):
            kept({"model": state(), "args": argparse.Namespace(lr=1)})
        with pytest.raises(ValueError, match="never unpickles"):
            kept({"model": state(), "array": np.ones(3)})

    def test_nothing_is_loaded_on_mismatch(self, kept: Callable[..., nn.Module]) -> None:
        sys.modules["own_nets"].seen = seen_net = Net()  # type: ignore[attr-defined]
        before = {name: v.clone().double() for name, v in seen_net.state_dict().items()}
        with pytest.raises(ValueError, match="unexpected: old_scale"):
            kept(
                {("old_scale" if n == "scale" else n): v for n, v in state().items()}, model="seen"
            )
        assert same(seen_net, before)
