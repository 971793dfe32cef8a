"""Tables as text: files of other programs are read correctly, or refused with the option that decides."""

from __future__ import annotations

import csv
import io
import random

import numpy as np
import pytest
import torch

from llr.inputs.files.layout import Layout
from llr.inputs.files.tables import read_table


def read(text: str, suffix: str = ".csv", **options: object) -> list[list[float]]:
    return read_table(text.encode(), Layout(**options), suffix).tolist()


def refusal(text: str, suffix: str = ".csv", **options: object) -> str:
    with pytest.raises(ValueError, match=r"\w") as err:
        read(text, suffix, **options)
    assert "\n" not in str(err.value)
    return str(err.value)


class TestRead:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1,2.5\n3,4\n", [[1, 2.5], [3, 4]]),
            ("1,2,3\n5,5,4\n1,9,9\n", None),  # counts upwards, unlike the other rows
            ("7,2,3\n5,5,4\n1,9,9\n", [[7, 2, 3], [5, 5, 4], [1, 9, 9]]),
            ("a,b\n1,2\n", [[1, 2]]),
            ("t,x\n0,1\n", [[0, 1]]),
            ("RI,Na,Mg\n1.5,13.6,4.5\n", [[1.5, 13.6, 4.5]]),
            ("1stFlrSF,area\n856,7\n", [[856, 7]]),
            ("mean (m/s),x_1,%\n1,2,3\n", None),  # a percent sign alone may be a name
            ('"age","sex at birth"\n1,2', [[1, 2]]),
            ('x\n"1"\n"2.5"\n', [[1], [2.5]]),
            ("\ufeffa,b\r\n1,2\r\n", [[1, 2]]),
            ("a,b\r1,2\r", [[1, 2]]),
            (" 1 , -2.5e-3\n+3,.5\n\n\n", [[1, -2.5e-3], [3, 0.5]]),
            ("1\n2\n", [[1], [2]]),
            ("1,000,5.5\n2,000,6.5\n", None),
            ("0,1.5,2.5\n1,0.5,.25\n2,.5,.5\n", None),  # row numbers of pandas, or an input
            ('"a",1.5\n"b",0.5\n', None),
            ('"1",1.5\n"2",0.5\n', None),
            ("0,1.5\n1,0.5\n2,.5\n", [[0, 1.5], [1, 0.5], [2, 0.5]]),
            ("value,error\n1,2\n", [[1, 2]]),
            ("error\n1\n", None),
            ("# made by a program\n#\n## twice\na,b\n1,2\n# end\n", [[1, 2]]),
            ("#id,x\n1,2\n", [[1, 2]]),
            ("a;b\n1,5;2\n3;4,25\n", [[1.5, 2], [3, 4.25]]),
            ("1;2\n3;4\n", [[1, 2], [3, 4]]),
            ("1.5;2\n3;4\n", [[1.5, 2], [3, 4]]),
            ("sep=;\n1,5;2\n3;4\n", [[1.5, 2], [3, 4]]),
            ("a\tb\n1,5\t2\n", [[1.5, 2]]),
            ("a|b\n1.5|2\n", [[1.5, 2]]),
            ("my column\n1\n2\n", [[1], [2]]),
            ("x;y\n0,125;1\n0,250;2\n", [[0.125, 1], [0.25, 2]]),
        ],
    )
    def test_csv(self, text: str, expected: list[list[float]] | None) -> None:
        if expected is None:
            refusal(text)
        else:
            assert read(text) == expected

    @pytest.mark.parametrize(
        ("text", "suffix", "expected"),
        [
            ("1 2.5\n  3\t 4\n", ".txt", None),  # both spaces and a tab
            ("1 2.5\n  3   4 \n", ".txt", [[1, 2.5], [3, 4]]),
            ("1.0e+00 2.0e+00\n3.0e+00 4.0e+00\n", ".txt", [[1, 2], [3, 4]]),
            ("# a b\n1 2\n3 4\n", ".txt", [[1, 2], [3, 4]]),
            ("a b\n1 2\n3 4\n", ".dat", [[1, 2], [3, 4]]),
            ("1,2,5\n3,4,4\n", ".txt", [[1, 2, 5], [3, 4, 4]]),
            ("a\tb\n1\t2\n", ".tsv", [[1, 2]]),
            ("1,5\n2,25\n", ".tsv", [[1.5], [2.25]]),
            ("1\n2\n", ".tsv", [[1], [2]]),
            ("1 234\n5 678\n", ".txt", None),
            ("1,234 5,678\n", ".txt", None),
        ],
    )
    def test_other_text(self, text: str, suffix: str, expected: list[list[float]] | None) -> None:
        if expected is None:
            refusal(text, suffix)
        else:
            assert read(text, suffix) == expected

    def test_integers_stay_integers(self) -> None:
        assert read_table(b"a,b\n1,-2\n+3,0\n").dtype == torch.int64
        assert read_table(b"a,b\n1,2\n3,0.0\n").dtype == torch.float64
        exact, beyond = 2**53 - 1, 2**53 + 2
        assert read_table(f"x\n{exact}\n5\n".encode()).tolist() == [[exact], [5]]
        assert read_table(f"x\n{beyond}\n5\n".encode()).tolist() == [[float(beyond)], [5]]

    def test_a_separator_at_the_end_of_every_line(self) -> None:
        assert read("a,b,\n1.5,2.5,\n3,4,\n") == [[1.5, 2.5], [3, 4]]
        assert read("1,5;2; \n3,5;4;\n") == [[1.5, 2], [3.5, 4]]
        assert read("1\t2\t\n3\t4\t\n", ".tsv") == [[1, 2], [3, 4]]
        assert read("7,\n2,\n") == [[7], [2]]

    def test_digits_are_kept(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.standard_normal((50, 3)) * 10.0 ** rng.integers(-300, 300, (50, 3))
        text = "\n".join(",".join(map(repr, row)) for row in values.tolist())
        assert read(text) == values.tolist()

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_encodings(self, encoding: str) -> None:
        assert read_table("größe;b\n1,5;2\n".encode(encoding)).tolist() == [[1.5, 2.0]]


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b\n1,2\n3,nan\n", "line 3, column 2 is 'nan'; expected a finite number"),
            ("1,2\n3,inf\n", "line 2, column 2 is 'inf'"),
            (
                "a\n1e999\n",
                "line 2, column 1 is '1e999'; expected a finite number; it is too large",
            ),
            ("1,2\n3,\n", "line 2, column 2 is empty"),
            ("a,b\n1,2\n,\n", "line 3, column 1 is empty"),
            ("1,2\n3,abc\n", "line 2, column 2 is 'abc'"),
            ("1,abc\n3,4\n", "line 1, column 2 is 'abc'"),
            ("id,2019\n3,4\n", "--header if it holds names"),
            ("x,y\n1_000,2\n", "'1_000'"),
            ("x,y\n0x1F,2\n", "'0x1F'"),
            ("x,y\n１,2\n", "line 2, column 1"),
            ('x,y\n"1,234",2\n', "--sep and --decimal"),
            ("x;y\n1.234,5;2\n", "without separators of thousands"),
            ("x;y\n1'234;2\n", "without separators of thousands"),
            ("x;y\n1 234;2\n", "without separators of thousands"),
            (
                "x;y\n1,5;2\n1.5;2\n",
                "line 3, column 1 is '1.5'; expected a finite number, and line 2 has",
            ),
            ("x,y\n2020-01-31,2\n", "dates are none; --columns"),
            ("x,y\nTrue,2\n", "write 1 and 0"),
            ("1,2\n3,4,5\n", "line 2 has 3 cells, the first row 2"),
            ("a,b\n1,2\n3\n", "line 3 has 1 cells, the first row 2"),
            ("1\n\n2\n", "line 2 is empty"),
            ("\n1\n2\n", "line 1 is empty"),
            ("", "no numbers"),
            ("\n\n", "no numbers"),
            ("a,b\n", "no numbers"),
            (",a,b\n0,1,2\n", "save with index=False, or give --columns 2-"),
            ('a,b\n"1,2\n', "line 2: the quote that opens there is not closed"),
            ('a,b\n1,2\n3,"4\n5,6\n7,8\n', "line 3: the quote that opens there is not closed"),
            ('a,b\n"1\n","2\n3,4\n', "line 3: the quote that opens there is not closed"),
            ('a,b\n"1\n2""5\n3,4\n', "line 2: the quote that opens there is not closed"),
            ('a,b\n1,"2\n' + "3,4\n" * 40_000, "line 2: the quote that opens there is not closed"),
            ("a,b\n1," + "2" * 200_000, "line 2: a cell is too long"),
            ('a,b\n"1"2,3\n', "line 2: there is text after a closing quote"),
            ("a,b,c\n1,2,\n3,4,\n", "line 2, column 3 is empty"),
            ("1,2,\n3,4,5\n", "line 1, column 3 is empty"),
            (
                "x\n9007199254740993\n",
                "column 1 is '9007199254740993'; expected a finite number that",
            ),
            ("x\n-9007199254740993\n", "which makes -9007199254740992 of it"),
            ("x\n123456789012345678901234567890\n", "makes 123456789012345677877719597056 of it"),
            (
                "1.5,2.5\n0.5,1e-400\n",
                "line 2, column 2 is '1e-400'; expected a finite number; it is 0",
            ),
            ("1.5,2.5\n0.0,-1.0e-400\n", "line 2, column 2 is '-1.0e-400'"),
            ("x;y\n1,5;2,5\n0,0;0,1e-400\n", "line 3, column 2 is '0,1e-400'"),
            ("1 2\n3 4\n", "--sep space"),
            ("1,5 2,5\n3,5 4,5\n", "--sep and --decimal"),
            ("a\tb\n1;2\t3\n", "';' and '\\t'"),
            ("x;y\n1.234;5\n2.500;7\n", "--decimal . reads fractions"),
            ("x;y\n1,234;5\n2,500;7\n", "--decimal , reads fractions"),
            ("1,05\n1,10\n", "--decimal , reads one"),
            ("1,05,2\n1,10,2\n", "'05', which may be what follows a comma within"),
        ],
    )
    def test_with_the_line(self, text: str, message: str) -> None:
        assert message in refusal(text)

    @pytest.mark.parametrize(
        "first",
        [
            *(
                "NA,NA",
                "?,?",
                "nan,nan",
                "-,-",
                ".,.",
                "null,null",
                "NULL,x",
                "#N/A,#N/A",
                "#DIV/0!,a",
            ),
            *(
                "inf,-inf",
                "True,False",
                "TRUE,TRUE",
                "T,F",
                "yes,no",
                "12kg,5kg",
                "<0.5,<0.5",
                "a,a",
                "a,NA",
            ),
            *("a,", "1.2.3,a", "--,--", "missing,x", "2020-01-01,2020-01-02", "12:30,13:30"),
        ],
    )
    def test_a_first_sample_is_not_lost(self, first: str) -> None:
        refusal(f"{first}\n1,2\n3,4\n5,6\n")

    @pytest.mark.parametrize(
        "text",
        [
            "0,1,2\n0.5,0.25,1.5\n2.5,1.25,0.5\n",
            "0,1\n5,7\n6.5,9\n",
            "0\n5\n6\n",
            "0.0,1.0,2.0\n5,7,7\n6,9,1\n",
            "1,2,3\n0.5,0.25,1.5\n2,1.25,0.5\n",
            "2019,2020,2021\n5,7,7\n6,9,1\n",
            "400.5,401.0,401.5,402.0\n.1,.2,.2,.1\n.1,.2,.3,.1\n",
            "7,3\n0.5,0.25\n2.5,1.5\n",
            '"12","15"\n1,2\n3,4\n',
        ],
    )
    def test_a_header_of_numbers_is_asked_about(self, text: str) -> None:
        assert "--header leaves them out, --no-header reads them as a sample" in refusal(text)
        rows = [[float(cell.strip('"')) for cell in row.split(",")] for row in text.split()]
        assert read(text, header=False) == rows
        assert read(text, header=True) == rows[1:]

    @pytest.mark.parametrize(
        "data", [b"1,\xff\xfe\n", b"\0\0\0\0", b"1\0,\x002\0\n\0", b"\xff\xfe1", b"gr\xf6sse\n1\n"]
    )
    def test_not_text(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"save it as UTF-8"):
            read_table(data)


