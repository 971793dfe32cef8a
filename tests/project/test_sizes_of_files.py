"""Source files have at most 400 lines; a longer one says at its top why it is not divided."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST = 400
TOP = 20  # lines in which the reason has to be


def too_long(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8").splitlines()
    return len(lines) > MOST and not any(f"more than {MOST} lines" in line for line in lines[:TOP])


def test_long_files_say_why():
    files = [*ROOT.glob("llr/**/*.py"), *ROOT.glob("csrc/**/*.*")]
    assert len(files) > 100
    assert not [str(path.relative_to(ROOT)) for path in files if too_long(path)]


@pytest.mark.parametrize(
    ("lines", "long"),
    [
        (["x = 1"] * 400, False),
        (["x = 1"] * 401, True),
        (['"""A table, therefore more than 400 lines."""', *["x = 1"] * 400], False),
        ([*["x = 1"] * 400, '"""A table, therefore more than 400 lines."""'], True),
    ],
)
def test_a_planted_file(lines: list[str], long: bool, tmp_path: Path):
    path = tmp_path / "planted.py"
    path.write_text("\n".join(lines))
    assert too_long(path) == long
