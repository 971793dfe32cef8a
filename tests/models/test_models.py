"""The models of the theory: functions, derivatives, exact arithmetic, and ranks known from theorems."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ranks.test_rank import F64, samples
from torch import Tensor, nn

import llr
from llr import Certificate, certify, verify
from llr.exact import chain
from llr.exact import network as exact
from llr.inputs.mlp import read_mlp
from llr.jacobians import reference
from llr.linalg import balls
from llr.models import (
    ACTIVATIONS,
    Conv1dTwoLayer,
    DeepLinear,
    Erf,
    MatrixFactorization,
    Polynomial,
    Sine,
    TwoLayer,
    mlp,
)
from llr.operators import formula

from .cases import generator, whole

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

CUBIC = Polynomial([0.5, -1, 0.1, 2])

MODELS: dict[str, Callable[..., nn.Module]] = {
    "two-layer": lambda **o: TwoLayer(3, 4, 2, output_bias=True, **o),
    "two-layer, no biases": lambda **o: TwoLayer(3, 2, activation="silu", bias=False, **o),
    "two-layer, erf": lambda **o: TwoLayer(2, 3, activation="erf", **o),
    "two-layer, sin": lambda **o: TwoLayer(2, 3, activation="sin", **o),
    "two-layer, polynomial": lambda **o: TwoLayer(2, 3, 2, activation=CUBIC, **o),
    "deep, polynomial": lambda **o: mlp([2, 3, 2, 1], CUBIC, **o),
    "deep": lambda **o: mlp([2, 3, 3, 1], "sigmoid", output_bias=False, **o),
    "convolution": lambda **o: Conv1dTwoLayer(5, 3, 2, **o),
    "convolution, not shared": lambda **o: Conv1dTwoLayer(5, 3, 2, shared=False, **o),
    "convolution, relu": lambda **o: Conv1dTwoLayer(4, 2, 1, activation="relu", **o),
    "factorization": lambda **o: MatrixFactorization(3, 2, 4, **o),
    "linear": lambda **o: DeepLinear([3, 2, 4, 2], **o),
}


def case(name: str, n: int = 5) -> tuple[nn.Module, Tensor]:
    model = MODELS[name](dtype=F64, generator=generator(1))
    if isinstance(model, MatrixFactorization):
        return model, model.pairs()
    d = model.d if isinstance(model, Conv1dTwoLayer) else model[0].in_features
    return model, samples(n, d)


class TestEveryModel:
    @pytest.mark.parametrize("name", MODELS)
    def test_jacobian(self, name: str) -> None:
        model, x = case(name)
        expected = reference.jacobian(model, x)
        torch.testing.assert_close(llr.jacobian(model, x), expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", MODELS)
    def test_exact_jacobian(self, name: str) -> None:
        model, x = case(name)
        expected = reference.jacobian(model, x).flatten()
        J = exact.jacobian(model, x, bits=96)
        found = torch.tensor([float(v) for v in J.entries()], dtype=F64)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        if exact.read_network(model, x).rational:
            rationals = exact.rational_jacobian(model, x)
            with balls.precision(300):
                for ball, rational in zip(J.entries(), rationals.entries(), strict=True):
                    assert ball.overlaps(balls.arb(rational))

    @pytest.mark.parametrize("name", MODELS)
    def test_certificates(self, name: str) -> None:
        model, x = case(name, 24)
        certificate = certify(model, x)
        assert certificate.rank == llr.rank(model, x, method="svd").rank
        assert verify(certificate, model, x)
        assert Certificate.from_dict(certificate.to_dict()) == certificate
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1
        assert "the parameters" in verify(certificate, model, x).reason

    @pytest.mark.parametrize("name", MODELS)
    def test_model_rank(self, name: str) -> None:
        model, x = case(name, 40)
        found = llr.model_rank(model)
        assert found.rank == certify(model, x).rank
        assert llr.has_llr_guarantee(model, found.samples, model_rank=found)

    @pytest.mark.parametrize("name", MODELS)
    def test_reproducible(self, name: str) -> None:
        state = torch.get_rng_state()
        values = [torch.cat([p.flatten() for p in case(name)[0].parameters()]) for _ in range(2)]
        assert torch.equal(*values)
        assert values[0].unique().numel() == values[0].numel()
        assert torch.equal(torch.get_rng_state(), state)
        other = MODELS[name](dtype=F64, generator=generator(2)).parameters()
        assert not torch.equal(torch.cat([p.flatten() for p in other]), values[0])
        assert next(MODELS[name]().parameters()).dtype == torch.float32


class TestTwoLayer:
    def test_of(self) -> None:
        w, b, a, c = whole(3, 2), whole(3, seed=1), whole(3, 2, seed=2), whole(2, seed=3)
        model = TwoLayer.of(w, b, a, c, activation="sin")
        x = samples(4, 2)
        expected = (x @ w.T + b).sin() @ a + c
        torch.testing.assert_close(model(x), expected, rtol=1e-14, atol=1e-13)
        w.zero_()
        assert model[0].weight.abs().sum() > 0  # a copy
        plain = TwoLayer.of(w, None, a)
        assert plain[0].bias is None
        assert plain[2].bias is None

    def test_of_keeps_the_dtype_and_every_bit(self) -> None:
        w = torch.randn(3, 2)
        state = torch.get_rng_state()
        model = TwoLayer.of(w, None, torch.ones(3, 1))
        assert model[0].weight.dtype == torch.float32
        assert torch.equal(model[0].weight, w)
        assert torch.equal(torch.get_rng_state(), state)

    def test_default_values_are_those_of_torch(self) -> None:
        torch.manual_seed(3)
        layers = [nn.Linear(3, 4), nn.Linear(4, 2)]
        torch.manual_seed(3)
        model = mlp([3, 4, 2])
        for mine, other in zip((model[0], model[2]), layers, strict=True):
            assert torch.equal(mine.weight, other.weight)
            assert torch.equal(mine.bias, other.bias)

    @pytest.mark.parametrize(("layer", "name"), [(Erf, "erf"), (Sine, "sin")])
    def test_read_without_a_trace(self, layer: type[nn.Module], name: str) -> None:
        found = read_mlp(TwoLayer(2, 3, activation=layer()))
        assert (found.activation, found.traced) == (name, False)

    def test_activations_are_those_of_the_other_tables(self) -> None:
        assert set(ACTIVATIONS) == set(formula.ACTIVATIONS) == set(balls.ACTIVATIONS)
        z = torch.linspace(-3, 3, 7, dtype=F64)
        for name, layer in ACTIVATIONS.items():
            torch.testing.assert_close(layer()(z), formula.ACTIVATIONS[name][0](z))

    def test_mlp_parts(self) -> None:
        shared = Polynomial([0, 0, 1])
        model = mlp([1, 2, 2, 1], shared, bias=False)
        assert [type(m) for m in model] == [nn.Linear, Polynomial] * 2 + [nn.Linear]
        assert len({id(m) for m in (*model, shared)}) == 6
        assert [m.bias is not None for m in model if isinstance(m, nn.Linear)] == [0, 0, 1]
        assert len(mlp([2, 1])) == 1

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: TwoLayer(2, 0), ValueError, "m is 0; expected a positive integer"),
            (lambda: TwoLayer(2.0, 1), ValueError, "d is 2.0"),
            (lambda: TwoLayer(2, 1, activation="swish"), ValueError, "'swish': expected one of"),
            (lambda: TwoLayer(2, 1, activation=torch.tanh), TypeError, "expected a name or a mod"),
            (lambda: mlp([3]), ValueError, r"widths are \[3\]; expected at least two"),
            (lambda: mlp([3, 0, 1]), ValueError, "widths are"),
            (lambda: DeepLinear([3]), ValueError, "widths are"),
            (lambda: DeepLinear.of(), ValueError, "there are no weights"),
            (
                lambda: DeepLinear.of(torch.ones(2, 3), torch.ones(1, 3)),
                ValueError,
                r"W_2 has shape \(1, 3\); expected \(1, 2\), as many columns",
            ),
            (lambda: TwoLayer.of([1.0], None, torch.ones(1, 1)), TypeError, "w is list"),
            (
                lambda: TwoLayer.of(torch.ones(1, 1).long(), None, torch.ones(1, 1)),
                TypeError,
                r"w is torch.int64; expected floating point \(w.double\(\)\)",
            ),
            (
                lambda: TwoLayer.of(torch.ones(1, 1), None, torch.ones(1, 1).double()),
                TypeError,
                "w is torch.float32 on cpu, a is torch.float64 on cpu; expected one dtype",
            ),
            (lambda: TwoLayer.of(torch.ones(2), None, torch.ones(1, 1)), ValueError, "a matrix"),
            (
                lambda: TwoLayer.of(torch.ones(2, 1), torch.ones(3), torch.ones(2, 1)),
                ValueError,
                r"b has shape \(3,\); expected \(2,\)",
            ),
            (
                lambda: TwoLayer.of(torch.ones(2, 1), None, torch.ones(1, 2)),
                ValueError,
                r"a has shape \(1, 2\); expected \(2, 2\)",
            ),
            (
                lambda: TwoLayer.of(torch.ones(2, 1), None, torch.ones(2, 1), torch.ones(2)),
                ValueError,
                r"c has shape \(2,\); expected \(1,\)",
            ),
        ],
    )
    def test_bad_input(
        self, call: Callable[[], object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            call()


class TestConvolutions:
    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("activation", ["tanh", "gelu"])
    def test_function(self, shared: bool, activation: str) -> None:
        m, p, s, d = 2, 4, 3, 6
        weight = whole(m, s) if shared else whole(m, p, s)
        out, x = whole(m, p, seed=1), samples(3, d)
        model = Conv1dTwoLayer.of(weight / 8, out, d=d, activation=activation)
        sigma = formula.ACTIVATIONS[activation][0]
        for sample, value in zip(x, model(x), strict=True):
            expected = sum(
                out[c, t] * sigma((weight[c] if shared else weight[c, t]) / 8 @ sample[t : t + s])
                for c in range(m)
                for t in range(p)
            )
            torch.testing.assert_close(value[0], expected)

    # d, kernel size, kernels: dim T with sharing, without, fully connected.
    @pytest.mark.parametrize(
        ("d", "s", "k", "expected"),
        [
            (3, 2, 1, (4, 6, 8)),
            (4, 2, 1, (5, 9, 15)),
            (5, 3, 1, (6, 12, 18)),
            (5, 3, 2, (12, 24, 36)),
            (4, 1, 2, (10, 16, 40)),
            (4, 4, 2, (10, 10, 10)),
        ],
    )
    def test_ranks(self, d: int, s: int, k: int, expected: tuple[int, ...]) -> None:
        p = d + 1 - s
        kernels = samples(k, s, 4)
        out, x = samples(k, p, 5), samples(42, d, 6)
        shared = Conv1dTwoLayer.of(kernels, out, d=d)
        own = Conv1dTwoLayer.of(kernels[:, None].expand(k, p, s), out, d=d)
        placed = torch.zeros(k, p, d, dtype=F64)
        for t in range(p):
            placed[:, t, t : t + s] = kernels
        dense = TwoLayer.of(placed.flatten(0, 1), None, out.reshape(-1, 1))
        torch.testing.assert_close(shared(x), own(x))
        torch.testing.assert_close(shared(x), dense(x))
        found = [
            certify(model, x, upper=upper)
            for model, upper in zip((shared, own, dense), expected, strict=True)
        ]
        assert tuple(c.rank for c in found) == expected

    def test_kernels_that_coincide_shifted(self) -> None:
        kernels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
        model = Conv1dTwoLayer.of(kernels, samples(2, 3), d=4)
        assert certify(model, samples(20, 4)).rank == 8
        kernels = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]]).double()
        out = torch.tensor([[0.0, 1.0, 1.0], [-1.0, -1.0, 0.0]]).double()
        assert certify(Conv1dTwoLayer.of(kernels, out, d=5), samples(20, 5)).rank == 8

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: Conv1dTwoLayer(2, 3, 1), ValueError, "kernel_size is 3; expected at most d"),
            (lambda: Conv1dTwoLayer(3, 0, 1), ValueError, "kernel_size is 0"),
            (lambda: Conv1dTwoLayer(3, 1, 1, activation="x"), ValueError, "'x': expected one"),
            (lambda: Conv1dTwoLayer(3, 1, 1, activation=CUBIC), TypeError, "expected a name"),
            (
                lambda: Conv1dTwoLayer.of(torch.ones(3), torch.ones(1, 1), d=3),
                ValueError,
                r"weight has shape \(3,\); expected \(m, s\), or \(m, p, s\)",
            ),
            (
                lambda: Conv1dTwoLayer.of(torch.ones(1, 2), torch.ones(1, 3), d=3),
                ValueError,
                r"out has shape \(1, 3\); expected \(1, 2\), m = 1 kernels of length 2",
            ),
            (
                lambda: Conv1dTwoLayer.of(torch.ones(1, 3, 2), torch.ones(1, 2), d=3),
                ValueError,
                r"weight has shape \(1, 3, 2\); expected \(1, 2, 2\)",
            ),
            (
                lambda: Conv1dTwoLayer(3, 2, 1)(torch.ones(1, 4)),
                ValueError,
                r"x has shape \(1, 4\); expected \(n, 3\)",
            ),
            (
                lambda: certify(nn.Sequential(Conv1dTwoLayer(3, 2, 1)), torch.ones(1, 4)),
                ValueError,
                r"Conv1dTwoLayer '0' takes samples of shape \(3,\)",
            ),
        ],
    )
    def test_bad_input(
        self, call: Callable[[], object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            call()


class TestSubclasses:
    def test_slices_are_plain(self) -> None:
        model = TwoLayer(2, 3)
        assert type(model[:2]) is nn.Sequential
        assert model[:2][0] is model[0]
        assert [type(m) for m in DeepLinear([1, 2, 3])[1:]] == [nn.Linear]

    def test_sequential_with_a_forward_of_its_own_is_refused(self) -> None:
        class Doubled(TwoLayer):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        with pytest.raises(ValueError, match="no rule for Doubled"):
            certify(Doubled(2, 2, activation=CUBIC), torch.zeros(2, 2))

    def test_a_rule_comes_before_the_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(chain.RULES, TwoLayer, lambda *_: ([], (7,)))
        assert chain.steps_of(TwoLayer(2, 1), (2,)) == ([], (7,))
