"""The Gram matrix of the Jacobian's rows, J J', without the Jacobian; and the triangle of its QR."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from llr.inputs.accept import a_model, takes, valued
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.parameters import Selection
from llr.inputs.probe import refuse_interactions
from llr.inputs.problem import Model, Problem, read_problem
from llr.inputs.roles import a_progress, word
from llr.inputs.warned import warn_of_no_kernel
from llr.jacobians.jacobian import Progress, prepare
from llr.jacobians.layers import Factor, stream
from llr.jacobians.paths import native_arguments
from llr.jacobians.signals import at_point, read_layers
from llr.operators import _ops
from llr.results.progress import following, step

PRECISIONS = ("float64", "double-double")
BACKENDS = ("auto", "native", "layers", "dense")
_NAMES = {"native": "native mlp", "layers": "layers", "dense": "blocks of columns"}

BLOCK_BYTES = 256 << 20
"""The largest total size of the parts of the Jacobian that are in memory at a time."""
LEAST_COLUMNS = 64


@takes(model=a_model, x=valued, precision=word, backend=word, progress=a_progress)
@outside_inference_mode
def gram(
    model: Model,
    x: Tensor,
    *,
    params: Selection = None,
    precision: str = "float64",
    backend: str = "auto",
    chunk_size: int | None = None,
    progress: Progress | bool | None = None,
) -> Tensor:
    """K = J J': the inner products of the rows of the Jacobian, also called the empirical tangent kernel.

    K[i, j, k, l] is the inner product of the gradients of output j at sample i and output l at sample k. An
    MLP takes n^2 (sum of widths) operations, independently of its number of parameters: a layer contributes
    (delta . delta) (a . a + 1), with a the layer's input and delta the derivative of the model's output with
    respect to the layer's output. Other modules are computed in the same way for linear, convolutional,
    embedding and norm layers, and by blocks of columns of J for all other parameters. J itself is never made.

    Args:
        model: a module, or a callable f(params, x).
        x: (n, ...) samples. For a kernel between two samples, take the block of ``torch.cat((x1, x2))``.
        params: which parameters to use, or their values, as for :func:`llr.jacobian`.
        precision: "float64"; or "double-double" for 106 bits. K squares singular values, so that float64
            keeps only half of their digits. The singular values of a double-double factor of K (`llr.rank`
            with method="gram") are as good as those of J.
        backend: "auto"; or "native" (an MLP, if there is a kernel for its device), "layers" (a module) or
            "dense" to require this method.
        chunk_size: samples to run the model on at a time; default: as many as fit :func:`llr.memory_budget`.
        progress: False for none; or a function, called as ``progress(done, total)`` with parameters while the
            model is taken layer by layer, or by blocks of columns. Default: after two seconds a line on a
            terminal or in a notebook.

    Returns:
        (n, q, n, q), or (B, n, q, n, q) for stacked parameter points; float64 for every dtype of the model.
        With "double-double" the first axis has size 2: the high parts, and the low parts to be added.

    Raises:
        ValueError: an unknown precision or backend, a result larger than the memory budget; and everything
            that :func:`llr.jacobian` refuses.

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
    with following(progress, tell=True):
        return evaluate_gram(problem, precision=precision, backend=backend, chunk_size=chunk_size)[
            0
        ]


def evaluate_gram(
    problem: Problem,
    outputs: int | None = None,
    *,
    precision: str = "double-double",
    backend: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Tensor, str]:
    """:func:`gram` of a problem read in float64, and the name of the method.

    If `outputs` is given, the q found by :func:`llr.jacobians.jacobian.prepare`, the model is not probed
    again.
    """
    return gram_with_error(
        problem, outputs, precision=precision, backend=backend, chunk_size=chunk_size, errors=False
    )[:2]


