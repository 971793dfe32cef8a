"""Training steps per second of an ensemble: llr and plain torch code, compared in one run.

    python benchmarks/training.py                    # 2 minutes; writes benchmarks/results/training.{json,md}
    python benchmarks/training.py --device cuda      # training-NAME.{json,md}, with the GPU's name
    python benchmarks/training.py --quick            # tiny sizes, to check that it runs; writes only to --out

Every contender takes the same steps of gradient descent with momentum from the same starts. Contenders are
timed only after all agree on the final parameters. The loop over modules trains only a few members; the time
per step and member is compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from harness import (
    WallClock,
    deliver,
    interleaved,
    measuring,
    number,
    options,
    parse,
    ratios,
    summary,
    table,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import llr
from llr.models import mlp
from llr.recovery.train import GD, Training, initial, train

LLR, AUTOGRAD, VMAP, LOOP = "llr", "bmm + autograd", "vmap(grad)", "loop of modules"
RATIOS = ((AUTOGRAD, LLR), (VMAP, LLR), (LOOP, LLR))
"""Pairs of contenders; the ratio is the time of the first over that of the second."""

LR, MOMENTUM = 0.02, 0.9
LOOPED = 8  # members that the loop trains
AGREE = 1e-10  # largest difference of final parameters


@dataclass(frozen=True)
class Case:
    """An ensemble of tanh MLPs."""

    widths: tuple[int, ...]
    samples: int
    members: int
    steps: int = 100

    def quick(self) -> Case:
        return Case(self.widths, 5, 10, 3)


CASES = {
    "narrow": Case((5, 3, 1), 24, 1024),
    "wide": Case((5, 50, 1), 30, 512),
    "deep": Case((3, 20, 20, 1), 40, 512),
    "few": Case((5, 50, 1), 30, 8),
}


@dataclass(frozen=True)
class Problem:
    """The model and the tensors of a case."""

    case: Case
    model: nn.Sequential
    starts: Tensor
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, case: Case, device: torch.device) -> Problem:
        g = torch.Generator().manual_seed(0)
        model = mlp(case.widths, generator=g).double().to(device)
        x = torch.randn(case.samples, case.widths[0], generator=g, dtype=torch.float64)
        starts = initial(model, case.members, kind="torch", generator=g, device=device)
        return cls(case, model, starts, x.to(device), torch.sin(x[:, :1]).to(device))

    def parts(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters of all members by name, stacked."""
        shapes = {name: p.shape for name, p in self.model.named_parameters()}
        columns = llr.layout(self.model)
        return {n: theta[:, s].reshape(-1, *shapes[n]).clone() for n, s in columns.items()}


def by_llr(problem: Problem) -> Training:
    return train(
        problem.model,
        problem.starts,
        problem.x,
        problem.y,
        method=GD(LR, MOMENTUM),
        steps=problem.case.steps,
    )


def by_vmap(problem: Problem) -> Tensor:
    """The gradient of one member's loss, mapped over the members by vmap."""

    def loss(parameters: Mapping[str, Tensor]) -> Tensor:
        r = functional_call(problem.model, dict(parameters), (problem.x,)) - problem.y
        return r.square().sum() / (2 * len(problem.x))

    gradients = vmap(grad(loss))
    parameters = problem.parts(problem.starts)
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for _ in range(problem.case.steps):
        for name, g in gradients(parameters).items():
            velocity[name].mul_(MOMENTUM).add_(g)
            parameters[name].sub_(velocity[name], alpha=LR)
    return torch.cat([p.flatten(1) for p in parameters.values()], 1)


def by_autograd(problem: Problem) -> Tensor:
    """All members in one autograd graph of batched products, with one optimiser for all parameters."""
    parameters = list(problem.parts(problem.starts).values())
    for p in parameters:
        p.requires_grad_()
    optimiser = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM)
    x = problem.x.expand(len(problem.starts), -1, -1)
    for _ in range(problem.case.steps):
        signal = x
        for k, (w, b) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
            signal = torch.baddbmm(b[:, None], signal if k == 0 else signal.tanh(), w.mT)
        optimiser.zero_grad()
        ((signal - problem.y).square().sum() / (2 * len(problem.x))).backward()
        optimiser.step()
    return torch.cat([p.detach().flatten(1) for p in parameters], 1)


