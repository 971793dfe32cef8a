"""Branches of global minima: dimensions compared with parametrisations, dim T with certified ranks."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from llr import certify
from llr.landscape import Branch, branches, criticality, hessian_spectrum, random_point
from llr.models import TwoLayer, mlp
from llr.theory.structures.groups import group_neurons
from llr.theory.structures.structure import TwoLayerNet, read_structure

from .test_critical import F64, randn

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

CASES = int(os.environ.get("LLR_RANDOM_CASES", "40"))
SETTINGS = list(itertools.product((1, 2), (1, 2, 3), (True, False), (True, False), (0, 1, 2)))


def network(
    d: int,
    q: int,
    bias: bool,
    output_bias: bool,
    k: int,
    *,
    constant: bool = False,
    activation: str = "tanh",
) -> TwoLayer:
    """A network of k neurons and one more, which has no effect, or adds a constant if `constant`."""
    torch.manual_seed(d + 10 * q + 100 * k)
    model = TwoLayer(d, k + 1, q, activation=activation, bias=bias, output_bias=output_bias)
    with torch.no_grad():
        for p in model.double().parameters():
            p.uniform_(0.3, 1.5)
        model[0].weight[k] = 0
        if not constant:
            model[2].weight[:, k] = 0
    return model


def rows() -> Iterator[tuple[TwoLayer, Branch]]:
    """Targets of every kind and their branches: each kind at least once, at most CASES in total."""
    every = []
    for d, q, bias, output_bias, k in SETTINGS:
        for constant in (False, True) if bias else (False,):
            target = network(
                d, q, bias, output_bias, k, constant=constant, activation=("tanh", "erf")[d % 2]
            )
            for extra in range(4 - k):
                if k + extra + constant > 0:
                    every += [(target, b) for b in branches(target, k + extra + constant)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(1)).tolist()
    for i in order[:CASES]:
        yield every[i]


class TestDimensions:
    """The numbers of a branch."""

    def test_tangent_dimensions_are_those_of_random_points(self) -> None:
        for number, (target, branch) in enumerate(rows()):
            point = random_point(target, branch, torch.Generator().manual_seed(number))
            x = randn(2 * branch.n_params, target[0].in_features, seed=number)
            torch.testing.assert_close(point(x), target(x))
            proved = certify(point, x, upper=None).rank
            assert proved == branch.tangent, (branch, point.state_dict())

    def test_the_cases_tell_wrong_formulas_apart(self) -> None:
        # The right ones are proved on these cases above.
        caught = Counter[str]()
        for target, b in rows():
            q, free = target[2].out_features, target[0].in_features + (target[0].bias is not None)
            copies = sum(q + min(n, q) * free for n in b.copies)
            phantoms = sum(q + min(s - 1, q) * free for s in b.phantoms)
            wrong = {
                "copies add nothing": copies != sum(q + free for _ in b.copies),
                "every copy adds": copies != sum(q + n * free for n in b.copies),
                "copies are strangers": copies != sum(n * (q + free) for n in b.copies),
                "phantoms are free": phantoms != 0,
                "phantoms' weights need not cancel": phantoms
                != sum(q + min(s, q) * free for s in b.phantoms),
                "every phantom adds": phantoms != sum(q + (s - 1) * free for s in b.phantoms),
                "one output": phantoms != sum(1 + min(s - 1, q) * free for s in b.phantoms),
            }
            caught.update(wrong)
        assert all(caught.values()), caught

    def test_dimensions_are_those_of_parametrisations(self) -> None:
        for number, (target, branch) in enumerate(rows()):
            point = random_point(target, branch, torch.Generator().manual_seed(number))
            assert free_directions(point) == branch.dimension, branch

    def test_linearly_stable_branches(self) -> None:
        # On stable branches, the Hessian's null space consists of the directions along the branch. On other
        # branches it is larger.
        for number, (target, branch) in enumerate(rows()):
            if number % 4 or branch.n_params > 20 or target[0].in_features == 1:
                continue  # with one input the smallest eigenvalues are lost in rounding
            point = random_point(target, branch, torch.Generator().manual_seed(number))
            x = randn(4 * branch.n_params, 2, seed=number)
            y = target(x).detach()
            assert criticality(point, x, y)
            found = hessian_spectrum(point, x, y, kind="gauss-newton")
            assert found.nullity == branch.n_params - branch.tangent
            assert (found.nullity == branch.dimension) == branch.linearly_stable

    @pytest.mark.parametrize("q", [1, 2, 3])
    def test_which_are_linearly_stable(self, q: int) -> None:
        for branch in branches(network(2, q, True, False, 1), 5):
            if branch.constants == 0:
                stable = max(branch.copies) <= q and max((*branch.phantoms, 0)) <= q + 1
                assert branch.linearly_stable == stable

    def test_fewer_observations_than_dim_t(self) -> None:
        # Parameters of zero loss near the point are then a manifold of dimension P - n > dim Q.
        target = network(1, 1, True, False, 1)
        for branch in branches(target, 3):
            point = random_point(target, branch, torch.Generator().manual_seed(5))
            for n in range(1, branch.tangent):
                x = randn(n, 1, seed=n)
                assert certify(point, x, upper=None).rank == n
                assert branch.isolation(n) == "not isolated"
                assert branch.n_params - n > branch.dimension


def free_directions(point: TwoLayer) -> int:
    """The dimension of the set of parameters with the same groups and the same function, by ranks.

    Outgoing weights within a group change such that their sum stays the same. If a group does not belong to
    the function, its neurons' incoming weights change together. The biases and outgoing weights of neurons
    with w = 0 change together with the output bias, such that the sum stays the same.
    """
    net = read_structure(point)
    assert isinstance(net, TwoLayerNet)
    columns = []
    grouping = group_neurons(net)
    for group in grouping.groups:
        members = list(zip(group.members, group.signs, strict=True))
        if group.cancels:
            for j in range(net.d + net.beta):
                w = torch.zeros(net.m, net.d + net.beta, dtype=F64)
                for i, sign in members:
                    w[i, j] = sign
                columns.append(torch.cat((w.flatten(), torch.zeros(net.m * net.q, dtype=F64))))
        for (i, s), (j, t) in itertools.combinations(members, 2):
            for out in range(net.q):
                a = torch.zeros(net.m, net.q, dtype=F64)
                a[i, out], a[j, out] = s, -t
                columns.append(torch.cat((torch.zeros(net.m * (net.d + net.beta)), a.flatten())))
    moved = int(torch.linalg.matrix_rank(torch.stack(columns))) if columns else 0
    act = point[1].double()
    eye = torch.eye(net.q, dtype=F64)
    effects = [] if net.c is None else list(eye)
    for i in grouping.constants:
        b = torch.tensor(float(net.b[i]) if net.b else 0.0, dtype=F64)
        effects += list(act(b) * eye)
        if net.b:
            slope = torch.func.grad(act)(b)
            effects.append(slope * torch.tensor([float(v) for v in net.a[i]], dtype=F64))
    return moved + (
        len(effects) - int(torch.linalg.matrix_rank(torch.stack(effects))) if effects else 0
    )


class TestTable:
    """All branches, and the number of assignments of each."""

    def test_the_smallest(self) -> None:
        found = branches(TwoLayer(2, 1), 2)
        table = [
            (
                b.copies,
                b.phantoms,
                b.constants,
                b.dimension,
                b.tangent,
                b.codimension,
                b.assignments,
            )
            for b in found
        ]
        assert table == [
            ((1,), (1,), 0, 3, 5, 5, 2),
            ((2,), (), 0, 1, 4, 7, 1),
            ((1,), (), 1, 1, 7, 7, 2),
        ]
        assert (found.width, found.neurons, found.n_params) == (2, 1, 8)

    @pytest.mark.parametrize(("k", "m"), [(1, 4), (2, 4), (2, 5), (0, 3), (3, 3)])
    def test_every_labelled_assignment_once(self, k: int, m: int) -> None:
        # With an output bias a neuron may be on one of k neurons, in one of the phantom groups, or constant.
        found = branches(network(1, 1, True, True, k), m)
        counted: Counter[Any] = Counter()
        for labels in itertools.product(range(k + 1 + m), repeat=m):
            phantoms = [i - k - 1 for i in labels if i > k]
            first_use = list(dict.fromkeys(phantoms))
            if set(range(k)) <= set(labels) and first_use == list(range(len(first_use))):
                copies = tuple(sorted((labels.count(g) for g in range(k)), reverse=True))
                sizes = tuple(sorted(Counter(phantoms).values(), reverse=True))
                counted[copies, sizes, labels.count(k)] += 1
        assert counted == {(b.copies, b.phantoms, b.constants): b.assignments for b in found}

    def test_orientations(self) -> None:
        # Every neuron of the target's groups may be reflected. In a phantom group only all but one may be.
        for branch in branches(network(1, 1, True, False, 2), 5):
            free = sum(branch.copies) + sum(s - 1 for s in branch.phantoms)
            assert branch.orientations == 2**free

    def test_constants(self) -> None:
        shifted = branches(network(1, 2, True, False, 1, constant=True), 3)
        assert {b.constants for b in shifted} == {1, 2}
        assert {b.role for b in shifted} == {"free"}
        plain = branches(network(1, 2, True, False, 1), 4)
        roles = {b.constants: {r.role for r in plain if r.constants == b.constants} for b in plain}
        # Three outgoing weights in the plane are dependent, so no separate set at bias 0 exists.
        assert roles == {0: {""}, 1: {"centred"}, 2: {"centred", "balanced"}, 3: {"balanced"}}

    def test_redundant_targets_are_reduced(self) -> None:
        wide = TwoLayer(1, 4).double()
        with torch.no_grad():
            for p, v in zip(
                wide.parameters(),
                ([[0.5], [-0.5], [2.0], [0.0]], [0.25, -0.25, 1.0, 0.0], [[1.0, 2.0, 0.0, 3.0]]),
                strict=True,
            ):
                p.copy_(torch.tensor(v))
        found = branches(wide, 2)
        assert found.neurons == 1
        assert [b.to_dict() for b in found] == [b.to_dict() for b in branches(TwoLayer(1, 1), 2)]
        point = random_point(wide, found[-1])
        x = randn(9, 1)
        torch.testing.assert_close(point(x), wide(x))

    def test_text_and_json(self) -> None:
        found = branches(network(1, 1, True, False, 1), 3)
        lines = str(found).splitlines()
        assert len(lines) == len(found) + 2
        assert lines[0].startswith(f"{len(found)} branches of a function of 1 neuron in width 3")
        assert "linearly stable" in str(found[0])
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert plain["rows"][0]["codimension"] == found[0].codimension
        assert plain["width"] == 3


class TestPoints:
    """Random points are exactly on their branch."""

    @pytest.mark.parametrize("activation", ["tanh", "erf"])
    def test_outgoing_weights_add_up(self, activation: str) -> None:
        target = network(2, 2, True, False, 2, activation=activation)
        for seed, branch in enumerate(branches(target, 5)):
            point = random_point(target, branch, torch.Generator().manual_seed(seed))
            net, goal = read_structure(point), read_structure(target)
            assert isinstance(net, TwoLayerNet)
            assert isinstance(goal, TwoLayerNet)
            grouping = group_neurons(net)
            kept = {
                tuple(v * s for v in (*g.w, g.b or 0)): tuple(v * s for v in g.weight)
                for g in grouping.groups
                if not g.cancels
                for s in (1, -1)
            }
            for w, b, a in zip(goal.w, goal.b or (), goal.a, strict=True):
                assert not any(w) or kept[(*w, b)] == a
            sizes = sorted((len(g.members) for g in grouping.groups if g.cancels), reverse=True)
            assert tuple(sizes) == branch.phantoms
            assert len(grouping.constants) == branch.constants
            assert point[1].__class__ is target[1].__class__

    def test_isolation(self) -> None:
        branch = branches(TwoLayer(2, 1), 2)[1]
        assert [branch.isolation(n) for n in (0, 3, 4, 6, 7, 100)] == [
            "not isolated",
            "not isolated",
            "undecided",
            "undecided",
            "isolated",
            "isolated",
        ]

    def test_reproducible(self) -> None:
        target = network(1, 1, True, False, 1)
        branch = branches(target, 4)[0]
        a, b = (random_point(target, branch, torch.Generator().manual_seed(3)) for _ in range(2))
        for u, v in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(u, v)


class TestBadInput:
    """Refusals name what was expected."""

    @pytest.mark.parametrize(
        ("target", "width", "message"),
        [
            (TwoLayer(2, 2), 1, "width is 1, but the function needs 2 neurons"),
            (TwoLayer(2, 2), -1, "width is -1; expected a number of neurons"),
            (TwoLayer(2, 2), 2.5, "width is 2.5; expected a number of neurons"),
            (TwoLayer(2, 1), 70, "more than 10,000 branches"),
            (TwoLayer(2, 2, activation="relu"), 3, "expected a two-layer network with tanh or erf"),
            (TwoLayer(2, 2, activation="softplus"), 3, "expected a two-layer network with tanh"),
            (mlp([2, 2, 2, 1]), 3, "target is a DeepNet"),
            (nn.Linear(2, 1, bias=False), 3, "target is a LinearNet"),
            (network(1, 1, True, False, 1, constant=True), 1, "one of them for its constant"),
        ],
    )
    def test_branches(self, target: nn.Module, width: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            branches(target, width)

    def test_other_arguments(self) -> None:
        target = TwoLayer(2, 1)
        branch = branches(target, 2)[0]
        with pytest.raises(TypeError, match="expected an nn"):
            branches("target", 2)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="n is -1"):
            branch.isolation(-1)
        with pytest.raises(ValueError, match="is of a function of 1 neurons with 8 parameters"):
            random_point(TwoLayer(2, 2), branch)
