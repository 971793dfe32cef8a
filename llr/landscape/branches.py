"""The parameters of a two-layer network that represent one function: branches, and their dimensions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from llr.inputs.accept import a_module, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.landscape.target import Target, read_target
from llr.results import Record
from llr.results.html import Table
from llr.results.phrases import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Role = Literal["", "free", "centred", "balanced"]
Isolation = Literal["not isolated", "undecided", "isolated"]

_MOST = 10_000  # largest number of rows


@dataclass(frozen=True, repr=False)
class Branch(Record):
    """One kind of parameters that represent the target, by what its neurons do.

    Attributes:
        copies: how many neurons are copies of each neuron of the target, largest number first; the outgoing
            weights of the copies add to those of the target's neuron.
        phantoms: the sizes of groups of neurons on other hyperplanes; the outgoing weights of a group add to
            0.
        constants: how many neurons have w = 0.
        role: the role of these: "free", with any bias, compensated by the output bias (or by the outgoing
            weights of one of them); "centred", with bias 0; "balanced", with contributions that add to 0.
        dimension: the dimension of the branch, which is a manifold near its generic points.
        tangent: dim T at generic points: the dimension of first-order changes of the function.
        assignments: in how many ways the numbered neurons can take these roles.
        orientations: how many choices of signs each assignment has.
        n_params: P.
    """

    copies: tuple[int, ...]
    phantoms: tuple[int, ...]
    constants: int
    role: Role
    dimension: int
    tangent: int
    assignments: int
    orientations: int
    n_params: int

    _order = (
        "dimension <= n_params",
        "tangent <= codimension",
    )
    _also = ("codimension", "linearly_stable")

    @property
    def codimension(self) -> int:
        """P - dim Q, at least dim T. The branch is isolated with at least so many observations."""
        return self.n_params - self.dimension

    @property
    def linearly_stable(self) -> bool:
        """Whether the Hessian on enough samples is positive in all directions that leave the branch."""
        return self.codimension == self.tangent

    def isolation(self, n: int) -> Isolation:
        """Whether n observations isolate the branch from the other parameters that fit them.

        Args:
            n: the number of observations; one is an output of a sample. The statement holds for almost every
                choice of samples.

        Returns:
            "not isolated": near generic points of the branch, the parameters of zero loss are a manifold of
            higher dimension. "isolated": almost every point of the branch has a neighbourhood without other
            parameters of zero loss. "undecided": n is between dim T and the codimension, where the dimensions
            do not decide.

        Raises:
            ValueError: n is negative.
        """
        if n < 0:
            raise ValueError(f"n is {n}; expected a number of observations >= 0")
        if n < self.tangent:
            return "not isolated"
        return "isolated" if n >= self.codimension else "undecided"

    @property
    def description(self) -> str:
        """The roles of the neurons as text."""
        parts = []
        if self.copies:
            parts.append(f"copies {_sum(self.copies)}")
        if self.phantoms:
            parts.append(f"phantoms {_sum(self.phantoms)}")
        if self.constants:
            parts.append(f"constant {self.constants} ({self.role})")
        return ", ".join(parts) or "no neurons"

    def __str__(self) -> str:
        """One line: the neurons, the dimensions, and how many observations isolate the branch."""
        stable = ", linearly stable" if self.linearly_stable else ""
        return (
            f"{self.description}: dimension {self.dimension} of {self.n_params}, dim T {self.tangent}; not "
            f"isolated below {counted(self.tangent, 'observation')}, isolated from "
            f"{self.codimension} on{stable}; {counted(self.assignments, 'assignment')}"
        )

    def _rules(self) -> Iterator[tuple[bool, str]]:
        for name, sizes in (("copies", self.copies), ("phantoms", self.phantoms)):
            yield list(sizes) == sorted(sizes, reverse=True), f"the largest of {name} first"
        yield bool(self.constants) or not self.role, "no role without constants"


@dataclass(frozen=True, repr=False)
class Branches(Record):
    """All branches of a function in a width, sorted by codimension; a sequence of `Branch`.

    Attributes:
        rows: the branches.
        width: m.
        neurons: k, how many neurons the function needs.
        n_params: P.
    """

    rows: tuple[Branch, ...]
    width: int
    neurons: int
    n_params: int

    def _rules(self) -> Iterator[tuple[bool, str]]:
        for row in self.rows:
            used = sum(row.copies) + sum(row.phantoms) + row.constants
            fits = (row.n_params, used, len(row.copies)) == (
                self.n_params,
                self.width,
                self.neurons,
            )
            yield fits, "rows of the width, the neurons and the parameters"
        found = [row.codimension for row in self.rows]
        yield found == sorted(found), "rows by ascending codimension"

    def __iter__(self) -> Iterator[Branch]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Branch:
        return self.rows[index]

    def __str__(self) -> str:
        """A table with one row per branch."""
        head = ("neurons", "dim", "dim T", "isolated from", "stable", "assignments")
        table = [head] + [
            (
                b.description,
                str(b.dimension),
                str(b.tangent),
                str(b.codimension),
                "yes" if b.linearly_stable else "no",
                str(b.assignments),
            )
            for b in self.rows
        ]
        sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                [
                    row[0].ljust(sizes[0]),
                    *(v.rjust(s) for v, s in zip(row[1:], sizes[1:], strict=True)),
                ]
            )
            for row in table
        ]
        title = (
            f"{counted(len(self), 'branch')} of a function of {counted(self.neurons, 'neuron')} "
            f"in width {self.width}, {counted(self.n_params, 'parameter')} (docs/theory.md, 9.2)"
        )
        return "\n".join([title, *lines])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw from how many observations on each branch is isolated; return the axes.

        Args:
            ax: where to draw; None makes a new figure. Needs matplotlib (``pip install 'llr[plot]'``).
        """
        from llr.landscape import figure  # noqa: PLC0415 - matplotlib is optional

        return figure.branches(self, ax=ax)

    def _table(self) -> Table:
        head = ("neurons", "dim", "dim T", "isolated from", "stable", "assignments")
        rows = [
            (b.description, b.dimension, b.tangent, b.codimension, b.linearly_stable, b.assignments)
            for b in self.rows
        ]
        return head, rows


