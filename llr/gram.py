"""The Gram matrix of the Jacobian's rows, J J', without the Jacobian; and the triangle of its QR."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llr import _ops
from llr.jacobian import native_arguments, prepare
from llr.layers import factors
from llr.memory import fits, format_bytes, memory_budget
from llr.parameters import Columns, Selection
from llr.problem import Model, Problem, read_problem
from llr.spectrum import shorten
from llr.surroundings import full_precision, outside_inference_mode

PRECISIONS = ("float64", "double-double")
BACKENDS = ("auto", "native", "layers")


@outside_inference_mode
def gram(
    model: Model,
    x: Tensor,
    *,
    params: Selection = None,
    precision: str = "float64",
    backend: str = "auto",
) -> Tensor:
    """K = J J': the inner products of the rows of the Jacobian, also called the empirical tangent kernel.

    K[i, j, k, l] is the inner product of the gradients of output j at sample i and output l at sample k. An
    MLP takes n^2 (sum of widths) operations, however many parameters it has: a layer's share is
    (delta . delta) (a . a + 1), from what it is fed and what its output does to the model's. Other modules go
    layer by layer in the same way, where their layers are linear, convolutional, embeddings or norms, and by
    blocks of columns of J where not. J itself is never made.

    Args:
        model: a module, or a callable f(params, x).
        x: (n, ...) samples. For a kernel between two samples, take the block of ``torch.cat((x1, x2))``.
        params: which parameters count, or their values, as for :func:`llr.jacobian`.
        precision: "float64"; or "double-double" for 106 bits. K squares singular values, so that float64
            holds half of their digits only; those of double-double's factor (`llr.rank` with
            method="gram") are as good as those of J.
        backend: "auto", or "native" (an MLP, on the CPU) or "layers" to insist.

    Returns:
        (n, q, n, q), or (B, n, q, n, q) for stacked parameter points; float64 whatever the model's dtype.
        With "double-double" there is an axis of 2 in front: the high parts, and the low parts to be added.

    Raises:
        ValueError: another precision or backend, a result larger than the memory budget; and what
            :func:`llr.jacobian` refuses.

    Source: Jacot, Gabriel, Hongler, "Neural Tangent Kernel: Convergence and Generalization in Neural
    Networks" (2018), for the kernel; Novak, Sohl-Dickstein, Schoenholz, "Fast Finite Width Neural Tangent
    Kernel" (2022), for computing it layer by layer.

    Example:
        >>> import llr, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(5, 3)
        >>> K = llr.gram(model, x)
        >>> J = llr.jacobian(model.double(), x.double()).flatten(0, 1)
        >>> K.shape, torch.allclose(K.reshape(10, 10), J @ J.T)
        (torch.Size([5, 2, 5, 2]), True)
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    problem = read_problem(model, x, params, torch.float64)
    return gram_matrix(problem, precision == "double-double", backend)[0]


def gram_matrix(problem: Problem, double_double: bool, backend: str = "auto") -> tuple[Tensor, str]:
    """:func:`gram` of a problem in float64, and the name of what computed it."""
    *points, n, q, _ = prepare(problem).shape
    shape = (*([2] if double_double else []), *points, n, q, n, q)
    nbytes = 8 * torch.Size(shape).numel()
    if not fits(nbytes, problem.x.device):
        raise ValueError(
            f"the Gram matrix of shape {shape} takes {format_bytes(nbytes)} ({nbytes} bytes), more than the "
            f"memory budget of {format_bytes(memory_budget(problem.x.device))}; take fewer samples, or raise "
            "the budget with llr.set_memory_budget(bytes)"
        )
    native = problem.mlp is not None and _ops.has_kernel(problem.x)
    if backend == "native" and not native:
        raise ValueError(
            f"backend='native' cannot compute this model: {problem.why_not_mlp or _ops.REASON}; "
            "backend='auto' goes layer by layer"
        )
    if native and backend != "layers":
        with torch.no_grad():
            return _ops.mlp_gram(*native_arguments(problem), double_double), "native mlp"
    K = problem.x.new_zeros(shape, dtype=torch.float64)
    if K.numel():
        with torch.no_grad():
            for point in range(points[0] if points else 1):
                part = K.select(int(double_double), point) if points else K
                total = part.reshape(*part.shape[:-4], n * q, n * q).contiguous()
                for factor in factors(at_point(problem, point)):
                    factor.add_to(total)
                part.copy_(total.view_as(part))
    return K, "layers"


def triangle(problem: Problem, nbytes: int) -> tuple[Tensor, str]:
    """R of J' = Q R, from blocks of J's columns of about so many bytes, and what computed them.

    R is (min(N, P) at most, N), with leading parameter points if there are any; its singular values are those
    of J. Each block updates it by a QR of its own, as stable as one of J; J is never whole.
    """
    *points, n, q, _ = prepare(problem).shape
    found = []
    with torch.no_grad(), full_precision():
        for point in range(points[0] if points else 1):
            R = problem.x.new_zeros(0, n * q)
            for factor in factors(at_point(problem, point)):
                for block in factor.blocks(nbytes):
                    R = torch.linalg.qr(torch.cat((R, shorten(block.mT))), mode="r").R
            found.append(R)
    return (torch.stack(found) if points else found[0]), "layers"


def at_point(problem: Problem, index: int) -> Problem:
    """The problem at one of its parameter points."""
    if problem.columns.points is None:
        return problem
    return replace(problem, columns=Columns(problem.point(index), problem.columns.fixed))
