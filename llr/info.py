"""What this installation is made of, and whether it computes right on this machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from llr import _ops, double_double, reference
from llr.memory import format_bytes, memory_budget
from llr.spectrum import svdvals


@dataclass(frozen=True)
class Info:
    """The facts of :func:`info`; prints as a table."""

    facts: dict[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.facts.items())


def info() -> Info:
    """Versions, the backend in use and why, threads, devices and the memory budget.

    Example:
        >>> import llr
        >>> "torch" in llr.info().facts
        True
    """
    try:
        own = version("llr")
    except PackageNotFoundError:
        own = "not installed"
    facts = {
        "llr": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backend": "native" if _ops.NATIVE else "torch.func",
        "because": _ops.REASON,
    }
    build = _ops.build_info()
    if build is not None:
        facts["instructions"] = f"{build['simd_running']} (built: {build['simd_compiled']})"
        facts["CUDA kernels"] = build["cuda_archs"] or "none in this build"
    facts["threads"] = str(torch.get_num_threads())
    cuda = torch.cuda.device_count()
    facts["GPUs"] = ", ".join(torch.cuda.get_device_name(i) for i in range(cuda)) or "none visible"
    facts["memory budget"] = format_bytes(memory_budget())
    return Info(facts)


@dataclass(frozen=True)
class Check:
    """One comparison: the largest error relative to the largest entry, and what is allowed."""

    name: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the error is within bounds; NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class SelfTest:
    """The outcome of :func:`selftest`; prints as a table, ``ok`` if everything agreed."""

    checks: tuple[Check, ...]
    backend: str

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [
            f"{check.name:<{width}}  {check.error:8.1e} (allowed {check.allowed:.0e})  "
            f"{'ok' if check.ok else 'WRONG'}"
            for check in self.checks
        ]
        failed = sum(not check.ok for check in self.checks)
        verdict = "all agree" if failed == 0 else f"{failed} of {len(self.checks)} are WRONG"
        return "\n".join([f"backend: {self.backend}", *lines, verdict])


_ALLOWED = {torch.float64: 1e-13, torch.float32: 1e-5}


def selftest() -> SelfTest:
    """Compare every native operator with plain torch on this machine, in seconds.

    Wrong instructions or a bad build show here. Without the native library, what runs in its
    place is checked.

    Returns:
        A :class:`SelfTest`; ``.ok`` tells, and it prints as a table.

    Example:
        >>> import llr
        >>> llr.selftest().ok
        True
    """
    checks = []
    for dtype, allowed in _ALLOWED.items():
        kind = str(dtype).removeprefix("torch.")
        for activation in reference.ACTIVATIONS:
            errors = [
                _mlp_error(activation, widths, dtype, points)
                for widths in ((5, 1), (2, 20, 1), (3, 33, 16, 2), (40, 150, 7, 9, 10))
                for points in (None, 3)
            ]
            worst = max(errors, key=lambda e: (e != e, e))
            checks.append(Check(f"mlp_jacobian {activation} {kind}", worst, allowed))
        checks.append(Check(f"svdvals {kind}", *_svdvals_error(dtype)))
    if _ops.NATIVE:
        checks.append(Check("mlp_gram", _mlp_gram_error(), 1e-13))
    checks.append(Check("gram_add_ double-double", _gram_error(), 1e-28))
    checks.append(Check("gram_factor", _factor_error(), 1e-13))
    checks.append(Check("first_nonfinite", _nonfinite_error(), 0.0))
    return SelfTest(tuple(checks), "native" if _ops.NATIVE else f"torch.func ({_ops.REASON})")


def _mlp_error(
    activation: str, widths: tuple[int, ...], dtype: torch.dtype, points: int | None
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
    exact = reference.mlp_jacobian(
        x.double(),
        [w.double() for w in weights],
        [None if b is None else b.double() for b in biases],
        activation,
    )
    if _ops.NATIVE:
        result = _ops.mlp_jacobian(x, weights, biases, activation)
    else:
        result = reference.mlp_jacobian(x, weights, biases, activation)
    return float((result.double() - exact).abs().max() / exact.abs().max())


def _svdvals_error(dtype: torch.dtype) -> tuple[float, float]:
    """The largest error over sigma_1 for sizes on every path, and ten short sides of eps."""
    worst = 0.0
    for shape in ((17, 30, 20), (3, 5, 40), (2, 1000, 7), (200, 150)):
        A = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        A[..., -1] = A[..., 0]  # rank deficient
        A = A.to(dtype)
        exact = torch.linalg.svdvals(A.double())
        error = (svdvals(A).double() - exact).abs().amax(-1) / exact[..., 0]
        worst = max(worst, float(error.max()) / min(shape[-2:]))
    return worst, 10 * torch.finfo(dtype).eps


def _mlp_gram_error() -> float:
    generator = torch.Generator().manual_seed(0)
    sizes = ((70, 3), (20, 3), (20,), (2, 20))
    x, first, bias, second = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes
    )
    arguments = (x, [first, second], [bias, None], "tanh")
    J = reference.mlp_jacobian(*arguments).flatten(0, 1)
    K = _ops.mlp_gram(*arguments).reshape(140, 140)
    return float((K - J @ J.T).abs().max() / K.abs().max())


def _layer() -> tuple[Tensor, Tensor, Tensor]:
    """Numbers that cancel, so that their Gram matrix needs its low part."""
    generator = torch.Generator().manual_seed(0)
    delta, a = (torch.randn(70, 2, w, generator=generator, dtype=torch.float64) for w in (9, 5))
    return torch.zeros(2, 70, 70, dtype=torch.float64), delta, a


def _gram_error() -> float:
    K, delta, a = _layer()
    expected = K.clone()
    _ops.gram_add_(K, delta, a, bias=True)
    double_double.gram_add_(expected, delta, a, bias=True)
    difference = (K[0] - expected[0]) + (K[1] - expected[1])
    return float(difference.abs().max() / expected[0].abs().max())


def _factor_error() -> float:
    K, delta, a = _layer()
    _ops.gram_add_(K, delta, a)
    rows = (delta.mT @ a).flatten(1)  # J, of rank 45
    exact = torch.linalg.svdvals(rows)
    found = svdvals(_ops.gram_factor(K))[: len(exact)]
    return float((found - exact).abs().max() / exact[0])


def _nonfinite_error() -> float:
    wrong = 0
    for length in (1, 7, 8, 9, 33):
        for bad in (float("nan"), float("inf"), float("-inf")):
            for position in (0, length // 2, length - 1):
                clean, spoiled = torch.ones(length), torch.ones(length, dtype=torch.float64)
                spoiled[position] = bad
                wrong += _ops.first_nonfinite([clean, spoiled]) != 1
        wrong += _ops.first_nonfinite([torch.full((length,), 1e38)]) != -1
    return float(wrong)
