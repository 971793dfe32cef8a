"""The machine code of the CUDA kernels: registers, spills, widths of loads and stores, occupancy.

    python benchmarks/machine_code.py [--out FOLDER]

It needs nvcc, and cuobjdump and nvdisasm, which the triton package contains, but no GPU.
tests/benchmarks/test_machine_code.py checks the results, and compares them with the table in
benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import table

CSRC = Path(__file__).resolve().parents[1] / "csrc"
RESULTS = Path(__file__).resolve().parent / "results"
NAME = "machine_code"
FLAGS = ["-O3", "-std=c++17", "--expt-relaxed-constexpr"]  # as in setup.py and torch's builder
# Warnings of nvcc and of the host's compiler are errors here, but not for users.
STRICT = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror,-fPIC"]

# Dynamic shared memory, as an expression in the source file that launches the kernel. If it depends on the
# data, this is its maximum; if it may be all that a block can have, its size for EXAMPLE. Kernels that are
# not listed have none.
EXAMPLE = "100, 81"  # rows and columns of a matrix whose singular values are computed
DYNAMIC_SHARED = {
    "gram.cu": {
        "gram_kernel<Plain>": "gram_shared_bytes<Plain>()",
        "gram_kernel<DoubleDouble>": "gram_shared_bytes<DoubleDouble>()",
    },
    "jacobian.cu": {"net_kernel<double>": "net_bytes", "net_kernel<float>": "net_bytes"},
    "svdvals.cu": {
        "peaks_kernel": "shared_bytes<double>(svd_block / 32)",
        "triangles_kernel": f"triangles_layout({EXAMPLE}, 163 << 10).bytes",
        "values_kernel": f"values_layout({EXAMPLE}, 163 << 10).bytes",
    },
}

RESERVED = 1024  # bytes of shared memory that the system takes for every block
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT, SHARED_UNIT = 256, 128  # units of allocation; registers are allocated per warp
PARTITIONS = 4  # of a multiprocessor, among which warps and registers are divided


@dataclass(frozen=True)
class Multiprocessor:
    """What limits the blocks that run at once, from CUDA's cuda_occupancy.h and programming guide."""

    warps: int
    blocks: int
    shared: int  # bytes


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164 << 10),
    "sm_90": Multiprocessor(64, 32, 228 << 10),
    "sm_100": Multiprocessor(64, 32, 228 << 10),
    "sm_120": Multiprocessor(48, 24, 100 << 10),
}


class MissingError(Exception):
    """A required program was not found."""


class CompilerError(Exception):
    """A compiler's output: an error, or only a warning."""


def tool(name: str) -> str:
    """The program's path: from the PATH, CUDA_HOME, or the packages of this environment."""
    folders = [os.environ.get("PATH", "")]
    if home := os.environ.get("CUDA_HOME"):
        folders.insert(0, str(Path(home, "bin")))
    if triton := importlib.util.find_spec("triton"):
        folders.append(str(Path(str(triton.origin)).parent / "backends" / "nvidia" / "bin"))
    folders += [str(path) for site in sys.path for path in Path(site).glob("nvidia/cu*/bin")]
    found = shutil.which(name, path=os.pathsep.join([*folders, "/usr/local/cuda/bin"]))
    if found is None:
        raise MissingError(f"no {name} was found on the PATH or in this environment's packages")
    return found


