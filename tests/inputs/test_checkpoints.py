"""Checkpoints that torch's load_state_dict accepts, and messages for checkpoints that fit only in part."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llr.models.load import load_model


class Net(nn.Module):
    """A module with batch statistics, a scalar parameter, and extra state."""

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
    """Translates the parameter names of an older version when it loads, as some modules do."""

    def _load_from_state_dict(self, values, prefix, *args):  # type: ignore[no-untyped-def]
        for name in [n for n in values if n.startswith(f"{prefix}old_")]:
            values[prefix + name.removeprefix(f"{prefix}old_")] = values.pop(name)
        super()._load_from_state_dict(values, prefix, *args)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Save a state, and load it from the file into a model. `says` is the expected notice."""
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
        with_metadata = Net().state_dict()  # its metadata says that the count belongs to it
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
