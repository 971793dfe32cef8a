"""Upper bounds of a rank without theory: from equal samples, and from parameters that do not change outputs.

All comparisons are exact: numbers are compared with each other or with zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from llr.inputs.mlp import MLP
    from llr.inputs.problem import Problem

Bound = tuple[int, str]
"""An upper bound of a rank, and the reason for it."""

ODD = frozenset({"tanh", "erf", "sin", "identity"})
_NEARLY_ODD = frozenset({"sigmoid"})  # s(z) + s(-z) = 1
_NEARLY_EVEN = frozenset({"gelu", "silu"})  # s(z) - s(-z) = z
_ENTRIES = 1 << 20  # of a matrix whose rows and columns are compared with each other
_ROWS = 1 << 14  # and columns of all matrices of a batch


def bounds_of_model(problem: Problem, outputs: int) -> list[Bound]:
    """Upper bounds of the rank of a model's Jacobian from its samples and from zeros among the parameters.

    Equal samples have equal rows: equal bit by bit, or, for an MLP, as numbers. An odd function (tanh, erf,
    sin or no activation between linear layers without biases) has the same derivatives, up to sign, at x and
    -x, and zero derivatives at 0. With one hidden layer of sigmoid, GELU or SiLU the rank is at most slightly
    larger. A weight that cannot reach an output, or whose input is zero for every sample, has zero columns.

    Args:
        problem: the model, its columns and its samples; at one parameter point, or at several.
        outputs: q.
    """
    mlp, x = problem.mlp, problem.x
    # The layers of an MLP treat -0 and 0 alike; other code may not.
    numbers = x + 0.0 if mlp is not None and x.is_floating_point() else x
    bounds = [(outputs * _distinct(numbers), "different samples")]
    if mlp is None or problem.columns.points is not None:
        return bounds
    if not any(b is not None for b in mlp.biases[:-1]):
        classes = outputs * _distinct(_up_to_sign(x))
        constant = outputs if problem.chain()[-1][0] in problem.columns.values else 0
        if mlp.activation in ODD:
            # Only the derivatives by an output bias are even.
            bounds.append((classes + constant, "samples up to sign"))
        elif len(mlp.weights) == 2 and mlp.activation in _NEARLY_ODD:
            # The sum of the rows at x and -x is the same for all x, and twice the row at 0.
            bounds.append((classes + outputs, "samples up to sign"))
        elif len(mlp.weights) == 2 and mlp.activation in _NEARLY_EVEN:
            # The difference of the rows is linear in x. The row at 0 is that of an output bias.
            linear = outputs * min(mlp.widths[0], len(x))
            bounds.append((classes + linear + constant, "samples up to sign"))
    bounds.append((_live_columns(problem, mlp), "live parameters"))
    return bounds


def bounds_of_matrices(A: Tensor) -> list[tuple[Tensor, str]]:
    """Upper bounds for each matrix (k, m, n): rows and columns that are zero, or equal bit by bit."""
    if A.numel() > _ENTRIES or sum(A.shape[-2:]) * len(A) > _ROWS:
        filled = A != 0
        return [(filled.any(side).sum(-1), "zeros") for side in (-1, -2)]
    return [(_different(B), "different rows") for B in (A, A.mT)]


def _different(A: Tensor) -> Tensor:
    """The number of distinct nonzero rows of each matrix (k, m, n), compared bit by bit, (k)."""
    counts = (A != 0).any(-1).sum(-1)
    if not A.numel():
        return counts
    A = A + 0.0  # without -0
    bits = A.view(torch.int64 if A.dtype == torch.float64 else torch.int32).to(torch.int64)
    # Equal rows have equal sums, so only rows with equal sums have to be compared.
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, A.shape[-1:], generator=generator).to(A.device)
    sums = (bits * factors).sum(-1).sort(-1).values
    for i in (sums[:, 1:] == sums[:, :-1]).any(-1).nonzero()[:, 0].tolist():
        counts[i] = _distinct(A[i][(A[i] != 0).any(1)])
    return counts


def _distinct(x: Tensor) -> int:
    """The number of distinct samples, compared bit by bit."""
    rows = x.detach().cpu().flatten(1).contiguous() if x.dim() > 1 else x.detach().cpu()[:, None]
    if rows.shape[1] == 0:
        return min(len(rows), 1)
    return len({row.tobytes() for row in rows.numpy()})


def _up_to_sign(x: Tensor) -> Tensor:
    """The nonzero samples, with signs changed so that their first nonzero entry is positive."""
    x = x[(x != 0).any(-1)]
    if not len(x):
        return x
    first = (x != 0).to(torch.uint8).argmax(-1, keepdim=True)
    # Adding zero makes -0 and 0 the same.
    return x * x.gather(-1, first).sign() + 0.0


def _live_columns(problem: Problem, mlp: MLP) -> int:
    """The number of columns that have a path of nonzero weights from the input and to an output."""
    links = problem.chain()
    weights, biases = links[::2], links[1::2]
    fed = [(problem.x != 0).any(0)]
    for (_, w), (_, b) in zip(weights[:-1], biases[:-1], strict=True):
        assert w is not None
        live = ((w != 0) & fed[-1]).any(-1)
        if b is not None:
            live |= b != 0
        fed.append(live if mlp.activation in ODD | {"relu", "gelu", "silu"} else live | True)
    seen = [torch.ones_like(weights[-1][1][:, 0], dtype=torch.bool)]  # type: ignore[index]
    for _, w in reversed(weights[1:]):
        assert w is not None
        seen.append(((w != 0) & seen[-1][:, None]).any(0))
    total = 0
    for (name, _), (bias, _), inputs, outputs in zip(
        weights, biases, fed, reversed(seen), strict=True
    ):
        if name in problem.columns.values:
            total += int(inputs.sum()) * int(outputs.sum())
        if bias in problem.columns.values:
            total += int(outputs.sum())
    return total