def said(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0 or done.stderr:
        raise CompilerError(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def nvcc_version() -> str:
    match = re.search(r"V(\d+\.\d+\.\d+)", said(tool("nvcc"), "--version"))
    assert match
    return match[1]


def default_targets() -> list[str]:
    """sm_80, sm_90, and the first of the newest generation that this nvcc knows."""
    known = {int(n) for n in re.findall(r"\bsm_(\d+)\b", said(tool("nvcc"), "--list-gpu-code"))}
    newest = min(n for n in known if n // 10 == max(known) // 10)
    return [f"sm_{n}" for n in sorted({80, 90, newest})]


def compiled(source: Path, targets: list[str], folder: Path) -> Path:
    """The object file; CompilerError for a warning."""
    result = folder / f"{source.name}.o"
    codes = [f"-gencode=arch={t.replace('sm', 'compute')},code={t}" for t in targets]
    output = said(tool("nvcc"), *FLAGS, *STRICT, *codes, "-I", CSRC, "-c", source, "-o", result)
    if output:
        raise CompilerError(output)
    return result


def sources() -> list[Path]:
    """The source files with kernels, sorted by name."""
    return sorted(CSRC.glob("*/cuda/*.cu"), key=lambda path: path.name)


def parts(object_file: Path, what: str) -> Iterator[tuple[str, str]]:
    """The output of cuobjdump with an option, by target."""
    environment = {
        **os.environ,
        "PATH": os.path.dirname(tool("nvdisasm")) + os.pathsep + os.environ["PATH"],
    }
    shown = said(tool("cuobjdump"), what, object_file, env=environment)
    for part in shown.split("\nFatbin elf code:\n")[1:]:
        target = re.search(r"^arch = (sm_\w+)$", part, re.MULTILINE)
        assert target
        yield target[1], part


def demangled(names: list[str]) -> dict[str, str]:
    """The names as written in csrc: without return types, parameters and namespaces."""
    for name in ("c++filt", "cu++filt"):
        try:
            lines = said(tool(name), input="\n".join(names)).splitlines()
        except MissingError:
            continue
        return dict(zip(names, map(short, lines), strict=True))
    raise MissingError("neither c++filt nor cu++filt was found")


def short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|llr::cuda::", "", name)
    # cu++filt writes <(int)4, (bool)1> for what c++filt writes as <4, true>.
    name = name.replace("(bool)0", "false").replace("(bool)1", "true")
    name = re.sub(r"\((?:unsigned )?(?:int|long)\)(?=\d)", "", name)
    depth = 0
    for position, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:position]
            break
    return name.removeprefix("void ")


def width(operation: str) -> str:
    """The width in bits of a load or store such as STG.E.128.STRONG.SM."""
    match = re.search(r"\.(?:[US](8|16)|(64|128|256))\b", operation)
    return match[match.lastindex or 0] if match else "32"


def count_instructions(code: str) -> dict[str, Any]:
    """Instruction counts of one kernel's disassembly."""
    line = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
    operations = Counter(line.findall(code))
    kinds: Counter[str] = Counter()
    widths: dict[str, Counter[str]] = {"LDG": Counter(), "STG": Counter()}
    for operation, count in operations.items():
        kind = operation.split(".")[0]
        kinds[kind] += count
        if kind in widths:
            widths[kind][width(operation)] += count
    return {
        "instructions": operations.total(),
        "spills": kinds["LDL"] + kinds["STL"],
        "barriers": kinds["BAR"],
        "loads": dict(sorted(widths["LDG"].items())),
        "stores": dict(sorted(widths["STG"].items())),
        **{kind: kinds[kind] for kind in ("DFMA", "DMUL", "DADD")},
    }


def occupancy(target: str, threads: int, registers: int, shared: int) -> float | None:
    """The fraction of a multiprocessor's warps that run at once; None for a target not in MULTIPROCESSORS."""
    limits = MULTIPROCESSORS.get(target)
    if limits is None:
        return None
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps
    of_block = -(-(shared + RESERVED) // SHARED_UNIT) * SHARED_UNIT
    blocks = min(by_registers, limits.shared // of_block, limits.warps // warps, limits.blocks)
    return blocks * warps / limits.warps


def dynamic_shared(source: Path, folder: Path) -> dict[str, int]:
    """Bytes by kernel, computed by the expressions of DYNAMIC_SHARED on the host."""
    expressions = DYNAMIC_SHARED.get(source.name, {})
    if not expressions:
        return {}
    prints = [f'std::printf("%lld\\n", static_cast<long long>({e}));' for e in expressions.values()]
    lines = [
        "#include <cstdio>",
        f'#include "{source}"',
        "int main() {",
        "using namespace llr::cuda;",
    ]
    program, probe = folder / f"{source.stem}_shared", folder / f"{source.stem}_shared.cu"
    probe.write_text("\n".join([*lines, *prints, "}"]) + "\n")
    said(tool("nvcc"), *FLAGS, "-arch=sm_80", "-I", CSRC, "-o", program, probe)
    return dict(zip(expressions, map(int, said(program).split()), strict=True))


def kernels_of(source: Path, targets: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Kernel -> target -> what was found."""
    object_file, dynamic = compiled(source, targets, folder), dynamic_shared(source, folder)
    codes, resources, threads = {}, {}, {}
    for target, text in parts(object_file, "-sass"):
        for name, code in re.findall(
            r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", text, re.DOTALL
        ):
            codes[target, name] = count_instructions(code)
    for target, text in parts(object_file, "-res-usage"):
        for name, facts in re.findall(r" Function (\S+):\n(.*)", text):
            resources[target, name] = {k: int(n) for k, n in re.findall(r"(\w+):(\d+)", facts)}
    for target, text in parts(object_file, "-elf"):
        for section in text.split("\n.nv.info.")[1:]:
            bound = re.search(r"EIATTR_MAX_THREADS\n.*\n\s*Value:\s*0x([0-9a-f]+)", section)
            if bound:
                threads[target, section.split()[0]] = int(bound[1], 16)
    names = demangled(sorted({name for _, name in codes}))
    found: dict[str, dict[str, Any]] = {}
    for (target, mangled), counts in codes.items():
        usage, kernel = resources[target, mangled], names[mangled]
        # Since sm_90 the reserved part is included in the kernel's number if it uses shared memory.
        static = max(0, usage["SHARED"] - (RESERVED if int(target[3:]) >= 90 else 0))
        block, more = threads.get((target, mangled)), dynamic.get(kernel, 0)
        found.setdefault(kernel, {})[target] = {
            "registers": usage["REG"],
            "threads": block,
            "stack": usage["STACK"],
            "shared": static,
            "dynamic_shared": more,
            **counts,
            "occupancy": block and occupancy(target, block, usage["REG"], static + more),
        }
    return dict(sorted(found.items()))


def look(sources: list[Path], targets: list[str]) -> dict[str, Any]:
    """File -> kernel -> target -> what was found."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda source: kernels_of(source, targets, Path(name)), sources)
        return dict(zip((source.name for source in sources), found, strict=True))


def look_at_all() -> dict[str, Any]:
    """The contents of the result's file."""
    targets = default_targets()
    kernels = look(sources(), targets)
    return {"nvcc": nvcc_version(), "flags": FLAGS, "targets": targets, "kernels": kernels}


def widths_shown(counts: Mapping[str, int]) -> str:
    return " + ".join(f"{counts[w]} x {w}" for w in sorted(counts, key=int, reverse=True)) or "-"


def report(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    flags = " ".join(result["flags"])
    text = (
        f"nvcc {result['nvcc']}, {flags}; no GPU. Counts are of instructions in the code, not of those "
        "that run. Shared memory in bytes, static and dynamic, the latter at its largest (for singular "
        f"values: of a matrix of {EXAMPLE.replace(', ', ' x ')}); spills are loads and stores of local "
        "memory; occupancy is the share of a multiprocessor's warps that registers, shared memory and "
        "threads let run at once."
    )
    lines = [text]
    head = [
        "kernel",
        "registers",
        "threads",
        "stack",
        "spills",
        "shared",
        "barriers",
        "global stores",
    ]
    head += ["global loads", "DFMA", "DMUL", "DADD", "occupancy"]
    for target in result["targets"]:
        rows = []
        for source, kernels in result["kernels"].items():
            for kernel, by_target in kernels.items():
                k = by_target[target]
                share = k["occupancy"]
                rows.append(
                    [
                        f"`{kernel}` of {source}",
                        *(str(k[key]) for key in ("registers", "threads", "stack", "spills")),
                        f"{k['shared']} + {k['dynamic_shared']}",
                        str(k["barriers"]),
                        widths_shown(k["stores"]),
                        widths_shown(k["loads"]),
                        *(str(k[key]) for key in ("DFMA", "DMUL", "DADD")),
                        "-" if share is None else f"{share:.0%}",
                    ]
                )
        lines += [f"## {target}", table(head, rows)]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    folder = parser.parse_args().out
    try:
        result = look_at_all()
    except (MissingError, CompilerError) as error:
        raise SystemExit(str(error)) from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{NAME}.md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    main()
