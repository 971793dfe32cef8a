"""Facts about this installation, and a test that it computes correctly on this machine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from llr.inputs.accept import takes
from llr.inputs.evaluation.surroundings import full_precision, outside_inference_mode
from llr.inputs.memory import format_bytes, memory_budget
from llr.inputs.roles import a_device
from llr.linalg.spectrum import singular_values
from llr.operators import _ops, double_double, formula
from llr.ranks.installation import Check as Check
from llr.ranks.installation import Info as Info
from llr.ranks.installation import SelfTest as SelfTest

VERSION = "0.1.0"
"""The version of llr. The package's metadata read it from here as text: see pyproject.toml."""


def info() -> Info:
    """Versions, the backend in use and why, threads, devices and the memory budget.

    Example:
        >>> import llr
        >>> "torch" in llr.info().facts
        True
    """
    facts = {
        "llr": VERSION,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "backend": "native" if _ops.NATIVE else "torch.func",
        "because": _ops.REASON,
    }
    build = _ops.build_info()
    if build is not None:
        facts["instructions"] = f"{build['simd_running']} (built: {build['simd_compiled']})"
        facts["CUDA kernels"] = build["cuda_archs"] or f"none: {_ops.CUDA_REASON}"
    facts["threads"] = str(torch.get_num_threads())
    gpus = _gpus()
    for gpu in gpus:
        obstacle = _ops.why_no_kernel(gpu)
        capability = "{}.{}".format(*torch.cuda.get_device_capability(gpu))
        facts[str(gpu)] = (
            f"{torch.cuda.get_device_name(gpu)}, compute capability {capability}, "
            + (f"torch.func ({obstacle})" if obstacle else "native")
        )
    if not gpus:
        facts["GPUs"] = "none visible"
    facts["memory budget"] = format_bytes(memory_budget())
    return Info(facts)


def _gpus() -> list[torch.device]:
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


_ALLOWED = {torch.float64: 1e-13, torch.float32: 1e-5}


@takes(device=a_device)
@outside_inference_mode
def selftest(device: torch.device | str | None = None) -> SelfTest:
    """Compare every native operator with plain torch on this machine, in seconds.

    The test finds wrong instructions and bad builds. Without a native library, or without kernels for a GPU,
    the code that replaces it is tested.

    Args:
        device: "cpu", "cuda" for every visible GPU, or one GPU; by default the CPU and all GPUs.

    Returns:
        A table with one line for each check; ``.ok`` tells whether all agree.

    Raises:
        ValueError: another device, or one that does not exist.

    Example:
        >>> import llr
        >>> llr.selftest("cpu").ok
        True
    """
    devices = _devices(device)
    checks = [check for where in devices for check in _checks(where)]
    obstacles = {where: _ops.why_no_kernel(where) for where in devices}
    backend = "; ".join(
        f"torch.func on {where} ({obstacle})" if obstacle else f"native on {where}"
        for where, obstacle in obstacles.items()
    )
    return SelfTest(tuple(checks), backend)


def _devices(device: torch.device | str | None) -> list[torch.device]:
    gpus = _gpus()
    if device is None:
        return [torch.device("cpu"), *gpus]
    asked = torch.device(device)
    if asked.type == "cpu":
        return [torch.device("cpu")]
    found = [gpu for gpu in gpus if asked.type == "cuda" and asked.index in (None, gpu.index)]
    if not found:
        visible = ", ".join(["cpu", *map(str, gpus)])
        raise ValueError(
            f"device is {str(device)!r}; expected one of those visible here: {visible}"
        )
    return found


