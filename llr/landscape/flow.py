"""How fast gradient flow reduces residuals: the rate that the theory predicts, and the flow itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.func import grad

from llr.inputs.accept import a_model, takes, valued
from llr.inputs.evaluation.forward_errors import derivatives
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model
from llr.inputs.roles import a_progress, a_sequence, check_int, number, real
from llr.jacobians.jacobian import Progress, evaluate
from llr.landscape.spectra import check_affordable
from llr.landscape.surface import Loss, Surface, hessian_of
from llr.linalg.error_bound import estimated_error
from llr.linalg.spectrum import CLEAR_GAP, counted, singular_values
from llr.results import Record, phrases
from llr.results.html import Verdict
from llr.results.progress import following, silent, step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_POINTS = 3  # from which a slope is estimated
_NOISE = 1e3  # residuals below so many integration errors count as noise


@dataclass(frozen=True, repr=False)
class Rate(Record):
    """How fast gradient flow contracts small residuals.

    Attributes:
        rate: the smallest nonzero eigenvalue of J J'/n: in the long run residuals fall like exp(-rate t),
            and the loss like exp(-2 rate t).
        fastest: the largest eigenvalue; ``fastest / rate`` is the stiffness of the flow.
        rank: how many eigenvalues are not zero: the numerical rank of J.
        ambiguous: whether the rank, and with it the rate, depends on a tolerance.
        n_samples: n.
        n_observations: samples times outputs.
        n_params: P.
    """

    rate: float
    fastest: float
    rank: int
    ambiguous: bool
    n_samples: int
    n_observations: int
    n_params: int

    _order = (
        "0 <= rate <= fastest",
        "rank <= n_observations",
        "rank <= n_params",
    )

    def __float__(self) -> float:
        return self.rate

    def __str__(self) -> str:
        """One line: the rate, the stiffness and the rank."""
        doubt = "; AMBIGUOUS: some singular values are near the tolerance" if self.ambiguous else ""
        return (
            f"rate {self.rate:.4g}, fastest {self.fastest:.4g}; rank {self.rank} from "
            f"{phrases.counted(self.n_observations, 'observation')} of "
            f"{phrases.counted(self.n_params, 'parameter')}{doubt}"
        )

    def _rules(self) -> Iterator[tuple[bool, str]]:
        whole = self.n_samples and self.n_observations % self.n_samples == 0
        yield bool(whole), "n_observations to be a multiple of n_samples"

    def _verdict(self) -> Verdict | None:
        return ("ambiguous", "doubt") if self.ambiguous else None


@dataclass(frozen=True, eq=False, repr=False)
class Flow(Record):
    """A solution of d theta / dt = - grad loss.

    Attributes:
        times: (T,).
        losses: (T,).
        parameters: (T, P) float64, columns as in :func:`llr.layout`.
        decay: for "mse", how fast the root of the loss falls: the slope of its logarithm over the later half
            of the times at which it exceeds the errors of integration; None with fewer than three such times.
        evaluations: how many gradients were computed.
    """

    times: Tensor
    losses: Tensor
    parameters: Tensor
    decay: float | None
    evaluations: int

    _long = ("parameters",)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield bool((self.times.diff() > 0).all()), "increasing times"
        yield len(self.parameters) == len(self.times), "parameters at every time"

    def _check(self, content: Mapping[str, Any]) -> None:
        if self.times.dim() != 1 or not len(self.times) or self.losses.shape != self.times.shape:
            raise ValueError("'times' and 'losses' of Flow: expected as many of both, not 0")
        super()._check(content)

    def __str__(self) -> str:
        """One line: the first and the last loss, and the decay."""
        decay = "" if self.decay is None else f", residuals falling like exp(-{self.decay:.4g} t)"
        return (
            f"loss {float(self.losses[0]):.4g} to {float(self.losses[-1]):.4g} from time "
            f"{float(self.times[0]):g} to {float(self.times[-1]):g}{decay}"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss against the time; return the axes.

        Args:
            ax: where to draw; None makes a new figure. Needs matplotlib (``pip install 'llr[plot]'``).
        """
        from llr.landscape import figure  # noqa: PLC0415 - matplotlib is optional

        return figure.flow(self, ax=ax)


