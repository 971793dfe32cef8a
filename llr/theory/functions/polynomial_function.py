"""Bounds of model ranks of functions of polynomial activations, which have no shortest form."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import comb

from llr.theory.functions.prices import not_in_width
from llr.theory.result import Dimension, Term
from llr.theory.structures.structure import Row, TwoLayerNet, outer, rank, unit_vectors
from llr.theory.tangents.polynomial import (
    ENTRIES,
    degree,
    evaluate,
    lattice,
    polynomial_generic_rank,
    polynomial_tangent,
    random_points,
)


def polynomial_rank(target: TwoLayerNet, net: TwoLayerNet) -> Dimension:
    """Bounds of the smallest dim T with a function of a polynomial activation.

    The upper bound is dim T after merging equal neurons and deleting those without outgoing weights. For the
    lower bound, T always contains the functions f_l, in every output, and x_m df/dx_l, and with hidden biases
    df/dx_l, too. These depend only on the function. If the merged network is not degenerate, almost every
    network of its size has the upper bound as its model rank.

    Args:
        target: a network with the function.
        net: the architecture.

    Raises:
        ValueError: the target, without a change of its neurons, does not fit the architecture.

    Source: docs/theory.md, 1.4 and Theorem 2.6.
    """
    merged, count = _merged(target, net)
    upper = polynomial_tangent(merged).upper
    generic = polynomial_generic_rank(merged)
    text = f"at most, from {count} different neurons; polynomials have no shortest form"
    found = Dimension.between(
        what="model rank",
        lower=min(upper, rank(_moves(target, net))),
        terms=[Term(upper, text)],
        statement="Theorem 2.6",
        n_params=net.n_params,
    )
    if not found.exact and count and generic.exact and generic.upper == upper:
        return replace(found, status="almost everywhere")
    return found


def _merged(target: TwoLayerNet, net: TwoLayerNet) -> tuple[TwoLayerNet, int]:
    """The target in the architecture with its neurons merged, and the number of remaining neurons."""
    found: dict[tuple[Row, Fraction], Row] = {}
    for i, (w, a) in enumerate(zip(target.w, target.a, strict=True)):
        key = w, Fraction(0) if target.b is None else target.b[i]
        old = found.get(key, (Fraction(0),) * net.q)
        found[key] = tuple(x + y for x, y in zip(old, a, strict=True))
    kept = {key: a for key, a in found.items() if any(a)}
    if net.b is None and any(b for _, b in kept):
        raise ValueError(
            "the target has neurons with biases, and the architecture has no hidden biases (bias=True)"
        )
    if net.c is None and any(target.c or ()):
        raise ValueError(
            "the target has an output bias, and the architecture has none (output_bias=True)"
        )
    if len(kept) > net.m:
        raise not_in_width(net, f"{len(kept)} neurons once merged; llr does not look for others")
    zero = (Fraction(0),) * net.q
    neurons = kept or {((Fraction(0),) * net.d, Fraction(0)): zero}
    merged = replace(
        net,
        w=tuple(w for w, _ in neurons),
        b=None if net.b is None else tuple(b for _, b in neurons),
        a=tuple(neurons.values()),
        c=None if net.c is None else (target.c or zero),
    )
    return merged, len(kept)


def _moves(target: TwoLayerNet, net: TwoLayerNet) -> list[list[Fraction]]:
    """How f changes under linear maps of inputs and outputs: values at points, a row for each point."""
    n = degree(target.coefficients)
    columns = net.q * net.q + (net.d + net.beta) * net.d + net.q
    points = lattice(net.d, n)
    if comb(n + net.d, net.d) * net.q * columns > ENTRIES:
        points = random_points(net.d, min(columns, ENTRIES // (net.q * columns) + 1))
    slopes = tuple(k * c for k, c in enumerate(target.coefficients))[1:]
    rows = []
    for x in points:
        value = list(target.c or (Fraction(0),) * net.q)
        gradient = [[Fraction(0)] * net.q for _ in range(net.d)]
        for i, (w, a) in enumerate(zip(target.w, target.a, strict=True)):
            z = sum((u * v for u, v in zip(w, x, strict=True)), Fraction(0))
            z += Fraction(0) if target.b is None else target.b[i]
            s, slope = evaluate(target.coefficients, z), evaluate(slopes, z)
            for j, outgoing in enumerate(a):
                value[j] += outgoing * s
                for slot, incoming in zip(gradient, w, strict=True):
                    slot[j] += outgoing * slope * incoming
        inputs = tuple(Fraction(v) for v in ((*x, 1) if net.beta else x))
        for j, e in enumerate(unit_vectors(net.q)):
            row = [*outer(e, tuple(value))]
            row += [m * g[j] for m in inputs for g in gradient]
            rows.append(row + (list(e) if net.c is not None else []))
    return rows
