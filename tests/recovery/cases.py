"""Targets, samples and fits for the tests of the parts that judge a fit."""

from __future__ import annotations

import mpmath
import torch
from torch import Tensor

from llr.models import TwoLayer
from llr.recovery import Target
from llr.recovery.domain import Domain
from llr.recovery.judge import Data64
from llr.recovery.net import Net
from llr.recovery.rounding import Rounding

F64 = torch.float64
ANALYTIC = ["tanh", "sigmoid", "gelu", "silu", "softplus", "erf", "sin"]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def data_of(x: Tensor, y: Tensor, activation: str = "tanh", **options: object) -> Data64:
    rounding = Rounding.of(
        x, y.double(), (x.dtype, y.dtype), options.get("y_error"), options.get("x_error")
    )  # type: ignore[arg-type]
    return Data64(x, y.double(), rounding, Domain.of(x, options.get("domain")), activation, None)


def planted(
    seed: int, d: int, k: int, activation: str = "tanh", extra: int = 1, **options: bool
) -> tuple[Target, Data64, Net]:
    architecture = TwoLayer(d, k, activation=activation, **options)  # type: ignore[arg-type]
    target = Target.separated(architecture, seed=seed)
    n = sum(p.numel() for p in architecture.parameters()) + extra
    x, y = target.sample(n, seed=seed + 40)
    return target, data_of(x, y, activation), Net.of(target.model, activation)  # type: ignore[arg-type]


def _logistic(z: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-z))


FIFTY = {
    "tanh": (mpmath.tanh, lambda z: mpmath.sech(z) ** 2),
    "sigmoid": (_logistic, lambda z: _logistic(z) * _logistic(-z)),
    "gelu": (lambda z: z * mpmath.ncdf(z), lambda z: mpmath.ncdf(z) + z * mpmath.npdf(z)),
    "silu": (lambda z: z * _logistic(z), lambda z: _logistic(z) * (1 + z * _logistic(-z))),
    "softplus": (  # the identity beyond 20, like torch.nn.Softplus
        lambda z: mpmath.log1p(mpmath.exp(z)) if z <= 20 else z,
        lambda z: _logistic(z) if z <= 20 else mpmath.mpf(1),
    ),
    "erf": (mpmath.erf, lambda z: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-z * z)),
    "sin": (mpmath.sin, mpmath.cos),
    "relu": (lambda z: max(z, mpmath.mpf(0)), lambda z: mpmath.mpf(z > 0)),
}
"""name -> (sigma, sigma') in the precision of mpmath."""


def fifty_digits(net: Net, x: Tensor) -> list[list[mpmath.mpf]]:
    with mpmath.workdps(50):
        (s, _), rows = FIFTY[net.activation], []
        for row in x.tolist():
            h = []
            for j, w in enumerate(net.w.tolist()):
                z = sum((mpmath.mpf(a) * b for a, b in zip(w, row, strict=True)), mpmath.mpf(0))
                h.append(s(z + (0 if net.b is None else mpmath.mpf(float(net.b[j])))))
            rows.append(
                [
                    sum((mpmath.mpf(a) * b for a, b in zip(outer, h, strict=True)), mpmath.mpf(0))
                    + (0 if net.c is None else mpmath.mpf(float(net.c[o])))
                    for o, outer in enumerate(net.a.tolist())
                ]
            )
        return rows
