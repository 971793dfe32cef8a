"""Critical points that exist only for the given samples: gradients, Hessians, other samples, and proofs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.theory_cases import random_cases
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import llr
from llr.landscape import critical_targets, criticality
from llr.landscape.surface import Surface
from llr.lifting import (
    LiftedPoints,
    equations,
    lift_status,
    lifted_critical_points,
)
from llr.lifting.chain import read_chain
from llr.models import Conv1dTwoLayer, MatrixFactorization, mlp

from .cases import F64, dyadic, gradient, linears, normal, split, with_neuron

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(
    *widths: int, activation: str = "tanh", size: float = 1.0, seed: int = 0, n: int = 60
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network, and a sample with targets on which it is critical."""
    narrow = dyadic(*widths, activation=activation, seed=seed)
    x = normal(n, widths[0], seed)
    return narrow, x, critical_targets(narrow, x, size=size, generator=seeded(seed))


def hessian(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian of half the mean square, by double autograd."""
    values = dict(net.named_parameters())
    names = list(values)

    def loss(*tensors: Tensor) -> Tensor:
        outputs = torch.func.functional_call(net, dict(zip(names, tensors, strict=True)), (x,))
        return ((outputs - y) ** 2).sum() / (2 * len(x))

    blocks = torch.autograd.functional.hessian(loss, tuple(values.values()))
    sizes = [v.numel() for v in values.values()]
    return torch.cat(
        [
            torch.cat([b.reshape(i, j) for b, j in zip(row, sizes, strict=True)], 1)
            for row, i in zip(blocks, sizes, strict=True)
        ]
    )


def index_and_nullity(net: nn.Module, x: Tensor, y: Tensor) -> tuple[int, int]:
    found = torch.linalg.eigvalsh(hessian(net, x, y))
    tol = 1e-12 * float(found.abs().max())
    return int((found < -tol).sum()), int((found.abs() <= tol).sum())


CASES = [
    ((2, 3, 3, 2), 0, "tanh"),
    ((2, 3, 3, 2), 1, "tanh"),
    ((3, 2, 2, 1), 0, "tanh"),
    ((3, 2, 2, 1), 1, "sigmoid"),
    ((2, 3, 1), 0, "softplus"),
    ((2, 2, 2), 0, "sin"),
    ((3, 2, 1), 0, "erf"),
    ((2, 2, 1), 0, "relu"),
]


class TestPoints:
    @pytest.mark.parametrize("size", [0.01, 1.0])
    @pytest.mark.parametrize(("widths", "layer", "activation"), CASES)
    def test_what_they_are(
        self, widths: tuple[int, ...], layer: int, activation: str, size: float
    ) -> None:
        narrow, x, y = case(*widths, activation=activation, size=size)
        found = lifted_critical_points(narrow, x, y, layer=layer, starts=8)
        n_in, n_out = widths[layer], widths[layer + 2]
        assert (found.unknowns, found.equations) == (n_in + 1, n_out)
        assert found.dimension == n_in + 1 - n_out
        assert len(found) >= 1
        index, nullity = index_and_nullity(narrow, x, y)
        assert (found.narrow.index, found.narrow.nullity) == (index, nullity)
        for point in found:
            # The function is the narrow network's, and its errors are orthogonal to the new neuron.
            torch.testing.assert_close(point.model(x), narrow(x), rtol=1e-13, atol=1e-13)
            assert point.critical
            assert gradient(point.model, x, y) < 1e-12
            moved = with_neuron(
                narrow, layer, [w + 0.25 for w in point.weight], point.bias or 0.0, [0.0] * n_out
            )
            assert gradient(moved, x, y) > 1e-10
            # n_out more negative eigenvalues; zero curvature for the other new parameters.
            assert point.coupling == n_out
            assert point.dimension == found.dimension
            assert index_and_nullity(point.model, x, y) == (
                index + n_out,
                nullity + n_in + 1 - n_out,
            )
            assert (point.spectrum.index, point.kind) == (index + n_out, "strict saddle")
            assert not point.elsewhere

    def test_a_minimum_becomes_a_saddle(self) -> None:
        narrow, x, y = case(2, 3, 1, size=0.01)
        found = lifted_critical_points(narrow, x, y, starts=3)
        assert found.narrow_kind == "local minimum"

        def loss(net: nn.Module, theta: Tensor) -> float:
            torch.nn.utils.vector_to_parameters(theta, net.parameters())
            return float(((net(x) - y) ** 2).sum().detach()) / (2 * len(x))

        steps = [sign * 10.0**-k for k in range(1, 5) for sign in (1, -1)]
        for point in found:
            theta = parameters_to_vector(point.model.parameters()).detach()
            here, v = (
                loss(point.model, theta),
                torch.linalg.eigh(hessian(point.model, x, y))[1][:, 0],
            )
            assert min(loss(point.model, theta + step * v) for step in steps) < here
        theta = parameters_to_vector(narrow.parameters()).detach()
        here = loss(narrow, theta)
        for v in normal(20, len(theta)):
            assert loss(narrow, theta + 1e-3 * v) > here

    def test_proved_not_to_be_contained(self) -> None:
        narrow, x, y = case(2, 2, 2, 1)
        for point in lifted_critical_points(narrow, x, y, starts=3):
            status = lift_status(narrow, point.model)
            assert (status.contained, status.proved) == (False, True)
            assert status.joint.lower == status.narrow.upper + 2

    def test_splits_are_critical_elsewhere(self) -> None:
        narrow, x, y = case(2, 2, 2, 1)
        found = lifted_critical_points(narrow, x, y, starts=4)
        wide = split(narrow, 0, [0.25, 0.25])
        for seed in range(3):
            other = normal(40, 2, 10 + seed)
            targets = critical_targets(narrow, other, generator=seeded(seed))
            assert criticality(narrow, other, targets)
            assert criticality(wide, other, targets)
            assert not any(criticality(point.model, other, targets) for point in found)

    def test_random_networks(self) -> None:
        seen = 0
        for seed in range(random_cases(12)):
            widths = [(2, 2, 1), (3, 2, 1), (2, 3, 2), (3, 2, 2, 1), (3, 1, 2)][seed % 5]
            narrow, x, y = case(*widths, size=0.3, seed=seed)
            found = lifted_critical_points(narrow, x, y, starts=4, seed=seed)
            for point in found:
                seen += 1
                assert gradient(point.model, x, y) < 1e-12, seed
                assert point.spectrum.index >= found.narrow.index + point.coupling >= 1, seed
                assert not point.elsewhere, seed
        assert seen >= 2 * random_cases(12)


class TestSearch:
    def test_copies_and_constants_are_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # As many equations as unknowns: existing neurons are isolated solutions, which the search finds.
        narrow, x, y = case(1, 2, 2, n=30, seed=3)
        found = lifted_critical_points(narrow, x, y, starts=40)
        first = linears(narrow)[0]
        for point in found:
            for w, b in zip(first.weight[:, 0].tolist(), first.bias.tolist(), strict=True):
                apart = [math.hypot(point.weight[0] - s * w, point.bias - s * b) for s in (1, -1)]
                assert min(apart) > 1e-3
        monkeypatch.setattr(equations.Equations, "_trivial", lambda *_: False)
        monkeypatch.setattr(equations.Equations, "_rest", lambda self, v: self.values(v))
        everything = lifted_critical_points(narrow, x, y, starts=40)
        assert len(everything) > len(found)
        assert any(point.elsewhere for point in everything)
        assert not any(point.elsewhere for point in found)

    def test_reflections_are_found_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        narrow, x, y = case(2, 3, 3, n=40)
        found = lifted_critical_points(narrow, x, y, starts=60)
        assert len(found) >= 1
        monkeypatch.setitem(equations.PARITY, "tanh", "hinge")
        assert len(lifted_critical_points(narrow, x, y, starts=60)) > len(found)

    def test_wrong_errors_are_found_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        narrow, x, y = case(2, 2, 2, 1)
        assert len(lifted_critical_points(narrow, x, y, starts=4)) >= 1
        true = equations.Equations.sums
        monkeypatch.setattr(equations.Equations, "sums", lambda self, v: true(self, v) + 1e-6)
        assert len(lifted_critical_points(narrow, x, y, starts=4)) == 0

    def test_derivatives(self) -> None:
        narrow, x, y = case(2, 3, 2, 2)
        for layer in (0, 1):
            chain = read_chain(narrow, 1, "")
            found = equations.Equations.of(chain, Surface.of(narrow, x, y), layer)
            v = normal(1, found.inputs.shape[1])[0]
            for function, derivative in (
                (found.sums, found.derivative),
                (found._cosines, found._cosines_derivative),
            ):
                torch.testing.assert_close(torch.func.jacrev(function)(v), derivative(v))
            # The errors span the same space as the per-sample gradients by the next layer's biases.
            E = self.errors(narrow, x, y, layer)
            torch.testing.assert_close(found.errors @ (found.errors.mT @ E), E)
            assert found.errors.shape == E.shape

    @staticmethod
    def errors(narrow: nn.Sequential, x: Tensor, y: Tensor, layer: int) -> Tensor:
        """(n, n_out), a gradient for each sample."""
        bias = linears(narrow)[layer + 1].bias
        rows = []
        for xi, yi in zip(x, y, strict=True):
            loss = ((narrow(xi) - yi) ** 2).sum() / (2 * len(x))
            rows.append(torch.autograd.grad(loss, bias)[0])
        return torch.stack(rows)

    def test_the_same_for_a_seed(self) -> None:
        narrow, x, y = case(2, 2, 1)
        one, two = (lifted_critical_points(narrow, x, y, starts=3) for _ in range(2))
        assert one.to_dict() == two.to_dict()
        other = lifted_critical_points(narrow, x, y, starts=3, seed=1)
        assert other[0].weight != one[0].weight

    def test_without_biases(self) -> None:
        narrow = dyadic(3, 2, 1, biases=False)
        x = normal(30, 3)
        y = critical_targets(narrow, x, generator=seeded(0))
        found = lifted_critical_points(narrow, x, y, starts=4)
        assert (found.unknowns, found.equations) == (3, 1)
        assert len(found) >= 1
        for point in found:
            assert point.bias is None
            assert gradient(point.model, x, y) < 1e-12

    def test_more_equations_than_numbers(self) -> None:
        narrow, x, y = case(1, 2, 3, n=30)
        found = lifted_critical_points(narrow, x, y, starts=20)
        assert (len(found), found.dimension) == (0, -1)
        assert str(found).startswith(
            "0 neurons found for hidden layer 0 from 20 starts: 3 equations"
        )


class TestLosses:
    def test_a_function(self) -> None:
        narrow, x, y = case(2, 2, 1)
        found = lifted_critical_points(
            narrow, x, y, lambda f, y: (f - y).square().sum() / 120, starts=3
        )
        named = lifted_critical_points(narrow, x, y, starts=3)
        assert len(found) == len(named) >= 1
        for one, other in zip(found, named, strict=True):
            assert one.weight == pytest.approx(other.weight)

    def test_cross_entropy(self) -> None:
        # Errors with J'e = 0 that add to 0 over the classes: probabilities y = softmax - n e.
        narrow, x = dyadic(2, 2, 2), normal(60, 2)
        J = llr.jacobian(narrow, x).flatten(0, 1)
        ones = torch.eye(60, dtype=F64).repeat_interleave(2, 0)
        null = torch.linalg.svd(torch.cat((J, ones), 1))[0][:, J.shape[1] + 60 :]
        e = (null @ normal(null.shape[1], 1)).view(60, 2)
        y = narrow(x).softmax(-1).detach() - 0.05 * e / e.abs().max()
        assert criticality(narrow, x, y, "cross_entropy")
        found = lifted_critical_points(narrow, x, y, "cross_entropy", starts=4)
        assert len(found) >= 1
        for point in found:
            assert criticality(point.model, x, y, "cross_entropy")
            assert point.spectrum.index == found.narrow.index + point.coupling

    def test_float32_networks_and_flat_targets(self) -> None:
        narrow, x, y = case(2, 2, 1)
        x, y = x.float()[:, None], y.float()[:, 0]
        flat = lifted_critical_points(narrow.float(), x, y, starts=3, rtol=1e-5)
        assert len(flat) >= 1
        for point in flat:
            assert point.critical.relative < 1e-5

    def test_a_trained_network(self) -> None:
        # Near a minimum, for targets that the network does not fit.
        narrow, x = dyadic(2, 2, 1), normal(40, 2)
        y = (x[:, :1] * x[:, 1:]).sin() + 0.3 * normal(40, 1, 1)
        steps = torch.optim.LBFGS(
            narrow.parameters(),
            max_iter=2000,
            tolerance_grad=1e-9,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            steps.zero_grad()
            value = ((narrow(x) - y) ** 2).mean()
            value.backward()
            return value

        steps.step(loss)
        found = lifted_critical_points(narrow, x, y, starts=4, rtol=1e-6)
        assert len(found) >= 1
        assert found.narrow.index == 0
        for point in found:
            assert gradient(point.model, x, y) == pytest.approx(gradient(narrow, x, y), abs=1e-12)
            assert point.spectrum.index == point.coupling == 1


class TestTargets:
    def test_errors_without_a_gradient(self) -> None:
        narrow, x = dyadic(2, 3, 2), normal(40, 2)
        y = critical_targets(narrow, x, size=0.5, generator=seeded(0))
        e = (narrow(x) - y).detach()
        assert float(e.square().mean().sqrt()) == pytest.approx(0.5)
        assert float((llr.jacobian(narrow, x).flatten(0, 1).mT @ e.flatten()).norm()) < 1e-12
        assert not torch.equal(y, critical_targets(narrow, x, generator=seeded(1)))
        assert torch.equal(y, critical_targets(narrow, x, size=0.5, generator=seeded(0)))

    @pytest.mark.parametrize("given", [True, False])
    def test_nearest(self, given: bool) -> None:
        model, x = dyadic(2, 3, 2), normal(20, 2)
        y = x.sin() if given else None
        found = critical_targets(model, x, y, generator=seeded(4))
        gradients = torch.autograd.grad((model(x) - found).square().sum(), model.parameters())
        assert max(float(g.abs().max()) for g in gradients) < 1e-12
        assert float((found - model(x).detach()).abs().max()) > 0.1
        if given:  # the change is in the range of J, so these are the nearest targets
            J = torch.autograd.functional.jacobian(
                lambda *p: torch.func.functional_call(
                    model, dict(zip(dict(model.named_parameters()), p, strict=True)), (x,)
                ).flatten(),
                tuple(model.parameters()),
            )
            J = torch.cat([j.flatten(1) for j in J], 1)
            change = (found - x.sin()).flatten()
            fit = J @ torch.linalg.lstsq(J, change[:, None], driver="gelsd").solution
            torch.testing.assert_close(fit[:, 0], change, rtol=0, atol=1e-9)

    def test_any_model(self) -> None:
        model = Conv1dTwoLayer(5, 3, 2).double()
        x = normal(40, 5)
        assert criticality(model, x, critical_targets(model, x))
        factors = MatrixFactorization(4, 1, 4).double()
        pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        assert criticality(factors, pairs, critical_targets(factors, pairs))

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (
                lambda: critical_targets(dyadic(1, 2, 1), normal(7, 1)),
                ValueError,
                "x has 7 samples with 7 outputs, on which the Jacobian has rank 7; expected more",
            ),
            (
                lambda: critical_targets(dyadic(1, 2, 1), normal(9, 1), size=0),
                ValueError,
                "size is 0; expected a finite number > 0",
            ),
            (lambda: critical_targets(dyadic(1, 2, 1), "x"), TypeError, "x is str"),
            (
                lambda: critical_targets(dyadic(1, 2, 1), normal(9, 1), normal(8, 1)),
                ValueError,
                r"y has shape \(8, 1\); expected \(9, 1\)",
            ),
            (
                lambda: critical_targets(dyadic(1, 2, 1), torch.full((9, 1), torch.nan)),
                ValueError,
                "nan",
            ),
        ],
    )
    def test_bad_input(self, call: Callable[[], Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            call()


def test_json() -> None:
    narrow, x, y = case(2, 2, 1)
    found = lifted_critical_points(narrow, x, y, starts=3)
    assert isinstance(found, LiftedPoints)
    content = json.loads(json.dumps(found.to_dict()))
    assert content["dimension"] == 2
    assert content["points"][0]["kind"] == "strict saddle"
    assert content["points"][0]["weight"] == list(found[0].weight)
    lines = str(found).splitlines()
    assert len(lines) == 1 + len(found) == 1 + len(list(found))
    assert "on another sample" in lines[1]


NET, X, Y = case(2, 2, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lifted_critical_points(NET, X, Y + 1),
            ValueError,
            "the narrow network is not critical: loss .*expected a critical point",
        ),
        (
            lambda: lifted_critical_points(NET, X, NET(X).detach()),
            ValueError,
            "the errors are 0 .*expected a critical point of positive loss",
        ),
        (lambda: lifted_critical_points(NET, X, Y, layer=1), ValueError, "layer is 1; expected"),
        (lambda: lifted_critical_points(NET, X, Y, starts=0), ValueError, "starts is 0; expected"),
        (lambda: lifted_critical_points(NET, X, Y, scale=-1), ValueError, "scale is -1; expected"),
        (lambda: lifted_critical_points(NET, X, Y, rtol=-1), ValueError, "rtol is -1"),
        (
            lambda: lifted_critical_points(NET, X[:, :1], Y),
            ValueError,
            r"expected samples \(n, 2\)",
        ),
        (lambda: lifted_critical_points(NET, "x", Y), TypeError, "x is str"),
        (lambda: lifted_critical_points(NET, X, Y[:5]), ValueError, "y has shape"),
        (lambda: lifted_critical_points(NET, X, Y, "huber"), ValueError, "loss is 'huber'"),
        (
            lambda: lifted_critical_points(NET, X * torch.inf, Y),
            ValueError,
            "inf|nan",
        ),
        (
            lambda: lifted_critical_points(Conv1dTwoLayer(5, 3, 2), X, Y),
            ValueError,
            "narrow is a Conv1dTwoLayer; expected an MLP",
        ),
        (
            lambda: lifted_critical_points(nn.Linear(2, 1), X, Y),
            ValueError,
            "at least 1 hidden layer: a neuron is added to one of them",
        ),
        (lambda: lifted_critical_points(mlp, X, Y), TypeError, "expected an nn.Module"),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
