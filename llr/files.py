"""Reading models, weights and samples, and writing results. Nothing is ever unpickled.

Every refusal is a ValueError of one line that names the file and says what to do.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from llr.models import mlp
from llr.named import current_directory_importable, named_object
from llr.spectrum import check_finite


def load_model(
    spec: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    activation: str = "tanh",
    seed: int = 0,
    dtype: torch.dtype | None = torch.float64,
) -> nn.Module:
    """The model that `spec` names, with the weights of a file or reproducible random ones.

    Args:
        spec: ``mlp:10-64-1`` for a fully connected network of these widths, with biases and
            `activation` between its layers; or ``module:name`` for a module-level ``nn.Module`` or a
            function or class that is called without arguments and returns one (dots in `name` reach
            into classes). Modules are also found in the current directory.
        weights: a state dict, .safetensors or .pt/.pth, whose names and shapes match the model's
            exactly. Of tied parameters one name is enough.
        activation: tanh, sigmoid, relu, softplus, gelu (exact), silu, erf, sin or identity; for
            ``mlp:`` only.
        seed: seeds torch's CPU generator while the model is built, so that random weights are
            reproducible; the generator's state is restored afterwards.
        dtype: of the parameters and floating buffers. None keeps the model's own; a weights file
            must then have that dtype.

    Raises:
        ValueError: a malformed spec, nothing of that name, an unreadable or mismatching file.
        TypeError: the name is not a module, nor a callable that returns one.
        ImportError: importing the module failed.
        RuntimeError: the callable raised an exception.

    Example:
        >>> from llr.files import load_model
        >>> [p.shape[0] for p in load_model("mlp:10-64-1").parameters()]
        [64, 64, 1, 1]
    """
    model: nn.Module
    if _names_widths(spec):
        with _seeded(seed):
            model = mlp(read_widths(spec), activation)
    else:
        model = _named_model(spec, seed)
    if dtype is not None:
        model = model.to(dtype)
    if weights is not None:
        _load_weights(model, Path(weights), exact_dtype=dtype is None)
    return model


def _names_widths(spec: str) -> bool:
    kind, _, rest = spec.partition(":")
    # A user's own module may be called mlp, too.
    return kind == "mlp" and not re.fullmatch(r"[^\W\d][\w.]*", rest)


def read_widths(text: str) -> list[int]:
    """The widths of a network that are written as ``10-64-1`` or ``mlp:10-64-1``.

    Raises:
        ValueError: anything else.

    Example:
        >>> from llr.files import read_widths
        >>> read_widths("10-64-1")
        [10, 64, 1]
    """
    widths = text.removeprefix("mlp:")
    if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)+", widths):
        raise ValueError(
            f"model {text!r}: expected at least two positive widths joined by '-', such as mlp:10-64-1"
        )
    return [int(width) for width in widths.split("-")]


def _named_model(spec: str, seed: int) -> nn.Module:
    expected = "module:callable, such as mypkg.models:build, or widths, such as mlp:10-64-1"
    with current_directory_importable():
        with _seeded(seed):  # models may be made at import, which happens only once
            found = named_object(spec, "model", expected)
        if isinstance(found, nn.Module):
            return found
        if not callable(found):
            raise TypeError(
                f"model {spec!r} is {type(found).__name__}; expected an nn.Module or a callable that "
                "returns one"
            )
        try:
            with _seeded(seed):
                model = found()
        except Exception as err:
            # Somebody else's code: whatever it raises, the reader must learn where it came from.
            raise RuntimeError(
                f"model {spec!r}: calling it without arguments raised {type(err).__name__}: {err}"
            ) from err
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {spec!r} returned {type(model).__name__}; expected an nn.Module")
    return model


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the generators of GPUs.
        torch.default_generator.manual_seed(seed)
        yield


def _load_weights(model: nn.Module, path: Path, *, exact_dtype: bool) -> None:
    values = _read_weights(path)
    own = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }
    # A tied parameter is one tensor under several names, of which files may keep only one.
    present = {id(own[name]) for name in values if name in own}
    problems = {
        "missing": [name for name, value in own.items() if id(value) not in present],
        "unexpected": [name for name in values if name not in own],
        "of another shape": [
            f"{name} {tuple(value.shape)} (the model has {tuple(own[name].shape)})"
            for name, value in values.items()
            if name in own and value.shape != own[name].shape
        ],
        "of another dtype": [
            f"{name} {value.dtype} (the model has {own[name].dtype})"
            for name, value in values.items()
            if name in own and not _fits_in(value.dtype, own[name].dtype, exact_dtype)
        ],
    }
    found = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if found:
        raise ValueError(f"weights {path} do not match the model; {'; '.join(found)}")
    model.load_state_dict(values, strict=False)


def _fits_in(dtype: torch.dtype, own: torch.dtype, exact: bool) -> bool:
    return dtype == own or (not exact and dtype.is_floating_point and own.is_floating_point)


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        _require_file(path, "weights")
        try:
            return safetensors.torch.load_file(path)
        except Exception as err:  # of several kinds, by where the file is malformed
            raise ValueError(f"weights {path}: not a safetensors file ({_line(err)})") from err
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(
            f"weights {path}: expected .safetensors, .pt or .pth, got {path.suffix or 'no suffix'!r}"
        )
    values = _read_torch(path, "weights", "torch.save(model.state_dict(), ...)")
    if not isinstance(values, Mapping) or not all(isinstance(v, Tensor) for v in values.values()):
        raise ValueError(
            f"weights {path}: expected a state dict of tensors, got {_describe(values)}; save it with "
            "torch.save(model.state_dict(), ...)"
        )
    return dict(values)


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {_some([str(name) for name in value])}"
    return type(value).__name__


def _read_torch(path: Path, what: str, how_to_save: str) -> object:
    _require_file(path, what)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:
        # A malformed file can fail anywhere in the reader, with almost any exception.
        raise ValueError(
            f"{what} {path}: not a torch file, or one that holds more than plain tensors, which llr never "
            f"unpickles; save it with {how_to_save}"
        ) from err


def _require_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise ValueError(
            f"{what} {path}: {'not a file' if path.exists() else 'there is no such file'}"
        )


def _line(err: Exception) -> str:
    return " ".join(str(err).split())


def load_inputs(path: str | os.PathLike[str], dtype: torch.dtype = torch.float64) -> Tensor:
    r"""The samples of a file, shape (n, ...); a one-dimensional array of n numbers becomes (n, 1).

    Args:
        path: .npy (never pickled), .csv (comma-separated, UTF-8; a first line without any number
            is a header), or .pt (one tensor, loaded with ``weights_only=True``).
        dtype: of the result. Integers are converted as well, except those of a .pt file: they are
            kept, for models that take token numbers.

    Raises:
        ValueError: a missing, malformed or pickled file, an unknown suffix, text, complex numbers,
            NaN, Inf, or empty or missing cells.

    Example:
        >>> import tempfile, pathlib
        >>> from llr.files import load_inputs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "x.csv")
        ...     _ = file.write_text("a,b\n1,2\n3,4\n")
        ...     load_inputs(file).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    path = Path(path)
    readers = {".npy": _read_npy, ".csv": _read_csv, ".pt": _read_samples}
    if path.suffix not in readers:
        raise ValueError(
            f"inputs {path}: expected .npy, .csv or .pt, got {path.suffix or 'no suffix'!r}"
        )
    _require_file(path, "inputs")
    x = readers[path.suffix](path)
    if x.is_complex():
        raise ValueError(f"inputs {path}: complex numbers; expected real ones")
    if x.dim() == 0:
        raise ValueError(
            f"inputs {path}: a single number; expected samples along a first dimension"
        )
    if x.is_floating_point() or path.suffix != ".pt":
        x = x.to(dtype)
        check_finite(x, f"inputs {path} in {dtype}", ("sample", *["index"] * (x.dim() - 1)))
    return x[:, None] if x.dim() == 1 else x


