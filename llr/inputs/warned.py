"""Warnings that point to the line that called llr."""

from __future__ import annotations

import functools
import sys
import warnings
from types import FrameType

import torch

from llr.operators import _ops


def stacklevel() -> int:
    """The ``stacklevel=`` with which the calling function's warning points to the line that called llr."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("llr."):
        level, frame = level + 1, frame.f_back
    return level


def warn_of_no_kernel(device: torch.device, reason: str) -> None:
    """Warn, once for each reason, that MLPs on this device do not use the native operators."""
    if device.type in ("cpu", "cuda"):  # no build has kernels for other devices
        _warn_once(reason)


@functools.cache
def _warn_once(reason: str) -> None:
    what = "native operators on this GPU" if _ops.NATIVE else "native library"
    warnings.warn(
        f"llr runs without its {what} and computes MLPs through torch, more slowly: {reason}",
        RuntimeWarning,
        stacklevel=stacklevel(),
    )
