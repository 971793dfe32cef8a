"""The reference lists every public name, each in its place, and no other."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MODULES = [
    "llr",
    "llr.embedding",
    "llr.landscape",
    "llr.lifting",
    "llr.models",
    "llr.neurons",
    "llr.recovery",
    "llr.recovery.sweep",
    "llr.recovery.train",
    "llr.theory",
    "llr.theory.relu",
]
# Described on the page of their module, and without a file of their own.
DESCRIBED = {
    "llr.models.ACTIVATIONS",
    "llr.recovery.EXPERIMENTS",
    "llr.recovery.RECOVERED",
    "llr.recovery.Report",
    "llr.recovery.sweep.COORDINATES",
    "llr.theory.Independence",
}
# Documented once, and shown by two modules.
ELSEWHERE = {"llr.recovery.train.initial": "llr.recovery.initial"}


def listed() -> Counter[str]:
    """The full names that the reference's pages list or describe."""
    names: Counter[str] = Counter()
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if found := re.fullmatch(r"\.\. module:: (\S+)", line):
                module = found[1]
            elif found := re.fullmatch(r"   (\w+)|\.\. py:\w+:: (\w+)", line):
                names[f"{module}.{found[1] or found[2]}"] += 1
    return names


def public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    ]
    return [f"{module.__name__}.{name}" for name in names]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_listed(name: str) -> None:
    shown = listed()
    missing = [n for n in public(importlib.import_module(name)) if ELSEWHERE.get(n, n) not in shown]
    assert not missing


def test_nothing_else_is_listed_and_nothing_twice() -> None:
    allowed = {n for name in MODULES for n in public(importlib.import_module(name))}
    shown = listed()
    assert set(shown) <= allowed
    assert set(shown.values()) == {1}


def test_every_page_of_the_reference_is_reached() -> None:
    index = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    [toctree] = re.findall(r"```\{toctree\}\n(.*?)```", index, flags=re.DOTALL)
    pages = {page.stem for page in (DOCS / "api").glob("*.md")} - {"index"}
    assert set(toctree.split()) - {":hidden:"} == pages


def test_pages_whose_names_differ_in_case_alone_have_files_of_their_own() -> None:
    conf = ast.parse((DOCS / "conf.py").read_text(encoding="utf-8"))
    [mapped] = [
        node.value
        for node in conf.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "autosummary_filename_map"
    ]
    names = eval(compile(ast.Expression(mapped), "conf.py", "eval"), {})
    own = set(listed()) - DESCRIBED
    files = Counter(names.get(name, name).lower() for name in own)
    assert [file for file, times in files.items() if times > 1] == []
    assert set(names) <= own


def test_a_property_s_first_line_has_no_colon() -> None:
    """Sphinx would take what is in front of the colon for the property's type."""
    found = []
    for name in listed():
        module, _, last = name.rpartition(".")
        cls = getattr(importlib.import_module(module), last, None)
        if inspect.isclass(cls):
            for attribute, value in inspect.getmembers(cls, lambda v: isinstance(v, property)):
                first = (inspect.getdoc(value) or "").partition("\n")[0]
                if re.search(r":(\s|$)", re.sub(r":\w+:`[^`]*`|`[^`]*`", "", first)):
                    found.append(f"{name}.{attribute}")
    assert found == []
