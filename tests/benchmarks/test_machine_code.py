"""The machine code of the CUDA kernels is as intended; checked without a GPU, by nvcc and a disassembler."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def machine_code():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("harness", "machine_code")
        yield [importlib.import_module(name) for name in names][-1]
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def here(machine_code):
    """The module; skipped if the programs that it calls are not installed."""
    try:
        for name in ("nvcc", "cuobjdump", "nvdisasm"):
            machine_code.tool(name)
    except machine_code.MissingError as missing:
        pytest.skip(str(missing))
    return machine_code


@pytest.fixture(scope="module")
def fresh(here):
    """All kernels, compiled without warnings for the oldest, the most common and the newest target."""
    return here.look_at_all()


def each(result, *sources):
    """(kernel and target, what was found), for these files or for all."""
    for source, kernels in result["kernels"].items():
        for kernel, targets in kernels.items():
            for target, found in targets.items():
                if not sources or source in sources:
                    yield f"{kernel} of {source} for {target}", found


def test_every_file_has_kernels_with_bounds_for_every_target(here, fresh):
    assert list(fresh["kernels"]) == sorted(path.name for path in here.CSRC.glob("*/cuda/*.cu"))
    for source, kernels in fresh["kernels"].items():
        assert kernels, source
        assert all(list(found) == fresh["targets"] for found in kernels.values())
    assert {"sm_80", "sm_90"} < set(fresh["targets"])
    assert [where for where, found in each(fresh) if found["threads"] is None] == []


def test_nothing_spills(fresh):
    spilling = {where: (found["spills"], found["stack"]) for where, found in each(fresh)}
    assert {where: both for where, both in spilling.items() if both != (0, 0)} == {}


def test_the_jacobian_is_written_in_vectors(fresh):
    narrow = {where: found["stores"] for where, found in each(fresh, "jacobian.cu")}
    assert narrow
    assert {where: stores for where, stores in narrow.items() if "128" not in stores} == {}


def test_half_of_the_warps_run_at_once(fresh):
    judged = [where for where, _ in each(fresh, "jacobian.cu", "gram.cu")]
    assert len(judged) >= 12
    for where, found in each(fresh, "jacobian.cu", "gram.cu"):
        if where.endswith(("sm_80", "sm_90")):
            assert found["occupancy"] >= 0.5, where


def test_dynamic_shared_memory_is_of_kernels_that_exist(here, fresh):
    for source, kernels in here.DYNAMIC_SHARED.items():
        for kernel in kernels:
            found = fresh["kernels"][source][kernel]
            assert all(target["dynamic_shared"] > 0 for target in found.values())


def test_kept_table(here, fresh):
    kept = json.loads((here.RESULTS / f"{here.NAME}.json").read_text())
    again = "the kernels have changed: python benchmarks/machine_code.py"
    if kept["nvcc"] != fresh["nvcc"]:
        pytest.skip(
            f"benchmarks/results was made with nvcc {kept['nvcc']}, here is {fresh['nvcc']}"
        )
    assert kept == json.loads(json.dumps(fresh)), again
    assert (here.RESULTS / f"{here.NAME}.md").read_text() == here.report(kept), again


# The checks detect what they should


PLANTED = """
#include "common/cuda/kernel.cuh"
namespace llr::cuda {
LLR_KERNEL(256, 1) local_array(double* p, int n) {
  double many[64];
  for (int i = 0; i < 64; ++i) many[i] = p[threadIdx.x * 64 + i];
  for (int i = 0; i < n; ++i) many[(i * 7 + n) % 64] += 1.0;
  for (int i = 0; i < 64; ++i) p[threadIdx.x * 64 + i] = many[i];
}
LLR_KERNEL(256, 1) split(double* p, double v) {
  p[2 * threadIdx.x] = v;
  p[2 * threadIdx.x + 1] = v + 1.0;
}
LLR_KERNEL(256, 4) vector(double* p, double v) {
  const double pair[2] = {v, v * v};
  store_vector(p + 2 * threadIdx.x, pair);
}
LLR_KERNEL(128, 1) with_shared(float* p) {
  __shared__ float numbers[2048];
  for (int i = threadIdx.x; i < 2048; i += 128) numbers[i] = p[i];
  __syncthreads();
  p[threadIdx.x] = numbers[threadIdx.x * 3 % 2048];
}
}
"""


@pytest.fixture(scope="module")
def planted(here, tmp_path_factory):
    source = tmp_path_factory.mktemp("planted") / "planted.cu"
    source.write_text(PLANTED)
    return here.look([source], ["sm_80", "sm_90"])["planted.cu"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_planted_kernels(target, planted):
    found = {kernel: targets[target] for kernel, targets in planted.items()}
    assert set(found) == {"local_array", "split", "vector", "with_shared"}
    assert found["local_array"]["spills"] > 0
    assert found["local_array"]["stack"] >= 8 * 64
    assert found["split"]["stores"] == {"64": 2}
    assert found["split"]["spills"] == 0
    assert found["split"]["DADD"] == 1
    assert found["vector"]["stores"] == {"128": 1}
    assert found["vector"]["DMUL"] == 1
    assert found["vector"]["shared"] == 0
    assert found["with_shared"]["shared"] == 4 * 2048
    assert found["with_shared"]["barriers"] == 1
    assert found["with_shared"]["stores"] == {"32": 1}
    assert found["with_shared"]["threads"] == 128
    assert set(found["with_shared"]["loads"]) == {"32"}


@pytest.mark.parametrize(
    "line", ["__global__ void kernel() { int unused; }", "inline void host() { int unused; }"]
)
def test_a_warning_is_an_error(line, here, tmp_path):
    (tmp_path / "warned.cu").write_text(line + "\n")
    with pytest.raises(here.CompilerError, match="unused"):
        here.compiled(tmp_path / "warned.cu", ["sm_80"], tmp_path)


# Computed with CUDA's cuda_occupancy.h.
@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "blocks"),
    [
        ("sm_80", 256, 64, 0, 4),
        ("sm_80", 256, 65, 0, 3),
        ("sm_80", 96, 40, 0, 16),
        ("sm_80", 256, 32, 36864, 4),
        ("sm_90", 256, 32, 36864, 6),
        ("sm_90", 32, 24, 0, 32),
        ("sm_90", 1024, 65, 0, 0),
        ("sm_120", 512, 40, 25600, 3),
        ("sm_120", 256, 24, 50000, 2),
    ],
)
def test_occupancy(target, threads, registers, shared, blocks, machine_code):
    warps = {"sm_80": 64, "sm_90": 64, "sm_120": 48}[target]
    found = machine_code.occupancy(target, threads, registers, shared)
    assert found == blocks * -(-threads // 32) / warps


def test_names(machine_code):
    assert (
        machine_code.short("void llr::cuda::k<llr::cuda::Plain, 4>(double*, long)") == "k<Plain, 4>"
    )
    assert machine_code.short("llr::cuda::(anonymous namespace)::k(llr::F<(int)2>)") == "k"
    assert machine_code.short("void llr::cuda::k<(int)4, (bool)1>(int)") == "k<4, true>"
