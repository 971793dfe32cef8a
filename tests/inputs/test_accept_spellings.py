"""Ways to write numbers, dtypes and params= that the public functions accept."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import llr
from llr import embedding, models, recovery
from llr.jacobians import reference

from .accept_cases import Tied, mlp, samples

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_numbers_of_numpy() -> None:
    model, x = mlp(), samples(30)
    one = np.int64(1)
    assert torch.equal(llr.jacobian(model, x, chunk_size=np.int32(2)), llr.jacobian(model, x))
    assert llr.rank(model, x, upper=np.uint8(26), rtol=np.float32(1e-6), chunk_size=one).upper == 26
    assert llr.rank(model, x, method="certified", max_bits=np.int64(128)).lower == 26
    assert (
        llr.model_rank(model, margin=np.int64(4), seed=one, sample_shape=np.array([3])).rank == 26
    )
    assert llr.has_llr_guarantee(model, x, model_rank=np.int64(26), certify=np.True_)
    assert embedding.widen(model, [np.int64(3), 5, 2])[0][0].out_features == 5
    assert embedding.split(model, np.int64(0), one, np.float64(0.25))[1].n_narrow == 26
    assert models.mlp(np.array([2, 3, 1]))[0].in_features == 2
    assert models.TwoLayer(np.int64(2), one, bias=np.True_, dtype="float64")[0].weight.dtype == F64
    assert (
        recovery.initial(model, np.int64(3), dtype="float32", device="cpu").dtype == torch.float32
    )
    assert recovery.Budget(starts=np.int64(3), seconds=np.float32(2)).starts == 3
    assert recovery.Damping(start=np.float32(0.5), iterations=np.int16(7)).iterations == 7
    with llr.set_memory_budget(np.int64(10**9)):
        assert llr.memory_budget() == 10**9


@pytest.mark.parametrize(
    "name", ["float32", "torch.float32", np.float32, np.dtype("f4"), torch.float32]
)
def test_dtypes_by_name(name: Any) -> None:
    assert llr.rank(mlp(), samples(), dtype=name).dtype == torch.float32
    assert llr.rank(torch.eye(2, dtype=F64), dtype=name).dtype == torch.float32


def test_dtypes_that_are_none() -> None:
    for name, kind, message in (
        ("float31", ValueError, "dtype is 'float31'; expected float32, float64"),
        (3, TypeError, "dtype is 3; expected a torch.dtype or its name"),
        ("int64", TypeError, "dtype is torch.int64; expected float32 or float64"),
    ):
        with pytest.raises(kind, match=message):
            llr.rank(mlp(), samples(), dtype=name)


def test_state_dicts_as_values() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = samples()
    model(x)
    model.eval()
    J = llr.jacobian(model, x)
    assert torch.equal(llr.jacobian(model, x, params=model.state_dict()), J)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(2)
    assert torch.equal(llr.jacobian(model, x, params=other.state_dict()), llr.jacobian(other, x))
    other[1].running_mean.add_(1)
    with pytest.raises(
        ValueError, match=r"the buffer '1[.]running_mean' with other values than the model's"
    ):
        llr.jacobian(model, x, params=other.state_dict())


def test_stacked_models_with_their_buffers() -> None:
    x = samples()
    ensemble = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval() for _ in range(3)]
    stacked = torch.func.stack_module_state(ensemble)
    J = llr.jacobian(ensemble[0], x, params=stacked)
    for i, member in enumerate(ensemble):
        torch.testing.assert_close(J[i], reference.jacobian(member, x))
    ensemble[1][1].running_var.mul_(2)
    with pytest.raises(ValueError, match="take models whose buffers differ one at a time"):
        llr.jacobian(ensemble[0], x, params=torch.func.stack_module_state(ensemble))


def test_second_names_of_tied_weights() -> None:
    model, x = Tied(), samples()
    J = llr.jacobian(model, x)
    first = J[..., llr.layout(model)["a.weight"]]
    assert torch.equal(llr.jacobian(model, x, params="b.weight"), first)
    assert llr.layout(model, params=["b.*"]) == {"a.weight": slice(0, 9), "b.bias": slice(9, 12)}
    assert torch.equal(llr.jacobian(model, x, params=model.state_dict()), J)
    value = torch.randn(3, 3)
    one, other = ({name: value} for name in ("a.weight", "b.weight"))
    assert torch.equal(llr.jacobian(model, x, params=other), llr.jacobian(model, x, params=one))
    with pytest.raises(
        ValueError, match=r"two values for one tied parameter, 'a[.]weight' and 'b[.]weight'"
    ):
        llr.jacobian(model, x, params={"a.weight": value, "b.weight": value + 1})


def test_certificates_with_params_in_other_forms() -> None:
    model, x = mlp(), samples()
    proof = llr.certify(model, x, params=model.state_dict())
    wrapped = nn.DataParallel(model)
    for params in (model.state_dict(), dict(wrapped.named_parameters())):
        assert llr.verify(proof, wrapped, x, params=params)
        assert llr.verify(proof, model=wrapped, x=x.numpy(), params=params)


def test_params_in_other_forms() -> None:
    model, x = mlp(), samples()
    J = llr.jacobian(model, x)
    assert torch.equal(llr.jacobian(model, x, params=(name for name in ("0.*", "2.*"))), J)
    arrays = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert torch.equal(llr.jacobian(model, x, params=arrays), J)

    def line(params: Any, x: Tensor) -> Tensor:
        return x @ params["w"]

    values = nn.ParameterDict({"w": torch.randn(3, 2)})
    expected = llr.jacobian(line, x, params={"w": values["w"].detach()})
    assert torch.equal(llr.jacobian(line, x, params=values), expected)
    for bad in (3, b"0.*", torch.ones(3)):
        with pytest.raises(
            TypeError, match=f"params is {type(bad).__name__}; expected a name or glob"
        ):
            llr.jacobian(model, x, params=bad)


def test_integers_that_float64_rounds():
    for value in (
        [[2**60 + 1, 2**60], [2**60 + 1, 2**60 + 2]],
        np.array([[2**60 + 1, 2**60], [2**60 + 1, 2**60 + 2]]),
        [[2**60 + 1, 0.5], [1.0, 2.0]],
    ):
        with pytest.raises(ValueError, match="integer 1152921504606846977 at index"):
            llr.numerical_rank(value)
    assert llr.numerical_rank([[2**60, 2**60], [2**60, 2**61]]).rank == 2
    assert llr.rank(np.arange(9).reshape(3, 3)).rank == 2
    assert llr.numerical_rank(np.eye(3) > 0).rank == 3
