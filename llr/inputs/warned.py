"""Where a warning of llr's belongs: at the line that called llr."""

from __future__ import annotations

import sys
from types import FrameType


def stacklevel() -> int:
    """The ``stacklevel=`` with which the function that asks warns at the line that called llr."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("llr."):
        level, frame = level + 1, frame.f_back
    return level
