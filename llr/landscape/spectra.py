"""The Hessian of a loss and its eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.func import grad

from llr.inputs.accept import a_model, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model
from llr.inputs.roles import a_progress, maybe, real, whole
from llr.jacobians.jacobian import Progress, evaluate
from llr.landscape.surface import Loss, Surface, hessian_of, pullback
from llr.linalg.spectrum import singular_values, threshold
from llr.results import Record
from llr.results.html import Spectrum, Verdict
from llr.results.phrases import counted
from llr.results.progress import following, step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["full", "gauss-newton"]
Method = Literal["auto", "dense", "lanczos"]

_SMALL = 1000  # up to so many parameters, all eigenvalues take no longer than a few
_FEW = 10
_SPARE = 60  # Lanczos vectors in addition to twice the eigenvalues; clusters near zero need them
_PRECISION = 1e-9  # tolerance of Lanczos, relative to twice the largest eigenvalue


@dataclass(frozen=True, eq=False, repr=False)
class HessianSpectrum(Record):
    """Eigenvalues of a Hessian.

    Attributes:
        kind: "full", or "gauss-newton", J' L'' J: the part that does not depend on residuals.
        eigenvalues: ascending, float64; all P of them, or those at both ends.
        tolerance: eigenvalues with at most this absolute value count as zero.
        index: how many are below -tolerance.
        nullity: how many are within the tolerance; None if not all eigenvalues are known.
        complete: whether `index` is final: all eigenvalues are known, or the smallest is not negative
            (Lanczos may miss copies of a multiple eigenvalue).
        gap: the smallest absolute value that counts divided by the largest that does not; the tolerance
            replaces either if there is none. With a gap near 1, the nullity depends on the tolerance.
        n_params: P.
        method: "dense" or "lanczos".
    """

    kind: Kind
    eigenvalues: Tensor
    tolerance: float
    index: int
    nullity: int | None
    complete: bool
    gap: float
    n_params: int
    method: Method

    _order = (
        "0 <= tolerance",
        "index <= n_params",
        "nullity <= n_params",
    )
    _long = ("eigenvalues",)

    def __str__(self) -> str:
        """One line: index, nullity, ends of the spectrum."""
        index = f"index {self.index}" if self.complete else f"index at least {self.index}"
        nullity = "" if self.nullity is None else f", nullity {self.nullity}"
        ends = "eigenvalues not kept"
        if self.kept("eigenvalues"):
            low, high = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
            ends = f"eigenvalues from {low:.4g} to {high:.4g}"
        gap = "the rest exactly 0" if math.isinf(self.gap) else f"gap {self.gap:.2g}"
        return (
            f"{self.kind} Hessian, {counted(self.n_params, 'parameter')}: {index}{nullity}, {ends} "
            f"(zero up to {self.tolerance:.1e}, {gap}; {self.method})"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the eigenvalues, in powers of ten on both sides of zero; return the axes.

        Args:
            ax: where to draw; None makes a new figure. Needs matplotlib (``pip install 'llr[plot]'``).

        Raises:
            ValueError: the eigenvalues were not kept.
        """
        self._require("eigenvalues")
        from llr.landscape import figure  # noqa: PLC0415 - matplotlib is optional

        return figure.hessian(self, ax=ax)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        whole = self.nullity is not None
        yield self.complete == (whole or self.index == 0), "complete to fit index and nullity"
        if not self.kept("eigenvalues"):
            return
        values = self.eigenvalues
        yield not bool(values.isnan().any()), "no NaN in eigenvalues"
        yield bool((values.diff() >= 0).all()), "ascending eigenvalues"
        yield whole == (len(values) == self.n_params), "a nullity if all eigenvalues are known"
        index = int((values < -self.tolerance).sum())
        yield (
            self.index == index,
            f"index to be the number of eigenvalues below -tolerance, {index}",
        )
        zero = int((values.abs() <= self.tolerance).sum())
        yield not whole or self.nullity == zero, f"nullity to be that of the eigenvalues, {zero}"

    def _check(self, content: Mapping[str, Any]) -> None:
        if self.eigenvalues.dim() != 1:
            raise ValueError(
                f"'eigenvalues' of HessianSpectrum has shape {tuple(self.eigenvalues.shape)}; expected one "
                "dimension"
            )
        super()._check(content)

    def _verdict(self) -> Verdict | None:
        if self.index:
            return f"{self.index} negative", "bad"
        return ("no negative eigenvalue", "good") if self.complete else None

    def _pictures(self) -> Sequence[Spectrum]:
        if not self.kept("eigenvalues"):
            return ()
        sizes = self.eigenvalues.abs().sort(descending=True).values.tolist()
        return (Spectrum(sizes, self.tolerance, "zero up to", "sizes of eigenvalues"),)


