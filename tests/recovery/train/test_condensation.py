"""Condensation of planted clusters, and in training where it is known to occur."""

from __future__ import annotations

import json
import math
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

import llr
from llr.models import ACTIVATIONS, Conv1dTwoLayer, TwoLayer, mlp
from llr.recovery.train import (
    GD,
    Condensation,
    Flow,
    condensation,
    initial,
    merge,
    tangent_rank,
    train,
)
from llr.theory import tangent_dimension

F64 = torch.float64

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

ODD = ("tanh", "erf", "sin", "identity")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def row(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def split(model: TwoLayer, parts: list[int], odd: bool, seed: int = 0) -> TwoLayer:
    """The same function with each neuron split into several, with random signs if `odd`."""
    g = torch.Generator().manual_seed(seed)
    w, b = model[0].weight.detach(), model[0].bias.detach()
    a = model[2].weight.detach().T
    ws, bs, outgoing = [], [], []
    for i, n in enumerate(parts):
        shares = torch.rand(n, generator=g, dtype=F64) + 0.5
        signs = 2.0 * torch.randint(0, 2, (n,), generator=g).to(F64) - 1 if odd else torch.ones(n)
        for share, sign in zip(shares / shares.sum(), signs, strict=True):
            ws.append(sign * w[i])
            bs.append(sign * b[i])
            outgoing.append(sign * share * a[i])
    order = torch.randperm(len(ws), generator=g)
    return TwoLayer.of(
        torch.stack(ws)[order].to(F64),
        torch.stack(bs)[order].to(F64),
        torch.stack(outgoing)[order],
        model[2].bias,
        activation=model[1],
    )


def target(activation: str, q: int = 2, output_bias: bool = True) -> TwoLayer:
    model = TwoLayer(3, 3, q, activation=activation, output_bias=output_bias, dtype=F64)
    nn.utils.vector_to_parameters(
        initial(model, 1, generator=torch.Generator().manual_seed(1))[0], model.parameters()
    )
    return model


class TestPlanted:
    """Networks whose clusters are known."""

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_split_neurons(self, activation: str) -> None:
        odd = activation in ODD
        narrow, parts = target(activation), [1, 4, 3]
        wide = split(narrow, parts, odd)
        found = condensation(wide, angle=1e-6)
        assert int(found.effective) == 3
        assert sorted(torch.bincount(found.labels).tolist()) == [1, 3, 4]
        once = condensation(narrow, angle=1e-6)
        torch.testing.assert_close(found.shares[:3].sort().values, once.shares.sort().values)
        torch.testing.assert_close(found.participation, once.participation)
        torch.testing.assert_close(found.direction_spread, once.direction_spread)
        assert float(found.norm_spread.max()) < 1e-7
        # In a cluster all directions are the same, including the sign.
        for label in range(3):
            inside = found.directions[found.labels == label]
            torch.testing.assert_close(inside, inside[:1].expand_as(inside))

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_opposite_neurons(self, activation: str) -> None:
        w = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=F64)
        found = condensation(
            TwoLayer.of(w, None, torch.ones(2, 1, dtype=F64), activation=activation)
        )
        assert int(found.effective) == (1 if activation in ODD else 2)
        assert float(found.direction_spread) == pytest.approx(
            0.0 if activation in ODD else 1.0, abs=1e-12
        )

    def test_numbers_by_hand(self) -> None:
        w = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=F64)
        a = torch.tensor([[1.0], [-1.0], [0.5], [7.0]], dtype=F64)
        found = condensation(TwoLayer.of(w, None, a))
        assert found.norms.tolist() == [3, 1, 2, 0]
        assert found.masses.tolist() == [3, 1, 1, 0]
        assert found.labels.tolist()[:3] == [0, 0, 1]
        assert found.shares.tolist() == pytest.approx([0.8, 0.2, 0, 0])
        assert float(found.participation) == pytest.approx(1 / (0.64 + 0.04))
        assert float(found.direction_spread) == pytest.approx(0.2)
        mean = (3 * 3 + 1 * 1) / 4
        spread = math.sqrt((3 * (3 - mean) ** 2 + (1 - mean) ** 2) / 4) / mean
        assert found.norm_spread.tolist() == pytest.approx([spread, 0, 0, 0])
        assert int(found.effective) == 2
        assert int(condensation(TwoLayer.of(w, None, a), share=0.3).effective) == 1

    def test_angle(self) -> None:
        at = torch.tensor([0.0, 0.05, 0.3], dtype=F64)
        w = torch.stack([at.cos(), at.sin()], 1)
        model = TwoLayer.of(w, None, torch.tensor([[3.0], [1.0], [1.0]], dtype=F64))
        counts = {a: int(condensation(model, angle=a).effective) for a in (0.04, 0.06, 0.29, 0.31)}
        assert counts == {0.04: 3, 0.06: 2, 0.29: 2, 0.31: 1}

    def test_biases_turn_directions(self) -> None:
        w, a = torch.ones(2, 1, dtype=F64), torch.ones(2, 1, dtype=F64)
        assert int(condensation(TwoLayer.of(w, torch.zeros(2, dtype=F64), a)).effective) == 1
        b = torch.tensor([0.0, 1.0], dtype=F64)
        assert int(condensation(TwoLayer.of(w, b, a)).effective) == 2

    def test_no_mass(self) -> None:
        found = condensation(TwoLayer.of(torch.ones(3, 2), None, torch.zeros(3, 1)))
        assert (int(found.effective), float(found.participation)) == (0, 0.0)
        assert bool((found.shares == 0).all())
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["labels"] == [0, 0, 0]

    def test_layers_and_batches(self) -> None:
        model = mlp([2, 4, 5, 1])
        theta = initial(model, 6, generator=torch.Generator().manual_seed(0)).reshape(2, 3, -1)
        for layer, (m, d) in enumerate([(4, 3), (5, 5)]):
            found = condensation(model, theta, layer=layer)
            assert found.directions.shape == (2, 3, m, d)
            assert found.effective.shape == found.participation.shape == (2, 3)
            for i, j in ((0, 0), (1, 2)):
                one = condensation(model, theta[i, j], layer=layer)
                for name in Condensation.__dataclass_fields__:
                    torch.testing.assert_close(getattr(one, name), getattr(found, name)[i, j])
        copy = mlp([2, 4, 5, 1]).double()
        nn.utils.vector_to_parameters(theta[1, 2], copy.parameters())
        own, given = condensation(copy, layer=1), condensation(model, theta[1, 2], layer=1)
        assert torch.equal(own.directions, given.directions)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layer": 1}, "layer is 1, but a 2-3-1 tanh MLP has 1 hidden layers"),
            ({"layer": -1}, "layer is -1"),
            ({"angle": 0.0}, "angle is 0.0"),
            ({"angle": 2.0}, "angle is 2.0"),
            ({"share": 1.0}, "share is 1.0"),
            ({"theta": torch.zeros(4, 12)}, r"theta has shape \(4, 12\); expected \(..., 13\)"),
            ({"theta": torch.full((13,), math.nan)}, "theta has 13 NaN"),
            ({"model": Conv1dTwoLayer(3, 2, 1)}, "Conv1dTwoLayer is none"),
            ({"model": nn.Linear(2, 1)}, "has 0 hidden layers"),
        ],
    )
    def test_bad_input(self, options: dict, message: str) -> None:
        options = {"model": mlp([2, 3, 1]), **options}
        with pytest.raises(ValueError, match=message):
            condensation(options.pop("model"), **options)


