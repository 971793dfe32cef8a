"""What this installation is made of, and whether it computes right on this machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from llr import _ops, reference
from llr.memory import format_bytes, memory_budget


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

    Wrong instructions or a bad build show here. Without the native library, the torch.func path is compared
    with the reference loop instead.

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
