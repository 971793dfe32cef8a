"""How time and memory of ranks grow with P and n; each point is measured in a separate process.

benchmarks/rank.py starts this file as that process: ``python rank_scaling.py JSON`` prints the measurement.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from contenders import Case
from harness import high_water_mark, measures_memory, peak_growth, synchronize
from rank_contenders import (
    CERTIFIED,
    GRAM,
    SVD,
    TORCH_FUNC,
    TSQR,
    facts,
    network,
    rank_contender,
)

from llr.inputs.memory import format_bytes

CONTENDERS = (TORCH_FUNC, SVD, TSQR, GRAM, CERTIFIED)
HOLD_J = {TORCH_FUNC: 3.5, SVD: 2.5}
"""Peak memory in multiples of J's size: measured 3.0 and 2.1, plus a margin."""

LONGEST = 60.0  # s; a contender that takes longer is not tried on larger cases
ENOUGH = 0.5  # s of calls are enough for a median
MOST_CALLS = 9


@dataclass(frozen=True)
class Point:
    """One contender on one case; a process measures one point."""

    case: Case
    contender: str
    device: str
    threads: int


@dataclass(frozen=True)
class Sweep:
    """Cases in which one size grows and the other is fixed."""

    fixed: str
    cases: tuple[Case, ...]


SWEEPS = {
    "P": Sweep("n = 256", tuple(Case((10, 2**k, 2**k, 1), 256) for k in range(2, 12))),
    "n": Sweep("P = 18,049", tuple(Case((10, 128, 128, 1), 2**k) for k in range(4, 12))),
}
QUICK_SWEEPS = {
    "P": Sweep("n = 8", (Case((2, 3, 3, 1), 8),)),
    "n": Sweep("P = 25", (Case((2, 3, 3, 1), 8),)),
}


def parameters(case: Case) -> int:
    return sum((into + 1) * out for into, out in pairwise(case.widths))


def jacobian_bytes(case: Case) -> int:
    return case.n * case.widths[-1] * parameters(case) * 8


def measure(point: Point) -> dict[str, Any]:
    """Seconds and bytes of a rank in this process, which should have done nothing else before.

    A first call with two samples loads the code and starts the thread pools.
    """
    torch.set_num_threads(point.threads)
    device = torch.device(point.device)
    seconds: list[float] = []
    said: dict[str, Any] = {}
    for case in (replace(point.case, n=2), point.case):
        model, x = network(case, device)
        run = rank_contender(point.contender, model, x)

        def timed(run: Callable[[], Any] = run) -> None:
            synchronize(device)
            start = time.perf_counter()
            result = run()
            synchronize(device)
            seconds.append(time.perf_counter() - start)
            said.update(facts(result))

        seconds.clear()
        if measures_memory(device):
            said["growth_bytes"] = peak_growth(timed, device)
            said["peak_bytes"] = (
                torch.cuda.max_memory_allocated(device)
                if device.type == "cuda"
                else high_water_mark()
            )
        else:
            timed()
    while sum(seconds) < ENOUGH and len(seconds) < MOST_CALLS:
        timed()
    return {"seconds": median(seconds), "calls": len(seconds), **said}


def fresh(point: Point, longest: float) -> dict[str, Any]:
    """Run `measure` in a new process and return its result; if there is none, "missing" says why."""
    command = [sys.executable, __file__, json.dumps(asdict(point))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest, check=False)
    except subprocess.TimeoutExpired:
        return {"missing": f"over {longest:g} s", "failed": False}
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2] or "no message"
        if done.returncode < 0:  # signal 9: the kernel ends processes that take too much memory
            last = f"ended by signal {-done.returncode}"
        return {"missing": last, "failed": True}
    return json.loads(done.stdout.splitlines()[-1])


