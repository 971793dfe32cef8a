"""The tables of docs/cuda.md: expected times of the CUDA kernels.

    python benchmarks/roofline.py              # prints them
    python benchmarks/roofline.py --update     # writes them into the page

Sizes are those of the other benchmarks. gpu_model.py does the calculations, with results/inner_loops.json and
results/machine_code.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from contenders import CASES, GPU_CASES
from gpu_model import (
    COPY,
    GPUS,
    JACOBI_SWEEPS,
    Gpu,
    Work,
    gram,
    jacobian,
    loops,
    svdvals,
    vector_turn,
    widest,
)
from harness import number, table, write
from machine_code import MULTIPROCESSORS, RESULTS
from rank import GRAM_CASES, SVD_CASES

from llr.inputs.memory import format_bytes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cuda.md"
BEGIN, END = "<!-- benchmarks/roofline.py -->", "<!-- end -->"
SHOWN = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3")


def devices() -> str:
    head = ["GPU", "target", "multiprocessors", "clock MHz", "memory GB/s", "FP64 TFLOP/s"]
    head += ["shared memory of a block", "widest matrix"]
    rows = [
        [
            gpu.name,
            gpu.target,
            str(gpu.multiprocessors),
            f"{gpu.clock / 1e6:.0f}",
            number(gpu.bandwidth / 1e9),
            number(gpu.flops / 1e12),
            f"{gpu.shared >> 10} KiB",
            str(widest(gpu)),
        ]
        for gpu in GPUS.values()
    ]
    return table(head, rows)


def occupancies() -> str:
    """The warps that registers and shared memory allow, from machine_code.json."""
    found = json.loads((RESULTS / "machine_code.json").read_text())["kernels"]
    head = ["kernel", "threads", "registers", "shared memory", "warps at once", "", ""]
    rows = []
    for kernels in found.values():
        for kernel, by_target in kernels.items():
            for target in ("sm_80", "sm_90"):
                k = by_target[target]
                warps = round(k["occupancy"] * MULTIPROCESSORS[target].warps)
                rows.append(
                    [
                        f"`{kernel}`, {target}",
                        str(k["threads"]),
                        str(k["registers"]),
                        f"{k['shared'] + k['dynamic_shared']:,}",
                        f"{warps} of {MULTIPROCESSORS[target].warps}",
                    ]
                )
    return table(head[:5], rows)


def writing() -> str:
    """One iteration by a warp of the loop that writes rows: 512 bytes."""
    found = json.loads((RESULTS / "machine_code.json").read_text())["kernels"]["jacobian.cu"]
    head = [
        "kernel, GPU",
        "instructions",
        "column lookup",
        "issue",
        "FP64",
        "conversion",
        "L1 / shared",
    ]
    head += ["memory allows", "a turn may last"]
    rows = []
    for gpu in (GPUS[name] for name in SHOWN):
        for kernel in ("write_kernel", "net_kernel"):
            for dtype in (torch.float64, torch.float32):
                name = f"{kernel}<{'double' if dtype.itemsize == 8 else 'float'}>"
                loop, work = loops(gpu)[name], Work(gpu, 512, 0)
                work.instructions(1, loop["vector"], vector_turn(dtype.itemsize))
                cycles = {what: t * gpu.cycles for what, t in work.limits.items()}
                allowed = 512 / (COPY * gpu.bandwidth) * gpu.cycles
                k = found[name][gpu.target]
                warps = k["occupancy"] * MULTIPROCESSORS[gpu.target].warps
                rows.append(
                    [
                        f"`{name}`, {gpu.name}",
                        str(loop["vector"]["instructions"]),
                        str(loop["lookup"]),
                        *(
                            number(cycles[w])
                            for w in ("issue", "FP64", "conversion", "L1 / shared")
                        ),
                        number(allowed),
                        number(allowed * warps),
                    ]
                )
    return table(head, rows)


def bounds(rows: Iterable[tuple[str, Work]], shown: list[str]) -> list[list[str]]:
    """Microseconds by resource."""
    return [[what, *(number(1e6 * work.limits[s]) for s in shown)] for what, work in rows]


def jacobians(gpu: Gpu) -> str:
    shown = ["memory", "L2", "L1 / shared", "issue", "FP64"]
    head = ["case", "J", "way", "kernels", *shown, "expected", "of copy", "limited by"]
    rows = []
    for name, case in (CASES | GPU_CASES).items():
        for dtype in (torch.float64, torch.float32):
            work = jacobian(case.widths, case.n, case.points, dtype.itemsize, gpu)
            kind = str(dtype).removeprefix("torch.")
            label = f"{name}: {case}, {kind}"
            (row,) = bounds([(label, work)], shown)
            share = work.limits["memory"] / work.seconds
            rows.append(
                [
                    row[0],
                    format_bytes(work.nbytes),
                    work.path,
                    str(work.launches),
                    *row[1:],
                    number(1e6 * work.seconds),
                    f"{share:.0%}",
                    work.limit,
                ]
            )
    return table(head, rows)


def grams(gpu: Gpu) -> str:
    shown = ["memory", "L2", "L1 / shared", "issue", "FP64"]
    head = ["case", "kernels", *shown, "expected", "TFLOP/s", "of FP64", "limited by"]
    rows = []
    for name, case in GRAM_CASES.items():
        for double_double in (False, True):
            work = gram(case.widths, case.n, double_double, gpu)
            label = f"{name}: {case}" + (", double-double" if double_double else "")
            (row,) = bounds([(label, work)], shown)
            row[1:1] = [str(work.launches)]
            share = work.limits["FP64"] / work.seconds
            rate = work.flops / work.seconds
            row += [number(1e6 * work.seconds), number(rate / 1e12), f"{share:.0%}", work.limit]
            rows.append(row)
    return table(head, rows)


def singular_values(gpu: Gpu) -> str:
    shown = ["memory", "L1 / shared", "issue", "FP64"]
    head = ["case", "sweeps", "at once", *shown, "expected", "TFLOP/s", "of FP64", "limited by"]
    rows = []
    for name, case in SVD_CASES.items():
        work = svdvals(case.number, case.rows, case.columns, JACOBI_SWEEPS[name], gpu)
        (row,) = bounds([(f"{name}: {case}", work)], shown)
        row[1:1] = [str(JACOBI_SWEEPS[name]), work.path]
        share, rate = work.limits["FP64"] / work.seconds, work.flops / work.seconds
        row += [number(1e6 * work.seconds), number(rate / 1e12), f"{share:.0%}", work.limit]
        rows.append(row)
    return table(head, rows)


def tables() -> str:
    """All tables, as Markdown."""
    text = ["#### GPUs", devices(), "#### Occupancy", occupancies()]
    text += ["#### Writing rows, in cycles of a multiprocessor", writing()]
    for gpu in (GPUS[name] for name in SHOWN):
        text += [f"#### Jacobians on {gpu.name}, in microseconds", jacobians(gpu)]
    for gpu in (GPUS[name] for name in SHOWN):
        text += [f"#### Gram matrices on {gpu.name}, in microseconds", grams(gpu)]
    for gpu in (GPUS[name] for name in SHOWN):
        text += [f"#### Singular values on {gpu.name}, in microseconds", singular_values(gpu)]
    return "\n\n".join(text)


def updated(page: str) -> str:
    """The page, with its tables replaced by these."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE.name} has no {BEGIN} ... {END}")
    return f"{before}{begin}\n\n{tables()}\n\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="write them into docs/cuda.md")
    if parser.parse_args().update:
        write(PAGE, updated(PAGE.read_text(encoding="utf-8")))
    else:
        print(tables())


if __name__ == "__main__":
    main()
