"""Containment of tangent spaces: the cases of the theory, with certified ranks, and their consequences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch
from torch import nn

import llr
from llr import certify
from llr.inputs.samplers import read_sampler
from llr.landscape import critical_targets, criticality
from llr.lifting import LiftStatus, lift_status, lifted_family, status
from llr.lifting.ranks import RankBounds, rank_bounds
from llr.models import Conv1dTwoLayer, TwoLayer, mlp

from .cases import (
    F64,
    dyadic,
    gradient,
    linears,
    member,
    normal,
    reading,
    split,
    with_neuron,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def check(
    narrow: nn.Module, wide: nn.Module, ranks: tuple[int, int, int] | None, contained: bool
) -> LiftStatus:
    """Assert that the verdict is proved, the ranks are these, and C maps J_narrow to J_wide."""
    found = lift_status(narrow, wide)
    assert (found.contained, found.proved, bool(found)) == (contained, True, contained)
    bounds = (found.narrow, found.wide, found.joint)
    assert all(b.exact for b in bounds)
    if ranks is not None:
        assert tuple(b.lower for b in bounds) == ranks
    assert (found.matrix is None) == (found.deviation is None) == (not contained)
    if found.matrix is not None:
        assert found.deviation is not None
        assert found.radius is not None
        assert found.deviation < 2e-148
        assert found.radius <= found.deviation
        x = normal(9, linears(narrow)[0].in_features, 5)
        J_narrow, J_wide = (llr.jacobian(net, x).flatten(0, 1) for net in (narrow, wide))
        torch.testing.assert_close(J_narrow @ found.matrix, J_wide, rtol=1e-11, atol=1e-11)
    return found


def means_critical(narrow: nn.Module, wide: nn.Module, contained: bool) -> None:
    """Assert that the wide network is critical, or not, on samples on which the narrow one is critical."""
    d = linears(narrow)[0].in_features
    for seed in range(2):
        x = normal(60, d, seed)
        y = critical_targets(narrow, x, generator=torch.Generator().manual_seed(seed))
        assert criticality(narrow, x, y)
        assert bool(criticality(wide, x, y)) == contained
        assert (gradient(wide, x, y) < 1e-12) == contained


class TestTable:
    """Rows of the theory's table: alpha, t, s and r, given u, v and lambda = 1/4."""

    @pytest.mark.parametrize(
        ("alpha", "t", "s"),
        [(0.25, 0.375, 0.375), (0.25, 1, -1), (0.5, 2, -2), (-1, 0.5, 3)],
    )
    def test_one_neuron_per_layer(self, alpha: float, t: float, s: float) -> None:
        narrow = dyadic(1, 1, 1, 1)
        linears(narrow)[1].weight.data.fill_(1.5)
        wide = member(narrow, alpha, t, s)
        found = check(narrow, wide, (6, 6, 6), True)
        assert found.deviation is not None
        assert found.deviation < 2e-152

    CASES = (
        ("plain split", (13, 13, 13), lambda u, v: (0.25, u / 4, u / 4, v / 4)),
        ("new", (13, 13, 13), lambda u, v: (0.25, 2, (u / 4 - 1.5) * 4, v / 4)),
        ("s + 1", (13, 15, 15), lambda u, v: (0.25, 2, (u / 4 - 1.5) * 4 + 1, v / 4)),
        ("r + 1", (13, 15, 15), lambda u, v: (0.25, 2, (u / 4 - 1.5) * 4, v / 4 + 1)),
        ("lambda = 0", (13, 13, 13), lambda u, v: (0.25, 2, 0 * u - 6, 0 * v)),
        ("alpha = 0", (13, 13, 13), lambda u, v: (0, u / 4, 5, v / 4)),
        ("alpha = 0, t + 1", (13, 15, 15), lambda u, v: (0, u / 4 + 1, 5, v / 4)),
    )

    @pytest.mark.parametrize(
        ("ranks", "numbers"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
    )
    @pytest.mark.parametrize("seed", [0, 1])
    def test_two_neurons_per_layer(
        self,
        ranks: tuple[int, int, int],
        numbers: Callable[[float, float], Sequence[float]],
        seed: int,
    ) -> None:
        narrow = dyadic(1, 2, 2, 1, seed=seed)
        u, (v,) = reading(narrow)
        alpha, t, s, r = numbers(u, v)
        wide = member(narrow, alpha, t, s, [r])
        found = check(narrow, wide, ranks, ranks[1] == 13)
        if found.contained:
            assert found.deviation is not None
            assert found.deviation < 2e-152
        made, lift = lifted_family(narrow, alpha=alpha, t=t, s=s, r=[r])
        assert lift.exact
        assert lift.contained == found.contained
        for one, other in zip(made.parameters(), wide.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_nonzero_weights_over_a_zero_one(self) -> None:
        narrow = dyadic(1, 2, 2, 1)
        linears(narrow)[1].weight.data[0, 0] = 0
        v = reading(narrow)[1][0]
        wide = member(narrow, 0.25, 3, -9, [v / 4])
        check(narrow, wide, (13, 13, 13), True)
        means_critical(narrow, wide, True)

    def test_what_it_means(self) -> None:
        narrow = dyadic(2, 3, 2, 1)
        u, (v,) = reading(narrow)
        s = (u / 4 - 1.5) * 4
        means_critical(narrow, member(narrow, 0.25, 2, s, [v / 4]), True)
        means_critical(narrow, member(narrow, 0.25, 2, s + 1, [v / 4]), False)
        means_critical(narrow, member(narrow, 0.25, 2, s, [v / 4 + 1]), False)


NARROW = [(1, 2, 2, 1), (2, 2, 3, 1), (1, 2, 2, 2)]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("widths", NARROW)
class TestMoves:
    """One more neuron in a hidden layer: which moves keep T, and how much the others enlarge it."""

    @pytest.mark.parametrize(("share", "sign"), [(0.25, 1), (0, 1), (1, -1), (-1.5, -1)])
    def test_splits(self, widths: tuple[int, ...], layer: int, share: float, sign: int) -> None:
        narrow = dyadic(*widths)
        wide = split(narrow, layer, [share] * widths[layer + 2], sign=sign)
        P = sum(p.numel() for p in narrow.parameters())
        check(narrow, wide, (P, P, P), True)

    def test_null_neurons(self, widths: tuple[int, ...], layer: int) -> None:
        narrow = dyadic(*widths)
        n_in, n_out = widths[layer], widths[layer + 2]
        P = sum(p.numel() for p in narrow.parameters())
        null = with_neuron(narrow, layer, [0.0] * n_in, 0.5, [0.0] * n_out)
        check(narrow, null, (P, P, P), True)

    def test_exceptions(self, widths: tuple[int, ...], layer: int) -> None:
        narrow = dyadic(*widths)
        n_in, n_out = widths[layer], widths[layer + 2]
        P = sum(p.numel() for p in narrow.parameters())
        idle = with_neuron(narrow, layer, [0.6875] * n_in, 0.5, [0.0] * n_out)
        check(narrow, idle, (P, P + n_out, P + n_out), False)
        # With a constant of 0 the next bias stays the same, so that the functions are exactly equal.
        constant = with_neuron(narrow, layer, [0.0] * n_in, 0.0, [0.8125] * n_out)
        check(narrow, constant, (P, P + n_in, P + n_in), False)
        if n_out >= 2:
            uneven = split(narrow, layer, [0.25, 0.5, -1.0][:n_out])
            check(narrow, uneven, (P, P + n_in + 1, P + n_in + 1), False)

    def test_null_neurons_without_a_bias_after_them(
        self, widths: tuple[int, ...], layer: int
    ) -> None:
        narrow = dyadic(*widths, biases=[k != layer + 1 for k in range(3)])
        n_in, n_out = widths[layer], widths[layer + 2]
        P = sum(p.numel() for p in narrow.parameters())
        zero = [0.0] * n_out
        check(narrow, with_neuron(narrow, layer, [0.0] * n_in, 0.0, zero), (P, P, P), True)
        constant = with_neuron(narrow, layer, [0.0] * n_in, 0.5, zero)
        check(narrow, constant, (P, P + n_out, P + n_out), False)


class TestKinds:
    """Other activations and structures."""

    @pytest.mark.parametrize(
        "activation", ["tanh", "erf", "sigmoid", "softplus", "gelu", "silu", "sin", "relu"]
    )
    def test_activations(self, activation: str) -> None:
        narrow = dyadic(2, 2, 2, 1, activation=activation)
        P = sum(p.numel() for p in narrow.parameters())
        found = lift_status(narrow, split(narrow, 0, [0.25, 0.25]))
        assert found
        assert found.proved
        if activation == "relu":  # for a deep ReLU network, only bounds of dim T are known
            assert found.narrow.upper == P - 4
        else:
            assert (found.narrow.lower, found.joint.lower) == (P, P)
            assert lift_status(narrow, split(narrow, 0, [0.25, 0.5])).contained is False

    def test_relu_scales(self) -> None:
        narrow = dyadic(2, 2, 1, activation="relu")
        wide = with_neuron(narrow, 0, [0.0, 0.0], 0.0, [0.0])
        with torch.no_grad():
            wide[0].weight[2], wide[0].bias[2] = 2 * narrow[0].weight[0], 2 * narrow[0].bias[0]
            wide[2].weight[0, 2] = wide[2].weight[0, 0] / 4
            wide[2].weight[0, 0] /= 2
        check(narrow, wide, (7, 7, 7), True)

    def test_numbers_as_factors(self) -> None:
        # Derivatives by the outgoing weights of a constant neuron are tanh(1/2) times those by the bias.
        narrow = with_neuron(dyadic(1, 2, 2, 1), 0, [0.0], 0.5, [0.0, 0.0])
        wide = with_neuron(narrow, 0, [0.0], 1.25, [0.0, 0.0])
        found = check(narrow, wide, (13, 13, 13), True)
        assert found.matrix is not None
        assert not all((16 * float(v)).is_integer() for v in found.matrix.flatten())

    def test_convolutions(self) -> None:
        kernel, a = torch.tensor([[1.0, 0.5]]).double(), torch.ones(1, 2).double()
        narrow = Conv1dTwoLayer.of(kernel, a, d=3)
        wide = Conv1dTwoLayer.of(kernel.repeat(2, 1), torch.cat((a / 4, 3 * a / 4)), d=3)
        found = lift_status(narrow, wide)
        assert found
        assert (found.narrow.lower, found.joint.upper) == (4, 4)

    def test_linear_networks_are_rational(self) -> None:
        narrow = mlp([2, 1, 2], "identity", bias=False, output_bias=False, dtype=F64)
        wide = with_neuron_linear(narrow)
        found = lift_status(narrow, wide)
        assert (found.contained, found.proved) == (False, True)
        assert (found.narrow.lower, found.narrow.upper) == (3, 3)

    def test_sines_by_closed_form(self) -> None:
        # Any third phase of a direction is in the span of two, but symbols do not show this.
        def net(b: list[float], a: list[float]) -> TwoLayer:
            w = torch.ones(len(b), 1)
            return TwoLayer.of(
                w, torch.tensor(b), torch.tensor(a)[:, None], activation="sin"
            ).double()

        narrow = net([0.0, 1.0], [1.0, 1.0])
        found = lift_status(narrow, net([0.0, 1.0, 2.0], [1.0, 1.0, 0.0]))
        assert (found.contained, found.proved, found.matrix) == (True, True, None)
        assert "closed form" in found.reason
        assert str(found.joint) == "4"
        idle = net([0.0, 1.0], [1.0, 0.0])
        assert lift_status(net([0.0], [1.0]), idle).contained is True
        cancelling = net([0.0, 1.0, 1.0], [1.0, 1.0, -1.0])
        found = lift_status(net([0.0], [1.0]), cancelling)
        assert (found.contained, found.proved) == (False, True)
        assert (found.narrow.lower, found.joint.lower) == (3, 4)

    def test_wide_in_float64_narrow_in_float32(self) -> None:
        narrow = mlp([1, 2, 2, 1])
        wide, lift = lifted_family(narrow, alpha=0.25, t=2.0, lam=0.25)
        assert lift.exact
        assert check(narrow.double(), wide, (13, 13, 13), True)

    def test_narrow_networks_may_be_degenerate(self) -> None:
        once = dyadic(1, 2, 2, 1)
        narrow = split(once, 1, [0.25])
        wide = split(narrow, 0, [0.5, 0.5, 0.5], neuron=1)
        check(narrow, wide, (13, 13, 13), True)
        check(once, wide, (13, 13, 13), True)
        check(wide, once, (13, 13, 13), True)

    def test_high_precision(self) -> None:
        narrow = dyadic(1, 6, 6, 1, seed=2)
        with torch.no_grad():
            for p in narrow.parameters():
                p /= 4
        P = 61
        found = lift_status(narrow, split(narrow, 0, [0.25] * 6))
        assert found.narrow.lower == P
        assert found.narrow.bits > 64
        assert lift_status(narrow, split(narrow, 0, [0.25] * 5 + [0.5])).contained is False


def with_neuron_linear(net: nn.Sequential) -> nn.Sequential:
    """A linear network with one hidden neuron more, which has no outgoing weights."""
    first, last = linears(net)
    wide = mlp([2, 2, 2], "identity", bias=False, output_bias=False, dtype=F64)
    with torch.no_grad():
        linears(wide)[0].weight.copy_(torch.cat((first.weight, torch.tensor([[1.0, -2.0]]))))
        linears(wide)[1].weight.copy_(torch.cat((last.weight, torch.zeros(2, 1)), 1))
    return wide


class TestUndecided:
    """Cases without a proof are reported as undecided or not proved."""

    def test_one_function_of_two_activations(self) -> None:
        # tanh(z) = 2 sigmoid(2 z) - 1: as many dimensions together as alone, but no C is found.
        narrow = dyadic(1, 2, 1)
        wide = dyadic(1, 2, 1, activation="sigmoid")
        with torch.no_grad():
            wide[0].weight.copy_(2 * narrow[0].weight)
            wide[0].bias.copy_(2 * narrow[0].bias)
            wide[2].weight.copy_(2 * narrow[2].weight)
            wide[2].bias.copy_(narrow[2].bias - narrow[2].weight.sum())
        found = lift_status(narrow, wide, max_bits=256)
        assert (found.contained, found.proved, bool(found)) == (None, False, False)
        assert found.agreement == "rounding"
        assert found.difference < 1e-30
        assert (found.joint.lower, found.narrow.upper) == (7, 7)
        assert str(found).startswith("undecided (not proved)")
        assert "no C was found" in found.reason

    def test_splits_that_float64_cannot_hold(self) -> None:
        narrow = mlp([1, 3, 3, 1], dtype=F64, generator=torch.Generator().manual_seed(0))
        found = lift_status(narrow, split(narrow, 0, [0.1, 0.1, 0.1]))
        assert (found.contained, found.agreement) == (None, "rounding")
        assert found.joint.lower > found.narrow.upper
        assert found.distance is not None
        assert found.distance < 1e-12
        assert 0 < found.difference < 1e-14

    def test_clearly_apart_though_to_rounding(self) -> None:
        # tanh(1/2) is rounded in the next bias, but the new directions are too large to be rounding.
        narrow = dyadic(1, 2, 2, 1)
        wide = with_neuron(narrow, 0, [0.0], 0.5, [0.75, 0.5])
        with torch.no_grad():
            linears(wide)[1].bias -= torch.tensor([0.75, 0.5]).double() * math.tanh(0.5)
        found = lift_status(narrow, wide)
        assert (found.contained, found.proved, found.agreement) == (False, False, "rounding")
        assert found.distance is not None
        assert found.distance > 1e-7


class TestMistakes:
    """Mistakes are refused or detected."""

    def test_another_function(self) -> None:
        narrow = dyadic(1, 2, 2, 1)
        wide = split(narrow, 0, [0.25, 0.25])
        linears(wide)[1].weight.data[0, 2] += 2.0**-20
        with pytest.raises(ValueError, match=r"differ by up to [0-9.]+e-0[678] on 55 samples"):
            lift_status(narrow, wide, normal(55, 1))

    def test_a_wrong_combination(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(*vectors: object) -> list[list[Fraction]] | None:
            C = true(*vectors)
            C[3][2] += Fraction(1, 10**40)
            return C

        true = status.combination
        monkeypatch.setattr(status, "combination", wrong)
        narrow = dyadic(1, 2, 2, 1)
        with pytest.raises(RuntimeError, match="J_wide differs from J_narrow C"):
            lift_status(narrow, split(narrow, 0, [0.25, 0.25]))

    def test_a_wrong_upper_bound(self) -> None:
        J = certify_matrix(dyadic(1, 2, 1))
        with pytest.raises(RuntimeError, match="the rank is at least 7, which is certain"):
            rank_bounds(J, 6, bits=64, max_bits=64)
        assert rank_bounds(J, 7, bits=64, max_bits=64).exact

    def test_rank_bounds_prove_what_certify_proves(self) -> None:
        model = split(dyadic(1, 2, 2, 1), 0, [0.25, 0.5])
        found = rank_bounds(certify_matrix(model), 17, bits=64, max_bits=1024)
        certificate = certify(model, normal(40, 1), params="*")
        assert found.lower == certificate.rank == 15
        assert (found.upper, found.exact, str(found)) == (17, False, "15 to 17")
        assert len(found.rows) == len(found.columns) == 15
        # The rows and columns are those of a nonsingular matrix whose determinant is at least as large.
        J = llr.exact.network.jacobian(model, normal(40, 1), bits=2048).tolist()
        minor = [[J[i][j] for j in found.columns] for i in found.rows]
        with llr.linalg.balls.precision(2048):
            assert abs(llr.exact.network.arb_mat(minor).det()) > llr.linalg.balls.arb(
                found.determinant
            )


def certify_matrix(model: nn.Module) -> Callable[[int], llr.exact.network.arb_mat]:
    return lambda bits: llr.exact.network.jacobian(model, normal(40, 1), bits=bits)


class TestResult:
    def test_json(self) -> None:
        narrow = dyadic(1, 2, 2, 1)
        found = lift_status(narrow, split(narrow, 0, [0.25, 0.25]))
        content = json.loads(json.dumps(found.to_dict(spectrum=True)))
        assert content["contained"] is content["proved"] is True
        assert content["joint"]["lower"] == content["joint"]["upper"] == 13
        assert torch.equal(torch.tensor(content["matrix"]).double(), found.matrix)
        assert isinstance(found.narrow, RankBounds)
        assert found.n_samples == 13 + 17 + 16
        other = lift_status(narrow, split(narrow, 0, [0.25, 0.5]))
        assert json.loads(json.dumps(other.to_dict()))["matrix"] is None
        assert str(other).startswith("not contained: critical for special samples only (proved)")
        assert "13 / 15 / 15" in str(other)

    def test_samples(self) -> None:
        narrow = dyadic(1, 2, 2, 1)
        wide = split(narrow, 0, [0.25, 0.5])
        few = lift_status(narrow, wide, normal(8, 1))
        assert (few.contained, few.n_samples, few.joint.lower) == (None, 8, 8)
        # The default is the same whatever torch's generator has done.
        found = lift_status(narrow, wide)
        source = read_sampler(
            "normal", narrow, shape=None, dtype=F64, device=torch.device("cpu"), seed=0
        )
        assert lift_status(narrow, wide, source.first(46)).joint == found.joint
