"""Random functions of two layers and architectures for them. Reflections may give the affine part, or not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

from llr.theory import Dimension
from llr.theory.functions import function
from llr.theory.structures.structure import TwoLayerNet

from .function_search import REFLECTIONS, Setting

Neuron = tuple[Sequence[int], int, Sequence[Fraction | int]]


def random_setting(seed: int) -> Setting:
    """A function of up to two neurons and a width of up to three: few enough to try all representations."""
    chance = random.Random(f"function {seed}")
    act = chance.choice(list(REFLECTIONS))
    hinge = REFLECTIONS[act] == "hinge"
    d, q = chance.choice([(1, 1), (1, 1), (2, 1), (1, 2), (2, 2)])
    bias, output_bias = chance.random() < 0.7, chance.random() < 0.25
    k = chance.choice([0, 1, 1, 2])
    m = chance.randint(max(k, 1), 3)
    pool: list[tuple[int, ...]] = [(1, 0), (1, 1), (2, -1)]
    if d == 2:
        pool = [(1, 0, 0), (1, 1, 1), (0, 1, -1)] if bias else [(1, 0, 0), (1, 1, 0), (0, 1, 0)]
    elif not bias:
        pool = [(1, 0), (2, 0), (3, 0)]
        if act == "relu":  # all scales give the same hyperplane
            pool, k = pool[:1], min(k, 1)
    planes = chance.sample(pool, min(len(pool), k + 1))
    outgoing = [(1, 0), (1, 1), (2, 1), (0, 1), (-1, 2)] if q == 2 else [(1,), (2,), (-1,)]
    alpha = tuple(chance.choice(outgoing) for _ in range(k))
    affine = [[Fraction(0)] * (d + 1) for _ in range(q)]
    kind = chance.choice(("none", "reflections", "any", "any"))
    if kind == "reflections":
        for plane, a in zip(planes, alpha, strict=False):
            if chance.random() < 0.5:
                affine = [
                    [v - hinge * u * z for v, z in zip(row, plane, strict=True)]
                    for row, u in zip(affine, a, strict=True)
                ]
                for row, u in zip(affine, a, strict=True):
                    row[-1] -= u * (act == "sigmoid")
    if kind == "any":
        for row in affine:
            row[-1] += chance.choice((0, 1, -3))
        if hinge:
            plane = chance.choice(planes)
            affine = [
                [v + u * z for v, z in zip(row, plane, strict=True)]
                for row, u in zip(affine, chance.choices((0, 1, -1, -3), k=q), strict=True)
            ]
    if hinge:  # a pair of neurons on the hyperplane where the affine part is 0 gives all of it
        zeros = [tuple(map(int, (*row[:-1], row[-1] * bias))) for row in affine if any(row[:-1])]
        planes += [p for p in zeros if not any(_parallel(p, old) for old in planes)][:1]
    return Setting(act, tuple(planes), alpha, tuple(map(tuple, affine)), m, bias, output_bias)


def _parallel(one: Sequence[int], other: Sequence[int]) -> bool:
    size = range(len(one))
    return all(one[i] * other[j] == one[j] * other[i] for i in size for j in size)


def optimum(setting: Setting) -> Dimension | None:
    """The theory's result for the function in the architecture; None if the function does not fit."""
    d, q = setting.d, setting.q
    neurons: list[Neuron] = [
        (plane[:-1], plane[-1], a)
        for plane, a in zip(
            setting.planes, setting.alpha, strict=False
        )  # the other planes are not used by the function
    ]
    for i in range(d):  # s(x_i) - s(-x_i) = x_i, for hinges
        column = [row[i] for row in setting.affine]
        if any(column):
            e = [int(i == j) for j in range(d)]
            neurons += [(e, 0, column), ([-v for v in e], 0, [-v for v in column])]
    spare: Neuron = ([0] * d, 0, [0] * q)
    constants = [row[-1] for row in setting.affine]
    target = _network(setting, neurons or [spare], constants)
    ours = _network(
        setting, [spare] * setting.m, [Fraction(0)] * q if setting.output_bias else None
    )
    try:
        return function.rank_in(ours, target)
    except ValueError as refusal:
        if "more than llr can tell" in str(refusal):
            raise
        return None


def _network(
    setting: Setting, neurons: Sequence[Neuron], c: Sequence[Fraction] | None
) -> TwoLayerNet:
    return TwoLayerNet(
        activation=setting.activation,
        w=tuple(tuple(map(Fraction, w)) for w, _, _ in neurons),
        b=tuple(Fraction(b) for _, b, _ in neurons) if setting.bias else None,
        a=tuple(tuple(map(Fraction, a)) for _, _, a in neurons),
        c=None if c is None else tuple(c),
        d=setting.d,
        q=setting.q,
    )