@takes(model=a_model, x=valued, rtol=real)
@outside_inference_mode
def rate(model: Model, x: Tensor, *, params: Selection = None, rtol: float | None = None) -> Rate:
    """How fast gradient flow on ``1/(2n) sum r^2`` returns to the model's function on these samples.

    Near parameters of zero loss the residuals follow dr/dt = -(J J'/n) r. If J keeps its rank nearby, they
    decay like exp(-rate t). It does so with rank n q or P, or at generic points of a linearly stable branch,
    see :func:`llr.landscape.branches`. Otherwise some residuals may fall more slowly.

    Args:
        model: a module, or a callable f(params, x), at the minimum: the targets are its own outputs.
        x: (n, ...) samples.
        params: which parameters may move, as for :func:`llr.jacobian`.
        rtol: which singular values of J count as zero, relative to the largest; default: those below an
            estimate of their error.

    Returns:
        A `Rate`, in inverse units of time, with learning rate 1.

    Raises:
        ValueError: no samples, J = 0, or arguments that :func:`llr.jacobian` refuses.

    Source: docs/theory.md, 9.3; Zhang et al., "Structure and Gradient Dynamics Near Global Minima of
    Two-layer Neural Networks" (2023).

    Example:
        >>> import torch
        >>> from llr.landscape import rate
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> float(rate(model, torch.tensor([[3.0, 0.0], [0.0, 1.0]])))
        0.5
    """
    J = evaluate(model, x, params=params, dtype=torch.float64)[0]
    if J.dim() != 3 or len(J) == 0:
        raise ValueError(
            f"the Jacobian has shape {tuple(J.shape)}; expected (n, q, P) of one parameter point and at "
            "least one sample"
        )
    n, q, P = J.shape
    values = singular_values(J.reshape(n * q, P), "the Jacobian")
    error = estimated_error(values, min(n * q, P), P, values.dtype)
    found = counted(values, min(n * q, P), error=error, lower_from="estimate", rtol=rtol)
    rank = int(found.rank)
    if rank == 0:
        raise ValueError("the Jacobian on these samples is zero; gradient flow changes nothing")
    eigenvalues = values**2 / n
    return Rate(
        rate=float(eigenvalues[rank - 1]),
        fastest=float(eigenvalues[0]),
        rank=rank,
        ambiguous=bool(found.ambiguous) and float(found.gap) < CLEAR_GAP,
        n_samples=n,
        n_observations=n * q,
        n_params=P,
    )


