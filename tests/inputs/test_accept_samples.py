"""Samples and matrices that the public functions accept: the right number, or an error of one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

import llr
from llr.jacobians import reference

from .accept_cases import agree, mlp, normed, samples

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


SPELLINGS: dict[str, Callable[[Tensor], Any]] = {
    "coo": lambda x: x.to_sparse(),
    "coalesced twice": lambda x: torch.sparse_coo_tensor(
        torch.cat([x.to_sparse().indices()] * 2, 1), torch.cat([x.to_sparse().values() / 2] * 2), x.shape
    ),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "bsr": lambda x: x.to_sparse_bsr((1, 3)),
    "scipy": lambda x: scipy.sparse.csr_array(x.numpy()),
    "array": lambda x: x.numpy(),
    "float64 array": lambda x: x.double().numpy(),
    "big-endian array": lambda x: x.numpy().astype(">f4"),
    "read-only array": lambda x: np.broadcast_to(x.numpy(), x.shape),
    "reversed array": lambda x: x.numpy()[::-1].copy()[::-1],
    "masked array without masks": lambda x: np.ma.MaskedArray(x.numpy()),
    "list": lambda x: x.tolist(),
    "tuple of lists": lambda x: tuple(x.tolist()),
    "list of arrays": lambda x: list(x.numpy()),
    "parameter": nn.Parameter,
    "requires grad": lambda x: x.clone().requires_grad_(),
    "transposed": lambda x: x.T.contiguous().T,
    "negative bit": lambda x: torch.complex(x, -x).conj().imag,
    "subclass": lambda x: x.as_subclass(type("Labelled", (Tensor,), {})),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse :UserWarning")
@pytest.mark.parametrize("spelling", list(SPELLINGS))
@pytest.mark.parametrize("make", [mlp, normed])
def test_samples_as_people_have_them(spelling: str, make: Callable[[], nn.Module]) -> None:
    model, x = make(), samples() * (torch.rand(5, 3) > 0.4)
    agree(model, model, SPELLINGS[spelling](x), x)


class Frame:
    """The parts of a pandas table that llr uses."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._data = {name: np.asarray(values) for name, values in columns.items()}
        self.columns, self.dtypes = list(columns), [v.dtype for v in self._data.values()]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        kind = object if any(d.kind == "O" for d in self.dtypes) else None
        return np.stack([v.astype(kind or v.dtype) for v in self._data.values()], 1)


def test_tables() -> None:
    model, x = normed(), samples()
    table = Frame({"a": x[:, 0].numpy(), "b": x[:, 1].numpy(), "c": x[:, 2].numpy()})
    agree(model, model, table, x)
    nullable = {name: x[:, i].numpy().astype(object) for i, name in enumerate("abc")}
    agree(model, model, Frame(nullable), x)
    named = Frame({"a": x[:, 0].numpy(), "city": np.array(["x"] * 5, dtype=object)})
    with pytest.raises(TypeError, match="x has a column 'city' of object; expected numbers only"):
        llr.jacobian(model, named)


def test_tokens_stay_integers() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2))
    x = torch.tensor([[1, 1], [2, 3], [0, 4]])
    for given in (
        x.numpy(),
        x.to(torch.int32),
        x.tolist(),
        x.numpy().astype(np.uint16),
        x.to_sparse(),
    ):
        torch.testing.assert_close(llr.jacobian(model, given), reference.jacobian(model, x))
    for kind in (torch.uint8, torch.bool):
        with pytest.raises(
            (TypeError, ValueError), match=rf"x is {kind}.*(x.to\(torch|x.float\(\))"
        ):
            llr.jacobian(normed(), torch.ones(4, 3).to(kind))
        with pytest.raises(
            TypeError, match=rf"x is {kind}; expected torch.float32 as the parameters"
        ):
            llr.jacobian(mlp(), torch.ones(4, 3).to(kind))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
            "x is quantized (torch.qint8)",
        ),
        (lambda x: torch.nested.nested_tensor(list(x)), "x is a nested tensor"),
        (
            lambda x: torch.masked.masked_tensor(x, x > 0),
            "x is a MaskedTensor: masked entries have no",
        ),
        (
            lambda x: np.ma.masked_greater(x.numpy(), 0.0),
            "masked entries; expected a number for each",
        ),
        (lambda x: x.numpy().astype(np.longdouble), "x is an array of"),
        (lambda x: {"x": x}, "x is dict; expected a tensor (pass its tensor, or wrap the model)"),
        (lambda x: (x, x), "x is a tuple of tensors; expected one tensor"),
        (lambda _: "data.npy", "x is str; expected a tensor"),
        (lambda _: None, "x is NoneType; expected a tensor"),
        (lambda _: 3.0, "x is a single number; expected samples along a first dimension"),
        (lambda _: np.array(["a"]), "x has entries of dtype <U1; expected numbers only"),
        (lambda _: [[10**30]], "integers beyond 64 bits"),
        (lambda _: torch.utils.data.DataLoader([1, 2]), "x is DataLoader; expected a tensor"),
        (
            lambda _: torch.sparse_coo_tensor(
                torch.tensor([[0], [1]]), torch.ones(1), (1 << 50, 3)
            ),
            "takes 13.5 PB dense, more than the memory budget",
        ),
    ],
)
def test_samples_that_are_refused(make: Callable[[Tensor], Any], message: str) -> None:
    for model in (mlp(), normed()):
        for call in (llr.jacobian, llr.plan, llr.gram):
            with pytest.raises((TypeError, ValueError), match=re.escape(message)):
                call(model, make(samples()))


# --- matrices --------------------------------------------------------------------------------------------


def test_matrices_as_people_have_them() -> None:
    A = torch.randn(4, 2, dtype=F64) @ torch.randn(2, 5, dtype=F64)
    for given in (
        A.numpy(),
        A.tolist(),
        A.to_sparse(),
        scipy.sparse.coo_array(A.numpy()),
        A.numpy()[::-1],
    ):
        assert llr.numerical_rank(given).rank == 2
        assert llr.rank(given).rank == 2
        torch.testing.assert_close(llr.svdvals(given), torch.linalg.svdvals(A), rtol=0, atol=1e-12)
    assert llr.numerical_rank([[1, 2], [2, 4]]).rank == 1
    spectrum = llr.svdvals(A)
    assert llr.tolerance(spectrum.numpy(), np.int64(4)) == llr.tolerance(spectrum.tolist(), 4)
    for given, message in (
        (3.0, "A is a single number"),
        ([1.0, 2.0], r"A is a vector of shape \(2,\)"),
        (A.to("meta"), "A is on the meta device"),
        (A.to(torch.complex64), "A is torch.complex64; expected a real matrix"),
        (
            A.long(),
            r"A is torch.int64; expected float32 or float64 \(A.double\(\), exact for integers up to",
        ),
        (A > 0, r"A is torch.bool; expected float32 or float64 \(A.double\(\)\)"),
        (torch.ones(1, 1).expand(2**30, 2**12), "more than the memory budget"),
        ("A", "A is str"),
        (None, "A is NoneType"),
    ):
        for call in (llr.numerical_rank, llr.svdvals):
            with pytest.raises((TypeError, ValueError), match=message):
                call(given)
