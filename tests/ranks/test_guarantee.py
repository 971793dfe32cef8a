"""Which samples attain a model's rank: the guarantee, and the shortest prefix that has it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from llr import model_rank
from llr.ranks.guarantee import has_llr_guarantee, llr_sample_size

from .certificates.test_certify import random_net
from .test_model_rank import F64, TWO, Entries
from .test_rank import DEGENERATE, W1, W2, samples, two_layer

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestSampleSizes:
    """Which prefixes of a sample have the guarantee."""

    SPLIT = (
        # (d, model of P parameters, P, dim T)
        (1, [([0.9], 0.3, 0.5)] * 3 + [([-1.7], 0.4, 1.5)] * 2, {}, 15, 6),
        (2, [(W1, 0.3, 0.5)] * 2 + [(W2, -0.7, 1.5)] * 2, {}, 16, 8),
        (3, [([0.9, -1.3, 0.5], 0.0, 0.5)] * 3, {"beta": False}, 12, 4),
    )

    @pytest.mark.parametrize(("d", "neurons", "options", "P", "dim"), SPLIT)
    @pytest.mark.parametrize("certify", ["auto", False])
    def test_scalar(
        self,
        d: int,
        neurons: list[Any],
        options: dict[str, Any],
        P: int,
        dim: int,
        certify: bool | str,
    ) -> None:
        model = two_layer([(w, b, [a]) for w, b, a in neurons], **options)
        x = samples(dim + 1, d, seed=3)
        found = model_rank(model, certify=certify)
        assert (found.n_params, found.rank, found.n_samples) == (P, dim, dim)
        for n, expected in ((dim - 1, dim - 1), (dim, dim), (dim + 1, dim)):
            verdict = has_llr_guarantee(model, x[:n], model_rank=found, certify=certify)
            assert bool(verdict) == verdict.holds == (n >= dim)
            assert (verdict.rank, verdict.model_rank) == (expected, dim)
            size = llr_sample_size(model, x[:n], model_rank=found, certify=certify)
            assert size == (dim if n >= dim else None)

    @pytest.mark.parametrize(
        ("alphas", "ranks", "size"),
        [
            (([1.0, 2.0], [3.0, -1.0]), (6, 8, 8, 8), 4),
            (([1.0, 2.0], [-2.0, -4.0]), (5, 6, 7, 8), 6),
        ],
    )
    def test_two_outputs(
        self, alphas: tuple[list[float], ...], ranks: tuple[int, ...], size: int
    ) -> None:
        neurons = [([0.9], 0.3, alphas[0]), ([-1.7], 0.4, alphas[1])]
        model, x = two_layer(neurons), samples(10, 1)
        found = model_rank(model)
        assert (found.rank, found.exact, found.n_samples) == (8, True, size)
        for n, expected in zip(range(3, 7), ranks, strict=True):
            verdict = has_llr_guarantee(model, x[:n], model_rank=found)
            assert (verdict.rank, verdict.holds) == (expected, n >= size)
        assert llr_sample_size(model, x) == size
        assert llr_sample_size(model, x, model_rank=8, certify=False) == size

    def test_repeated_points_do_not_count(self) -> None:
        model, x = two_layer(TWO), samples(8, 2)
        assert has_llr_guarantee(model, x)
        bad = x[[0, 1, 2, 3, 3, 2, 1, 0, 4, 5]]
        verdict = has_llr_guarantee(model, bad)
        assert (verdict.holds, verdict.rank, verdict.model_rank) == (False, 6, 8)
        assert "only 6 of the samples differ" in verdict.reason
        assert llr_sample_size(model, torch.cat((bad, x)), model_rank=8) == 10 + 8
        late = torch.cat((x[:1].expand(40, 2), x[1:]))
        assert llr_sample_size(model, late, model_rank=8) == 40 + 7

    def test_mirrored_points_do_not_count_for_odd_functions(self) -> None:
        model = two_layer([(w, 0.0, a) for w, _, a in TWO], beta=False)
        x = samples(3, 2)
        assert has_llr_guarantee(model, torch.cat((x, -x))).rank == 3
        assert has_llr_guarantee(model, samples(6, 2)).holds
        assert model_rank(model).rank == 6

    def test_confined_points_do_not_count(self) -> None:
        model = two_layer(TWO)
        x = samples(40, 2)
        x[:, 1] = 1.0
        # On the line, the second weight acts like the bias.
        assert has_llr_guarantee(model, x).rank == 6
        assert llr_sample_size(model, x) is None

    def test_proofs(self) -> None:
        model, x = random_net(1, 16, 1), samples(48, 1, seed=5)
        verdict = has_llr_guarantee(model, x)
        assert (verdict.holds, verdict.proved) == (True, True)
        assert (
            str(verdict)
            == "LLR guarantee: the rank on 48 samples is that of the model, 48 (proved)"
        )
        few = has_llr_guarantee(model, x[:47], model_rank=48)
        assert (few.holds, few.proved, few.rank) == (False, True, 47)
        assert "47 observations are too few" in few.reason
        counted = has_llr_guarantee(model, x, model_rank=48, certify=False)
        assert (counted.holds, counted.proved) == (False, False)
        assert "ambiguous" in counted.reason
        assert counted.ambiguous
        assert str(counted).startswith("no LLR guarantee, by an ambiguous count: the rank on")
        assert counted._verdict() == ("no LLR guarantee, by an ambiguous count", "doubt")
        assert json.loads(json.dumps(few.to_dict(), allow_nan=False))["proved"] is True

    def test_doubt_is_in_the_verdict(self) -> None:
        """A rank that is only counted is never announced like a proof, and never with its tone."""
        model, x = two_layer(TWO), samples(12, 2)
        exact = model_rank(model)
        counted = has_llr_guarantee(model, x, model_rank=8, certify=False)
        assert (counted.holds, counted.proved, counted.ambiguous) == (True, False, False)
        assert str(counted).startswith("LLR guarantee, by a count: ")
        assert counted._verdict()[1] == "good"
        doubted = [
            replace(exact, upper=9, ambiguous=True, reason="no gap"),
            replace(exact, upper=9, saturated=False, reason="few samples"),
        ]
        for target in doubted:
            for certify in (True, False):
                found = has_llr_guarantee(model, x, model_rank=target, certify=certify)
                assert (found.holds, found.proved, found.ambiguous) == (True, False, True)
                assert str(found).startswith("LLR guarantee, by an ambiguous count: ")
                assert found._verdict()[1] == "doubt"
        params = {"w": torch.ones(2, 1, dtype=F64)}
        own = has_llr_guarantee(lambda p, z: torch.tanh(z @ p["w"]), x, params=params, model_rank=2)
        assert (own.holds, own.proved) == (True, False)
        assert own.ambiguous is ("ambiguous" in own.reason)

    def test_observed_entries(self) -> None:
        # A matrix of rank 1: dim T = m + n - 1, and a set of entries has the guarantee iff it
        # connects all rows and columns in one graph.
        g = torch.Generator().manual_seed(0)
        model = Entries(*(torch.randn(*s, generator=g, dtype=F64) for s in ((3, 1), (1, 4))))
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(4))
        tree = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [2, 3]])
        assert has_llr_guarantee(model, tree, sampler=pairs).model_rank == 6
        assert llr_sample_size(model, tree, sampler=pairs) == 6
        cycle = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3]])
        assert has_llr_guarantee(model, cycle, sampler=pairs).rank == 5
        assert llr_sample_size(model, torch.cat((cycle, tree)), sampler=pairs) == 6 + 4
        with pytest.raises(ValueError, match=r"x is torch.int64.*give sampler="):
            has_llr_guarantee(model, tree)

    def test_not_proved_without_an_upper_bound(self) -> None:
        model = two_layer(DEGENERATE["mirror images"][0])
        verdict = has_llr_guarantee(model, samples(9, 2), params="*")
        assert (verdict.holds, verdict.proved, verdict.model_rank) == (True, False, 4)
        assert has_llr_guarantee(model, samples(9, 2), params="*", model_rank=4).proved

    @pytest.mark.parametrize("n", [3, 4, 9])
    def test_the_closed_form_is_the_model_rank(self, n: int) -> None:
        model = two_layer(DEGENERATE["mirror images"][0])
        verdict = has_llr_guarantee(model, samples(n, 2))
        assert (verdict.holds, verdict.proved, verdict.model_rank) == (n >= 4, True, 4)
        assert llr_sample_size(model, samples(n, 2)) == (4 if n >= 4 else None)

    def test_unsaturated_model_rank_is_said(self) -> None:
        model = two_layer(TWO)
        found = model_rank(model, max_samples=5)
        assert (
            "had not saturated" in has_llr_guarantee(model, samples(5, 2), model_rank=found).reason
        )

    def test_wrong_claims(self) -> None:
        model, x = two_layer(TWO), samples(9, 2)
        with pytest.raises(ValueError, match=r"model_rank=7 is contradicted: .* the rank is 8"):
            has_llr_guarantee(model, x, model_rank=7)
        with pytest.raises(ValueError, match="model_rank is 9, but the model has 8 parameters"):
            llr_sample_size(model, x, model_rank=9)
        for wrong in (-1, 2.0, True):
            with pytest.raises(ValueError, match="expected dim T"):
                has_llr_guarantee(model, x, model_rank=wrong)
        with pytest.raises(TypeError, match="seed= is about finding"):
            has_llr_guarantee(model, x, model_rank=8, seed=1)
        with pytest.raises(ValueError, match="x has no samples"):
            has_llr_guarantee(model, x[:0], model_rank=8)
        with pytest.raises(ValueError, match=r"x has 1 NaN or Inf entries out of 18"):
            has_llr_guarantee(
                model,
                x.index_fill(0, torch.tensor([2]), 1.0).put(
                    torch.tensor([4]), torch.tensor([math.nan], dtype=F64)
                ),
            )
        with pytest.raises(TypeError, match="x is dict"):
            has_llr_guarantee(model, {"x": x})

    def test_zero(self) -> None:
        model = two_layer(DEGENERATE["zero"][0])
        assert model_rank(model).n_samples == 1
        assert llr_sample_size(model, samples(3, 2)) == 1
