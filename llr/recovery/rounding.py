"""The precision of given numbers (float64, float32 or decimals), and the rounding error of each target.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", SIAM (2002), chapters 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llr.inputs.tensors import refuse_complex
from llr.operators.formula import ACTIVATIONS
from llr.recovery.net import Net

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The unit roundoff of floating-point formats."""

_DECIMALS = range(13)
_DIGITS = range(3, 13)
_CHANCE = (
    -6.0
)  # log10 of the chance that ordinary numbers look rounded, below which they are taken as rounded
_FINE = 1e-4  # inputs with steps above this fraction of their spread are a grid, and not rounded
_LARGEST = 1e100  # the largest error; its square is well within the range of float64
_FLOOR = 1e-6  # least rounding relative to the median: a target without rounding would have infinite weight
_HALF = (
    1e8,
    1e4,
)  # units of float64, and of narrower formats, that a network may lose to cancellation
_BY_ARGUMENT = {"gelu", "silu"}  # evaluated as z times a factor


@dataclass(frozen=True)
class Storage:
    """The precision in which a column of numbers is stored."""

    unit: float
    """The relative rounding unit of the floating-point format."""
    error: np.ndarray
    """(n), additional absolute errors: half a step of the decimals."""
    words: str
    """"float64", "float32", "6 decimals", ..."""

    @classmethod
    def of(cls, v: np.ndarray, dtype: torch.dtype) -> Storage:
        """Infer the precision of a column from its dtype and its values."""
        name = str(dtype).removeprefix("torch.")
        if name not in UNIT:
            name = "float64"
        if name == "float64" and _all_single(v):
            name = "float32"
        unit, words = UNIT[name], name
        decimals, digits = _decimals(v, unit), _digits(v, unit)
        error = np.zeros(len(v))
        if decimals is not None:
            error += 0.5 * 10.0**-decimals
        if digits is not None:
            error = np.maximum(error, 0.5 * _last_place(v, digits))
            # 8 or 9 digits, with which float32 numbers are written as decimals.
            if name == "float64" and digits in (8, 9) and _all_written_single(v):
                return cls(UNIT["float32"], np.zeros(len(v)), "float32")
        if digits is not None and (decimals is None or float(error.max()) > 10.0**-decimals):
            words = f"{digits} significant digits"
        elif decimals is not None:
            words = "integers" if decimals == 0 else f"{decimals} decimals"
        return cls(unit, error, words)


@dataclass(frozen=True, eq=False)
class Rounding:
    """The rounding errors of samples and targets."""

    unit: float
    """The rounding unit of the arithmetic that computed the targets."""
    y: Tensor
    """(n, q), absolute errors of the targets in addition to those of the arithmetic."""
    x: Tensor | None
    """(n, d), absolute errors of the inputs; None if they are exact."""
    words: str
    """What is assumed, as part of a sentence."""
    inputs: Tensor | None = None
    """(n, d), the errors that inputs would have if they were rounded to their digits after y was computed."""
    x_stored: str = "float64"
    """The apparent precision of the inputs: "float32", "6 decimals", ..."""

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        dtypes: tuple[torch.dtype, torch.dtype],
        y_error: float | Tensor | str | None,
        x_error: float | Tensor | None,
    ) -> Rounding:
        """The rounding that the caller gives, otherwise inferred from the numbers.

        Args:
            x: (n, d) float64.
            y: (n, q) float64.
            dtypes: the dtypes in which x and y were given.
            y_error: the largest error of every target; or the name of a floating-point format.
            x_error: the largest error of every input; 0 for none.

        Raises:
            TypeError, ValueError: errors that are negative, infinite, of a wrong shape or unknown.
        """
        columns = [Storage.of(c, dtypes[1]) for c in y.T.numpy()]
        inputs = [Storage.of(c, dtypes[0]) for c in x.T.numpy()]
        x_stored = ", ".join(dict.fromkeys(c.words for c in inputs))
        unit, errors, words = max(c.unit for c in columns), _stacked(columns), _said(columns)
        if isinstance(y_error, str):
            if y_error not in UNIT:
                raise ValueError(
                    f"y_error is {y_error!r}; expected a number, a tensor, or one of {', '.join(UNIT)}"
                )
            unit, errors, words = UNIT[y_error], torch.zeros_like(y), f"y computed in {y_error}"
        elif y_error is not None:
            given = _checked("y_error", y_error, y)
            words = f"every y has an error of at most {_size(given)} (y_error=)"
            unit, errors = UNIT["float64"], given
        moved = None
        if x_error is not None:
            moved = _checked("x_error", x_error, x)
            if float(moved.max()) == 0:
                moved = None
            else:
                words += f", every x of at most {_size(moved)} (x_error=)"
        elif y_error is None and all(float(c.error.max()) > 0 for c in columns):
            # A table whose inputs and targets were both rounded when it was written.
            fine = [
                c.error.max() <= 0.5 * _FINE * v.std()
                for c, v in zip(inputs, x.T.numpy(), strict=True)
            ]
            if any(fine) and any(float(c.error.max()) > 0 for c in inputs):
                moved = _stacked(inputs) * torch.tensor(fine)
                words += f", x to {x_stored}"
        looks = _stacked(inputs) + x.abs() * x.new_tensor([c.unit for c in inputs])
        rounded = x_stored != "float64"
        return cls(unit, errors, moved, words, looks if rounded else None, x_stored)

    def noise(self, x: Tensor, y: Tensor) -> float:
        """A typical error of the targets relative to their root mean square, for functions of moderate slope.

        It is at most 1e100, so that its square is finite.
        """
        size = float(y.square().mean().sqrt())
        total = float(self.y.square().mean().sqrt()) / size
        if self.unit > UNIT["float64"]:
            total += 3 * self.unit
        if self.x is not None:
            spread = (x - x.mean(0)).square().mean(0).sqrt().clamp_min(1e-300)
            total += float((self.x / spread).square().mean().sqrt())
        return min(total, 1e100)

    def usable(self, delta: Tensor, x: Tensor, y: Tensor) -> bool:
        """Whether a network with this rounding can be evaluated to about half of the available digits."""
        limit = _HALF[0] * UNIT["float64"] + 30 * self.noise(x, y)
        if self.unit > UNIT["float64"]:
            limit += _HALF[1] * self.unit
        return float(delta.square().mean().sqrt()) <= limit * float(y.square().mean().sqrt())

    def delta(self, net: Net, x: Tensor, y: Tensor | None) -> Tensor:
        """(n, q): an upper bound of the error by a forward pass in this arithmetic and by storing its result.

        The bound is of first order in the unit roundoff, and assumes activations within two units in the last
        place.

        Args:
            net: the network for which the bound is computed.
            x: (n, d).
            y: (n, q) targets; None for fresh points, whose inputs are exact.
        """
        u, W, A = self.unit, net.w, net.a
        sigma, slope = ACTIVATIONS[net.activation]
        z, size = net.before(x), x.abs() @ W.abs().T
        if net.b is not None:
            size = size + net.b.abs()
        h, g = sigma(z), slope(z).abs()
        ez = (W.shape[1] + 1) * u * size
        if self.x is not None and y is not None:
            ez = ez + self.x @ W.abs().T
        eh = g * ez + ez.square() + 4 * u * h.abs()
        if net.activation in _BY_ARGUMENT:
            eh = eh + 4 * u * z.abs()
        terms = h.abs() @ A.abs().T
        if net.c is not None:
            terms = terms + net.c.abs()
        error = eh @ A.abs().T + (len(W) + 1) * u * terms
        if y is None:
            return error + u * terms + float(self.y.max())
        error = error + u * y.abs() + self.y
        return torch.maximum(error, _FLOOR * error.median() + 1e-300)


