"""Polynomial activations: names with coefficients, rational derivatives, generic ranks."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks.test_rank import F64
from torch import nn

from llr import certify, verify
from llr.exact import network as exact
from llr.linalg import balls
from llr.models import Polynomial, TwoLayer

from .test_models import whole

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestPolynomials:
    def test_name_and_value(self) -> None:
        layer = Polynomial([-0.0, 1, 0.1, 1e-30])
        assert layer.name == "polynomial(0, 1, 0.1, 1e-30)"
        assert repr(layer) == "Polynomial(0, 1, 0.1, 1e-30)"
        z = torch.linspace(-2, 2, 5, dtype=F64)
        torch.testing.assert_close(layer(z), z + 0.1 * z**2 + 1e-30 * z**3)

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(
            st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=5
        ),
        st.fractions(max_denominator=50),
    )
    def test_the_name_tells_the_coefficients_exactly(
        self, coefficients: list[float], z: Fraction
    ) -> None:
        value, slope = balls.activation(Polynomial(coefficients).name)
        exact_ones = [Fraction(c) for c in coefficients]
        at = balls.fmpq(*z.as_integer_ratio())
        expected = sum((c * z**k for k, c in enumerate(exact_ones)), Fraction(0))
        derivative = sum((k * c * z ** (k - 1) for k, c in enumerate(exact_ones) if k), Fraction(0))
        assert value(at) == balls.fmpq(*expected.as_integer_ratio())
        assert slope(at) == balls.fmpq(*derivative.as_integer_ratio())
        with balls.precision(64):
            ball = value(balls.arb(at))
        with balls.precision(4096):
            assert ball.overlaps(balls.arb(value(at)))

    def test_certificates_tell_coefficients_apart(self) -> None:
        w, a, x = whole(2, 2), whole(2, 1, seed=1), whole(8, 2, seed=2)

        def model(*coefficients: float) -> nn.Module:
            return TwoLayer.of(w, None, a, activation=Polynomial(coefficients))

        certificate = certify(model(0, 1, 1), x)
        assert certificate.structure == "Linear(2, 2), polynomial(0, 1, 1), Linear(2, 1)"
        assert certificate.arithmetic == "rationals"
        for other in (model(0, 1, 2), model(0, 1, 1 + 2**-52), model(0, 1, 1, 1)):
            assert "the model is" in verify(certificate, other, x).reason
            network = exact.read_network(other, x)
            assert network.model_digest != certificate.model

    def test_inexact_floats(self) -> None:
        # 0.1 is the binary number nearest to 1/10, not 1/10.
        one = torch.ones(1, 1, dtype=F64)
        J = exact.rational_jacobian(
            TwoLayer.of(one, None, one, activation=Polynomial([0, 0.1])), one
        )
        assert J[0, 1] == balls.fmpq(*Fraction(0.1).as_integer_ratio())

    @pytest.mark.parametrize(
        ("coefficients", "error", "message"),
        [
            ([], ValueError, "coefficients is empty"),
            ([1, float("nan")], ValueError, "coefficient nan is no finite float64"),
            ([2**60 + 1], ValueError, "no finite float64"),
            (["1"], TypeError, "coefficient '1' is str"),
        ],
    )
    def test_bad_input(self, coefficients: list[Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Polynomial(coefficients)

    # Coefficients, d, biases, outputs; neurons -> generic rank (Alexander-Hirschowitz for monomials).
    TABLE = (
        ((0, 0, 1), 3, True, 1, {1: 4, 2: 7, 3: 9, 4: 10, 5: 10}),
        ((0, 0, 0, 1), 2, True, 1, {1: 3, 2: 6, 3: 9, 4: 10}),
        ((0, 0, 0, 1), 4, True, 1, {6: 30, 7: 34, 8: 35}),
        ((0, 0, 0, 0, 1), 2, True, 1, {4: 12, 5: 14, 6: 15}),
        ((0, 0, 0, 0, 1), 4, True, 1, {14: 69}),
        ((0, 1, 1), 2, True, 1, {1: 4, 2: 6, 3: 6}),
        ((0, 1, 1), 4, True, 1, {1: 6, 2: 10, 3: 13, 4: 15, 5: 15}),
        ((0, 1, 0, 1), 2, True, 1, {1: 4, 2: 8, 3: 10, 4: 10}),
        ((0, 1, 0, 1), 2, False, 1, {1: 3, 2: 6, 3: 6}),
        ((1, 2, -1, 1, 3), 2, True, 1, {1: 4, 2: 8, 3: 12, 4: 15, 5: 15}),
        ((0, 0, 0, 1), 2, True, 2, {1: 4, 2: 8, 3: 12, 4: 16, 5: 19, 6: 20}),
    )

    @pytest.mark.parametrize(
        ("coefficients", "d", "bias", "q", "k", "expected"),
        [(c, d, b, q, k, r) for c, d, b, q, ranks in TABLE for k, r in ranks.items()],
    )
    def test_generic_ranks(
        self, coefficients: tuple[int, ...], d: int, bias: bool, q: int, k: int, expected: int
    ) -> None:
        b = whole(k, seed=1) if bias else None
        model = TwoLayer.of(
            whole(k, d), b, whole(k, q, seed=2) + 0.5, activation=Polynomial(coefficients)
        )
        certificate = certify(model, whole(90, d, seed=3))
        assert (certificate.rank, certificate.upper_from) == (expected, "exact rank")
