"""Random parameters on a branch; exactly on it if floating point can hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import nn

from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import a_generator, an_instance
from llr.landscape.branches import Branch
from llr.landscape.target import Target, read_target
from llr.models import TwoLayer
from llr.theory.structures.structure import Row

_ACTIVATIONS = {"tanh": math.tanh, "erf": math.erf}
_GRID = 2**12  # free weights are multiples of 1 / _GRID: sums and differences of them are exact
_BITS = 53

_Neuron = tuple[Row, Fraction, Row]  # w, b, a


@takes(target=a_module, generator=a_generator, branch=an_instance(Branch))
@outside_inference_mode
def random_point(
    target: nn.Module, branch: Branch, generator: torch.Generator | None = None
) -> TwoLayer:
    """A random network of the target's function, on the given branch.

    Use it to examine generic points of a branch: dim T, the Hessian, the flow nearby.

    Args:
        target: the function, as for :func:`llr.landscape.branches`.
        branch: one of its branches.
        generator: the generator of the random numbers; default: that of torch.

    Returns:
        A float64 network. Outgoing weights of copies add to the target's exactly, if float64 can hold these.
        The compensation of neurons with w = 0 and nonzero bias is to rounding only, as the values of s are
        irrational.

    Raises:
        ValueError: the branch is not one of the target's; a target that :func:`llr.landscape.branches`
            refuses.

    Source: docs/theory.md, 9.2.

    Example:
        >>> import torch
        >>> from llr.landscape import branches, random_point
        >>> from llr.models import TwoLayer
        >>> target, x = TwoLayer(2, 1).double(), torch.randn(5, 2).double()
        >>> wide = random_point(target, branches(target, 4)[0])
        >>> bool(torch.allclose(wide(x), target(x)))
        True
    """
    function = read_target(target)
    width = sum(branch.copies) + sum(branch.phantoms) + branch.constants
    if len(branch.copies) != function.k or branch.n_params != function.n_params(width):
        raise ValueError(
            f"the branch ({branch.description}) is of a function of {len(branch.copies)} neurons with "
            f"{branch.n_params} parameters; expected one of branches(target, {width})"
        )
    draw = _Draw(function, generator)
    neurons: list[_Neuron] = []
    order = torch.randperm(function.k, generator=generator).tolist()
    for g, n in zip(order, branch.copies, strict=True):
        neurons += draw.copies(function.w[g], function.b[g], _shares(draw, function.alpha[g], n))
    for s in branch.phantoms:
        neurons += draw.copies(draw.row(function.d), draw.bias(), _cancelling(draw, s))
    constants = _constants(draw, branch)
    neurons += constants
    model = TwoLayer(
        function.d,
        width,
        function.q,
        activation=function.activation,
        bias=bool(function.beta),
        output_bias=function.output_bias,
        # The values are replaced below; this generator keeps the global one unchanged.
        generator=torch.Generator(),
    ).double()
    shuffled = [neurons[i] for i in torch.randperm(width, generator=generator).tolist()]
    values = [[float(v) for w, _, _ in shuffled for v in w]]
    values += [[float(b) for _, b, _ in shuffled]] if function.beta else []
    values += [[float(a[j]) for j in range(function.q) for _, _, a in shuffled]]
    values += [_output_bias(function, constants)] if function.output_bias else []
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value, dtype=torch.float64).view(parameter.shape))
    return model


class _Draw:
    """Random numbers on a grid."""

    def __init__(self, target: Target, generator: torch.Generator | None) -> None:
        self.target = target
        self.generator = generator

    def integers(self, low: int, high: int, size: int) -> list[int]:
        """Random integers from low to high - 1."""
        return torch.randint(low, high, (size,), generator=self.generator).tolist()

    def row(self, size: int) -> Row:
        """Random nonzero numbers of both signs."""
        sizes, signs = self.integers(_GRID // 4, 2 * _GRID, size), self.integers(0, 2, size)
        return tuple(Fraction((2 * s - 1) * v, _GRID) for s, v in zip(signs, sizes, strict=True))

    def bias(self) -> Fraction:
        return self.row(1)[0] if self.target.beta else Fraction(0)

    def copies(self, w: Row, b: Fraction, outgoing: Sequence[Row]) -> list[_Neuron]:
        """Neurons on one hyperplane, in random orientations."""
        signs = [2 * s - 1 for s in self.integers(0, 2, len(outgoing))]
        return [
            (tuple(s * v for v in w), s * b, tuple(s * v for v in a))
            for s, a in zip(signs, outgoing, strict=True)
        ]


def _shares(draw: _Draw, alpha: Row, n: int) -> list[Row]:
    """n random rows that add to alpha, with no other linear relation than necessary."""
    return list(zip(*(_parts(draw, v, n) for v in alpha), strict=True))


def _parts(draw: _Draw, value: Fraction, n: int) -> list[Fraction]:
    """n numbers of float64 whose sum is exactly `value`."""
    if not value:
        return [row[0] for row in _cancelling(draw, n, 1)]
    # The parts are integer multiples of the last place of `value`, so that none has more bits.
    unit = Fraction(2) ** (_exponent(value) - _BITS)
    whole = round(value / unit)
    cuts = sorted(draw.integers(1, abs(whole), n - 1))
    ends = [0, *cuts, abs(whole)]
    sign = 1 if whole > 0 else -1
    return [sign * (high - low) * unit for low, high in pairwise(ends)]


def _exponent(value: Fraction) -> int:
    """e with 2^(e - 1) <= |value| < 2^e."""
    return math.frexp(float(value))[1]


def _cancelling(draw: _Draw, n: int, size: int | None = None) -> list[Row]:
    """n random rows that add to 0, with no other linear relation than necessary."""
    size = draw.target.q if size is None else size
    rows = [draw.row(size) for _ in range(n - 1)]
    last = [-sum(column, Fraction(0)) for column in zip(*rows, strict=True)] if rows else [0] * size
    return [*rows, tuple(Fraction(v) for v in last)]


def _constants(draw: _Draw, branch: Branch) -> list[_Neuron]:
    """The neurons with w = 0."""
    target, z = draw.target, branch.constants
    w = (Fraction(0),) * target.d
    outgoing = [draw.row(target.q) for _ in range(z)]
    if branch.role == "balanced":
        return draw.copies(w, draw.bias(), _cancelling(draw, z))
    if branch.role == "centred" or z == 0:
        return [(w, Fraction(0), a) for a in outgoing]
    biases = [draw.bias() for _ in range(z)]
    if not target.output_bias:  # the first one compensates for the others
        others = _contributions(target, list(zip(biases, outgoing, strict=True))[1:])
        first = _value(target, biases[0])
        missing = [u - v for u, v in zip(_gamma(target), others, strict=True)]
        outgoing[0] = tuple(Fraction(v / first) for v in missing)
    return [(w, b, a) for b, a in zip(biases, outgoing, strict=True)]


def _output_bias(target: Target, constants: Sequence[_Neuron]) -> list[float]:
    if not constants and not target.constants:
        return [float(v) for v in target.c]
    theirs = _contributions(target, [(b, a) for _, b, a in constants])
    return [u - v for u, v in zip(_gamma(target), theirs, strict=True)]


def _gamma(target: Target) -> list[float]:
    """The constant part of the function."""
    added = _contributions(target, target.constants)
    return [float(c) + v for c, v in zip(target.c, added, strict=True)]


def _contributions(target: Target, constants: Sequence[tuple[Fraction, Row]]) -> list[float]:
    return [sum(_value(target, b) * float(a[j]) for b, a in constants) for j in range(target.q)]


def _value(target: Target, b: Fraction) -> float:
    return _ACTIVATIONS[target.activation](float(b))
