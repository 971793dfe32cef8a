"""Objects by their names: found, refused, and nothing left behind in the search path."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from llr.named import current_directory_importable, named_object

EXPECTED = "module:number, such as math:pi"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    for name in [m for m in sys.modules if m.startswith("named_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_found() -> None:
    assert named_object("math:pi", "number", EXPECTED) is math.pi
    assert named_object("pathlib:Path.home", "function", EXPECTED) == Path.home
    assert named_object("os.path:join", "function", EXPECTED).__name__ == "join"  # type: ignore[attr-defined]


def test_in_the_current_directory(here: Path) -> None:
    (here / "named_package").mkdir()
    (here / "named_package" / "__init__.py").touch()
    (here / "named_package" / "part.py").write_text("class A:\n    b = 5\n")
    before = list(sys.path)
    assert named_object("named_package.part:A.b", "number", EXPECTED) == 5
    assert sys.path == before


@pytest.mark.parametrize("name", ["math", "math:", ":pi", "", ":"])
def test_malformed(name: str) -> None:
    with pytest.raises(ValueError, match=f"number '{name}': expected module:number, such as"):
        named_object(name, "number", EXPECTED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math:tau.real.absent", "module 'math' has no 'tau.real.absent'"),
        ("named_absent:x", "there is no module 'named_absent' here or in the Python environment"),
        ("named_absent.part:x", "there is no module 'named_absent' here"),
        ("math.part:x", "there is no module 'math.part' here"),
    ],
)
def test_absent(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"number {name!r}: {message}"):
        named_object(name, "number", EXPECTED)


def test_what_a_module_lacks_or_raises_is_its_own(here: Path) -> None:
    (here / "named_needy.py").write_text("import named_nowhere\n")
    (here / "named_broken.py").write_text("1 / 0\n")
    with pytest.raises(ModuleNotFoundError, match="No module named 'named_nowhere'"):
        named_object("named_needy:x", "number", EXPECTED)
    with pytest.raises(ZeroDivisionError):
        named_object("named_broken:x", "number", EXPECTED)


def test_the_path_is_as_before(here: Path) -> None:
    before = list(sys.path)
    with current_directory_importable():
        assert sys.path == [str(here), *before]
        with current_directory_importable():
            assert sys.path == [str(here), *before]
        assert sys.path == [str(here), *before]
    assert sys.path == before
    with current_directory_importable():
        sys.path.remove(str(here))  # as a module may
    assert sys.path == before
