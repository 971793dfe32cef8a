"""Critical points of wide networks that depend on the sample: new neurons orthogonal to the errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from llr.inputs.accept import a_module, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_progress, a_seed, check_int, number, real
from llr.inputs.tensors import refuse_complex
from llr.landscape import Criticality, HessianSpectrum, criticality, hessian_spectrum
from llr.landscape.critical_targets import critical_targets
from llr.landscape.surface import Loss, Surface
from llr.lifting.chain import Chain, chain_of, check_index, read_chain
from llr.lifting.equations import Equations
from llr.results import Record
from llr.results.html import Spectrum, Table, Verdict
from llr.results.phrases import counted
from llr.results.progress import following

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["strict saddle", "local minimum", "degenerate"]

_SPARE_SAMPLES = 16


@dataclass(frozen=True, eq=False, repr=False)
class LiftedPoint(Record):
    """A wide network that is critical on one sample, by a neuron that is orthogonal to its errors.

    Attributes:
        weight: incoming weights of the new neuron, the last one of its layer; its outgoing weights are 0.
        bias: its bias; None if the layer has none.
        model: the wide network, in float64.
        critical: the gradient on the sample.
        elsewhere: the gradient on another sample, on which the narrow network is also critical.
        spectrum: the spectrum of the wide network's Hessian on the sample.
        coupling: rank of the second derivatives by incoming and outgoing weights of the new neuron; at least
            so many eigenvalues of the Hessian are negative.
        dimension: the dimension of the solutions to first order. If `coupling` is the number of equations,
            the solutions near this one are a manifold of this dimension.
    """

    weight: tuple[float, ...]
    bias: float | None
    model: nn.Sequential
    critical: Criticality
    elsewhere: Criticality
    spectrum: HessianSpectrum
    coupling: int
    dimension: int

    _also = ("kind",)

    @property
    def kind(self) -> Kind:
        """The kind of critical point by the Hessian; see :func:`lifted_critical_points`."""
        return _kind(self.spectrum)

    def __str__(self) -> str:
        """One line: the neuron, the kind of point, and the gradients on both samples."""
        numbers = ", ".join(f"{v:.6g}" for v in self.weight)
        bias = "" if self.bias is None else f", b = {self.bias:.6g}"
        return (
            f"w = ({numbers}){bias}: {self.kind}, index {self.spectrum.index}, nullity "
            f"{self.spectrum.nullity}; relative gradient {self.critical.relative:.1e}, on another sample "
            f"{self.elsewhere.relative:.1e}"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the Hessian's eigenvalues, as :class:`llr.landscape.HessianSpectrum` does; return the axes."""
        return self.spectrum.plot(ax)

    def _verdict(self) -> Verdict:
        return self.kind, "bad" if self.kind == "strict saddle" else "doubt"

    def _pictures(self) -> Sequence[Spectrum]:
        return self.spectrum._pictures()


