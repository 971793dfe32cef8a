"""How often statements of `llr.relu` are wrong: random planted ReLU networks, whose programs are solved.

    python benchmarks/relu_words.py                 # 1,000 networks; minutes
    python benchmarks/relu_words.py --quick         # 24, to check that it runs
    python benchmarks/relu_words.py --gated         # without clarabel

Skip connections, one and two neurons, w and -w, normalized neurons; Gaussian, cubic, Haar and whitened
samples, d from 2 to 4, n/d from 1.5 to 5. A statement is wrong if

* nic < 1 - 1e-9 or a margin < 1 - 1e-6, and the solution has more outside of the planted groups
  than its gap and residual allow: those cost at least 1 - margin a unit;
* a margin > 1 + 1e-6, and no cheaper network was found. The gain is quadratic in the margin's excess: where
  it may be below the solver's precision, the weights have to be elsewhere, or it counts as open;
* the gated program recovers and the exact one does not.

The exit code is 1 if a statement is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import llr
from llr import relu
from llr.models import NormalizedTwoLayer, SkipTwoLayer, TwoLayer

Array = np.ndarray[Any, np.dtype[Any]]
LAWS = ("Gaussian", "cubic", "Haar", "whitened")
KINDS = ("skip", "one neuron", "two neurons", "w and -w", "normalized", "two normalized")
PROGRAM = {"skip": "skip", "normalized": "normalized", "two normalized": "normalized"}
ALLOWED = 1e-6  # of the norm: what gap and residual may leave outside of the planted groups, times 1 - margin


def samples(law: str, n: int, d: int, generator: np.random.Generator) -> Array:
    x = generator.standard_normal((n, d))
    if law in ("cubic", "whitened"):
        x = x**3
    if law == "Haar":
        x = np.linalg.qr(x)[0]
    if law == "whitened":
        U, _, Vt = np.linalg.svd(x, full_matrices=False)
        x = U @ Vt
    return x


def draw(i: int, generator: np.random.Generator) -> tuple[str, str, Tensor, nn.Module]:
    """A kind, a law, samples, and a planted network each neuron of which sees a sample."""
    while True:
        kind, law = KINDS[i % len(KINDS)], LAWS[generator.integers(len(LAWS))]
        d = int(generator.integers(2, 5))
        n = int(np.ceil(d * generator.uniform(1.5, 5)))
        x = torch.from_numpy(samples(law, n, d, generator))
        w, a = (torch.from_numpy(generator.standard_normal(shape)) for shape in ((2, d), 2))
        if kind == "skip":
            return kind, law, x, SkipTwoLayer.of(w[0])
        if kind in ("one neuron", "normalized"):
            w, a = w[:1], a[:1]
        if kind == "w and -w":
            w, a = torch.stack((w[0], -w[0])), torch.ones(2, dtype=torch.float64)
        if not bool((x @ w.T > 0).any(0).all()):
            continue
        if kind.endswith("normalized"):
            return kind, law, x, NormalizedTwoLayer.on(x, w, a)
        return kind, law, x, TwoLayer.of(w, None, a[:, None], activation="relu")


def elsewhere(found: relu.Solution, target: relu.Solution) -> tuple[float, float]:
    """What the solution has outside of the planted groups; and how far it is off in all groups."""
    parts: dict[object, Tensor] = {}
    planted = {cell.numpy().tobytes() for cell in target.cells}
    if target.skip is not None and bool(target.skip.any()):
        planted.add(b"skip")
    for sign, solution in ((1.0, found), (-1.0, target)):
        vectors = list(zip(solution.cells, solution.vectors, strict=True))
        for cell, v in vectors:
            value = cell * (solution.x @ v) if solution.kind == "normalized" else v
            key = cell.numpy().tobytes()
            parts[key] = parts.get(key, torch.zeros_like(value)) + sign * value
        if solution.skip is not None:
            parts[b"skip"] = (
                parts.get(b"skip", torch.zeros_like(solution.skip)) + sign * solution.skip
            )
    outside = sum(float(v.norm()) for key, v in parts.items() if key not in planted)
    return outside, sum(float(v.norm()) for v in parts.values())


def judged(
    kind: str, x: Tensor, target: nn.Module, cones: bool, counts: Counter[str]
) -> tuple[str, str | None]:
    """The status, and what is wrong with it."""
    name = "exact" if cones else "gated"
    said = relu.recovers(x, target, cones=cones)
    y = target(x).detach()[:, 0]
    solved = relu.min_norm(x, y, kind=PROGRAM.get(kind, "plain"), cones=cones)  # type: ignore[arg-type]
    counts[f"{name}: {said.status}"] += 1
    counts[f"{name} program: {solved.status}"] += 1
    if solved.solution is None:
        return said.status, f"{name}: no solution of {solved}"
    planted = relu.solution_from(x, target)
    norm = planted.norm()
    outside, off = elsewhere(solved.solution, planted)
    nic = relu.isometry(x, target)
    proved = nic.value < 1 - 1e-9
    if proved and said.status not in ("recovered", "ambiguous"):
        return said.status, f"{name}: nic {nic.value} and {said}"
    if said.margin < 1 - 1e-6:
        counts[f"{name}: margin below 1"] += 1
        if said.status != "recovered" or outside * (1 - said.margin) > ALLOWED * norm:
            return said.status, f"{name}: {said}, but {outside:.2e} outside"
    elif proved:
        counts[f"{name}: nic below 1, margin within 1e-6"] += 1
    if said.margin > 1 + 1e-6:
        counts[f"{name}: margin above 1"] += 1
        if said.status != "not recovered":
            return said.status, f"{name}: {said}"
        cheaper = solved.norm < norm * (1 - 1e-8)
        if not cheaper and off < 1e-4 * norm:
            gain = min(said.margin - 1, 1.0) ** 2
            counts[f"{name}: margin above 1, cheaper by less than a solver sees"] += 1
            if gain > 1e-5:
                return said.status, f"{name}: {said}, but nothing is cheaper: {solved}"
    return said.status, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="24 networks, to check that it runs")
    parser.add_argument("--count", type=int, default=1000, help="of networks (default: 1000)")
    parser.add_argument("--seed", type=int, default=20260701)
    parser.add_argument("--gated", action="store_true", help="the gated program alone")
    settings = parser.parse_args()
    count = 24 if settings.quick else settings.count
    generator = np.random.default_rng(settings.seed)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    start = time.perf_counter()
    for i in range(count):
        kind, law, x, target = draw(i, generator)
        where = f"network {i} ({kind}, {law}, {tuple(x.shape)}): "
        status, found = judged(kind, x, target, False, counts)
        wrong += [where + found] if found else []
        if settings.gated:
            continue
        exact, found = judged(kind, x, target, True, counts)
        wrong += [where + found] if found else []
        if status == "recovered" and exact not in ("recovered", "ambiguous"):
            wrong.append(f"{where}gated recovers, exact is {exact}")
    print(
        f"{count} networks, seed {settings.seed}, {time.perf_counter() - start:.0f} s, llr {llr.__version__}"
    )
    for name, number in sorted(counts.items()):
        print(f"{number:6d}  {name}")
    print(f"{len(wrong):6d}  wrong")
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
