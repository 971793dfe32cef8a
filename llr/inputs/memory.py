"""The memory budget: how many bytes llr may use for a result and its workspace."""

from __future__ import annotations

import numbers
import os
from pathlib import Path
from types import TracebackType

import psutil
import torch

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

_SMALL = 16 << 20
_budget: int | None = None


def memory_budget(device: torch.device | str = "cpu") -> int:
    """The number of bytes that llr may use at a time: what was set, else half of the memory that is free now.

    A larger computation is refused before anything is allocated; the error names the bytes it would take.

    Args:
        device: the device whose free memory determines the budget if none was set.

    Returns:
        Bytes. Set by :func:`set_memory_budget` or by the environment variable ``LLR_MEMORY_BUDGET``
        ("4GB", "512MiB", or a number of bytes). Free memory respects the limit of the control group.

    Example:
        >>> import llr
        >>> with llr.set_memory_budget("2 GB"):
        ...     llr.memory_budget()
        2000000000
    """
    try:
        at = torch.device(device)
        known = at.type != "cuda" or (at.index or 0) < torch.cuda.device_count()
    except (RuntimeError, TypeError):
        known = False
    if not known:
        raise ValueError(f"device is {device!r}; expected a device of this machine, such as 'cpu'")
    set_for_good = _set_budget()
    return _free(at) // 2 if set_for_good is None else set_for_good


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether a result of `nbytes` bytes is within the budget.

    If the user has set no budget, a result of a few megabytes is accepted without asking for the free memory,
    which takes longer than a small Jacobian.
    """
    budget = _set_budget()
    if budget is None:
        return nbytes <= _SMALL or nbytes <= memory_budget(device)
    return nbytes <= budget


def _set_budget() -> int | None:
    if _budget is not None:
        return _budget
    from_environment = os.environ.get("LLR_MEMORY_BUDGET")
    return parse_bytes(from_environment) if from_environment else None


class set_memory_budget:  # noqa: N801 - used like a function, as torch.set_grad_enabled is
    """Set :func:`memory_budget` for the process or, as a context manager, for a block.

    Args:
        nbytes: bytes as a number or as text ("2 GB", "512 MiB"); None for the default, half of what is
            free at each call.

    Raises:
        ValueError: not a positive number of bytes.

    Example:
        >>> import llr
        >>> with llr.set_memory_budget(10**9):
        ...     llr.memory_budget()
        1000000000
    """

    def __init__(self, nbytes: int | str | None) -> None:
        global _budget
        value = parse_bytes(nbytes) if isinstance(nbytes, str) else nbytes
        if value is not None and not isinstance(value, numbers.Real):
            raise TypeError(f"memory budget is {nbytes!r}; expected a number of bytes, or text")
        if value is not None and not 0 < value < 2**63:
            shown = repr(nbytes) if abs(value) < 2**128 else "beyond 2^128"
            raise ValueError(f"memory budget is {shown}; expected a positive number of bytes")
        self._previous = _budget
        _budget = None if value is None else int(value)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _budget
        _budget = self._previous


def parse_bytes(text: str) -> int:
    """Bytes from text such as "512 MiB"; raises ValueError for anything else."""
    stripped = text.strip()
    digits = stripped.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = stripped[len(digits) :].strip().lower()
    try:
        value = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        value = 0
    if value <= 0:
        raise ValueError(
            f"{text!r} is not a number of bytes; expected for example 4GB, 512MiB or 1000000"
        )
    return value


def format_bytes(nbytes: int) -> str:
    """Bytes as human-readable text: three digits and a decimal unit."""
    value = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if value < 999.5 or unit == "PB":  # 999.5 would print as 1e+03
            break
        value /= 1000
    return f"{value:.3g} {unit}" if unit != "bytes" else f"{nbytes} bytes"


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        # Memory that torch's allocator has reserved and does not use is free, too.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = int(psutil.virtual_memory().available)
    limit, used = _control_group()
    return free if limit is None else max(0, min(free, limit - used))


def _control_group() -> tuple[int | None, int]:
    """The memory limit of this process's control group (version 2, as containers see it) and its use."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return None, 0
    return (None, used) if limit == "max" else (int(limit), used)
