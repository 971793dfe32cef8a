"""Loads the native library and calls its operators; what torch's transforms need is in _transforms.

The only file that names ``torch.ops.llr``. Where the library cannot be loaded, ``NATIVE`` is False and
``REASON`` says why; where it has no CUDA kernels, ``CUDA_REASON`` does. Everything else then works on
``torch.func``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from importlib import import_module, resources
from typing import Any, cast

import torch
from torch import Tensor

from llr.operators import double_double

BUILD_FACTS = "_build.json"


def _build_facts() -> dict[str, Any]:
    """What setup.py wrote when this copy of llr was installed; empty for a checkout that is not installed."""
    try:
        return cast(dict[str, Any], json.loads((resources.files("llr") / BUILD_FACTS).read_text()))
    except FileNotFoundError:
        return {}


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def _load() -> tuple[Any, str]:
    """The native module and how it was built, or None and why it is missing."""
    facts = _build_facts()
    if not facts:
        return None, "this copy of llr was never installed (pip install --no-build-isolation -e .)"
    if not facts["native"]:
        return None, f"installed without the native library: {facts['reason']}"
    built, running = facts["torch"], torch.__version__
    if _release(built) != _release(running):
        # The linker does not find this: a library can load and still have another layout of a class.
        return None, (
            f"the native library was built for torch {built} but torch {running} is running; "
            "install llr again: pip install --no-build-isolation --force-reinstall --no-deps llr"
        )
    try:
        library = import_module("llr._C")
    except ImportError as error:
        return None, (
            f"the native library, built for torch {built}, does not load with torch {running}: {error}"
        )
    return library, f"built for torch {built} with {facts['compiler']}"


def _cuda_reason() -> str:
    """Why the operators have no CUDA kernels; empty if they have."""
    if _library is None:
        return REASON
    if torch._C._dispatch_has_kernel_for_dispatch_key("llr::mlp_jacobian", "CUDA"):
        return ""
    return cast(str, _build_facts()["cuda_reason"])


_library, REASON = _load()
NATIVE: bool = _library is not None
CUDA_REASON = _cuda_reason()


class _native:  # noqa: N801 - a namespace
    """The operators' overloads, looked up once: for a small network the lookup takes a noticeable time."""

    if NATIVE:
        mlp_jacobian = staticmethod(torch.ops.llr.mlp_jacobian.default)
        mlp_jacobian_out = staticmethod(torch.ops.llr.mlp_jacobian.out)
        mlp_jacobian_with_error = staticmethod(torch.ops.llr.mlp_jacobian_with_error.default)
        mlp_gram_with_error = staticmethod(torch.ops.llr.mlp_gram_with_error.default)
        first_nonfinite = staticmethod(torch.ops.llr.first_nonfinite.default)
        svdvals = staticmethod(torch.ops.llr.svdvals.default)
        mlp_gram = staticmethod(torch.ops.llr.mlp_gram.default)
        gram_add_ = staticmethod(torch.ops.llr.gram_add_.default)
        gram_factor = staticmethod(torch.ops.llr.gram_factor.default)
        lm_solve = staticmethod(torch.ops.llr.lm_solve.default)


def build_info() -> dict[str, str] | None:
    """Compiler, torch, CUDA architectures and SIMD levels of the native library; None without it."""
    return None if _library is None else dict(_library.build_info())


