"""Whether a model is at a critical point of its loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from llr.inputs.accept import a_model, takes, valued
from llr.inputs.evaluation.forward_errors import explained
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model
from llr.inputs.roles import real
from llr.landscape.surface import Linearization, Loss, Surface, pullback
from llr.results import Record
from llr.results.html import Verdict

# A gradient counts as zero up to so many times the effect of rounding.
_MARGIN = 100.0
_POWER_STEPS = 30


@dataclass(frozen=True, repr=False)
class Criticality(Record):
    """The gradient of a loss and the numbers to compare it with; true if the point is critical.

    With J the Jacobian (n q, P) of the outputs and e the derivative of the loss with respect to the outputs,
    the gradient is J'e, and at most sigma_1(J) ||e||.

    Attributes:
        loss: the value of the loss.
        gradient_norm: ||J'e||, absolute.
        residual: ||e||; for "mse" e is (outputs - y) / n.
        sigma: an estimate of sigma_1(J), at most a few percent too small.
        relative: gradient_norm / (sigma_1 ||e||), between 0 and about 1; 0 where e = 0.
        rounding: the gradient that rounding alone can cause: rounding of the parameters to the precision in
            which they are stored, and of the sums.
        critical: whether gradient_norm is at most a hundred times `rounding`, or, with a given `rtol`,
            `relative` at most `rtol`.
    """

    loss: float
    gradient_norm: float
    residual: float
    sigma: float
    relative: float
    rounding: float
    critical: bool

    _order = (
        "0 <= gradient_norm",
        "0 <= residual",
        "0 <= sigma",
        "0 <= relative",
        "0 <= rounding",
    )

    def __bool__(self) -> bool:
        return self.critical

    def __str__(self) -> str:
        """One line: the verdict and its numbers."""
        return (
            f"{'critical' if self.critical else 'not critical'}: loss {self.loss:.6g}, gradient "
            f"{self.gradient_norm:.3g} (relative {self.relative:.2g}; rounding alone {self.rounding:.2g})"
        )

    def _rules(self) -> Iterator[tuple[bool, str]]:
        most = self.sigma * self.residual
        relative = self.gradient_norm / most if most > 0 else 0.0
        yield math.isclose(self.relative, relative), f"relative to be {relative}"

    def _verdict(self) -> Verdict:
        return ("critical", "good") if self.critical else ("not critical", "bad")


@takes(model=a_model, x=valued, y=valued, rtol=real)
@outside_inference_mode
def criticality(
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Loss = "mse",
    *,
    params: Selection = None,
    rtol: float | None = None,
) -> Criticality:
    """Whether the model is at a critical point of its loss on these samples, to rounding.

    The gradient is compared with the largest one that residuals of this size can have, and with the change
    that rounding the parameters causes. The arithmetic is in float64 for every dtype of the model.

    Args:
        model: a module, or a callable f(params, x).
        x: (n, ...) samples.
        y: targets: of the outputs' shape for "mse"; classes (n,) or probabilities for "cross_entropy".
        loss: "mse", the sum of squared residuals over 2n; "cross_entropy", the mean over the samples; or a
            function of the outputs and y to a single number.
        params: which parameters may move, as for :func:`llr.jacobian`.
        rtol: count the point as critical if ``relative`` is at most this; default: by rounding.

    Returns:
        A `Criticality`, true or false.

    Raises:
        TypeError: x or y is no tensor, or their dtypes do not fit the model's.
        ValueError: shapes that do not fit, an unknown loss, `rtol` that is no number >= 0, NaN or infinity;
            models that :func:`llr.jacobian` refuses.

    Source: docs/theory.md, Theorem 7.1 (the gradient is J'e).

    Example:
        >>> import torch
        >>> from llr.landscape import criticality
        >>> model, x = torch.nn.Linear(1, 1).double(), torch.tensor([[1.0], [2.0]]).double()
        >>> bool(criticality(model, x, model(x).detach())), bool(criticality(model, x, x + 9))
        (True, False)
    """
    if rtol is not None and not 0 <= rtol < math.inf:
        raise ValueError(f"rtol is {rtol!r}; expected a finite number >= 0, or None")
    surface = Surface.of(model, x, y, loss, params)
    linear = surface.linearized()
    with explained(linear.outputs, "derivatives of the loss", "outputs"):
        error = grad(surface.of_outputs)(linear.outputs)
    gradient, hessian = pullback(grad(surface), surface.theta)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, surface.theta.shape, generator=generator) * 2 - 1
    moved = hessian(surface.theta * signs.to(surface.theta))  # by rounding every parameter
    sigma = _largest_singular_value(linear, generator)
    norm, residual = float(gradient.norm()), float(error.norm())
    most = sigma * residual
    rounding = surface.eps * (most + float(moved.norm()))
    relative = norm / most if most > 0 else 0.0
    critical = norm <= _MARGIN * rounding if rtol is None else relative <= rtol
    value = float(surface.of_outputs(linear.outputs))
    return Criticality(value, norm, residual, sigma, relative, rounding, critical)


def _largest_singular_value(linear: Linearization, generator: torch.Generator) -> float:
    """sigma_1 of the Jacobian by the power method, without forming the Jacobian."""
    u = torch.randn(linear.outputs.shape, generator=generator, dtype=torch.float64)
    u, sigma = u.to(linear.outputs), 0.0
    for _ in range(_POWER_STEPS):
        if (size := float(u.norm())) == 0:
            return 0.0
        v = linear.pull(u / size)
        sigma = float(v.norm())
        u = linear.push(v)
    return sigma
