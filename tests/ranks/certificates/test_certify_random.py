"""Certificates of random models whose rank is known independently of llr: none is wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from flint import fmpz_mat
from torch import Tensor, nn

from llr import certify, verify
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, Polynomial

CASES = int(os.environ.get("LLR_RANDOM_CASES", "60"))
F64 = torch.float64
Case = tuple[nn.Module, Tensor, int, bool]
"""A model, samples, the rank, and whether the certificate has to find it."""


def whole(rng: random.Random, *shape: int, size: int = 3, sparse: float = 0.2) -> Tensor:
    """Small integers, some of them 0."""
    numbers = torch.tensor([rng.randint(-size, size) for _ in range(torch.Size(shape).numel())])
    kept = torch.tensor([rng.random() >= sparse for _ in range(len(numbers))])
    return (numbers * kept).view(shape).to(F64)


def filled(model: nn.Module, rng: random.Random) -> nn.Module:
    """The model with small integers as parameters; sometimes a neuron is a copy of another."""
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(whole(rng, *p.shape))
            if rng.random() < 0.3 and len(p) > 1:
                p[-1] = p[0]
    return model


def exact_rank(model: nn.Module, x: Tensor) -> int:
    """The exact rank of a Jacobian of integers, which float64 represents exactly; with gradients by torch."""
    rows = []
    for sample in x:
        for y in model(sample[None]).reshape(-1):
            if not y.requires_grad:
                continue
            found = torch.autograd.grad(
                y, [*model.parameters()], retain_graph=True, allow_unused=True
            )
            pairs = zip(found, model.parameters(), strict=True)
            rows.append(
                torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])
            )
    J = torch.stack(rows)
    assert float(J.abs().max()) < 2**50
    assert bool((J.round() == J).all())
    return int(fmpz_mat(*J.shape, [int(v) for v in J.flatten().tolist()]).rank())


def rational(
    make: Callable[[random.Random], tuple[nn.Module, Tensor]],
) -> Callable[[random.Random], Case]:
    def case(rng: random.Random) -> Case:
        model, x = make(rng)
        return model, x, exact_rank(model, x), True

    return case


def linear(rng: random.Random) -> tuple[nn.Module, Tensor]:
    d, q, r, n = (rng.randint(1, 5) for _ in range(4))
    x = whole(rng, n + 1, r) @ whole(rng, r, d)
    return filled(nn.Linear(d, q, bias=rng.random() < 0.7), rng), x


def relu(rng: random.Random) -> tuple[nn.Module, Tensor]:
    widths = [rng.randint(1, 4) for _ in range(rng.randint(3, 4))]
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o, bias=rng.random() < 0.7), nn.ReLU()]
    return filled(nn.Sequential(*layers[:-1]), rng), whole(rng, rng.randint(1, 16), widths[0])


def polynomial(rng: random.Random) -> tuple[nn.Module, Tensor]:
    d, m, q = rng.randint(1, 3), rng.randint(1, 4), rng.randint(1, 2)
    act = Polynomial([rng.randint(-2, 2) for _ in range(rng.randint(2, 4))])
    layers = (
        nn.Linear(d, m, bias=rng.random() < 0.7),
        act,
        nn.Linear(m, q, bias=rng.random() < 0.5),
    )
    return filled(nn.Sequential(*layers), rng), whole(rng, rng.randint(1, 20), d)


def deep_linear(rng: random.Random) -> tuple[nn.Module, Tensor]:
    widths = [rng.randint(1, 4) for _ in range(rng.randint(2, 4))]
    return filled(DeepLinear(widths), rng), whole(rng, rng.randint(1, 8), widths[0])


def factorization(rng: random.Random) -> tuple[nn.Module, Tensor]:
    model = MatrixFactorization(rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 4))
    pairs = model.pairs()
    kept = sorted(rng.sample(range(len(pairs)), rng.randint(1, len(pairs))))
    return filled(model, rng), pairs[kept]


def convolution(rng: random.Random) -> tuple[nn.Module, Tensor]:
    groups, length = rng.choice([1, 2]), rng.randint(3, 6)
    conv = nn.Conv1d(
        2,
        2 * rng.randint(1, 2),
        rng.randint(1, 3),
        stride=rng.randint(1, 2),
        padding=rng.randint(0, 1),
        groups=groups,
        bias=rng.random() < 0.5,
    )
    layers = [conv, nn.ReLU(), nn.Flatten()] if rng.random() < 0.7 else [conv]
    return filled(nn.Sequential(*layers), rng), whole(rng, rng.randint(1, 5), 2, length)


def kernels(rng: random.Random) -> tuple[nn.Module, Tensor]:
    d = rng.randint(2, 5)
    model = Conv1dTwoLayer(
        d, rng.randint(1, d), rng.randint(1, 3), shared=rng.random() < 0.5, activation="relu"
    )
    return filled(model, rng), whole(rng, rng.randint(1, 12), d)


def analytic(rng: random.Random) -> Case:
    """Two layers with copies of neurons: a neuron and its copies count once; without outgoing weights, less.

    Neurons that are neither equal nor reflected are independent together with their derivatives, for almost
    all samples (Fukumizu 1996, for tanh).
    """
    act = rng.choice([nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU])()
    d, k = rng.randint(1, 2), rng.randint(1, 3)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    w, b = normal(k, d), normal(k)
    copies = [rng.randrange(k) for _ in range(rng.randint(0, 2))]
    origin = [*range(k), *copies]
    a = normal(1, len(origin))
    for i in range(len(origin)):
        if rng.random() < 0.2:
            a[0, i] = 0
    model = nn.Sequential(
        nn.Linear(d, len(origin)), act, nn.Linear(len(origin), 1, bias=False)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(w[origin])
        model[0].bias.copy_(b[origin])
        model[2].weight.copy_(a)
    weighted = {o for o, v in zip(origin, a[0].tolist(), strict=True) if v}
    full = k + (d + 1) * len(weighted)
    n = rng.choice([full // 2 + 1, full + 6])
    return model, normal(n, d), min(n, full), True


KINDS: dict[str, Callable[[random.Random], Case]] = {
    "linear": rational(linear),
    "relu": rational(relu),
    "polynomial": rational(polynomial),
    "deep linear": rational(deep_linear),
    "factorization": rational(factorization),
    "convolution": rational(convolution),
    "kernels": rational(kernels),
    "analytic": analytic,
}


@pytest.mark.parametrize("seed", range(CASES))
def test_no_certificate_is_wrong(seed: int) -> None:
    rng = random.Random(seed)
    name = rng.choice(list(KINDS))
    model, x, rank, found = KINDS[name](rng)
    certificate = certify(model, x)
    assert certificate.rank <= rank <= certificate.upper, name
    assert certificate.rank == rank or not found, name
    assert verify(certificate, model, x), name