def mlp_jacobian(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``torch.ops.llr.mlp_jacobian``; arguments and result as :func:`llr.operators.formula.mlp_jacobian`."""
    if out is None:
        return cast(Tensor, _native.mlp_jacobian(x, weights, biases, activation, columns))
    _native.mlp_jacobian_out(x, weights, biases, activation, columns, out=out)
    return out


def mlp_jacobian_with_error(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`mlp_jacobian`, and for each of its rows how far it may be from the exact one; on the CPU.

    Returns:
        J (..., n, q, P), and bounds (..., n, q) in float64 of the root of the sum of squared errors of a
        row's entries, infinity where no bound is known; see :mod:`llr.linalg.error_bound`.
    """
    result = _native.mlp_jacobian_with_error(x, weights, biases, activation, columns)
    return cast(tuple[Tensor, Tensor], result)


def mlp_gram_with_error(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
    double_double: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`mlp_gram`, and the errors of J's rows as :func:`mlp_jacobian_with_error`; on the CPU."""
    result = _native.mlp_gram_with_error(x, weights, biases, activation, columns, double_double)
    return cast(tuple[Tensor, Tensor], result)


def first_nonfinite(tensors: Sequence[Tensor]) -> int:
    """The index of the first tensor with a NaN or an infinity, or -1; floating, on one device."""
    if not tensors:
        return -1
    if NATIVE and tensors[0].is_cpu:
        return cast(int, _native.first_nonfinite(tensors))
    # All reductions start before the first result is awaited. Extremes propagate NaN and infinity, and need
    # no memory of the tensors' size.
    extremes = [torch.stack(t.detach().aminmax()) if t.numel() else t.new_zeros(2) for t in tensors]
    finite = torch.stack([torch.isfinite(e).all() for e in extremes]).tolist()
    return -1 if all(finite) else finite.index(False)


def why_no_kernel(device: torch.device) -> str:
    """Why the native operators do not compute on this device; empty where they do."""
    if not NATIVE:
        return REASON
    if device.type == "cuda":
        return _why_not_on_gpu(device.index)
    return "" if device.type == "cpu" else f"no native kernel for {device.type}"


def has_kernel(*tensors: Tensor) -> bool:
    """Whether the native operators compute with these tensors: all on one device, which has kernels."""
    device = tensors[0].device
    return all(t.device == device for t in tensors) and not why_no_kernel(device)


@functools.cache
def _why_not_on_gpu(index: int) -> str:
    """Why the kernels do not run on this GPU; CUDA's own error would come late and not say what to do."""
    if CUDA_REASON:
        return f"no CUDA kernels in this build: {CUDA_REASON}"
    archs = (build_info() or {})["cuda_archs"]
    capability = torch.cuda.get_device_capability(index)
    if _covers(archs, capability):
        return ""
    name, version = torch.cuda.get_device_name(index), "{}.{}".format(*capability)
    return (
        f"the CUDA kernels were built for {archs}, and {name} has compute capability {version}; to have "
        f"them, install llr again with TORCH_CUDA_ARCH_LIST={version}"
    )


_EMBEDDED = {(8, 7)}  # Orin: machine code for it and for other GPUs is not compatible either way


def _covers(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for these architectures ("8.0 9.0 12.0+PTX") runs on a GPU of this capability.

    Machine code runs on GPUs of its major version and at least its minor version; with an "a", on exactly its
    own version. PTX without a letter runs on every version from its own on.
    """
    known = re.findall(r"(\d+)\.(\d)([af]?)(\+PTX)?", archs)
    for major, minor, letter, ptx in known:
        arch = int(major), int(minor)
        alike = arch[0] == capability[0] and not _EMBEDDED & {arch, capability}
        if arch == capability or (
            letter != "a" and arch <= capability and (alike or (bool(ptx) and not letter))
        ):
            return True
    return not known  # without a list of architectures, calling a kernel shows it


def svdvals(A: Tensor, sweeps: int = 100) -> Tensor:
    """``torch.ops.llr.svdvals`` of (..., m, n); only where :func:`has_kernel`.

    The values are NaN for a matrix that is not finite or for which no method converged.
    """
    return cast(Tensor, _native.svdvals(A, sweeps=sweeps))


def mlp_gram(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
    double_double: bool = False,
) -> Tensor:
    """``torch.ops.llr.mlp_gram``; arguments as :func:`mlp_jacobian`; only where :func:`has_kernel`.

    Returns:
        J J' in float64: (n, q, n, q), or (B, n, q, n, q); with ``double_double`` (2, ...), high and low
        parts.
    """
    return cast(Tensor, _native.mlp_gram(x, weights, biases, activation, columns, double_double))


def gram_add_(K: Tensor, delta: Tensor, a: Tensor, bias: bool = False, weight: bool = True) -> None:
    """Add a layer's Gram matrix to K; see :func:`llr.operators.double_double.gram_add_`."""
    if has_kernel(K, delta, a):
        _native.gram_add_(K, delta, a, bias, weight)
    else:
        double_double.gram_add_(K, delta, a, bias, weight)


def gram_factor(K: Tensor) -> Tensor:
    """L with L L' = K from a double-double K; see :func:`llr.operators.double_double.gram_factor`.

    Computed on the CPU for K on any device: the N steps run one after the other, each after a search for the
    pivot, so that on a GPU they would wait for kernel launches. K is only N x N, so the copies cost little.
    """
    if NATIVE:
        return cast(Tensor, _native.gram_factor(K.cpu())).to(K.device)
    return double_double.gram_factor(K)


def lm_solve(
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    which: Tensor,
    kind: str,
    sizes: Sequence[int],
    activation: str,
    biases: Sequence[bool],
    **options: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``torch.ops.llr.lm_solve``: Levenberg-Marquardt from every row of theta, on the CPU.

    Args:
        theta: (S, P) starts; float64, as are x and y.
        x: (B, n, inputs); for a factorization the (row, column) of each entry.
        y: (B, n, outputs).
        which: (S), int64, the data set of each start.
        kind: "mlp", with parameters W_1, b_1, W_2, ...; "conv1d" or "local1d", with kernels that all
            positions share or do not share, then output weights; "factorization", with A and then B.
        sizes: for an MLP the widths; for a convolution (d, kernel size, channels); for a factorization (rows,
            rank, columns).
        activation: a name in :data:`llr.operators.formula.ACTIVATIONS`; "identity" for a factorization.
        biases: whether each layer of an MLP has a bias; empty for other kinds.
        options: damping, down, up, progress, stall, iterations, tol, first; see
            :class:`llr.recovery.Damping` and :func:`llr.recovery.levenberg_marquardt`.

    Returns:
        theta (S, P), loss (S), iterations (S), status (S): see :class:`llr.recovery.Fits`.
    """
    result = _native.lm_solve(theta, x, y, which, kind, sizes, activation, biases, **options)
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], result)
