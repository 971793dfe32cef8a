"""Least squares from many starts: problems and recovered functions per second, by llr and other libraries.

    python benchmarks/recovery.py              # some minutes; writes benchmarks/results/recovery.{json,md}
    python benchmarks/recovery.py --quick      # tiny sizes, to check that it runs; writes only to --out

All contenders use one thread and the same targets, samples and starts; those that solve one problem after the
other get a part of the starts. Before the timing, starts that a contender calls converged are checked. A
second table shows how many samples strategies need to recover the targets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

import recovery_thresholds
import torch
from harness import (
    VERDICTS,
    WallClock,
    deliver,
    interleaved,
    measuring,
    number,
    options,
    parse,
    ratios,
    summary,
    table,
)
from recovery_contenders import (
    BATCHED,
    BATCHED_SLOW,
    CASES,
    MINPACK,
    NATIVE,
    NATIVE_SLOW,
    OPTIMISTIX,
    TOL,
    TRF,
    TRF_OWN,
    Case,
    Problems,
    judge,
    share_of,
    solvers,
)

from llr.recovery import lm_reference
from llr.recovery.damping import DAMPING

RATIOS = (
    (BATCHED, NATIVE),
    (BATCHED_SLOW, NATIVE_SLOW),
    (TRF, NATIVE),
    (TRF_OWN, NATIVE),
    (MINPACK, NATIVE),
    (OPTIMISTIX, NATIVE),
)
"""Pairs of contenders; the ratio is the time per problem of the first over that of the second."""

PROMISES = (
    (BATCHED, NATIVE, 20.0, True),
    (BATCHED_SLOW, NATIVE_SLOW, 20.0, True),
    (TRF, NATIVE, 50.0, False),
)
"""Pair, smallest ratio, and whether the faster contender must fit as large a fraction of its starts."""
_PRODUCT = 512  # size of square matrices whose product measures this machine's speed


def measured(case: Case, settings: argparse.Namespace) -> dict[str, Any]:
    """Seconds per problem, one sample per round; the fractions fitted and recovered; the least operations."""
    problems = Problems.of(case)
    ways = solvers()
    given = {name: share_of(name, problems) for name in ways}
    shares = {name: judge(name, given[name], way(given[name])) for name, way in ways.items()}
    runs: dict[str, Any] = {name: (lambda n=name: ways[n](given[n])) for name in ways}
    square = torch.rand(_PRODUCT, _PRODUCT, dtype=torch.float64)
    runs["product"] = lambda: square @ square
    clock = WallClock(settings.device)
    _, samples = interleaved(runs, clock, settings.seconds, settings.quick)
    products = samples.pop("product")
    each = {name: [t / len(given[name].which) for t in times] for name, times in samples.items()}
    work = operations(problems)
    return {
        "case": asdict(case),
        "problems": {name: len(p.which) for name, p in given.items()},
        "seconds_per_problem": each,
        "fitted": {name: s.fitted for name, s in shares.items()},
        "recovered": {name: s.recovered for name, s in shares.items()},
        "ratios": ratios(each, RATIOS),
        "operations_per_problem": work,
        "operations_per_second": 2 * _PRODUCT**3 / median(products),
    }


def operations(problems: Problems) -> dict[str, float]:
    """The least number of additions and multiplications of a problem with fast damping, on average.

    The numbers of outputs, Jacobians and systems are those of the solver in torch operations. Hyperbolic
    tangents and the choice of steps are not counted.
    """
    case = problems.case
    n, d, m, P = case.samples, case.d, case.width, case.parameters
    calls = {"outputs": 0, "jacobian": 0}

    def counted(name: str) -> Any:
        function = getattr(problems.functions, name)

        def call(theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            calls[name] += len(theta)
            return function(theta, x)

        return call

    functions = lm_reference.Functions(counted("outputs"), counted("jacobian"))
    p = problems
    with torch.no_grad():
        lm_reference.solve(functions, p.starts, p.x, p.y, p.which, DAMPING["fast"], TOL)
    trials, taken = (calls[name] / len(p.which) for name in ("outputs", "jacobian"))
    outputs = 2 * n * m * d + 3 * n * m + 3 * n
    if n < P:  # JJ' from the inputs of neurons and the derivatives of the output
        normal = n * (n + 1) // 2 * (2 * d + 2 * m + 2 * m + 1) + 2 * n * m
        order, back = n, 2 * n * m * d + 2 * n * m
    else:
        normal = 2 * n * m + n * m * d + n * P * (P + 1) + 2 * n * P
        order, back = P, 0
    system = order**3 / 3 + 2 * order**2 + back
    return {
        "outputs": trials * outputs,
        "normal": taken * normal,
        "system": trials * system,
        "total": trials * (outputs + system) + taken * normal,
        "trials": trials,
        "taken": taken,
    }


def promises(cases: Mapping[str, Any], apply: bool) -> list[dict[str, Any]]:
    """The promises, the measurements and, if promises apply, whether they hold.

    "As many starts fitted" is checked up to two standard deviations.
    """
    rows = []
    for name, found in cases.items():
        for slower, faster, bound, equally in PROMISES:
            pair = f"{slower} / {faster}"
            if pair not in found["ratios"]:
                continue
            ratio = found["ratios"][pair]["of_medians"]
            a, b = found["fitted"][slower], found["fitted"][faster]
            few = min(found["problems"][slower], found["problems"][faster])
            as_many = b >= a - 2 * (a * (1 - a) / few) ** 0.5
            row = {"case": name, "ratio": pair, "bound": bound, "measured": ratio}
            holds = ratio >= bound and (as_many or not equally)
            row["as_many"] = as_many if equally else None
            rows.append(row | {"holds": holds if apply else None})
    return rows


def report(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    text = ["# Recovery", summary(results["environment"], "float64")]
    text += [f"**Not reliable: {warning}.**" for warning in results["warnings"]]
    for name, found in results["cases"].items():
        text += [_case(name, found), _rows(found), _floor(found)]
    kept = [
        [
            p["case"],
            p["ratio"],
            f"≥ {p['bound']:g}",
            number(p["measured"]),
            VERDICTS[p["as_many"]],
            VERDICTS[p["holds"]],
        ]
        for p in results["promises"]
    ]
    head = ["case", "ratio of times", "promised", "measured", "fits as many", "holds"]
    text += ["## Promises", table(head, kept)] if kept else []
    text += [recovery_thresholds.report(results["thresholds"])]
    return "\n\n".join(text) + "\n"


def _case(name: str, found: Mapping[str, Any]) -> str:
    case = found["case"]
    return (
        f"## {name}: d = {case['d']}, k = {case['k']}, width {case['width']}, n = {case['samples']}\n\n"
        f"{case['targets']} well separated tanh targets. Fitted: relative squared error on the samples at "
        f"most {TOL:g}; recovered: also at fresh points, below 1e-8."
    )


def _rows(found: Mapping[str, Any]) -> str:
    rows = []
    for name, times in found["seconds_per_problem"].items():
        per_second = 1 / median(times)
        fitted, recovered = found["fitted"][name], found["recovered"][name]
        slower = found["ratios"].get(f"{name} / {NATIVE}")
        rows.append(
            [
                name,
                str(found["problems"][name]),
                number(per_second),
                f"{fitted:.2f}",
                number(fitted * per_second),
                f"{recovered:.2f}",
                number(recovered * per_second),
                "-" if slower is None else f"{number(slower['of_medians'])}x",
            ]
        )
    head = ["solver", "starts", "starts/s", "fitted", "fitted/s", "recovered", "recovered/s"]
    return table([*head, f"time over {NATIVE}"], rows)


def _floor(found: Mapping[str, Any]) -> str:
    work, speed = found["operations_per_problem"], found["operations_per_second"]
    text = (
        f"A start takes {work['trials']:.0f} trial steps, {work['taken']:.0f} of them taken, and at least "
        f"{work['total'] / 1e3:,.0f} thousand operations ({work['normal'] / work['total']:.0%} for normal "
        f"matrices, {work['system'] / work['total']:.0%} for their factors and steps). Multiplying matrices "
        f"of {_PRODUCT}, this core does {speed / 1e9:.0f} GFLOP/s: at most "
        f"{number(speed / work['total'])} starts/s."
    )
    if NATIVE in found["seconds_per_problem"]:
        share = work["total"] / speed / median(found["seconds_per_problem"][NATIVE])
        text += f" llr reaches {share:.0%} of it."
    return text


def main() -> None:
    parser = options(__doc__ or "", CASES, CASES, seconds=60.0)
    parser.set_defaults(threads=1)
    settings = parse(parser)
    if settings.device.type != "cpu":
        parser.error(f"--device is {settings.device}; the solvers are compared on the CPU")
    with measuring(settings) as results:
        cases = results["cases"] = {}
        for name in settings.cases:
            case = CASES[name].quick() if settings.quick else CASES[name]
            print(f"{name}: {case}", file=sys.stderr)
            cases[name] = measured(case, settings)
        results["promises"] = promises(cases, not settings.quick)
        print("sample sizes", file=sys.stderr)
        results["thresholds"] = recovery_thresholds.measured(settings.quick)
    deliver("recovery", settings, results, report(results))


if __name__ == "__main__":
    main()
