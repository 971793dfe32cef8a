"""How often claims of `recover` are wrong: adversarial data, planted targets, rounded numbers; its speed.

    python benchmarks/claims.py              # about 15 minutes on one core; prints tables
    python benchmarks/claims.py --quick      # a few sets of each, to check that it runs
    python benchmarks/claims.py --only adversarial --seeds 16

A claim is false if the squared error on the doubled box of the samples is above 1e-8 of the mean square. It
is "beyond eps" if the largest error on the domain, at random points and at the neurons' transitions, is
above `evidence.eps`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

import claims_functions  # noqa: F401 - registers its kinds in KINDS
import claims_samples  # noqa: F401
import torch
from claims_sets import KINDS, Set, data_set
from torch import Tensor

from llr.models import TwoLayer
from llr.recovery import RECOVERED, Recovery, Target, recover

STARTS = 1500
SIZES = ((1, 1), (1, 2), (2, 2), (3, 3), (5, 2), (5, 3))
PLANTED = (
    ("tanh", False, False),
    ("tanh", True, False),
    ("tanh", True, True),
    ("sigmoid", True, False),
    ("gelu", False, False),
    ("softplus", True, False),
    ("erf", False, False),
    ("silu", True, True),
    ("sin", True, False),
    ("sigmoid", False, False),
)
"""Activation, biases, output biases."""
SHORT = ("float32", "8 decimals", "6 decimals", "4 decimals")


def error_on_doubled_box(x: Tensor, truth: object, model: object) -> float:
    """The squared error on the doubled box of the samples, relative to the function's mean square."""
    low, high = x.double().amin(0), x.double().amax(0)
    t = (
        2
        * torch.rand(
            2000, x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(99)
        )
        - 1
    )
    points = (low + high) / 2 + (high - low) * t
    with torch.no_grad():
        values, found = truth(points), model(points)
    error = float((found - values).square().mean() / values.square().mean())
    return error if math.isfinite(error) else math.inf


