"""Results of `check` for embeddings: the table of moves, mistakes planted in moves, unrelated networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from helpers.embedding_cases import (
    F64,
    certified,
    convolution,
    narrow_mlp,
    network,
    normal_samples,
    theta,
    wider,
)
from helpers.theory_cases import random_cases
from torch import nn

from llr.embedding import (
    Check,
    check,
    compatible,
    null,
    random_compatible,
    reduce,
    split,
    widen,
)
from llr.embedding.network import Spread
from llr.models import MatrixFactorization, Polynomial, TwoLayer

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

Move = Callable[[nn.Module], Any]


def samples(wide: nn.Module, d: int, seed: int = 1) -> torch.Tensor:
    """A few more samples than the wide network has parameters."""
    return normal_samples(len(theta(wide)) + 6, d, seed)


def checked(narrow: nn.Module, wide: nn.Module, d: int) -> Check:
    return check(narrow, wide, samples(wide, d))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TABLE: list[tuple[Move, Callable[[int, int], int], str]] = [
    (lambda m: split(m, 0, 1, 0.25), lambda *_: 0, ""),
    (lambda m: split(m, 0, 1, -1.5, sign=-1), lambda *_: 0, ""),
    (lambda m: null(m, 0), lambda *_: 0, ""),
    (lambda m: null(m, 0, bias=0.75), lambda *_: 0, ""),
    (
        lambda m: null(m, 0, bias=0.5, incoming=[0.5] * m[0].in_features),
        lambda _, n_out: n_out,
        "layer 0: neuron 2 is dead, but has new incoming weights: a new signal",
    ),
    (
        lambda m: null(m, 0, bias=0.5, outgoing=[1.0, -0.75, 2.0][: m[2].out_features]),
        lambda n_in, _: n_in,
        "layer 0: neuron 2 is constant, with outgoing weights that the next biases absorb: a new error",
    ),
    (
        lambda m: split(m, 0, 0, [0.5, -1.0, 2.0][: m[2].out_features]),
        lambda n_in, n_out: n_in + 1 if n_out > 1 else 0,
        "layer 0: neurons 0 and 2, copies of narrow neuron 0: different shares for different downstream",
    ),
]


class TestTable:
    """The moves and their effect on dim T, as listed in docs/theory.md."""

    @pytest.mark.parametrize("widths", [(1, 2, 2, 1), (2, 2, 3, 2), (1, 2, 1), (1, 2, 2, 2, 1)])
    @pytest.mark.parametrize(("move", "more", "reason"), TABLE)
    def test_moves(
        self, widths: tuple[int, ...], move: Move, more: Callable[[int, int], int], reason: str
    ) -> None:
        narrow, d = network(*widths).float().double(), widths[0]  # so that products are exact
        wide, _ = move(narrow)
        found, grown = checked(narrow, wide, d), more(d, widths[2])
        assert found.same_function
        assert (found.narrow.exact, found.wide.exact, found.joint.exact) == (True, True, True)
        assert found.narrow.lower == certified(narrow, d, 7) == len(theta(narrow))
        assert found.wide.lower == found.joint.lower == certified(wide, d, 7)
        assert found.wide.lower == found.narrow.lower + grown
        assert found.tangent == ("larger" if grown else "equal")
        assert (found.excess.lower, found.missing.upper) == (grown, 0)
        assert [r.startswith(reason) for r in found.reasons] == ([True] if grown else [])
        assert bool(found) is not bool(grown)
        # Critical for all targets if and only if no direction is new.
        assert found.critical is not bool(grown)
        assert found.narrow_gradient < 1e-14

    @pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu"])
    def test_constants_in_single_precision(self, activation: str) -> None:
        # s(b) is not a float32 number, so it is rounded in the next biases.
        narrow = network(2, 2, 2, 1, activation=activation).float()
        wide, _ = null(narrow, 0, bias=0.5, outgoing=[1.0, -0.75])
        found = checked(narrow, wide, 2)
        assert found.same_function
        assert not found.proved_same
        assert found.verdict == "larger by 2"
        # If the error is larger than rounding, the network is another function.
        with torch.no_grad():
            wide[2].bias[0] += 1e-3
        other = check(narrow, wide, normal_samples(50, 2))
        assert not other.same_function
        assert other.tangent == "neither"

    def test_a_constant_before_a_layer_without_biases(self) -> None:
        narrow = nn.Sequential(
            nn.Linear(2, 2, dtype=F64), nn.Tanh(), nn.Linear(2, 3, bias=False, dtype=F64)
        )
        found = checked(narrow, null(narrow, 0, bias=0.5)[0], 2)
        assert found.verdict == "larger by 3"
        assert found.reasons == (
            "layer 0: neuron 2 sends a constant to a layer without biases: a new signal",
        )
        assert checked(narrow, null(narrow, 0)[0], 2)

    @pytest.mark.parametrize(
        ("move", "more", "reason"),
        [
            (lambda m: split(m, 0, 0, 2.0, -1), 0, ""),
            (lambda m: null(m, 0), 0, ""),
            (lambda m: split(m, 0, 0, [0.5, -1.0, 2.0]), 3, "different positions, new errors"),
            (lambda m: null(m, 0, incoming=[1.0, 2.0, 3.0]), 3, "channel 1 is dead"),
            (lambda m: null(m, 0, outgoing=[1.0, 0.0, 0.0]), 3, "channel 1 is constant"),
        ],
    )
    def test_channels(self, move: Move, more: int, reason: str) -> None:
        narrow = convolution(5, 3, 1)
        found = checked(narrow, move(narrow)[0], 5)
        assert (found.narrow.lower, found.wide.lower) == (6, 6 + more)
        assert found.verdict == (f"larger by {more}" if more else "equal")
        assert reason in "".join(found.reasons)
        assert found.critical is not bool(more)

    def test_random_embeddings(self) -> None:
        for seed in range(random_cases(6)):
            narrow = narrow_mlp(seed)
            d = narrow[0].in_features
            for embed in (widen, random_compatible):
                wide, embedding = embed(narrow, wider(narrow, seed), generator(seed))
                found = checked(narrow, wide, d)
                assert found.proved_same, str(embedding)
                assert found.tangent == "equal", str(embedding)
                assert found.wide.lower == found.narrow.lower, str(embedding)
                assert found.critical is not False, str(embedding)

    def test_reductions(self) -> None:
        # In the opposite direction: the reduction is the narrow network.
        narrow = network(2, 2, 3, 1)
        wide = null(widen(narrow, [2, 4, 4, 1], generator())[0], 1, incoming=[1.0] * 4)[0]
        found = checked(reduce(wide).model, wide, 2)
        assert found.proved_same
        assert found.verdict == "larger by 1"


Mutant = Callable[[dict[tuple[str, int], Spread]], None]


def factor(key: tuple[str, int], change: Callable[[torch.Tensor], torch.Tensor]) -> Mutant:
    """A mutant with another factor of the narrow parameters."""

    def mutate(spreads: dict[tuple[str, int], Spread]) -> None:
        if key in spreads:
            spreads[key] = spreads[key]._replace(factor=change(spreads[key].factor.clone()))

    return mutate


def shift(key: tuple[str, int], change: Callable[[torch.Tensor], torch.Tensor]) -> Mutant:
    """A mutant with another constant."""

    def mutate(spreads: dict[tuple[str, int], Spread]) -> None:
        if key in spreads:
            spreads[key] = spreads[key]._replace(shift=change(spreads[key].shift.clone()))

    return mutate


def at(index: Any, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(t: torch.Tensor) -> torch.Tensor:
        t[index] = value
        return t

    return change


def one_row_split_elsewhere(t: torch.Tensor) -> torch.Tensor:
    """Move half of the last share to the first, in the first row only: the sum stays the same."""
    if t.shape[1] > 2:
        t[0, 0], t[0, -1] = t[0, 0] + t[0, -1] / 2, t[0, -1] / 2
    return t


SPLIT = lambda m: split(m, 0, 0, 0.25, -1)  # noqa: E731
HEARD = lambda m: null(m, 0, bias=0.5, outgoing=[1.0, 2.0])  # noqa: E731
WIDEN = lambda m: widen(m, [1, 4, 3, 1], generator(2))  # noqa: E731

# The move, the mistake that is planted in it, and whether it changes the function or only the tangent space.
MUTANTS: dict[str, tuple[Move, Mutant, str]] = {
    "weights are not divided": (SPLIT, factor(("weight", 1), at((..., 0), 1.0)), "function"),
    "the copy is not reflected": (SPLIT, factor(("weight", 0), torch.abs), "function"),
    "its bias is not": (SPLIT, factor(("bias", 0), torch.abs), "function"),
    "what it sends is not": (SPLIT, factor(("weight", 1), torch.abs), "function"),
    "its bias is 0": (SPLIT, factor(("bias", 0), at(-1, 0.0)), "function"),
    "its bias is a little off": (SPLIT, shift(("bias", 0), at(-1, 2.0**-30)), "function"),
    "shares differ": (
        lambda m: split(m, 0, 0, 0.5),
        lambda s: [factor(("weight", 1), at((0, i), v))(s) for i, v in ((0, 0.25), (-1, 0.75))],
        "tangent",
    ),
    "shares differ a little": (
        lambda m: split(m, 0, 0, 0.5),
        lambda s: [
            factor(("weight", 1), at((0, i), 0.5 + v))(s) for i, v in ((0, 2**-9), (-1, -(2**-9)))
        ],
        "tangent",
    ),
    "a null neuron hears": (
        lambda m: null(m, 0),
        shift(("weight", 0), at(-1, 0.5)),
        "tangent",
    ),
    "a null neuron is heard": (
        lambda m: null(m, 0, bias=0.5),
        shift(("weight", 1), at((..., -1), 1.0)),
        "function",
    ),
    "a null neuron is a copy": (
        lambda m: null(m, 0),
        factor(("weight", 0), at(-1, 1.0)),
        "tangent",
    ),
    "constants are absorbed twice": (HEARD, shift(("bias", 1), lambda t: 2 * t), "function"),
    "constants are added": (HEARD, shift(("bias", 1), torch.neg), "function"),
    "constants are not absorbed": (HEARD, shift(("bias", 1), torch.zeros_like), "function"),
    "widen forgets biases": (WIDEN, factor(("bias", 0), at(-1, 0.0)), "function"),
    "widen has two shares": (WIDEN, factor(("weight", 1), one_row_split_elsewhere), "function"),
    "widen does not divide": (WIDEN, factor(("weight", 2), torch.ones_like), "function"),
}
CHANNEL_MUTANTS: dict[str, tuple[Move, Mutant, str]] = {
    "weights are not divided": MUTANTS["weights are not divided"],
    "the copy is not reflected": MUTANTS["the copy is not reflected"],
    "shares differ": MUTANTS["shares differ"],
    "a null channel hears": MUTANTS["a null neuron hears"],
    "a null channel is heard": (
        lambda m: null(m, 0),
        shift(("weight", 1), at((..., -1), 1.0)),
        "tangent",
    ),
    "widen does not divide": (
        lambda m: widen(m, 4, generator()),
        factor(("weight", 1), torch.ones_like),
        "function",
    ),
}


class TestPlantedMistakes:
    """`check` finds planted mistakes in moves."""

    def found(
        self, narrow: nn.Module, move: Move, mutate: Mutant | None, d: int
    ) -> tuple[Check, bool]:
        """The verdict, and whether the mistake had an effect."""
        moves = import_module("llr.embedding.moves")
        embed = moves.embed
        right = move(narrow)[0]

        def wrong(net: Any, spreads: Any, *steps: str) -> Any:
            spreads = dict(spreads)
            mutate(spreads)
            return embed(net, spreads, *steps)

        if mutate is None:
            return checked(narrow, right, d), False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moves, "embed", wrong)
            wide = move(narrow)[0]
        return checked(narrow, wide, d), not torch.equal(theta(right), theta(wide))

    @pytest.mark.parametrize("name", MUTANTS)
    def test_neurons(self, name: str) -> None:
        move, mutate, what = MUTANTS[name]
        narrow = network(1, 2, 2, 1).float().double()
        found, changed = self.found(narrow, move, mutate, 1)
        assert changed
        assert not found
        assert found.same_function is (what != "function")
        assert found.tangent != "equal"
        if move is not HEARD:  # its tangent space is larger even without a mistake
            assert self.found(narrow, move, None, 1)[0]

    @pytest.mark.parametrize("name", CHANNEL_MUTANTS)
    def test_channels(self, name: str) -> None:
        move, mutate, what = CHANNEL_MUTANTS[name]
        narrow = convolution(5, 3, 2).float().double()
        found, changed = self.found(narrow, move, mutate, 5)
        assert changed
        assert not found
        assert found.same_function is (what != "function")
        assert self.found(narrow, move, None, 5)[0]

    def test_compatible(self, monkeypatch: pytest.MonkeyPatch) -> None:
        narrow = network(1, 1, 1, 1)
        with torch.no_grad():
            narrow[2].weight.fill_(1.5)
        origins, kappas = [[0, 0], [0, 0]], [[0.5, 0.5], [0.25, 0.75]]
        signals = [[1.5, 1.0], [0.75, 0.75]]
        errors = [[0.75, 0.75], [0.75, 1.0]]
        right = [[1.5, 0.0], [0.5, 1.0]]

        def wide(block: list[list[float]]) -> nn.Module:
            between = [torch.tensor(block, dtype=F64)]
            return compatible(narrow, origins, kappas, between)[0]

        assert checked(narrow, wide(right), 1)
        module = import_module("llr.embedding.compatible")
        monkeypatch.setattr(module, "_check_block", lambda *_: None)
        for block in (signals, errors):
            assert not checked(narrow, wide(block), 1).same_function

    def test_errors_of_copies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Shifts that keep signals but ignore the shares: two downstream neurons get different errors.
        narrow = network(1, 2, 2, 1).float().double()
        module = import_module("llr.embedding.compatible")
        draw = module._random_shift

        def forget(net: Any, layer: int, above: Any, below: Any, generator: Any) -> torch.Tensor:
            ones = torch.ones_like(above.kappas)
            return draw(net, layer, above._replace(kappas=ones), below, generator)

        seeds = range(6)
        assert all(
            checked(narrow, random_compatible(narrow, [1, 4, 4, 1], generator(s))[0], 1)
            for s in seeds
        )
        monkeypatch.setattr(module, "_random_shift", forget)
        verdicts = [
            checked(narrow, random_compatible(narrow, [1, 4, 4, 1], generator(s))[0], 1)
            for s in seeds
        ]
        assert all(found.same_function for found in verdicts)
        assert sum(found.tangent == "larger" for found in verdicts) >= 3
        assert all(found.reasons for found in verdicts if found.tangent == "larger")


class TestReport:
    """The report of a check, and the arguments that it refuses."""

    def test_targets(self) -> None:
        # With the caller's targets, the residual is the narrow network's, changed so that it is critical.
        narrow = network(1, 2, 1)
        wide = null(narrow, 0, incoming=[0.5])[0]
        x = samples(wide, 1)
        found = check(narrow, wide, x, x.sin())
        assert found.critical is False
        # With a perfect fit, all networks are critical, so there is no information.
        assert check(narrow, wide, x, narrow(x).detach()).critical is None

    def test_too_few_samples(self) -> None:
        narrow = network(1, 2, 2, 1)
        wide = widen(narrow, [1, 3, 3, 1], generator())[0]
        found = check(narrow, wide, normal_samples(5, 1))
        # In symbols the spaces are equal for all samples; their dimension is not determined.
        assert found.tangent == "equal"
        assert str(found.narrow) == "5 to 13"
        assert found.critical is None
        assert "too few samples for criticality" in str(found)
        other = check(narrow, network(1, 3, 2, 1, seed=4), normal_samples(5, 1))
        assert other.tangent == "undecided"
        assert "there are 5 observations, and the dimensions may be" in other.verdict

    def test_strangers(self) -> None:
        found = checked(network(2, 2, 1), network(2, 3, 1, seed=9), 2)
        assert not found.same_function
        assert found.verdict.startswith("neither contains the other: ")
        assert str(found).startswith("different functions, criticality lost")
        shallow = checked(network(2, 2, 1), network(2, 2, 2, 1, seed=9), 2)
        assert shallow.tangent == "neither"
        assert shallow.reasons == ()

    def test_smaller(self) -> None:
        narrow, d = network(2, 2, 1), 2
        wide = null(narrow, 0, incoming=[1.0, 0.5])[0]
        found = checked(wide, narrow, d)
        assert found.verdict == "smaller by 1"
        assert found.critical

    def test_json(self) -> None:
        narrow = network(1, 2, 1)
        plain = json.loads(json.dumps(checked(narrow, null(narrow, 0)[0], 1).to_dict()))
        assert plain["verdict"] == "equal"
        assert plain["narrow"] == {"lower": 7, "upper": 7}

    def test_refused(self) -> None:
        narrow = network(2, 2, 1)
        wide, x = split(narrow, 0, 0)[0], normal_samples(12, 2)
        wrong: list[tuple[tuple[Any, ...], type[Exception], str]] = [
            ((narrow, network(3, 2, 1), x), ValueError, "2 inputs and 1 outputs, wide 3 and 1"),
            ((nn.LSTM(2, 1), wide, x), ValueError, r"llr\.model_rank\(model\)"),
            ((narrow, MatrixFactorization(2, 1, 2), x), ValueError, r"llr\.model_rank\(model\)"),
            ((narrow, wide, x[:, :1]), ValueError, r"x has shape \(12, 1\); expected \(n, 2\)"),
            ((narrow, wide, x[:0]), ValueError, "at least one sample"),
            ((narrow, wide, x / 0), ValueError, "x has NaN or infinity"),
            ((narrow, wide, x.long()), TypeError, "expected a floating-point tensor of samples"),
            ((narrow, wide, x, x), ValueError, r"y has shape \(12, 2\); expected \(12, 1\)"),
            ((narrow, wide, x, x[:, :1] * torch.nan), ValueError, "y has NaN"),
            ((torch.tanh, wide, x), TypeError, r"expected an nn\.Module"),
        ]
        for arguments, error, message in wrong:
            with pytest.raises(error, match=message):
                check(*arguments)
        with torch.no_grad():
            wide[0].weight[0, 0] = torch.nan
        with pytest.raises(ValueError, match=r"'0\.weight' is nan"):
            check(narrow, wide, x)

    def test_samples_on_a_kink(self) -> None:
        # For x != 0, the slopes of both neurons add up to the output bias's derivative: H(x) + H(-x) = 1.
        narrow = TwoLayer.of(
            torch.tensor([[1.0], [-1.0]], dtype=F64),
            torch.zeros(2, dtype=F64),
            torch.ones(2, 1, dtype=F64),
            torch.zeros(1, dtype=F64),
            activation="relu",
        )
        wide, x = split(narrow, 0, 0)[0], torch.linspace(-1, 1, 20, dtype=F64)[:, None]
        assert check(narrow, wide, x).narrow.lower == 4
        with pytest.raises(
            ValueError, match=r"on sample 20 neuron 0 .* has z = 0, the kink of ReLU"
        ):
            check(narrow, wide, torch.cat((x, 0 * x[:1])))

    def test_polynomials(self) -> None:
        narrow = TwoLayer(2, 2, activation=Polynomial([0, 1, 0, 2])).double()
        assert checked(narrow, split(narrow, 0, 1, sign=-1)[0], 2)
