"""Per-sample Jacobians of MLPs: llr, its peers and the speed of memory, side by side in one run.

    python benchmarks/jacobian.py            # under 4 minutes; writes benchmarks/results/jacobian.{json,md}
    python benchmarks/jacobian.py --quick    # tiny sizes: proves that it runs; writes only to --out

Every contender is called once per round, in an order shuffled anew each round; medians over the rounds are
compared. Nothing is timed before all contenders agree. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from contenders import (
    BY_HAND,
    FILL,
    FRESH,
    JAX,
    OP_FRESH,
    OP_OUT,
    OUT,
    TORCH,
    TORCH_CAT,
    Case,
    Disagreement,
    build,
    check,
    contenders,
    import_jax,
    jax_contender,
)
from harness import (
    VERDICTS,
    environment,
    interleaved,
    load_warning,
    number,
    options,
    parse,
    peak_growth,
    ratios,
    summary,
    table,
    write,
)

from llr.memory import format_bytes

DTYPES = {"float64": torch.float64, "float32": torch.float32}

CASES = {
    "A": Case((5, 64, 1), 1000),
    "B": Case((10, 256, 256, 1), 512),
    "D": Case((2, 20, 1), 100),
    "E": Case((784, 100, 10), 64),
    "F": Case((2, 20, 1), 100, points=256),
}

RATIOS = (
    (OUT, FILL),
    (TORCH_CAT, FRESH),
    (TORCH_CAT, OUT),
    (TORCH_CAT, OP_FRESH),
    (TORCH_CAT, OP_OUT),
    (TORCH, FRESH),
    (BY_HAND, OUT),
    (JAX, FRESH),
)
"""Pairs of contenders; the ratio is the time of the first over that of the second."""

PROMISES = (
    ("A", TORCH_CAT, FRESH, 12.0),
    ("B", OUT, FILL, 1.0),
    ("B", TORCH_CAT, FRESH, 2.5),
    ("B", TORCH_CAT, OUT, 8.0),
    ("D", TORCH_CAT, FRESH, 15.0),
    ("D", TORCH_CAT, OP_FRESH, 30.0),
    ("E", OUT, FILL, 1.1),
    ("E", TORCH_CAT, FRESH, 2.0),
    ("E", TORCH_CAT, OUT, 7.0),
    ("F", TORCH_CAT, FRESH, 4.0),
    ("F", TORCH_CAT, OUT, 6.0),
)
"""Case, pair and bound: over the fill at most this, torch.func over llr at least this."""

PROMISED = "float64 on the CPU with 2 threads, at full size"
MEMORY_CASES = ("B", "E")
MEMORY_CONTENDERS = (FRESH, TORCH, TORCH_CAT)


def milliseconds(name: str) -> Callable[[Any], str]:
    return lambda case: number(1e3 * case["median"][name])


def quotient(a: str, b: str) -> Callable[[Any], str]:
    return lambda case: f"{number(case['ratios'][f'{a} / {b}']['of_medians'])}x"


COLUMNS = {
    "J": lambda case: format_bytes(case["bytes"]),
    "fill ms": milliseconds(FILL),
    "llr `out=` ms": milliseconds(OUT),
    "of fill": quotient(OUT, FILL),
    "GB/s": lambda case: number(case["bytes"] / case["median"][OUT] / 1e9),
    "llr fresh ms": milliseconds(FRESH),
    "torch.func ms": milliseconds(TORCH),
    "torch.func + cat ms": milliseconds(TORCH_CAT),
    "speed-up `out=`": quotient(TORCH_CAT, OUT),
    "speed-up fresh": quotient(TORCH_CAT, FRESH),
    "by hand `out=` ms": milliseconds(BY_HAND),
    "JAX ms": milliseconds(JAX),
}
"""The table's columns; README.md says what they mean."""


def measure(case: Case, settings: argparse.Namespace, jax: Any) -> dict[str, Any]:
    """Check and time all contenders on one case."""
    problem = build(case, settings.dtype, settings.device)
    out = problem.x.new_empty(problem.shape)
    runs = contenders(problem, out)
    if jax is not None:
        runs[JAX] = jax_contender(jax, problem)
    errors = check(problem, runs, out)  # also the warm-up: caches, thread pools, JAX's compilation
    calls, samples = interleaved(runs, settings.device, settings.seconds, settings.quick)
    return {
        "case": str(case),
        "shape": problem.shape,
        "bytes": out.nbytes,
        "rounds": len(samples[FILL]),
        "calls_per_sample": calls,
        "difference": errors,
        "seconds": samples,
        "median": {name: median(s) for name, s in samples.items()},
        "ratios": ratios(samples, RATIOS),
    }


def promises(cases: Mapping[str, Any], apply: bool) -> list[dict[str, Any]]:
    """What was promised for the cases that ran, what was measured, and, where they apply, if it holds."""
    rows = []
    for case, a, b, bound in PROMISES:
        if case not in cases:
            continue
        at_least = b != FILL
        ratio = cases[case]["ratios"].get(f"{a} / {b}")
        measured = None if ratio is None else ratio["of_medians"]
        holds = None
        if apply:
            holds = measured is not None and (measured >= bound if at_least else measured <= bound)
        rows.append(
            {
                "case": case,
                "ratio": f"{a} / {b}",
                "bound": f"{'≥' if at_least else '≤'} {bound:g}",
                "measured": measured,
                "holds": holds,
            }
        )
    return rows


