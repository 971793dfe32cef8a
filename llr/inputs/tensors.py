"""Samples, targets and matrices in all common forms, converted to plain dense tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.operators.finite import check_finite as check_finite

_ORDINARY = (Tensor, nn.Parameter)
_DENSE = torch.strided
_LAZY = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
_MANY = 1 << 24
_WIDENED = {"uint16": np.int64, "uint32": np.int64}
"""dtypes for which torch has few operations -> a dtype that holds the same numbers."""


def is_plain(t: Tensor) -> bool:
    """Whether a tensor is dense, of torch's own class, and holds as many numbers as its shape says."""
    return (
        type(t) in _ORDINARY
        and t.layout is _DENSE
        and not (t.is_quantized or t.is_nested or t.is_neg() or t.is_conj())
    )


def is_special(t: Tensor) -> bool:
    """Whether :func:`plain` may change or refuse it: the fastest test, for a model's own parameters."""
    return type(t) not in _ORDINARY or t.layout is not _DENSE


def plain(name: str, t: Tensor) -> Tensor:
    """A tensor in the form that every computation takes, with the same numbers.

    Sparse tensors are made dense if that fits the memory budget.

    Args:
        name: the argument's name, for messages.
        t: any tensor.

    Raises:
        TypeError: a tensor without a single dense value: quantized, nested, masked, distributed, lazy.
        ValueError: a sparse or an expanded tensor whose dense form exceeds the memory budget.
    """
    if is_plain(t):
        return t
    if isinstance(t, _LAZY):
        raise TypeError(
            f"{name} has no shape yet: its module is lazy; run the model once on a batch (model(x)) first"
        )
    if t.is_nested:
        raise TypeError(
            f"{name} is a nested tensor, whose parts differ in shape; expected one shape (pad them with "
            "torch.nested.to_padded_tensor)"
        )
    if t.is_quantized:
        raise TypeError(f"{name} is quantized ({t.dtype}); expected floating point (.dequantize())")
    if type(t) not in _ORDINARY:
        _check_subclass(name, t)
    if t.layout is not torch.strided:
        _check_size(name, t, "dense")
        t = t.to_dense()
    return t.resolve_conj().resolve_neg()


def _check_subclass(name: str, t: Tensor) -> None:
    kind = type(t).__name__
    ways = {
        "MaskedTensor": "masked entries have no value; fill them first (.to_tensor(0.0))",
        "DTensor": "its numbers are spread over processes; gather them (.full_tensor(), or "
        "torch.distributed.checkpoint.state_dict.get_model_state_dict for a model)",
        "FakeTensor": "it holds no numbers; leave FakeTensorMode first",
    }
    if kind in ways or _computes_differently(type(t)):
        way = ways.get(
            kind, "a tensor class with arithmetic of its own; convert it to torch.Tensor"
        )
        raise TypeError(f"{name} is a {kind}: {way}")


def _computes_differently(kind: type[Tensor]) -> bool:
    usual = (Tensor.__torch_function__, nn.Parameter.__torch_function__)
    function = kind.__torch_function__
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ or not any(
        getattr(function, "__func__", function) is getattr(own, "__func__", own) for own in usual
    )


def _check_size(name: str, t: Tensor, how: str) -> None:
    nbytes = t.numel() * t.dtype.itemsize
    if not fits(nbytes, t.device):
        raise ValueError(
            f"{name} of shape {tuple(t.shape)} takes {format_bytes(nbytes)} {how}, more than the memory "
            f"budget of {format_bytes(memory_budget(t.device))}; take fewer rows or columns of it, or raise "
            "the budget with llr.set_memory_budget(bytes)"
        )


def as_tensor(name: str, value: object, like: torch.dtype | None = None) -> Tensor:
    """Convert samples in any accepted form to a plain tensor.

    Args:
        name: the argument's name, for messages.
        value: a tensor; a NumPy array, a pandas frame, a SciPy sparse matrix; nested lists of numbers.
        like: the dtype for floating-point numbers that are not in a tensor; by default their own, which is
            float64 for Python numbers.

    Raises:
        TypeError: none of these forms, or entries that are not numbers.
        ValueError: lists of unequal lengths, missing values, more than the memory budget.
    """
    if isinstance(value, Tensor):
        return plain(name, value)
    array = _array(name, value)
    kind = array.dtype.kind
    if kind == "u" and array.dtype.name not in _WIDENED and array.dtype.itemsize > 1:
        if array.size and int(array.max()) >= 2**63:
            raise ValueError(
                f"{name} has entries up to {int(array.max())}; expected less than 2^63"
            )
        array = array.astype(np.int64)
    array = array.astype(_WIDENED.get(array.dtype.name, array.dtype.newbyteorder("=")), copy=False)
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy()
    try:
        t = torch.from_numpy(array)
    except TypeError:
        raise TypeError(
            f"{name} is an array of {array.dtype}, which torch has no dtype for; convert it, for example "
            "with .astype(numpy.float64)"
        ) from None
    return t.to(like) if like is not None and t.is_floating_point() else t