@takes(target=a_module)
@outside_inference_mode
def branches(target: nn.Module, width: int) -> Branches:
    """The branches of global minima of zero generalisation error: every way to represent a function.

    The parameters of one function are a union of manifolds, one for each way to assign the neurons: to
    neurons of the target, to phantom groups that cancel, to constants. With few samples there are other
    global minima everywhere near a branch; from `codimension` observations on, almost every point of the
    branch is isolated from them.

    Args:
        target: a two-layer network with an odd activation (tanh, erf): the function. Redundant neurons are
            removed first. The wide network has biases if the target has them.
        width: m, hidden neurons of the wide network.

    Returns:
        `Branches`, sorted by codimension. For q outputs an observation is one output of one sample. Branches
        with the same sizes differ in the assignment of the neurons; one row covers all of them
        (``assignments``).

    Raises:
        TypeError: a target that is no module.
        ValueError: another structure or activation; a width that is too small for the function, or one
            with more than 10,000 rows.

    Source: docs/theory.md, 9.2; Zhang et al., "Structure and Gradient Dynamics Near Global Minima of
    Two-layer Neural Networks" (2023).

    Example:
        >>> from llr.landscape import branches
        >>> from llr.models import TwoLayer
        >>> for branch in branches(TwoLayer(2, 1), 2):
        ...     print(branch.description, branch.dimension, branch.tangent, branch.codimension)
        copies 1, phantoms 1 3 5 5
        copies 2 1 4 7
        copies 1, constant 1 (centred) 1 7 7
    """
    function = read_target(target)
    if not isinstance(width, int) or width < 0:
        raise ValueError(f"width is {width!r}; expected a number of neurons")
    least = function.k + (0 if function.output_bias or not function.shifted else 1)
    if width < least:
        raise ValueError(
            f"width is {width}, but the function needs {least} neurons"
            + (
                " (one of them for its constant, as there is no output bias)"
                if least > function.k
                else ""
            )
        )
    rows = []
    for branch in _rows(function, width):
        rows.append(branch)
        if len(rows) > _MOST:
            raise ValueError(
                f"width is {width}, in which a function of {function.k} neurons has more than {_MOST:,} "
                "branches; expected a smaller one"
            )
    rows.sort(key=lambda b: (b.codimension, b.tangent, b.constants, b.phantoms))
    return Branches(tuple(rows), width, function.k, function.n_params(width))


