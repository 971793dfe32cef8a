"""Why an embedding enlarges the tangent space: what is new in a wide network compared to a narrow one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from llr.embedding.network import Network
from llr.theory.spans.formal import Formal
from llr.theory.spans.symbols import Vector
from llr.theory.structures.groups import named
from llr.theory.structures.structure import ConvNet, exact_matrix

_Signal = tuple[Vector, ...]
"""A neuron as a function; a channel has one function for each position."""

_ONE = {"is": "is", "has": "has", "sends": "sends"}
_SEVERAL = {"is": "are", "has": "have", "sends": "send"}


@dataclass(frozen=True)
class _Copy:
    of: int
    sign: int


_Role = _Copy | str
"""The role of a wide neuron: a copy of a narrow one, "constant", or "new"."""


def exceptions(narrow: Network, wide: Network, below: Formal, above: Formal) -> tuple[str, ...]:
    """What can make the tangent space of the wide network larger, as text.

    New signals, which the narrow network does not have: a new constant, a dead neuron with new incoming
    weights. New errors: those of a constant neuron with outgoing weights, and those of copies that have
    different shares for different downstream neurons.

    Args:
        narrow: as layers of neurons.
        wide: a network of the same function, with as many layers.
        below: the narrow network in symbols.
        above: the wide one in the same symbols.
    """
    if len(narrow.weights) != len(wide.weights):
        return ()
    conv = isinstance(below.net, ConvNet)

    def told(layer: int, neurons: Sequence[int], text: str) -> list[str]:
        verbs = _ONE if len(neurons) == 1 else _SEVERAL
        return [f"{_named(layer, neurons, conv)} {text.format(**verbs)}"] if neurons else []

    signals = [(_signals(below, k), _signals(above, k)) for k in range(len(narrow.hidden))]
    roles = [[_role(above, v, old) for v in new] for old, new in signals]
    found = []
    for layer, (old, new) in enumerate(signals):
        columns = list(zip(*exact_matrix(wide.weights[layer + 1]), strict=True))
        idle = [not any(column) for column in columns]
        of_kind = {
            kind: [i for i, role in enumerate(roles[layer]) if role == kind]
            for kind in ("constant", "new")
        }
        unbiased = wide.biases[layer + 1] is None
        had = any(any(v) and _constant(below, v) for v in old)
        sending = [i for i in of_kind["constant"] if any(new[i])]
        found += told(
            layer,
            sending if unbiased and not had else [],
            "{sends} a constant to a layer without biases: a new signal",
        )
        found += told(
            layer,
            [i for i in of_kind["new"] if idle[i]],
            "{is} dead, but {has} new incoming weights: a new signal",
        )
        found += told(
            layer,
            [i for i in of_kind["new"] if not idle[i]],
            "{is} new, with outgoing weights: a new signal, and a new error",
        )
        absorbed = "" if unbiased else " that the next biases absorb"
        found += told(
            layer,
            [i for i in of_kind["constant"] if not idle[i]],
            f"{{is}} constant, with outgoing weights{absorbed}: a new error, felt by incoming weights",
        )
    return (*found, *_unequal_shares(narrow, wide, roles, conv))


def _named(layer: int, neurons: Sequence[int], conv: bool) -> str:
    return (
        named(neurons).replace("neuron", "channel") if conv else f"layer {layer}: {named(neurons)}"
    )


def _signals(net: Formal, layer: int) -> list[_Signal]:
    neurons = net.neurons[layer]
    size = net.net.p if isinstance(net.net, ConvNet) else 1
    return [tuple(neurons[i : i + size]) for i in range(0, len(neurons), size)]


def _constant(net: Formal, signal: _Signal) -> bool:
    return all(map(net.symbols.is_constant, signal))


def _role(net: Formal, signal: _Signal, old: Sequence[_Signal]) -> _Role:
    if _constant(net, signal):
        return "constant"
    for sign in (1, -1):
        same = tuple({m: sign * c for m, c in v.items()} for v in signal)
        if same in old:
            return _Copy(old.index(same), sign)
    return "new"


def _unequal_shares(
    narrow: Network, wide: Network, roles: Sequence[Sequence[_Role]], conv: bool
) -> list[str]:
    """Find copies without a common share of their neuron's error, from the outputs down."""
    outputs = len(narrow.weights[-1])
    above: list[tuple[_Role, Fraction]] = [(_Copy(j, 1), Fraction(1)) for j in range(outputs)]
    for layer in reversed(range(len(roles))):
        w, W = (exact_matrix(net.weights[layer + 1]) for net in (narrow, wide))
        shares: list[tuple[_Role, Fraction]] = []
        unequal: list[int] = []
        for i, role in enumerate(roles[layer]):
            if not isinstance(role, _Copy):
                shares.append((role, Fraction(0)))
                continue
            error = [Fraction(0)] * len(w)
            for (upper, kappa), row in zip(above, W, strict=True):
                if isinstance(upper, _Copy):
                    error[upper.of] += kappa * upper.sign * role.sign * row[i]
            share = _multiple(error, [row[role.of] for row in w])
            if share is None:
                unequal.append(i)
            else:
                shares.append((role, share))
        if unequal:
            of = sorted({role.of for i in unequal if isinstance(role := roles[layer][i], _Copy)})
            which = _named(layer, of, conv).removeprefix(f"layer {layer}: ")
            copies = "a copy" if len(unequal) == 1 else "copies"
            told = f"{_named(layer, unequal, conv)}, {copies} of narrow {which}"
            downstream = "positions" if conv else "downstream neurons"
            return [f"{told}: different shares for different {downstream}, new errors"]
        above = shares
    return []


def _multiple(u: Sequence[Fraction], v: Sequence[Fraction]) -> Fraction | None:
    """The k with u = k v; None if there is none."""
    at = next((j for j, value in enumerate(v) if value), None)
    k = Fraction(0) if at is None else u[at] / v[at]
    return k if all(a == k * b for a, b in zip(u, v, strict=True)) else None
