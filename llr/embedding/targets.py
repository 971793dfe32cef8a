"""Targets at which a network is critical, whatever its parameters are."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from llr.embedding.network import Network, read
from llr.jacobian import jacobian
from llr.surroundings import outside_inference_mode


@outside_inference_mode
def critical_targets(
    model: nn.Module, x: Tensor, y: Tensor | None = None, *, seed: int = 0
) -> Tensor:
    """The targets nearest to given ones for which a network is at a critical point of its squared error.

    The gradient is J'e with the residuals e = f(x) - y, so that all it takes is a part of e in the kernel of
    J': the rest of it is taken away.

    Args:
        model: as for :func:`llr.embedding.split`.
        x: (n, ...) samples.
        y: targets, of the shape of the outputs; default: normal residuals.
        seed: of the default.

    Returns:
        Targets in float64 on the CPU; the outputs, if there are no more observations than the rank of J.

    Raises:
        TypeError: no module; samples or targets that are no floating-point tensors.
        ValueError: as for :func:`llr.embedding.check`.

    Source: docs/theory.md, Theorem 7.1.

    Example:
        >>> import torch
        >>> from llr.embedding import critical_targets
        >>> from llr.landscape import criticality
        >>> from llr.models import mlp
        >>> model, x = mlp([1, 2, 1]).double(), torch.linspace(-2, 2, 20)[:, None].double()
        >>> criticality(model, x, critical_targets(model, x, x.sin())).relative < 1e-14
        True
    """
    x = read_samples(x, read(model)[0])
    model = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        out = model(x)
    residual, _ = critical_residual(jacobian(model, x), residual_of(out, y, seed))
    return out - residual.view(out.shape)


def critical_residual(J: Tensor, residual: Tensor) -> tuple[Tensor, bool]:
    """The part of a residual (n q) in the kernel of J', for J (n, q, P), and whether there is any."""
    J = J.flatten(0, 1)
    U, s, _ = torch.linalg.svd(J, full_matrices=False)
    span = U[:, s > torch.finfo(J.dtype).eps * max(J.shape) * s[0]]
    for _ in range(2):  # the second time takes away what the first one left by rounding
        residual = residual - span @ (span.T @ residual)
    if span.shape[1] >= len(residual) or not bool(residual.any()):
        return torch.zeros_like(residual), False
    return residual, True


def residual_of(out: Tensor, y: Tensor | None, seed: int) -> Tensor:
    """Outputs minus targets, (n q); normal numbers if there are no targets."""
    if y is None:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(out.numel(), generator=generator, dtype=out.dtype)
    if not isinstance(y, Tensor) or not y.is_floating_point():
        found = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y is {found}; expected a floating-point tensor of targets")
    if y.numel() != out.numel() or not y.dim() or len(y) != len(out):
        raise ValueError(f"y has shape {tuple(y.shape)}; expected {tuple(out.shape)}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y has NaN or infinity; expected finite targets")
    return (out - y.detach().cpu().double().reshape(out.shape)).flatten()


def read_samples(x: Tensor, network: Network) -> Tensor:
    """The samples in float64 on the CPU, checked."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {found}; expected a floating-point tensor of samples")
    d = network.widths[0]
    fits = x.dim() >= 2 and x[0].numel() == d if len(x.shape) and len(x) else False
    if not fits or (x.dim() > 2 and not network.flattens):
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (n, {d}), at least one sample")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x has NaN or infinity; expected finite samples")
    return x.detach().cpu().double()
