"""Instruction counts of the kernels' inner loops in nvcc's machine code, used by gpu_model.py.

    python benchmarks/inner_loops.py      # writes benchmarks/results/inner_loops.json

It needs the same tools as benchmarks/machine_code.py, and no GPU.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import write
from machine_code import (
    FLAGS,
    RESULTS,
    CompilerError,
    MissingError,
    compiled,
    demangled,
    nvcc_version,
    parts,
    sources,
    width,
)

TARGETS = ["sm_80", "sm_90"]
NAME = "inner_loops"
KINDS = ("LDS", "STS", "LDG", "STG", "DFMA", "DMUL", "DADD", "F2F", "SHFL")

# Kernels with only an activation: tanh, which the benchmarks use, and the identity, which costs nothing.
PROBE = """
#include "signals/cuda/activate.cuh"
namespace llr::cuda {
template <Activation A>
LLR_KERNEL(256, 4) values(const double* z, double* to) {
  const Pair p = llr::activate<A>(z[threadIdx.x]);
  store_scalar(to + threadIdx.x, p.value);
  store_scalar(to + 256 + threadIdx.x, p.slope);
}
template __global__ void values<Activation::identity>(const double*, double*);
template __global__ void values<Activation::tanh>(const double*, double*);
}
"""
IDENTITY, TANH = 0, 1  # places in csrc/common/activation.h


@dataclass(frozen=True)
class Instruction:
    address: int
    predicated: bool
    operation: str
    target: int | None  # of a branch

    @property
    def kind(self) -> str:
        return self.operation.split(".")[0]


@dataclass(frozen=True)
class Loop:
    first: int
    last: int

    def holds(self, other: Loop) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


Code = Sequence[Instruction]


def instructions(text: str) -> list[Instruction]:
    """The instructions of a kernel, from its disassembly."""
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
    found = []
    for address, predicate, operation, operands in line.findall(text):
        places = re.findall(r"0x([0-9a-f]+)", operands) if operation.startswith("BRA") else []
        target = int(places[-1], 16) if places else None
        conditional = bool(predicate) or bool(re.match(r"\s*!?P\d", operands))
        found.append(Instruction(int(address, 16), conditional, operation, target))
    return found


def loops(code: Code) -> list[Loop]:
    return [
        Loop(i.target, i.address) for i in code if i.target is not None and i.target < i.address
    ]


def within(code: Code, loop: Loop) -> list[Instruction]:
    return [i for i in code if loop.first <= i.address <= loop.last]


def usual_path(code: Code) -> list[Instruction]:
    """The code without rare parts that a branch skips: calls for special cases, stores of partial vectors."""
    skipped: set[int] = set()
    for branch in code:
        if branch.target is None or not branch.predicated:
            continue
        if not branch.address < branch.target <= code[-1].address:  # backwards, or out of this code
            continue
        if branch.address in skipped:
            continue
        between = [i for i in code if branch.address < i.address < branch.target]
        if any(i.kind == "CALL" or is_narrow_store(i) for i in between):
            skipped |= {i.address for i in between}
    return [i for i in code if i.address not in skipped]


def is_narrow_store(i: Instruction) -> bool:
    return i.kind == "STG" and width(i.operation) != "128"


def counts(code: Code) -> dict[str, int]:
    kinds = Counter(i.kind for i in code)
    return {"instructions": len(code), **{kind: kinds[kind] for kind in KINDS if kinds[kind]}}


def innermost(
    code: Code, wanted: Callable[[dict[str, int]], bool] = lambda _: True
) -> dict[str, int]:
    """Counts of the innermost loop with the most arithmetic, among those that `wanted` accepts."""
    every = loops(code)
    inner = [loop for loop in every if not any(loop.holds(other) for other in every)]
    found = [counts(within(code, loop)) for loop in inner]
    return max(filter(wanted, found), key=arithmetic)


def arithmetic(found: dict[str, int]) -> int:
    return sum(found.get(kind, 0) for kind in ("DFMA", "DMUL", "DADD"))


def mixes(found: dict[str, int], multiply_adds: int, loads: int, stores: int) -> bool:
    """Whether an iteration of a loop, unrolled or not, has these operations on numbers in shared memory."""
    turns = found.get("DFMA", 0) // multiply_adds
    shared = (found.get("DFMA", 0), found.get("LDS", 0), found.get("STS", 0))
    return turns > 0 and shared == (turns * multiply_adds, turns * loads, turns * stores)


def writer(code: Code) -> dict[str, Any]:
    """Counts of the loop that writes: an iteration writes one vector of a row ("vector").

    Before the rows, the vector's columns are looked up ("lookup"); before the vectors, a thread finds its
    first row ("start"). The numbers of these two are upper bounds.
    """
    vector = next(i for i in code if i.kind == "STG" and width(i.operation) == "128")
    every = [loop for loop in loops(code) if loop.first <= vector.address <= loop.last]
    rows, vectors, starts = sorted(every, key=lambda loop: loop.last - loop.first)[:3]

    def beside(loop: Loop, inner: Loop) -> int:
        inside = within(code, inner)
        return len(usual_path([i for i in within(code, loop) if i not in inside]))

    found = counts(usual_path(within(code, rows)))
    return {"vector": found, "lookup": beside(vectors, rows), "start": beside(starts, vectors)}


def net(code: Code) -> dict[str, Any]:
    """Counts of the writing loop, and of the loop over the terms of a layer's products."""
    return {**writer(code), "terms": innermost(code)}