@takes(model=a_model, x=valued, y=valued, k=maybe(whole), rtol=real, progress=a_progress)
@outside_inference_mode
def hessian_spectrum(
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Loss = "mse",
    *,
    kind: Kind = "full",
    k: int | None = None,
    method: Method = "auto",
    rtol: float | None = None,
    params: Selection = None,
    progress: Progress | bool | None = None,
) -> HessianSpectrum:
    """The eigenvalues of the Hessian of a loss, with index and nullity.

    At a critical point a negative eigenvalue makes a strict saddle. At a minimum of zero loss the Hessian is
    J'J/n, so that the nullity is P minus the rank of J.

    Args:
        model: a module, or a callable f(params, x).
        x: (n, ...) samples.
        y: targets, as for :func:`llr.landscape.criticality`.
        loss: "mse", "cross_entropy" or a function, as for :func:`llr.landscape.criticality`.
        kind: "full", or "gauss-newton" for J' L'' J. If L'' is positive semidefinite, the eigenvalues of
            J' L'' J are computed as squares of singular values, so that small ones are accurate: the nullity
            is as reliable as a numerical rank of J.
        k: how many eigenvalues at each end to compute; default all, or 10 if the matrix is too large.
        method: "dense" (all eigenvalues), "lanczos" (`k` at each end, by products of the Hessian with
            vectors; the matrix is not formed), or "auto": dense if three P x P matrices are within
            :func:`llr.memory_budget`, unless only `k` are wanted of more than 1000.
        rtol: tolerance relative to the largest absolute value of an eigenvalue; default 10 eps P for "dense"
            and 4e-9 for "lanczos"; for squares of singular values the square of the default of
            :func:`llr.tolerance`.
        params: which parameters may move, as for :func:`llr.jacobian`.
        progress: False for none; or a function, called as ``progress(done, total)`` with columns of the
            Hessian, with samples of J for J' L'' J, or for "lanczos" with products so far and None. Default:
            after two seconds a line on a terminal or in a notebook. "dense" then computes all eigenvalues in
            one call, which shows nothing.

    Returns:
        A `HessianSpectrum`.

    Raises:
        TypeError: x or y is no tensor, or their dtypes do not fit the model's.
        ValueError: an unknown kind or method, `k` out of range, a matrix beyond the memory budget; arguments
            that :func:`llr.landscape.criticality` refuses.
        scipy.sparse.linalg.ArpackNoConvergence: too few Lanczos steps for eigenvalues close together.

    Source: docs/theory.md, 9.1 and 9.2; Lehoucq, Sorensen, Yang, "ARPACK Users' Guide" (1998).

    Example:
        >>> import torch
        >>> from llr.landscape import hessian_spectrum
        >>> model, x = torch.nn.Linear(3, 1, bias=False).double(), torch.eye(3).double()[:2]
        >>> hessian_spectrum(model, x, model(x).detach()).nullity
        1
    """
    if kind not in ("full", "gauss-newton"):
        raise ValueError(f"kind is {kind!r}; expected 'full' or 'gauss-newton'")
    if method not in ("auto", "dense", "lanczos"):
        raise ValueError(f"method is {method!r}; expected 'auto', 'dense' or 'lanczos'")
    if rtol is not None and not 0 <= rtol < math.inf:
        raise ValueError(f"rtol is {rtol!r}; expected a finite number >= 0, or None")
    with following(progress, tell=True):
        return _spectrum(
            model, x, Surface.of(model, x, y, loss, params), kind, k, method, rtol, params
        )