def by_loop(problem: Problem) -> Tensor:
    """One module after the other, for the first few members."""
    ends = []
    for start in problem.starts[:LOOPED]:
        nn.utils.vector_to_parameters(start.clone(), problem.model.parameters())
        optimiser = torch.optim.SGD(problem.model.parameters(), lr=LR, momentum=MOMENTUM)
        for _ in range(problem.case.steps):
            optimiser.zero_grad()
            r = problem.model(problem.x) - problem.y
            (r.square().sum() / (2 * len(problem.x))).backward()
            optimiser.step()
        ends.append(nn.utils.parameters_to_vector(problem.model.parameters()).detach().clone())
    return torch.stack(ends)


def contenders(problem: Problem) -> dict[str, Callable[[], object]]:
    """Name -> function to time, after a check that all agree on the members' final parameters."""
    expected = by_llr(problem).theta
    others: dict[str, Callable[[Problem], Tensor]] = {
        AUTOGRAD: by_autograd,
        VMAP: by_vmap,
        LOOP: by_loop,
    }
    for name, way in others.items():
        found = way(problem)
        worst = float((found - expected[: len(found)]).abs().max())
        if not worst <= AGREE:
            sys.exit(f"error: {name} ends {worst:.3g} away from llr; expected at most {AGREE:g}")
    runs: dict[str, Callable[[], object]] = {LLR: lambda: by_llr(problem)}
    return runs | {name: lambda way=way: way(problem) for name, way in others.items()}


def measured(case: Case, settings: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step and member, one sample per round, and their ratios."""
    problem = Problem.of(case, settings.device)
    runs = contenders(problem)
    calls, samples = interleaved(runs, WallClock(settings.device), settings.seconds, settings.quick)
    trained = dict.fromkeys(runs, case.members) | {LOOP: min(LOOPED, case.members)}
    each = {
        name: [t / (trained[name] * case.steps) for t in times] for name, times in samples.items()
    }
    return {
        "case": asdict(case),
        "calls": calls,
        "seconds_per_member_step": each,
        "ratios": ratios(each, RATIOS),
    }


def report(results: Mapping[str, Any]) -> str:
    """Steps per second, and the ratios of the other contenders' times to llr's, as Markdown."""
    names = (LLR, AUTOGRAD, VMAP, LOOP)
    head = ["case", "widths", "n", "members", *names, *(f"{a} / {b}" for a, b in RATIOS)]
    rows = []
    for name, found in results["cases"].items():
        case, seconds = found["case"], found["seconds_per_member_step"]
        rows.append(
            [
                name,
                "-".join(map(str, case["widths"])),
                str(case["samples"]),
                str(case["members"]),
                *(number(1 / median(seconds[way])) for way in names),
                *(f"{number(found['ratios'][f'{a} / {b}']['of_medians'])}x" for a, b in RATIOS),
            ]
        )
    lines = [
        "# Training ensembles",
        "",
        summary(results["environment"], "float64"),
        "",
        "Steps of single members per second (gradient descent with momentum), and ratios of times.",
        "",
        table(head, rows),
    ]
    lines += [f"\n**Not reliable: {warning}.**" for warning in results["warnings"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    settings = parse(options(__doc__ or "", CASES, CASES, seconds=12.0))
    with measuring(settings) as results:
        cases = results["cases"] = {}
        for name in settings.cases:
            case = CASES[name].quick() if settings.quick else CASES[name]
            print(f"{name}: {case}", file=sys.stderr)
            cases[name] = measured(case, settings)
    deliver("training", settings, results, report(results))


if __name__ == "__main__":
    main()
