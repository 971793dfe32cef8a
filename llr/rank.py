"""The rank of a model's Jacobian."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from llr.jacobian import evaluate
from llr.parameters import Selection
from llr.problem import Model
from llr.spectrum import RankResult, check_finite, numerical_rank

__all__ = ["RankResult", "rank"]


def rank(
    model: Model | Tensor,
    x: Tensor | None = None,
    *,
    params: Selection = None,
    dtype: torch.dtype | Literal["auto"] | None = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> RankResult:
    """The numerical rank of a model's Jacobian on the samples `x`, with its evidence.

    The rank counts the independent directions in which the model's outputs on `x` can move when
    its parameters move. It is the rank of the (n q, P) matrix of `llr.jacobian`: n samples, q
    outputs, P parameters.

    Args:
        model: an ``nn.Module``, or a callable ``f(params, x)`` with `params` a dict of tensors. Or
            a tensor ``(..., m, n)`` with nothing for `x`: then this is `llr.numerical_rank`. A
            Jacobian (n, q, P) computed before is ranked as ``llr.rank(J.flatten(-3, -2))``: as it
            stands it would count as a batch of n matrices (q, P).
        x: samples, shape (n, ...), n >= 1.
        params: which parameters count, or their values, as in `llr.jacobian`. Stacked values with a
            leading dimension B give B ranks.
        dtype: the precision. "auto" is float64 for a model, whatever its own precision, and the
            tensor's own dtype for a tensor, since digits that a matrix has lost do not come back.
            None keeps the model's own; a torch.dtype converts to it.
        rtol: tolerance relative to sigma_1; default ``eps * min(n q, P)``.
        atol: absolute tolerance; default 0. The larger of the two holds.
        chunk_size: samples per step, as in `llr.jacobian`.
        backend: which code computes the Jacobian, as in `llr.jacobian`.

    Returns:
        A `RankResult`; ``ambiguous`` tells whether the rank depends on the tolerance, ``path``
        which code computed the Jacobian.

    Raises:
        TypeError: `x` missing for a model, or arguments that describe a model given for a tensor.
        ValueError: no samples, or NaN or Inf in the Jacobian; and what `llr.jacobian` and
            `llr.numerical_rank` refuse.

    Source: Zhang et al., "Optimistic Estimate Uncovers the Potential of Nonlinear Models" (2023),
    for the rank as the optimistic sample size.

    Example:
        >>> import llr, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> llr.rank(model, torch.zeros(5, 2)).rank  # five times the same sample
        1
    """
    if isinstance(model, Tensor):
        if x is not None or params is not None or chunk_size is not None or backend != "auto":
            raise TypeError(
                "x, params, chunk_size and backend describe a model, but a tensor was given; "
                "call llr.rank(tensor, dtype=..., rtol=..., atol=...)"
            )
        matrix = model.to(dtype) if isinstance(dtype, torch.dtype) else model
        return numerical_rank(matrix, rtol=rtol, atol=atol)
    if x is None:
        raise TypeError(
            f"the rank of a model needs samples: llr.rank(model, x); got only a "
            f"{type(model).__name__} (a matrix must be a torch.Tensor)"
        )
    if isinstance(x, Tensor) and x.dim() and x.shape[0] == 0:
        raise ValueError(
            f"x has no samples (shape {tuple(x.shape)}); a rank needs at least one row"
        )
    J, path = evaluate(
        model,
        x,
        params=params,
        chunk_size=chunk_size,
        backend=backend,
        dtype=torch.float64 if dtype == "auto" else dtype,
    )
    check_finite(J, "the Jacobian", ("sample", "output", "parameter"))
    return replace(numerical_rank(J.flatten(-3, -2), rtol=rtol, atol=atol), path=path)
