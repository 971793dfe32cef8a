"""Arrays of numbers in binary files: .npy, .npz, .pt and .safetensors. Nothing is unpickled."""

from __future__ import annotations

import errno
import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from llr.inputs.memory import fits, format_bytes

_CPU = torch.device("cpu")


def read_file(path: Path) -> bytes:
    """All bytes of a file that fits into the memory budget.

    Raises:
        ValueError: there is no such file, it is a directory or the like, cannot be read, or is too large.
    """
    require_file(path)
    try:
        require_memory(path.stat().st_size)
        return path.read_bytes()
    except OSError as err:
        raise ValueError(f"cannot be read ({err.strerror or err})") from err


def require_existing(path: Path) -> None:
    """Refuse a path at which there is nothing.

    Raises:
        FileNotFoundError: names the path.
    """
    try:
        path.stat()
    except FileNotFoundError as error:
        told = "there is no such file; expected one that save() wrote"
        raise FileNotFoundError(errno.ENOENT, told, str(path)) from error
    except (OSError, ValueError):  # read_file says what is wrong
        return


def require_file(path: Path) -> None:
    """Refuse a path that does not exist or is not a file.

    Raises:
        ValueError: says which.
    """
    try:
        kind = (
            "file"
            if path.is_file()
            else "directory"
            if path.is_dir()
            else path.exists() and "other"
        )
    except (OSError, ValueError) as err:  # a name that is too long, or has a zero byte
        raise ValueError(f"cannot be read ({one_line(err)})") from err
    if kind == "directory":
        raise ValueError("is a directory, not a file; expected the name of a file")
    if kind != "file":
        raise ValueError("not a file" if kind else "there is no such file")


def require_memory(nbytes: int) -> None:
    """Refuse more bytes than the memory budget.

    Raises:
        ValueError: names the number of bytes and the setting.
    """
    if not fits(nbytes, _CPU):
        raise ValueError(
            f"has {format_bytes(nbytes)}, more than the memory budget; LLR_MEMORY_BUDGET sets that"
        )


def one_line(err: BaseException) -> str:
    """An exception's message without line breaks; its class if it has none."""
    return " ".join(str(err).split()) or type(err).__name__


def read_npy(data: bytes) -> Tensor:
    """The array of a .npy file: integers, truth values or floating point.

    Raises:
        ValueError: a pickled or truncated file, or entries of another type.
    """
    return _array(io.BytesIO(data), len(data))


def _array(file: IO[bytes], size: int) -> Tensor:
    form = np.lib.format
    try:
        version = form.read_magic(file)
        read = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}.get(version)
        if read is not None:
            shape, _, dtype = read(file)
            # A forged header could cause an allocation of gigabytes for a file of a few bytes.
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
                raise ValueError(f"it ends before its {math.prod(shape)} entries")
        file.seek(0)
        array = form.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, OverflowError, SyntaxError) as err:
        raise ValueError(
            f"cannot be read as an array of numbers ({one_line(err)}); write it with numpy.save"
        ) from err
    return from_numpy(array)


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """An array as a tensor: integers, truth values, float32 or float64.

    Raises:
        ValueError: entries of another type, or numbers that neither int64 nor float64 holds.
    """
    kind = array.dtype.kind
    if kind not in "biuf":
        raise ValueError(f"entries of type {array.dtype}; expected real numbers")
    if (
        kind == "u" and array.dtype.itemsize > 1
    ):  # torch has few operations for larger unsigned ones
        if array.size and int(array.max()) >= 2**63:
            refuse_rounded(array)
            array = array.astype(np.float64)
        array = array.astype(np.int64) if array.dtype.kind == "u" else array
    elif kind == "f" and array.dtype.itemsize not in (4, 8):
        narrower = array.astype(np.float64)
        lost = np.argwhere((narrower == 0) & (array != 0))
        if len(lost):
            raise ValueError(
                f"the number {array[tuple(lost[0])]!s} {_place(lost[0].tolist())} is 0 in float64; expected "
                "numbers that float64 holds"
            )
        array = narrower
    array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)


def refuse_rounded(array: np.ndarray[Any, Any]) -> None:
    """Refuse integers that float64 does not hold: a result would be for other numbers.

    Raises:
        ValueError: names the first such integer and where it is.
    """
    if not array.size or max(int(array.max()), -int(array.min())) <= 2**53:
        return
    for at in np.argwhere((array > 2**53) | (array < -(2**53))).tolist():
        number = int(array[tuple(at)])
        if int(float(number)) != number:
            raise ValueError(
                f"the integer {number} {_place(at)} is {int(float(number))} in float64; expected integers "
                "that float64 holds (up to 2^53), or numbers divided by a power of two"
            )


