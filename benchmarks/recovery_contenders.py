"""What solves the problems of recovery.py: llr, and the least squares of torch, scipy and optimistix.

All of them minimise the same sums of squares of two-layer tanh networks from the same starts, and stop a
start by the same rule where they let us: it has converged, or is given up after so many trial steps, or after
so many in a row that did not lower the sum by a percent.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from llr.models import TwoLayer
from llr.operators import _ops
from llr.recovery import Target, initial, levenberg_marquardt, lm_reference
from llr.recovery.damping import DAMPING, Damping

TOL = 1e-20
"""A start has converged where its sum of squared residuals, relative to the targets', is at most this."""

FRESH = 256  # points at which functions are compared
RECOVERED = 1e-8  # relative squared error there
_OWN_PATIENCE = 1000  # evaluations that scipy gets when it stops by its own tolerances

NATIVE, NATIVE_SLOW = "llr, fast", "llr, slow"
BATCHED, BATCHED_SLOW = "torch ops, fast", "torch ops, slow"
TRF, TRF_OWN, MINPACK, OPTIMISTIX = "scipy trf", "scipy trf, own stop", "scipy lm", "optimistix"
SLOW_ONES = (TRF, TRF_OWN, MINPACK)
"""They get every few of the starts."""


@dataclass(frozen=True)
class Case:
    """Two-layer targets of k neurons, fitted by as many or more neurons."""

    d: int
    k: int
    width: int
    samples: int
    targets: int = 32
    starts: int = 64  # for each target
    few: int = 2  # of these, for those that solve one problem after the other

    @property
    def parameters(self) -> int:
        return self.width * (self.d + 1)

    def quick(self) -> Case:
        return Case(self.d, self.k, self.width, self.samples, targets=2, starts=8, few=1)


CASES = {"narrow": Case(5, 3, 3, 24), "wide": Case(3, 3, 10, 30)}


@dataclass(frozen=True)
class Problems:
    """A case with its numbers; a data set for each target, and all starts one after the other."""

    case: Case
    model: TwoLayer
    starts: Tensor
    x: Tensor
    y: Tensor
    which: Tensor
    fresh: Tensor
    values: Tensor  # of the targets at the fresh points

    @classmethod
    def of(cls, case: Case) -> Problems:
        model = TwoLayer(case.d, case.width, bias=False)
        narrow = TwoLayer(case.d, case.k, bias=False)
        targets = [Target.separated(narrow, seed=s) for s in range(case.targets)]
        samples = [t.sample(case.samples, seed=1000 + s) for s, t in enumerate(targets)]
        fresh = targets[0].inputs(FRESH, seed=999)
        generator = torch.Generator().manual_seed(0)
        return cls(
            case,
            model,
            initial(model, case.targets * case.starts, scale=0.1, generator=generator),
            torch.stack([x for x, _ in samples]),
            torch.stack([y for _, y in samples]),
            torch.arange(case.targets).repeat_interleave(case.starts),
            fresh,
            torch.stack([target(fresh) for target in targets]),
        )

    @property
    def functions(self) -> lm_reference.Functions:
        return lm_reference.of_mlp((self.case.d, self.case.width, 1), (False, False), "tanh")

    def first(self, each: int) -> Problems:
        """The first few starts of each target."""
        chosen = torch.arange(len(self.which)) % self.case.starts < each
        return Problems(
            self.case,
            self.model,
            self.starts[chosen],
            self.x,
            self.y,
            self.which[chosen],
            self.fresh,
            self.values,
        )


class Ends(NamedTuple):
    """What a contender makes of all its starts."""

    theta: Tensor
    converged: Tensor
    """As it says itself."""


Solver = Callable[[Problems], Ends]


def by_llr(damping: str) -> Solver:
    def solve(p: Problems) -> Ends:
        fits = levenberg_marquardt(
            p.model, p.starts, p.x, p.y, which=p.which, damping=damping, tol=TOL
        )
        return Ends(fits.theta, fits.converged)

    return solve


def by_torch(damping: str) -> Solver:
    def solve(p: Problems) -> Ends:
        with torch.no_grad():
            found = lm_reference.solve(
                p.functions, p.starts, p.x, p.y, p.which, DAMPING[damping], TOL
            )
        return Ends(found.theta, found.status == 0)

    return solve


class _Stopped(Exception):
    """Where a start ends by our rule, thrown through scipy."""


