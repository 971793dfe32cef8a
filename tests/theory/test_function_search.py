"""Model ranks of functions of two layers: tables, and minima over representations that a search finds."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from helpers.theory_cases import (
    ANALYTIC,
    F64,
    build,
    certified,
    generic_samples,
    random_cases,
    random_two_layer,
)
from torch import nn

from llr.models import TwoLayer
from llr.theory import (
    model_rank_of_function,
    optimistic_sample_size,
    tangent_dimension,
)

from .function_cases import optimum, random_setting
from .function_search import Setting, smallest

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def setting(
    k: int, m: int, d: int, q: int, *, bias: bool, out: bool, constant: bool, act: str = "tanh"
) -> Setting:
    """k neurons, with or without a constant, and one more hyperplane than needed."""
    pool = [(1, 0, 0, 0), (1, 1, 1, 0), (0, 1, -1, 2)]
    planes = tuple((*p[:d], p[3] + i if bias else 0) for i, p in enumerate(pool[: k + 1], 1))
    alpha = tuple((2, -1, 3)[g : g + q] for g in range(k))
    last = Fraction(int(constant))
    affine = tuple((*[Fraction(0)] * d, last) for _ in range(q))
    return Setting(act, planes, alpha, affine, m, bias, out)


def random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Multiples of 1/64."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.double().parameters():
            p.copy_(torch.randint(-128, 129, p.shape, generator=g) / 64)
    return model


class TestTwoLayers:
    # k, m, d, q, biases, output bias, constant part: the model rank.
    TABLE = (
        ((1, 3, 1, 1, True, False, False), 3),
        ((2, 4, 2, 1, True, False, False), 8),
        ((2, 4, 1, 2, True, True, False), 10),
        ((1, 4, 3, 2, False, False, False), 5),
        ((0, 3, 2, 1, True, False, False), 0),
        ((0, 3, 2, 2, True, True, False), 2),
        ((2, 4, 2, 1, True, False, True), 11),
        ((1, 3, 3, 2, True, False, True), 11),
        ((1, 3, 2, 2, True, True, True), 7),
    )

    @pytest.mark.parametrize(("case", "expected"), TABLE)
    @pytest.mark.parametrize("act", ["tanh", "erf"])
    def test_table(self, case: tuple[Any, ...], expected: int, act: str) -> None:
        k, m, d, q, bias, out, constant = case
        searched = setting(k, m, d, q, bias=bias, out=out, constant=constant, act=act)
        found = optimum(searched)
        assert found is not None
        if act == "tanh" and (m < 4 or q == 1):  # few enough representations
            least, largest, _ = smallest(searched)
            assert least == expected < largest
        assert (int(found), found.status) == (expected, "exact")

    def test_one_output(self) -> None:
        for d, k in product((1, 3, 7), (1, 4)):
            for bias in (True, False):
                target = random_weights(TwoLayer(d, k, bias=bias))
                if d == 1 and not bias:  # with distinct weights
                    target[0].weight.data = torch.arange(1.0, k + 1, dtype=F64)[:, None]
                wide = TwoLayer(d, 3 * k, bias=bias)
                assert int(optimistic_sample_size(wide, target)) == k * (d + 1 + bias)

    @pytest.mark.parametrize(
        ("alpha", "gamma", "d", "m", "expected"),
        [
            ((1, 3), 2, 3, 3, 11),
            ((1, 3), -3, 2, 2, 8),
            ((1, 3), -4, 2, 2, 8),
            ((1, 3), 2, 2, 2, None),
            ((), 0, 2, 2, 1),
            ((), 5, 2, 1, 3),
        ],
    )
    def test_sigmoid(
        self, alpha: tuple[int, ...], gamma: int, d: int, m: int, expected: int | None
    ) -> None:
        planes = ((1, 0, 2, 1), (0, 1, 1, -1), (1, 1, 1, 0))
        case = Setting(
            "sigmoid",
            tuple((*p[:d], p[3]) for p in planes[: max(len(alpha), 1)]),
            tuple((a,) for a in alpha),
            ((*[Fraction(0)] * d, Fraction(gamma)),),
            m,
            bias=True,
            output_bias=False,
        )
        found = optimum(case)
        assert (None if found is None else int(found)) == expected
        assert smallest(case)[0] == (-1 if expected is None else expected)

    def test_sine(self) -> None:
        """(d + 2) for each direction, for any phases."""
        w, half, one = [1.0, 2.0], [0.5, 1.0], [1.0]
        back = [-1.0, -2.0]
        neurons = [(w, 0.0, one), (back, 1.0, [2.0]), (w, 0.5, one), (half, 0.25, one)]
        target = build("sin", neurons)
        assert int(model_rank_of_function(target)) == 2 * 4
        assert int(tangent_dimension(target)) == 4 + 2 * 1 + 2 * 2
        zero = build("sin", [(w, 0.0, one), (back, 0.0, one)])  # sin z + sin(-z)
        assert int(model_rank_of_function(zero)) == 0

    @pytest.mark.parametrize("seed", range(random_cases(220)))
    def test_minimum_over_representations(self, seed: int) -> None:
        case = random_setting(seed)
        found, (least, _, count) = optimum(case), smallest(case)
        if found is None:
            assert count == 0
            return
        assert count > 0
        assert found.lower <= least <= found.upper

    @pytest.mark.parametrize("act", ANALYTIC)
    def test_only_the_function_counts(self, act: str) -> None:
        """Splits, cancelling pairs, reflections and scales do not change the model rank."""
        for seed in range(random_cases(12)):
            chance = random.Random(f"{act} {seed}")
            model = random_two_layer(act, seed)
            wide = TwoLayer(
                model[0].in_features,
                model[0].out_features + 4,
                model[2].out_features,
                activation=act,
                bias=model[0].bias is not None,
                output_bias=model[2].bias is not None,
            )
            before = optimistic_sample_size(wide, model)
            for _ in range(2):
                other = rewritten(model, act, chance)
                x = generic_samples(40, wide[0].in_features)
                assert torch.allclose(other(x), model(x), atol=1e-11)
                after = model_rank_of_function(other)
                if before.exact and after.exact:
                    assert int(before) == int(after)
                assert max(before.lower, after.lower) <= min(before.upper, after.upper)
                assert before.lower <= tangent_dimension(other).lower

    @pytest.mark.parametrize("act", ANALYTIC)
    def test_certified_at_a_representative(self, act: str) -> None:
        """The rank of distinct neurons, on samples, is the model rank of their function."""
        for seed, bias in product(range(3), (True, False)):
            d, k, q = (2, 3, 1 + seed % 2)
            model = random_weights(TwoLayer(d, k, q, activation=act, bias=bias), seed)
            wide = TwoLayer(d, k + 3, q, activation=act, bias=bias)
            assert int(optimistic_sample_size(wide, model)) == certified(model, seed)


def rewritten(model: TwoLayer, act: str, chance: random.Random) -> TwoLayer:
    """Other parameters of the same function, with four more neurons."""
    hidden, last = model[0], model[2]
    m, d, q = hidden.out_features, hidden.in_features, last.out_features
    biases = [0.0] * m if hidden.bias is None else hidden.bias.tolist()
    neurons = list(zip(hidden.weight.tolist(), biases, last.weight.T.tolist(), strict=True))
    while len(neurons) < m + 4:
        kind = chance.choice(("split", "split", "spare", "cancel"))
        w = [chance.choice((1.0, 3.0, -2.0)) for _ in range(d)]
        b = 0.0 if hidden.bias is None else chance.choice((0.0, 0.25))
        a = [chance.choice((1.0, 0.5, 0.0)) for _ in range(q)]
        if kind == "spare":
            neurons.append((w, b, [0.0] * q))
        elif kind == "cancel" and len(neurons) < m + 3:
            neurons.append((w, b, a))
            if act in ("tanh", "erf", "sin"):
                neurons.append(([-u for u in w], -b, a))
            else:
                neurons.append((w, b, [-u for u in a]))
        elif kind == "split":
            w, b, a = neurons.pop(chance.randrange(len(neurons)))
            t = chance.choice((0.25, -1.0, 1.5, 1.0))
            scale = chance.choice((0.5, 4.0)) if act == "relu" else 1.0
            neurons.append((w, b, [(1 - t) * u for u in a]))
            neurons.append(([scale * u for u in w], scale * b, [t / scale * u for u in a]))
    c = None if last.bias is None else last.bias.tolist()
    return build(act, neurons, bias=hidden.bias is not None, output_bias=c)


class TestPolynomials:
    @pytest.mark.parametrize("bias", [True, False])
    def test_quadratic_forms(self, bias: bool) -> None:
        """z^2 makes quadratic forms in N variables; those of rank r take r N - r (r - 1) / 2, with r neurons.

        T is all products of a function in the span of the z_i with any other, which spans contain the r
        directions of the form.
        """
        for d, r, extra in product((1, 2, 3), (1, 2, 3), (0, 1, 2)):
            variables = d + bias
            if r > variables:
                continue
            g = torch.Generator().manual_seed(10 * d + r)
            size = r * variables - r * (r - 1) // 2
            rows = torch.eye(r, variables) * 4 + torch.randint(-1, 2, (r, variables), generator=g)
            neurons = [(row[:d].tolist(), float(row[-1]) * bias, [1.0]) for row in rows]
            # More neurons in the same span almost always give a form of rank r.
            for t in range(extra):
                row = rows[t % r] * 2 + rows[-1]
                neurons.append((row[:d].tolist(), float(row[-1]) * bias, [1.0]))
            model = build("z^2", neurons, bias=bias)
            found = model_rank_of_function(model)
            assert found.lower <= size <= found.upper
            assert found.upper == size  # the neurons span no more than the form
            assert tangent_dimension(model).upper == size
            if found.exact:
                assert int(found) == size

    def test_what_cancels(self) -> None:
        """Merged neurons count, neurons that cancel each other do not; and (3z)^2 counts as a neuron."""
        w, other = [1.0, 2.0], [2.0, -1.0]
        model = build("z^2", [(w, 0.5, [1.0]), (other, 0.0, [2.0]), (other, 0.0, [-2.0])])
        found = model_rank_of_function(model)
        assert found.upper == 3
        assert tangent_dimension(model).upper == 5
        assert found.lower <= 3
        text = str(found)
        assert "1 different neurons" in text or "1 neuron" in text
