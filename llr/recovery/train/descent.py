"""Methods that use the gradient on the whole data set in each step: gradient descent and Adam."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llr.inputs.accept import takes_fields
from llr.inputs.roles import a_flag, number
from llr.recovery.train.curvature import stable_rate
from llr.recovery.train.ledger import Ledger
from llr.recovery.train.result import Plan, Record, Task, Training

# Losses are checked every so many steps. Checking more often would cost more time than it saves.
CHECK_EVERY = 32

Schedule = str | Callable[[float], float]
"""A name of :data:`SCHEDULES`, or a function of the fraction of the steps that is done, in [0, 1)."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda part: 1 - part,
    "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
}
"""The factor of a rate during training, by name."""


class Rule(Protocol):
    """A method's state for members in training."""

    def update(self, step: int, theta: Tensor, gradient: Tensor) -> None:
        """Take a step in place; the gradient may be overwritten."""

    def keep(self, rows: Tensor) -> None:
        """Keep the state of these members only."""


@takes_fields(momentum=number)
@dataclass(frozen=True, eq=False)
class GD:
    """Full-batch gradient descent: ``v = momentum v + gradient``, ``theta -= lr v``, as ``torch.optim.SGD``.

    Args:
        lr: one step size, or (S,), one for each member. Default: one over the
            largest eigenvalue of a member's tangent kernel J'J/n.
        momentum: in [0, 1).
    """

    lr: float | Tensor | None = None
    momentum: float = 0.0

    def run(self, task: Task, theta: Tensor, plan: Plan) -> Training:
        """See :class:`llr.recovery.train.result.Method`."""
        _check_between("momentum", self.momentum, 0, 1)
        lr = stable_rate(task, theta) if self.lr is None else member_rates(self.lr, task, theta)
        return descend(_Momentum(lr, self.momentum, theta), task, theta, plan)


@takes_fields(eps=number, weight_decay=number, decoupled=a_flag)
@dataclass(frozen=True, eq=False)
class Adam:
    """Adam on the full batch, as ``torch.optim.Adam`` and ``AdamW``, with rates that may be annealed.

    Weight decay that is annealed to zero prefers small parameters during training, and does not change the
    minimum of the loss: ``Adam(lr=1e-2, weight_decay=1e-2, decay_schedule="linear")``.

    Args:
        lr: one step size, or (S,), one for each member.
        betas: the decay rates of the running means of gradients and of their squares.
        eps: added to the root of the mean square.
        weight_decay: in the units of ``AdamW`` if decoupled (``theta -= lr weight_decay theta``), otherwise
            of ``Adam`` (``weight_decay theta`` is added to the gradient).
        decay_schedule: the factor of `weight_decay`: "constant", "linear" or "cosine" (to zero at the last
            step), or a function of the fraction of the steps that is done.
        lr_schedule: the same for `lr`.
        decoupled: see `weight_decay`.

    Source: Kingma and Ba, "Adam: A method for stochastic optimization" (ICLR 2015); Loshchilov and Hutter,
    "Decoupled weight decay regularization" (ICLR 2019).
    """

    lr: float | Tensor = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_schedule: Schedule = "constant"
    lr_schedule: Schedule = "constant"
    decoupled: bool = True

    def run(self, task: Task, theta: Tensor, plan: Plan) -> Training:
        """See :class:`llr.recovery.train.result.Method`."""
        for name, beta in zip(("betas[0]", "betas[1]"), self.betas, strict=True):
            _check_between(name, beta, 0, 1)
        _check_between("eps", self.eps, 0, math.inf)
        _check_between("weight_decay", self.weight_decay, 0, math.inf)
        rule = _Moments(self, member_rates(self.lr, task, theta), theta, plan.steps)
        return descend(rule, task, theta, plan)


class _Momentum:
    def __init__(self, lr: Tensor, momentum: float, theta: Tensor) -> None:
        self.lr, self.momentum = lr[:, None], momentum
        self.velocity = torch.zeros_like(theta) if momentum else None

    def update(self, step: int, theta: Tensor, gradient: Tensor) -> None:  # noqa: ARG002
        if self.velocity is not None:
            gradient = self.velocity.mul_(self.momentum).add_(gradient)
        theta.addcmul_(self.lr, gradient, value=-1)

    def keep(self, rows: Tensor) -> None:
        self.lr = self.lr[rows]
        if self.velocity is not None:
            self.velocity = self.velocity[rows]


