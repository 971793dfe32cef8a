"""A step size for gradient descent from the curvature of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from llr import jacobian
from llr.inputs.parameters import layout
from llr.recovery.train.result import Task

_LARGEST_POWER = 1000  # largest exponent of the power of 2 by which starts are multiplied
_NUMBERS_AT_ONCE = 1 << 23  # entries of Jacobians


def stable_rate(task: Task, theta: Tensor) -> Tensor:
    """A step size for each member, (S,): 1 / (the largest eigenvalue of its tangent kernel J'J/n).

    If residuals are small, this eigenvalue is the largest curvature of the loss, and the step size is half of
    the largest one that does not diverge. At small initial parameters the curvature is too small. Therefore
    these are first multiplied by the least power of 2 at which the outputs are as large as the targets (or
    are infinite, or constant). Larger steps may work; functions with strong curvature may need smaller ones.
    """
    theta = theta * _growth(task, theta)[:, None]
    rates = torch.ones_like(theta[:, 0])
    which = task.data.which[task.rows]
    names = {
        name: (s, dict(task.model.named_parameters())[name].shape)
        for name, s in layout(task.model).items()
    }
    for b in which.unique().tolist():
        root = task.data.weights[b].sqrt()[:, None, None]
        seen = task.data.weights[b] > 0
        x = task.data.x[b][seen]
        at_once = max(1, _NUMBERS_AT_ONCE // (len(x) * task.data.y.shape[2] * theta.shape[1]))
        for rows in (which == b).nonzero()[:, 0].split(at_once):
            values = {n: theta[rows, s].view(-1, *shape) for n, (s, shape) in names.items()}
            J = jacobian(task.model, x, params=values) * root[seen]
            largest = torch.linalg.matrix_norm(J.flatten(1, 2), 2) ** 2
            rates[rows] = torch.where(largest > 0, 1 / largest, 1.0)
    return rates


def _growth(task: Task, theta: Tensor) -> Tensor:
    """The powers of 2 for the members, at least 1, (S,)."""
    ensemble = task.ensemble
    factor, scale = torch.ones_like(theta[:, 0]), 1.0
    before = torch.full_like(factor, -1.0)
    growing = torch.ones_like(factor, dtype=torch.bool)
    for _ in range(_LARGEST_POWER + 1):
        outputs = ensemble.outputs(theta * scale)
        size = (ensemble.weights * outputs * outputs).sum((1, 2))
        factor = torch.where(growing & size.isfinite(), scale, factor)
        changes = (size != before) | (size == 0)  # squares of small outputs underflow
        growing = growing & changes & size.isfinite() & (size < ensemble.power)
        if not bool(growing.any()):
            break
        before, scale = size, 2 * scale
    return factor
