"""Compiles the CUDA kernels for the emulation: a library that uses torch, and programs without torch.

    python tests/cuda_on_cpu/build.py plain|asan|tsan [COMMAND ...]

builds the library, prints its path, and runs the command with the sanitizer's runtime in the process.
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
# As on the device, every operation is rounded as written; fused operations are written fma().
FLAGS = [
    *("-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DLLR_EMULATE", f"-I{HERE}", f"-I{CSRC}"),
]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def available(variant: str) -> bool:
    """Whether there is a compiler with the sanitizer's library, and its programs can run here."""
    if sys.platform != "linux" or shutil.which(compiler()[0]) is None:
        return False
    if variant == "tsan" and shutil.which("setarch") is None:
        return False
    # Some containers do not allow setarch.
    tried = subprocess.run(sanitized(variant, "true"), capture_output=True, check=False)
    return tried.returncode == 0 and all(Path(path).is_absolute() for path in runtimes(variant))


def runtimes(variant: str) -> list[str]:
    """Libraries that must be loaded first, if the program itself is not instrumented."""
    # libstdc++: asan looks for `throw` when it starts
    names = {"asan": ("libasan.so", "libubsan.so", "libstdc++.so"), "tsan": ("libtsan.so",)}
    return [
        subprocess.check_output([*compiler(), f"-print-file-name={name}"], text=True).strip()
        for name in names.get(variant, ())
    ]


def compile_all(
    target: Path, sources: list[Path], variant: str, flags: list[str], link: list[str]
) -> Path:
    """Bring `target` up to date with its sources; recompile only those that have changed.

    All sources are compiled as C++, regardless of their names. `flags` are for the compiler.
    """
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # another test run may be building the same target
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
    """Quoted for the shell, in a ninja file."""
    return shlex.join(command).replace("$", "$$")


def build(variant: str) -> Path:
    """Build the library that registers torch.ops.llr_emulated: all operators with CUDA kernels."""
    import torch  # noqa: PLC0415 (programs are built without it)

    torch_folder = Path(torch.__file__).parent
    flags = ["-std=c++20"]
    for include in ("include", "include/torch/csrc/api/include"):
        flags += ["-isystem", str(torch_folder / include)]
    lib = torch_folder / "lib"
    link = ["-shared", f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu"]
    sources = [*EMULATION, HERE / "module.cpp", HERE / "svdvals.cpp"]
    sources += [*sorted(CSRC.glob("*/cuda/*.cu")), *sorted(CSRC.glob("*/cuda/*.cpp"))]
    # The checks of arguments, which the CPU uses too. Autograd is registered only for torch.ops.llr.
    sources += [path for path in sorted(CSRC.glob("*/*.cpp")) if path.name != "autograd.cpp"]
    folder = ROOT / "build/cuda_on_cpu" / f"{variant}-torch-{torch.__version__}"
    return compile_all(folder / "libllr_emulated.so", sources, variant, flags, link)


def build_program(name: str, variant: str, *flags: str) -> Path:
    """Build a program without torch, from its source in this folder and the emulation."""
    folder = ROOT / "build/cuda_on_cpu" / "-".join([name, variant, *flags])
    sources = [*EMULATION, HERE / f"{name}.cpp"]
    return compile_all(folder / name, sources, variant, ["-std=c++17", *flags], [])


# At exit, the interpreter leaves much memory allocated that is not ours. Python and torch are not
# instrumented: accesses that they order by their own locks would look like races.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:atexit_sleep_ms=0",
}


def sanitized(variant: str, *command: str | Path, preload: bool = False) -> list[str]:
    """The command that runs this command as the sanitizer requires."""
    settings = [f"{name}={value}:{os.environ.get(name, '')}" for name, value in OPTIONS.items()]
    if preload:
        settings.append(f"LD_PRELOAD={' '.join(runtimes(variant))}")
    # ThreadSanitizer does not work with every layout of the address space.
    start = ["setarch", "-R"] if variant == "tsan" else []
    return [*start, "env", *settings, *map(str, command)]


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SANITIZERS:
        sys.exit(__doc__)
    print(build(sys.argv[1]), flush=True)
    if len(sys.argv) > 2:
        command = sanitized(sys.argv[1], *sys.argv[2:], preload=True)
        os.execvp(command[0], command)
