"""One version everywhere; what GitHub and reference managers read can be read."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

import llr

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_version_is_written_in_one_place() -> None:
    """Setuptools reads it as text, without importing torch."""
    attribute = PYPROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    module, _, name = attribute.rpartition(".")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    [value] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]
    assert ast.literal_eval(value) == llr.__version__
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert "version" not in PYPROJECT["project"]


def test_what_repeats_the_version_agrees() -> None:
    assert str(CITATION["version"]) == llr.__version__
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^  version = \{(.*)\},$", readme, flags=re.MULTILINE) == [llr.__version__]


def test_the_citation_is_of_this_package() -> None:
    project = PYPROJECT["project"]
    assert CITATION["license"] == project["license"]
    assert [a["name"] for a in CITATION["authors"]] == [a["name"] for a in project["authors"]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"title = {{{CITATION['title']}}}" in readme


def test_every_paper_of_the_theory_is_cited() -> None:
    theory = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    line = theory[theory.index("The line of work:") :].split("\n\n")[0].replace("\n", " ")
    titles = re.findall(r'"([^"]+)"', line)
    assert len(titles) == 4
    assert sorted(titles) == sorted(paper["title"] for paper in CITATION["references"])


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS], ids=lambda path: path.name)
def test_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_that_there_are(path: Path) -> None:
    """With rights to read alone, and a limit of time for every job."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        for step in job["steps"]:
            for words in re.findall(r"^make (.*)$", step.get("run", ""), flags=re.MULTILINE):
                assert set(words.split()) <= targets


def test_a_wrong_result_has_a_form_of_its_own() -> None:
    [form] = [f for f in FORMS if f.name == "wrong_result.yml"]
    fields = {field.get("id"): field for field in yaml.safe_load(form.read_text())["body"]}
    for name in ("claim", "reproduce", "printed", "truth", "info"):
        assert fields[name]["validations"]["required"] is True


def test_the_oldest_versions_are_read_alike() -> None:
    """CI here and on GitHub take the lower bounds from pyproject.toml by the same expression."""
    here = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    there = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    [expression] = re.findall(r"sed -nE '(.*)' pyproject.toml", here)
    assert f"sed -nE '{expression}' pyproject.toml" in there