def _stacked(columns: list[Storage]) -> Tensor:
    return torch.from_numpy(np.stack([c.error for c in columns], 1))


def _said(columns: list[Storage]) -> str:
    kinds = list(dict.fromkeys(c.words for c in columns))
    if kinds == ["float64"]:
        return "y computed in float64"
    if len(kinds) == 1 and kinds[0] in UNIT:
        return f"y computed in {kinds[0]}, inferred from its values"
    return f"y rounded to {', '.join(kinds)}, inferred from its values"


def _size(errors: Tensor) -> str:
    least, most = float(errors.min()), float(errors.max())
    return f"{most:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


def _checked(name: str, error: float | Tensor, like: Tensor) -> Tensor:
    """The error of every entry, checked."""
    if isinstance(error, bool) or not isinstance(error, int | float | Tensor):
        raise TypeError(f"{name} is {type(error).__name__}; expected a number or a tensor")
    refuse_complex(name, error)
    t = torch.as_tensor(error, dtype=torch.float64).detach().cpu()
    if name == "y_error" and t.dim() == 1 and t.shape[0] == len(like) and like.shape[1] == 1:
        t = t[:, None]
    try:
        t = t.expand_as(like)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}; expected a number, or the shape {tuple(like.shape)}"
        ) from None
    wrong = ~((t >= 0) & (t <= _LARGEST))
    if bool(wrong.any()):
        value = float(t[wrong][0])
        raise ValueError(
            f"{name} is {value}; expected finite numbers, 0 or more and at most {_LARGEST:g}"
        )
    return t.contiguous()


def _all_single(v: np.ndarray) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        return bool((v.astype(np.float32).astype(np.float64) == v).all())


def _all_written_single(v: np.ndarray) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        single = v.astype(np.float32)
    return all(float(str(s)) == w for s, w in zip(single, v.tolist(), strict=True))


def _rounded(t: np.ndarray, unit: float) -> bool:
    """Whether all numbers are integers up to rounding, and this is improbable for numbers not rounded."""
    size = np.abs(t)
    if not (np.abs(t - np.rint(t)) <= 8 * unit * size).all():
        return False
    chances = np.minimum(16 * unit * np.unique(size[size > 0]), 1.0)
    return bool(np.log10(chances).sum() <= _CHANCE)


def _decimals(v: np.ndarray, unit: float) -> int | None:
    """The least number of decimals with which all numbers can be written; None if there is none."""
    return next((k for k in _DECIMALS if _rounded(v * 10.0**k, unit)), None)


def _digits(v: np.ndarray, unit: float) -> int | None:
    """The least number of significant digits with which all can be written; None if there is none."""
    size = np.abs(v[v != 0])
    if not len(size) or size.min() < 1e-280 or size.max() > 1e280:
        return None
    exponent = np.floor(np.log10(size))
    return next((s for s in _DIGITS if _rounded(size * 10.0 ** (s - 1 - exponent), unit)), None)


def _last_place(v: np.ndarray, digits: int) -> np.ndarray:
    size = np.abs(v)
    exponent = np.floor(np.log10(np.where(size > 0, size, 1.0)))
    return np.where(size > 0, 10.0 ** (exponent + 1 - digits), 0.0)
