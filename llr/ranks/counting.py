"""The singular values of a model's Jacobian, by any method, and the number of them above their error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llr.inputs.memory import fits
from llr.inputs.problem import Problem
from llr.inputs.tensors import check_finite
from llr.jacobians.gram import BLOCK_BYTES, evaluate_triangle, gram_factor, gram_with_error
from llr.jacobians.jacobian import execute_with_error
from llr.jacobians.paths import Plan, native_arguments
from llr.linalg.equilibrate import scaled_error, times_power
from llr.linalg.error_bound import estimated_error, layer_errors, row_errors, svd_error
from llr.linalg.spectrum import singular_values
from llr.ranks.matrices import count, with_equilibrated
from llr.ranks.methods import Cost
from llr.ranks.result import RankResult

# If a method does not form the Jacobian, it is formed for scaling its columns if it has at most this many
# entries.
_WORTH_MAKING = 1 << 22
_COPIES = 8  # of a Jacobian in memory while it is equilibrated


class ImmoderateSquaresError(Exception):
    """Squares of the Jacobian's entries are outside the range of float64."""


@dataclass
class Count:
    """Computes and counts the singular values of one Jacobian."""

    problem: Problem
    prepared: Plan
    cost: Cost
    chunk_size: int | None
    rtol: float | None
    atol: float | None
    path: str = ""
    held: int = 0
    factor: Tensor | None = None
    """J (B, N, P), the Gram matrix (2, B, N, N), or the triangle (B, s, N)."""
    rows: Tensor | None = None
    """(B, n q): bounds of the errors of J's rows, if there is a rule for them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of parameter points, rows and columns."""
        *points, n, q, P = self.prepared.shape
        return math.prod(points), n * q, P

    def measure(self) -> RankResult:
        """The count on the Jacobian without scaling.

        Raises:
            ImmoderateSquaresError: method "gram" cannot be used.
        """
        _, N, P = self.shape
        q, method = self.prepared.shape[-2], self.cost.method
        batch = self.prepared.shape[:-3]
        native: Tensor | None = None
        if method == "svd":
            J, self.path, native = execute_with_error(self.problem, self.prepared)
            check_finite(J, "the Jacobian", ("sample", "output", "parameter"))
            J = J.flatten(-3, -2)
            values, self.held, self.factor = (
                singular_values(J, "the Jacobian"),
                J.nbytes,
                J.reshape(math.prod(batch), N, P),
            )
        elif method == "tsqr":
            R, self.path = evaluate_triangle(self.problem, q, chunk_size=self.chunk_size)
            self.held = min(R.nbytes + min(BLOCK_BYTES, 16 * N * P), self.cost.nbytes)
            values = singular_values(R, "the triangle of the Jacobian")
            self.factor = R.reshape(math.prod(batch), *R.shape[-2:])
        else:
            K, self.path, native = gram_with_error(self.problem, q, chunk_size=self.chunk_size)
            K = K.reshape(2, *batch, N, N)
            if not _squares_are_moderate(K):
                raise ImmoderateSquaresError
            L = gram_factor(K)
            # The factor is made in two parts of double-double before it is rounded.
            values, self.held = (
                singular_values(L, "the factor of the Gram matrix"),
                2 * K.nbytes + 2 * L.nbytes,
            )
            self.factor = K.reshape(2, -1, N, N)
        values = _padded(values, min(N, P))
        self.rows = self._row_errors(native)
        error, source = self._errors(values.reshape(math.prod(batch), values.shape[-1]))
        found = count(
            values,
            N,
            P,
            error=error.reshape(batch),
            lower_from=source,
            rtol=self.rtol,
            atol=self.atol,
            method=method,
        )
        return replace(found, path=self.path, actual_bytes=self.held)

    def equilibrated(self, found: RankResult) -> RankResult:
        """The count with rows and columns multiplied by powers of two, if it is not less.

        A method without J's columns scales only rows, unless J is small enough to be formed. If the errors of
        the entries are not known, nothing is scaled: small entries may be only rounding errors.
        """
        points, N, P = self.shape
        if self.rows is None:
            return found
        nbytes, device = _COPIES * 8 * points * N * P, self.problem.x.device
        if self.cost.method == "svd":
            J = self.factor
        elif points * N * P <= _WORTH_MAKING and fits(nbytes, device):
            made, self.path, _ = execute_with_error(self.problem, self.prepared)
            J = made.reshape(math.prod(self.prepared.shape[:-3]), N, P)
        else:
            return found.or_equilibrated(self._equilibrated_rows(self.rows))
        if J is None or not fits(nbytes, device):
            return found
        return with_equilibrated(found, J, self._scaled_error, torch.float64)

    def _row_errors(self, native: Tensor | None) -> Tensor | None:
        points, N, _ = self.shape
        if native is not None:
            return native.reshape(points, N)
        if self.problem.mlp is None:
            return None
        x, weights, biases, activation, columns = native_arguments(self.problem)
        rows = row_errors(
            layer_errors(x, weights, biases, activation, autograd=self._by_autograd),
            self.prepared.shape[-2],
            lambda layer, bias: columns is None or columns[2 * layer + bias] >= 0,
            [b is not None for b in biases],
            single=self.problem.dtype == torch.float32,
        )
        return rows.expand(*self.prepared.shape[:-1]).reshape(points, N)

    @property
    def _by_autograd(self) -> bool:
        return self.path != "native mlp"

    def _errors(self, values: Tensor) -> tuple[Tensor, str]:
        """The errors of the values (B, k), and whether they are bounded or estimated."""
        _, N, P = self.shape
        if self.rows is None:
            return estimated_error(values, min(N, P), P, self.problem.dtype), "estimate"
        return self._with_method(values, self.rows.norm(dim=-1), self.factor), "error bound"

    def _with_method(self, values: Tensor, own: Tensor, factor: Tensor | None) -> Tensor:
        """The Jacobian's error `own` plus the error of the method."""
        # Singular values are computed in float64 for every dtype; the error of rounded entries is in `own`.
        _, N, P = self.shape
        own, mlp = own.to(values.device), self.problem.mlp
        if self.cost.method != "gram" or factor is None or mlp is None:
            blocks = -(-P // 256) if self.cost.method == "tsqr" else 0
            return own + svd_error(values, min(N, P), torch.float64, blocks=blocks)
        # The error of an entry of K is this number of units of 2^-102 of the diagonal. The error of a square
        # root of K's eigenvalues is at most the root of the error of K.
        terms = 2 * max(mlp.widths) + len(mlp.weights)
        diagonal = factor[0].diagonal(dim1=-2, dim2=-1)
        squares = (terms + N + 16) * 2.0**-102 * diagonal.sum(-1)
        squares = squares + N * N * 2.0**-104 * diagonal.amax(
            -1
        )  # the remainder that its factor neglects
        linear = own + svd_error(values, N, torch.float64)
        return (linear.square() + squares.to(linear)).sqrt() * 1.0001

    def _scaled_error(self, rows: Tensor, columns: Tensor) -> Tensor:
        x, weights, biases, activation, places = native_arguments(self.problem)
        layers = layer_errors(x, weights, biases, activation, autograd=self._by_autograd)
        single = self.problem.dtype == torch.float32
        return scaled_error(layers, _places(weights, biases, places), rows, columns, single=single)

    def _equilibrated_rows(self, errors: Tensor) -> RankResult:
        """The count with only rows multiplied by powers of two."""
        _, N, P = self.shape
        assert self.factor is not None
        if self.cost.method == "gram":
            sizes = self.factor[0].diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
            power = -torch.frexp(sizes).exponent
            factor = times_power(self.factor, power[:, :, None] + power[:, None, :])
            values = singular_values(gram_factor(factor))
        else:
            power = -torch.frexp(self.factor.abs().amax(-2)).exponent
            factor = times_power(self.factor, power[:, None, :].expand_as(self.factor))
            values = singular_values(factor)
        values = _padded(values, min(N, P))
        own = times_power(errors.to(power.device), power).norm(dim=-1)
        error = self._with_method(values, own, factor)
        batch = self.prepared.shape[:-3]
        return count(values.reshape(*batch, -1), N, P, error=error.reshape(batch))


def _places(
    weights: list[Tensor],
    biases: list[Tensor | None],
    places: list[int] | None,
) -> list[tuple[int | None, int | None]]:
    """The first columns of each layer's weight and bias, None for a tensor without columns."""
    found: list[tuple[int | None, int | None]] = []
    start = 0
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if places is not None:
            own = [None if p < 0 else p for p in places[2 * layer : 2 * layer + 2]]
            found.append((own[0], None if b is None else own[1]))
            continue
        size = w.shape[-2] * w.shape[-1]
        found.append((start, None if b is None else start + size))
        start += size + (0 if b is None else b.shape[-1])
    return found


def _padded(values: Tensor, short: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, max(0, short - values.shape[-1])))[..., :short]


def _squares_are_moderate(K: Tensor) -> bool:
    """Whether K is finite, and large enough that the last bits of double-double do not underflow."""
    top = K[0].diagonal(dim1=-2, dim2=-1).amax(-1)
    return bool(((top > 2.0**-800) & (top < 2.0**900)).all())
