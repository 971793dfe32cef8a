"""Per-sample Jacobians of MLPs: llr, other libraries and the speed of memory, compared in one run.

    python benchmarks/jacobian.py                  # 5 minutes; writes benchmarks/results/jacobian.{json,md}
    python benchmarks/jacobian.py --device cuda    # jacobian-NAME.{json,md}, with the GPU's name
    python benchmarks/jacobian.py --quick          # tiny sizes, to check that it runs; writes only to --out

Every contender is called once per round, in an order that is shuffled for each round; medians over the rounds
are compared. Contenders are timed only after all agree. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import gpu
import torch
from contenders import (
    BY_HAND,
    CASES,
    COMPILED,
    COMPILED_GRAPH,
    COPY,
    FILL,
    FRESH,
    GPU_CASES,
    JAX,
    OP_FRESH,
    OP_GRAPH,
    OP_OUT,
    OUT,
    TORCH,
    TORCH_CAT,
    Case,
    Disagreement,
    build,
    check,
    compiled_contenders,
    contenders,
    import_jax,
    jax_contender,
)
from gpu_model import GPUS
from gpu_model import jacobian as modelled
from harness import (
    VERDICTS,
    clock_of,
    deliver,
    interleaved,
    measuring,
    number,
    options,
    parse,
    peak_growth,
    ratios,
    summary,
    table,
)

from llr.inputs.memory import format_bytes

DTYPES = {"float64": torch.float64, "float32": torch.float32}

RATIOS = (
    (OUT, FILL),
    (TORCH_CAT, FRESH),
    (TORCH_CAT, OUT),
    (TORCH_CAT, OP_FRESH),
    (TORCH_CAT, OP_OUT),
    (TORCH, FRESH),
    (BY_HAND, OUT),
    (JAX, FRESH),
    (COMPILED, OUT),
    (COMPILED, OP_OUT),
    (COMPILED_GRAPH, OP_GRAPH),
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
"""Case, pair and bound: an upper bound for ratios over the fill, a lower bound for torch.func over llr."""

PROMISED = "float64 on the CPU with 2 threads, at full size"
MEMORY_CASES = ("B", "E")
MEMORY_CONTENDERS = (FRESH, TORCH, TORCH_CAT)


def milliseconds(name: str) -> Callable[[Any], str]:
    return lambda case: number(1e3 * case["median"][name] if name in case["median"] else None)


def quotient(a: str, b: str) -> Callable[[Any], str]:
    def shown(case: Any) -> str:
        ratio = case["ratios"].get(f"{a} / {b}")
        return "-" if ratio is None else f"{number(ratio['of_medians'])}x"

    return shown


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
    "torch.compile ms": milliseconds(COMPILED),
    "by hand `out=` ms": milliseconds(BY_HAND),
    "JAX ms": milliseconds(JAX),
}
"""The table's columns; README.md says what they mean."""

OPTIONAL = {"torch.compile ms": COMPILED, "JAX ms": JAX}
"""Columns that are left out if no case has this contender."""

GPU_COLUMNS = {
    "J": COLUMNS["J"],
    "copy GB/s": lambda case: rate(case, COPY, 2),
    "fill GB/s": lambda case: rate(case, FILL),
    "op graph ms": milliseconds(OP_GRAPH),
    "op `out=` ms": milliseconds(OP_OUT),
    "torch.compile graph ms": milliseconds(COMPILED_GRAPH),
    "graph GB/s": lambda case: rate(case, OP_GRAPH),
    "of copy": lambda case: share(case["of copy"]),
    "expected": lambda case: share(case["expected"] and case["expected"]["of copy"]),
    "limited by": lambda case: case["expected"]["limit"] if case["expected"] else "-",
    "MHz": lambda case: number(case["gpu"].get("clock_mhz")),
}
"""The columns of the second table, for a GPU."""


def rate(case: Any, name: str, traffic: int = 1) -> str:
    """GB/s of memory traffic, if J's bytes are moved `traffic` times."""
    if name not in case["median"]:
        return "-"
    return number(traffic * case["bytes"] / case["median"][name] / 1e9)


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def on_gpu(case: Case, found: dict[str, Any], settings: argparse.Namespace) -> dict[str, Any]:
    """The operator's speed relative to a copy: measured, and expected by docs/cuda.md."""
    copy = 2 * found["bytes"] / found["median"][COPY]
    took = found["median"].get(OP_GRAPH)
    card = GPUS.get(torch.cuda.get_device_name(settings.device))
    expected = None
    if card is not None:
        itemsize = settings.dtype.itemsize
        work = modelled(case.widths, case.n, case.points, itemsize, card, copy)
        expected = {"of copy": work.limits["memory"] / work.seconds, "limit": work.limit}
    return {
        "of copy": took and found["bytes"] / took / copy,
        "expected": expected,
        "gpu": gpu.state(settings.device),
    }


