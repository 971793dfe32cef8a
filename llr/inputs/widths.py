"""Networks given by their widths, such as ``mlp:10-64-1``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import torch

from llr.inputs.memory import fits, format_bytes, memory_budget

_CPU = torch.device("cpu")
# The memory for reading a network and comparing it with its module, as measured: copies of its parameters,
# and rows as long as all its layers together.
_COPIES, _ROWS = 7, 24


def names_widths(spec: str) -> bool:
    """Whether `spec` gives widths, rather than an object in a module of the user that is called mlp.

    Example:
        >>> from llr.inputs.widths import names_widths
        >>> names_widths("mlp:10-64-1"), names_widths("mlp:build")
        (True, False)
    """
    kind, _, rest = spec.partition(":")
    return kind == "mlp" and not re.fullmatch(r"[^\W\d][\w.]*", rest)


def read_widths(text: str, what: str = "model") -> list[int]:
    """The widths of a network written as ``10-64-1`` or ``mlp:10-64-1``.

    Args:
        text: the widths.
        what: what names them, for messages.

    Raises:
        ValueError: anything else, or a network that is larger than the memory budget.

    Example:
        >>> from llr.inputs.widths import read_widths
        >>> read_widths("10-64-1")
        [10, 64, 1]
    """
    widths = text.removeprefix("mlp:")
    if not re.fullmatch(r"[1-9]\d{0,8}(-[1-9]\d{0,8})+", widths, re.ASCII):
        raise ValueError(
            f"{what} {text!r}: expected at least two positive widths joined by '-', such as mlp:10-64-1"
        )
    found = [int(width) for width in widths.split("-")]
    _require_bytes(f"{what} {text!r}", found, 8)
    return found


def linear_numbers(widths: Sequence[int], bias: bool, last_bias: bool) -> int:
    """How many parameters linear layers of these widths have."""
    biases = [*([bias] * (len(widths) - 2)), last_bias]
    return sum((i + b) * o for (i, o), b in zip(pairwise(widths), biases, strict=True))


def require_memory(spec: str, widths: Sequence[int]) -> None:
    """Refuse a network that may fit the memory, but not with the copies for reading and differentiation."""
    _require_bytes(f"model {spec!r}", widths, 8 * _COPIES, 8 * _ROWS * sum(widths))


def _require_bytes(named: str, widths: Sequence[int], each: int, more: int = 0) -> None:
    numbers = linear_numbers(widths, True, True)
    nbytes = each * numbers + more
    copies = f", and {format_bytes(nbytes)} with the copies that reading makes" if more else ""
    if not fits(nbytes, _CPU):
        raise ValueError(
            f"{named}: its {numbers:,} parameters take {format_bytes(8 * numbers)} in float64"
            f"{copies}, more than the memory budget of {format_bytes(memory_budget(_CPU))}; give smaller "
            "widths, or more memory by LLR_MEMORY_BUDGET"
        )
