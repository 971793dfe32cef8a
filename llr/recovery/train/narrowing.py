"""From a wide trained network to a narrow one that fits: merge neurons, then run Levenberg-Marquardt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from llr.embedding.numbers import model_as_numbers, model_from_numbers
from llr.inputs.accept import a_module, needed, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_sequence, real
from llr.models import TwoLayer
from llr.recovery.damping import Damping
from llr.recovery.lm import levenberg_marquardt
from llr.recovery.train.condensation import merge
from llr.results import Record
from llr.results.html import Verdict

ANGLES = (0.05, 0.1, 0.2, 0.3, 0.5)
"""The angles within which neurons are merged; no single angle is best for all networks."""


@dataclass(frozen=True, eq=False, repr=False)
class Narrow(Record):
    """The narrowest network that fits, or the one that came closest.

    Attributes:
        model: the network, in float64.
        relative: its sum of squared residuals divided by the sum of squares of the targets.
        converged: whether `relative` is at most the tolerance.
    """

    model: TwoLayer
    relative: float
    converged: bool

    _order = ("0 <= relative",)
    _also = ("width",)

    @property
    def width(self) -> int:
        """The number of hidden neurons."""
        return len(cast(nn.Linear, self.model[0]).weight)

    def __str__(self) -> str:
        """One line: the width and its error."""
        verdict = "fits" if self.converged else "does not fit"
        return f"width {self.width} {verdict}: relative squared error {self.relative:.3g}"

    def _verdict(self) -> Verdict:
        return ("fits", "good") if self.converged else ("does not fit", "bad")

    def _written(self, name: str, hint: Any, spectrum: bool) -> Any:
        return (
            model_as_numbers(self.model)
            if name == "model"
            else super()._written(name, hint, spectrum)
        )

    @classmethod
    def _read(cls, name: str, hint: Any, content: Mapping[str, Any], where: str) -> Any:
        if name != "model":
            return super()._read(name, hint, content, where)
        model = model_from_numbers(content[name], where)
        if not isinstance(model, TwoLayer):
            raise ValueError(f"{where} is a {type(model).__name__}; expected a TwoLayer")
        return model


@takes(model=a_module, theta=needed, x=valued, y=valued, angles=a_sequence, tol=real)
@outside_inference_mode
def narrow(
    model: nn.Module,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    angles: Sequence[float] = ANGLES,
    widest: int | None = None,
    damping: str | Damping = "slow",
    tol: float = 1e-20,
) -> Narrow:
    """The narrowest network that fits the samples among those that start from merged neurons.

    The neurons of a condensed wide network have the directions of the target's neurons, but its own fit of
    the samples is one of many. For widths 1, 2, ... its heaviest clusters, each merged into one neuron, are
    the start of Levenberg-Marquardt; the first width with a fit is the result. If it has fewer parameters
    than y has numbers, the fit is almost surely the target function itself (docs/recovery.md).

    Args:
        model: the two-layer network that was trained, as for :func:`merge`.
        theta: (P,), its parameters, or (S, P), those of several members; each member gives starts.
        x: (n, d) samples, float64.
        y: (n, q) targets, float64.
        angles: see :func:`merge`; each angle gives a start.
        widest: the last width to try. Default: the largest with fewer parameters than y has numbers, at
            least 1.
        damping: as for :func:`llr.recovery.levenberg_marquardt`.
        tol: a network fits if its relative error is at most this.

    Returns:
        A `Narrow`; one that has not converged if no width fits.

    Raises:
        ValueError: arguments that :func:`merge` or :func:`llr.recovery.levenberg_marquardt` refuses, no
            angles, a width that is not positive.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.recovery.train import Adam, initial, narrow, train
        >>> g = torch.Generator().manual_seed(0)
        >>> wide, x = TwoLayer(2, 20, bias=False), torch.randn(6, 2, dtype=torch.float64, generator=g)
        >>> y = torch.tanh(x @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64))
        >>> annealed = Adam(0.01, weight_decay=0.01, decay_schedule="linear")
        >>> found = train(wide, initial(wide, 1, scale=1e-3, generator=g), x, y, method=annealed, steps=500)
        >>> fit = narrow(wide, found.theta, x, y)
        >>> fit.width, fit.converged
        (1, True)
    """
    if widest is not None and (type(widest) is not int or widest < 1):
        raise ValueError(f"widest is {widest!r}; expected a positive integer")
    if theta.dim() not in (1, 2):
        raise ValueError(f"theta has shape {tuple(theta.shape)}; expected (P,) or (S, P)")
    points = theta[None] if theta.dim() == 1 else theta
    merged = [merge(model, point, angle=angle) for point in points for angle in angles]
    if not merged:
        raise ValueError(
            f"there are {len(points)} parameter points and {len(angles)} angles; expected at least one, "
            "such as 0.1 (radians)"
        )
    best: Narrow | None = None
    for width in range(1, 1 + max(map(_width, merged))):
        starts = [_heaviest(net, width) for net in merged if _width(net) >= width]
        numbers = torch.stack([parameters_to_vector(net.parameters()).detach() for net in starts])
        if best is not None and (
            width > widest if widest is not None else numbers.shape[1] >= y.numel()
        ):
            break
        fits = levenberg_marquardt(starts[0], numbers, x, y, damping=damping, tol=tol)
        closest = int(fits.relative.argmin())
        relative = float(fits.relative[closest])
        if best is None or relative < best.relative:
            converged = bool(fits.converged[closest])
            best = Narrow(cast(TwoLayer, fits.model(closest)), relative, converged)
        if best.converged:
            break
    assert best is not None  # merging leaves at least one neuron
    return best


def _width(net: TwoLayer) -> int:
    return len(cast(nn.Linear, net[0]).weight)


def _heaviest(net: TwoLayer, width: int) -> TwoLayer:
    """The first neurons of a merged network, which merging sorts by mass."""
    hidden, last = cast(nn.Linear, net[0]), cast(nn.Linear, net[2])
    bias = None if hidden.bias is None else hidden.bias[:width].detach()
    weight, outgoing = hidden.weight[:width].detach(), last.weight[:, :width].detach()
    c = None if last.bias is None else last.bias.detach()
    return TwoLayer.of(weight, bias, outgoing.mT, c, activation=net[1]).double()
