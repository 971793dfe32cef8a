"""Compiles the CUDA kernels for the emulation: a library with torch, programs without.

    python tests/cuda_on_cpu/build.py plain|asan|tsan [COMMAND ...]

builds the library, prints where it is, and runs the command with the sanitizer's runtime in the process.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
EMULATION = [HERE / "emulation.cpp", HERE / "runtime.cpp"]

SANITIZERS = {
    "plain": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-fsanitize=thread"],
}
# Like the device, which rounds every operation as it is written; fused ones are written fma().
FLAGS = [
    *("-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DLLR_EMULATE", f"-I{HERE}", f"-I{CSRC}"),
]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def available(variant: str) -> bool:
    """Whether there is a compiler with the sanitizer's library, and what it makes can be run here."""
    if sys.platform != "linux" or shutil.which(compiler()[0]) is None:
        return False
    if variant == "tsan" and shutil.which("setarch") is None:
        return False
    # Some containers forbid what setarch does.
    tried = subprocess.run(sanitized(variant, "true"), capture_output=True, check=False)
    return tried.returncode == 0 and all(Path(path).is_absolute() for path in runtimes(variant))


def runtimes(variant: str) -> list[str]:
    """What must be in a process before anything else, if the program itself is not instrumented."""
    # libstdc++: asan looks for `throw` when it starts
    names = {"asan": ("libasan.so", "libubsan.so", "libstdc++.so"), "tsan": ("libtsan.so",)}
    return [
        subprocess.check_output([*compiler(), f"-print-file-name={name}"], text=True).strip()
        for name in names.get(variant, ())
    ]


def compile_all(
    target: Path, sources: list[Path], variant: str, flags: list[str], link: list[str]
) -> Path:
    """Brings `target` up to date with what it is made from; recompiles only what has changed.

    Sources are compiled as C++ whatever their name says. The flags are those of compiling.
    """
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # another run of the tests may be building the same
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_ninja(target, sources, variant, flags, link)
    return target


def run_ninja(
    target: Path, sources: list[Path], variant: str, flags: list[str], link: list[str]
) -> None:
    compile_one = [*compiler(), *FLAGS, *SANITIZERS[variant], *flags]
    link_all = [*compiler(), *SANITIZERS[variant]]
    lines = [
        "rule compile",
        f"  command = {quoted(compile_one)} -MD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {quoted(link_all)} $in -o $out {quoted(link)}",
    ]
    objects = []
    for source in sources:
        objects.append(f"{target.name}.objects/{source.name}.o")
        path = str(source).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
        lines.append(f"build {objects[-1]}: compile {path}")
    lines += [f"build {target.name}: link {' '.join(objects)}", f"default {target.name}", ""]
    rules = target.with_name(f"{target.name}.ninja")
    rules.write_text("\n".join(lines), encoding="utf-8")
    ninja = [sys.executable, "-m", "ninja", "-C", str(target.parent), "-f", rules.name]
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(ninja, capture_output=True, text=True, check=False, env=plain)
    if done.returncode != 0:
        raise RuntimeError(f"{target} could not be built:\n{done.stdout}{done.stderr}")
    if "warning:" in done.stdout:
        print(done.stdout, file=sys.stderr)


def quoted(command: list[str]) -> str:
    """For the shell, in a ninja file."""
    return shlex.join(command).replace("$", "$$")


def build(variant: str) -> Path:
    """The library that registers torch.ops.llr_emulated: every operator that has CUDA kernels."""
    import torch  # noqa: PLC0415 (programs are built without it)

    torch_folder = Path(torch.__file__).parent
    flags = ["-std=c++20"]
    for include in ("include", "include/torch/csrc/api/include"):
        flags += ["-isystem", str(torch_folder / include)]
    lib = torch_folder / "lib"
    link = ["-shared", f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu"]
    sources = [*EMULATION, HERE / "module.cpp", HERE / "svdvals.cpp"]
    sources += [*sorted(CSRC.glob("*/cuda/*.cu")), *sorted(CSRC.glob("*/cuda/*.cpp"))]
    # The checks of arguments that they share with the CPU; autograd is registered for the library alone.
    sources += [path for path in sorted(CSRC.glob("*/*.cpp")) if path.name != "autograd.cpp"]
    folder = ROOT / "build/cuda_on_cpu" / f"{variant}-torch-{torch.__version__}"
    return compile_all(folder / "libllr_emulated.so", sources, variant, flags, link)


def build_program(name: str, variant: str, *flags: str) -> Path:
    """A program without torch, from its source in this folder and the emulation."""
    folder = ROOT / "build/cuda_on_cpu" / "-".join([name, variant, *flags])
    sources = [*EMULATION, HERE / f"{name}.cpp"]
    return compile_all(folder / name, sources, variant, ["-std=c++17", *flags], [])


# An interpreter that ends leaves much behind, none of it ours. Python and torch are not instrumented: what
# they order, by locks of their own, would look like a race.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:atexit_sleep_ms=0",
}


def sanitized(variant: str, *command: str | Path, preload: bool = False) -> list[str]:
    """The command that runs this one as its sanitizer needs it."""
    settings = [f"{name}={value}:{os.environ.get(name, '')}" for name, value in OPTIONS.items()]
    if preload:
        settings.append(f"LD_PRELOAD={' '.join(runtimes(variant))}")
    # ThreadSanitizer has its own idea of where things lie in memory.
    start = ["setarch", "-R"] if variant == "tsan" else []
    return [*start, "env", *settings, *map(str, command)]


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SANITIZERS:
        sys.exit(__doc__)
    print(build(sys.argv[1]), flush=True)
    if len(sys.argv) > 2:
        command = sanitized(sys.argv[1], *sys.argv[2:], preload=True)
        os.execvp(command[0], command)