def _spectrum(
    model: Model,
    x: Tensor,
    surface: Surface,
    kind: Kind,
    k: int | None,
    method: Method,
    rtol: float | None,
    params: Selection,
) -> HessianSpectrum:
    P = len(surface.theta)
    if k is not None and not 1 <= k <= P:
        raise ValueError(f"k is {k!r}; expected an integer from 1 to the number of parameters, {P}")
    if method == "auto":
        few = k is not None and P > _SMALL
        method = "lanczos" if few or not fits(_hessian_bytes(P), surface.theta.device) else "dense"
    if method == "lanczos":
        k = max(1, min(_FEW, (P - 1) // 2)) if k is None else k
        if 2 * k >= P:
            raise ValueError(
                f"k is {k}, but Lanczos finds fewer than half of the {P} eigenvalues at each end; take "
                "method='dense'"
            )
        return _judged(kind, _lanczos(surface, kind, k), rtol, P, "lanczos")
    check_affordable(surface)
    if kind == "gauss-newton":
        return _gauss_newton_spectrum(model, x, params, surface, rtol)
    return spectrum_of(hessian_of(surface, surface.theta), rtol)


def check_affordable(surface: Surface) -> None:
    """Raise ValueError if the Hessian and the memory for its eigenvalues exceed the memory budget."""
    P, device = len(surface.theta), surface.theta.device
    needed = _hessian_bytes(P)
    if not fits(needed, device):
        raise ValueError(
            f"the Hessian of {P} parameters takes {format_bytes(needed)}, more than the memory budget of "
            f"{format_bytes(memory_budget(device))}; take hessian_spectrum(method='lanczos'), or raise the "
            "budget with llr.set_memory_budget(bytes)"
        )


def _hessian_bytes(P: int) -> int:
    return 3 * 8 * P * P


def spectrum_of(H: Tensor, rtol: float | None = None, kind: Kind = "full") -> HessianSpectrum:
    """All eigenvalues of a symmetric matrix."""
    return _judged(kind, torch.linalg.eigvalsh(H.detach()), rtol, len(H), "dense")


def _judged(
    kind: Kind, eigenvalues: Tensor, rtol: float | None, P: int, method: Method
) -> HessianSpectrum:
    """Eigenvalues, ascending, with a tolerance that covers rounding."""
    if rtol is None:
        rtol = 10 * torch.finfo(torch.float64).eps * P if method == "dense" else 4 * _PRECISION
    return _counted(kind, eigenvalues, rtol * float(eigenvalues.abs().max()), P, method)


def _counted(
    kind: Kind, eigenvalues: Tensor, tol: float, P: int, method: Method
) -> HessianSpectrum:
    sizes = eigenvalues.abs()
    zero = sizes <= tol
    above = float(sizes[~zero].min()) if not bool(zero.all()) else tol
    below = float(sizes[zero].max()) if bool(zero.any()) else tol
    index = int((eigenvalues < -tol).sum())
    whole = len(eigenvalues) == P
    return HessianSpectrum(
        kind=kind,
        eigenvalues=eigenvalues.cpu(),
        tolerance=tol,
        index=index,
        nullity=int(zero.sum()) if whole else None,
        complete=whole or index == 0,
        gap=above / below if below > 0 else math.inf,
        n_params=P,
        method=method,
    )


def _gauss_newton_spectrum(
    model: Model, x: Tensor, params: Selection, surface: Surface, rtol: float | None
) -> HessianSpectrum:
    P = len(surface.theta)
    J = evaluate(model, x, params=params, dtype=torch.float64)[0].reshape(-1, P)
    curvatures, axes = _output_curvature(surface)
    rows = J if axes is None else axes.mT @ J
    if bool((curvatures < 0).any()):
        return spectrum_of(rows.mT @ (curvatures[:, None] * rows), rtol, "gauss-newton")
    # The eigenvalues of (S J)'(S J) are squares of singular values of S J. Forming the product would lose
    # eigenvalues below eps times the largest.
    values = singular_values(curvatures.sqrt()[:, None] * rows)
    tol = float(threshold(values, min(rows.shape))) ** 2
    spectrum = torch.cat((values.new_zeros(P - len(values)), values.flip(0) ** 2))
    tol = tol if rtol is None else rtol * float(spectrum[-1])
    return _counted("gauss-newton", spectrum, tol, P, "dense")


def _output_curvature(surface: Surface) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues and eigenvectors (None for the unit vectors) of the loss's Hessian by the outputs."""
    outputs = surface.evaluated(surface.theta)
    if surface.loss == "mse":
        return torch.full_like(outputs.reshape(-1), 1 / len(outputs)), None
    flat = hessian_of(lambda o: surface.of_outputs(o.view(outputs.shape)), outputs.reshape(-1))
    values, vectors = torch.linalg.eigh(flat)
    # Eigenvalues of a convex loss are negative by rounding only.
    slack = 10 * torch.finfo(torch.float64).eps * len(values) * float(values.abs().max())
    return torch.where(values.abs() <= slack, 0.0, values), vectors


def _lanczos(surface: Surface, kind: Kind, k: int) -> Tensor:
    """The k smallest and the k largest eigenvalues, ascending."""
    theta, P = surface.theta, len(surface.theta)
    if kind == "full":
        _, product = pullback(grad(surface), theta)
    else:
        linear = surface.linearized()
        _, curve = pullback(grad(surface.of_outputs), linear.outputs)

        def product(v: Tensor) -> Tensor:
            return linear.pull(curve(linear.push(v)))

    products = 0

    def times(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        step(f"Lanczos: {products:,} products", products)
        return product(torch.from_numpy(v.reshape(-1)).to(theta)).cpu().numpy()

    start = torch.randn(P, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    if not times(start).any():
        return torch.zeros(2 * k, dtype=torch.float64)

    def ends(
        times: Callable[[np.ndarray], np.ndarray], k: int, which: str, tol: float
    ) -> np.ndarray:
        operator = LinearOperator((P, P), matvec=times, dtype=np.float64)
        found = eigsh(
            operator,
            k,
            which=which,
            v0=start,
            ncv=min(P, 2 * k + _SPARE),
            tol=tol,
            return_eigenvectors=False,
        )
        return np.sort(found)

    # Lanczos measures convergence relative to each eigenvalue, and many are 0. A shift makes all large.
    shift = 2 * abs(ends(times, 1, "LM", 0.1)[0])
    shifted = ends(lambda v: times(v) + shift * v.reshape(-1), 2 * k, "BE", _PRECISION)
    return torch.from_numpy(shifted - shift)
