"""Models by their names: widths, or somebody's module and what in it makes one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from llr.inputs.files.checkpoints import load_weights
from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.named import (
    current_directory_importable,
    explained,
    named_object,
    program_arguments,
)
from llr.models.networks import mlp
from llr.models.parts import linear_numbers

_CPU = torch.device("cpu")
# What reading a network and comparing it with its module hold at a time, as measured: copies of its
# parameters, and rows as long as all its layers together.
_COPIES, _ROWS = 7, 24


def load_model(
    spec: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    key: str | None = None,
    activation: str = "tanh",
    seed: int = 0,
    dtype: torch.dtype | None = torch.float64,
) -> nn.Module:
    """The model that `spec` names, with the weights of a file or reproducible random ones.

    Args:
        spec: ``mlp:10-64-1`` for a fully connected network of these widths, with biases and
            `activation` between its layers; or ``module:name``, or ``file.py:name``, for a module-level
            ``nn.Module`` or a function or class that is called without arguments and returns one (dots in
            `name` reach into classes). Modules are also found in the current directory.
        weights: a state dict, .safetensors or .pt/.pth/.ckpt, that the model's ``load_state_dict`` takes:
            alone, under a key of a checkpoint, or with a prefix that a wrapper left in all names. Of
            tied parameters one name is enough.
        key: where in the file the state dict is, if that is not clear.
        activation: tanh, sigmoid, relu, softplus, gelu (exact), silu, erf, sin or identity; for
            ``mlp:`` only.
        seed: seeds torch's CPU generator while the model is built, so that random weights are
            reproducible; the generator's state is restored afterwards.
        dtype: of the parameters and floating buffers. None keeps the model's own; a weights file
            must then have that dtype.

    Raises:
        ValueError: a malformed spec, nothing of that name, an unreadable or mismatching file.
        TypeError: the name is not a module, nor a callable that returns one.
        ImportError: importing the module failed, or ended the program.
        RuntimeError: the callable raised an exception, or ended the program.

    Example:
        >>> from llr.models.load import load_model
        >>> [p.shape[0] for p in load_model("mlp:10-64-1").parameters()]
        [64, 64, 1, 1]
    """
    model: nn.Module
    if names_widths(spec):
        widths = read_widths(spec)
        _require_room(spec, widths)
        with _seeded(seed):
            model = mlp(widths, activation)
    else:
        model = _named_model(spec, seed)
    if dtype is not None:
        model = model.to(dtype)
    if weights is not None:
        load_weights(model, Path(weights), key=key, exact_dtype=dtype is None)
    return model


def names_widths(spec: str) -> bool:
    """Whether `spec` has widths, and names no module of the user's own that is called mlp.

    Example:
        >>> from llr.models.load import names_widths
        >>> names_widths("mlp:10-64-1"), names_widths("mlp:build")
        (True, False)
    """
    kind, _, rest = spec.partition(":")
    return kind == "mlp" and not re.fullmatch(r"[^\W\d][\w.]*", rest)


def read_widths(text: str) -> list[int]:
    """The widths of a network that are written as ``10-64-1`` or ``mlp:10-64-1``.

    Raises:
        ValueError: anything else, or a network that is larger than the memory budget.

    Example:
        >>> from llr.models.load import read_widths
        >>> read_widths("10-64-1")
        [10, 64, 1]
    """
    widths = text.removeprefix("mlp:")
    if not re.fullmatch(r"[1-9]\d{0,8}(-[1-9]\d{0,8})+", widths, re.ASCII):
        raise ValueError(
            f"model {text!r}: expected at least two positive widths joined by '-', such as mlp:10-64-1"
        )
    found = [int(width) for width in widths.split("-")]
    _require_bytes(text, found, 8)
    return found


def _require_room(spec: str, widths: Sequence[int]) -> None:
    """Refuse a network that could be built, but not read and differentiated on any sample."""
    _require_bytes(spec, widths, 8 * _COPIES, 8 * _ROWS * sum(widths))


def _require_bytes(spec: str, widths: Sequence[int], each: int, more: int = 0) -> None:
    numbers = linear_numbers(widths, True, True)
    nbytes = each * numbers + more
    copies = f", and {format_bytes(nbytes)} with the copies that reading makes" if more else ""
    if not fits(nbytes, _CPU):
        raise ValueError(
            f"model {spec!r}: its {numbers:,} parameters take {format_bytes(8 * numbers)} in float64"
            f"{copies}, more than the memory budget of {format_bytes(memory_budget(_CPU))}; give smaller "
            "widths, or more memory by LLR_MEMORY_BUDGET"
        )


def _named_model(spec: str, seed: int) -> nn.Module:
    expected = (
        "module:callable, such as mypkg.models:build or models.py:build, or widths, such as "
        "mlp:10-64-1"
    )
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
        calling = explained(f"model {spec!r}: calling it without arguments", RuntimeError)
        with calling, _seeded(seed), program_arguments(spec):
            model = found()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {spec!r} returned {type(model).__name__}; expected an nn.Module")
    return model


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the generators of GPUs.
        torch.default_generator.manual_seed(seed)
        yield
