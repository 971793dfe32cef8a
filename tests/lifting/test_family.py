"""The family of lifted networks: its condition, compared with certified ranks, and its record."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.theory_cases import random_cases
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from llr.landscape import critical_targets, criticality, embedded_spectrum
from llr.lifting import Lift, family, lift_status, lifted_family
from llr.models import mlp

from .cases import (
    F64,
    built,
    dyadic,
    gradient,
    holds,
    linears,
    member,
    normal,
    quarters,
    reading,
    tables,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

SHAPES = [
    (1, 2, 2, 1),
    (1, 2, 2, 2),
    (2, 1, 2, 1),
    (2, 2, 3, 1),
    (1, 3, 1, 2),
    (1, 2, 2, 1, 1),
    (1, 1, 2, 2, 1),
]


def random_member(seed: int) -> tuple[nn.Sequential, dict[str, Any]]:
    """A narrow network, and arguments: in half of the cases given by lambda, otherwise free."""
    chance = random.Random(seed)
    widths = SHAPES[seed % len(SHAPES)]
    layer = chance.randrange(len(widths) - 3)
    first, second = chance.randrange(widths[layer + 1]), chance.randrange(widths[layer + 2])
    activation = "tanh" if seed % 4 else chance.choice(["sigmoid", "gelu", "erf"])
    narrow = dyadic(*widths, activation=activation, seed=seed)
    if chance.random() < 0.1:
        linears(narrow)[layer + 1].weight.data[second, first] = 0
    place = {"layer": layer, "first": first, "second": second}
    # So that divisions by alpha are exact in float64.
    alpha = chance.choice([0.0, 0.25, 0.5, -1.0, 1.0, 2.0, -0.25])
    if chance.random() < 0.5:
        free = {"t" if alpha else "s": quarters(chance)}
        return narrow, place | {"alpha": alpha, "lam": quarters(chance, zero=True)} | free
    others = widths[layer + 2] - 1
    t = quarters(chance)
    s = t if chance.random() < 0.3 else quarters(chance)
    r = [quarters(chance, zero=True) for _ in range(others)]
    return narrow, place | {"alpha": alpha, "t": t, "s": s, "r": r}


def agrees(seed: int) -> bool:
    """Whether the record of a random member is right, by the definition and by certified ranks."""
    narrow, arguments = random_member(seed)
    wide, lift = lifted_family(narrow, **arguments)
    u, v = reading(narrow, lift.layer, lift.first, lift.second)
    numbers = [float(n) for n in (lift.alpha, lift.t, lift.s)]
    same = member(
        narrow,
        *numbers,
        [float(r) for r in lift.r],
        layer=lift.layer,
        first=lift.first,
        second=lift.second,
    )
    if not all(map(torch.equal, wide.parameters(), same.parameters())):
        return False
    if lift.contained != holds(u, v, *numbers, [float(r) for r in lift.r]):
        return False
    if "lam" in arguments and not lift.contained:
        return False
    status = lift_status(narrow, wide)
    return lift.exact and status.proved and status.contained == lift.contained


class TestCondition:
    def test_random_members(self) -> None:
        for seed in range(random_cases(56)):
            assert agrees(seed), seed

    def test_both_directions_occur(self) -> None:
        found = [lifted_family(net, **kw)[1].contained for net, kw in map(random_member, range(56))]
        assert 20 <= sum(found) <= 40

    # Wrong formulas for members by lambda: s + 1, r not times lambda, t + 1, shares exchanged.
    @pytest.mark.parametrize(
        "wrong",
        [
            lambda m: (m.t, m.s + 1, m.r),
            lambda m: (m.t, m.s, tuple(m.v)),
            lambda m: (m.t + 1, m.s, m.r),
            lambda m: (m.t, (m.lam * m.u - m.alpha * m.t) / (1 - m.alpha or 1), m.r),
        ],
    )
    def test_planted_members_are_caught(
        self, wrong: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        true = family._by_lambda

        def by_lambda(numbers: Any, r: Any, alpha: Any, u: Any, v: Any) -> Any:
            t, s, r = true(numbers, r, alpha, u, v)
            lam = numbers["lam"]
            return wrong(SimpleNamespace(t=t, s=s, r=r, lam=lam, alpha=alpha, u=u, v=v))

        monkeypatch.setattr(family, "_by_lambda", by_lambda)
        assert not all(agrees(seed) for seed in range(56))

    # Wrong searches for lambda: one that always exists, never for 0, or depends on the first row only.
    @pytest.mark.parametrize(
        "wrong",
        [
            lambda m: m.found or Fraction(0),
            lambda m: m.found if m.wide[0] else None,
            lambda m: m.wide[0] / m.narrow[0] if m.narrow[0] else m.found,
        ],
    )
    def test_planted_conditions_are_caught(
        self, wrong: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        true = family._lambda

        def lam(narrow: Any, wide: Any) -> Any:
            return wrong(SimpleNamespace(found=true(narrow, wide), narrow=narrow, wide=wide))

        monkeypatch.setattr(family, "_lambda", lam)
        assert not all(agrees(seed) for seed in range(56))

    def test_a_moved_share_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        true = family._Move.apply

        def apply(self: Any, *arguments: Any, **named: Any) -> Any:
            parts = true(self, *arguments, **named)
            parts[-2][:, [self.second, -1]] = parts[-2][:, [-1, self.second]]
            return parts

        monkeypatch.setattr(family._Move, "apply", apply)
        assert not all(agrees(seed) for seed in range(8))

    def test_critical_for_every_sample(self) -> None:
        narrow = dyadic(2, 2, 2, 1, seed=3)
        wide, lift = lifted_family(narrow, second=1, alpha=0.5, t=-1.5, lam=2)
        other, _ = lifted_family(narrow, second=1, alpha=0.5, t=lift.t, s=lift.s + 1, r=lift.r)
        for seed in range(3):
            x = normal(40, 2, seed)
            y = critical_targets(narrow, x, generator=torch.Generator().manual_seed(seed))
            assert gradient(wide, x, y) < 1e-12 < 1e-6 < gradient(other, x, y)
            assert criticality(wide, x, y)
            assert not criticality(other, x, y)


class TestRecord:
    def test_lambda(self) -> None:
        narrow = dyadic(1, 1, 1, 1)
        linears(narrow)[1].weight.data.fill_(1.5)
        assert lifted_family(narrow, alpha=0.25, t=1, s=-1)[1].lam == Fraction(1, 3)
        linears(narrow)[1].weight.data.fill_(0.0)
        assert lifted_family(narrow, alpha=0.25, t=1, s=-3)[1].lam == 0
        assert lifted_family(narrow, alpha=0.25, t=1, s=-1)[1].lam is None

    @pytest.mark.parametrize("layer", [0, 1])
    def test_matrix(self, layer: int) -> None:
        narrow = dyadic(2, 3, 2, 2, 1, seed=1)
        others = [0.5] if layer == 0 else [-0.25]
        wide, lift = lifted_family(
            narrow, layer=layer, first=1, second=1, alpha=0.25, t=1, s=2, r=others
        )
        theta = parameters_to_vector(narrow.parameters()).detach()
        assert torch.equal(
            lift.matrix @ theta + lift.constant, parameters_to_vector(wide.parameters())
        )
        # At any other parameters too the wide network represents the narrow one's function.
        moved = normal(1, len(theta))[0]
        vector_to_parameters(moved, narrow.parameters())
        vector_to_parameters(lift.matrix @ moved + lift.constant, wide.parameters())
        x = normal(20, 2)
        torch.testing.assert_close(wide(x), narrow(x), rtol=1e-12, atol=1e-12)

    def test_embedded_spectrum(self) -> None:
        narrow, x = dyadic(1, 2, 2, 1), normal(40, 1)
        wide, lift = lifted_family(narrow, alpha=0.25, t=2, lam=0.25)
        y = critical_targets(narrow, x, size=0.1)
        assert embedded_spectrum(narrow, wide, lift, x, y).mismatch < 1e-9

    def test_parameters_in_another_order(self) -> None:
        plain = dyadic(1, 2, 2, 1)

        class Reversed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.c, self.b, self.a = reversed(linears(plain))

            def forward(self, x: Tensor) -> Tensor:
                hidden = torch.tanh(self.b(torch.tanh(self.a(x))))
                return self.c(hidden)  # type: ignore[no-any-return]

        narrow = Reversed()
        wide, lift = lifted_family(narrow, alpha=0.25, t=2, lam=0.25)
        theta = parameters_to_vector(narrow.parameters()).detach()
        assert torch.equal(
            lift.matrix @ theta + lift.constant, parameters_to_vector(wide.parameters())
        )
        found = lift_status(narrow, wide)
        assert found.proved
        assert found

    @pytest.mark.parametrize("biases", [False, (True, False, True), (False, True, False)])
    def test_biases(self, biases: Any) -> None:
        narrow = dyadic(2, 2, 2, 1, biases=biases)
        wide, lift = lifted_family(narrow, alpha=0.25, t=2, lam=0.25)
        assert [m.bias is None for m in linears(wide)] == [m.bias is None for m in linears(narrow)]
        found = lift_status(narrow, wide)
        assert lift.contained
        assert found
        assert found.proved

    def test_float64_holds_float32(self) -> None:
        narrow = mlp([3, 4, 4, 1], "silu", generator=torch.Generator().manual_seed(0))
        wide, lift = lifted_family(
            narrow, first=3, second=2, alpha=0.25, t=0.5, s=2, r=[1, 0.25, -1]
        )
        assert lift.exact
        assert all(p.dtype == F64 for p in wide.parameters())
        found = lift_status(narrow, wide)
        assert (found.contained, found.proved, found.agreement) == (False, True, "exact")

    def test_to_rounding(self) -> None:
        narrow = mlp([1, 2, 2, 1], dtype=F64, generator=torch.Generator().manual_seed(0))
        wide, lift = lifted_family(narrow, alpha=Fraction(1, 3), t=0.1, lam=Fraction(1, 7))
        assert lift.contained
        assert not lift.exact
        assert str(lift).endswith("lambda = 1/7; to rounding")
        x = normal(20, 1)
        torch.testing.assert_close(wide(x), narrow(x), rtol=1e-14, atol=1e-14)
        found = lift_status(narrow, wide)
        assert found.contained is None
        assert found.distance is not None
        assert found.distance < 1e-12

    def test_flattening_models(self) -> None:
        plain = dyadic(2, 2, 2, 1)
        wide, _ = lifted_family(nn.Sequential(nn.Flatten(), *plain), alpha=0.5, t=1, lam=1)
        torch.testing.assert_close(wide(normal(5, 2)), plain(normal(5, 2)))

    def test_json(self) -> None:
        _, lift = lifted_family(dyadic(1, 2, 2, 1), alpha=0.25, t=2, lam=0.25)
        content = json.loads(json.dumps(lift.to_dict()))
        assert (content["alpha"], content["t"], content["lam"]) == ("1/4", "2", "1/4")
        assert content["exact"] is content["contained"] is True
        assert isinstance(lift, Lift)
        text = str(lift)
        assert text.startswith(
            "neuron 0 of hidden layer 0 and neuron 0 of the next layer duplicated, alpha = 1/4"
        )
        assert text.endswith("lambda = 1/4")

    def test_the_narrow_network_is_left_alone(self) -> None:
        narrow = dyadic(1, 2, 2, 1)
        before = tables(narrow)
        wide, _ = lifted_family(narrow, alpha=0.25, t=2, lam=0.25)
        assert tables(narrow) == before
        assert [len(W) for W, _ in tables(wide)] == [3, 3, 1]


NET = dyadic(1, 2, 2, 1)
ONE = dyadic(1, 1, 1, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lifted_family(torch.tanh, alpha=1, t=1, lam=1),
            TypeError,
            "expected an nn.Module",
        ),
        (
            lambda: lifted_family(dyadic(1, 2, 1), alpha=1, t=1, lam=1),
            ValueError,
            "narrow is a 1-2-1 tanh MLP; expected .* at least 2 hidden layers",
        ),
        (
            lambda: lifted_family(mlp([1, 2, 2, 1], "identity"), alpha=1, t=1, lam=1),
            ValueError,
            "linear map|identity",
        ),
        (
            lambda: lifted_family(NET, layer=1, alpha=1, t=1, lam=1),
            ValueError,
            "layer is 1; expected",
        ),
        (
            lambda: lifted_family(NET, first=2, alpha=1, t=1, lam=1),
            ValueError,
            "first is 2; expected",
        ),
        (lambda: lifted_family(NET, second=-1, alpha=1, t=1, lam=1), ValueError, "second is -1"),
        (lambda: lifted_family(NET, alpha=float("nan"), t=1, lam=1), ValueError, "alpha is nan"),
        (lambda: lifted_family(NET, alpha="1", t=1, lam=1), TypeError, "alpha is str"),
        (lambda: lifted_family(NET, alpha=True, t=1, lam=1), TypeError, "alpha is bool"),
        (lambda: lifted_family(NET, alpha=1), ValueError, "t and s not given; expected t, s and r"),
        (
            lambda: lifted_family(NET, alpha=1, t=1, s=1),
            ValueError,
            "r not given; expected a number",
        ),
        (
            lambda: lifted_family(NET, alpha=1, t=1, s=1, r=[1, 2]),
            ValueError,
            "r has 2 numbers; expected 1",
        ),
        (
            lambda: lifted_family(NET, alpha=1, t=1, s=1, r=[float("inf")]),
            ValueError,
            r"r\[0\] is inf",
        ),
        (
            lambda: lifted_family(NET, alpha=1, t=1, s=1, lam=1),
            ValueError,
            "lam is given with s, which follows from lam; expected lam and t for alpha != 0",
        ),
        (lambda: lifted_family(NET, alpha=1, t=1, r=[1], lam=1), ValueError, "with r, which"),
        (
            lambda: lifted_family(NET, alpha=1, lam=1),
            ValueError,
            "t not given; expected it with lam",
        ),
        (
            lambda: lifted_family(NET, alpha=0, t=1, lam=1),
            ValueError,
            "with t, which follows from lam; expected lam and s for alpha = 0",
        ),
        (lambda: lifted_family(NET, alpha=0, lam=1), ValueError, "s not given"),
        (
            lambda: lifted_family(NET, alpha=1e-300, t=1e300, lam=1),
            ValueError,
            "beyond the largest float64",
        ),
        (
            lambda: lifted_family(
                built(NET, [([[float("nan")]], None), *tables(ONE)[1:]]), alpha=1
            ),
            ValueError,
            "is nan at index",
        ),
    ],
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