def scaling(
    sweeps: Mapping[str, Sweep],
    device: torch.device,
    threads: int,
    run: Callable[[Point, float], dict[str, Any]],
) -> dict[str, Any]:
    """Measure every contender along every sweep, until it takes too long or J does not fit.

    Args:
        sweeps: by the name of the size that grows.
        device: the device.
        threads: the number of torch's threads.
        run: `fresh`.

    Returns:
        For each sweep the fixed size, and the points: contender, case, n, P, bytes of J, and `run`'s result.
    """
    known: dict[Point, dict[str, Any]] = {}  # the sweeps have a case in common
    found: dict[str, Any] = {}
    for axis, sweep in sweeps.items():
        points = []
        for contender in CONTENDERS:
            for case in sweep.cases:
                point = Point(case, contender, str(device), threads)
                if point not in known:
                    obstacle = too_large(case, contender, free_bytes(device))
                    known[point] = obstacle or run(point, LONGEST)
                    say = known[point].get("missing") or f"{known[point]['seconds']:.3g} s"
                    print(f"{case}: {contender}: {say}", file=sys.stderr, flush=True)
                sizes = {"n": case.n, "P": parameters(case), "J_bytes": jacobian_bytes(case)}
                points.append({"contender": contender, "case": str(case), **sizes, **known[point]})
                if "missing" in known[point]:
                    break
        found[axis] = {"fixed": sweep.fixed, "points": points}
    return found


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def too_large(case: Case, contender: str, free: int) -> dict[str, Any] | None:
    """Why a contender is not tried, or None. Running out of memory could stop other processes too."""
    needed = int(HOLD_J.get(contender, 0) * jacobian_bytes(case))
    if needed <= free:
        return None
    return {"missing": f"needs about {format_bytes(needed)}", "failed": False}


def save_figure(scaling: Mapping[str, Any], path: Path) -> None:
    """Draw time and memory against P and against n; needs matplotlib.

    Colours are those of `llr.results.figures`; markers distinguish the contenders without colours.
    """
    import matplotlib  # noqa: PLC0415 (optional: draws the figure)
    from matplotlib.figure import Figure  # noqa: PLC0415

    from llr.results import figures as plot  # noqa: PLC0415 (needs matplotlib)

    style: Any = {
        "font.size": 9,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.3,
        "lines.markersize": 4,
    }
    rows = {"seconds": "seconds", "growth_bytes": "peak memory, bytes"}
    columns = {"P": "parameters P", "n": "samples n"}
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(7.2, 6.0), layout="constrained")
        panels = drawn.subplots(len(rows), len(scaling), sharex="col", sharey="row", squeeze=False)
        for row, quantity in enumerate(rows):
            for column, (axis, sweep) in enumerate(scaling.items()):
                panel = panels[row, column]
                curves(panel, sweep["points"], axis, quantity, plot.COLOURS)
                panel.set_xscale("log")
                panel.set_yscale("log")
                panel.grid(alpha=0.25, linewidth=0.5)
                panels[0, column].set_title(sweep["fixed"])
                panels[-1, column].set_xlabel(columns[axis])
            panels[row, 0].set_ylabel(rows[quantity])
        # Values below a few pages are noise, and would take most of a logarithmic axis.
        panels[1, 0].set_ylim(bottom=1e5)
        handles, labels = panels[1, 0].get_legend_handles_labels()
        handles.append(panels[1, 0].plot([], [], "x", color="#666666", markersize=7)[0])
        labels.append("did not get further")
        drawn.legend(handles, labels, loc="outside lower center", ncols=4)
    plot.save(drawn, path)


def curves(panel: Any, points: Any, axis: str, quantity: str, colours: Any) -> None:
    """Draw one line per contender; a cross marks the largest case of a contender that ended early."""
    for contender, colour, marker in zip(CONTENDERS, colours, "os^Dv", strict=False):
        own = [point for point in points if point["contender"] == contender]
        shown = [point for point in own if point.get(quantity) is not None]
        x = [point[axis] for point in shown]
        y = [max(point[quantity], 1e-6) for point in shown]  # zero growth has no logarithm
        panel.plot(x, y, marker=marker, color=colour, label=contender)
        if shown and len(shown) < len(own):
            panel.plot(x[-1:], y[-1:], "x", color=colour, markersize=9, markeredgewidth=1.6)
    if quantity == "growth_bytes":
        sizes = sorted({(point[axis], point["J_bytes"]) for point in points})
        panel.plot(
            *zip(*sizes, strict=True), color="#666666", ls=(0, (4, 2)), lw=1, label="J itself"
        )


def main() -> None:
    given = json.loads(sys.argv[1])
    case = given.pop("case")
    print(json.dumps(measure(Point(Case(tuple(case["widths"]), case["n"]), **given))))


if __name__ == "__main__":
    main()