R = '"a","b"\n"1",0.5,0.25\n"2",1.5,2.5\n'


class TestOptions:
    def test_row_names_of_r(self) -> None:
        assert "give --columns 2-" in refusal(R)
        expected = [[0.5, 0.25], [1.5, 2.5]]
        assert read(R, columns="2-") == read(R, columns="a,b") == expected
        assert read(R, columns="b,a") == [row[::-1] for row in expected]
        assert read(",a,b\n0,1,2\n1,5,7\n", columns="a,b") == [[1, 2], [5, 7]]

    def test_columns(self) -> None:
        text = "day,x,kind,y\n2020-01-01,1,cat,2\n2020-01-02,3,,4\n"
        assert read(text, columns="x,y") == read(text, columns="2,4") == [[1, 2], [3, 4]]
        assert read("5.1,3.5,setosa\n4.9,3,setosa\n", columns="1-2") == [[5.1, 3.5], [4.9, 3]]
        assert "'cat'" in refusal(text, columns="2-")
        assert "one of the names day, x, kind, y" in refusal(text, columns="z")
        assert "expected columns from 1 to 4" in refusal(text, columns="2-7")
        assert "twice" in refusal(text, columns="2,2")
        assert "the first line is no header" in refusal("1.5,2\n3,4\n", columns="x")
        assert "each there once" in refusal("a,a\n1,2\n", columns="a", header=True)

    def test_separators_and_marks(self) -> None:
        assert read("x\n1,5\n2,25\n", decimal=",") == [[1.5], [2.25]]
        text = "1,1.5,2.5\n2,0.5,.25\n3,.5,.5\n"
        assert read(text, columns="2-") == [row[1:] for row in read(text, columns="1-")]
        assert read("1,5\n2,25\n", sep=",") == read("1,5\n2,25\n", sep="comma") == [[1, 5], [2, 25]]
        assert read('"1,5","2,5"\n"1,0","2"\n', decimal=",") == [[1.5, 2.5], [1, 2]]
        assert read("1,5 2,5\n3,5 4\n", sep="space", decimal=",") == [[1.5, 2.5], [3.5, 4]]
        assert read("1 2\n3\t4\n", sep=" ") == [[1, 2], [3, 4]]
        assert read("1.234;5\n", decimal=".") == [[1.234, 5]]
        assert "--decimal says the other" in refusal("1.5;5\n", decimal=",")
        assert read("NA,b\n1,2\n", header=True) == [[1, 2]]
        assert "'NA'" in refusal("NA,b\n1,2\n", header=False)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"sep": "::"}, "--sep is '::'"), ({"decimal": "'"}, '--decimal is "\'"')],
    )
    def test_unknown(self, options: dict[str, str], message: str) -> None:
        with pytest.raises(ValueError, match="expected") as err:
            Layout(**options).checked()
        assert message in str(err.value)


