"""Model ranks of functions of convolutions, and of other functions that a convolution can represent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from llr.theory.functions.neuron_sum import NeuronSum, neuron_sum
from llr.theory.result import Dimension, Term
from llr.theory.structures.structure import ConvNet, Row, TwoLayerNet
from llr.theory.tangents.convolution import all_neurons, require_odd


def as_two_layer(net: ConvNet) -> TwoLayerNet:
    """A convolution as a fully connected network, with a neuron for every kernel and position."""
    return TwoLayerNet(
        activation=net.activation,
        w=tuple(all_neurons(net)),
        b=None,
        a=tuple((v,) for row in net.a for v in row),
        c=None,
        d=net.d,
        q=1,
    )


def convolution_model_rank(target: TwoLayerNet, net: ConvNet) -> Dimension:
    """The smallest dim T with which a convolution of an odd activation represents a function.

    Every neuron of the function must be a kernel at a position. Without sharing each neuron costs 1 + s
    dimensions, for its value and the entries of its kernel. With sharing a kernel costs p + s, for all
    positions; neurons that are shifts of each other share it. A kernel shorter than s may be anywhere in its
    window, and shifts that are further apart than the number of positions take two kernels.

    Args:
        target: a two-layer network with the function; for a convolution, the result of :func:`as_two_layer`.
        net: the architecture.

    Returns:
        "model rank": exact, except for shifts of one short kernel that take three windows or more.

    Raises:
        ValueError: the architecture cannot represent the function; an activation that is not odd.

    Source: docs/theory.md, Theorem 3.2.

    Example:
        >>> from llr.models import Conv1dTwoLayer
        >>> from llr.theory import read_structure
        >>> kernel = as_two_layer(read_structure(Conv1dTwoLayer(5, 3, 1)))
        >>> for shared in (True, False):
        ...     wide = read_structure(Conv1dTwoLayer(5, 3, 4, shared=shared))
        ...     print(int(convolution_model_rank(kernel, wide)))
        6
        12
    """
    require_odd(net)
    f = neuron_sum(target)
    _check_function(f, target, net)
    if not net.shared:
        return _without_sharing(f, net)
    shifts: defaultdict[Row, list[int]] = defaultdict(list)
    for w in f.w:
        core, start = _core(w)
        shifts[core].append(start)
    lower = kernels = single = 0
    terms: list[Term] = []
    for core, starts in shifts.items():
        windows = _windows(starts, net.p, net.s - len(core))
        kernels += len(windows)
        if len(windows) == 1:
            single += 1
            lower += net.p + net.s
            continue
        reach = len({start for o in windows for start in range(o, o + net.p)})
        words = (
            f"shifts of one kernel take {len(windows)}, at {reach} places: {len(windows)} * {net.s}"
        )
        terms.append(Term(len(windows) * net.s + reach, f"{words} + {reach}"))
        # The first and the last kernel have at least this many positions, and derivatives of rank 2 s.
        lower += 2 * net.s + min(max(starts) - min(starts) + 1, 2 * net.p)
    if single:
        count = "1 kernel" if single == 1 else f"{single} kernels"
        text = f"{count} at {net.p} positions: {single} ({net.p} + {net.s})"
        terms.insert(0, Term(single * (net.p + net.s), text))
    if kernels > len(net.kernels):
        raise ValueError(
            f"the architecture has {len(net.kernels)} shared kernels, but the target needs {kernels}"
        )
    return _model_rank(net, lower, terms)


def _check_function(f: NeuronSum, target: TwoLayerNet, net: ConvNet) -> None:
    for name, ours, theirs in (
        ("activation", net.activation, target.activation),
        ("inputs", net.d, target.d),
        ("outputs", 1, target.q),
    ):
        if ours != theirs:
            raise ValueError(
                f"{name} of the target: {theirs}, of the architecture: {ours}; expected the same"
            )
    if any(f.b) or f.constant:
        part = "neurons with biases" if any(f.b) else "a constant part"
        raise ValueError(f"the target has {part}, and the convolution has no biases")
    for w in f.w:
        core, start = _core(w)
        if len(core) > net.s:
            raise ValueError(
                f"the target has a neuron on the inputs {start} to {start + len(core) - 1}, and kernels "
                f"of length {net.s} reach {net.s} neighbouring ones"
            )


def _without_sharing(f: NeuronSum, net: ConvNet) -> Dimension:
    """The model rank without sharing: every neuron takes one place, and costs 1 + s."""
    places = [
        (min(start, net.p - 1), max(start + len(core) - net.s, 0))
        for core, start in map(_core, f.w)
    ]
    if not _seats(places, net.p, len(net.kernels)):
        raise ValueError(
            f"the architecture has {len(net.kernels)} kernels at each of {net.p} positions, but the target "
            f"has {f.k} neurons that do not fit there"
        )
    words = "neuron" if f.k == 1 else "neurons"
    terms = [Term(f.k * (net.s + 1), f"{f.k} {words} in the function: {f.k} (1 + {net.s})")]
    return _model_rank(net, f.k * (net.s + 1), terms if f.k else [])


def _model_rank(net: ConvNet, lower: int, terms: Sequence[Term]) -> Dimension:
    return Dimension.between("model rank", lower, terms, "Theorem 3.2", net.n_params)


def _core(w: Row) -> tuple[Row, int]:
    """The weights from the first to the last nonzero one, up to sign, and the position of the first."""
    at = [c for c, v in enumerate(w) if v]
    core = w[at[0] : at[-1] + 1]
    return (core if core[0] > 0 else tuple(-v for v in core)), at[0]


def _windows(starts: Sequence[int], p: int, slack: int) -> list[int]:
    """The fewest windows of p starts, each beginning at 0 to `slack`, that contain all these starts."""
    first, last = min(starts), max(starts)
    if last - first < p:
        return [min(first, slack)]
    gap = range(first + p, last - p + 1)  # not covered by a window at either end
    if not any(start in gap for start in starts):
        return [first, last - p + 1]
    found: list[int] = []
    for start in sorted(starts):
        if not found or start >= found[-1] + p:
            found.append(min(start, slack))
    return found


def _seats(places: Sequence[tuple[int, int]], p: int, m: int) -> bool:
    """Whether each neuron can take a position in its range, with at most m neurons at each of p positions."""
    waiting = sorted(places)  # by the last position, the earliest first
    for position in range(p):
        for place in [place for place in waiting if place[1] <= position][:m]:
            if place[0] < position:
                return False
            waiting.remove(place)
    return not waiting
