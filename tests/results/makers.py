"""One cheap maker for every type of result, and for every form that it can have."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llr
from llr import embedding, landscape, lifting, neurons, recovery, theory
from llr.embedding import Bounds
from llr.models import Conv1dTwoLayer, DeepLinear, Polynomial, SkipTwoLayer, TwoLayer, mlp
from llr.ranks.info import Check, SelfTest
from llr.recovery import Recovery, Target, recover
from llr.recovery.reproduce import Reproduction
from llr.recovery.sweep import Tally
from llr.recovery.train import GD, condensation, initial, narrow, train
from llr.results import progress
from llr.theory import relu


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(*widths: int, seed: int = 0) -> nn.Sequential:
    return mlp(list(widths), generator=seeded(seed)).double()


def points(n: int, d: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def stacked() -> dict[str, Tensor]:
    state = {k: v.detach() for k, v in net(1, 2, 1).named_parameters()}
    return {k: torch.stack([v, 2 * v, 0 * v]) for k, v in state.items()}


def critical() -> tuple[nn.Sequential, Tensor, Tensor]:
    model, x = net(1, 1, 1), torch.linspace(-2, 2, 12)[:, None].double()
    return model, x, landscape.critical_targets(model, x, size=1e-3, generator=seeded())


def split() -> tuple[nn.Module, nn.Module, embedding.Embedding]:
    narrow = net(1, 1, 1)
    wide, record = embedding.split(narrow, 0, 0)
    return narrow, wide, record


def embedded(**options: Any) -> landscape.EmbeddedSpectrum:
    (narrow, wide, record), x = split(), points(9)
    return landscape.embedded_spectrum(narrow, wide, record, x, x.sin(), **options)


def wide_model() -> nn.Module:
    return split()[1]


def convolution(shared: bool) -> nn.Module:
    weight, out = torch.ones(2, 2) if shared else torch.ones(2, 2, 2), torch.ones(2, 2)
    return Conv1dTwoLayer.of(weight.double(), out.double(), d=3)


def lifted(**numbers: Any) -> lifting.Lift:
    return lifting.lifted_family(net(1, 2, 2, 1), alpha=0.25, t=0.5, **numbers)[1]


def certified() -> llr.RankResult:
    return llr.rank(net(1, 2, 1), points(9), method="certified")


def recovered(**options: Any) -> Recovery:
    target = Target.separated(TwoLayer(1, 1, bias=False), seed=0)
    x, y = target.sample(6, seed=1)
    return recover(x, y, max_width=2, bias=False, budget=200, **options)


def not_found() -> Recovery:
    x = points(12)
    return recover(x, x.abs().sqrt(), max_width=1, budget=20)


def accepted() -> Recovery:
    target = Target.separated(TwoLayer(1, 1, bias=False), seed=0)
    x, y = target.sample(20, seed=1, noise_std=0.01)
    return recover(x, y, max_width=2, bias=False, output_bias=True, noise_std=0.01, budget=200)


def trained(record: int | None) -> Any:
    model, x = mlp([1, 2, 1]), points(4)
    starts = initial(model, 3, generator=seeded())
    return train(model, starts, x, x.sin(), method=GD(), steps=5, record=record)


def narrowed() -> Any:
    model, x = TwoLayer(1, 2, bias=False), points(4)
    theta = initial(model, 1, generator=seeded())[0]
    return narrow(model, theta, x, x.tanh(), angles=[0.5])


def condensed(batch: bool) -> Any:
    model = net(1, 3, 1)
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return condensation(model, torch.stack([theta, 2 * theta]) if batch else theta)


def flat_hessian() -> landscape.HessianSpectrum:
    model = net(1, 1, 1)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[0].weight)
    x = points(5)
    return landscape.hessian_spectrum(model, x, torch.zeros_like(x) + model[2].bias.detach())


def polynomial() -> nn.Module:
    return TwoLayer(1, 2, activation=Polynomial([0, 0, 1]), generator=seeded())


def odd_numbers() -> SelfTest:
    checks = (
        Check("good", 0.0, 1e-13),
        Check("bad", math.inf, 1e-13, note="what & <why>"),
        Check("none", math.nan, -math.inf),
    )
    return SelfTest(checks, "native on cpu")


REPRODUCED = Reproduction(
    "linear", Tally(4, 3, 1, 2, 0.5), Path("a.sqlite"), Path("a.csv"), Path("a.png")
)


def linear() -> nn.Module:
    return SkipTwoLayer.of(torch.tensor([1.0, -2.0], dtype=torch.float64))


def axis() -> nn.Module:
    return TwoLayer.of(torch.eye(2)[:1], None, torch.ones(1, 1), activation="relu")


def least(kind: Any) -> relu.MinNorm:
    return relu.min_norm(points(7, 2), points(7).sin(), kind=kind, cones=False)


def infeasible() -> relu.MinNorm:
    x = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    return relu.min_norm(x, torch.tensor([1.0, 3.0]), cones=False)


MAKERS: dict[str, Callable[[], Any]] = {
    "rank": lambda: llr.rank(net(2, 3, 1), points(20, 2)),
    "rank by gram": lambda: llr.rank(net(2, 3, 1), points(20, 2), method="gram"),
    "rank in float32": lambda: llr.rank(net(1, 2, 1).float(), points(9).float(), dtype=None),
    "rank of a batch": lambda: llr.rank(net(1, 2, 1), points(9), params=stacked()),
    "rank certified": certified,
    "rank of an empty batch": lambda: llr.numerical_rank(torch.zeros(0, 3, 3)),
    "rank of no rows": lambda: llr.numerical_rank(torch.zeros(0, 2)),
    "rank of no columns": lambda: llr.numerical_rank(torch.zeros(2, 3, 0)),
    "rank of zeros": lambda: llr.numerical_rank(torch.zeros(2, 3)),
    "rank of zeros in a batch": lambda: llr.numerical_rank(torch.zeros(2, 3, 3)),
    "rank by a tolerance": lambda: llr.numerical_rank(
        torch.rand(3, 3, generator=seeded()), rtol=0.5
    ),
    "rank equilibrated": lambda: llr.numerical_rank(
        torch.tensor([[1e20, 0.0], [0.0, 1e-20]], dtype=torch.float64)
    ),
    "model rank": lambda: llr.model_rank(net(1, 2, 1)),
    "model rank not saturated": lambda: llr.model_rank(net(2, 3, 1), max_samples=3, certify=False),
    "guarantee": lambda: llr.has_llr_guarantee(net(1, 2, 1), points(9)),
    "verdict": lambda: llr.verify(llr.certify(net(1, 2, 1), points(9)), net(1, 2, 1), points(9)),
    "plan": lambda: llr.plan(net(1, 2, 1), points(9)),
    "plan by torch": lambda: llr.plan(net(1, 2, 1), points(9), backend="torch"),
    "info": llr.info,
    "self-test": odd_numbers,
    "dimension": lambda: theory.tangent_dimension(wide_model()),
    "stratification": lambda: theory.rank_stratification(TwoLayer(2, 3)),
    "points": lambda: theory.points_needed(net(1, 2, 2)),
    "independence": lambda: neurons.independence(wide_model(), layer=0),
    "criticality": lambda: landscape.criticality(*critical()),
    "rate": lambda: landscape.rate(net(1, 2, 1), points(9)),
    "flow": lambda: landscape.flow(net(1, 2, 1), points(5), points(5).sin(), times=[0.0, 1.0, 2.0]),
    "hessian": lambda: landscape.hessian_spectrum(*critical()),
    "hessian of zeros": flat_hessian,
    "embedded spectrum": embedded,
    "branches": lambda: landscape.branches(TwoLayer(1, 1), 3),
    "branch": lambda: landscape.branches(TwoLayer(1, 1), 2)[0],
    "embedding": lambda: split()[2],
    "bounds": lambda: Bounds(2, 3),
    "check": lambda: embedding.check(*split()[:2], points(9)),
    "reduction": lambda: embedding.reduce(wide_model()),
    "reduction in float32": lambda: embedding.reduce(wide_model().float()),
    "reduction of two layers": lambda: embedding.reduce(TwoLayer(1, 2, generator=seeded())),
    "reduction of a polynomial": lambda: embedding.reduce(polynomial()),
    "reduction of a linear network": lambda: embedding.reduce(DeepLinear([2, 3, 1])),
    "reduction of shared kernels": lambda: embedding.reduce(convolution(True)),
    "reduction of kernels": lambda: embedding.reduce(convolution(False)),
    "lift": lambda: lifted(lam=0.5),
    "lift without lambda": lambda: lifted(s=0.25, r=[0.125]),
    "lift status": lambda: lifting.lift_status(*split()[:2]),
    "rank bounds": lambda: lifting.lift_status(*split()[:2]).joint,
    "lifted points": lambda: lifting.lifted_critical_points(*critical(), starts=2),
    "lifted point": lambda: lifting.lifted_critical_points(*critical(), starts=2)[0],
    "recovery": recovered,
    "recovery that fails": not_found,
    "recovery from noise": accepted,
    "fit of a width": lambda: next(iter(recovered().fits.values())),
    "training": lambda: trained(None),
    "training with its history": lambda: trained(3),
    "history": lambda: trained(3).history,
    "condensation": lambda: condensed(False),
    "condensation of a batch": lambda: condensed(True),
    "narrow": narrowed,
    "patterns": lambda: relu.patterns(points(5, 2)),
    "patterns of a sample": lambda: relu.patterns(points(5, 2), method="sample", gates=3),
    "isometry": lambda: relu.isometry(points(7, 2), linear()),
    "isometry without a dual": lambda: relu.isometry(points(1, 2), linear()),
    "relu recovery": lambda: relu.recovers(points(7, 2), linear(), cones=False),
    "relu recovery undecided": lambda: relu.recovers(torch.eye(2), axis(), cones=False),
    "minimum norm": lambda: least("plain"),
    "minimum norm with a skip connection": lambda: least("skip"),
    "minimum norm of normalized neurons": lambda: least("normalized"),
    "minimum norm, infeasible": infeasible,
    "relu proof": lambda: relu.prove_recovery(points(9, 2), linear(), cones=False),
    "relu proof undecided": lambda: relu.prove_recovery(torch.eye(2), axis(), cones=False),
    "relu solution": lambda: relu.solution_from(points(5, 2), linear()),
    "tally": lambda: Tally(4, 3, 1, 2, 0.5),
    "reproduction": lambda: REPRODUCED,
}
UNWRITTEN: dict[str, Callable[[], Any]] = {
    "certificate": lambda: llr.certify(net(1, 2, 1), points(9)),
    "fits": lambda: recovery.levenberg_marquardt(
        net(1, 2, 1), initial(net(1, 2, 1), 3, generator=seeded()), points(9), points(9).sin()
    ),
}
"""Results that print as the others do, but have files of their own or none."""

ALL = {**MAKERS, **UNWRITTEN}


def strict(content: dict[str, Any]) -> Any:
    return json.loads(json.dumps(content, allow_nan=False))


def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes between two looks at the clock."""
    ticks = itertools.count()
    monkeypatch.setattr(progress, "clock", lambda: float(next(ticks)))


def proved(**options: Any) -> llr.Certificate:
    return llr.certify(net(1, 2, 1), points(14), **options)