class TestMerge:
    """Narrower networks with the same function."""

    @pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "identity"])
    def test_split_neurons(self, activation: str) -> None:
        narrow = target(activation)
        wide = split(narrow, [2, 1, 5], activation in ODD)
        merged, x = merge(wide, angle=1e-6), randn(50, 3)
        assert merged[0].weight.shape == (3, 3)
        torch.testing.assert_close(merged(x), narrow(x), rtol=1e-12, atol=1e-12)
        assert int(tangent_dimension(merged)) == int(tangent_dimension(narrow))

    def test_homogeneous(self) -> None:
        # A hinge merges with others of other norms.
        w = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=F64)
        model = TwoLayer.of(w, None, torch.tensor([[2.0], [0.5]], dtype=F64), activation="relu")
        merged, x = merge(model, angle=1e-6), randn(20, 2)
        assert merged[0].weight.shape == (1, 2)
        torch.testing.assert_close(merged(x), model(x))

    def test_first_order(self) -> None:
        w = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=F64)
        model = TwoLayer.of(w, None, torch.tensor([[2.0], [-0.5]], dtype=F64))
        merged = merge(model)
        x = 1e-4 * randn(20, 2)
        torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=0)

    def test_heaviest(self) -> None:
        narrow = target("tanh", 1)
        wide = split(narrow, [3, 2, 2], True)
        heaviest = narrow[0].weight[condensation(narrow).masses.argmax()]
        merged = merge(wide, angle=1e-6, width=1)
        assert merged[0].weight.shape == (1, 3)
        torch.testing.assert_close(merged[0].weight[0].abs(), heaviest.abs())
        shares = condensation(narrow).shares.sort().values
        cut = float(shares[:2].mean())
        assert merge(wide, angle=1e-6, share=cut)[0].weight.shape == (2, 3)

    def test_parameters_of_a_template(self) -> None:
        model = split(target("tanh"), [2, 2, 1], True)
        template = TwoLayer(3, 5, 2, output_bias=True)
        for ours, theirs in zip(
            merge(template, row(model)).parameters(), merge(model).parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)

    def test_bad_input(self) -> None:
        model = TwoLayer(2, 3)
        with pytest.raises(ValueError, match="width is 0"):
            merge(model, width=0)
        with pytest.raises(ValueError, match="expected one hidden layer"):
            merge(mlp([2, 3, 3, 1]))
        with pytest.raises(ValueError, match=r"one parameter point \(P,\)"):
            merge(model, initial(model, 2))
        with pytest.raises(ValueError, match="nothing to merge"):
            merge(model, torch.zeros(12))


