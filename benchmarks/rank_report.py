"""The results of benchmarks/rank.py as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness import VERDICTS, number, summary, table
from rank_contenders import (
    AUTO,
    CERTIFIED,
    DRIVERS,
    GEJSV,
    GESDD,
    GRAM_DD,
    GRAM_OP,
    GRAM_TORCH,
    GRAMS,
    JAX,
    LLR,
    LLR_RANK,
    NUMPY,
    OP,
    RANKS,
    TORCH,
    TORCH_FUNC,
    TORCH_RANK,
    VERIFY,
)

from llr.inputs.memory import format_bytes

SECONDS, PEAK, EXACT = "seconds", "peak bytes", "exact"
PROMISED = "the CPU with 2 threads, at full size"


def shown(what: str, value: float | None) -> str:
    """A promised or measured number in its unit."""
    if value is None:
        return "-"
    if what == EXACT:
        return "yes" if value else "no"
    if what == PEAK:
        return format_bytes(int(value))
    return f"{number(value)} s" if what == SECONDS else number(value)


def milliseconds(case: Mapping[str, Any], name: str) -> str:
    return number(1e3 * case["median"][name]) if name in case["median"] else "-"


def quotient(case: Mapping[str, Any], a: str, b: str) -> str:
    ratio = case["ratios"].get(f"{a} / {b}")
    return "-" if ratio is None else f"{number(ratio['of_medians'])}x"


def svd_table(cases: Mapping[str, Any]) -> str:
    timed = (OP, LLR, TORCH, *DRIVERS, NUMPY, GESDD, GEJSV, JAX)
    present = [name for name in timed if any(name in case["median"] for case in cases.values())]
    head = [*(f"{name} ms" for name in present), "speed-up op", "speed-up llr"]
    head += [f"{LLR_RANK} ms", f"{TORCH_RANK} ms", "speed-up"]
    rows = [
        [
            f"{name}: {case['case']}",
            *(milliseconds(case, contender) for contender in present),
            quotient(case, TORCH, OP),
            quotient(case, TORCH, LLR),
            milliseconds(case, LLR_RANK),
            milliseconds(case, TORCH_RANK),
            quotient(case, TORCH_RANK, LLR_RANK),
        ]
        for name, case in cases.items()
    ]
    return table(["float64 matrices", *head], rows)


def rank_table(cases: Mapping[str, Any]) -> str:
    times = [f"{name} ms" for name in RANKS]
    head = ["network", "P", "J", "rank", *times, "auto takes", "speed-up"]
    rows = [
        [
            f"{name}: {case['case']}",
            f"{case['P']:,}",
            format_bytes(case["bytes"]),
            str(case["said"][AUTO]["rank"]),
            *(milliseconds(case, contender) for contender in RANKS),
            case["said"][AUTO]["method"],
            quotient(case, TORCH_FUNC, AUTO),
        ]
        for name, case in cases.items()
    ]
    return table(head, rows)


def gram_table(cases: Mapping[str, Any]) -> str:
    timed = [name for gram in GRAMS for name in (gram, f"{gram} graph")]
    present = [name for name in timed if any(name in case["median"] for case in cases.values())]
    head = ["network", "P", "J", *(f"{name} ms" for name in present)]
    head += ["speed-up float64", "speed-up double-double"]
    rows = [
        [
            f"{name}: {case['case']}",
            f"{case['P']:,}",
            format_bytes(case["bytes"]),
            *(milliseconds(case, contender) for contender in present),
            quotient(case, GRAM_TORCH, GRAM_OP),
            quotient(case, GRAM_TORCH, GRAM_DD),
        ]
        for name, case in cases.items()
    ]
    return table(head, rows)


def big_table(cases: Mapping[str, Any]) -> str:
    head = ["network", "P", "J would be", "rank", "auto takes", "time", "process, peak", "growth"]
    rows = []
    for name, case in cases.items():
        row = [f"{name}: {case['case']}", f"{case['P']:,}", format_bytes(case["bytes"])]
        if "missing" in case:
            rows.append([*row, "-", "-", case["missing"], "-", "-"])
            continue
        said = case["runs"][0]
        seconds, peak = shown(SECONDS, case[SECONDS]), shown(PEAK, case.get(PEAK))
        growth = shown(PEAK, case.get("growth bytes"))
        rows.append([*row, str(said["rank"]), said["method"], seconds, peak, growth])
    return table(head, rows)


def proof_table(cases: Mapping[str, Any]) -> str:
    head = ["network", "P", "proved rank", "exact", "bits", "certified ms", "verify ms"]
    head += ["torch float64 says", "torch float32 says", f"{TORCH_FUNC} ms"]
    rows = [
        [
            f"{name}: {case['case']}",
            str(case["P"]),
            str(case["rank"]),
            shown(EXACT, case[EXACT]),
            str(case["bits"]),
            milliseconds(case, CERTIFIED),
            milliseconds(case, VERIFY),
            str(case["float64"]),
            str(case["float32"]),
            milliseconds(case, TORCH_FUNC),
        ]
        for name, case in cases.items()
    ]
    return table(head, rows)


def expected_table(cases: Mapping[str, Any]) -> str:
    """The times that docs/cuda.md expects, beside the measured times."""
    rows = [
        [
            name,
            contender,
            number(1e3 * seconds),
            milliseconds(case, contender),
            f"{seconds / case['median'][contender]:.0%}" if contender in case["median"] else "-",
        ]
        for name, case in cases.items()
        for contender, seconds in case.get("expected", {}).items()
    ]
    head = ["case", "operator", "expected ms", "measured ms", "reached"]
    return table(head, rows) if rows else ""


def memory_table(memory: Mapping[str, Any], cases: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            format_bytes(cases[name]["bytes"]),
            *(f.get("missing") or format_bytes(f["growth_bytes"]) for f in found.values()),
        ]
        for name, found in memory.items()
    ]
    return table(["case", "J", *(f"{name}, peak" for name in RANKS)], rows)


def scaling_table(found: Mapping[str, Any]) -> str:
    """The largest case of every contender, and why it did not do larger ones."""
    rows = []
    for axis, sweep in found.items():
        for contender in dict.fromkeys(point["contender"] for point in sweep["points"]):
            own = [point for point in sweep["points"] if point["contender"] == contender]
            largest, end = ["-", "-", "-"], own[-1].get("missing", "-")
            for point in own:
                if "missing" not in point:
                    time, peak = (
                        shown(SECONDS, point["seconds"]),
                        shown(PEAK, point["growth_bytes"]),
                    )
                    largest = [point["case"], time, peak]
            rows.append([f"{axis}, at {sweep['fixed']}", contender, *largest, end])
    head = ["growing", "contender", "largest case", "time", "peak", "what ended it"]
    return table(head, rows)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "svdvals": svd_table,
    "gram": gram_table,
    "rank": rank_table,
    "big": big_table,
    "proof": proof_table,
}


def report(results: Mapping[str, Any], figure: str = "rank_scaling.svg") -> str:
    """One table for each part that ran, the promises, and what --memory and --scaling found."""
    facts, cases = results["environment"], results["cases"]
    rounds = min((case["rounds"] for case in cases.values() if "rounds" in case), default=None)
    medians = "" if rounds is None else f"Medians of {rounds} or more interleaved rounds; "
    text = [
        medians + summary(facts, "float64"),
        *(f"**Not reliable: {warning}.**" for warning in results["warnings"]),
    ]
    for part, draw in TABLES.items():
        if own := {name: case for name, case in cases.items() if case["part"] == part}:
            text.append(draw(own))
    for name, case in cases.items():
        for contender, why in case.get("excused", {}).items():
            text.append(f"{name}: {contender} was not timed: {why}.")
    text += filter(None, [expected_table(cases)])
    names = {"numpy": "numpy", "scipy": "scipy", "jax": "JAX", "python-flint": "python-flint"}
    there = [f"{name} {facts[key]}" for key, name in names.items() if facts[key]]
    absent = [key for key in names if not facts[key]]
    text.append(
        f"{', '.join(there)}."
        + (f" Not installed, and not compared: {', '.join(absent)}." if absent else "")
    )
    kept = [
        [p["case"], p["of"], p["bound"], shown(p["of"], p["measured"]), VERDICTS[p["holds"]]]
        for p in results["promises"]
    ]
    text.append(table(["case", "of", "promised", "measured", "holds"], kept))
    if not results["settings"]["promised"]:
        text.append(f"The promises are for {PROMISED}; this run has other settings.")
    if results["memory"]:
        text.append(memory_table(results["memory"], cases))
    if results["scaling"]:
        text += [f"![time and memory against P and n]({figure})"]
        text.append(scaling_table(results["scaling"]))
    return "\n\n".join(text) + "\n"