def _checks(device: torch.device) -> list[Check]:
    checks = []

    def add(name: str, allowed: float, measure: Callable[[], float]) -> None:
        note, error = "", float("inf")
        try:
            error = measure()
        except Exception as problem:  # a wrong operator may raise any exception
            note = next(iter(str(problem).splitlines()), type(problem).__name__)
        checks.append(Check(name, error, allowed, str(device), note))

    for dtype, allowed in _ALLOWED.items():
        kind = str(dtype).removeprefix("torch.")
        for activation in formula.ACTIVATIONS:
            name = f"mlp_jacobian {activation} {kind}"
            add(name, allowed, partial(_mlp_error, activation, dtype, device))
        # The allowed error is 10 eps per short side.
        ten_eps = 10 * torch.finfo(dtype).eps
        add(f"svdvals {kind}", ten_eps, partial(_svdvals_error, dtype, device))
    if not _ops.why_no_kernel(device):
        add("mlp_gram", 1e-13, partial(_mlp_gram_error, device))
        if device.type == "cpu":
            for widths, n in (((3, 4, 2), 40), ((5, 30, 3), 9)):  # J'J is smaller, or JJ'
                add(f"lm_solve {n} samples", 1e-12, partial(_lm_error, widths, n))
            add("lm_solve factorization", 1e-12, _lm_factorization_error)
    add("gram_add_ double-double", 1e-28, partial(_gram_error, device))
    add("gram_factor", 1e-13, partial(_factor_error, device))
    add("first_nonfinite", 0.0, partial(_nonfinite_error, device))
    return checks


def _difference(result: Tensor, exact: Tensor) -> Tensor:
    """The difference, on the CPU and in float64, as `exact` is."""
    if result.shape != exact.shape:
        raise ValueError(f"shape {tuple(result.shape)}, expected {tuple(exact.shape)}")
    return result.cpu().double() - exact


def _relative(result: Tensor, exact: Tensor) -> float:
    return float(_difference(result, exact).abs().max() / exact.abs().max())


_NETS = [
    (widths, points)
    for widths in ((5, 1), (2, 20, 1), (3, 33, 16, 2), (40, 150, 7, 9, 10))
    for points in (None, 3)
]


def _mlp_error(activation: str, dtype: torch.dtype, device: torch.device) -> float:
    errors = [_error_of_net(activation, *net, dtype, device) for net in _NETS]
    return max(errors, key=lambda e: (e != e, e))


def _error_of_net(
    activation: str,
    widths: tuple[int, ...],
    points: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    generator = torch.Generator().manual_seed(len(widths))
    batch = () if points is None else (points,)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (values / shape[-1] ** 0.5).to(dtype)

    x = draw(17, widths[0])
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [draw(*batch, out, into) for out, into in pairs]
    biases = [draw(*batch, out) if layer != 1 else None for layer, (out, _) in enumerate(pairs)]
    exact = formula.mlp_jacobian(
        x.double(),
        [w.double() for w in weights],
        [None if b is None else b.double() for b in biases],
        activation,
    )
    compute = formula.mlp_jacobian if _ops.why_no_kernel(device) else _ops.mlp_jacobian
    with full_precision():
        result = compute(
            x.to(device),
            [w.to(device) for w in weights],
            [None if b is None else b.to(device) for b in biases],
            activation,
        )
    return _relative(result, exact)


def _svdvals_error(dtype: torch.dtype, device: torch.device) -> float:
    """The largest error divided by sigma_1 and the short side, for sizes that use every code path."""
    worst = 0.0
    for shape in ((17, 30, 20), (3, 5, 40), (2, 1000, 7), (200, 150)):
        A = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        A[..., -1] = A[..., 0]  # rank deficient
        A = A.to(dtype)
        exact = torch.linalg.svdvals(A.double())
        error = _difference(singular_values(A.to(device)), exact).abs().amax(-1) / exact[..., 0]
        worst = max(worst, float(error.max()) / min(shape[-2:]), key=lambda e: (e != e, e))
    return worst


def _mlp_gram_error(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    sizes = ((70, 3), (20, 3), (20,), (2, 20))
    x, first, bias, second = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes
    )
    J = formula.mlp_jacobian(x, [first, second], [bias, None], "tanh").flatten(0, 1)
    x, first, bias, second = (t.to(device) for t in (x, first, bias, second))
    K = _ops.mlp_gram(x, [first, second], [bias, None], "tanh")
    return _relative(K, (J @ J.T).view(70, 2, 70, 2))


_STARTS = 19  # more than a vector has lanes


def _lm_error(widths: tuple[int, int, int], n: int) -> float:
    """The error of one damped step from each start."""
    d, m, q = widths
    generator = torch.Generator().manual_seed(0)
    sizes = ((_STARTS, m, d), (_STARTS, m), (_STARTS, q, m), (n, d), (n, q))
    first, bias, second, x, y = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes
    )
    J = formula.mlp_jacobian(x, [first, second], [bias, None], "tanh")
    outputs = torch.tanh(x @ first.mT + bias[:, None]) @ second.mT
    theta = torch.cat([first.flatten(1), bias, second.flatten(1)], 1)
    return _step_error(theta, x, y, J, outputs, ("mlp", widths, "tanh", (True, False)))


