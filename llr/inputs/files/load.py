"""Reads samples from files. Nothing is ever unpickled.

Every error is a ValueError of one line that names the file and says what to do.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from llr.inputs.evaluation.watch import keeping_random_state
from llr.inputs.files.arrays import (
    from_numpy,
    read_file,
    read_npy,
    read_npz,
    read_pt,
    read_safetensors,
    refuse_rounded,
    require_memory,
)
from llr.inputs.files.layout import Layout
from llr.inputs.files.tables import read_table

_TEXT = (".csv", ".tsv", ".txt", ".dat")
_BINARY = (".npy", ".npz", ".pt", ".safetensors")
_LARGE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # torch has few operations for them


def load_inputs(
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    layout: Layout | None = None,
    key: str | None = None,
    what: str = "inputs",
) -> Tensor:
    r"""The samples of a file, shape (n, ...); a one-dimensional array of n numbers becomes (n, 1).

    Args:
        path: .csv, .tsv, .txt or .dat (see :func:`llr.inputs.files.tables.read_table`), ``-`` for such text
            on standard input, .npy or .npz (never pickled), .pt (loaded with ``weights_only=True``) or
            .safetensors.
        dtype: of the result. None keeps integers (those of text become int64), and converts everything else
            to float64.
        layout: of text: separator, decimal mark, header, columns. Options that are None are determined from
            the file if they are certain.
        key: the name of the array in a .npz, .safetensors or .pt file that has several.
        what: what is read, for messages.

    Raises:
        ValueError: a missing, malformed or pickled file, an unknown suffix, complex numbers, NaN, Inf,
            integers that float64 rounds if `dtype` is given, or text that is not a table of numbers or is
            ambiguous.

    Example:
        >>> import tempfile, pathlib
        >>> from llr.inputs.files.load import load_inputs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "x.csv")
        ...     _ = file.write_text("a,b\n1,2\n3,4.5\n")
        ...     load_inputs(file).tolist()
        [[1.0, 2.0], [3.0, 4.5]]
    """
    name = f"{what} {'standard input' if os.fspath(path) == '-' else os.fspath(path)}"
    try:
        x = _read(
            Path(path),
            (layout or Layout()).checked(),
            key,
            "--key" if what == "data" else "--inputs-key",
        )
        if x.dtype in _LARGE_UNSIGNED:
            x = from_numpy(x.numpy())
        if x.is_complex():
            raise ValueError("complex numbers; expected real ones")
        if x.dim() == 0:
            raise ValueError("a single number; expected samples along a first dimension")
    except ValueError as err:
        raise ValueError(f"{name}: {err}") from err
    if dtype is not None or x.is_floating_point():
        x = converted(x, dtype or torch.float64, name)
    return x[:, None] if x.dim() == 1 else x


def _read(path: Path, layout: Layout, key: str | None, option: str) -> Tensor:
    suffix = path.suffix.lower()
    text = str(path) == "-" or suffix in _TEXT
    if not text and suffix not in _BINARY:
        if path.is_dir():
            raise ValueError("is a directory, not a file; expected the name of a file")
        raise ValueError(
            f"expected .csv, .tsv, .txt, .dat, .npy, .npz, .pt or .safetensors, or - for standard input, got "
            f"{path.suffix or 'no suffix'!r}"
        )
    if layout.given and not text:
        raise ValueError(f"{layout.given[0]} is for text; a {suffix} file needs none")
    if key is not None and (text or suffix == ".npy"):
        raise ValueError(f"{option} is for .npz, .pt and .safetensors files")
    if text:
        return read_table(
            _standard_input() if str(path) == "-" else read_file(path), layout, suffix
        )
    if suffix == ".npy":
        return read_npy(read_file(path))
    if suffix == ".npz":
        return read_npz(read_file(path), key, option)
    return (read_pt if suffix == ".pt" else read_safetensors)(path, key, option)


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise ValueError("is closed; expected text")
    data = bytearray()
    while block := sys.stdin.buffer.read(1 << 20):
        data += block
        require_memory(len(data))
    return bytes(data)


def converted(x: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Samples in another dtype, all of them finite.

    Args:
        x: (n, ...).
        dtype: a floating-point dtype.
        name: of the samples, for the message.

    Raises:
        ValueError: NaN or Inf, a number that is too large for `dtype`, or an integer that float64 rounds.
    """
    _refuse_rounded(x, name)
    x = x.to(dtype)
    if x.numel() == 0 or bool(torch.isfinite(torch.stack((x.amin(), x.amax()))).all()):
        return x
    bad = (~torch.isfinite(x)).nonzero()
    axes = ("sample", *["index"] * (x.dim() - 1))
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, bad[0].tolist(), strict=False))
    raise ValueError(
        f"{name} in {dtype} has {len(bad)} NaN or Inf entries out of {x.numel()}, the first "
        f"({x[tuple(bad[0])].item()}) at {where}; expected finite numbers"
    )


def _refuse_rounded(x: Tensor, name: str) -> None:
    if x.dtype == torch.int64:
        try:
            refuse_rounded(x.numpy())
        except ValueError as err:
            raise ValueError(f"{name}: {err}") from err


def as_taken_by(model: nn.Module, x: Tensor, dtype: torch.dtype, name: str = "inputs") -> Tensor:
    """Convert samples for a model: integers if it reads tokens, else floating point.

    If all numbers are integers, the model is run on one sample: in floating point first, then with integers
    if that fails or would round them.

    Args:
        model: in evaluation mode. A copy is run.
        x: (n, ...), of any real dtype.
        dtype: of floating-point samples.
        name: of the samples, for the message.

    Returns:
        x in `dtype`, or as int64; truth values may stay what they are.

    Raises:
        ValueError: integers that float64 rounds, for a model that does not take integers.

    Example:
        >>> import torch
        >>> from llr.inputs.files.load import as_taken_by
        >>> words = torch.tensor([[1, 2], [3, 4]])
        >>> as_taken_by(torch.nn.Embedding(5, 2), words, torch.float64).dtype
        torch.int64
        >>> as_taken_by(torch.nn.Linear(2, 1).double(), words, torch.float64).dtype
        torch.float64
    """
    numbers = x.to(dtype)
    if len(x) == 0 or (x.is_floating_point() and bool((x != x.round()).any())):
        return numbers
    if torch.equal(numbers.to(x.dtype), x) and _runs(model, numbers[:1]):
        return numbers
    for tokens in (x.long(), x):
        if not tokens.is_floating_point() and _runs(model, tokens[:1]):
            return tokens
    _refuse_rounded(x, name)
    return numbers


def _runs(model: nn.Module, x: Tensor) -> bool:
    with contextlib.suppress(Exception):  # some modules cannot be copied
        # Copy, since a model may keep something of the first sample it is run on.
        model = copy.deepcopy(model)
    with keeping_random_state(x.device), torch.no_grad():
        try:
            model(x)
        except Exception:  # after any exception: the model does not accept these samples
            return False
    return True
