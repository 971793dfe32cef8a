"""Tests of a network at fresh points of the function, and what they prove without assumptions about it.

Source: C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
binomial", Biometrika 26 (1934).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from llr.inputs.accept import valued
from llr.inputs.evaluation.forward_errors import explained, from_torch
from llr.recovery.domain import Domain, errors
from llr.recovery.judge import Data64, Judgement
from llr.recovery.outcome import Checked

CONFIDENCE = 0.95
FRESH = 1000
"""How many points a function is evaluated at."""

Function = Callable[[Tensor], Tensor]

_OF_DTYPES = re.compile(r"dtype|scalar type|type \(.*should be the same")


def largest_share(beyond: int, points: int, confidence: float = CONFIDENCE) -> float:
    """An upper bound of the share of inputs that differ, if `beyond` of `points` random ones do.

    The points have to be drawn independently of the network. This is the Clopper-Pearson bound: for any
    distribution and any function, a larger share would have given more such points with at least the given
    probability. For ``beyond=0`` it is 1 - (1 - confidence)^(1 / points).

    Example:
        >>> from llr.recovery.oracle import largest_share
        >>> round(largest_share(0, 1000), 6)
        0.002991
    """
    if beyond >= points:
        return 1.0
    return float(betaincinv(beyond + 1, points - beyond, confidence))


def _other_dtype(y: Function, dtype: torch.dtype) -> str:
    """Advice for a function that computes in another dtype than that of x, for example float32."""
    own = None
    if isinstance(y, nn.Module):
        own = next((p.dtype for p in y.parameters() if p.is_floating_point()), None)
    computes = f"y computes in {own}" if own else "y computes in another dtype"
    other = own if own else "that of y"
    return (
        f"{computes}, and x is {dtype}; expected the same: make y compute in float64 (model.double()) and "
        f"give x in float64, or give x in {other} (x.to({own if own else 'torch.float32'})); then the "
        "rounding of this dtype is taken into account"
    )


def evaluated(y: Function, x: Tensor, q: int | None = None) -> Tensor:
    """The function's values at x, (m,) or (m, q), in the dtype that the function returns.

    The function gets a copy of x, which it may change.

    Raises:
        TypeError: values that are no tensor, array or list; a function that computes in another dtype than
            that of x.
        ValueError: values of another shape; operations of torch that fail.
    """
    with explained(x, "y"), torch.no_grad():
        try:
            given = y(x.detach().clone())
        except RuntimeError as error:
            if not (from_torch(error) and _OF_DTYPES.search(str(error))):
                raise
            raise TypeError(_other_dtype(y, x.dtype)) from error
    if given is None:
        raise TypeError("y(x) is None; expected a tensor")
    values: Tensor = valued("y(x)", given)
    outputs = 1 if values.dim() == 1 else values.shape[-1]
    if values.dim() not in (1, 2) or len(values) != len(x) or q not in (None, outputs):
        expected = f"({len(x)},) or ({len(x)}, q)" if q is None else f"({len(x)}, {q})"
        raise ValueError(f"y(x) has shape {tuple(values.shape)}; expected {expected}")
    return values.detach()


def fresh(
    sampler: Callable[[int], Tensor] | None, count: int, domain: Domain, like: Tensor, seed: int
) -> Tensor:
    """Points of the caller's sampler, or uniform points of the domain, in the dtype of `like`.

    Raises:
        TypeError, ValueError: a sampler that does not return (count, d) numbers.
    """
    if sampler is None:
        # This seed differs from those of all points that the network could depend on.
        points = domain.points(count, corners=0, seed=seed + 2**40)
        return points.to(like.dtype if like.is_floating_point() else torch.float64)
    points = valued("sampler(m)", sampler(count))
    if points is None:
        raise TypeError("sampler(m) is None; expected a tensor")
    if points.dim() == 1 and like.shape[1] == 1:
        points = points[:, None]
    if tuple(points.shape) != (count, like.shape[1]):
        raise ValueError(
            f"sampler({count}) has shape {tuple(points.shape)}; expected ({count}, {like.shape[1]})"
        )
    if not bool(torch.isfinite(points).all()):
        raise ValueError(f"sampler({count}) has NaN or infinity; expected finite numbers")
    return points.detach()


def compared(found: Judgement, data: Data64, x: Tensor, y: Tensor, where: str) -> Checked:
    """Compare a network with values that it was not fitted to.

    A point counts as beyond if the values differ by more than twice the first-order error by conditioning at
    the point, plus the rounding.

    Args:
        found: the network, which has to be fixed before the points are drawn.
        data: the samples that it was fitted to.
        x: (m, d) float64.
        y: (m, q) float64.
        where: how the points were drawn.
    """
    fit = found.fit
    allowed = data.rounding.delta(fit.net, x, None) + data.rounding.unit * y.abs()
    if found.isolation.isolated and found.isolation.inverse is not None:
        allowed = allowed + 2 * errors(fit, found.isolation.inverse, x)
    off = (fit.net(x) - y).abs()
    beyond = int((~(off <= allowed)).any(1).sum())
    share = largest_share(beyond, len(x))
    return Checked(share, CONFIDENCE, len(x), beyond, float(allowed.max()), where)
