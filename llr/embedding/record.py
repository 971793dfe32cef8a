"""The affine map from the parameters of a narrow network to those of a wide one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llr.results import Record
from llr.results.html import Table
from llr.results.phrases import counted

# A vector counts as a point of the image if rounding could have moved it there.
_ROUNDINGS = 64


@dataclass(frozen=True, eq=False, repr=False)
class Embedding(Record):
    """An affine map of parameter vectors, ``theta_wide = matrix @ theta_narrow + constant``.

    Vectors are those of :func:`torch.nn.utils.parameters_to_vector`: the tensors of ``model.parameters()``
    in their order, each flattened. Every wide parameter comes from one narrow parameter, and is stored as its
    source, a factor and a constant; `matrix` is the same as a dense matrix. At any narrow parameters the
    image is a wide network of the same function.

    Attributes:
        narrow: widths of the narrow network: inputs, hidden layers, outputs; for a convolution inputs,
            channels, 1.
        wide: widths of the wide network.
        source: (P_wide), the index of the narrow parameter that each wide one comes from.
        factor: (P_wide) float64, its factor; 0 for a wide parameter that is constant.
        constant: (P_wide) float64, what is added.
        n_narrow: P_narrow.
        steps: the moves as text.

    Source: docs/theory.md, 10.1. Zhang et al., "Embedding Principle of Loss Landscape of Deep Neural
    Networks" (2021).

    Example:
        >>> import torch
        >>> from torch.nn.utils import parameters_to_vector as vector
        >>> from llr.embedding import split
        >>> from llr.models import mlp
        >>> narrow = mlp([1, 1, 1]).double()
        >>> wide, embedding = split(narrow, 0, 0, share=0.25)
        >>> bool((embedding(vector(narrow.parameters())) == vector(wide.parameters())).all())
        True
        >>> embedding.matrix[4:6, 2]
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    narrow: tuple[int, ...]
    wide: tuple[int, ...]
    source: Tensor
    factor: Tensor
    constant: Tensor
    n_narrow: int
    steps: tuple[str, ...]

    @property
    def n_wide(self) -> int:
        """P_wide."""
        return len(self.source)

    @property
    def matrix(self) -> Tensor:
        """(P_wide, P_narrow) float64, of full column rank; a new tensor at each access."""
        matrix = torch.zeros(self.n_wide, self.n_narrow, dtype=torch.float64)
        matrix[torch.arange(self.n_wide), self.source] = self.factor
        return matrix

    def __call__(self, theta: Tensor) -> Tensor:
        """The wide parameters (..., P_wide) that belong to narrow ones (..., P_narrow).

        The image is computed in float64 and rounded once to the dtype of `theta`.

        Raises:
            TypeError: `theta` is no floating-point tensor.
            ValueError: a vector of another length.
        """
        _check_vector(theta, self.n_narrow, "narrow")
        factor, constant = self.factor.to(theta.device), self.constant.to(theta.device)
        source = self.source.to(theta.device)
        return (theta.double()[..., source] * factor + constant).to(theta.dtype)

    def inverse(self, theta: Tensor, *, tolerance: float | None = None) -> Tensor:
        """The narrow parameters (P_narrow) whose image is `theta` (P_wide).

        Args:
            theta: wide parameters.
            tolerance: the largest distance, in the Euclidean norm, of `theta` from the image; default: the
                distance that rounding to its dtype can cause.

        Raises:
            TypeError: `theta` is no floating-point tensor.
            ValueError: a vector of another length, or one that is not in the image; the message gives the
                distance.

        Example:
            >>> import torch
            >>> from llr.embedding import split
            >>> from llr.models import mlp
            >>> _, embedding = split(mlp([1, 1, 1]).double(), 0, 0)
            >>> theta = torch.arange(4.0).double()
            >>> embedding.inverse(embedding(theta))
            tensor([0., 1., 2., 3.], dtype=torch.float64)
        """
        _check_vector(theta, self.n_wide, "wide")
        if theta.dim() != 1:
            raise ValueError(
                f"theta has shape {tuple(theta.shape)}; expected one wide vector ({self.n_wide},)"
            )
        factor, source = self.factor.to(theta.device), self.source.to(theta.device)
        moved = theta.double() - self.constant.to(theta.device)
        # No two columns of the matrix share a row, so that least squares separates into single parameters.
        zeros = moved.new_zeros(self.n_narrow)
        weights = zeros.index_add(0, source, factor**2)
        nearest = zeros.index_add(0, source, factor * moved) / weights
        distance = float((nearest[source] * factor - moved).norm())
        if tolerance is None:
            size = float(theta.double().norm()) + float(self.constant.norm())
            tolerance = _ROUNDINGS * torch.finfo(theta.dtype).eps * size
        if not distance <= tolerance:
            raise ValueError(
                f"theta is {distance:.3g} away from the image of the embedding, more than {tolerance:.3g}: "
                "no narrow parameters lead there"
            )
        return nearest.to(theta.dtype)

    def then(self, other: Embedding) -> Embedding:
        """The composition: this embedding, followed by one of the wide network into a wider one.

        Raises:
            TypeError: `other` is no `Embedding`.
            ValueError: the narrow widths of `other` are not the wide widths of this embedding.

        Example:
            >>> from llr.embedding import null, split
            >>> from llr.models import mlp
            >>> wide, first = split(mlp([1, 1, 1]), 0, 0)
            >>> _, second = null(wide, 0)
            >>> first.then(second).wide
            (1, 3, 1)
        """
        if not isinstance(other, Embedding):
            raise TypeError(f"other is {type(other).__name__}; expected an Embedding")
        if (other.narrow, other.n_narrow) != (self.wide, self.n_wide):
            raise ValueError(
                f"the other embedding is one of {_arrow(other.narrow)} with {other.n_narrow} parameters; "
                f"expected {_arrow(self.wide)} with {self.n_wide}, the wide network of this embedding"
            )
        return Embedding(
            narrow=self.narrow,
            wide=other.wide,
            source=self.source[other.source],
            factor=self.factor[other.source] * other.factor,
            constant=self.constant[other.source] * other.factor + other.constant,
            n_narrow=self.n_narrow,
            steps=self.steps + other.steps,
        )

    def __str__(self) -> str:
        """The widths, and a line for each step."""
        sizes = f"{self.n_narrow} of {counted(self.n_wide, 'parameter')}"
        head = f"{_arrow(self.narrow)} in {_arrow(self.wide)}: {sizes}"
        return "\n".join([head, *(f"  {step}" for step in self.steps)])

    def _check(self, content: Mapping[str, Any]) -> None:
        sizes = {name: getattr(self, name).shape for name in ("source", "factor", "constant")}
        if len(set(sizes.values())) > 1 or self.source.dim() != 1:
            raise ValueError(
                f"source, factor and constant of Embedding have shapes {sizes}; expected one vector each"
            )
        used = self.source.tolist()
        if self.source.dtype != torch.int64 or not all(0 <= i < self.n_narrow for i in used):
            raise ValueError(f"source of Embedding has entries outside of 0 to {self.n_narrow - 1}")
        super()._check(content)

    def _facts(self) -> dict[str, object]:
        return super()._facts() | {"n_wide": self.n_wide}

    def _table(self) -> Table | None:
        return (("steps",), [(step,) for step in self.steps]) if self.steps else None


def _arrow(widths: tuple[int, ...]) -> str:
    return "-".join(map(str, widths))


def _check_vector(theta: Tensor, size: int, what: str) -> None:
    if not isinstance(theta, Tensor) or not theta.is_floating_point():
        found = theta.dtype if isinstance(theta, Tensor) else type(theta).__name__
        raise TypeError(f"theta is {found}; expected a floating-point tensor")
    if theta.dim() == 0 or theta.shape[-1] != size:
        raise ValueError(
            f"theta has shape {tuple(theta.shape)}; expected {size} numbers, the parameters of the {what} "
            "network (torch.nn.utils.parameters_to_vector(model.parameters()))"
        )
    if not bool(torch.isfinite(theta).all()):
        raise ValueError("theta has NaN or infinity; expected finite numbers")