def _lm_factorization_error() -> float:
    """As :func:`_lm_error`, for a factorization, where every lane reads its own entries."""
    rows, rank, columns, n = 5, 2, 4, 15
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(_STARTS, rank * (rows + columns), generator=generator, dtype=torch.float64)
    A, B = (
        p.unflatten(1, (-1, c))
        for p, c in zip(theta.split([10, 8], 1), (rank, columns), strict=True)
    )
    i, j = (torch.randint(most, (n,), generator=generator) for most in (rows, columns))
    y = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    J_A, J_B = A.new_zeros(_STARTS, n, rows, rank), A.new_zeros(_STARTS, n, rank, columns)
    at = torch.arange(n)
    J_A[:, at, i], J_B[:, at, :, j] = B[:, :, j].mT, A[:, i].transpose(0, 1)
    J = torch.cat([J_A.flatten(2), J_B.flatten(2)], 2)[:, :, None]
    outputs = (A[:, i] * B[:, :, j].mT).sum(2, keepdim=True)
    pairs = torch.stack([i, j], 1).double()
    return _step_error(
        theta, pairs, y, J, outputs, ("factorization", (rows, rank, columns), "identity", ())
    )


def _step_error(
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    J: Tensor,
    outputs: Tensor,
    model: tuple[str, Sequence[int], str, Sequence[bool]],
) -> float:
    damping = 1e4  # so large that the step lowers the loss and is accepted
    J, r = J.flatten(1, 2), (outputs - y).flatten(1)
    normal = J.mT @ J + damping * torch.eye(theta.shape[1], dtype=torch.float64)
    # Not torch.linalg.solve: with MKL and threads set by torch.set_num_threads its batched LU may fail.
    gradient = J.mT @ r[..., None]
    exact = torch.cholesky_solve(gradient, torch.linalg.cholesky(normal))[..., 0]
    which = torch.zeros(len(theta), dtype=torch.int64)
    moved, *_ = _ops.lm_solve(theta, x[None], y[None], which, *model, damping=damping, iterations=1)
    return _relative(theta - moved, exact)


def _layer() -> tuple[Tensor, Tensor, Tensor]:
    """Numbers with cancellation, so that their Gram matrix needs its low part."""
    generator = torch.Generator().manual_seed(0)
    delta, a = (torch.randn(70, 2, w, generator=generator, dtype=torch.float64) for w in (9, 5))
    return torch.zeros(2, 70, 70, dtype=torch.float64), delta, a


def _gram_error(device: torch.device) -> float:
    expected, delta, a = _layer()
    K = expected.to(device, copy=True)
    _ops.gram_add_(K, delta.to(device), a.to(device), bias=True)
    double_double.gram_add_(expected, delta, a, bias=True)
    high, low = _difference(K, expected)
    return float((high + low).abs().max() / expected[0].abs().max())


def _factor_error(device: torch.device) -> float:
    K, delta, a = (t.to(device) for t in _layer())
    _ops.gram_add_(K, delta, a)
    rows = (delta.mT @ a).flatten(1).cpu()  # J, of rank 45
    exact = torch.linalg.svdvals(rows)
    return _relative(singular_values(_ops.gram_factor(K))[: len(exact)], exact)


def _nonfinite_error(device: torch.device) -> float:
    wrong = 0
    for length in (1, 7, 8, 9, 33):
        for bad in (float("nan"), float("inf"), float("-inf")):
            for position in (0, length // 2, length - 1):
                clean = torch.ones(length, device=device)
                spoiled = torch.ones(length, dtype=torch.float64, device=device)
                spoiled[position] = bad
                wrong += _ops.first_nonfinite([clean, spoiled]) != 1
        wrong += _ops.first_nonfinite([torch.full((length,), 1e38, device=device)]) != -1
    return float(wrong)
