"""Grids as TOML: their cells, and refusals."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.sweep_cases import ENVIRONMENT, SHARED
from hypothesis import given
from hypothesis import strategies as st

from llr.recovery.sweep import Cell, Spec
from llr.recovery.sweep.spec import REQUIRED, RESERVED, ordered, table_order

GRID = {**SHARED, "n": [4, 5], "seed": 0}


def values(spec: Spec) -> list[dict[str, Any]]:
    return [dict(cell.values) for cell in spec.cells]


class TestGrid:
    def test_product(self, tmp_path: Path) -> None:
        path = tmp_path / "spec.toml"
        path.write_text(
            'architecture = "two-layer"\ntarget = ["generic", "separated"]\nstrategy = "lm"\n'
            "n = { from = 4, to = 9, step = 2 }\nseed = { from = 0, to = 1 }\nbias = false\n"
            '[options]\nrate = [0.1, 1]\nschedule = "cosine"\n'
        )
        expected = [
            {
                "architecture": "two-layer",
                "target": target,
                "strategy": "lm",
                "n": n,
                "seed": seed,
                "bias": False,
                "rate": rate,
                "schedule": "cosine",
            }
            for target, n, seed, rate in itertools.product(
                ("generic", "separated"), (4, 6, 8), (0, 1), (0.1, 1)
            )
        ]
        assert values(Spec.read(path)) == [dict(sorted(v.items())) for v in expected]

    def test_blocks(self) -> None:
        spec = Spec.parse(
            {
                **SHARED,
                "seed": 0,
                "grid": [
                    {"n": [1, 2], "width": 3},
                    {"n": 9, "width": [3, 4], "strategy": "adam", "options": {"rate": 0.1}},
                    {"n": [2, 3], "width": 3},
                ],
            }
        )
        found = [(v["n"], v["width"], v["strategy"], v.get("rate")) for v in values(spec)]
        assert found == [
            (1, 3, "lm", None),
            (2, 3, "lm", None),  # of two blocks, but one cell
            (9, 3, "adam", 0.1),
            (9, 4, "adam", 0.1),
            (3, 3, "lm", None),
        ]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"widht": 3}, "unknown key 'widht' (did you mean 'width'?); expected one of archi"),
            ({"zzz": 3}, "unknown key 'zzz'; expected one of"),
            ({"n": "4"}, "n is '4' (str); expected an integer"),
            ({"n": [4, 5.0]}, "n is 5.0 (float); expected an integer"),
            ({"n": True}, "n is True (bool); expected an integer"),
            ({"bias": 1}, "bias is 1 (int); expected true or false"),
            ({"architecture": 3}, "architecture is 3 (int); expected text"),
            ({"n": [[4]]}, "n is [4] (list); expected text, a number"),
            ({"n": 0}, "n is 0; expected at least 1"),
            ({"seed": -1}, "seed is -1; expected at least 0"),
            ({"seed": 2**63}, "expected an integer of at most 64 bits"),
            ({"n": []}, "n has no values, so the grid has no cells"),
            ({"n": {"from": 5, "to": 4}}, "n has no values"),
            ({"n": [4, 5, 4]}, "n lists 4 twice"),
            ({"n": {"from": 1, "upto": 4}}, "{ from = 1, to = 9, step = 2 }"),
            ({"n": {"from": 1, "to": 4.0}}, "{ from = 1, to = 9, step = 2 }"),
            ({"n": {"from": 1, "to": 4, "step": 0}}, "step is 0; expected at least 1"),
            ({"n": {"from": 1, "to": 10**12}}, "expected at most 1000000"),
            ({"n": {"from": 1, "to": 2000}, "seed": {"from": 0, "to": 999}}, "2000000 cells"),
            ({"options": 3}, "options is 3; expected a table"),
            ({"options": {"width": 3}}, "options.width: this name is in use"),
            ({"options": {"status": "x"}}, "options.status: this name is in use"),
            ({"options": {"rate": [math.inf]}}, "options.rate is inf; expected a finite number"),
            ({"options": {"rate": {"a": 1}}}, "options.rate is {'a': 1}"),
            ({"grid": {"n": 4}}, "expected blocks headed [[grid]]"),
            ({"grid": []}, "grid is empty"),
            ({"grid": [{"n": 4}, {"m": 4}]}, "spec, grid 2: unknown key 'm'"),
        ],
    )
    def test_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises((ValueError, TypeError)) as caught:
            Spec.parse({**GRID, **change})
        assert message in str(caught.value)
        assert str(caught.value).startswith("spec")

    @pytest.mark.parametrize("name", REQUIRED)
    def test_missing(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"missing {name} \(.*\); expected a value or a list"):
            Spec.parse({key: value for key, value in GRID.items() if key != name})

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"n = [", "not TOML"), (b"n = 1\nn = 2", "not TOML"), (b"\xff", "cannot be read")],
    )
    def test_files(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "spec.toml"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            Spec.read(path)
        assert str(path) in str(caught.value)
        with pytest.raises(ValueError, match=r"absent.toml: cannot be read"):
            Spec.read(tmp_path / "absent.toml")


class TestCell:
    def test_key_does_not_depend_on_order_or_process(self) -> None:
        cell = Cell({"n": 7, "rate": 0.1, "name": "ü"})
        assert cell == Cell({"name": "ü", "rate": 0.1, "n": 7})
        code = "from llr.recovery.sweep import Cell; print(Cell({'rate': .1, 'name': 'ü', 'n': 7}).key)"
        other = subprocess.run(
            [sys.executable, "-c", code],
            env={**ENVIRONMENT, "PYTHONHASHSEED": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert other.stdout.strip() == cell.key

    def test_values_that_compare_equal_are_different_cells(self) -> None:
        cells = {Cell({"a": value}) for value in (1, 1.0, True, "1")}
        assert len(cells) == 4
        assert len({cell.key for cell in cells}) == 4

    @given(
        st.dictionaries(
            st.text().filter(lambda name: name not in RESERVED),
            st.one_of(
                st.text(st.characters(exclude_categories=["Cs"])),
                st.booleans(),
                st.integers(-(2**63), 2**63 - 1),
                st.floats(allow_nan=False, allow_infinity=False),
            ),
        )
    )
    def test_json_round_trip(self, values: dict[str, Any]) -> None:
        cell = Cell(values)
        again = Cell(json.loads(cell.json))
        assert again == cell
        assert hash(again) == hash(cell)
        assert [type(v) for v in again.values.values()] == [type(v) for v in cell.values.values()]

    def test_frozen(self) -> None:
        source = {"n": 7}
        cell = Cell(source)
        source["n"] = 8
        assert cell.values["n"] == 7
        with pytest.raises(TypeError):
            cell.values["n"] = 9  # type: ignore[index]

    @pytest.mark.parametrize("value", [math.nan, None, [1], 2**63])
    def test_refused(self, value: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="n is"):
            Cell({"n": value})
        with pytest.raises(ValueError, match="'error' is a column of every table"):
            Cell({"error": 1})

    def test_order_of_tables(self) -> None:
        assert ordered(["zeta", "seed", "n", "alpha", "width"]) == [
            "width",
            "n",
            "seed",
            "alpha",
            "zeta",
        ]
        cells = [Cell({"n": n, **more}) for n in (10, 9) for more in ({}, {"x": "a"}, {"x": 1.5})]
        found = [cell.values for cell in sorted(cells, key=table_order)]
        assert [(v["n"], v.get("x")) for v in found] == [
            (n, x) for n in (9, 10) for x in (None, 1.5, "a")
        ]