def _place(at: list[int]) -> str:
    axes = ("sample", "column") if len(at) == 2 else ("sample", *["index"] * (len(at) - 1))
    return "at " + ", ".join(f"{axis} {i}" for axis, i in zip(axes, at, strict=True))


def read_npz(data: bytes, key: str | None, option: str) -> Tensor:
    """One array of a .npz file; `key` names it if there are several.

    Raises:
        ValueError: as :func:`read_npy`, or no such array; the message lists the arrays.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {n.removesuffix(".npy"): archive.getinfo(n) for n in archive.namelist()}
            member = members[_chosen(list(members), key, option)]
            require_memory(member.file_size)
            with archive.open(member) as file:
                content = file.read(member.file_size)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as err:
        raise ValueError(f"not an .npz file ({one_line(err)}); write it with numpy.savez") from err
    return read_npy(content)


class _NumpyNumber:
    """Replaces a NumPy number that a checkpoint has besides its tensors; its value is not needed."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_NUMPY_NUMBERS = ("numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")


def read_torch(path: Path, how_to_save: str) -> object:
    """Read a file written by torch.save that has only tensors, plain values and NumPy numbers.

    Raises:
        ValueError: no such file, or other content; names the class that would have to be unpickled.
    """
    require_file(path)
    inert: list[Any] = [(_NumpyNumber, name) for name in _NUMPY_NUMBERS]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(inert):
            warnings.simplefilter("ignore")  # sparse tensors are checked slowly
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:
        # A malformed file can fail anywhere in the reader, with almost any exception.
        raise ValueError(
            f"not a torch file, or one that holds more than plain tensors, which llr never unpickles"
            f"{_blocked(str(err))}; save it with {how_to_save}"
        ) from err


def _blocked(message: str) -> str:
    """The class that torch refused, if its message names one."""
    _, found, rest = message.partition("GLOBAL ")
    return f" (it has a {rest.split()[0].rstrip('.,')})" if found and rest.split() else ""


def read_pt(path: Path, key: str | None, option: str) -> Tensor:
    """A tensor of a .pt file: the only one, or the one that `key` names in a dict.

    Raises:
        ValueError: as :func:`read_torch`, or no such tensor.
    """
    found = read_torch(path, "torch.save(x, ...) of one tensor")
    if isinstance(found, Mapping) and found:
        tensors = {str(k): value for k, value in found.items() if isinstance(value, Tensor)}
        if key is not None or len(tensors) == 1 == len(found):
            found = tensors[_chosen(list(tensors), key, option)]
        else:
            raise ValueError(
                f"expected one tensor, got {describe(found)}; {option} names the one to take"
            )
    elif key is not None:
        raise ValueError(f"{option} is {key!r}, but the file holds {describe(found)}, no dict")
    if not isinstance(found, Tensor):
        raise ValueError(f"expected one tensor, got {describe(found)}")
    found = found.detach()
    if found.is_quantized or found.is_nested or found.layout is not torch.strided or found.is_meta:
        raise ValueError(
            "its tensor is sparse, quantized, nested or without data; expected an ordinary one, such as "
            "x.to_dense()"
        )
    return found


def read_safetensors(path: Path, key: str | None, option: str) -> Tensor:
    """A tensor of a .safetensors file: the only one, or the one that `key` names.

    Raises:
        ValueError: not such a file, or no such tensor.
    """
    found = load_safetensors(path)
    return found[_chosen(list(found), key, option)]


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file.

    Raises:
        ValueError: not such a file.
    """
    require_file(path)
    try:
        return safetensors.torch.load_file(path)
    except Exception as err:  # the class depends on where the file is malformed
        raise ValueError("not a safetensors file, or a damaged one") from err


def _chosen(names: list[str], key: str | None, option: str) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None or key not in names:
        asked = f"no {key!r}; " if key is not None else ""
        raise ValueError(f"{asked}{option} names one of its arrays: {some(names) or '(none)'}")
    return key


def describe(value: object) -> str:
    """The content of a file, for messages."""
    if isinstance(value, Mapping):
        return f"a dict with {some([str(name) for name in value])}" if value else "an empty dict"
    return type(value).__name__


def some(names: list[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