def peaks(names: Sequence[str], settings: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Case -> contender -> bytes at the peak of one call, each measured in a process of its own."""
    same = [f"--dtype={name_of(settings.dtype)}", f"--device={settings.device}"]
    same += [f"--threads={settings.threads}", *(["--quick"] if settings.quick else [])]
    result: dict[str, dict[str, int]] = {}
    for case in (name for name in names if name in MEMORY_CASES):
        for contender in MEMORY_CONTENDERS:
            command = [sys.executable, __file__, *same, "--peak", case, contender]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result.setdefault(case, {})[contender] = int(done.stdout)
    return result


def peak(case: Case, contender: str, settings: argparse.Namespace) -> int:
    """What one call takes at its peak, in bytes; the code and the thread pools are there already."""
    for prepared in (replace(case, n=2), case):
        problem = build(prepared, settings.dtype, settings.device)
        run = contenders(problem, problem.x.new_empty(0))[contender]
        growth = peak_growth(run, settings.device)
    return growth


def report(results: Mapping[str, Any]) -> str:
    """The results as Markdown: the times, the promises, and the memory if it was measured."""
    env, cases, dtype = results["environment"], results["cases"], results["settings"]["dtype"]
    rounds = min(case["rounds"] for case in cases.values())
    text = [
        f"Medians of {rounds} or more interleaved rounds; {summary(env, dtype)}",
        *(f"**Not to be trusted: {warning}.**" for warning in results["warnings"]),
    ]
    columns = {k: v for k, v in COLUMNS.items() if k != "JAX ms" or env["jax"] is not None}
    rows = [
        [f"{name}: {case['case']}", *(column(case) for column in columns.values())]
        for name, case in cases.items()
    ]
    text += [table(["case", *columns], rows)]
    if env["jax"] is None:
        text += ["JAX is not installed (`pip install jax` adds its column)."]
    else:
        text += [f"JAX {env['jax']}."]
    kept = [
        [p["case"], p["ratio"], p["bound"], number(p["measured"]), VERDICTS[p["holds"]]]
        for p in results["promises"]
    ]
    text += [table(["case", "ratio of times", "promised", "measured", "holds"], kept)]
    if not results["settings"]["promised"]:
        text += [f"Promised for {PROMISED}; this run is another."]
    if results["memory"]:
        head = ["case", "J", *(f"{name}, peak" for name in MEMORY_CONTENDERS)]
        rows = [
            [name, format_bytes(cases[name]["bytes"]), *(format_bytes(b) for b in found.values())]
            for name, found in results["memory"].items()
        ]
        text += [table(head, rows)]
    return "\n\n".join(text) + "\n"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = options(__doc__ or "", CASES, seconds=40.0)
    parser.add_argument("--dtype", choices=DTYPES, default="float64")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    settings = parse(parser)
    settings.dtype = DTYPES[settings.dtype]
    return settings


def main() -> None:
    settings = arguments()
    torch.set_num_threads(settings.threads)
    chosen = {name: CASES[name].quick if settings.quick else CASES[name] for name in settings.cases}
    if settings.peak:
        case, contender = settings.peak
        print(peak(chosen[case], contender, settings))
        return
    facts = environment(settings.device)
    before = facts["load_average"]
    if warning := load_warning(before):
        print(f"warning: {warning}; something else is running", file=sys.stderr)
    jax = import_jax(settings.device)
    facts["jax"] = None if jax is None else jax.__version__
    cases = {}
    for name, case in chosen.items():
        print(f"{name}: {case} ...", end=" ", file=sys.stderr, flush=True)
        try:
            cases[name] = found = measure(case, settings, jax)
        except Disagreement as error:
            sys.exit(f"\nerror: {error}")
        print(f"{format_bytes(found['bytes'])}, {found['rounds']} rounds", file=sys.stderr)
    facts["load_average_after"] = os.getloadavg()[0]
    warning = load_warning(before, facts["load_average_after"])
    promised = not settings.quick and settings.threads == 2
    promised = promised and settings.dtype == torch.float64 and settings.device.type == "cpu"
    results = {
        "environment": facts,
        "settings": {
            "quick": settings.quick,
            "dtype": name_of(settings.dtype),
            "seconds_per_case": settings.seconds,
            "promised": promised,
        },
        "warnings": [warning] if warning else [],
        "cases": cases,
        "promises": promises(cases, promised),
        "memory": peaks(settings.cases, settings) if settings.memory else {},
    }
    text = report(results)
    if settings.out is not None:
        write(settings.out / "jacobian.json", json.dumps(results, indent=1) + "\n")
        write(settings.out / "jacobian.md", text)
    print(text)


if __name__ == "__main__":
    main()
