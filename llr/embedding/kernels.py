"""Convolutions in exact numbers, and the removal of channels that their functions do not need."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from llr.theory.spans.span import Echelon
from llr.theory.spans.symbols import Symbols, Vector
from llr.theory.structures.structure import ConvNet

_ZERO = Fraction(0)
_Place = tuple[int, int]
"""A channel and a position."""


class Kernels:
    """A two-layer convolution in exact numbers, reduced to fewer channels.

    Attributes:
        kernels: for each channel, the kernels at the positions; with sharing they are equal.
        out: for each channel its outgoing weights, one per position.
        steps: what was done, as text. Channels keep their original numbers.
    """

    def __init__(self, net: ConvNet) -> None:
        self.kernels = [list(channel) for channel in net.kernels]
        self.out = [list(row) for row in net.a]
        self.steps: list[str] = []
        self._net = net
        self._names = list(range(len(net.a)))
        self._symbols = Symbols()

    def reduce(self) -> None:
        """Remove as many channels as possible."""
        if self._net.shared:
            while not self._is_null() and (self._delete_idle() or self._merge_channel()):
                pass
        else:
            self._merge_places()
            self._pack()

    def _delete_idle(self) -> bool:
        """Delete channels without outgoing weights, or whose neurons are 0."""
        values = self._values()
        idle = [
            c
            for c, row in enumerate(self.out)
            if not any(a and v for a, v in zip(row, values[c], strict=True))
        ]
        if not idle:
            return False
        self.steps += [
            f"channel {self._names[c]} "
            + ("is 0" if any(self.out[c]) else "has no outgoing weights")
            + ": deleted"
            for c in idle
        ]
        self._keep([c for c in range(len(self.out)) if c not in idle])
        return True

    def _merge_channel(self) -> bool:
        """Merge a channel into others if its neurons with outgoing weights are combinations of their neurons.

        Shifts of kernels with zeros at their ends coincide, so that a channel can be merged into several.
        """
        values = self._values()
        for c in reversed(range(len(self.out))):
            places = [(k, t) for k in range(len(self.out)) if k != c for t in range(self._net.p)]
            echelon, found = (
                _echelon(values, places),
                list[tuple[Fraction, dict[_Place, Fraction]]](),
            )
            for t, a in enumerate(self.out[c]):
                rest, combination = echelon.reduce(values[c][t] if a else {})
                if rest:
                    break
                found.append((a, {places[k]: v for k, v in combination.items() if k is not None}))
            else:
                into = sorted({self._names[k] for _, parts in found for k, _ in parts})
                self.steps.append(
                    f"channel {self._names[c]} is a combination of others: merged into "
                    f"{', '.join(map(str, into))}"
                )
                for a, parts in found:
                    for (k, t), v in parts.items():
                        self.out[k][t] += a * v
                self._keep([k for k in range(len(self.out)) if k != c])
                return True
        return False

    def _merge_places(self) -> None:
        """Without sharing: merge single kernels, across channels and positions."""
        values = self._values()
        echelon, places = (
            Echelon(),
            [(c, t) for c in range(len(self.out)) for t in range(self._net.p)],
        )
        for number, (c, t) in enumerate(places):
            a = self.out[c][t]
            if not a:
                continue
            rest, combination = echelon.reduce(values[c][t])
            if rest:
                echelon.add(number, values[c][t])
                continue
            self.out[c][t] = _ZERO
            self.steps.append(f"channel {c}, position {t}: 0 or a combination of others, merged")
            for k, v in combination.items():
                if k is not None:
                    self.out[places[k][0]][places[k][1]] += a * v

    def _pack(self) -> None:
        """Without sharing: move the kernels with outgoing weights into the first channels."""
        columns = [
            [
                (channel[t], row[t])
                for channel, row in zip(self.kernels, self.out, strict=True)
                if row[t]
            ]
            for t in range(self._net.p)
        ]
        most = max(1, *map(len, columns))
        if most == len(self.out):
            return
        self.steps.append(
            f"at most {most} kernels are used at a position: {len(self.out) - most} channels deleted"
        )
        none = ((_ZERO,) * self._net.s, _ZERO)
        padded = [[*column, *[none] * (most - len(column))] for column in columns]
        self.kernels = [[column[c][0] for column in padded] for c in range(most)]
        self.out = [[column[c][1] for column in padded] for c in range(most)]

    def _keep(self, channels: Sequence[int]) -> None:
        """Drop all other channels; keep one without weights if `channels` is empty."""
        if not channels:
            self.steps.append(f"channel {self._names[0]} stays without weights, as the only one")
            self.kernels = [[(_ZERO,) * self._net.s] * self._net.p]
            self.out = [[_ZERO] * self._net.p]
            channels = [0]
        self.kernels = [self.kernels[c] for c in channels]
        self.out = [self.out[c] for c in channels]
        self._names = [self._names[c] for c in channels]

    def _is_null(self) -> bool:
        return len(self.out) == 1 and not any(self.out[0]) and not any(map(any, self.kernels[0]))

    def _values(self) -> list[list[Vector]]:
        """The neurons as functions, channel by channel, position by position."""
        return [
            [
                self._symbols.neuron(
                    self._net.activation,
                    {self._symbols.coordinate(t + j): w for j, w in enumerate(kernel) if w},
                ).value
                for t, kernel in enumerate(channel)
            ]
            for channel in self.kernels
        ]


def _echelon(values: Sequence[Sequence[Vector]], places: Sequence[_Place]) -> Echelon:
    """The span of the neurons at these places, numbered in this order."""
    echelon = Echelon()
    for number, (c, t) in enumerate(places):
        if echelon.reduce(values[c][t])[0]:
            echelon.add(number, values[c][t])
    return echelon
