"""A model's Jacobian as a stream of parts, without the whole Jacobian in memory.

A part is a :class:`Factor`, which represents the columns of a layer's weight without storing them, or a block
of columns. Layers come from :mod:`llr.jacobians.signals`, parameters outside these layers from
:mod:`llr.jacobian`. The memory used at a time is limited. If the signals of all layers fit besides the parts,
the model is run once on all samples, a chunk at a time. Otherwise the parameters are divided into groups, and
the model is run for each group.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llr.inputs.memory import memory_budget
from llr.jacobians.paths import columns_of
from llr.jacobians.signals import Layer, Layers, Signal

log = logging.getLogger("llr")

_HELD_BYTES = 1 << 30
"""The largest size of the signals of all layers, besides a quarter of the memory budget."""


@dataclass
class Factor:
    """Columns of the Jacobian: row (i, j), of sample i and output j, is sum_t delta[i, j, t] a[i, t]'."""

    delta: Tensor
    """(n, q, T, h)"""
    a: Tensor
    """(n, T, w); for a vocabulary indices (n, T, 1), -1 for none."""
    bias: bool = False
    """Whether there are columns of a bias, too: sum_t delta[i, j, t]."""

    @property
    def vocabulary(self) -> bool:
        """Whether a holds indices."""
        return not self.a.is_floating_point()

    @property
    def columns(self) -> int:
        """The number of columns; for a vocabulary, an upper bound."""
        h = self.delta.shape[-1]
        return h * (self.a.numel() if self.vocabulary else self.a.shape[-1]) + h * self.bias

    def operands(self) -> tuple[Tensor, Tensor]:
        """The Gram operators' arguments delta (N, T, h) and a (N, T, w), with a row for every output."""
        delta, a = self.delta, self.a
        if self.vocabulary:
            used, a = _used(a)
            a = (a == torch.arange(used, device=a.device)).to(delta.dtype)
        n, q, T, _ = delta.shape
        a = a[:, None].expand(n, q, T, a.shape[-1])
        return delta.flatten(0, 1), a.flatten(0, 1)

    def blocks(self, width: int) -> Iterator[Tensor]:
        """The columns, at most `width` at a time, (N, columns); zero columns may be missing."""
        if self.bias:
            for part in self.delta.split(width, -1):
                yield part.sum(2).flatten(0, 1)
        if self.vocabulary:
            yield from self._looked_up(width)
            return
        w = self.a.shape[-1]
        for a in self.a.split(min(w, width), -1):
            for delta in self.delta.split(max(1, width // a.shape[-1]), -1):
                yield torch.einsum("nqth,ntw->nqhw", delta, a).flatten(2).flatten(0, 1)

    def _looked_up(self, width: int) -> Iterator[Tensor]:
        used, index = _used(self.a)
        n, q = self.delta.shape[:2]
        for first in range(0, used, width):
            rows = min(width, used - first)
            inside = torch.where((index < first) | (index >= first + rows), first + rows, index)
            for delta in self.delta.split(max(1, width // rows), -1):
                block = delta.new_zeros(n, q, rows + 1, delta.shape[-1])  # the last row: index -1
                block.scatter_add_(2, (inside - first)[:, None].expand(delta.shape), delta)
                yield block[:, :, :rows].flatten(2).flatten(0, 1)


def _used(indices: Tensor) -> tuple[int, Tensor]:
    """The number of used entries of a vocabulary, and the indices renumbered among these."""
    used, among = torch.unique(indices, return_inverse=True)
    missing = int((used < 0).sum())  # they are sorted: only the first can be negative
    return len(used) - missing, among - missing


def stream(layers: Layers, budget: int, chunk_size: int | None = None) -> Iterator[Factor | Tensor]:
    """All columns of a model's Jacobian at one parameter point, in parts.

    Args:
        layers: the model's layers at its point.
        budget: the bytes of the parts that are in memory at a time. One column is always allowed.
        chunk_size: samples to run the model on at a time; default: as many as give signals that fit `budget`.

    Yields:
        Factors, and blocks (N, columns) with N = n q rows, sample-major. The order is not defined, and zero
        columns may be missing: neither changes a Gram matrix.
    """
    n, q = len(layers.problem.x), layers.outputs
    itemsize = layers.problem.dtype.itemsize
    pieces = [p for layer in layers.known for p in _pieces(layer, n, q, budget // itemsize)]
    others = list(layers.others)
    held, different = None, list[Layer]()
    if sum(p.numel for p in pieces) * itemsize > budget:  # more than one group
        held, different = _held(layers, budget, chunk_size)
    others += _apart(different)
    pieces = [p for p in pieces if p.layer not in different]
    while pieces:
        some, used = 0, 0
        while some < len(pieces) and (some == 0 or used + pieces[some].numel * itemsize <= budget):
            used += pieces[some].numel * itemsize
            some += 1
        stores, wrong = _run(layers, pieces[:some], budget, chunk_size, held)
        others += _apart(wrong)
        pieces = [p for p in pieces[some:] if p.layer not in wrong]
        for store in stores:
            yield store.part()
        del stores
    yield from _columns(layers, others, budget, chunk_size)


def _apart(wrong: Iterable[Layer]) -> list[str]:
    """The parameters of layers whose columns cannot be computed from hooks."""
    for layer in wrong:
        log.info(
            "hooks give wrong derivatives of layer %r; its columns are computed separately",
            layer.path,
        )
    return [name for layer in wrong for name in layer.names]


_Held = dict[Layer, Signal]
"""The signals of all samples."""


def _held(layers: Layers, budget: int, chunk_size: int | None) -> tuple[_Held | None, list[Layer]]:
    """All signals of all layers if they fit, else None; and the layers for which hooks are wrong."""
    x, q, itemsize = layers.problem.x, layers.outputs, layers.problem.dtype.itemsize
    per_sample = sum(_numel(it, q) for it in layers.known) * itemsize
    most = min(_HELD_BYTES, memory_budget(x.device) // 4)
    if not layers.known or len(x) * per_sample > most:
        return None, []
    at_once = chunk_size or max(1, budget // (2 * per_sample))
    parts: dict[Layer, list[Signal]] = {layer: [] for layer in layers.known}
    for first in range(0, len(x), at_once):
        found = layers.signals(x[first : first + at_once], list(parts))
        parts = {layer: [*kept, found[layer]] for layer, kept in parts.items() if layer in found}
    held = {}
    for layer, signals in parts.items():
        if len({(s.delta.shape[1:], s.a.shape[1:]) for s in signals}) == 1:
            held[layer] = Signal(
                *(torch.cat(t) if len(t) > 1 else t[0] for t in zip(*signals, strict=True))
            )
    return held, [layer for layer in layers.known if layer not in held]


def _numel(layer: Layer, q: int) -> int:
    """The number of entries of a layer's signals for one sample."""
    inputs = 1 if layer.vocabulary else layer.inputs
    return layer.groups * layer.positions * (q * layer.outputs + inputs)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some of a layer's columns: groups, outputs and inputs, and whether they are stored as a factor."""

    layer: Layer
    groups: slice
    outputs: slice
    inputs: slice
    factored: bool
    numel: int
    """The number of stored entries."""

    @property
    def bias(self) -> bool:
        return self.layer.bias is not None and self.inputs.start == 0


def _pieces(layer: Layer, n: int, q: int, most: int) -> Iterator[_Piece]:
    """A layer's columns in pieces of at most `most` numbers, or of one column if that is larger."""
    N, G, T, h = n * q, layer.groups, layer.positions, layer.outputs
    w = layer.inputs if layer.weight is not None else 0
    signals = 1 if layer.vocabulary else w
    if n * q * T * h + n * T * signals < N * h * w:
        # Count a row of inputs for every output, as the operators take it.
        ws = w if layer.vocabulary else max(1, min(w, most // (2 * N * T)))
        per_input = n * T if layer.vocabulary else N * T * ws
        hs = max(1, min(h, (most - per_input) // (N * T)))
        for g in range(G):
            for inputs in _split(w, ws):
                for outputs in _split(h, hs):
                    numel = N * T * (outputs.stop - outputs.start) + per_input
                    yield _Piece(layer, slice(g, g + 1), outputs, inputs, True, numel)
        return
    columns = max(1, most // N)
    each = w + (layer.bias is not None)
    ws = w if each <= columns else max(1, min(w, columns - 1))
    hs = max(1, min(h, columns // each))
    gs = max(1, columns // (h * each))
    for groups in _split(G, gs):
        for inputs in _split(w, ws):
            for outputs in _split(h, hs):
                shape = (_length(groups), _length(outputs), _length(inputs) + (inputs.start == 0))
                yield _Piece(layer, groups, outputs, inputs, False, N * math.prod(shape))


def _split(size: int, step: int) -> Iterator[slice]:
    """Slices of 0 ... size in steps; one empty slice if the size is 0."""
    for first in range(0, max(1, size), max(1, step)):
        yield slice(first, min(size, first + step))


def _length(s: slice) -> int:
    return int(s.stop - s.start)


class _Store:
    """The entries of a piece, filled a chunk of samples at a time."""

    def __init__(self, piece: _Piece, layers: Layers) -> None:
        self.piece = piece
        n, q = len(layers.problem.x), layers.outputs
        self._rows = (n, q)
        self._tensors: list[Tensor] = []

    def take(self, signal: Signal) -> None:
        """Take the signal of all samples at once, without a copy if possible."""
        self._tensors = self._parts(signal)

    def write(self, first: int, signal: Signal) -> bool:
        """Take the signal of the samples from `first` on; return False if its sizes differ from before."""
        parts = self._parts(signal)
        if not self._tensors:
            self._tensors = [t.new_empty(self._rows[0], *t.shape[1:]) for t in parts]
        for to, part in zip(self._tensors, parts, strict=True):
            if part.shape[1:] != to.shape[1:]:
                return False
            to[first : first + len(part)] = part
        return True

    def _parts(self, signal: Signal) -> list[Tensor]:
        """The entries of the piece for some samples."""
        piece = self.piece
        delta = signal.delta[:, :, piece.groups, :, piece.outputs]
        a = signal.a[:, piece.groups]
        if not piece.layer.vocabulary:
            a = a[..., piece.inputs]
        elif not piece.factored:
            rows = torch.arange(piece.inputs.start, piece.inputs.stop, device=a.device)
            a = (a == rows).to(delta.dtype)
        if piece.factored:
            return [delta[:, :, 0], a[:, 0]]
        blocks = []
        if piece.layer.weight is not None:
            blocks.append(torch.einsum("nqgth,ngtw->nqghw", delta, a).flatten(2))
        if piece.bias:
            blocks.append(delta.sum(3).flatten(2))
        return [torch.cat(blocks, 2)]

    def part(self) -> Factor | Tensor:
        if self.piece.factored:
            delta, a = self._tensors
            return Factor(delta, a, self.piece.bias)
        return self._tensors[0].flatten(0, 1)


def _run(
    layers: Layers,
    pieces: Sequence[_Piece],
    budget: int,
    chunk_size: int | None,
    held: _Held | None,
) -> tuple[list[_Store], set[Layer]]:
    """The filled stores of these pieces, and the layers for which hooks are wrong."""
    x, itemsize = layers.problem.x, layers.problem.dtype.itemsize
    wanted = list(dict.fromkeys(piece.layer for piece in pieces))
    if chunk_size is None:
        per_sample = 2 * sum(_numel(it, layers.outputs) for it in wanted)
        chunk_size = max(1, budget // (itemsize * per_sample))
    stores = {piece: _Store(piece, layers) for piece in pieces}
    if held is not None:
        for piece, store in stores.items():
            store.take(held[piece.layer])
        return list(stores.values()), set()
    for first in range(0, len(x), chunk_size):
        signals = layers.signals(x[first : first + chunk_size], wanted)
        for piece, store in list(stores.items()):
            signal = signals.get(piece.layer)
            if signal is None or not store.write(first, signal):
                del stores[piece]
    wrong = {piece.layer for piece in pieces if piece not in stores}
    return [store for store in stores.values() if store.piece.layer not in wrong], wrong


def _columns(
    layers: Layers, names: Sequence[str], budget: int, chunk_size: int | None
) -> Iterator[Tensor]:
    """The columns of these parameters, computed by :mod:`llr.jacobian`."""
    problem, q = layers.problem, layers.outputs
    n, itemsize = len(problem.x), problem.dtype.itemsize
    values = problem.columns.values
    width = max(1, budget // (itemsize * n * q))

    groups: list[list[str]] = []
    for name in names:
        if groups and sum(values[other].numel() for other in (*groups[-1], name)) <= width:
            groups[-1].append(name)
        else:
            groups.append([name])
    for group in groups:
        size = sum(values[name].numel() for name in group)
        at_once = max(1, min(n, budget // (itemsize * q * size)))
        for columns in _split(size, width):
            block = problem.x.new_empty(n, q, _length(columns), dtype=problem.dtype)
            for first in range(0, n, at_once):
                J = columns_of(problem, group, problem.x[first : first + at_once], chunk_size)
                block[first : first + at_once] = J[..., columns]
            yield block.flatten(0, 1)
