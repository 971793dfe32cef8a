"""The folders of the package import in one direction only, and ``llr`` exports only public names."""

from __future__ import annotations

import importlib
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from types import ModuleType

import grimp
import pytest

import llr

# Each may import those below it. "llr" is llr/__init__.py.
ORDER = (
    "cli",
    "recovery",
    "embedding",
    "lifting",
    "landscape",
    "llr",
    "neurons",
    "ranks",
    "theory",
    "models",
    "exact",
    "jacobians",
    "linalg",
    "results",
    "inputs",
    "operators",
)
FUNCTIONS = [
    "jacobian",
    "plan",
    "gram",
    "rank",
    "svdvals",
    "numerical_rank",
    "tolerance",
    "model_rank",
    "has_llr_guarantee",
    "llr_sample_size",
    "certify",
    "verify",
    "layout",
    "memory_budget",
    "set_memory_budget",
    "info",
    "selftest",
]
RESULTS = ["Certificate", "Guarantee", "ModelRank", "RankResult", "Verdict"]
FOLDERS = {"relu": "theory.relu"}  # public packages that are elsewhere than directly in llr/
PACKAGES = ["embedding", "landscape", "lifting", "models", "neurons", "recovery", "relu", "theory"]


def box(module: str) -> str:
    """The folder or file directly in llr/ that a module is in."""
    return module.split(".")[1] if "." in module else module


def edges(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Imports between boxes, without ``llr.recovery.sweep.__main__``, a command that nothing imports."""
    found = {
        (box(module), box(imported))
        for module in graph.modules
        if not module.endswith(".__main__")
        for imported in graph.find_modules_directly_imported_by(module)
    }
    return {(above, below) for above, below in found if above != below}


def against(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """The edges that do not go down the order."""
    place = {name: i for i, name in enumerate(ORDER)}
    return {(above, below) for above, below in edges(graph) if place[above] >= place[below]}


def levels(graph: grimp.ImportGraph) -> int:
    depth: dict[str, int] = {}
    for name in reversed(ORDER):
        depth[name] = 1 + max((depth[b] for a, b in edges(graph) if a == name), default=0)
    return max(depth.values())


@pytest.fixture
def graph() -> grimp.ImportGraph:
    # Imports only for annotations are never executed.
    return grimp.build_graph("llr", exclude_type_checking_imports=True, cache_dir=None)


def test_order(graph: grimp.ImportGraph) -> None:
    assert {box(module) for module in graph.modules} == set(ORDER)
    assert against(graph) == set()
    assert levels(graph) <= 9
    assert len(edges(graph)) <= 60


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("llr.linalg.balls", "llr.ranks.rank"),
        ("llr.theory.result", "llr"),
        ("llr.recovery.targets", "llr.cli.shell"),
        ("llr.operators._ops", "llr.inputs.memory"),  # closes a circle of two
    ],
)
def test_an_import_against_the_order_is_found(
    graph: grimp.ImportGraph, importer: str, imported: str
) -> None:
    graph.add_import(importer=importer, imported=imported)
    assert against(graph) == {(box(importer), box(imported))}


def circle_in(graph: grimp.ImportGraph, folder: str) -> list[str]:
    """Files and sub-folders of one folder that import each other in a circle; empty if there are none."""
    below: dict[str, set[str]] = {}
    for module in graph.find_descendants(folder):
        child = ".".join(module.split(".")[: folder.count(".") + 2])
        for imported in graph.find_modules_directly_imported_by(module):
            if imported.startswith(f"{folder}.") and not (f"{imported}.").startswith(f"{child}."):
                other = ".".join(imported.split(".")[: folder.count(".") + 2])
                below.setdefault(child, set()).add(other)
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_within_a_folder(graph: grimp.ImportGraph) -> None:
    folders = [
        module for module in graph.modules if module != "llr" and graph.find_children(module)
    ]
    assert len(folders) > 15
    assert [found for folder in folders if (found := circle_in(graph, folder))] == []
    graph.add_import(importer="llr.theory.structures.groups", imported="llr.theory.spans.formal")
    assert circle_in(graph, "llr.theory")


def test_dir() -> None:
    shown = [name for name in dir(llr) if not (name.startswith("__") and name.endswith("__"))]
    assert sorted(shown) == sorted([*FUNCTIONS, *RESULTS, *PACKAGES])
    assert all(callable(getattr(llr, name)) for name in (*FUNCTIONS, *RESULTS))


@pytest.mark.parametrize("name", [*PACKAGES, "recovery.sweep", "recovery.train"])
def test_sub_packages_show_what_is_public(name: str) -> None:
    module = importlib.import_module(f"llr.{FOLDERS.get(name, name)}")
    shown = {n for n in dir(module) if not n.startswith("__")}
    assert shown - {"sweep", "train"} == set(module.__all__) - {"sweep", "train"}
    assert not [n for n in module.__all__ if isinstance(getattr(module, n), ModuleType)]


def test_sub_packages_are_loaded_on_first_use() -> None:
    code = f"""
import sys
import llr
for name in ("recovery", "embedding", "lifting", "landscape", "theory.relu", "cli"):
    assert f"llr.{{name}}" not in sys.modules, name
for name in {PACKAGES}:
    folder = {FOLDERS}.get(name, name)
    assert getattr(llr, name).__name__ == f"llr.{{folder}}"
try:
    llr.nothing
except AttributeError as error:
    assert str(error) == "module 'llr' has no attribute 'nothing'"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