class _Moments:
    def __init__(self, adam: Adam, lr: Tensor, theta: Tensor, steps: int) -> None:
        self.adam, self.lr, self.steps = adam, lr[:, None], steps
        self.decay, self.rate = _schedule(adam.decay_schedule), _schedule(adam.lr_schedule)
        self.mean, self.square = torch.zeros_like(theta), torch.zeros_like(theta)

    def update(self, step: int, theta: Tensor, gradient: Tensor) -> None:
        adam, part = self.adam, step / self.steps
        rate, decay = self.rate(part), self.decay(part) * adam.weight_decay
        if decay and adam.decoupled:
            theta.addcmul_(self.lr, theta, value=-rate * decay)
        elif decay:
            gradient.add_(theta, alpha=decay)
        first, second = adam.betas
        self.mean.lerp_(gradient, 1 - first)
        self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = torch.sqrt(self.square, out=gradient)
        root.div_(math.sqrt(1 - second ** (step + 1))).add_(adam.eps)
        moved = torch.div(self.mean, root, out=root).mul_(self.lr)
        theta.sub_(moved, alpha=rate / (1 - first ** (step + 1)))

    def keep(self, rows: Tensor) -> None:
        self.lr, self.mean, self.square = self.lr[rows], self.mean[rows], self.square[rows]


def descend(rule: Rule, task: Task, theta: Tensor, plan: Plan) -> Training:
    """Take steps until all members are done."""
    at = step_marks(plan.record, plan.steps)
    marks = {} if at is None else {int(step): mark for mark, step in enumerate(at)}
    ensemble = task.ensemble
    ledger = Ledger(ensemble, theta, plan.tol, len(marks))
    gradient = torch.empty_like(theta)
    for step in range(plan.steps + 1):
        last = step == plan.steps
        residual = ensemble.gradient(theta, gradient)
        if step % CHECK_EVERY == 0 or step in marks or last:
            stay = ledger.look(theta, ensemble.loss(residual), step)
            if step in marks:
                ledger.record(marks[step])
            if plan.progress is not None:
                plan.progress(step, len(stay))
            if len(stay) < len(theta):
                theta, gradient, ensemble = theta[stay], gradient[stay], ensemble.select(stay)
                rule.keep(stay)
            if not len(stay):
                for later in (mark for when, mark in marks.items() if when > step):
                    ledger.record(later)
                break
        if not last:
            rule.update(step, theta, gradient)
    return ledger.close(None if at is None else at.to(theta.device))


def step_marks(record: Record, steps: int) -> Tensor | None:
    """The steps to record, (T,) int64: 0, then evenly spaced on a logarithmic scale, and the last."""
    if record is None:
        return None
    if isinstance(record, int):
        if record < 2:
            raise ValueError(f"record is {record}; expected at least 2 points, or a list of steps")
        some = torch.logspace(0, math.log10(max(steps, 1)), record - 1, dtype=torch.float64)
        return torch.cat([some.new_zeros(1), some.round().clamp(max=steps)]).long().unique()
    given = torch.as_tensor(record)
    whole = given.dim() == 1 and len(given) > 0 and not given.is_floating_point()
    if not whole or bool((given < 0).any() | (given > steps).any()):
        raise ValueError(f"record is {record!r}; expected steps from 0 to {steps}")
    return given.long().unique()


def member_rates(lr: float | Tensor, task: Task, theta: Tensor) -> Tensor:
    """Step sizes of these members, (S,)."""
    rates = torch.as_tensor(lr, dtype=theta.dtype, device=theta.device)
    total = len(task.data.which)
    if rates.dim() and tuple(rates.shape) != (total,):
        raise ValueError(
            f"lr has shape {tuple(rates.shape)}; expected a number, or ({total},), one for each member"
        )
    if not bool((rates.isfinite() & (rates > 0)).all()):
        raise ValueError(f"lr is {lr}; expected positive numbers, such as 1e-2")
    return rates[task.rows] if rates.dim() else rates.expand(len(theta))


def _schedule(schedule: Schedule) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(
            f"schedule is {schedule!r}; expected one of {', '.join(map(repr, SCHEDULES))}, or a function"
        )
    return SCHEDULES[schedule]


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ValueError(f"{name} is {value!r}; expected at least {low:g} and less than {high:g}")
