"""Figures of the theory show the numbers in their tables."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
import torch
from helpers.embedding_cases import network, normal_samples

from llr import landscape, theory
from llr.embedding import split
from llr.landscape import critical_targets
from llr.landscape import figure as plot_landscape
from llr.models import DeepLinear, TwoLayer, mlp
from llr.theory import figure as plot_theory

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


def test_stratification(tmp_path: Path) -> None:
    table = theory.rank_stratification(TwoLayer(2, 3))
    ax = plot_theory.stratification(table)
    assert [bar.get_width() for bar in ax.patches] == [row.rank for row in table.rows]
    assert ax.get_xlabel() == "model rank = optimistic sample size"
    assert [label.get_text() for label in ax.get_yticklabels()] == [row.text for row in table.rows]
    texts = [text.get_text() for text in ax.texts]
    assert texts == [*(str(row.rank) for row in table.rows), "$P = 12$"]
    assert ax.get_legend() is None
    plot_theory.save(ax.figure, tmp_path / "s.png")
    assert matplotlib.image.imread(tmp_path / "s.png").std() > 0.05


def test_what_is_not_proved_has_another_colour() -> None:
    table = theory.rank_stratification(mlp([1, 2, 2, 1]))
    ax = plot_theory.stratification(table)
    assert len({bar.get_facecolor() for bar in ax.patches}) == 2
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["proved", "almost all"]
    assert sorted(bar.get_width() for bar in ax.patches) == [row.rank for row in table.rows]


def test_long_tables_are_labelled_now_and_then() -> None:
    table = theory.rank_stratification(TwoLayer(1, 90))
    labels = plot_theory.stratification(table).get_yticklabels()
    assert 20 <= len(labels) <= 41 < len(table.rows)


def test_given_axes() -> None:
    ax = plot_theory.stratification(theory.rank_stratification(DeepLinear([3, 2])))
    assert plot_theory.stratification(theory.rank_stratification(DeepLinear([3, 2])), ax) is ax


@pytest.mark.parametrize("width", [1, 2, 3])
def test_branches(width: int) -> None:
    target = TwoLayer.of(
        w=torch.tensor([[1.5]]), b=torch.tensor([0.25]), a=torch.tensor([[1.0]]), c=None
    )
    found = landscape.branches(target, width)
    ax = plot_landscape.branches(found)
    lines = ax.get_lines()
    spans = [(row.tangent, row.codimension) for row in found]
    assert [tuple(line.get_xdata()) for line in lines[: len(spans)]] == spans
    marks = {line.get_label(): list(line.get_xdata()) for line in lines}
    assert marks[r"$\dim\,T$"] == [row.tangent for row in found]
    assert marks["codimension"] == [row.codimension for row in found]
    assert f"$P = {found.n_params}$" in [text.get_text() for text in ax.texts]


class TestEmbedded:
    """The Hessian before and after an embedding."""

    def spectrum(self, share: float) -> landscape.EmbeddedSpectrum:
        narrow = network(1, 2, 1)
        x = normal_samples(30, 1)
        wide, embedding = split(narrow, 0, 0, share)
        y = critical_targets(narrow, x)
        return landscape.embedded_spectrum(narrow, wide, embedding, x, y)

    def test_eigenvalues_and_shares(self, tmp_path: Path) -> None:
        found = self.spectrum(0.5)
        figure = plot_landscape.embedded(found)
        left, right = figure.axes[:2]
        for ax, spectrum in ((left, found.narrow), (right, found.wide)):
            points = ax.collections[0].get_offsets().data.tolist()
            values = spectrum.eigenvalues.flip(0).tolist()
            assert [x for x, _ in points] == list(range(1, spectrum.n_params + 1))
            for (_, y), value in zip(points, values, strict=True):
                assert y == (value if abs(value) > spectrum.tolerance else 0.0)
        assert left.get_title("left").startswith("narrow, $P = 7$")
        assert right.get_title("left").endswith(
            f"{found.wide.index} negative, {found.wide.nullity} zero"
        )
        # From red (new eigenvalues) to blue (those of the narrow network).
        colours = right.collections[0].get_facecolors()
        bluer = (colours[:, 2] - colours[:, 0]).tolist()
        shares = found.explained.flip(0).tolist()
        order = sorted(range(len(shares)), key=lambda i: shares[i])
        assert [bluer[i] for i in order] == sorted(bluer)
        assert bluer[order[0]] < 0 < bluer[order[-1]]
        assert len(set(map(tuple, left.collections[0].get_facecolors()))) == 1
        plot_landscape.save(figure, tmp_path / "s.png")
        assert matplotlib.image.imread(tmp_path / "s.png").std() > 0.05

    def test_negative_side_is_drawn_where_there_is_one(self) -> None:
        for found in (self.spectrum(0.5), self.spectrum(2.0)):
            ticks = plot_landscape.embedded(found).axes[0].get_yticks().tolist()
            assert 0.0 in ticks
            assert (min(ticks) < 0) == (found.wide.index + found.narrow.index > 0)