def points_of_box(model: TwoLayer, low: Tensor, high: Tensor, count: int = 2000) -> Tensor:
    """Random points and corners of a box, and for every neuron points where it is not saturated."""
    generator = torch.Generator().manual_seed(5)

    def unit() -> Tensor:
        t = torch.rand(count, len(low), dtype=torch.float64, generator=generator)
        t[: count // 2] = t[: count // 2].round()
        return low + (high - low) * t

    points, layer = [unit()], model[0]
    for j, w in enumerate(layer.weight.detach()):
        p = unit()
        i = int((w * (high - low)).abs().argmax())
        b = 0.0 if layer.bias is None else float(layer.bias.detach()[j])
        z = 2 * torch.randn(count, dtype=torch.float64, generator=generator)
        p[:, i] += (z - b - p @ w) / w[i]
        points.append(p[((p >= low) & (p <= high)).all(1)])
    return torch.cat(points)


def beyond_eps(made: Set, found: Recovery) -> bool:
    """Whether the network's error exceeds `evidence.eps` somewhere on the domain."""
    x, y = made.x.double(), made.targets.double()
    low, high = x.amin(0), x.amax(0)
    if "domain" in made.options:
        low, high = (torch.full_like(low, v) for v in made.options["domain"])
    points = points_of_box(found.model, low, high)
    with torch.no_grad():
        error = float((found.model(points) - made.truth(points)).abs().max())
    return not error <= found.evidence.eps * float(y.square().mean().sqrt())


@dataclass
class Count:
    """What happened with the sets of one kind."""

    sets: int = 0
    claims: int = 0
    false: int = 0
    beyond: int = 0
    of_no_network: int = 0
    seconds: float = 0.0
    reasons: Counter = field(default_factory=Counter)

    def add(self, made: Set, found: Recovery | None, seconds: float) -> None:
        self.sets += 1
        self.seconds += seconds
        if found is None:
            self.reasons["refused"] += 1
        elif not found:
            self.reasons[", ".join(r.gate for r in found.reasons) or found.status] += 1
        else:
            self.claims += 1
            self.of_no_network += not made.in_class
            self.false += not error_on_doubled_box(made.x, made.truth, found.model) < RECOVERED
            self.beyond += beyond_eps(made, found)


def tried(made: Set) -> tuple[Recovery | None, float]:
    """The result of `recover` for a set, None if it refuses the data; and the seconds it took."""
    began = time.process_time()
    try:
        found: Recovery | None = recover(made.x, made.targets, budget=STARTS, **made.options)
    except ValueError:
        found = None
    return found, time.process_time() - began


def adversarial(seeds: int, names: Iterable[str] = KINDS) -> dict[str, Count]:
    """Counts for every kind, with several seeds each."""
    counts = {}
    for name in names:
        count = counts[name] = Count()
        for seed in range(seeds):
            made = data_set(name, seed)
            count.add(made, *tried(made))
    return counts


_COUNTED = ("sets", "claims", "false", "beyond", "of_no_network")


def adversarial_table(counts: dict[str, Count]) -> str:
    lines = [
        "| kind | sets | recovered | false | beyond eps | of no network | s | otherwise |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for apart in (False, True):
        group = {name: count for name, count in counts.items() if KINDS[name].apart == apart}
        for name, c in group.items():
            why = "; ".join(f"{k} {v}" for k, v in c.reasons.most_common(3))
            numbers = " | ".join(str(getattr(c, name)) for name in _COUNTED)
            numbers += f" | {c.seconds:.1f}"
            lines.append(f"| {name} | {numbers} | {why} |")
        sums = [str(sum(getattr(c, f) for c in group.values())) for f in _COUNTED]
        seconds = sum(c.seconds for c in group.values())
        title = (
            f"{len(group)} kinds that no procedure can tell" if apart else f"**{len(group)} kinds**"
        )
        lines.append(f"| {title} | {' | '.join(sums)} | {seconds:.0f} | |")
    return "\n".join(lines)


def planted(seeds: int) -> str:
    """Random targets at n = O + 1, 1.25 O, 1.5 O."""
    lines = [
        "| activation, biases | targets | found | recovered | wrong | median ms | otherwise |",
        "|---|---|---|---|---|---|---|",
    ]
    total = [0, 0, 0, 0]
    for activation, bias, output_bias in PLANTED:
        count, times, reasons = [0, 0, 0, 0], [], Counter()
        for d, k in SIZES:
            architecture = TwoLayer(d, k, activation=activation, bias=bias, output_bias=output_bias)
            size = sum(p.numel() for p in architecture.parameters())
            for draw in (Target.separated, Target.generic):
                for share in (1, 1.25, 1.5):
                    for seed in range(seeds):
                        target = draw(architecture, seed=seed)
                        x, y = target.sample(max(size + 1, math.ceil(share * size)), seed=seed + 17)
                        given = {"activation": activation, "bias": bias, "output_bias": output_bias}
                        began = time.process_time()
                        found = recover(x, y, max_width=k + 1, budget=STARTS, **given)
                        times.append(time.process_time() - began)
                        right = target.error(found.model) < RECOVERED
                        count[0] += 1
                        count[1] += right
                        count[2] += bool(found) and right
                        count[3] += bool(found) and not right
                        if not found:
                            reasons[", ".join(r.gate for r in found.reasons) or found.status] += 1
        total = [a + b for a, b in zip(total, count, strict=True)]
        name = f"{activation}{', b' * bias}{', c' * output_bias}"
        why = "; ".join(f"{key} {v}" for key, v in reasons.most_common())
        row = " | ".join(map(str, count))
        lines.append(f"| {name} | {row} | {1000 * median(times):.1f} | {why} |")
    lines.append(f"| all | {' | '.join(map(str, total))} | | |")
    return "\n".join(lines)


def stored(y: Tensor, how: str) -> Tensor:
    """The numbers after they were stored with few digits."""
    if how == "float32":
        return y.float().double()
    unit = 10.0 ** int(how[0])
    return (y * unit).round() / unit


def short(seeds: int) -> str:
    """Planted targets whose values were stored in float32 or to a few decimals."""
    lines = [
        "| | n = O + 1 | 1.5 O | 2 O | 4 O | wrong | beyond eps |",
        "|---|---|---|---|---|---|---|",
    ]
    for how in SHORT:
        cells, wrong, beyond = [], 0, 0
        for times in (1.0, 1.5, 2, 4):
            recovered = sets = 0
            for d, k in ((1, 1), (2, 2), (3, 2)):
                size = k * (d + 1)
                for seed in range(seeds):
                    target = Target.separated(TwoLayer(d, k, bias=False), seed=seed)
                    x = target.inputs(max(size + 1, math.ceil(times * size)), seed=seed + 5)
                    y = stored(target(x), how)
                    found = recover(x, y, max_width=k + 1, bias=False, budget=STARTS)
                    sets += 1
                    if not found:
                        continue
                    recovered += 1
                    wrong += not target.error(found.model) < RECOVERED
                    beyond += worst_on_box(x, target, found) > found.evidence.eps * float(
                        y.square().mean().sqrt()
                    )
            cells.append(f"{recovered} of {sets}")
        lines.append(f"| {how} | {' | '.join(cells)} | {wrong} | {beyond} |")
    return "\n".join(lines)


def worst_on_box(x: Tensor, target: Target, found: Recovery) -> float:
    generator = torch.Generator().manual_seed(5)
    t = torch.rand(2000, x.shape[1], dtype=torch.float64, generator=generator)
    points = x.amin(0) + (x.amax(0) - x.amin(0)) * t
    with torch.no_grad():
        return float((found.model(points) - target(points)).abs().max())


def speed(seeds: int) -> str:
    """Milliseconds of a recovery at n = O + 1."""
    lines, everything = ["| d, k | median ms | most |", "|---|---|---|"], []
    for d, k in SIZES:
        times = []
        for seed in range(seeds):
            target = Target.separated(TwoLayer(d, k, bias=False), seed=seed)
            x, y = target.sample(k * (d + 1) + 1, seed=seed + 17)
            began = time.process_time()
            recover(x, y, max_width=k + 2, bias=False)
            times.append(time.process_time() - began)
        everything += times
        lines.append(f"| {d}, {k} | {1000 * median(times):.1f} | {1000 * max(times):.1f} |")
    lines.append(f"| all | {1000 * median(everything):.1f} | {1000 * max(everything):.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few sets of each")
    parser.add_argument("--seeds", type=int, help="sets of each kind")
    parser.add_argument(
        "--only", choices=("adversarial", "planted", "short", "speed"), help="one table"
    )
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = settings.seeds or (1 if settings.quick else None)
    tables = {
        "adversarial": lambda: adversarial_table(adversarial(seeds or 14)),
        "planted": lambda: planted(seeds or 10),
        "short": lambda: short(seeds or 8),
        "speed": lambda: speed(seeds or 20),
    }
    for name, table in tables.items():
        if settings.only in (None, name):
            print(f"\n{name}\n\n{table()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
