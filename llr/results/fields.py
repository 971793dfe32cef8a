"""Values of results as plain values for strict JSON, and back. The annotations of dataclasses give the types.

Infinity is written as None if the annotation does not allow None, and as "inf" if it does; NaN is written as
"nan". A tensor is written as a nested list. The list does not determine every dtype (only bool, int64 and
float64) nor the shape of an empty tensor. The key "tensors" of the result holds dtype and shape in these
cases.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from llr.inputs.roles import shown
from llr.results import networks

_NUMBERS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}
_MOST_DIMENSIONS = 16
_MOST_DIGITS = 4000  # of a fraction; int() refuses more than 4300
_HINTS: dict[type, dict[str, Any]] = {}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def hints(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, as types."""
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def plain(value: Any, hint: Any, spectrum: bool) -> Any:
    """A value as plain values for strict JSON; `spectrum` is passed on to results within it."""
    if isinstance(value, Tensor):
        return _listed(value.detach().tolist())
    if isinstance(value, float):
        return _number(value, type(None) in get_args(hint))
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, torch.dtype):
        return NAMES[value]
    if isinstance(value, Fraction | Path):
        return str(value)
    if isinstance(value, nn.Module):
        return networks.as_numbers(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part, Any, spectrum) for key, part in value.items()}
    if isinstance(value, tuple | list):
        inner = _choice(hint, _is_row)
        return [plain(part, _item(inner, i), spectrum) for i, part in enumerate(value)]
    if hasattr(value, "stored"):
        return value.to_dict(spectrum=spectrum)
    if hasattr(value, "from_dict"):  # a certificate, which has a format of its own
        return value.to_dict()
    found = hints(type(value))
    return {
        field.name: plain(getattr(value, field.name), found[field.name], spectrum)
        for field in dataclasses.fields(value)
    }


def restored(value: Any, hint: Any, where: str, tensor: Any = None) -> Any:
    """The value that :func:`plain` wrote, of the type that the annotation names.

    Args:
        value: plain values.
        hint: the annotation.
        where: the field, for messages.
        tensor: the entry of "tensors" for the field, if there is one.

    Raises:
        ValueError: another type; names the field.
    """
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if Tensor in choices and (isinstance(value, list) or isinstance(tensor, dict)):
        return _tensor(value, tensor, where)
    if type(None) in choices and value is None:
        return None
    expected = []
    for choice in choices:
        fits, what = _fits(value, choice, len(choices) == 1 or type(None) not in choices)
        if fits:
            return _as(value, choice, where)
        expected.append(what)
    wanted = " or ".join(dict.fromkeys(expected))
    raise ValueError(f"{where} is {shown(value)}; expected {wanted}")


def _fits(value: Any, hint: Any, none_is_infinite: bool) -> tuple[bool, str]:
    """Whether a plain value can be read as this type, and the name of the type for messages."""
    origin = get_origin(hint)
    if origin is Literal:
        options = get_args(hint)
        return value in options and type(value) is str, "one of " + ", ".join(map(str, options))
    if hint is type(None):
        return value is None, "null"
    if hint is float:
        known = type(value) in (int, float) or _is_name(value)
        return known or (value is None and none_is_infinite), "a number"
    if hint in (int, bool, str):
        return type(value) is hint, {int: "an integer", bool: "true or false", str: "text"}[hint]
    if hint is Tensor:
        return False, "a list of numbers"
    if hint is torch.dtype:
        return isinstance(value, str) and value in DTYPES, "one of " + ", ".join(DTYPES)
    if hint is Fraction:
        return isinstance(value, str) and _is_fraction(value), 'a fraction as text, such as "3/8"'
    if hint is Path:
        return isinstance(value, str), "the name of a file"
    if origin in (tuple, list):
        sizes = () if origin is list else get_args(hint)
        if sizes and Ellipsis not in sizes and isinstance(value, list):
            return len(value) == len(sizes), f"a list of {len(sizes)} values"
        return isinstance(value, list), "a list"
    return isinstance(value, dict), "an object"


