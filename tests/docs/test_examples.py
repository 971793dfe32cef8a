"""The examples of the gallery run from a shell, without Sphinx, and draw something."""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_draws(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    before = matplotlib.get_backend()
    plt.switch_backend("agg")
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.extend(plt.get_fignums()))
    start = time.process_time()
    runpy.run_path(str(example), run_name="__main__")
    print(f"{example.name}: {time.process_time() - start:.1f} s of processor time")
    assert shown
    for number in shown:
        figure = plt.figure(number)
        figure.canvas.draw()
        assert all(ax.has_data() for ax in figure.axes)
    plt.close("all")
    plt.switch_backend(before)
    assert len(capsys.readouterr().out.splitlines()) > 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_a_page(example: Path) -> None:
    """A title, prose between the code, and at most 110 lines."""
    text = example.read_text(encoding="utf-8")
    title, underline = text.splitlines()[1:3]
    assert underline == "=" * len(title)
    assert text.count("\n# %%\n# ") >= 3
    assert len(text.splitlines()) <= 110
    assert ".html" not in text  # :doc: is checked when the site is built


def test_there_are_six() -> None:
    assert [path.name[:2] for path in EXAMPLES] == ["01", "02", "03", "04", "05", "06"]
