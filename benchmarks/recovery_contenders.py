"""The contenders of recovery.py: llr, and least squares in torch operations, in scipy and in optimistix.

All minimise the same sums of squares of two-layer tanh networks from the same starts. If possible, all stop
by the same rule: a start has converged, or it is given up after a number of trial steps, or after a number of
consecutive steps that did not lower the sum by a given fraction.
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
"""A start has converged if its sum of squared residuals, relative to that of the targets, is at most this."""

FRESH = 256  # new points at which functions are compared
RECOVERED = 1e-8  # largest relative squared error there
_MOST_EVALUATIONS = 1000  # for scipy, if it stops by its own tolerances

NATIVE, NATIVE_SLOW = "llr, fast", "llr, slow"
BATCHED, BATCHED_SLOW = "torch ops, fast", "torch ops, slow"
TRF, TRF_OWN, MINPACK, OPTIMISTIX = "scipy trf", "scipy trf, own stop", "scipy lm", "optimistix"
SLOW_ONES = (TRF, TRF_OWN, MINPACK)
"""Contenders that get only `Case.few` starts of each target."""


@dataclass(frozen=True)
class Case:
    """Two-layer targets of k neurons, fitted by as many or more neurons."""

    d: int
    k: int
    width: int
    samples: int
    targets: int = 32
    starts: int = 64  # for each target
    few: int = 2  # starts for contenders that solve one problem after the other

    @property
    def parameters(self) -> int:
        return self.width * (self.d + 1)

    def quick(self) -> Case:
        return Case(self.d, self.k, self.width, self.samples, targets=2, starts=8, few=1)


CASES = {"narrow": Case(5, 3, 3, 24), "wide": Case(3, 3, 10, 30)}


@dataclass(frozen=True)
class Problems:
    """The tensors of a case: a data set for each target, and all starts in one tensor."""

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
    """The results of a contender for all its starts."""

    theta: Tensor
    converged: Tensor
    """As the contender reports it."""


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
    """Raised through scipy when a start ends by our rule."""


class _Watch:
    """A two-layer network for scipy. It applies our stopping rule to evaluations, which are trial steps."""

    def __init__(self, x: Any, y: Any, rule: Damping | None, missing: int) -> None:
        self.x, self.y, self.rule = x, y[:, 0], rule
        self.missing = missing  # zeros to append: MINPACK needs as many residuals as parameters
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
        progress = loss <= self.best * (1 - (self.rule.progress if self.rule else 0.0))
        self.stalled = 0 if progress else self.stalled + 1
        if loss < self.best:
            self.theta, self.best = theta.copy(), loss
        self.count += 1
        stopped = self.rule is not None and (
            self.stalled >= self.rule.stall or self.count > self.rule.iterations
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


def by_scipy(method: str, rule: Damping | None) -> Solver:
    """One problem after the other; without a rule it stops by scipy's smallest tolerances."""

    def solve(p: Problems) -> Ends:
        ends, converged = [], []
        few = max(0, p.case.parameters - p.case.samples) if method == "lm" else 0
        for start, which in zip(p.starts.numpy(), p.which.tolist(), strict=True):
            watch = _Watch(p.x[which].numpy(), p.y[which].numpy(), rule, few)
            tolerances = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
            with suppress(_Stopped):
                least_squares(
                    watch.residuals,
                    start,
                    watch.jacobian,
                    method=method,
                    max_nfev=_MOST_EVALUATIONS,
                    **tolerances,
                )
            ends.append(watch.theta)
            converged.append(watch.best <= watch.goal)
        return Ends(torch.as_tensor(np.stack(ends)), torch.tensor(converged))

    return solve


def by_optimistix() -> Solver | None:
    """All starts at once, compiled; None if optimistix is not installed."""
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
    """Fractions of the starts."""

    fitted: float
    recovered: float


def judge(name: str, problems: Problems, ends: Ends) -> Shares:
    """The fraction of starts that fit their data, and of those that equal the target at new points too.

    Raises:
        SystemExit: a contender reports a start as converged that has not converged.
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
            f"{name} reports {int(wrong.sum())} starts as converged that have relative errors of up to "
            f"{worst:.3g}; expected at most {TOL:g}"
        )
    fresh = problems.fresh.expand(len(problems.x), -1, -1)
    recovered = ends.converged & (errors(fresh, problems.values) < RECOVERED)
    return Shares(float(ends.converged.double().mean()), float(recovered.double().mean()))
