"""Checks of samples of a function, and of the kind of networks to search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llr.inputs.activations import ACTIVATIONS
from llr.inputs.tensors import refuse_complex
from llr.models import TwoLayer
from llr.recovery.net import Net
from llr.results.phrases import counted, there_are


def read(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of x and y in float64, with a column for each input and output."""
    for name, t in (("x", x), ("y", y)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is {type(t).__name__}; expected a tensor (torch.as_tensor)")
        refuse_complex(name, t)
    x = x[:, None] if x.dim() == 1 else x
    if x.dim() != 2 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (n, d) or (n,), not empty")
    y = y[:, None] if y.dim() == 1 else y
    if y.dim() != 2 or len(y) != len(x) or y.shape[1] == 0:
        raise ValueError(
            f"y has shape {tuple(y.shape)}; expected ({len(x)},) or ({len(x)}, q), a row for each sample"
        )
    x, y = (t.detach().to("cpu", torch.float64, copy=True) for t in (x, y))
    for name, t in (("x", x), ("y", y)):
        if not bool(torch.isfinite(t).all()):
            at = tuple(int(i) for i in (~torch.isfinite(t)).nonzero()[0])
            raise ValueError(f"{name} is {float(t[at])} at index {at}; expected finite numbers")
        check_size(name, t)
    return x, y


def check_size(name: str, t: Tensor, least: float = 0.0) -> None:
    """Refuse numbers whose squares leave the range of float64 somewhere in a search.

    Args:
        name: the caller's name of the numbers.
        t: (n, columns), finite.
        least: the least size of the largest number of a column, unless all are zero.

    Raises:
        ValueError: names the size, the allowed range, and another unit.
    """
    for i, size in enumerate(t.abs().amax(0).tolist()):
        if size == 0 or least <= size <= MOST:
            continue
        column = f" in column {i}" if t.shape[1] > 1 else ""
        expected = f"from {LEAST:g} to {MOST:g}" if least else f"at most {MOST:g}"
        raise ValueError(
            f"{name} has numbers of size {size:.3g}{column}; expected {expected}: use another unit, such as "
            f"{name} / {size:.0e}"
        )


LEAST, MOST = 1e-120, 1e120
"""The allowed sizes of samples and targets."""
_NOISE = 1e30  # a noise_std so many times larger or smaller than the targets is a mistake


@dataclass(frozen=True)
class Kind:
    """The kind of two-layer networks among which the function is searched for."""

    d: int
    q: int
    activation: str
    bias: bool
    output_bias: bool

    def template(self, width: int) -> TwoLayer:
        """A network of this kind; its parameters do not matter."""
        return TwoLayer(
            self.d,
            width,
            self.q,
            activation=self.activation,
            bias=self.bias,
            output_bias=self.output_bias,
            dtype=torch.float64,
            generator=torch.Generator(),
        )

    def net(self, width: int, theta: Tensor) -> Net:
        """The network with these parameters, in the order of the module's."""
        sizes = [width * self.d, width * self.bias, self.q * width, self.q * self.output_bias]
        w, b, a, c = theta.split(sizes)
        return Net(
            w.view(width, self.d),
            b if self.bias else None,
            a.view(self.q, width),
            c if self.output_bias else None,
            self.activation,
        )

    def parameters(self, width: int, q: int | None = None) -> int:
        """The number of parameters of a network with `q` outputs."""
        q = self.q if q is None else q
        return width * (q + self.d + self.bias) + q * self.output_bias

    @property
    def analytic(self) -> bool:
        """Whether the activation is analytic: functions that agree on an open set are then equal."""
        return self.activation != "relu"


def check(x: Tensor, y: Tensor, kind: Kind, noise_std: float | None) -> None:
    """Refuse samples that are unsuitable for any search.

    Raises:
        ValueError: as described in :func:`llr.recovery.recover`.
    """
    names = [name for name in ACTIVATIONS if name != "identity"]
    if kind.activation not in names:
        raise ValueError(f"activation is {kind.activation!r}; expected one of {', '.join(names)}")
    if noise_std is not None and not 0 < noise_std < math.inf:
        raise ValueError(
            f"noise_std is {noise_std!r}; expected a number > 0, or None without noise"
        )
    check_size("x", x, LEAST)
    check_size("y", y, LEAST)
    size = float(y.square().mean().sqrt())
    if noise_std is not None and size and not size / _NOISE <= noise_std <= size * _NOISE:
        raise ValueError(
            f"noise_std is {noise_std:g}, and y is of size {size:.3g}; expected numbers in the same unit, or "
            "None without noise"
        )
    n = len(x)
    if n * kind.q < kind.parameters(1):
        raise ValueError(
            f"{there_are(n, 'sample')} of {counted(kind.q, 'output')}, {counted(n * kind.q, 'observation')}; "
            f"expected at least {kind.parameters(1)}, the parameters of one neuron on "
            f"{counted(kind.d, 'input')}"
        )
    if bool((y == y[0]).all()):
        value = ", ".join(f"{v:g}" for v in y[0].tolist())
        raise ValueError(
            f"y is {value} for every sample; expected targets that vary: a constant function has no neurons "
            "to recover"
        )
    if noise_std is None:
        _refuse_contradictions(x, y)


def check_frequency(max_frequency: float | None, activation: str) -> None:
    """Refuse bounds of frequencies that are invalid or have no meaning.

    Raises:
        ValueError: a number that is not positive, or an activation that has no frequency.
    """
    if max_frequency is None:
        return
    if not 0 < max_frequency < math.inf:
        raise ValueError(f"max_frequency is {max_frequency!r}; expected a number > 0")
    if activation != "sin":
        raise ValueError(f"max_frequency= is for the activation 'sin', not for {activation!r}")


def _refuse_contradictions(x: Tensor, y: Tensor) -> None:
    points, place = torch.unique(x, dim=0, return_inverse=True)
    if len(points) == len(x):
        return
    first: dict[int, int] = {}
    for i, p in enumerate(place.tolist()):
        j = first.setdefault(p, i)
        gap = float((y[i] - y[j]).abs().max())
        if gap > 0:
            raise ValueError(
                f"x[{j}] and x[{i}] are the same point, but their targets differ by {gap:.3g}, which no "
                "function allows. Remove one, or give the standard deviation of the noise, noise_std="
            )