class _Watch:
    """A two-layer network for scipy, and our rule for its evaluations, which are trial steps."""

    def __init__(self, x: Any, y: Any, patience: Damping | None, missing: int) -> None:
        self.x, self.y, self.patience = x, y[:, 0], patience
        self.missing = missing  # residuals, as many as parameters, that MINPACK wants: zeros
        self.goal, self.best = TOL * float(self.y @ self.y), np.inf
        self.theta: Any = None
        self.stalled = self.count = 0

    def _parts(self, theta: Any) -> tuple[Any, Any]:
        m = len(theta) // (self.x.shape[1] + 1)
        return theta[:-m].reshape(m, -1), theta[-m:]

    def residuals(self, theta: Any) -> Any:
        w, a = self._parts(theta)
        r = np.tanh(self.x @ w.T) @ a - self.y
        loss = float(r @ r)
        progress = loss <= self.best * (1 - (self.patience.progress if self.patience else 0.0))
        self.stalled = 0 if progress else self.stalled + 1
        if loss < self.best:
            self.theta, self.best = theta.copy(), loss
        self.count += 1
        stopped = self.patience is not None and (
            self.stalled >= self.patience.stall or self.count > self.patience.iterations
        )
        if loss <= self.goal or stopped:
            raise _Stopped
        return np.pad(r, (0, self.missing))

    def jacobian(self, theta: Any) -> Any:
        w, a = self._parts(theta)
        hidden = np.tanh(self.x @ w.T)
        slopes = a * (1 - hidden * hidden)
        first = (slopes[:, :, None] * self.x[:, None, :]).reshape(len(self.x), -1)
        return np.pad(np.concatenate([first, hidden], 1), ((0, self.missing), (0, 0)))


def by_scipy(method: str, patience: Damping | None) -> Solver:
    """One problem after the other; without patience it stops by its own tolerances, the least there are."""

    def solve(p: Problems) -> Ends:
        ends, converged = [], []
        few = max(0, p.case.parameters - p.case.samples) if method == "lm" else 0
        for start, which in zip(p.starts.numpy(), p.which.tolist(), strict=True):
            watch = _Watch(p.x[which].numpy(), p.y[which].numpy(), patience, few)
            tolerances = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
            with suppress(_Stopped):
                least_squares(
                    watch.residuals,
                    start,
                    watch.jacobian,
                    method=method,
                    max_nfev=_OWN_PATIENCE,
                    **tolerances,
                )
            ends.append(watch.theta)
            converged.append(watch.best <= watch.goal)
        return Ends(torch.as_tensor(np.stack(ends)), torch.tensor(converged))

    return solve


def by_optimistix() -> Solver | None:
    """All starts at once, compiled; None if it is not installed."""
    if importlib.util.find_spec("optimistix") is None:
        return None
    import jax  # noqa: PLC0415 (optional: adds a row)
    import optimistix  # noqa: PLC0415

    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy

    def residuals(theta: Any, args: Any) -> Any:
        x, y = args
        m = theta.shape[0] // (x.shape[1] + 1)
        return jnp.tanh(x @ theta[:-m].reshape(m, -1).T) @ theta[-m:] - y

    method = optimistix.LevenbergMarquardt(rtol=1e-10, atol=1e-12)
    steps = DAMPING["fast"].iterations

    def one(theta: Any, x: Any, y: Any) -> Any:
        found = optimistix.least_squares(
            residuals, method, theta, (x, y), max_steps=steps, throw=False
        )
        r = residuals(found.value, (x, y))
        return found.value, r @ r <= TOL * (y @ y)

    many = jax.jit(jax.vmap(one))

    def solve(p: Problems) -> Ends:
        x, y = p.x[p.which].numpy(), p.y[p.which, :, 0].numpy()
        theta, converged = many(p.starts.numpy(), x, y)
        return Ends(torch.tensor(np.asarray(theta)), torch.tensor(np.asarray(converged)))

    return solve


def solvers() -> dict[str, Solver]:
    """All contenders that this installation has."""
    rule = DAMPING["fast"]
    found: dict[str, Solver | None] = {
        NATIVE: by_llr("fast") if _ops.NATIVE else None,
        NATIVE_SLOW: by_llr("slow") if _ops.NATIVE else None,
        BATCHED: by_torch("fast"),
        BATCHED_SLOW: by_torch("slow"),
        TRF: by_scipy("trf", rule),
        TRF_OWN: by_scipy("trf", None),
        MINPACK: by_scipy("lm", rule),
        OPTIMISTIX: by_optimistix(),
    }
    return {name: solver for name, solver in found.items() if solver is not None}


def share_of(name: str, problems: Problems) -> Problems:
    """The starts that a contender gets."""
    return problems.first(problems.case.few) if name in SLOW_ONES else problems


class Shares(NamedTuple):
    """Of starts."""

    fitted: float
    recovered: float


def judge(name: str, problems: Problems, ends: Ends) -> Shares:
    """How many starts fit their data, and how many are the target at fresh points, too.

    Raises:
        SystemExit: it says of a start that it has converged, and that is not so.
    """
    outputs = problems.functions.outputs

    def errors(x: Tensor, y: Tensor) -> Tensor:
        r = outputs(ends.theta, x[problems.which]) - y[problems.which]
        return r.square().sum((1, 2)) / y.square().sum((1, 2))[problems.which]

    on_samples = errors(problems.x, problems.y)
    wrong = ends.converged & ~(on_samples <= 1.001 * TOL)  # two roundings of the same sum
    if bool(wrong.any()):
        worst = float(on_samples[wrong].nan_to_num(torch.inf).max())
        raise SystemExit(
            f"{name} says that {int(wrong.sum())} starts have converged; they have relative errors of up "
            f"to {worst:.3g}, expected {TOL:g}"
        )
    fresh = problems.fresh.expand(len(problems.x), -1, -1)
    recovered = ends.converged & (errors(fresh, problems.values) < RECOVERED)
    return Shares(float(ends.converged.double().mean()), float(recovered.double().mean()))