@dataclass(frozen=True, eq=False, repr=False)
class LiftedPoints(Record):
    """Lifted critical points that were found, in the order of the starts; a sequence of `LiftedPoint`.

    Attributes:
        points: the points.
        layer: the hidden layer with one more neuron, from 0 on.
        equations: their number: one for each neuron of the next layer, fewer if their errors are linearly
            dependent.
        unknowns: their number: incoming weights, and the bias, of the new neuron.
        narrow: spectrum of the narrow network's Hessian on the sample.
        starts: the number of random neurons from which the search started.
    """

    points: tuple[LiftedPoint, ...]
    layer: int
    equations: int
    unknowns: int
    narrow: HessianSpectrum
    starts: int

    _also = ("dimension", "narrow_kind")

    @property
    def dimension(self) -> int:
        """The dimension of the set of solutions near regular ones; negative if none are expected."""
        return self.unknowns - self.equations

    @property
    def narrow_kind(self) -> Kind:
        """The kind of the narrow network's critical point."""
        return _kind(self.narrow)

    def __iter__(self) -> Iterator[LiftedPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> LiftedPoint:
        return self.points[index]

    def __str__(self) -> str:
        """How many points were found, the kind of the narrow point, and a line for each point."""
        head = (
            f"{counted(len(self), 'neuron')} found for hidden layer {self.layer} from "
            f"{counted(self.starts, 'start')}: {counted(self.equations, 'equation')} for "
            f"{counted(self.unknowns, 'number')}; the narrow network "
            f"is at a {self.narrow_kind} (index {self.narrow.index}, nullity {self.narrow.nullity})"
        )
        return "\n".join([head, *(f"  {point}" for point in self)])

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield len(self.points) <= self.starts, "no more points than starts"

    def _table(self) -> Table:
        rows = [
            (
                ", ".join(f"{v:.4g}" for v in p.weight),
                "" if p.bias is None else f"{p.bias:.4g}",
                p.kind,
                p.spectrum.index,
                p.critical.relative,
            )
            for p in self
        ]
        return ("incoming weights", "bias", "kind", "index", "relative gradient"), rows


def _kind(spectrum: HessianSpectrum) -> Kind:
    if spectrum.index:
        return "strict saddle"
    return "local minimum" if spectrum.nullity == 0 else "degenerate"


@takes(
    narrow=a_module, x=valued, y=valued, scale=number, rtol=real, seed=a_seed, progress=a_progress
)
@outside_inference_mode
def lifted_critical_points(
    narrow: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss = "mse",
    *,
    layer: int = 0,
    starts: int = 32,
    scale: float = 2.0,
    rtol: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> LiftedPoints:
    """Neurons that can be added to a critical network so that it stays critical on this sample only.

    The narrow network is critical for the samples and targets. A new neuron s(w . a + b) of a hidden layer
    with inputs a gets outgoing weights 0, so the function and the other derivatives stay the same. The
    derivative by its outgoing weight to neuron k of the next layer is sum_i delta_ik s(w . a_i + b), with
    delta_k the derivative of the loss by the input of neuron k. The wide network is critical if these n_out
    sums vanish. These are n_out equations for the n_in + 1 numbers (w, b); fewer if the errors delta_k are
    linearly dependent. Near regular solutions, the solutions are a manifold of dimension n_in + 1 - n_out.
    Every start may find a point of it, by least squares and Newton steps. Copies of the existing neurons, and
    constant neurons, solve the equations for every sample; these are left out, and so are neurons close to a
    combination of them on the samples.

    Every point found is a strict saddle, for any kind of narrow point. The Hessian's block of the new
    outgoing and incoming weights is [[A, G], [G', 0]], where G has the derivatives of the sums by (w, b). All
    other second derivatives by the incoming weights are 0. The Hessian has at least rank G negative
    eigenvalues; if rank G = n_out, the wide Hessian has exactly n_out more than the narrow one, and a nullity
    larger by n_in + 1 - n_out. A minimum can stay a minimum only if G vanishes. Such solutions are not
    searched for: rounding makes them indistinguishable from small sums.

    Args:
        narrow: an MLP at a critical point of the loss; its parameters count as float64.
        x: (n, d) samples.
        y: targets, as for :func:`llr.landscape.criticality`.
        loss: "mse", "cross_entropy" or a function of the outputs (n, q), as for `criticality`.
        layer: the hidden layer that gets a neuron, from 0 on.
        starts: the number of random neurons from which to search.
        scale: approximate standard deviation of their preactivations on the samples.
        rtol: tolerance of the gradients, as for :func:`llr.landscape.criticality`; needed if training reached
            the narrow point only approximately.
        seed: the seed of the starts, and of the other sample.
        progress: False for none; or a function, called as ``progress(done, total)`` with starts. Default:
            after two seconds a line on a terminal or in a notebook.

    Returns:
        `LiftedPoints`: points that differ by more than a reflection of the activation, with the Hessian's
        spectrum. Each has the gradient on another sample (standard normal, with targets for which the narrow
        network is critical), on which the gradient of a split would be 0. There may be no points.

    Raises:
        TypeError: a model that is no module; x or y is no tensor.
        ValueError: a model that is not an MLP with an activation; a narrow network that is not critical, or
            whose errors are all 0; a layer that does not exist; `starts` or `scale` out of range; arguments
            that :func:`llr.landscape.criticality` refuses.

    Source: docs/theory.md, Proposition 7.3.

    Example:
        >>> import torch
        >>> from llr.landscape import critical_targets
        >>> from llr.lifting import lifted_critical_points
        >>> from llr.models import mlp
        >>> narrow = mlp([1, 1, 1], generator=torch.Generator().manual_seed(0)).double()
        >>> x = torch.linspace(-2, 2, 12)[:, None].double()
        >>> y = critical_targets(narrow, x, size=1e-3, generator=torch.Generator().manual_seed(0))
        >>> found = lifted_critical_points(narrow, x, y, starts=4)
        >>> found.narrow_kind, {point.kind for point in found}
        ('local minimum', {'strict saddle'})
    """
    check_int("starts", starts, 1)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale!r}; expected a finite number > 0")
    chain = read_chain(narrow, 1, "a neuron is added to one of them")
    check_index("layer", layer, chain.hidden, "hidden layers")
    base = chain.module()
    surface = Surface.of(base, _flat(chain, x), y, loss)
    x, y = surface.problem.x, surface.y
    if not (here := criticality(base, x, y, loss, rtol=rtol)):
        raise ValueError(
            f"the narrow network is {here}; expected a critical point for these targets (see "
            "critical_targets), or rtol= for a point that training reached approximately"
        )
    equations = Equations.of(chain, surface, layer)
    generator = torch.Generator().manual_seed(seed)
    other_x = torch.randn(
        chain.n_params + _SPARE_SAMPLES, x.shape[1], generator=generator, dtype=torch.float64
    )
    other_y = critical_targets(base, other_x, generator=generator)
    points = []
    with following(progress, tell=True):
        solutions = list(equations.solutions(starts, scale, generator))
    for v in solutions:
        model = _with_neuron(chain, layer, v)
        critical = criticality(model, x, y, loss, rtol=rtol)
        if critical:
            coupling = equations.coupling(v)
            has_bias = chain.biases[layer] is not None
            point = LiftedPoint(
                weight=tuple(v[: len(v) - has_bias].tolist()),
                bias=float(v[-1]) if has_bias else None,
                model=model,
                critical=critical,
                elsewhere=criticality(model, other_x, other_y),
                spectrum=hessian_spectrum(model, x, y, loss),
                coupling=coupling,
                dimension=len(v) - coupling,
            )
            points.append(point)
    return LiftedPoints(
        points=tuple(points),
        layer=layer,
        equations=equations.errors.shape[1],
        unknowns=equations.inputs.shape[1],
        narrow=hessian_spectrum(base, x, y, loss),
        starts=starts,
    )


def _flat(chain: Chain, x: Tensor) -> Tensor:
    """The samples in the shape that the first layer takes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is {type(x).__name__}; expected a tensor (torch.as_tensor(x))")
    refuse_complex("x", x)
    d = chain.weights[0].shape[1]
    if x.dim() < 2 or x[:1].numel() != d * len(x[:1]):
        raise ValueError(f"x has shape {tuple(x.shape)}; expected samples (n, {d})")
    return x.detach().cpu().double().flatten(1)


def _with_neuron(chain: Chain, layer: int, v: Tensor) -> nn.Sequential:
    """The network with one more neuron, whose outgoing weights are 0."""
    weights, biases = list(chain.weights), list(chain.biases)
    n_in, b = weights[layer].shape[1], biases[layer]
    weights[layer] = torch.cat((weights[layer], v[None, :n_in]))
    if b is not None:
        biases[layer] = torch.cat((b, v[n_in:]))
    after = weights[layer + 1]
    weights[layer + 1] = torch.cat((after, after.new_zeros(len(after), 1)), 1)
    return chain_of(chain.activation, weights, biases).module()
