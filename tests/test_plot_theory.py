"""Figures of the theory show the numbers of their tables."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
import torch

from llr import landscape, plot_theory, theory
from llr.models import DeepLinear, TwoLayer


def test_stratification(tmp_path: Path) -> None:
    table = theory.rank_stratification(TwoLayer(2, 3))
    ax = plot_theory.stratification(table)
    assert [bar.get_width() for bar in ax.patches] == [row.rank for row in table.rows]
    assert ax.get_xlabel() == "model rank = optimistic sample size"
    assert [label.get_text() for label in ax.get_yticklabels()] == [row.text for row in table.rows]
    plot_theory.save(ax.figure, tmp_path / "s.png")
    assert matplotlib.image.imread(tmp_path / "s.png").std() > 0.05


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
    ax = plot_theory.branches(found)
    bars = [line.get_xdata() for line in ax.get_lines() if len(line.get_xdata()) == 2]
    spans = [(row.tangent, row.codimension) for row in found]
    assert [tuple(bar) for bar in bars[: len(spans)]] == spans