def gram(code: Code) -> dict[str, Any]:
    return {"terms": innermost(code)}


def values(code: Code) -> dict[str, Any]:
    """Counts for a pair of columns: its products (three multiply-adds per row), its rotation (four)."""
    return {
        "products": innermost(code, lambda loop: mixes(loop, 3, 2, 0)),
        "turn": innermost(code, lambda loop: mixes(loop, 4, 2, 2)),
    }


READ: dict[str, dict[str, Callable[[Code], dict[str, Any]]]] = {
    "jacobian.cu": {
        "write_kernel<double>": writer,
        "write_kernel<float>": writer,
        "net_kernel<double>": net,
        "net_kernel<float>": net,
    },
    "gram.cu": {"gram_kernel<Plain>": gram, "gram_kernel<DoubleDouble>": gram},
    "svdvals.cu": {"values_kernel": values},
}


def kernels_of(source: Path, folder: Path) -> dict[tuple[str, str], list[Instruction]]:
    """(target, kernel) -> its code."""
    found = {}
    for target, text in parts(compiled(source, TARGETS, folder), "-sass"):
        for name, code in re.findall(
            r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", text, re.DOTALL
        ):
            found[target, name] = instructions(code)
    names = demangled(sorted({name for _, name in found}))
    return {(target, names[name]): code for (target, name), code in found.items()}


def straight(code: Code) -> dict[str, int]:
    """Counts from the start to the end of the kernel, on the usual path."""
    end = next(i.address for i in code if i.kind == "EXIT" and not i.predicated)
    return counts(usual_path([i for i in code if i.address <= end]))


def activation(folder: Path) -> dict[str, dict[str, int]]:
    """Target -> counts for tanh and its slope, without loading and storing."""
    probe = folder / "probe.cu"
    probe.write_text(PROBE)
    found: dict[str, dict[int, dict[str, int]]] = {target: {} for target in TARGETS}
    for (target, name), code in kernels_of(probe, folder).items():
        place = re.search(r"\d+", name)
        assert place
        found[target][int(place[0])] = straight(code)
    return {
        target: {kind: n - both[IDENTITY].get(kind, 0) for kind, n in both[TANH].items()}
        for target, both in found.items()
    }


def look() -> dict[str, Any]:
    """The contents of the result's file."""
    kept: dict[str, dict[str, Any]] = {target: {} for target in TARGETS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {path.name: path for path in sources()}
        for source, wanted in READ.items():
            code = kernels_of(paths[source], folder)
            for kernel, read in wanted.items():
                for target in TARGETS:
                    kept[target][kernel] = read(code[target, kernel])
        for target, found in activation(folder).items():
            kept[target]["tanh"] = found
    return {"nvcc": nvcc_version(), "flags": FLAGS, "loops": kept}


def main() -> None:
    try:
        found = look()
    except (MissingError, CompilerError) as error:
        raise SystemExit(str(error)) from error
    text = json.dumps(found, indent=1) + "\n"
    write(RESULTS / f"{NAME}.json", text)
    print(text, end="")


if __name__ == "__main__":
    main()
