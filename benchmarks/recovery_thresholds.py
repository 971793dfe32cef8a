"""How many samples strategies need to recover targets: a table for recovery.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import number, table

from llr.models import TwoLayer
from llr.recovery import RECOVERED, Budget, Target, initial, recover
from llr.recovery.lm_reference import of_mlp
from llr.recovery.train import GD, train

ENOUGH = 0.95
"""The fraction of targets that must be recovered."""

WIDE = 50  # neurons of the net for gradient descent
_RATE, _MOMENTUM, _SMALL = 0.05, 0.9, 1e-3
BUDGET = 20_000  # starts


@dataclass(frozen=True)
class Family:
    """Well separated two-layer tanh targets without biases."""

    d: int
    k: int

    @property
    def size(self) -> int:
        """O, the optimistic sample size."""
        return self.k * (self.d + 1)

    @property
    def sample_sizes(self) -> list[int]:
        size = self.size
        near = {size + more for more in (-1, 0, 1, 2, 4)}
        return sorted(near | {3 * size // 2, 2 * size, 3 * size})

    def targets(self, count: int) -> list[Target]:
        model = TwoLayer(self.d, self.k, bias=False)
        return [Target.separated(model, seed=s) for s in range(count)]


FAMILIES = (Family(2, 2), Family(3, 3))
TARGETS, STEPS = 20, 20_000

Strategy = Callable[[Sequence[Target], int, bool], list[bool]]


def by_search(targets: Sequence[Target], n: int, quick: bool) -> list[bool]:
    """``recover``; only results that it calls recovered count."""
    found = []
    for seed, target in enumerate(targets):
        x, y = target.sample(n, seed=seed)
        most = target.model[0].out_features
        budget = Budget(100 if quick else BUDGET)
        result = recover(x, y, max_width=most, bias=False, budget=budget)
        found.append(bool(result) and target.error(result.model) < RECOVERED)
    return found


def by_descent(targets: Sequence[Target], n: int, quick: bool) -> list[bool]:
    """Gradient descent with momentum for a wide net with small initial parameters; one start per target."""
    d = targets[0].model[0].in_features
    model = TwoLayer(d, WIDE, bias=False)
    samples = [target.sample(n, seed=seed) for seed, target in enumerate(targets)]
    x, y = (torch.stack(part) for part in zip(*samples, strict=True))
    generator = torch.Generator().manual_seed(0)
    starts = initial(model, len(targets), scale=_SMALL, generator=generator)
    steps = 50 if quick else STEPS
    theta = train(model, starts, x, y, method=GD(_RATE, _MOMENTUM), steps=steps).theta
    outputs = of_mlp((d, WIDE, 1), (False, False), "tanh").outputs
    return [
        target.error(lambda fresh, p=point: outputs(p[None], fresh[None])[0]) < RECOVERED
        for target, point in zip(targets, theta, strict=True)
    ]


STRATEGIES: dict[str, Strategy] = {
    "narrowest first, many starts (recover)": by_search,
    f"gradient descent of {WIDE} neurons (train)": by_descent,
}


def measured(quick: bool) -> list[dict[str, Any]]:
    """The fraction of recovered targets, by family, strategy and sample size."""
    rows = []
    for family in FAMILIES[:1] if quick else FAMILIES:
        targets = family.targets(2 if quick else TARGETS)
        sizes = family.sample_sizes[2:4] if quick else family.sample_sizes
        for name, strategy in STRATEGIES.items():
            began = time.perf_counter()
            shares = {n: sum(strategy(targets, n, quick)) / len(targets) for n in sizes}
            rows.append(
                {
                    "d": family.d,
                    "k": family.k,
                    "size": family.size,
                    "strategy": name,
                    "targets": len(targets),
                    "recovered": {str(n): share for n, share in shares.items()},
                    "smallest_n": smallest(shares),
                    "seconds_per_target": (time.perf_counter() - began) / len(targets) / len(sizes),
                }
            )
    return rows


def smallest(shares: Mapping[int, float]) -> int | None:
    """The smallest tested sample size from which on enough targets are recovered, or None."""
    good = None
    for n in sorted(shares, reverse=True):
        if shares[n] < ENOUGH:
            break
        good = n
    return good


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table with its heading, as Markdown."""
    shown = []
    for row in rows:
        n = row["smallest_n"]
        most = max(map(int, row["recovered"]))
        shares = ", ".join(f"{n}: {share:.2f}" for n, share in row["recovered"].items())
        shown.append(
            [
                f"({row['d']}, {row['k']})",
                str(row["size"]),
                row["strategy"],
                f"none up to {most}" if n is None else str(n),
                shares,
                number(row["seconds_per_target"]),
            ]
        )
    head = [
        "(d, k)",
        "O",
        "strategy",
        f"n with {ENOUGH:.0%} recovered",
        "recovered at n",
        "s per target and n",
    ]
    return (
        "## Sample sizes\n\n"
        f"Well separated tanh targets of k neurons on d inputs, {rows[0]['targets']} for each; O is their "
        "optimistic sample size, and n counts from where on all larger ones looked at do as well.\n\n"
        + table(head, shown)
    )
