"""Links between files lead to files that are there, and their anchors to headings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from project import test_docs

ROOT = Path(__file__).resolve().parents[2]
GENERATED = (ROOT / "docs" / "gallery", ROOT / "docs" / "api" / "generated")
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"))
    if not any(page.is_relative_to(folder) for folder in GENERATED)
)
# Relative targets, and not those in code. A page that includes a file links from where that file is.
LINK = re.compile(r"\]\((?!\w+:|/)([^)\s]+)\)")
CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1|`[^`\n]+`", flags=re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ +(.*)$", flags=re.MULTILINE)


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to a page's headings."""
    without_blocks = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    found: set[str] = set()
    for title in HEADING.findall(without_blocks):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        number, name = 0, slug
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_anchors(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: {file} is not there"
        assert file.is_relative_to(ROOT), f"{target} leads out of the repository"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading in {file.name}"


def test_links_are_found() -> None:
    assert sum(len(LINK.findall(prose(page))) for page in PAGES) >= 60


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](b.md#c) `[x](y.md)`", ["b.md#c"]),
        ("[a](https://example.org) [b](#here)", ["#here"]),
        ("```\n[a](b.md)\n```\n[c](d.md)", ["d.md"]),
    ],
)
def test_what_counts_as_a_link(text: str, found: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    assert LINK.findall(prose(page)) == found


def test_every_page_with_code_is_one_whose_code_runs() -> None:
    with_code = {page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")}
    assert with_code <= set(test_docs.PAGES)


def test_every_page_of_the_site_is_reached() -> None:
    """Each is in a table of contents, or is the first page."""
    reached = {ROOT / "docs" / "index.md"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE
        ):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            reached |= {page.parent / f"{entry}.md" for entry in entries}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} <= reached


def test_what_pages_include_is_there() -> None:
    """Also the text that marks where a part of a file begins and ends."""
    included = 0
    for page in PAGES:
        for path, options in re.findall(
            r"^(?::{3}|`{3})\{include\} (\S+)\n((?::.*\n)*)",
            page.read_text("utf-8"),
            flags=re.MULTILINE,
        ):
            included += 1
            text = (page.parent / path).read_text(encoding="utf-8")
            for option, mark in re.findall(r'^:([\w-]+): "(.*)"$', options, flags=re.MULTILINE):
                assert option in ("start-after", "end-before")
                assert mark in text, f"{page.name}: {path} has no {mark!r}"
    assert included >= 8