def gram_with_error(
    problem: Problem,
    outputs: int | None = None,
    *,
    precision: str = "double-double",
    backend: str = "auto",
    chunk_size: int | None = None,
    errors: bool = True,
) -> tuple[Tensor, str, Tensor | None]:
    """:func:`evaluate_gram`, and the errors of J's rows (..., n, q) if the native operator bounds them."""
    n, points = len(problem.x), problem.columns.points
    q = prepare(problem, chunk_size, "torch").shape[-2] if outputs is None else outputs
    parts = (2,) if precision == "double-double" else ()
    batch = () if points is None else (points,)
    shape = (*parts, *batch, n, q, n, q)
    nbytes = 8 * math.prod(shape)
    budget = _budget(problem, nbytes, n * q, f"the Gram matrix of shape {shape}")
    chosen = _choose(problem, backend, nbytes + signal_bytes(problem))
    if chosen == "native":
        double_double = precision == "double-double"
        with torch.no_grad():
            if errors and problem.x.is_cpu:
                K, bound = _ops.mlp_gram_with_error(*native_arguments(problem), double_double)
                return K, _NAMES[chosen], bound
            return _ops.mlp_gram(*native_arguments(problem), double_double), _NAMES[chosen], None
    results = []
    with torch.no_grad():
        for point in range(points or 1):
            K = problem.x.new_zeros(*parts, n * q, n * q, dtype=torch.float64)
            for part in _parts(problem, point, q, chosen, budget // 3, chunk_size):
                _add(K, part, budget // 3)
            results.append(K)
    K = results[0] if points is None else torch.stack(results, len(parts))
    return K.reshape(shape), _NAMES[chosen], None


def gram_factor(K: Tensor) -> Tensor:
    """L with L L' = K, for K in two parts as from :func:`gram_with_error`."""
    return _ops.gram_factor(K)


def evaluate_triangle(
    problem: Problem, outputs: int | None = None, *, chunk_size: int | None = None
) -> tuple[Tensor, str]:
    """R of J' = Q R from blocks of J's columns, without the whole J, and the name of the method.

    R is upper triangular with R' R = J J', so its singular values are those of J. Each block of columns
    updates R by a QR factorisation; the result is as accurate as a QR factorisation of J.

    Args:
        problem: read in float64.
        outputs: as for :func:`evaluate_gram`.
        chunk_size: samples to run the model on at a time.

    Returns:
        (min(N, P), N) with N = n q rows and P columns of J, or (B, ...); and "layers" or "blocks of columns".

    Source: Demmel, Grigori, Hoemmen, Langou, "Communication-optimal parallel and sequential QR and LU
    factorizations", SIAM J. Sci. Comput. 34 (2012), for the sequential form.
    """
    points, P = problem.columns.points, problem.columns.count
    q = prepare(problem, chunk_size, "torch").shape[-2] if outputs is None else outputs
    N = len(problem.x) * q
    # The memory for R, and for the input and output of QR.
    budget = _budget(problem, 3 * 8 * N * N, N, f"the triangular factor of {N} rows")
    chosen = "layers" if isinstance(problem.model, nn.Module) else "dense"
    results = []
    with torch.no_grad():
        for point in range(points or 1):
            parts = _parts(problem, point, q, chosen, budget // 4, chunk_size)
            R = _reduce(problem.x.new_zeros(0, N), parts, max(1, budget // (32 * max(1, N))))
            padding = R.new_zeros(min(N, P) - len(R), N)  # columns of zeros may be missing
            results.append(torch.cat((R, padding)))
    return (results[0] if points is None else torch.stack(results)), _NAMES[chosen]


def _parts(
    problem: Problem, point: int, q: int, chosen: str, budget: int, chunk_size: int | None
) -> Iterator[Factor | Tensor]:
    if len(problem.x) * q == 0:
        return
    layers = read_layers(at_point(problem, point), q, every=chosen == "layers")
    P, done = problem.columns.count, 0
    total = P * (problem.columns.points or 1)
    for part in stream(layers, budget, chunk_size):
        yield part
        done = min(done + part.shape[1] if isinstance(part, Tensor) else done + part.columns, P)
        step("Jacobian: parameters", point * P + done, total)
    if problem.mlp is None and point == 0:
        refuse_interactions(problem)


def _reduce(R: Tensor, parts: Iterable[Factor | Tensor], columns: int) -> Tensor:
    """The triangular factor of R and all parts, taking at most `columns` columns of J at a time."""
    width = min(columns, max(256, 4 * R.shape[1]))
    waiting: list[Tensor] = []
    for part in parts:
        for block in part.blocks(width) if isinstance(part, Factor) else part.split(width, 1):
            waiting.append(block.mT)
            if sum(map(len, waiting)) >= width:
                R, waiting = torch.linalg.qr(torch.cat((R, *waiting)), mode="r").R, []
    return torch.linalg.qr(torch.cat((R, *waiting)), mode="r").R if waiting else R


def _add(K: Tensor, part: Factor | Tensor, budget: int) -> None:
    """Add a part's inner products to K, in the cheaper of two ways.

    A pair of rows takes T^2 (h + w) products for a factor, and h w for the columns that the factor
    represents.
    """
    if isinstance(part, Tensor):
        _ops.gram_add_(K, part.new_ones(len(part), 1, 1), part[:, None].contiguous())
        return
    T, h, w = *part.delta.shape[2:], part.a.shape[-1]
    if T == 1 or (not part.vocabulary and T * T * (h + w) <= h * w):
        _ops.gram_add_(K, *part.operands(), part.bias)
        return
    for block in part.blocks(max(1, budget // (16 * len(K[0])))):
        _add(K, block, budget)


def signal_bytes(problem: Problem) -> int:
    """The memory that the native operator needs besides K."""
    if problem.mlp is None:
        return 0
    widths = problem.mlp.widths
    q = widths[-1]
    return 8 * len(problem.x) * (widths[0] + (2 + q) * sum(widths[1:-1]) + q * q)


def _choose(problem: Problem, backend: str, native_bytes: int) -> str:
    if backend in ("auto", "native"):
        obstacle = missing = problem.why_not_mlp or _ops.why_no_kernel(problem.x.device)
        if not missing and not fits(native_bytes, problem.x.device):
            obstacle = f"it takes {format_bytes(native_bytes)}, more than the memory budget"
        if not obstacle:
            return "native"
        if backend == "native":
            raise ValueError(
                f"backend='native' cannot compute this model: {obstacle}; backend='auto' goes layer by layer"
            )
        if problem.mlp is not None and missing:
            warn_of_no_kernel(problem.x.device, missing)
    has_layers = isinstance(problem.model, nn.Module)
    if backend == "layers" and not has_layers:
        raise ValueError(
            "backend='layers' reads the layers of a module, and a callable has none; backend='auto' takes "
            "blocks of columns of its Jacobian"
        )
    return "layers" if has_layers and backend != "dense" else "dense"


def _budget(problem: Problem, held: int, N: int, what: str) -> int:
    """The bytes for parts of J, besides the `held` bytes that are needed all the time."""
    device, least = problem.x.device, 8 * N * LEAST_COLUMNS
    if not fits(held + least, device):
        raise ValueError(
            f"{what} takes {format_bytes(held)} ({held} bytes), with {LEAST_COLUMNS} columns of the "
            f"Jacobian {format_bytes(held + least)}, more than the memory budget of "
            f"{format_bytes(memory_budget(device))}; take fewer samples, or raise the budget with "
            "llr.set_memory_budget(bytes)"
        )
    return min(max(least, memory_budget(device) - held), BLOCK_BYTES)
