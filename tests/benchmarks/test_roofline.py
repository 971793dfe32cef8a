"""The roofline model: docs/cuda.md shows its numbers, and the model agrees with the kernels."""

import itertools
import json

import pytest
import torch
from helpers import targets
from helpers.benchmark_modules import imported
from helpers.oracles import Net, draw

NAMES = ("gpu", "harness", "contenders", "machine_code", "gpu_model", "inner_loops")
NAMES += ("rank_contenders", "rank_scaling", "rank_report", "rank", "roofline")
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(scope="module")
def modules():
    with imported(NAMES) as found:
        yield found


@pytest.fixture(scope="module")
def emulated():
    return targets.target("emulated").op


def test_the_page_shows_these_tables(modules):
    page = modules.roofline.PAGE.read_text(encoding="utf-8")
    assert page == modules.roofline.updated(page), "python benchmarks/roofline.py --update"


def test_what_the_page_says_of_sizes(modules):
    model = modules.gpu_model
    page = modules.roofline.PAGE.read_text(encoding="utf-8")
    a100, h100 = model.GPUS["NVIDIA A100-SXM4-80GB"], model.GPUS[H100]
    assert f"up to {model.widest(a100)} on A100, {model.widest(h100)} on H100" in page
    few = {}
    for gpu in (a100, h100):
        bands = next(b for b in itertools.count() if b * (b + 1) // 2 >= gpu.multiprocessors)
        few[gpu.name] = (bands - 1) * model.TILE
    assert f"up to N = {few[a100.name]} on A100 and {few[h100.name]} on H100" in " ".join(
        page.split()
    )
    assert [model.vector_turn(itemsize) for itemsize in (8, 4)] == [16, 44]
    assert "16, or 44" in page
    tanh = model.loops(a100)["tanh"]
    doubles = sum(tanh[kind] for kind in ("DFMA", "DMUL", "DADD"))
    said = f"{doubles} operations on doubles in {tanh['instructions']} instructions on sm_80"
    assert said in " ".join(page.split())


def test_the_data_sheets_flops(modules):
    flops = {name: round(gpu.flops / 1e11) / 10 for name, gpu in modules.gpu_model.GPUS.items()}
    assert flops["NVIDIA A100-SXM4-80GB"] == flops["NVIDIA A100-PCIE-40GB"] == 9.7
    assert flops[H100] == flops["NVIDIA H200"] == 33.5
    assert flops["NVIDIA H100 PCIe"] == 25.6


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("widths", "n"),
    [
        ((2, 20, 1), 33),
        ((5, 64, 1), 9),
        ((16, 65, 1), 70),
        ((7, 18, 2), 5),
        ((4, 6, 6, 6, 6, 6, 6, 6, 2), 5),
        ((2, *[3] * 9, 2), 5),
        ((10, 60, 60, 1), 3),
        ((10, 64, 64, 1), 3),
        ((10, 61, 60, 1), 40),
        ((40, 100, 1), 2),
        ((784, 100, 10), 2),
        ((5000, 3, 1), 3),
        ((40, 150, 7, 2), 5),
    ],
)
def test_the_way_a_net_takes(modules, emulated, widths, n):
    emulated.reset_statistics()
    emulated.mlp_jacobian(*draw(Net(widths, n), torch.float64), "tanh")
    launches = emulated.statistics()[2]
    assert modules.gpu_model.is_whole(widths, n) == (launches == 1)
    if launches > 1:
        hidden = len(widths) - 2
        fills_and_products = 2 + hidden + max(0, hidden - 1)
        assert modules.gpu_model.signal_launches(widths, 8) == launches - 1 + fills_and_products


@pytest.mark.emulated
def test_sweeps_are_what_jacobi_takes(modules, emulated):
    """With fewer sweeps LAPACK computes the values, with other bits."""
    library = modules.rank_contenders
    for name, sweeps in modules.gpu_model.JACOBI_SWEEPS.items():
        case = modules.rank.SVD_CASES[name]
        few = library.Matrices(4, case.rows, case.columns)
        A = library.matrices(few, few.short_side, torch.device("cpu"))
        values = emulated.svdvals(A)
        done = (emulated.svdvals(A, sweeps=sweeps) == values).all(-1).sum()
        sooner = (emulated.svdvals(A, sweeps=sweeps - 1) == values).all(-1).sum()
        assert done >= 3 > 1 >= sooner, name


