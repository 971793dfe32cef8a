"""Gradient flow of many members at once, each with its own step sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llr.inputs.accept import takes_fields
from llr.inputs.roles import number, real
from llr.recovery.train.ledger import Ledger
from llr.recovery.train.machines import Ensemble
from llr.recovery.train.result import Plan, Record, Task, Training

# Dormand and Prince's pair of orders 5 and 4. Row i has the coefficients of the slopes before stage i + 1;
# the last row is the solution of order 5. _ERROR is this solution minus the one of order 4.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0  # by how much a step size may change
_FIRST_MARK = 1e-4  # the first mark after 0 on a logarithmic scale, as a fraction of the whole time


@takes_fields(time=number, rtol=number, atol=real)
@dataclass(frozen=True)
class Flow:
    """Gradient flow d theta/dt = - gradient of the loss, by Dormand and Prince's embedded Runge-Kutta pair.

    The method is explicit: a stiff flow needs about time * (largest curvature) / 3 steps, of six gradients
    each. For one small and stiff flow use :func:`llr.landscape.flow`, which factors Hessians.

    Args:
        time: the end of the flow.
        rtol: relative error allowed per step.
        atol: absolute error allowed per step; default: `rtol` times 1e-3 times the root mean square of the
            member's start, so that small initialisations are resolved.

    Source: Dormand and Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6 (1980).
    """

    time: float
    rtol: float = 1e-8
    atol: float | None = None

    def run(self, task: Task, theta: Tensor, plan: Plan) -> Training:
        """See :class:`llr.recovery.train.result.Method`."""
        for name, value in (("time", self.time), ("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; expected a positive number")
        marks = time_marks(plan.record, self.time)
        stops = torch.tensor([self.time], dtype=torch.float64) if marks is None else marks
        if float(stops[-1]) < self.time:
            stops = torch.cat([stops, stops.new_tensor([self.time])])
        ledger = Ledger(task.ensemble, theta, plan.tol, len(stops))
        if self.atol is None:
            size = theta.square().mean(1).sqrt()
            atol = 1e-3 * self.rtol * size.where(size > 0, 1.0)
        else:
            atol = torch.full_like(theta[:, 0], self.atol)
        _integrate(task.ensemble, theta, stops.to(theta), self.rtol, atol, plan, ledger)
        at = None if marks is None else marks.to(theta)
        return _without_end(ledger, at)


def _without_end(ledger: Ledger, at: Tensor | None) -> Training:
    """The result, without the mark at the end if the caller did not ask for it."""
    if at is not None:
        ledger.points, ledger.losses = ledger.points[: len(at)], ledger.losses[: len(at)]
    return ledger.close(at)


def time_marks(record: Record, time: float) -> Tensor | None:
    """The times to record, (T,): 0, then evenly spaced on a logarithmic scale up to the end."""
    if record is None:
        return None
    if isinstance(record, int):
        if record < 2:
            raise ValueError(f"record is {record}; expected at least 2 points, or a list of times")
        some = torch.logspace(math.log10(_FIRST_MARK), 0, record - 1, dtype=torch.float64) * time
        return torch.cat([some.new_zeros(1), some[:-1], some.new_tensor([time])])
    given = torch.as_tensor(record, dtype=torch.float64)
    if given.dim() != 1 or not len(given) or not bool(((given >= 0) & (given <= time)).all()):
        raise ValueError(f"record is {record!r}; expected times from 0 to {time:g}")
    return given.unique()


@dataclass(eq=False)
class _State:
    """The members in training."""

    theta: Tensor
    slope: Tensor
    """(S, P): minus the gradient at theta."""
    loss: Tensor
    """(S,): the losses at theta."""
    time: Tensor
    """(S,)."""
    size: Tensor
    """(S,): the size of the next step."""
    stop: Tensor
    """(S,) int64: the next mark."""
    atol: Tensor
    """(S,)."""

    def keep(self, rows: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


def _slope(ensemble: Ensemble, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the gradients, and the residuals."""
    gradient = torch.empty_like(theta)
    residual = ensemble.gradient(theta, gradient)
    return gradient.neg_(), residual


