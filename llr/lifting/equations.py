"""Neurons whose values on a sample are orthogonal to the errors of a network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import least_squares
from torch import Tensor
from torch.func import grad

from llr.inputs.activations import FUNCTIONS
from llr.inputs.evaluation.forward_errors import explained
from llr.landscape.surface import Surface
from llr.lifting.chain import Chain
from llr.linalg.spectrum import singular_values, threshold
from llr.results import progress
from llr.theory.structures.groups import PARITY

_EPS = torch.finfo(torch.float64).eps
_STEPS = 200
_NEWTON = 30
_ROUNDING = 100 * _EPS
# Errors up to this size, relative to the preactivations, count as rounding.
_NO_ERROR = 1e-12
# Neurons closer than this on the samples, relative to their size, are the same; derivatives this small are 0.
_SAME = 1e-6
# A neuron that is this close to a combination of the existing neurons hardly depends on the sample.
_NEW = 1e-3


@dataclass(frozen=True, eq=False)
class Equations:
    """sum_i errors_ik s(inputs_i . v) = 0 for all k."""

    activation: str
    inputs: Tensor
    """(n, n_in + 1): the inputs of the layer, and 1 for the bias if it has one."""
    errors: Tensor
    """(n, k): orthonormal; spans the errors of the neurons of the next layer."""
    present: Tensor
    """(n, r): orthonormal; spans the layer's neurons on the samples, and 1 if the next layer has a bias."""

    @classmethod
    def of(cls, chain: Chain, surface: Surface, layer: int) -> Equations:
        """The equations for a hidden layer of a network, for the loss of `surface`.

        Raises:
            ValueError: the errors are 0.
        """
        sigma = FUNCTIONS[chain.activation][0]
        a = surface.problem.x

        def through(a: Tensor, first: int, last: int) -> Tensor:
            """The outputs of linear layer `last` for the inputs `a` of linear layer `first`."""
            for k in range(first, last + 1):
                a = F.linear(sigma(a) if k > first else a, chain.weights[k], chain.biases[k])
            return a

        if layer:
            a = sigma(through(a, 0, layer - 1))
        hidden = sigma(through(a, layer, layer))
        z = through(hidden, layer + 1, layer + 1)

        def loss(z: Tensor) -> Tensor:
            last = layer + 1 == chain.hidden
            return surface.of_outputs(z if last else through(sigma(z), layer + 2, chain.hidden))

        with explained(z, "derivatives of the loss", "outputs"):
            errors = grad(loss)(z)
        ones = torch.ones(len(a), 1, dtype=torch.float64)
        present = hidden if chain.biases[layer + 1] is None else torch.cat((hidden, ones), 1)
        inputs = a if chain.biases[layer] is None else torch.cat((a, ones), 1)
        largest = float(errors.abs().max()) * len(a)  # times n, as the loss is a mean
        if largest <= _NO_ERROR * max(1.0, float(z.abs().max())):
            raise ValueError(
                f"the errors are 0 (at most {largest:.1e}): every neuron without outgoing weights keeps the "
                "network critical; expected a critical point of positive loss"
            )
        return cls(chain.activation, inputs, _basis(errors, _SAME), _basis(present))

    def values(self, v: Tensor) -> Tensor:
        """(n): the values of the neuron on the samples."""
        return FUNCTIONS[self.activation][0](self.inputs @ v)

    def sums(self, v: Tensor) -> Tensor:
        """(k): the left-hand sides of the equations."""
        return self.errors.mT @ self.values(v)

    def derivative(self, v: Tensor) -> Tensor:
        """(k, n_in + 1): G, in the basis `errors`."""
        return self.errors.mT @ self._derivatives(v)

    def _derivatives(self, v: Tensor) -> Tensor:
        """(n, n_in + 1): the derivatives of the values."""
        slopes = FUNCTIONS[self.activation][1](self.inputs @ v)
        return slopes[:, None] * self.inputs

    def coupling(self, v: Tensor) -> int:
        """The rank of G."""
        values = singular_values(self.derivative(v))
        largest = float((self.inputs.norm(dim=1) ** 2).sum().sqrt())
        return int((values > _SAME * largest).sum())

    def solutions(self, starts: int, scale: float, generator: torch.Generator) -> Iterator[Tensor]:
        """Distinct regular solutions that are not close to combinations of the existing neurons.

        If the derivatives vanish to rounding, the sums do too, and a solution cannot be told from rounding.
        """
        spread = self.inputs.square().mean(0).sqrt().clamp_min(_EPS) * math.sqrt(
            self.inputs.shape[1]
        )
        found: list[Tensor] = []
        for tried in range(starts):
            progress.step(f"{len(found)} points found, starts", tried, starts)
            start = torch.randn(len(spread), generator=generator, dtype=torch.float64)
            v = self._solve(scale * start / spread)
            if v is None or self._trivial(v) or not self.coupling(v):
                continue
            values = self.values(v)
            if all(self._apart(values, other) for other in found):
                found.append(values)
                yield v

    def _solve(self, v: Tensor) -> Tensor | None:
        """A solution to rounding, or None."""
        search = least_squares(
            lambda v: self._cosines(torch.from_numpy(v)).numpy(),
            v.numpy(),
            lambda v: self._cosines_derivative(torch.from_numpy(v)).numpy(),
            max_nfev=_STEPS,
        )
        if float(search.cost) > _SAME**2:  # a minimum that is no solution, or a diverging search
            return None
        v = torch.from_numpy(search.x)
        size = float(self.sums(v).norm())
        for _ in range(_NEWTON):
            step = torch.linalg.lstsq(self.derivative(v), self.sums(v), driver="gelsd").solution
            if not float(self.sums(v - step).norm()) < size:
                break
            v = v - step
            size = float(self.sums(v).norm())
        return v if size <= _ROUNDING * float(self.values(v).norm()) else None

    def _rest(self, v: Tensor) -> Tensor:
        """The part of a neuron's values that is orthogonal to the existing neurons."""
        values = self.values(v)
        return values - self.present @ (self.present.mT @ values)

    def _cosines(self, v: Tensor) -> Tensor:
        """The sums divided by the norm of `_rest`, which keeps the search away from existing neurons."""
        return self.sums(v) / (self._rest(v).norm() + _EPS)

    def _cosines_derivative(self, v: Tensor) -> Tensor:
        rest, moved = self._rest(v), self._derivatives(v)
        size = rest.norm() + _EPS
        turned = torch.outer(self.sums(v), rest @ moved) / size**2
        return (self.errors.mT @ moved - turned) / size

    def _trivial(self, v: Tensor) -> bool:
        """Whether the values are nearly a combination of those of the layer's neurons, and of 1."""
        return float(self._rest(v).norm()) <= _NEW * max(float(self.values(v).norm()), _EPS)

    def _apart(self, one: Tensor, other: Tensor) -> bool:
        """Whether two neurons differ on the samples, up to the activation's reflection."""
        reflected = {"odd": [-one], "sin": [-one], "odd+const": [1 - one]}.get(
            PARITY[self.activation], []
        )
        size = max(float(one.norm()), float(other.norm()))
        return all(float((image - other).norm()) > _SAME * size for image in [one, *reflected])


def _basis(columns: Tensor, rtol: float | None = None) -> Tensor:
    """Orthonormal columns with the same span."""
    U, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return U[:, values > threshold(values, min(columns.shape), rtol=rtol)]