def _rows(target: Target, m: int) -> Iterator[Branch]:
    for z in range(m - target.k + 1):
        for spare in range(m - target.k - z + 1):
            for copies in _partitions(m - z - spare, target.k):
                for count in range(spare + 1):
                    for phantoms in _partitions(spare, count):
                        for role, dimension, tangent in _constant_parts(target, z):
                            yield _branch(target, m, copies, phantoms, z, role, dimension, tangent)


def _branch(
    target: Target,
    m: int,
    copies: tuple[int, ...],
    phantoms: tuple[int, ...],
    z: int,
    role: Role,
    dimension: int,
    tangent: int,
) -> Branch:
    """The branch, given what its constant neurons (and the output bias) contribute."""
    q, free = target.q, target.d + target.beta
    dimension += sum((n - 1) * q for n in copies) + sum(free + (s - 1) * q for s in phantoms)
    tangent += sum(q + min(n, q) * free for n in copies)
    tangent += sum(q + min(s - 1, q) * free for s in phantoms)
    dealt = math.factorial(m) // math.prod(map(math.factorial, (*copies, *phantoms, z)))
    alike = math.prod(map(math.factorial, Counter(copies).values()))
    orders = (
        math.factorial(len(copies)) // alike
    )  # ways to assign the numbers to the target's neurons
    unnamed = math.prod(map(math.factorial, Counter(phantoms).values()))
    return Branch(
        copies=copies,
        phantoms=phantoms,
        constants=z,
        role=role,
        dimension=dimension,
        tangent=tangent,
        assignments=dealt * orders // unnamed,
        orientations=2 ** (sum(copies) + sum(s - 1 for s in phantoms)),
        n_params=target.n_params(m),
    )


def _constant_parts(target: Target, z: int) -> Iterator[tuple[Role, int, int]]:
    """The roles of z neurons with w = 0, with their parts of dim Q and dim T, output bias included.

    Sets in the closure of another branch are left out: a single such neuron without outgoing weights is a
    phantom at w = 0.
    """
    d, q = target.d, target.q
    slopes = d * min(z, q)  # a_i (x) x_l
    if target.output_bias:
        yield ("free" if z else ""), z * (q + target.beta), q + slopes
    elif z == 0:
        if not target.shifted:
            yield "", 0, 0
    elif not target.beta:  # s(0) = 0
        yield "centred", z * q, slopes
    elif target.shifted:
        yield "free", z * (q + 1) - q, q + slopes
    else:
        if z <= q:  # independent outgoing weights only cancel if every s(b_i) is 0
            yield "centred", z * q, (d + 1) * z
        if z >= 2:
            yield "balanced", z * (q + 1) - q, q + d * min(z - 1, q)


def _partitions(total: int, parts: int, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum of `parts` positive numbers, largest first."""
    if parts == 0:
        if total == 0:
            yield ()
        return
    most = total if most is None else most
    for first in range(min(most, total - parts + 1), 0, -1):
        for rest in _partitions(total - first, parts - 1, first):
            yield first, *rest


def _sum(sizes: tuple[int, ...]) -> str:
    return " + ".join(map(str, sizes))