class TestTraining:
    """The effect of small initialisation on a wide tanh network with a one-neuron target."""

    d, m, n = 3, 20, 24
    model = TwoLayer(d, m, bias=False)
    w = torch.tensor([[1.0, -0.5, 0.8]], dtype=F64)
    x = randn(n, d, seed=1)
    y = 1.5 * torch.tanh(x @ w.T)
    points = randn(200, d, seed=2)

    def starts(self, scale: float, count: int = 4) -> Tensor:
        return initial(self.model, count, scale=scale, generator=torch.Generator().manual_seed(3))

    def test_condenses_from_small_parameters_only(self) -> None:
        # While neurons are linear, d a/dt = v.w and d w/dt = a v, where v is the mean of y x: all turn to v.
        v = (self.y * self.x).mean(0)
        time = math.log(1e6) / float(v.norm())
        small = train(self.model, self.starts(1e-8), self.x, self.y, method=Flow(time))
        found = condensation(self.model, small.theta)
        assert found.effective.tolist() == [1] * 4
        assert float(found.direction_spread.max()) < 1e-3
        turned = (found.directions @ v / v.norm()).abs()
        assert float(((1 - turned) * found.masses).sum() / found.masses.sum()) < 1e-3
        large = train(self.model, self.starts(1.0), self.x, self.y, method=Flow(time))
        found = condensation(self.model, large.theta)
        assert int(found.effective.min()) > 5
        assert float(found.direction_spread.min()) > 0.2

    def test_rank_along_the_trajectory(self) -> None:
        method = GD(momentum=0.9)
        found = train(
            self.model, self.starts(1e-6), self.x, self.y, method=method, steps=300, record=12
        )
        assert found.history is not None
        ranks = tangent_rank(self.model, found.history.theta, self.points, rtol=1e-3).rank
        assert isinstance(ranks, Tensor)
        assert ranks.shape == found.history.loss.shape
        # Small neurons are linear, and linear functions have d dimensions; each odd power adds d more.
        assert bool((ranks[0] == self.d).all())
        assert bool((ranks.cummax(0).values == ranks).float().mean() > 0.8)
        assert bool((ranks[-1] >= 3 * self.d).all())
        large = tangent_rank(self.model, self.starts(1.0), self.points, rtol=1e-3).rank
        assert isinstance(large, Tensor)
        assert bool((large > ranks[-1]).all())

    def test_equal_neurons_stay_equal(self) -> None:
        # As in the theory, copies have the tangent space of one neuron, of dimension d + 1.
        start = torch.cat(
            [
                0.1 * randn(1, self.d, seed=5).repeat(self.m, 1).flatten(),
                torch.full((self.m,), 0.1, dtype=F64),
            ]
        )
        found = train(
            self.model, start[None], self.x, self.y, method=GD(0.05, 0.9), steps=2000, record=6
        )
        assert found.history is not None
        assert float(found.relative) < 1e-3
        ranks = tangent_rank(self.model, found.history.theta[:, 0], self.points, rtol=1e-9).rank
        merged = merge(self.model, found.theta[0], angle=1e-6)
        assert merged[0].weight.shape == (1, self.d)
        expected = int(tangent_dimension(merged))
        assert expected == self.d + 1
        assert ranks.tolist() == [expected] * len(found.history.at)

    def test_train_wide_merge_train_narrow(self) -> None:
        wide = train(
            self.model,
            self.starts(1e-6),
            self.x,
            self.y,
            method=GD(momentum=0.9),
            steps=2000,
        )
        narrow = TwoLayer(self.d, 1, bias=False)
        starts = torch.stack([row(merge(self.model, theta, width=1)) for theta in wide.theta])
        found = train(
            narrow, starts, self.x, self.y, method=GD(momentum=0.9), steps=5000, tol=1e-22
        )
        assert found.status == ("converged",) * 4
        for theta in found.theta:
            sign = torch.sign(theta[-1])
            torch.testing.assert_close(sign * theta[:-1], self.w[0], rtol=1e-8, atol=1e-8)
            assert float(theta[-1].abs()) == pytest.approx(1.5, rel=1e-8)


class TestTangentRank:
    """Ranks at many points at once."""

    def test_single_points(self) -> None:
        model, x = mlp([2, 3, 1]), randn(30, 2)
        theta = initial(model, 6, generator=torch.Generator().manual_seed(0)).reshape(2, 3, -1)
        found = tangent_rank(model, theta, x)
        for i, j in combinations(range(3), 2):
            one = tangent_rank(model, theta[i % 2, j], x)
            copy = mlp([2, 3, 1]).double()
            nn.utils.vector_to_parameters(theta[i % 2, j], copy.parameters())
            assert one.rank == found.rank[i % 2, j] == llr.rank(copy, x).rank
            torch.testing.assert_close(one.spectrum, found.spectrum[i % 2, j])

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"theta has shape \(3,\)"):
            tangent_rank(mlp([1, 2, 1]), torch.zeros(3), randn(4, 1))
        with pytest.raises(TypeError, match="theta is str"):
            tangent_rank(mlp([1, 2, 1]), "0", randn(4, 1))
