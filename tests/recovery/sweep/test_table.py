"""A sweep's results as tables, and as figures whose numbers are counted again here."""

from __future__ import annotations

import csv
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from scipy.stats import binomtest

from llr.recovery.sweep import Cell, Outcome, Row, Spec, export, open_store, read_store, table
from llr.recovery.sweep.figure import draw, selected
from llr.results import figures as plot

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

SHARED = {"architecture": "two-layer", "target": "generic", "strategy": "lm"}
GRID = Spec.parse({**SHARED, "n": [10, 9], "seed": [0, 1], "options": {"rate": [0.5]}})
RESULTS = [
    Outcome({"loss": 0.1 + 0.2, "recovered": True, "text": 'ü, "\n'}, None, None, 1.5, "w"),
    Outcome({"loss": math.inf, "recovered": False, "count": 2**53 + 1}, None, None, 2.5, "v"),
    Outcome(None, "ValueError: no, not", "Traceback", 0.5, "w"),
]  # of four cells; the last has none


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "out.sqlite"
    with open_store(path, GRID) as store:
        for cell, outcome in zip(GRID.cells, RESULTS, strict=False):
            store.record(cell, outcome)
    return path


def exported(path: Path, name: str, **options: Any) -> Path:
    with read_store(path) as store:
        assert export(store, path.with_name(name), **options) == 4
    return path.with_name(name)


class TestTable:
    def test_columns(self, path: Path) -> None:
        with read_store(path) as store:
            columns = table(store.rows())
        assert list(columns) == [
            *("architecture", "target", "strategy", "n", "seed", "rate", "status"),
            *("count", "loss", "recovered", "text", "error"),
        ]
        assert columns["n"] == [9, 9, 10, 10]
        assert columns["seed"] == [0, 1, 0, 1]
        assert columns["status"] == ["failed", "missing", "done", "done"]
        assert columns["loss"] == [None, None, 0.1 + 0.2, math.inf]
        assert columns["error"] == ["ValueError: no, not", None, None, None]

    def test_provenance(self, path: Path) -> None:
        with read_store(path) as store:
            columns = table(store.rows(), provenance=True)
        assert columns["worker"] == ["w", None, "w", "v"]
        assert columns["seconds"] == [0.5, None, 1.5, 2.5]
        assert [when is None for when in columns["finished"]] == [False, True, False, False]

    def test_csv(self, path: Path) -> None:
        text = exported(path, "t.csv").read_text(encoding="utf-8")
        header, *rows = csv.reader(text.splitlines(keepends=True))
        by_name = [dict(zip(header, row, strict=True)) for row in rows]
        assert len(by_name) == 4
        assert float(by_name[2]["loss"]) == 0.1 + 0.2  # exact
        assert by_name[2]["text"] == 'ü, "\n'
        assert by_name[3]["loss"] == "inf"
        assert by_name[3]["text"] == ""
        assert by_name[1]["status"] == "missing"
        assert by_name[0]["error"] == "ValueError: no, not"

    def test_csv_of_a_sweep_that_has_not_begun(self, tmp_path: Path) -> None:
        path = tmp_path / "new.sqlite"
        with open_store(path, GRID):
            pass
        lines = exported(path, "t.csv").read_text().splitlines()
        assert lines[0] == "architecture,target,strategy,n,seed,rate,status,error"
        assert lines[1] == "two-layer,generic,lm,9,0,0.5,missing,"

    @pytest.mark.parametrize("name", ["t.xlsx", "t", "csv"])
    def test_other_formats(self, path: Path, name: str) -> None:
        with (
            read_store(path) as store,
            pytest.raises(ValueError, match=r"expected a name ending in .csv, .parquet"),
        ):
            export(store, path.with_name(name))
        assert not path.with_name(name).exists()


