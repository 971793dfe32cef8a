"""Objects by their names: they are found or refused, and the search path is restored."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest

from llr.inputs.named import current_directory_importable, named_object

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
    with pytest.raises(
        ModuleNotFoundError, match=r"named 'named_nowhere' \(named_needy.py, line 1"
    ):
        named_object("named_needy:x", "number", EXPECTED)
    with pytest.raises(
        ImportError, match=r"ZeroDivisionError: .* \(named_broken.py, line 1\)"
    ) as err:
        named_object("named_broken:x", "number", EXPECTED)
    assert isinstance(err.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    "ending",
    ["sys.exit()", "raise SystemExit(3)", "argparse.ArgumentParser().error('no')", "exit()"],
)
def test_a_module_that_ends_the_program(here: Path, ending: str) -> None:
    (here / "named_ending.py").write_text(f"import argparse, sys\nx = 1\n{ending}\n")
    with pytest.raises(ImportError, match=r"ended the program, .*line 3\); .*__main__") as err:
        named_object("named_ending:x", "number", EXPECTED)
    assert "\n" not in str(err.value)


def test_interrupts_pass(here: Path) -> None:
    (here / "named_interrupted.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        named_object("named_interrupted:x", "number", EXPECTED)


def test_arguments_are_the_programs_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", before := ["llr", "rank", "--inputs", "x"])
    (here / "named_parsing.py").write_text(
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr', default=3)\n"
        "lr = p.parse_args().lr\n"
    )
    assert named_object("named_parsing:lr", "number", EXPECTED) == 3
    assert sys.argv is before


class TestFiles:
    def test_by_their_path(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "deep").mkdir()
        (here / "deep" / "named_part.py").write_text("y = 7\n")
        (here / "deep" / "named_file.py").write_text(
            "from named_part import y\n\nclass A:\n    b = 5\n"
        )
        for name in ("deep/named_file.py", "./deep/named_file.py", here / "deep" / "named_file.py"):
            assert named_object(f"{name}:A.b", "number", EXPECTED) == 5
            assert named_object(f"{name}:y", "number", EXPECTED) == 7
        monkeypatch.chdir(here / "deep")
        assert named_object("named_file.py:A.b", "number", EXPECTED) == 5

    def test_is_the_same_module_as_by_its_name(self, here: Path) -> None:
        (here / "named_same.py").write_text("x = object()\n")
        x = named_object("named_same:x", "number", EXPECTED)
        assert named_object("./named_same.py:x", "number", EXPECTED) is x

    def test_of_a_name_that_is_taken(self, here: Path) -> None:
        (here / "deep").mkdir()
        (here / "deep" / "math.py").write_text("pi = 3\n")
        assert named_object("deep/math.py:pi", "number", EXPECTED) == 3
        assert named_object("math:pi", "number", EXPECTED) is math.pi

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("./named_absent.py:x", "there is no file './named_absent.py'"),
            ("./named_absent:x", "'./named_absent' is no name of a module; expected module:number"),
            (".named:x", "'.named' is no name of a module"),
            ("math:pii", "module 'math' has no 'pii'; did you mean 'pi'?"),
        ],
    )
    @pytest.mark.usefixtures("here")
    def test_absent(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            named_object(name, "number", EXPECTED)

    def test_what_raises_is_imported_again(self, here: Path) -> None:
        (here / "named_once.py").write_text("1 / 0\n")
        for _ in range(2):
            with pytest.raises(ImportError, match="ZeroDivisionError"):
                named_object("./named_once.py:x", "number", EXPECTED)


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
