"""Matrices as products of two factors, and their rule for exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llr.exact.chain import Shape, Step, dense, register
from llr.inputs.accept import takes
from llr.inputs.assembly import set_tensors
from llr.inputs.roles import a_float_dtype, a_generator
from llr.inputs.samplers import all_samples
from llr.models.parts import (
    check_memory,
    check_shape,
    check_sizes,
    check_tensors,
    matrix_shape,
    normal,
)


class MatrixFactorization(nn.Module):
    """The entries of A B: a sample is an index pair (i, j), its output the entry (A B)_ij.

    A has shape (m, p) and B has shape (p, n).

    Args:
        m: rows.
        p: inner size.
        n: columns.
        dtype: of the parameters; default: torch's.
        generator: of the initial values; default: torch's.

    Raises:
        ValueError: sizes that are not positive integers, more parameters than fit the memory budget.

    Example:
        >>> import llr, torch
        >>> from llr.models import MatrixFactorization
        >>> model = MatrixFactorization(4, 2, 5, generator=torch.Generator().manual_seed(0))
        >>> llr.model_rank(model).rank
        14
    """

    TENSORS = ("A", "B")
    """The names of its parameters."""

    @takes(dtype=a_float_dtype, generator=a_generator)
    def __init__(
        self,
        m: int,
        p: int,
        n: int,
        *,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(m=m, p=p, n=n)
        check_memory((m + n) * p, dtype)
        self.A: Tensor = normal((m, p), 1 / math.sqrt(p), dtype, generator)
        self.B: Tensor = normal((p, n), 1 / math.sqrt(p), dtype, generator)

    @classmethod
    def of(cls, A: Tensor, B: Tensor) -> MatrixFactorization:
        """The model with copies of these factors, (m, p) and (p, n).

        Raises:
            ValueError: shapes that do not match.
            TypeError: an argument that is not a floating-point tensor, several dtypes or devices.

        Example:
            >>> import torch
            >>> from llr.models import MatrixFactorization
            >>> model = MatrixFactorization.of(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0]]))
            >>> model(torch.tensor([[1, 0]]))
            tensor([[6.]], grad_fn=<SumBackward1>)
        """
        check_tensors(A=A, B=B)
        m, p = matrix_shape("A", A, "(m, p)")
        _, n = matrix_shape("B", B, "(p, n)")
        check_shape("B", B, (p, n), f"one row for each column of A, which is {tuple(A.shape)}")
        return set_tensors(cls(m, p, n, generator=torch.Generator()), A=A, B=B)

    def pairs(self) -> Tensor:
        """All index pairs (m n, 2), row by row, which are all possible samples."""
        rows, columns = len(self.A), self.B.shape[1]
        pairs = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        return pairs.to(self.A.device)

    def forward(self, pairs: Tensor) -> Tensor:
        """Map index pairs (N, 2) to the entries of A B, (N, 1)."""
        if pairs.is_floating_point() or pairs.dtype == torch.bool:
            raise TypeError(f"index pairs are {pairs.dtype}; expected integers (pairs.long())")
        if pairs.dim() != 2 or pairs.shape[1] != 2:
            raise ValueError(f"index pairs have shape {tuple(pairs.shape)}; expected (N, 2)")
        return (self.A[pairs[:, 0]] * self.B[:, pairs[:, 1]].T).sum(-1, keepdim=True)

    def misfit(self) -> str:
        """Why the factors have no product; empty if they have one."""
        if self.A.dim() == self.B.dim() == 2 and self.A.shape[1] == self.B.shape[0]:
            return ""
        return f"factors of shapes {tuple(self.A.shape)} and {tuple(self.B.shape)}"

    def extra_repr(self) -> str:
        """The sizes, for printing."""
        return f"{len(self.A)}, {len(self.B)}, {self.B.shape[1]}"


def _factorization(module: MatrixFactorization, shape: Shape) -> tuple[Sequence[Step], Shape]:
    if module.misfit():
        raise ValueError(f"has {module.misfit()}")
    (m, p), n = module.A.shape, module.B.shape[1]
    if shape != (m, n):
        raise ValueError(f"takes index pairs; what comes in has shape {shape}")
    # The entry of A B at (i, j) is sum_k A_ik (X B')_ik, where X is the matrix with a 1 at (i, j).
    return [
        dense(f"MatrixFactorization({module.extra_repr()})", module.B, positions=m),
        dense(f"Linear({m * p}, 1)", module.A, shape=(1, m * p)),
    ], (1,)


def _one_hot(module: MatrixFactorization, pairs: Tensor) -> Tensor:
    """For each index pair (i, j) the matrix (m, n) with a 1 at (i, j) and zeros elsewhere."""
    m, n = len(module.A), module.B.shape[1]
    if pairs.is_floating_point() or tuple(pairs.shape[1:]) != (2,):
        raise ValueError(
            f"x is {pairs.dtype} of shape {tuple(pairs.shape)}; expected index pairs, integers (N, 2)"
        )
    outside = (pairs < 0) | (pairs >= torch.tensor([m, n], device=pairs.device))
    if bool(outside.any()):
        at = int(outside.any(1).nonzero()[0])
        raise ValueError(
            f"index pair {at} is {tuple(pairs[at].tolist())}; expected rows below {m}, columns below {n}"
        )
    i, j = pairs.long().unbind(1)
    return F.one_hot(i * n + j, m * n).double().unflatten(1, (m, n))


register(MatrixFactorization, _factorization, _one_hot)


@all_samples.register
def _(model: MatrixFactorization) -> Tensor:
    return model.pairs()