@takes(
    model=a_model,
    x=valued,
    y=valued,
    times=a_sequence,
    rtol=number,
    atol=number,
    progress=a_progress,
)
@outside_inference_mode
def flow(
    model: Model,
    x: Tensor,
    y: Tensor,
    times: Sequence[float] | Tensor,
    loss: Loss = "mse",
    *,
    rtol: float = 1e-11,
    atol: float = 1e-13,
    params: Selection = None,
    max_evaluations: int = 10_000,
    progress: Progress | bool | None = None,
) -> Flow:
    """Follow the gradient flow of a loss from the model's parameters, and measure how fast residuals fall.

    Gradient flow is the limit of gradient descent for small learning rates. It is integrated with adaptive
    steps (LSODA, with the Hessian where the flow is stiff). For small networks only: every stiff step factors
    a P x P matrix.

    Args:
        model: a module, or a callable f(params, x); it is not changed.
        x: (n, ...) samples.
        y: targets, as for :func:`llr.landscape.criticality`.
        times: the times to record, increasing and >= 0; the flow starts at time 0.
        loss: "mse", "cross_entropy" or a function, as for :func:`llr.landscape.criticality`.
        rtol: relative error allowed per step.
        atol: absolute error allowed per step.
        params: which parameters move, as for :func:`llr.jacobian`.
        max_evaluations: the largest number of gradients. A flow along a kink of ReLU may need infinitely
            many steps.
        progress: False for none; or a function, called as ``progress(done, total)`` with gradients so far and
            `max_evaluations`. Default: after two seconds a line on a terminal or in a notebook.

    Returns:
        A `Flow`.

    Raises:
        ValueError: times that do not increase from 0 on, tolerances that are not positive, a Hessian beyond
            the memory budget; arguments that :func:`llr.landscape.criticality` refuses.
        RuntimeError: the integration failed (the message gives the reason), or needed more than
            `max_evaluations` gradients.

    Source: docs/theory.md, 9.3; Petzold, "Automatic selection of methods for solving stiff and nonstiff
    systems", SIAM J. Sci. Stat. Comput. 4 (1983).

    Example:
        >>> import torch
        >>> from llr.landscape import flow
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[2.0]]).double()
        >>> round(flow(model, x, 3 * x, [0.0, 1.0, 2.0, 3.0, 4.0]).decay, 3)
        4.0
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; expected a positive number")
    at = np.asarray(times, dtype=np.float64)
    increasing = at.ndim == 1 and len(at) >= 2 and at[0] >= 0 and bool((np.diff(at) > 0).all())
    if not increasing or not math.isfinite(at[-1]):
        raise ValueError(
            f"times is {times!r}; expected at least two increasing finite numbers from 0 on"
        )
    check_int("max_evaluations", max_evaluations, 1)
    surface = Surface.of(model, x, y, loss, params)
    check_affordable(surface)

    def vector(theta: np.ndarray) -> Tensor:
        return torch.from_numpy(theta).to(surface.theta)

    def curvature(_: float, theta: np.ndarray) -> np.ndarray:
        with silent():  # the gradients are counted
            return -hessian_of(surface, vector(theta)).cpu().numpy()

    slope, evaluations = grad(surface), 0

    def down(time: float, theta: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        if evaluations > max_evaluations:
            raise RuntimeError(
                f"gradient flow is at time {time:.3g} after max_evaluations={max_evaluations} gradients. "
                "Raise max_evaluations, or take a larger rtol or earlier times; along a kink, as of ReLU, no "
                "number of gradients may be enough"
            )
        step(
            f"gradient flow at time {time:.4g} of {at[-1]:g}, gradients",
            evaluations,
            max_evaluations,
        )
        with derivatives(surface.theta, "parameters"):
            return cast(np.ndarray, -slope(vector(theta)).cpu().numpy())

    with following(progress, tell=True):
        solution = solve_ivp(
            down,
            (0.0, float(at[-1])),
            surface.theta.cpu().numpy(),
            method="LSODA",
            t_eval=at,
            jac=curvature,
            rtol=rtol,
            atol=atol,
        )
    if not solution.success:
        raise RuntimeError(f"gradient flow could not be integrated: {solution.message}")
    parameters = torch.from_numpy(np.ascontiguousarray(solution.y.T))
    with torch.no_grad():
        values = (surface.evaluated(vector(theta)) for theta in solution.y.T)
        losses = torch.stack([surface.of_outputs(outputs) for outputs in values]).cpu()
        size = float(surface.evaluated(surface.theta).square().mean().sqrt())
    residuals = (2 * losses).sqrt() if loss == "mse" else losses.new_zeros(0)
    return Flow(
        times=torch.from_numpy(at),
        losses=losses,
        parameters=parameters,
        decay=_decay(at, residuals.numpy(), _NOISE * rtol * size),
        evaluations=int(solution.nfev),
    )


def _decay(times: np.ndarray, residuals: np.ndarray, noise: float) -> float | None:
    """The slope of -log residual over the later half of the times at which it is above the noise."""
    usable = int((residuals > noise).sum())
    tail = slice(usable // 2, usable)
    if usable - usable // 2 < _LEAST_POINTS or not bool((residuals[tail] > noise).all()):
        return None
    return float(-np.polyfit(times[tail], np.log(residuals[tail]), 1)[0])
