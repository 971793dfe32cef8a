"""Refuses matrices that are not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_finite(A: Tensor, what: str, axes: Sequence[str]) -> None:
    """Raise ValueError if `A` has a NaN or Inf entry, saying how many and where the first is.

    `axes` names the last dimensions of `A` in the message; those before them are called "batch".
    """
    # Extremes propagate NaN and Inf, and unlike isfinite(A).all() they need no memory of A's size.
    if A.numel() == 0 or bool(torch.isfinite(torch.stack((A.amin(), A.amax()))).all()):
        return
    bad = (~torch.isfinite(A)).nonzero()
    names = ["batch"] * (A.dim() - len(axes)) + list(axes)
    where = ", ".join(f"{n} {i}" for n, i in zip(names, bad[0].tolist(), strict=True))
    raise ValueError(
        f"{what} has {len(bad)} NaN or Inf entries out of {A.numel()}, the first "
        f"({A[tuple(bad[0])].item()}) at {where}; a rank needs finite numbers"
    )
