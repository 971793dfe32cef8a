"""Every Python snippet of the documentation runs, in the order of its page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "snippet"}
    for number, code in enumerate(snippets(page)):
        exec(compile(code, f"{page.name}[{number}]", "exec"), namespace)


def test_the_pages_have_snippets():
    assert sum(len(snippets(page)) for page in PAGES) >= 10


def test_relative_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_what_the_page_says_plan_prints(capsys):
    page = (ROOT / "docs" / "jacobian.md").read_text()
    shown = r"^(filters = .*\nprint\(llr\.plan.*)\n# (J .*)$"
    code, comment = re.search(shown, page, flags=re.MULTILINE).groups()
    exec("import torch, llr\n" + code)
    assert capsys.readouterr().out.strip() == comment


def test_the_architecture_names_every_file_and_no_other():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named: set[Path] = set()
    for row in re.findall(r"^\| (`.*?) \| ", page, flags=re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", row)
        folder = (ROOT / first).parent  # names may be relative to that of the first
        for name in (first, *others):
            found = {*ROOT.glob(name), *folder.glob(name)}
            assert found, f"{name} is not there"
            assert not found & named, f"{name} is in two rows"
            named |= found
    files = [*(ROOT / "llr").rglob("*.py"), *(ROOT / "csrc").rglob("*.*")]
    missing = [f for f in files if f.name != "__init__.py" and not named & {f, *f.parents}]
    assert not missing
    questions = re.findall(r"^\| ([^|]*\?) \| ", page, flags=re.MULTILINE)
    assert len(questions) == len(set(questions)) > 20