class TestParquet:
    def test_round_trip(self, path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        found = parquet.read_table(exported(path, "t.parquet", provenance=True))
        with read_store(path) as store:
            assert found.to_pydict() == table(store.rows(), provenance=True)
        types = {field.name: str(field.type) for field in found.schema}
        assert (types["n"], types["rate"], types["recovered"]) == ("int64", "double", "bool")
        assert {types[name] for name in ("status", "error", "worker", "finished")} == {"string"}

    def test_empty_texts_are_texts(self, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "new.sqlite"
        with open_store(path, GRID):
            pass
        found = parquet.read_table(exported(path, "t.parquet", provenance=True))
        types = {field.name: str(field.type) for field in found.schema}
        assert {types[name] for name in ("status", "error", "worker", "finished")} == {"string"}

    def test_without_pyarrow(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with (
            read_store(path) as store,
            pytest.raises(ImportError, match=r"needs pyarrow: pip install 'llr\[parquet\]'"),
        ):
            export(store, path.with_name("t.parquet"))
        assert not path.with_name("t.parquet").exists()

    def test_what_pyarrow_is_given(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without pyarrow: the columns that it would get, with integers as integers and text as text."""
        arrow, parquet = types.ModuleType("pyarrow"), types.ModuleType("pyarrow.parquet")
        stub: Any = arrow
        stub.string = lambda: "text"
        stub.array = lambda values, **more: (values, more["type"])
        stub.table = dict
        written: list[dict[str, Any]] = []

        def write_table(columns: dict[str, Any], buffer: Any) -> None:
            written.append(columns)
            buffer.write(b"PAR1")

        parquet.write_table = write_table  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyarrow", arrow)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
        assert exported(path, "t.parquet").read_bytes() == b"PAR1"
        with read_store(path) as store:
            assert {name: values for name, (values, _) in written[0].items()} == table(store.rows())
        assert {name for name, (_, kind) in written[0].items() if kind} == {"status", "error"}

    @pytest.mark.parametrize("values", [(1, "x"), (True, 1), (0.5, False)])
    def test_one_type_a_column(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[Any, Any]
    ) -> None:
        stub: Any = types.ModuleType("pyarrow")
        stub.array, stub.string = (lambda values, **_: values), str
        monkeypatch.setitem(sys.modules, "pyarrow", stub)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", types.ModuleType("parquet"))
        path = tmp_path / "mixed.sqlite"
        with open_store(path, GRID) as store:
            for cell, value in zip(GRID.cells, values, strict=False):
                store.record(cell, Outcome({"x": value}))
        with (
            read_store(path) as store,
            pytest.raises(
                ValueError, match=r"column 'x' holds .*; Parquet has one type per column"
            ),
        ):
            export(store, tmp_path / "t.parquet")
        assert len(exported(path, "t.csv").read_text().splitlines()) == 5


def rows_of(
    rate: Callable[[dict[str, Any]], bool | float | None],
    predicted: float | None = 6,
    **axes: Any,
) -> list[Row]:
    """A finished grid with success rates given by `rate`."""
    cells = Spec.parse({**SHARED, **axes}).cells
    results = [{"recovered": rate(dict(c.values)), "predicted": predicted} for c in cells]
    return [Row(cell, Outcome(result), "now") for cell, result in zip(cells, results, strict=True)]


class TestLines:
    ROWS = rows_of(lambda v: v["seed"] < v["n"] - 5, n=[9, 5, 7], seed=list(range(10)))

    def test_means_and_intervals(self) -> None:
        (axes,) = draw(self.ROWS).axes
        line = axes.lines[0]
        assert list(line.get_xdata()) == [5, 7, 9]
        assert list(line.get_ydata()) == pytest.approx([0, 0.2, 0.4])
        (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
        corners = band.get_paths()[0].vertices
        for n, successes in ((5, 0), (7, 2), (9, 4)):
            wilson = binomtest(successes, 10).proportion_ci(0.95, method="wilson")
            at_n = [y for x, y in corners if x == n]
            assert min(at_n) == pytest.approx(wilson.low, abs=1e-4)
            assert max(at_n) == pytest.approx(wilson.high, abs=1e-4)

    def test_the_predicted_size(self) -> None:
        (axes,) = draw(self.ROWS).axes
        assert list(axes.lines[1].get_xdata()) == [6, 6]
        labels = axes.get_legend_handles_labels()[1]
        assert labels == ["predicted size"]
        (without,) = draw(rows_of(lambda _: True, None, n=[5], seed=0)).axes
        assert len(without.lines) == 1

    def test_a_line_for_what_varies(self) -> None:
        rows = rows_of(
            lambda v: v["strategy"] == "adam", n=[5, 6], seed=0, k=3, strategy=["lm", "adam"]
        )
        (axes,) = draw(rows).axes
        found = {line.get_label(): list(line.get_ydata()) for line in axes.lines[:3]}
        assert found["lm"] == [0, 0]
        assert found["adam"] == [1, 1]

    def test_failed_cells_are_left_out(self) -> None:
        failed = Row(Cell({**self.ROWS[0].cell.values, "n": 8}), Outcome(None, "E: no"), "now")
        missing = Row(Cell({**self.ROWS[0].cell.values, "n": 6}), None, None)
        (axes,) = draw([*self.ROWS, failed, missing]).axes
        assert list(axes.lines[0].get_xdata()) == [5, 7, 9]

    @pytest.mark.parametrize(
        ("rate", "options", "message"),
        [
            (True, {"success": "loss"}, "no cell has a result 'loss'; .* predicted, recovered"),
            (1.5, {}, "recovered is 1.5 at n = 5; expected true, false, or 0 to 1"),
            (math.nan, {}, "recovered is nan at n = 5"),
            ("yes", {}, "recovered is 'yes' at n = 5"),
        ],
    )
    def test_refused(self, rate: Any, options: dict[str, str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            draw(rows_of(lambda _: rate, n=5, seed=0), **options)

    def test_nothing_yet(self) -> None:
        with pytest.raises(ValueError, match="expected one of: none yet"):
            draw([Row(row.cell, None, None) for row in self.ROWS])

    def test_more_than_a_figure_shows(self) -> None:
        rows = rows_of(lambda _: True, n=5, seed=0, k=list(range(1, 9)))
        with pytest.raises(ValueError, match=r"8 lines, such as 'k 1'; .*select with --where"):
            draw(rows)
        assert len(draw(selected(rows, ["k=3"])).axes) == 1


class TestHeatMaps:
    ROWS = rows_of(
        lambda v: v["seed"] < v["n"] - v["width"] - 2,
        n=[5, 6, 8],
        width=[1, 4],
        seed=[0, 1, 2, 3],
        strategy=["lm", "adam"],
    )

    def test_rates(self) -> None:
        figure = draw(self.ROWS)
        *panels, bar = figure.axes
        assert [panel.get_title(loc="left") for panel in panels] == ["adam", "lm"]
        for panel in panels:
            (mesh,) = [c for c in panel.collections if isinstance(c, QuadMesh)]
            expected = [[min(4, max(0, n - width - 2)) / 4 for n in (5, 6, 8)] for width in (1, 4)]
            assert mesh.get_array().reshape(2, 3).tolist() == expected
            assert [t.get_text() for t in panel.get_xticklabels()] == ["5", "6", "8"]
            assert [t.get_text() for t in panel.get_yticklabels()] == ["1", "4"]
        assert bar.get_ylabel() == "recovered, mean over seeds"
        (legend,) = figure.legends
        assert [t.get_text() for t in legend.get_texts()] == ["predicted size"]

    @pytest.mark.parametrize(
        ("predicted", "place"), [(5, 0.5), (6, 1.5), (7, 2.0), (8, 2.5), (4, None), (9, None)]
    )
    def test_where_the_predicted_size_lies(self, predicted: int, place: float | None) -> None:
        """Cells are drawn at 0.5, 1.5, 2.5, for any distances between their n."""
        rows = rows_of(lambda _: True, predicted, n=[5, 6, 8], width=[1, 4], seed=0)
        panel = draw(rows).axes[0]
        found = {x for line in panel.lines for x in line.get_xdata()}
        assert found == (set() if place is None else {place})

    def test_combinations_without_runs_are_empty(self) -> None:
        rows = [r for r in self.ROWS if (r.cell.values["n"], r.cell.values["width"]) != (6, 4)]
        panel = draw(selected(rows, ["strategy=lm"])).axes[0]
        (mesh,) = panel.collections
        assert mesh.get_array().mask.reshape(2, 3).tolist() == [
            [False] * 3,
            [False, True, False],
        ]

    def test_panels_that_are_left_over(self) -> None:
        rows = rows_of(lambda _: True, n=[5], width=[1, 2], seed=0, k=[1, 2, 3, 4])
        panels = draw(rows).axes[:6]
        assert [panel.axison for panel in panels] == [True] * 4 + [False] * 2
        many = rows_of(lambda _: True, n=5, width=[1, 2], seed=0, k=list(range(1, 14)))
        with pytest.raises(ValueError, match="13 panels"):
            draw(many)


class TestBoth:
    def test_lines_beside_heat_maps(self) -> None:
        """Several widths are drawn as a map; a single width is drawn as a line with its label."""
        wide = rows_of(lambda _: False, 6, n=[5, 6], width=50, seed=[0, 1], strategy=["gd", "flow"])
        figure = draw([*TestHeatMaps.ROWS, *wide])
        maps, lines = figure.subfigs
        assert [ax.get_title(loc="left") for ax in maps.axes[:2]] == ["adam", "lm"]
        (ax,) = lines.axes
        drawn = ax.get_legend_handles_labels()[1]
        assert drawn == ["flow, width 50", "gd, width 50", "predicted size"]


class TestSelection:
    ROWS = TestHeatMaps.ROWS

    def test_conditions(self) -> None:
        found = selected(self.ROWS, ["width=4", "n=8"])
        assert len(found) == 8
        assert {(r.cell.values["width"], r.cell.values["n"]) for r in found} == {(4, 8)}

    @pytest.mark.parametrize(
        ("condition", "message"),
        [
            ("width", "'width': expected name=value of some cell; width is one of 1, 4"),
            ("width=3", "width is one of 1, 4"),
            ("widht=4", "names are architecture, width"),
        ],
    )
    def test_refused(self, condition: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            selected(self.ROWS, [condition])


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
@pytest.mark.parametrize("rows", [TestLines.ROWS, TestHeatMaps.ROWS], ids=["lines", "maps"])
def test_files(rows: list[Row], suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"figure{suffix}"
    plot.save(draw(rows), path)
    assert path.read_bytes().startswith(start)
    if suffix == ".svg":
        assert "recovered, mean over seeds" in path.read_text()