def written(rng: random.Random) -> tuple[str, str, list[list[float]], bool]:
    """A table as a program might write it, its suffix, its numbers, and whether it must be accepted."""
    n, d = rng.randint(1, 6), rng.randint(1, 4)
    kind = rng.choice(["integers", "floats", "digits", "mixed"])

    def number() -> float:
        if kind == "integers" or (kind == "mixed" and rng.random() < 0.5):
            return rng.randint(-3, 12)
        return rng.gauss(0, 1) if kind == "floats" else round(rng.uniform(-9, 9), rng.randint(1, 3))

    rows = [[number() for _ in range(d)] for _ in range(n)]
    decimal = rng.choice([".", ".", ","])
    sep = rng.choice([",", ";", "\t", " ", "|"] if decimal == "." else [";", "\t"])
    suffix = {" ": ".txt", "\t": rng.choice([".tsv", ".txt"])}.get(sep, ".csv")
    header = rng.choice(["names", "none", "numbers", "missing", "index", "rownames"])
    out = io.StringIO(newline="")
    quoting = (
        rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
        if decimal == "."
        else csv.QUOTE_MINIMAL
    )
    writer = csv.writer(
        out, delimiter=sep, lineterminator=rng.choice(["\n", "\r\n"]), quoting=quoting
    )
    names = [f"x{i}" for i in range(d)]
    top = {"names": names, "numbers": list(range(d)), "missing": ["NA"] * d, "rownames": names}
    top["index"] = ["", *names]
    if header != "none":
        writer.writerow(top[header])
    for i, row in enumerate(rows):
        cells = row if decimal == "." else [repr(value).replace(".", ",") for value in row]
        writer.writerow([i, *cells] if header in ("index", "rownames") else cells)
    return (
        out.getvalue(),
        suffix,
        rows,
        header == "names" and (d > 1 or sep == "," or suffix == ".tsv"),
    )


def attempt(text: str, suffix: str) -> list[list[float]] | str:
    """The numbers, or the message of a refusal."""
    try:
        return read_table(text.encode(), suffix=suffix).tolist()
    except ValueError as err:
        return str(err)


def test_whatever_is_written_is_read_right_or_refused() -> None:
    rng = random.Random(0)
    right = refused = 0
    for _ in range(4000):
        text, suffix, rows, must = written(rng)
        found = attempt(text, suffix)
        if isinstance(found, str):
            # Fractions of exactly three digits may be thousands.
            assert not must or "three digits" in found or "groups of three" in found, (text, found)
            refused += 1
            continue
        assert found == rows, text
        right += 1
    assert right > 800
    assert refused > 800