def test_a_resource_that_is_needed_longest_decides(modules):
    model = modules.gpu_model
    work = model.Work(model.GPUS[H100], nbytes=10**9, launches=2)
    work.limits["memory"] = 1e-3
    loop = {"instructions": 40, "DFMA": 8, "F2F": 2, "LDS": 4}
    work.instructions(1e6, loop, path=5)
    cycles = {name: seconds * work.gpu.cycles for name, seconds in work.limits.items()}
    assert cycles["issue"] == pytest.approx(10e6)
    assert cycles["FP64"] == pytest.approx(4e6)
    assert cycles["conversion"] == pytest.approx(4e6)
    assert cycles["L1 / shared"] == pytest.approx(5e6)
    assert work.limit == "memory"
    assert work.seconds == pytest.approx(1e-3 + 2 * model.LAUNCH)
    work.instructions(1e9, loop, path=5)
    assert work.limit == "issue"


def test_jacobians_in_the_limit(modules):
    """Many rows and columns are as fast as a copy; a slow copy slows them, a slower GPU too."""
    model = modules.gpu_model
    gpu = model.GPUS[H100]
    wide = model.jacobian((10, 4096, 4096, 1), 4096, None, 8, gpu)
    assert wide.limit == "memory"
    assert 0.99 < wide.limits["memory"] / wide.seconds < 1
    assert wide.nbytes == 4096 * 8 * (11 * 4096 + 4097 * 4096 + 4097)
    slow = model.jacobian((10, 4096, 4096, 1), 4096, None, 8, gpu, copy=1e12)
    assert slow.limits["memory"] == pytest.approx(slow.nbytes / 1e12)
    assert slow.limits["issue"] == wide.limits["issue"]
    slower = model.jacobian((10, 4096, 4096, 1), 4096, None, 8, model.GPUS["NVIDIA A100-SXM4-40GB"])
    assert all(
        slower.limits[what] > wide.limits[what] * 1.2 for what in ("memory", "issue", "FP64")
    )


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   IMAD R2, R3, R4, R5 ;
        /*0020*/               @P4 BRA 0x00d0 ;
        /*0030*/               @P5 BRA 0x0050 ;
        /*0040*/                   CALL.REL.NOINC 0x0100 ;
        /*0050*/                   LDG.E.64 R6, [R2.64] ;
        /*0060*/               @P0 BRA P1, 0x0090 ;
        /*0070*/              @!P2 STG.E.64 [R2.64], R6 ;
        /*0080*/               @P3 BRA 0x00a0 ;
        /*0090*/                   STG.E.128.STRONG.SM [R2.64], R8 ;
        /*00a0*/                   DFMA R6, R6, R6, R8 ;
        /*00b0*/               @P1 BRA 0x0050 ;
        /*00c0*/                   BRA 0x0020 ;
        /*00d0*/               @P6 BRA 0x0010 ;
        /*00e0*/                   EXIT ;
"""


def test_loops_are_read_from_machine_code(modules):
    inner_loops = modules.inner_loops
    code = inner_loops.instructions(SASS)
    found = [(loop.first, loop.last) for loop in inner_loops.loops(code)]
    assert found == [(0x50, 0xB0), (0x20, 0xC0), (0x10, 0xD0)]
    assert inner_loops.innermost(code) == {"instructions": 7, "LDG": 1, "STG": 2, "DFMA": 1}
    # The branch at 0x60 skips the narrow store, and with it the branch around the wide store. The branch at
    # 0x30 skips the call. The branch at 0x20 only ends its loop.
    usual = {"instructions": 5, "LDG": 1, "STG": 1, "DFMA": 1}
    assert inner_loops.writer(code) == {"vector": usual, "lookup": 3, "start": 2}


@pytest.mark.parametrize(
    ("loop", "wanted"),
    [
        ({"DFMA": 6, "LDS": 4}, True),
        ({"DFMA": 3, "LDS": 2}, True),
        ({"DFMA": 3, "LDS": 3}, False),
        ({"DFMA": 4, "LDS": 2}, False),
        ({"DFMA": 3, "LDS": 2, "STS": 1}, False),
        ({}, False),
    ],
)
def test_loops_are_told_by_their_mix(modules, loop, wanted):
    assert modules.inner_loops.mixes(loop, 3, 2, 0) == wanted


@pytest.mark.slow
def test_kept_counts(modules):
    code, inner_loops = modules.machine_code, modules.inner_loops
    kept = json.loads((code.RESULTS / f"{inner_loops.NAME}.json").read_text())
    try:
        for name in ("nvcc", "cuobjdump", "nvdisasm"):
            code.tool(name)
    except code.MissingError as missing:
        pytest.skip(str(missing))
    if kept["nvcc"] != code.nvcc_version():
        pytest.skip(f"benchmarks/results was made with nvcc {kept['nvcc']}, here is another")
    again = "the kernels have changed: python benchmarks/inner_loops.py, then roofline.py --update"
    assert kept == json.loads(json.dumps(inner_loops.look())), again