def _array(name: str, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Any array-like as a NumPy array of numbers."""
    kind = type(value).__name__
    if value is None or isinstance(value, str | bytes | Mapping) or callable(value):
        wrapped = ", or wrap the model" if name == "x" else ""
        way = f"pass its tensor{wrapped}" if isinstance(value, Mapping) else "torch.as_tensor"
        raise TypeError(f"{name} is {kind}; expected a tensor ({way})")
    if isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any()):
        missing = int(np.ma.getmaskarray(value).sum())
        raise ValueError(
            f"{name} has {missing} masked entries; expected a number for each (fill or drop them)"
        )
    if hasattr(value, "toarray") and hasattr(value, "nnz"):  # a sparse matrix of SciPy
        nbytes = int(np.prod(value.shape, dtype=object)) * value.dtype.itemsize
        if not fits(nbytes, torch.device("cpu")):
            raise ValueError(
                f"{name} of shape {value.shape} takes {format_bytes(nbytes)} dense, more than the memory "
                f"budget of {format_bytes(memory_budget())}; take fewer rows or columns of it"
            )
        value = value.toarray()
    if isinstance(value, list | tuple):
        if any(isinstance(v, Tensor) for v in value):
            raise TypeError(
                f"{name} is a {kind} of tensors; expected one tensor (torch.stack({name}))"
            )
    elif not hasattr(value, "__array__") and not isinstance(value, int | float | complex):
        raise TypeError(f"{name} is {kind}; expected a tensor (torch.as_tensor({name}))")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{name} is a {kind} whose rows differ in length; expected rows of one shape"
        ) from None
    if array.dtype.kind == "O":  # numbers as objects, as nullable columns of pandas give them
        array = np.asarray(array.tolist()) if _all_numbers(array) else array
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} {_strangers(value, array)}; expected numbers only")
    return array


def _all_numbers(array: np.ndarray[Any, np.dtype[Any]]) -> bool:
    return all(isinstance(v, int | float | complex | np.number) for v in array.ravel().tolist())


def _strangers(value: Any, array: np.ndarray[Any, np.dtype[Any]]) -> str:
    """Describe the entries of a table or an array that are not numbers."""
    columns, dtypes = getattr(value, "columns", None), getattr(value, "dtypes", None)
    if columns is not None and dtypes is not None:
        for column, dtype in zip(columns, dtypes, strict=False):
            if getattr(dtype, "kind", "O") not in "biufc":
                return f"has a column {column!r} of {dtype}"
    if array.dtype.kind == "O" and array.size:
        at = next(
            (i for i, v in np.ndenumerate(array) if not isinstance(v, int | float | complex)), None
        )
        if at is not None:
            where = ", ".join(map(str, at))
            return f"has an entry of type {type(array[at]).__name__} at index ({where})"
        return "has integers beyond 64 bits"
    return f"has entries of dtype {array.dtype}"


def as_matrix(name: str, value: object) -> Tensor:
    """A matrix or a batch of matrices, given as for :func:`as_tensor`; integers are converted.

    Raises:
        TypeError: entries that are not numbers, complex numbers, or a tensor on the meta device.
        ValueError: what :func:`as_tensor` refuses, a single number, a vector, integers that float64 rounds.
    """
    if isinstance(value, Mapping):
        raise TypeError(f"{name} is {type(value).__name__}; expected a matrix (one of its tensors)")
    t = as_tensor(name, value)
    if t.is_complex():
        raise TypeError(
            f"{name} is {t.dtype}; expected a real matrix. The real form [[Re, -Im], [Im, Re]] of a complex "
            "matrix has twice its rank, and each of its singular values twice: torch.cat((torch.cat(("
            f"{name}.real, -{name}.imag), -1), torch.cat(({name}.imag, {name}.real), -1)), -2)"
        )
    if t.dim() < 2:
        what = "a single number" if t.dim() == 0 else f"a vector of shape {tuple(t.shape)}"
        raise ValueError(
            f"{name} is {what}; expected a matrix (m, n) or a batch (..., m, n)"
            + (f" ({name}[:, None] is one column)" if t.dim() else "")
        )
    refuse_meta(name, t)
    refuse_overlarge(name, t)
    if not isinstance(value, Tensor):
        _refuse_rounded(name, value, t)
        if not t.is_floating_point():
            return t.double()
    return t


def _refuse_rounded(name: str, value: object, t: Tensor) -> None:
    """Raise ValueError for integers that float64 does not hold: it would be the rank of other integers."""
    if not t.numel() or float(t.double().abs().amax()) < 2.0**53:
        return
    for at, number in np.ndenumerate(np.asarray(value, dtype=object)):
        if isinstance(number, int | np.integer) and int(float(number)) != int(number):
            raise ValueError(
                f"{name} has the integer {number} at index {at}, which float64 rounds; expected integers "
                "that float64 holds (up to 2^53), or a matrix divided by a power of two"
            )


def refuse_complex(name: str, value: object) -> None:
    """Raise TypeError for a complex tensor, whose imaginary part a conversion would drop."""
    if isinstance(value, Tensor) and value.is_complex():
        raise TypeError(f"{name} is {value.dtype}; expected real numbers")


def as_double(name: str, t: Tensor) -> str:
    """A hint to convert a tensor to float64; not for complex tensors, which would lose a part."""
    return "; real numbers are needed" if t.is_complex() else f" ({name}.double())"


def refuse_overlarge(name: str, t: Tensor) -> None:
    """Raise ValueError for an expanded tensor that would exceed the memory budget without sharing memory."""
    if t.numel() > _MANY and 0 in t.stride() and not t.is_meta:
        _check_size(name, t, "with a number of its own for every entry")


def refuse_meta(name: str, t: Tensor) -> None:
    """Raise TypeError for a tensor on the meta device."""
    if t.is_meta:
        raise TypeError(
            f"{name} is on the meta device, which holds shapes and no numbers; llr.plan works there, for "
            "everything else give a tensor with values"
        )


def wider(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A floating-point tensor in this dtype, a complex tensor in the corresponding complex dtype."""
    if dtype is None:
        return t
    if t.is_floating_point():
        return t.to(dtype)
    return t.to(dtype.to_complex()) if t.is_complex() else t
