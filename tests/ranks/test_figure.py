"""Figures: their contents, and that matplotlib's global state does not change."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

import llr
from llr.ranks import figure as spectra
from llr.results import figures as plot


def pixels(path: Path) -> np.ndarray:
    return matplotlib.image.imread(path)


@pytest.fixture
def deficient() -> llr.RankResult:
    return llr.numerical_rank(
        torch.diag(torch.tensor([4.0, 2.0, 1.0, 1e-9, 0.0]).double()), rtol=1e-6
    )


def by_label(ax: Axes, text: str) -> Line2D:
    return next(line for line in ax.get_lines() if line.get_label().startswith(text))


def test_curve_tolerance_cut_and_zeros(deficient: llr.RankResult) -> None:
    ax = deficient.plot()
    assert ax.get_yscale() == "log"
    counted = by_label(ax, "rank 3")
    assert counted.get_xdata().tolist() == [1, 2, 3]
    assert counted.get_ydata().tolist() == [1.0, 0.5, 0.25]
    tolerance = by_label(ax, "tolerance").get_ydata()[0]
    assert tolerance == pytest.approx(deficient.tol / 4)
    rings = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(3, 0.25)]
    zeros = [line for line in ax.get_lines() if line.get_marker() == "v"]
    assert zeros[0].get_xdata().tolist() == [5]
    assert zeros[0].get_ydata()[0] == ax.get_ylim()[0]
    assert ax.get_ylim()[0] < min(tolerance, 2.5e-10)


def test_given_axes_are_used(deficient: llr.RankResult) -> None:
    figure = plot.Figure()
    ax = figure.add_subplot()
    assert deficient.plot(ax) is ax


def test_several_results_are_labelled(deficient: llr.RankResult) -> None:
    full = llr.numerical_rank(torch.eye(5).double())
    ax = spectra.spectrum({"narrow": deficient, "wide": full})
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["narrow: rank 3", "wide: rank 5", r"error or tolerances $/\,\sigma_1$"]
    colours = {by_label(ax, name).get_color() for name in ("narrow", "wide")}
    assert len(colours) == 2


def test_more_results_than_the_palette_have_distinct_colours() -> None:
    results = {str(i): llr.numerical_rank(torch.eye(3) * i) for i in range(1, 12)}
    ax = spectra.spectrum(results)
    lines = [line for line in ax.get_lines() if line.get_label()[0].isdigit()]
    assert len({matplotlib.colors.to_hex(line.get_color()) for line in lines}) == 11


def test_ambiguity_is_said() -> None:
    i = torch.arange(1.0, 21.0)
    ax = llr.numerical_rank(1 / (i[:, None] + i - 1)).plot()
    assert "(ambiguous)" in ax.get_legend().get_texts()[0].get_text()


def test_what_was_counted_is_drawn() -> None:
    A = torch.randn(5, 3, dtype=torch.float64) @ torch.randn(3, 4, dtype=torch.float64)
    result = llr.numerical_rank(A * torch.tensor([1.0, 1e8, 1e-8, 1.0]).double())
    ax = result.plot()
    assert ax.get_legend().get_texts()[0].get_text() == "rank 3 (ambiguous, clear gap)"
    assert result.equilibrated is not None
    drawn = by_label(ax, "rank 3").get_ydata()
    assert drawn == pytest.approx((result.equilibrated / result.equilibrated[0])[:3].numpy())
    assert by_label(ax, "error").get_ydata()[0] == pytest.approx(
        result.tol / result.equilibrated[0]
    )


def test_batch() -> None:
    ranks = [torch.diag(torch.tensor([1.0] * r + [0.0] * (4 - r))) for r in (1, 3, 4)]
    ax = llr.numerical_rank(torch.stack(ranks)).plot()
    assert ax.get_legend().get_texts()[0].get_text() == "3 spectra, ranks 1 to 4 (0 ambiguous)"
    rings = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
    assert rings == [1, 3, 4]


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 3), (3, 2), (2, 3, 2)])
def test_nothing_to_show(shape: tuple[int, ...], tmp_path: Path) -> None:
    ax = llr.numerical_rank(torch.zeros(shape)).plot()
    texts = [text.get_text() for text in ax.texts]
    assert texts == ([] if torch.zeros(shape).numel() else ["no singular values"])
    plot.save(ax.figure, tmp_path / "s.png")
    assert pixels(tmp_path / "s.png").shape[:2] == (990, 1320)


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_formats(deficient: llr.RankResult, tmp_path: Path, suffix: str, magic: bytes) -> None:
    (tmp_path / "new").mkdir()
    plot.save(deficient.plot().figure, tmp_path / f"new/s{suffix}")
    assert (tmp_path / f"new/s{suffix}").read_bytes().startswith(magic)


@pytest.mark.parametrize("name", ["s.jpg", "s", "s.png.txt"])
def test_other_formats_are_refused(deficient: llr.RankResult, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}'.* ending in .png, .pdf, .svg"):
        plot.save(deficient.plot().figure, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_nothing_is_clipped(deficient: llr.RankResult, tmp_path: Path) -> None:
    rows = [{"label": f"10-{2**k}-1", "P": 12 * 2**k, "rank": 3, "n_rows": 442} for k in range(8)]
    figure = spectra.widths(rows, {row["label"]: deficient for row in rows})
    plot.save(figure, tmp_path / "w.png")
    image = pixels(tmp_path / "w.png")
    assert image.shape[:2] == (1080, 2160)
    edges = (image[:3], image[-3:], image[:, :3], image[:, -3:])
    assert all((edge[..., :3] == 1).all() for edge in edges)
    assert (image[..., :3] < 0.9).any()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:8] == [f"{row['label']}: rank 3" for row in rows]
    assert [label.split()[0] for label in labels[8:]] == ["tolerance"]
    boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    overlaps = [a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(overlaps)


def test_no_empty_space_above_the_legend() -> None:
    rows = [{"label": "a", "P": 5, "rank": 5, "n_rows": 9}]
    figure = spectra.widths(rows, {"a": llr.numerical_rank(torch.eye(5))})
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    lowest = min(ax.get_tightbbox().y0 for ax in figure.axes)
    assert 0 < lowest - legend.y1 < 0.06 * figure.bbox.height


def test_rank_panel(deficient: llr.RankResult) -> None:
    rows = [
        {"label": "a", "P": 10, "rank": 10, "n_rows": 20},
        {"label": "b", "P": 50, "rank": 15, "n_rows": 20},
    ]
    figure = spectra.widths(rows, {row["label"]: deficient for row in rows})
    panel = figure.axes[1]
    bound = by_label(panel, "min(20")
    corners = np.array(bound.get_xydata())
    assert (corners[:, 1] == np.minimum(corners[:, 0], 20)).all()
    points = [tuple(line.get_xydata()[0]) for line in panel.get_lines() if line.get_marker() == "o"]
    assert points == [(10, 10), (50, 15)]
    assert [text.get_text() for text in panel.texts] == ["b"]


def test_global_state_is_left_alone(deficient: llr.RankResult, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams), pyplot.get_backend(), pyplot.get_fignums()
    plot.save(deficient.plot().figure, tmp_path / "s.svg")
    assert (dict(matplotlib.rcParams), pyplot.get_backend(), pyplot.get_fignums()) == before
    assert pyplot.get_fignums() == []


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, deficient: llr.RankResult) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("llr.results.figures", "llr.ranks.figure"):
        monkeypatch.delattr(name)
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"figures need matplotlib: pip install 'llr\[plot\]'"):
        deficient.plot()
