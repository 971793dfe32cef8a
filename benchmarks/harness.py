"""Shared parts of the benchmarks: options, interleaved timing, facts about the machine, tables, files."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import gpu
import psutil
import torch
from gpu import Run

import llr

Clock = Callable[[Run, int], float]
"""Calls a function a given number of times, and returns the seconds that this took."""

SHORTEST_SAMPLE = 2e-3  # s; faster contenders are called several times per sample
ROUNDS = (5, 101)
QUIET_LOAD = 0.5  # a higher load average at the start means that other programs are running

VERDICTS = {None: "-", True: "yes", False: "**no**"}
"""How a table shows whether a promise holds; "-" if it does not apply."""


def options(
    description: str, on_cpu: Iterable[str], on_gpu: Iterable[str], seconds: float
) -> argparse.ArgumentParser:
    """The command-line options that all benchmarks share.

    Args:
        description: the help shows its first line.
        on_cpu: the default cases on the CPU.
        on_gpu: the default cases on a GPU.
        seconds: the default of ``--seconds``.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    on_cpu, on_gpu = list(on_cpu), list(on_gpu)
    parser.set_defaults(on_cpu=on_cpu, on_gpu=on_gpu)
    add, threads = parser.add_argument, torch.get_num_threads()
    cases = list(dict.fromkeys(on_cpu + on_gpu))
    add("--quick", action="store_true", help="tiny sizes, two rounds, to check that it runs")
    add("--out", type=Path, help="folder for the results (default: benchmarks/results)")
    add("--cases", nargs="+", choices=cases, metavar="CASE", help=", ".join(cases))
    add("--device", default="cpu", help="as torch names it, e.g. cuda")
    add("--threads", type=int, default=threads, help="of torch (JAX chooses its own)")
    time_help = f"to spend on each case (default: {seconds:g})"
    add("--seconds", type=float, default=seconds, help=time_help)
    add("--memory", action="store_true", help="also peak memory, in fresh processes")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse and check the command line."""
    settings = parser.parse_args()
    if settings.threads < 1:
        parser.error(f"--threads is {settings.threads}; expected at least 1")
    if settings.out is None and not settings.quick:  # results of a quick run are not kept
        settings.out = Path(__file__).parent / "results"
    try:
        settings.device = torch.device(settings.device)
        torch.empty(0, device=settings.device)
        if settings.device.type == "cuda":
            torch.cuda.set_device(settings.device)
        if settings.out is not None:
            settings.out.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, AssertionError, OSError) as error:
        parser.error(str(error).partition("\n")[0])
    if settings.memory and not measures_memory(settings.device):
        parser.error("--memory reads /proc/self/status; expected Linux, or --device=cuda")
    if settings.cases is None:
        settings.cases = settings.on_gpu if settings.device.type == "cuda" else settings.on_cpu
    return settings


@contextlib.contextmanager
def measuring(settings: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Give a dictionary for results that has the machine, the settings and, at the end, warnings.

    The caller adds the measurements. If other programs use the machine, a warning is printed at the start,
    and one is kept in the results.
    """
    torch.set_num_threads(settings.threads)
    facts = environment(settings.device)
    before = facts["load_average"]
    if warning := load_warning(before):
        print(f"warning: {warning}; something else is running", file=sys.stderr)
    results: dict[str, Any] = {
        "environment": facts,
        "settings": {"quick": settings.quick, "seconds_per_case": settings.seconds},
    }
    yield results
    facts["load_average_after"] = os.getloadavg()[0]
    warning = load_warning(before, facts["load_average_after"])
    results["warnings"] = [warning] if warning else []


def deliver(
    benchmark: str, settings: argparse.Namespace, results: Mapping[str, Any], text: str
) -> None:
    """Print the results, and write them as JSON and as Markdown if there is a folder for them."""
    print(text)
    if settings.out is not None:
        name = result_name(benchmark, settings.device)
        document = json.dumps(results, indent=1, allow_nan=False)
        write(settings.out / f"{name}.json", document + "\n")
        write(settings.out / f"{name}.md", text)


