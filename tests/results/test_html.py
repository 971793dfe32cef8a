"""Results in notebooks: well-formed, escaped, with their verdicts and their spectra."""

from __future__ import annotations

import dataclasses
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import llr
from llr.landscape import HessianSpectrum
from llr.ranks.certificates.verification import Verdict
from llr.ranks.info import Check, Info, SelfTest
from llr.recovery.reproduce import Reproduction
from llr.recovery.sweep import Tally
from llr.results import html
from llr.results.html import Spectrum
from llr.theory import Dimension
from llr.theory.functions.stratification import FunctionClass, Stratification
from llr.theory.result import Term

from .makers import MAKERS, UNWRITTEN, net, points

BAD = '<script>alert("1&2")</script>'
VERDICTS = {
    "rank": "exact",
    "rank in float32": "ambiguous",
    "rank of a batch": "1 of 3 ambiguous",
    "rank certified": "exact",
    "rank by a tolerance": "ambiguous",
    "model rank": "proved",
    "model rank not saturated": "not saturated",
    "guarantee": "LLR guarantee",
    "verdict": "holds",
    "self-test": "2 of 3 are WRONG",
    "criticality": "critical",
    "check": "tangent space equal",
    "reduction": "proved",
    "lift status": "contained, proved",
    "recovery": "recovered",
    "recovery that fails": "not found",
    "recovery from noise": "accepted",
    "certificate": "exact",
}
ALL = {**MAKERS, **UNWRITTEN}


class Reader(HTMLParser):
    """Refuses tags that are not closed in their order; keeps the text, and the tags by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", ALL)
def test_well_formed(name: str) -> None:
    result = ALL[name]()
    page = Reader(result._repr_html_())
    assert type(result).__name__ in page.text
    assert VERDICTS.get(name, "") in page.text
    assert not {"script", "style", "link", "img", "iframe"} & set(page.tags)
    assert len(result._repr_html_()) < 100_000


@pytest.mark.parametrize(
    "result",
    [
        dataclasses.replace(llr.numerical_rank(torch.eye(2)), reason=BAD, path=BAD, method=BAD),
        dataclasses.replace(llr.numerical_rank(torch.eye(2)), counted_above=BAD, upper_from=BAD),
        Verdict(False, BAD),
        Info({"llr": BAD, BAD: "x"}),
        SelfTest((Check(BAD, 0.0, 1.0, note=BAD), Check("b", 2.0, 1.0, BAD, BAD)), BAD),
        Reproduction(BAD, Tally(1, 1, 0), Path(BAD), Path(BAD), Path(BAD)),
        Dimension(BAD, 1, 2, "bounds", (Term(2, BAD),), BAD, 3),
        Stratification(BAD, 3, (FunctionClass(1, BAD, "exact"),)),
    ],
    ids=lambda r: type(r).__name__,
)
def test_escaped(result: Any) -> None:
    text = result._repr_html_()
    assert "<script" not in text
    assert "1&2" not in text
    page = Reader(text)
    assert BAD in page.text
    assert "script" not in page.tags


class TestSpectrum:
    def drawn(self, **options: Any) -> ElementTree.Element:
        given = {"values": [1.0], "line": 0.1, "line_name": "error", "name": "values"} | options
        return ElementTree.fromstring(html.svg(Spectrum(**given)))

    def marks(self, **options: Any) -> list[tuple[float, float, str]]:
        found = self.drawn(**options).iter("{http://www.w3.org/2000/svg}circle")
        return [(float(c.get("cx", 0)), float(c.get("cy", 0)), c.get("fill", "")) for c in found]

    def test_logarithmic_and_in_order(self) -> None:
        marks = self.marks(values=[1e3, 1e0, 1e-3], line=1e-9, cut=3)
        x, y, _ = zip(*marks, strict=True)
        assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
        assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2)
        assert y[0] < y[1]

    def test_the_cut_and_the_line(self) -> None:
        marks = self.marks(values=[1.0, 0.5, 1e-12], line=1e-6, cut=2)
        assert marks[0][2] == marks[1][2] != marks[2][2]
        picture = self.drawn(values=[1.0, 0.5, 1e-12], line=1e-6, cut=2)
        texts = ["".join(t.itertext()) for t in picture.iter("{http://www.w3.org/2000/svg}text")]
        assert "error 1.0e-06" in texts
        assert "2" in texts
        dashed = [
            float(line.get("y1", 0))
            for line in picture.iter("{http://www.w3.org/2000/svg}line")
            if line.get("stroke-dasharray")
        ]
        assert marks[1][1] < dashed[0] < marks[2][1]

    @pytest.mark.parametrize(
        "values",
        [
            [0.0],
            [1e-300, 0.0],
            [1.7e308, 5e-324],
            [math.inf, 1.0],
            [-1.0, 1e-5],
            [float(10**-k) for k in range(200)] + [0.0] * 900,
        ],
    )
    @pytest.mark.parametrize("line", [0.0, 1e-12, math.inf, 5e-324])
    def test_all_numbers(self, values: list[float], line: float) -> None:
        for cut in (None, 0, 1, len(values)):
            picture = self.drawn(values=values, line=line, cut=cut)
            for part in picture.iter():
                for name in ("cx", "cy", "x1", "x2", "y1", "y2", "x", "y"):
                    at = part.get(name)
                    assert at is None or -1 <= float(at) <= 445, (name, at)

    def test_of_many_the_cut_is_among_those_drawn(self) -> None:
        marks = self.marks(values=[1.0] * 777 + [1e-9] * 4000, line=1e-4, cut=777)
        colours = [colour for _, _, colour in marks]
        assert len(marks) < 500
        first = colours.index(colours[-1])
        assert marks[first][0] - marks[first - 1][0] < 0.2

    def test_what_was_left_out_is_not_drawn(self) -> None:
        result = llr.rank(net(1, 2, 1), points(9))
        assert "<svg" in result._repr_html_()
        again = llr.RankResult.from_dict(result.to_dict())
        assert "<svg" not in again._repr_html_()
        assert "singular values not kept" in again._repr_html_()
        hessian = HessianSpectrum.from_dict(MAKERS["hessian"]().to_dict())
        assert "<svg" not in hessian._repr_html_()

    def test_both_of_an_embedding(self) -> None:
        assert MAKERS["embedded spectrum"]()._repr_html_().count("<svg") == 2


def test_colours_are_those_of_the_page() -> None:
    """Text and lines are readable on light and dark pages alike."""
    text = MAKERS["rank"]()._repr_html_()
    assert "currentColor" in text
    assert "color:#000" not in text
    assert "background:#fff" not in text