def _as(value: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is float:
        if isinstance(value, str):
            return _NUMBERS[value]
        return math.inf if value is None else _float(value, where)
    if hint is torch.dtype:
        return DTYPES[value]
    if hint in (Fraction, Path):
        return hint(value)
    if origin in (tuple, list):
        parts = (restored(part, _item(hint, i), f"{where}[{i}]") for i, part in enumerate(value))
        return origin(parts)
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        kind = get_args(hint)[1]
        return {key: restored(part, kind, f"{where}[{key!r}]") for key, part in value.items()}
    if isinstance(hint, type) and issubclass(hint, nn.Module):
        return networks.from_numbers(value, where)
    if isinstance(hint, type) and hasattr(hint, "from_dict"):
        try:
            return hint.from_dict(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if dataclasses.is_dataclass(hint):
        return restored_fields(hint, value, where)
    return value


def restored_fields(cls: Any, content: Mapping[str, Any], where: str) -> Any:
    """A dataclass without a ``from_dict``, from all of its fields."""
    names = [field.name for field in dataclasses.fields(cls)]
    check_names(content, names, names, where)
    found = hints(cls)
    return cls(**{n: restored(content[n], found[n], f"{where}.{n}") for n in names})


def check_names(
    content: Mapping[str, Any], needed: list[str], allowed: list[str], where: str
) -> None:
    """Refuse fields that are missing or unknown.

    Raises:
        ValueError: names the first one.
    """
    if missing := [name for name in needed if name not in content]:
        raise ValueError(f"{where}: the field {missing[0]!r} is missing")
    if unknown := [name for name in content if name not in allowed]:
        raise ValueError(
            f"{where}: the field {shown(unknown[0])} is unknown; expected {', '.join(allowed)}"
        )


def undetermined(value: Tensor, listed: torch.dtype | None) -> dict[str, Any] | None:
    """The entry of "tensors" for a tensor; None if the nested list of its numbers determines it.

    Args:
        value: the tensor.
        listed: the dtype that its reader takes by default; None for the one that the numbers suggest.
    """
    looks = listed or _looks_like(value)
    if value.dtype == looks and value.dim() and (value.numel() or value.dim() == 1):
        return None
    return dtype_and_shape(value)


def dtype_and_shape(value: Tensor) -> dict[str, Any]:
    """The entry of "tensors" for a tensor: its dtype and shape."""
    return {"dtype": NAMES[value.dtype], "shape": list(value.shape)}


def _looks_like(value: Tensor) -> torch.dtype:
    if not value.numel() or value.is_floating_point():
        return torch.float64
    return torch.bool if value.dtype == torch.bool else torch.int64


def _tensor(value: Any, extra: Any, where: str) -> Tensor:
    """The tensor with the numbers of a nested list."""
    flat: list[Any] = []
    shape = _shape(value, where, flat)
    floating = any(type(v) is float or v is None or isinstance(v, str) for v in flat) or not flat
    dtype = torch.float64
    if isinstance(extra, torch.dtype):
        dtype = extra
    elif extra is not None:
        shape, dtype = _read_extra(extra, shape, len(flat), where)
    elif not floating:
        dtype = torch.bool if isinstance(flat[0], bool) else torch.int64
    kinds = {type(v) for v in flat}
    whole = not dtype.is_floating_point
    if (dtype == torch.bool) != (kinds == {bool}) and flat:
        raise ValueError(f"{where} has entries that are not all of {NAMES[dtype]}")
    if whole and kinds - {int, bool}:
        raise ValueError(f"{where} has entries that are no integers; expected {NAMES[dtype]}")
    if not whole:
        flat = [_as(v, float, where) for v in flat]
    try:
        return torch.tensor(flat, dtype=dtype).reshape(shape)
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"{where} has entries that {NAMES[dtype]} cannot hold") from error


def _read_extra(
    extra: Any, shape: tuple[int, ...], count: int, where: str
) -> tuple[tuple[int, ...], torch.dtype]:
    if not isinstance(extra, dict) or set(extra) != {"dtype", "shape"}:
        raise ValueError(f"tensors of {where} is {shown(extra)}; expected dtype and shape")
    name, sizes = extra["dtype"], extra["shape"]
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"dtype of {where} is {shown(name)}; expected one of {', '.join(DTYPES)}")
    good = isinstance(sizes, list) and all(type(s) is int and 0 <= s < 2**63 for s in sizes)
    if not good or len(sizes) > _MOST_DIMENSIONS or math.prod(sizes) != count:
        raise ValueError(
            f"shape of {where} is {shown(sizes)}; expected that of {count} numbers, {list(shape)}"
        )
    return tuple(sizes), DTYPES[name]


def _shape(value: Any, where: str, flat: list[Any], depth: int = 0) -> tuple[int, ...]:
    """The shape of nested lists. Their numbers are appended to `flat`."""
    if not isinstance(value, list):
        if type(value) in (int, float, bool) or value is None or _is_name(value):
            flat.append(value)
            return ()
        raise ValueError(f"{where} has the entry {shown(value)}; expected a number")
    if depth >= _MOST_DIMENSIONS:
        raise ValueError(f"{where} is nested too deeply; expected a tensor as lists of numbers")
    shapes = {_shape(part, where, flat, depth + 1) for part in value}
    if len(shapes) > 1:
        raise ValueError(f"{where} has rows of different lengths; expected a tensor")
    return (len(value), *(shapes.pop() if shapes else ()))


def _listed(value: Any) -> Any:
    if isinstance(value, list):
        return [_listed(part) for part in value]
    return _number(value, False) if isinstance(value, float) else value


def _number(value: float, none_is_taken: bool) -> Any:
    if math.isfinite(value):
        return value
    if value == math.inf:
        return "inf" if none_is_taken else None
    return "nan" if math.isnan(value) else "-inf"


def _float(value: int | float, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{where} is {shown(value)}; expected a number of float64") from error


def _item(hint: Any, i: int) -> Any:
    """The annotation of the i-th item of a tuple or list."""
    args = get_args(hint)
    if get_origin(hint) is tuple and Ellipsis not in args and i < len(args):
        return args[i]
    return args[0] if args else Any


def _is_row(hint: Any) -> bool:
    origin: Any = get_origin(hint)
    return origin in (tuple, list)


def _choice(hint: Any, wanted: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((option for option in options if wanted(option)), Any)


def _is_fraction(text: str) -> bool:
    numerator, _, denominator = text.partition("/")
    digits = numerator.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(text) <= _MOST_DIGITS):
        return False
    if "/" not in text:
        return True
    return denominator.isascii() and denominator.isdigit() and bool(denominator.strip("0"))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value in _NUMBERS