def measure(case: Case, settings: argparse.Namespace, jax: Any) -> dict[str, Any]:
    """Check and time all contenders on one case."""
    problem = build(case, settings.dtype, settings.device)
    out = problem.x.new_empty(problem.shape)
    runs = contenders(problem, out)
    missing: dict[str, str] = {}
    if settings.compile:
        compiled, missing = compiled_contenders(problem)
        runs |= compiled
    if jax is not None:
        runs[JAX] = jax_contender(jax, problem)
    errors = check(problem, runs, out)  # also the warm-up, and JAX's compilation
    clock = clock_of(settings.device)
    calls, samples = interleaved(runs, clock, settings.seconds, settings.quick)
    found = {
        "case": str(case),
        "shape": problem.shape,
        "bytes": out.nbytes,
        "rounds": len(samples[FILL]),
        "calls_per_sample": calls,
        "difference": errors,
        "seconds": samples,
        "median": {name: median(s) for name, s in samples.items()},
        "ratios": ratios(samples, RATIOS),
        "missing": missing,
    }
    return found | on_gpu(case, found, settings) if settings.device.type == "cuda" else found


def promises(cases: Mapping[str, Any], apply: bool) -> list[dict[str, Any]]:
    """For the cases that ran: the promise, the measurement and, if promises apply, whether it holds."""
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
    """Case -> contender -> peak memory of one call in bytes, each measured in a separate process."""
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
    """The peak memory of one call in bytes, after a small call that loads code and starts thread pools."""
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
        *(f"**Not reliable: {warning}.**" for warning in results["warnings"]),
    ]
    timed = {name for case in cases.values() for name in case["median"]}
    columns = {k: v for k, v in COLUMNS.items() if k not in OPTIONAL or OPTIONAL[k] in timed}
    for shown in (columns, GPU_COLUMNS) if env["gpu"] else (columns,):
        rows = [
            [f"{name}: {case['case']}", *(column(case) for column in shown.values())]
            for name, case in cases.items()
        ]
        text += [table(["case", *shown], rows)]
    for name, case in cases.items():
        text += [f"{name} without {who}: {why}." for who, why in case["missing"].items()]
    if env["jax"] is None:
        text += [
            "JAX is not installed (`pip install jax` adds its column), or does not support this device."
        ]
    else:
        text += [f"JAX {env['jax']}."]
    kept = [
        [p["case"], p["ratio"], p["bound"], number(p["measured"]), VERDICTS[p["holds"]]]
        for p in results["promises"]
    ]
    text += [table(["case", "ratio of times", "promised", "measured", "holds"], kept)]
    if not results["settings"]["promised"]:
        text += [f"The promises are for {PROMISED}; this run has other settings."]
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
    parser = options(__doc__ or "", CASES, [*CASES, *GPU_CASES], seconds=40.0)
    parser.add_argument("--dtype", choices=DTYPES, default="float64")
    compile_help = "also time torch.compile, which takes seconds per case (default: unless --quick)"
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help=compile_help)
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    settings = parse(parser)
    settings.dtype = DTYPES[settings.dtype]
    if settings.compile is None:
        settings.compile = not settings.quick
    return settings


def main() -> None:
    settings = arguments()
    every = CASES | GPU_CASES
    chosen = {name: every[name].quick if settings.quick else every[name] for name in settings.cases}
    if settings.peak:
        case, contender = settings.peak
        torch.set_num_threads(settings.threads)
        print(peak(chosen[case], contender, settings))
        return
    with measuring(settings) as results:
        jax = import_jax(settings.device)
        results["environment"]["jax"] = None if jax is None else jax.__version__
        cases = results["cases"] = {}
        for name, case in chosen.items():
            print(f"{name}: {case} ...", end=" ", file=sys.stderr, flush=True)
            try:
                cases[name] = found = measure(case, settings, jax)
            except Disagreement as error:
                sys.exit(f"\nerror: {error}")
            print(f"{format_bytes(found['bytes'])}, {found['rounds']} rounds", file=sys.stderr)
    promised = not settings.quick and settings.threads == 2
    promised = promised and settings.dtype == torch.float64 and settings.device.type == "cpu"
    results["settings"] |= {"dtype": name_of(settings.dtype), "promised": promised}
    results["promises"] = promises(cases, promised)
    results["memory"] = peaks(settings.cases, settings) if settings.memory else {}
    suffix = "" if settings.dtype == torch.float64 else f"-{name_of(settings.dtype)}"
    deliver(f"jacobian{suffix}", settings, results, report(results))


if __name__ == "__main__":
    main()