def _read_npy(path: Path) -> Tensor:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as err:
        raise ValueError(
            f"inputs {path}: cannot be read as an array of numbers ({_line(err)}); write it with "
            "numpy.save"
        ) from err
    if array.dtype.kind not in "biuf":
        raise ValueError(f"inputs {path}: entries of type {array.dtype}; expected real numbers")
    return torch.from_numpy(array.astype(np.float64, order="C"))


def _read_samples(path: Path) -> Tensor:
    x = _read_torch(path, "inputs", "torch.save(x, ...) of one tensor")
    if not isinstance(x, Tensor):
        raise ValueError(f"inputs {path}: expected one tensor, got {_describe(x)}")
    return x.detach()


def _read_csv(path: Path) -> Tensor:
    rows: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            blank = 0
            for cells in reader:
                if not cells:
                    blank = blank or reader.line_num
                    continue
                if blank:
                    raise ValueError(f"line {blank} is empty")
                if not rows and reader.line_num == 1 and _is_header(cells):
                    continue
                rows.append(_numbers(cells, reader.line_num))
                if len(rows[-1]) != len(rows[0]):
                    raise ValueError(
                        f"line {reader.line_num} has {len(rows[-1])} cells, the first row {len(rows[0])}"
                    )
    except (ValueError, csv.Error, OSError) as err:
        problem = "not UTF-8 text" if isinstance(err, UnicodeDecodeError) else _line(err)
        raise ValueError(f"inputs {path}: {problem}") from err
    if not rows:
        raise ValueError(f"inputs {path}: no numbers; expected one line per sample")
    return torch.tensor(rows, dtype=torch.float64)


def _is_header(cells: list[str]) -> bool:
    if any(_is_number(cell) for cell in cells):
        return False
    if len(cells) > 1 and not cells[0].strip():
        raise ValueError(
            "the first column has no name, like the row numbers that pandas writes; save with index=False"
        )
    return True


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(cells: list[str], line: int) -> list[float]:
    values = []
    for column, cell in enumerate(cells, start=1):
        if not cell.strip():
            raise ValueError(f"line {line}, column {column} is empty; expected a number")
        if not _is_number(cell) or not np.isfinite(float(cell)):
            raise ValueError(f"line {line}, column {column} is {cell!r}; expected a finite number")
        values.append(float(cell))
    return values


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a whole file or none: a crash or Ctrl-C leaves the old content, never half of the new.

    Missing parent directories are made. Text is written as UTF-8. Raises OSError where the system
    refuses.

    Example:
        >>> import tempfile, pathlib
        >>> from llr.files import write_atomic
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(pathlib.Path(folder, "new", "r.json"), "{}")
        ...     pathlib.Path(folder, "new", "r.json").read_text()
        '{}'
    """
    # Through a link to the file it names: os.replace would put a file in the link's place.
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