def _integrate(
    ensemble: Ensemble,
    theta: Tensor,
    stops: Tensor,
    rtol: float,
    atol: Tensor,
    plan: Plan,
    ledger: Ledger,
) -> None:
    zeros = torch.zeros_like(atol)
    slope, residual = _slope(ensemble, theta)
    size = _first_size(theta, slope, rtol, atol, stops[-1])
    state = _State(theta, slope, ensemble.loss(residual), zeros, size, zeros.long(), atol)
    if float(stops[0]) == 0:
        ledger.record(0)
        state.stop += 1
    reached = state.stop.clone()  # marks recorded, of all members
    for step in range(plan.steps + 1):
        before, arrived = ledger.active, state.stop == len(stops)
        stay = ledger.look(state.theta, state.loss, step)
        reached[before] = state.stop
        kept = ~arrived[stay]
        stay, ledger.active = stay[kept], ledger.active[kept]
        if plan.progress is not None:
            plan.progress(step, len(stay))
        if len(stay) < len(arrived):
            state.keep(stay)
            ensemble = ensemble.select(stay)
        if step == plan.steps or not len(stay):
            break
        landed = _advance(ensemble, state, rtol, stops)
        rows, mark = ledger.active[landed], state.stop[landed]
        ledger.points[mark, rows], ledger.losses[mark, rows] = (
            state.theta[landed],
            state.loss[landed],
        )
        state.stop = state.stop + landed
    for late in range(len(stops)):  # members that ended earlier keep their last point
        missing = reached <= late
        ledger.points[late, missing] = ledger.theta[missing]
        ledger.losses[late, missing] = ledger.loss[missing]


def _first_size(theta: Tensor, slope: Tensor, rtol: float, atol: Tensor, time: Tensor) -> Tensor:
    """First step sizes, small on the time scale of the parameters; Hairer, Norsett, Wanner, II.4."""
    scale = atol[:, None] + rtol * theta.abs()
    sizes = [(v / scale).square().mean(1).sqrt() for v in (theta, slope)]
    guess = 0.01 * sizes[0] / sizes[1]
    return guess.where(guess.isfinite() & (guess > 0), 1e-6 * time).clamp(max=float(time))


def _advance(ensemble: Ensemble, state: _State, rtol: float, stops: Tensor) -> Tensor:
    """Try a step of every member; return which members have reached their next mark."""
    left = stops[state.stop] - state.time
    landing = state.size >= left
    h = torch.where(landing, left, state.size)
    slopes, moved = [state.slope], state.theta
    for parts in _STAGES:
        moved = state.theta + h[:, None] * _combined(parts, slopes)
        slope, residual = _slope(ensemble, moved)
        slopes.append(slope)
    scale = state.atol[:, None] + rtol * torch.maximum(state.theta.abs(), moved.abs())
    error = (h[:, None] * _combined(_ERROR, slopes) / scale).square().mean(1).sqrt()
    good = error <= 1
    state.theta = torch.where(good[:, None], moved, state.theta)
    state.slope = torch.where(good[:, None], slope, state.slope)
    state.loss = torch.where(good, ensemble.loss(residual), state.loss)
    landed = good & landing
    state.time = torch.where(
        good, torch.where(landing, stops[state.stop], state.time + h), state.time
    )
    factor = (_SAFETY * error.clamp(min=1e-10) ** -0.2).nan_to_num(nan=_SHRINK)
    # A step that was shortened to reach a mark is no reason to reduce the step size.
    size = torch.where(landed, torch.maximum(state.size, h * factor), h * factor)
    state.size = torch.minimum(
        torch.maximum(size, _SHRINK * h), _GROW * torch.maximum(h, state.size)
    )
    return landed


def _combined(parts: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = parts[0] * slopes[0]
    for part, slope in zip(parts[1:], slopes[1:], strict=True):
        if part:
            total.add_(slope, alpha=part)
    return total
