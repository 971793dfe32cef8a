"""How often statements of `llr.rank` are wrong: random small networks, whose ranks are counted and proved.

    python benchmarks/rank_words.py                 # 4,000 networks; minutes
    python benchmarks/rank_words.py --quick         # 40, to check that it runs
    python benchmarks/rank_words.py --count 500 --first 100000

Two-layer, deep and narrow networks with seven activations have planted degeneracies: copies, mirror images,
dead and nearly equal neurons, weights of other magnitudes. Samples may be repeated, mirrored, on a line, or
close together. Each rank is counted, also with inputs and outputs in other units, and proved. The exit code
is 1 if a rank that is not ambiguous is wrong. It is also 1 if too many ranks are ambiguous for which the rule
"a gap of 1000 is clear" would give the right rank.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import llr
from llr import RankResult
from llr.inputs.activations import activation_layer
from llr.linalg.spectrum import CLEAR_GAP

F64 = torch.float64
LOST = 0.02  # largest fraction of ambiguous ranks among those that the usual rule calls clear and gets right
ACTIVATIONS = ("tanh", "sigmoid", "softplus", "gelu", "silu", "erf", "sin")
NEURONS = ("copy", "no way out", "no way in", "mirror", "near", "other size")
SAMPLES = ("repeated", "mirrored", "on a line", "crowded")


@dataclass(frozen=True)
class Sample:
    """A network, its samples, and a description of both."""

    model: nn.Sequential
    x: Tensor
    words: str


def draw(seed: int) -> Sample:
    """A random network with fewer than about a hundred parameters."""
    choice, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    widths = _widths(choice)
    activation, biases = choice.choice(ACTIVATIONS), choice.random() < 0.75
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=biases, dtype=F64), activation_layer(activation)]
    model = nn.Sequential(*layers[:-1])
    scale = choice.choice((0.1, 0.3, 1.0, 1.0, 1.0, 2.0, 5.0))
    neurons = choice.choice(NEURONS) if choice.random() < 0.5 else "generic"
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * normal(*p.shape))
        _degenerate(model, neurons, choice, normal)
    P = sum(p.numel() for p in model.parameters())
    n = P + 2 + choice.randrange(10) if choice.random() < 0.67 else 1 + choice.randrange(P + 2)
    x = choice.choice((0.1, 1.0, 1.0, 1.0, 3.0)) * normal(n, widths[0])
    samples = choice.choice(SAMPLES) if choice.random() < 0.4 else "generic"
    if samples in ("repeated", "mirrored") and n > 2:
        sign = 1.0 if samples == "repeated" else -1.0
        x[n // 2 :] = sign * x[: n - n // 2]
    elif samples == "on a line":
        x = x[:, :1] * normal(1, widths[0])
    elif samples == "crowded":
        x = 0.5 + 0.01 * x
    words = f"{'-'.join(map(str, widths))} {activation}, {scale:g}, {neurons} neurons, {samples} samples"
    return Sample(model, x, words)


def _widths(choice: random.Random) -> list[int]:
    inputs = choice.choice((1, 1, 1, 2, 3, 4))
    kind = choice.choice(("two", "two", "deep", "narrow", "outputs"))
    if kind == "two":
        return [inputs, choice.randint(1, 10), 1]
    if kind == "deep":
        return [inputs, *(choice.randint(1, 5) for _ in range(choice.randint(2, 3))), 1]
    if kind == "narrow":
        return [1] * choice.randint(3, 6)
    return [inputs, choice.randint(1, 5), choice.randint(1, 3)]


def _degenerate(model: nn.Sequential, kind: str, choice: random.Random, normal: object) -> None:
    first, second = model[0], model[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    W, b = first.weight, first.bias
    if len(W) > 1 and kind in ("copy", "mirror", "near"):
        sign = -1.0 if kind == "mirror" else 1.0
        W[1] = sign * W[0]
        if kind == "near":
            W[1] += 10.0 ** -choice.randint(1, 10) * normal(*W[0].shape)  # type: ignore[operator]
        if b is not None:
            b[1] = sign * b[0]
    elif kind == "no way out":
        second.weight[:, 0] = 0
    elif kind == "no way in":
        W[0] = 0
    elif kind == "other size":
        W[0] *= 10.0 ** choice.randint(-3, 3)


def in_other_units(sample: Sample, choice: random.Random) -> tuple[nn.Sequential, Tensor]:
    """The same function, up to rounding, with every input and output multiplied by a power of ten."""
    model, x = sample.model, sample.x

    def units(count: int) -> Tensor:
        return torch.tensor([10.0 ** choice.randint(-150, 150) for _ in range(count)], dtype=F64)

    layers: list[nn.Module] = []
    linears = [m for m in model if isinstance(m, nn.Linear)]
    inputs, outputs = units(x.shape[1]), units(linears[-1].out_features)
    for layer in model:
        if not isinstance(layer, nn.Linear):
            layers.append(layer)
            continue
        new = nn.Linear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=F64
        )
        with torch.no_grad():
            right = 1 / inputs if layer is linears[0] else torch.ones(layer.in_features, dtype=F64)
            left = outputs if layer is linears[-1] else torch.ones(layer.out_features, dtype=F64)
            new.weight.copy_(left[:, None] * (layer.weight * right))
            if layer.bias is not None:
                new.bias.copy_(left * layer.bias)
        layers.append(new)
    return nn.Sequential(*layers), x * inputs


def by_gap(result: RankResult) -> tuple[int, bool]:
    """The usual rule: the rank with rtol = eps times the short side, and whether the gap there is large."""
    again = llr.numerical_rank(torch.diag(result.spectrum), rtol=2.0**-52 * len(result.spectrum))
    return int(again.rank), float(again.gap) >= CLEAR_GAP


@dataclass(frozen=True)
class Row:
    """The results for a network."""

    words: str
    counted: RankResult
    answer: RankResult
    elsewhere: RankResult
    proof: RankResult
    usual: tuple[int, bool]
    seconds: tuple[float, float]


def rows(seeds: Sequence[int]) -> Iterator[Row]:
    """Count and prove one network after the other."""
    for seed in seeds:
        sample = draw(seed)
        model, x = sample.model, sample.x
        start = time.process_time()
        counted = llr.rank(model, x, resolve=False)
        middle = time.process_time()
        answer = llr.rank(model, x)
        end = time.process_time()
        elsewhere = llr.rank(*in_other_units(sample, random.Random(seed)), resolve=False)
        proof = llr.rank(model, x, method="certified", max_bits=1024)
        usual = by_gap(llr.rank(model, x, method="svd", resolve=False))
        yield Row(
            sample.words, counted, answer, elsewhere, proof, usual, (middle - start, end - middle)
        )


def report(found: Sequence[Row]) -> bool:
    """Print the table, and return whether the promises hold."""
    total = len(found)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for row in found:
        proved = int(row.proof.rank)
        rank, clear = row.usual
        counts["usual: wrong and clear"] += clear and rank != proved
        counts["usual: right and clear"] += clear and rank == proved
        counts["counted: exact"] += row.counted.exact
        counts["counted: ambiguous"] += row.counted.open
        counts["counted: ambiguous, usual right and clear"] += (
            row.counted.open and clear and rank == proved
        )
        counts["answer: exact"] += row.answer.exact
        counts["answer: by a certificate"] += row.answer.method == "certified"
        counts["answer: ambiguous"] += row.answer.open
        counts["answer: ambiguous, usual right and clear"] += (
            row.answer.open and clear and rank == proved
        )
        counts["other units: ambiguous"] += row.elsewhere.open
        for name, result in (("counted", row.counted), ("answer", row.answer)):
            if int(result.lower) > proved or (not result.open and int(result.rank) != proved):
                wrong.append(f"{name} {result.rank} for {proved}: {row.words}")
        if not row.elsewhere.open and row.elsewhere.rank != proved:
            wrong.append(f"in other units {row.elsewhere.rank} for {proved}: {row.words}")
    for name, count in counts.items():
        print(f"{name:45} {count:6}  {count / total:7.2%}")
    for line in wrong[:10]:
        print(f"WRONG: {line}")
    lost = counts["counted: ambiguous, usual right and clear"]
    share = lost / max(1, counts["usual: right and clear"])
    count, answer = zip(*(row.seconds for row in found), strict=True)
    print(
        f"{total} networks; ranks that are wrong and not ambiguous, or lower bounds above the proved rank: "
        f"{len(wrong)}; ambiguous among those that the usual rule gets right and clear: {share:.2%} (at most "
        f"{LOST:.0%})\n"
        f"milliseconds, median and largest: count {1e3 * statistics.median(count):.2f} and "
        f"{1e3 * max(count):.0f}; answer {1e3 * statistics.median(answer):.2f} and {1e3 * max(answer):.0f}"
    )
    return not wrong and (share <= LOST or total < 500)


def main() -> None:
    """Run, print, and exit with 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = 40 if options.quick else options.count
    found = list(rows(range(options.first, options.first + count)))
    sys.exit(0 if report(found) else 1)


if __name__ == "__main__":
    main()
