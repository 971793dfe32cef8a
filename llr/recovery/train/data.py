"""Data sets of an ensemble: the samples that each member sees, and their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.tensors import as_double, check_finite, refuse_complex


@dataclass(frozen=True, eq=False)
class Data:
    """B data sets of the same length and, for each of S members, the data set it is trained on.

    Samples that a data set does not see (`counts`) are zero in `x` and `y`, and have weight 0.

    Attributes:
        x: (B, n, ...), floating point as `y`, or integers.
        y: (B, n, q).
        weights: (B, n), 1 / (the number of samples seen), or zero.
        which: (S,) int64.
    """

    x: Tensor
    y: Tensor
    weights: Tensor
    which: Tensor

    @classmethod
    def of(
        cls,
        starts: Tensor,
        x: Tensor,
        y: Tensor,
        which: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Data:
        """Read and check the data of an ensemble; see :func:`llr.recovery.train.train`."""
        for name, t in (("starts", starts), ("x", x), ("y", y)):
            if not isinstance(t, Tensor):
                raise TypeError(
                    f"{name} is {type(t).__name__}; expected a tensor (torch.as_tensor)"
                )
        _check_starts(starts)
        if x.dim() < 2 or y.dim() not in (2, 3):
            raise ValueError(
                f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; expected x (n, ...) and y (n, q), or "
                "(B, n, ...) and (B, n, q) for B data sets (one output as y[:, None])"
            )
        alone = y.dim() == 2
        x, y = (x[None], y[None]) if alone else (x, y)
        if x.shape[:2] != y.shape[:2] or 0 in y.shape or x.dim() < 3:
            raise ValueError(
                f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)} (data sets, samples, ...); "
                "expected as many targets as samples, at least one, with a last dimension of outputs"
            )
        _check_kinds(starts, x, y)
        seen = _seen(counts, y)
        if not bool(seen.all()):
            # Unseen samples may be NaN, and 0 * NaN is NaN in sums.
            x = x * seen.view(*seen.shape, *[1] * (x.dim() - 2)) if not x.is_floating_point() else x
            if x.is_floating_point():
                x = x.where(seen.view(*seen.shape, *[1] * (x.dim() - 2)), 0.0)
            y = y.where(seen[..., None], 0.0)
        for name, t in (("x", x), ("y", y)):
            if t.is_floating_point():
                check_finite(t, name, ("sample", *["entry"] * (t.dim() - 2)))
        weights = seen.to(y.dtype) / seen.sum(1, keepdim=True)
        return cls(x.detach(), y.detach(), weights, _members(which, len(starts), len(y), y.device))

    def gather(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and weights (S, n, 1) of some members; with a leading size of 1 if there is one data set."""
        if len(self.y) == 1:
            return self.x, self.y, self.weights[..., None]
        which = self.which[rows]
        nbytes = len(which) * (self.x[0].nbytes + self.y[0].nbytes)
        if not fits(nbytes, self.y.device):
            raise ValueError(
                f"the samples of {len(which)} members take {format_bytes(nbytes)}, more than the memory "
                f"budget of {format_bytes(memory_budget(self.y.device))}; train fewer members at a time"
            )
        return self.x[which], self.y[which], self.weights[which, :, None]


def _check_starts(starts: Tensor) -> None:
    if starts.dtype not in (torch.float64, torch.float32):
        raise TypeError(
            f"starts is {starts.dtype}; expected float64 or float32{as_double('starts', starts)}"
        )
    if starts.dim() != 2 or 0 in starts.shape:
        raise ValueError(
            f"starts has shape {tuple(starts.shape)}; expected (S, P): a parameter point for each member"
        )
    check_finite(starts, "starts", ("member", "parameter"))


def _check_kinds(starts: Tensor, x: Tensor, y: Tensor) -> None:
    for name, t in (("x", x), ("y", y)):
        if t.device != starts.device:
            raise ValueError(
                f"{name} is on {t.device} but starts on {starts.device}; expected one device"
            )
    refuse_complex("y", y)
    if y.dtype != starts.dtype or (x.is_floating_point() and x.dtype != starts.dtype):
        raise TypeError(
            f"x is {x.dtype}, y {y.dtype} and starts {starts.dtype}; expected one dtype (x may be integers)"
        )


def _seen(counts: Tensor | None, y: Tensor) -> Tensor:
    """(B, n) bool: which samples of each data set are seen."""
    B, n, _ = y.shape
    if counts is None:
        return torch.ones(B, n, dtype=torch.bool, device=y.device)
    if not isinstance(counts, Tensor):
        raise TypeError(f"counts is {type(counts).__name__}; expected a tensor (torch.as_tensor)")
    counts = counts.to(y.device)
    if counts.dtype == torch.bool and tuple(counts.shape) == (B, n):
        seen = counts
    elif counts.dtype == torch.int64 and tuple(counts.shape) == (B,):
        if bool((counts > n).any()):
            raise ValueError(f"counts has {int(counts.max())}; expected at most the {n} samples")
        seen = torch.arange(n, device=y.device) < counts[:, None]
    else:
        raise ValueError(
            f"counts is {counts.dtype} of shape {tuple(counts.shape)}; expected sample sizes, int64 "
            f"({B},), or which samples are seen, bool ({B}, {n})"
        )
    if not bool(seen.any(1).all()):
        raise ValueError(
            f"data set {int((~seen.any(1)).nonzero()[0])} sees no sample; expected at least one"
        )
    return seen


def _members(which: Tensor | None, S: int, B: int, device: torch.device) -> Tensor:
    if which is None:
        if B not in (1, S):
            raise ValueError(
                f"there are {B} data sets and {S} members; which= must say which member is trained on which"
            )
        which = torch.arange(S) if B == S else torch.zeros(S, dtype=torch.int64)
    if not isinstance(which, Tensor) or which.dtype != torch.int64 or tuple(which.shape) != (S,):
        found = (
            f"{which.dtype} of shape {tuple(which.shape)}"
            if isinstance(which, Tensor)
            else type(which).__name__
        )
        raise ValueError(f"which is {found}; expected int64 ({S},), a data set for each member")
    if bool(((which < 0) | (which >= B)).any()):
        raise ValueError(
            f"which is between {int(which.min())} and {int(which.max())}; expected 0 to {B - 1}, the data "
            "sets"
        )
    return which.to(device)
