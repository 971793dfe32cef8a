"""Roles of arguments that are numbers, names and other plain values; see :func:`llr.inputs.accept.takes`.

A role is a function of an argument's name and value. It returns the value that is passed on to the function.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llr.inputs.tensors import as_tensor, refuse_meta

Role = Callable[[str, Any], Any]


def as_plain(_: str, value: Any) -> Any:
    """NumPy numbers as Python numbers, also within lists and tuples; anything else unchanged."""
    if isinstance(value, np.generic):
        return value.item()
    kind = type(value)
    if kind is list or kind is tuple:
        return kind([as_plain("", v) for v in value])
    return value


def sizes(name: str, value: Any) -> Any:
    """One integer, or several in a sequence or an array."""
    if isinstance(value, np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, range):
        return list(value)
    return as_plain(name, value)


def marks(name: str, value: Any) -> Any:
    """A number of points, or the points, as a tensor if there are several; or None.

    Raises:
        TypeError: something else.
    """
    value = as_plain(name, value)
    if value is None or type(value) is int:
        return value
    if isinstance(value, Tensor | np.ndarray | list | tuple | range):
        return as_tensor(name, list(value) if isinstance(value, range) else value)
    raise TypeError(f"{name} is {value!r}; expected an integer, or a list of points")


_MOST_BITS = 1023  # of an integer that float64 holds


def real(name: str, value: Any) -> Any:
    """A real number, or None.

    Raises:
        TypeError: something else.
    """
    value = as_plain(name, value)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        refuse_meta(name, value)
        return value.item()
    if type(value) is int and value.bit_length() > _MOST_BITS:
        raise ValueError(
            f"{name} is an integer of {value.bit_length()} bits; expected a number that float64 holds"
        )
    if value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{name} is {value!r}; expected a real number")


def number(name: str, value: Any) -> Any:
    """As :func:`real`, but not None."""
    if value is None:
        raise TypeError(f"{name} is None; expected a real number")
    return real(name, value)


def whole(name: str, value: Any) -> Any:
    """An integer; its range is checked by the function.

    Raises:
        TypeError: something else.
    """
    value = as_plain(name, value)
    if type(value) is int:
        return value
    raise TypeError(f"{name} is {value!r}; expected an integer")


def maybe(role: Role) -> Role:
    """A role that accepts None as well."""
    return lambda name, value: None if value is None else role(name, value)


def a_seed(name: str, value: Any) -> Any:
    """A seed of a random generator.

    Raises:
        ValueError: something else.
    """
    value = as_plain(name, value)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}; expected an integer from 0 to 2^63 - 1")
    return value


def a_flag(name: str, value: Any) -> Any:
    """True or False.

    Raises:
        TypeError: something else.
    """
    value = as_plain(name, value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected True or False")
    return value


def a_sequence(name: str, value: Any) -> Any:
    """Several values, in sequences of any depth, with NumPy's arrays and numbers as lists and numbers.

    Raises:
        TypeError: one value, or text.
    """
    if isinstance(value, np.ndarray) and value.ndim:
        return value.tolist()
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple | range | Tensor):
        raise TypeError(f"{name} is {value!r}; expected a sequence")
    if isinstance(value, Tensor):
        return value
    return [v.tolist() if isinstance(v, np.ndarray) else as_plain(name, v) for v in value]


def an_instance(*kinds: type) -> Role:
    """A role that accepts only values of these classes.

    Raises:
        TypeError: something else.
    """

    def role(name: str, value: Any) -> Any:
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name} is {type(value).__name__}; expected a {expected}")
        return value

    return role


def word(name: str, value: Any) -> Any:
    """A string.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; expected a string")
    return str(value)


def a_function(name: str, value: Any) -> Any:
    """A callable, or None.

    Raises:
        TypeError: something else.
    """
    if value is None or callable(value):
        return value
    raise TypeError(f"{name} is {type(value).__name__}; expected a function, or None")


def a_progress(name: str, value: Any) -> Any:
    """A callable, True or None for the default, or False for none.

    Raises:
        TypeError: something else.
    """
    if value is None or isinstance(value, bool) or callable(value):
        return value
    raise TypeError(
        f"{name} is {type(value).__name__}; expected True, False, None or a function to be called"
    )


def a_generator(name: str, value: Any) -> Any:
    """A random generator of torch's, or None.

    Raises:
        TypeError: something else.
    """
    if value is None or isinstance(value, torch.Generator):
        return value
    raise TypeError(
        f"{name} is {type(value).__name__}; expected a torch.Generator (torch.Generator().manual_seed(0))"
    )


def a_dtype(name: str, value: Any) -> Any:
    """A dtype, or its name in torch or NumPy ("float32"); None and "auto" are returned unchanged.

    Raises:
        TypeError: neither a dtype nor its name.
        ValueError: a name that no dtype has.
    """
    if value is None or isinstance(value, torch.dtype) or (type(value) is str and value == "auto"):
        return value
    if isinstance(value, str):
        spelling = value.removeprefix("torch.")
    elif isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        spelling = np.dtype(value).name
    else:
        raise TypeError(
            f"{name} is {value!r}; expected a torch.dtype or its name, such as 'float32'"
        )
    found = getattr(torch, spelling, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(
            f"{name} is {value!r}; expected float32, float64 or another dtype of torch"
        )
    return found


def a_precision(name: str, value: Any) -> Any:
    """The dtype of a computation: float32 or float64, by name or not; also None and "auto".

    Raises:
        TypeError: another dtype, or none.
        ValueError: a name that no dtype has.
    """
    dtype = a_dtype(name, value)
    if dtype in (None, "auto", torch.float32, torch.float64):
        return dtype
    raise TypeError(f"{name} is {dtype}; expected float32 or float64")


def a_float_dtype(name: str, value: Any) -> Any:
    """A floating-point dtype, by name or not, or None.

    Raises:
        TypeError: another dtype, or none.
        ValueError: a name that no dtype has.
    """
    dtype = a_dtype(name, value)
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise TypeError(f"{name} is {dtype}; expected a floating-point dtype, such as torch.float64")


def a_device(name: str, value: Any) -> Any:
    """A device, or its name; None stays None.

    Raises:
        TypeError: neither a device nor its name.
        ValueError: a name that no device has.
    """
    if value is None:
        return value
    if not isinstance(value, str | torch.device):
        raise TypeError(f"{name} is {value!r}; expected a torch.device or its name, such as 'cpu'")
    try:
        return torch.device(value)
    except RuntimeError:
        raise ValueError(
            f"{name} is {value!r}; expected a device, such as 'cpu' or 'cuda:0'"
        ) from None


def a_device_here(name: str, value: Any) -> Any:
    """A device of this machine; errors as for :func:`a_device`."""
    device = a_device(name, value)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(
            f"{name} is {value!r}; expected a device of this machine, such as 'cpu'"
        ) from None
    return device


def check_int(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError unless `value` is an integer in this range."""
    if type(value) is not int or value < least or (most is not None and value > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {shown(value)}; expected an integer {limits}")


def shown(value: object) -> str:
    """A value for a message, not longer than a line."""
    if type(value) is int and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (
        ValueError,
        RecursionError,
    ):  # integers inside that are too long, recursive structures
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