def result_name(benchmark: str, device: torch.device) -> str:
    """The name of the results' files, without suffix; each model of GPU has its own files."""
    return benchmark if device.type != "cuda" else f"{benchmark}-{gpu.short_name(device)}"


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class WallClock:
    """Wall-clock seconds until the device has finished all work of the calls."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, run: Run, calls: int) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(self.device)
        return time.perf_counter() - start


def clock_of(device: torch.device) -> Clock:
    """The clock for this device: events on a GPU, else the wall clock."""
    return gpu.EventClock() if device.type == "cuda" else WallClock(device)


def interleaved(
    runs: Mapping[str, Run], clock: Clock, seconds: float, quick: bool = False
) -> tuple[dict[str, int], dict[str, list[float]]]:
    """Time contenders in rounds: each once per round, in an order that is shuffled for each round.

    A change of the machine's speed then affects all contenders alike. Freeing a contender's result is part of
    its time, as in a loop.

    Args:
        runs: name -> function to call; each has already been called once.
        clock: measures the time.
        seconds: the total time to spend, within the bounds of ``ROUNDS``.
        quick: only two rounds.

    Returns:
        The calls per sample, enough that a sample lasts at least ``SHORTEST_SAMPLE``; and the seconds per
        call, one sample per round.
    """
    calls, expected = dict.fromkeys(runs, 1), 0.0
    for name in runs:  # this also warms up: a GPU's clock rises under load
        while (took := clock(runs[name], calls[name])) < SHORTEST_SAMPLE:
            calls[name] *= 2
        expected += took
    fewest, most = (2, 2) if quick else ROUNDS
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffle = list(runs), random.Random(0).shuffle
    gc.disable()
    try:
        for _ in range(min(most, max(fewest, int(seconds / expected)))):
            gc.collect()  # large results in reference cycles would accumulate
            shuffle(order)
            for name in order:
                samples[name].append(clock(runs[name], calls[name]) / calls[name])
    finally:
        gc.enable()
    return calls, samples


def ratios(
    samples: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, float]]:
    """The ratio of the medians, and the median of the ratios within each round, by "a / b".

    The two differ if the machine's speed changed. Pairs without samples are left out.
    """
    return {
        f"{a} / {b}": {
            "of_medians": median(samples[a]) / median(samples[b]),
            "median_of_rounds": median(s / t for s, t in zip(samples[a], samples[b], strict=True)),
        }
        for a, b in pairs
        if a in samples and b in samples
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Facts that the numbers depend on: machine, versions, settings, load, commit."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "transparent_huge_pages": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "gpu": gpu.facts(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "llr": llr.__version__,
        "llr_info": llr.info().facts,
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with "-dirty" if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def load_warning(before: float, after: float | None = None) -> str | None:
    """A warning if the load average before or after a run shows that other programs were running, else None.

    The load average after the run includes our own threads.
    """
    if before > QUIET_LOAD:
        return f"the load average was {before:.1f} at the start"
    threads = torch.get_num_threads()
    if after is not None and after > threads + 1:
        return f"the load average was {after:.1f} at the end, with {threads} threads of our own"
    return None


def summary(facts: Mapping[str, Any], dtype: str) -> str:
    """The facts that matter most for a table's numbers, as the line above the table."""
    info, card = facts["llr_info"], facts["gpu"]
    code, device = info.get("instructions", info["backend"]), facts["device"]
    if card is not None:
        clocks = [card.get(name) for name in ("clock_mhz", "highest_clock_mhz")]
        device += f" (driver {card.get('driver', 'unknown')}, CUDA {card['cuda']}"
        device += "" if None in clocks else ", {:g} of {:g} MHz at the start".format(*clocks)
        device, code = device + ")", f"kernels {info.get('CUDA kernels', 'none')}"
    return (
        f"{dtype} on {device}, torch threads: {facts['threads']}; {facts['cpu']}; torch "
        f"{facts['torch']}, llr {facts['llr']}, {code}; "
        f"commit {facts['commit'] or 'unknown'}, {facts['date']}."
    )


def measures_memory(device: torch.device) -> bool:
    """Whether `peak_growth` works for this device and system."""
    return device.type == "cuda" or sys.platform == "linux"


def peak_growth(run: Run, device: torch.device) -> int:
    """The largest growth in bytes of this process's memory (of the GPU's, on a GPU) during a call.

    On the CPU this is the high-water mark of the Linux kernel, which is reset before the call. Freed memory
    is first returned to the system, if the C library can do that: a call that reuses freed memory would seem
    to take none.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    run()
    return high_water_mark() - before


def high_water_mark() -> int:
    """The largest memory of this process in bytes, including loaded code, since `peak_growth` began."""
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return peak * 1024


def number(value: float | None) -> str:
    """A number with three digits, for a table; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
