"""Expected times of the CUDA kernels, calculated from sizes, machine code and data sheets.

Nothing is measured. docs/cuda.md explains the model and its limits; benchmarks/roofline.py prints its tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from machine_code import MULTIPROCESSORS, RESERVED, RESULTS, SHARED_UNIT

# What a multiprocessor of these GPUs does in a clock cycle.
ISSUED = 4  # instructions of warps
WAVEFRONT = 128  # bytes between registers and L1 or shared memory, which share one path
CONVERTED = 16  # doubles to floats
L2 = 5120  # bytes per clock cycle, of all multiprocessors together

COPY = 0.9  # fraction of the data sheet's bandwidth that a copy is assumed to reach; not measured
LAUNCH = 3e-6  # s, for a kernel with almost no work
# Sweeps for most matrices of full rank, counted with the emulation (tests/benchmarks/test_roofline.py).
JACOBI_SWEEPS = {"svd-100x81": 8, "svd-32x32": 7, "svd-200x60": 8}

# The constants of csrc/jacobian/cuda/jacobian.cu.
THREADS, BLOCKS, MOST_GROUP, WORTHWHILE_GROUP, NET_BYTES = 256, 16, 64, 4, 36 << 10
TILE = 32  # from csrc/gram/cuda/gram.cuh
PAIR_LANES, SVD_BLOCK, LEAST_SVD_BLOCK = 4, 256, 64  # from csrc/svdvals/cuda/svdvals.h


@dataclass(frozen=True)
class Gpu:
    """A GPU, with numbers from NVIDIA's data sheets and white papers."""

    name: str
    target: str
    multiprocessors: int
    clock: float  # Hz, the highest
    bandwidth: float  # bytes/s
    fma: int  # multiply-adds on doubles per multiprocessor and clock cycle, without tensor cores
    shared: int  # bytes of shared memory that a block may have

    @property
    def flops(self) -> float:
        """Operations on doubles per second, as the data sheet counts them."""
        return 2 * self.fma * self.multiprocessors * self.clock

    @property
    def cycles(self) -> float:
        """Cycles per second of all multiprocessors together."""
        return self.multiprocessors * self.clock


A100 = ("sm_80", 108, 1.41e9)
H100 = ("sm_90", 132, 1.98e9)
GPUS = {
    "NVIDIA A100-SXM4-80GB": Gpu("A100 80 GB SXM", *A100, 2.039e12, 32, 163 << 10),
    "NVIDIA A100 80GB PCIe": Gpu("A100 80 GB PCIe", *A100, 1.935e12, 32, 163 << 10),
    "NVIDIA A100-SXM4-40GB": Gpu("A100 40 GB SXM", *A100, 1.555e12, 32, 163 << 10),
    "NVIDIA A100-PCIE-40GB": Gpu("A100 40 GB PCIe", *A100, 1.555e12, 32, 163 << 10),
    "NVIDIA H100 80GB HBM3": Gpu("H100 SXM", *H100, 3.35e12, 64, 227 << 10),
    "NVIDIA H100 PCIe": Gpu("H100 PCIe", "sm_90", 114, 1.755e9, 2.0e12, 64, 227 << 10),
    "NVIDIA H200": Gpu("H200", *H100, 4.8e12, 64, 227 << 10),
}
"""GPUs by their names in torch."""


@dataclass
class Work:
    """The seconds that a call needs of each resource, if that resource were the only limit."""

    gpu: Gpu
    nbytes: int  # of the result
    launches: int
    path: str = ""
    flops: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)

    def cycles(self, what: str, cycles: float) -> None:
        """Add cycles of one multiprocessor, for work that is distributed over all of them."""
        self.limits[what] = self.limits.get(what, 0.0) + cycles / self.gpu.cycles

    def instructions(self, turns: float, loop: Mapping[str, float], path: float) -> None:
        """Add iterations of a loop by a warp, with `path` wavefronts each."""
        self.cycles("issue", turns * loop["instructions"] / ISSUED)
        doubles = sum(loop.get(kind, 0) for kind in ("DFMA", "DMUL", "DADD"))
        self.cycles("FP64", turns * doubles * 32 / self.gpu.fma)
        self.cycles("conversion", turns * loop.get("F2F", 0) * 32 / CONVERTED)
        self.cycles("L1 / shared", turns * path)

    @property
    def limit(self) -> str:
        return max(self.limits, key=lambda what: self.limits[what])

    @property
    def seconds(self) -> float:
        return self.limits[self.limit] + self.launches * LAUNCH


def loops(gpu: Gpu) -> dict[str, Any]:
    """Kernel -> the instruction counts of its inner loops, on this GPU."""
    return json.loads((RESULTS / "inner_loops.json").read_text())["loops"][gpu.target]


def per_multiply_add(loop: Mapping[str, int], count: int = 1) -> dict[str, float]:
    """The instructions for `count` multiply-adds of a loop that may be unrolled."""
    return {kind: n * count / loop["DFMA"] for kind, n in loop.items()}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def parameters(widths: Sequence[int]) -> int:
    return sum((into + 1) * out for into, out in pairwise(widths))


# The Jacobian


def samples_that_fit(widths: Sequence[int]) -> int:
    """The samples of a net that fit in a block's shared memory together with the weights."""
    if max(widths) > NET_BYTES:
        return 0
    weights = sum(((into | 1) + 1) * out for into, out in pairwise(widths))
    free = NET_BYTES // 8 - ceil_div(weights, 2) * 2
    return max(0, free - 2) // max(1, widths[0] + (2 + widths[-1]) * sum(widths[1:-1]))


def is_whole(widths: Sequence[int], n: int) -> bool:
    return len(widths) <= 9 and samples_that_fit(widths) >= min(n, WORTHWHILE_GROUP)


def vector_turn(itemsize: int) -> float:
    """Wavefronts of one iteration of the writing loop by a warp, which writes 512 bytes.

    A thread takes V consecutive columns and loads each with a separate instruction. The doubles of 16 threads
    are V * 8 bytes apart and take V wavefronts; so do those of the other 16. Their deltas are mostly the same
    number.
    """
    V = 16 // itemsize
    return V * 2 * V + V * 2 + 512 / WAVEFRONT


def jacobian(
    widths: Sequence[int],
    n: int,
    points: int | None,
    itemsize: int,
    gpu: Gpu,
    copy: float | None = None,
) -> Work:
    """`torch.ops.llr.mlp_jacobian.out`.

    Args:
        widths: of the net; every layer has weights and biases, the activation is tanh.
        n: samples.
        points: parameter points, None without.
        itemsize: bytes of a number of the result.
        gpu: the GPU.
        copy: bytes per second that a copy reads and writes; default: ``COPY`` times the data sheet's.
    """
    P, q, each = parameters(widths), widths[-1], points or 1
    V, rows = 16 // itemsize, each * n * q
    period = 1 if P % V == 0 else (V // 2 if P % 2 == 0 else V)
    vectors = (P + V - 1 + (0 if period == 1 else V - 1)) // V  # that a row overlaps
    tiles = ceil_div(vectors, THREADS)
    in_tile = ceil_div(vectors, tiles)
    lanes = lanes_for(THREADS // in_tile, period)
    at_a_time = max(lanes, period)
    kernel = "double>" if itemsize == 8 else "float>"
    wanted = BLOCKS * gpu.multiprocessors
    work = Work(gpu, rows * P * itemsize, launches=1)
    work.limits["memory"] = work.nbytes / (copy or COPY * gpu.bandwidth)
    if is_whole(widths, n):
        work.path, loop = "one kernel", loops(gpu)[f"net_kernel<{kernel}"]
        fair = ceil_div(each * n, wanted)
        group = max(1, min(fair, samples_that_fit(widths), MOST_GROUP, n))
        groups = each * ceil_div(n, group)
        turns = turns_for(lanes, period, group * q)
        written = groups * tiles * turns * ceil_div(group * q, at_a_time)
        starts = groups * turns
        lookups = starts * tiles
        net(work, widths, group, groups, loop["terms"])
        read = 0.0  # the signals lie in shared memory
    else:
        work.path, loop = "products, then rows", loops(gpu)[f"write_kernel<{kernel}"]
        work.launches += signal_launches(widths, itemsize)
        turns = turns_for(lanes, period, rows)
        share = min(max(1, wanted // tiles), ceil_div(rows, at_a_time))
        of_block = ceil_div(ceil_div(rows, share), at_a_time) * at_a_time
        row_groups = ceil_div(rows, of_block)
        pieces = ceil_div(tiles, ceil_div(tiles * row_groups, wanted))
        written = tiles * turns * ceil_div(rows, at_a_time)
        starts = pieces * row_groups * turns
        lookups = tiles * row_groups * turns
        read = each * n * signals_read(widths, in_tile * V)
    warps = THREADS // 32
    work.instructions(written * warps, loop["vector"], vector_turn(itemsize))
    work.cycles("issue", lookups * warps * loop["lookup"] / ISSUED)
    work.cycles("issue", starts * warps * loop["start"] / ISSUED)
    work.limits["L2"] = (work.nbytes + read) / (L2 * gpu.clock)
    work.flops += rows * P
    return work


def lanes_for(lanes: int, period: int) -> int:
    """Rows that a block writes at the same time: a multiple or a divisor of the period."""
    return lanes - lanes % period if lanes >= period else min(lanes, 2)


def turns_for(lanes: int, period: int, rows: int) -> int:
    """The number of passes in which a thread writes its rows: one for each alignment of their starts."""
    return max(1, min(period, rows) // lanes)


def signal_launches(widths: Sequence[int], itemsize: int) -> int:
    """Launches before the rows: the constant 1, samples, weights as doubles, products, our kernels."""
    layers = len(widths) - 1
    converted = 0 if itemsize == 8 else 2 * layers - 1
    forward = 2 * (layers - 1)
    backward = max(0, 2 * (layers - 1) - 1)  # the first step needs no product
    return 2 + converted + forward + backward


def signals_read(widths: Sequence[int], columns: int) -> float:
    """Bytes read from L2 for one sample's rows, if a block writes `columns` columns.

    Every tile of columns reads the inputs of its layers again, but only once for all outputs of a sample. The
    derivatives are read once for each neuron.
    """
    fed = sum(into * out * min(into, columns) / columns for into, out in pairwise(widths))
    return 8.0 * (fed + widths[-1] * sum(widths[1:-1]))


def net(
    work: Work, widths: Sequence[int], group: int, groups: int, term: Mapping[str, int]
) -> None:
    """Add the forward and backward pass in shared memory. A term is a multiply-add of two numbers there."""
    q, tanh = widths[-1], loops(work.gpu)["tanh"]
    one = per_multiply_add(term)
    for into, out in pairwise(widths[:-1]):
        warps = groups * ceil_div(group * out, 32)
        work.instructions(warps * into, one, 4)
        work.instructions(warps, tanh, 0)
        work.flops += groups * group * out * (2 * into + 40)
    for layer in range(len(widths) - 2, 0, -1):
        into, out = widths[layer], widths[layer + 1]
        terms = 1 if layer == len(widths) - 2 else out
        work.instructions(groups * ceil_div(group * q * into, 32) * terms, one, 4)
        work.flops += groups * group * q * into * 2 * terms


# The Gram matrix


def gram(widths: Sequence[int], n: int, double_double: bool, gpu: Gpu) -> Work:
    """`torch.ops.llr.mlp_gram`; every multiprocessor counts as busy until the last one has finished."""
    kernel = "gram_kernel<DoubleDouble>" if double_double else "gram_kernel<Plain>"
    N, loop = n * widths[-1], loops(gpu)[kernel]["terms"]
    terms = sum(widths[:-1]) + sum(widths[1:-1])
    bands = ceil_div(N, TILE)
    tiles = bands * (bands + 1) // 2
    spread = ceil_div(tiles, gpu.multiprocessors) * gpu.multiprocessors
    work = Work(
        gpu, N * N * 8 * (2 if double_double else 1), signal_launches(widths, 8) + len(widths) - 1
    )
    one = per_multiply_add(loop)
    work.instructions(spread * TILE * TILE / 32 * terms, one, 2 * one["LDS"])
    layers = len(widths) - 1
    work.limits["memory"] = work.nbytes * (1 + layers) / (COPY * gpu.bandwidth)
    work.limits["L2"] = tiles * terms * 2 * TILE * 8 / (L2 * gpu.clock)
    work.flops = tiles * TILE * TILE * terms * (11 if double_double else 2)  # 1 + 2 + 8, and 2
    return work


# Singular values


@dataclass(frozen=True)
class Layout:
    stride: int
    threads: int
    matrices: int
    nbytes: int


def layout(rows: int, columns: int, limit: int) -> Layout | None:
    """The same as `values_layout` of csrc/svdvals/cuda/svdvals.cu; None if a matrix does not fit."""
    wanted = columns + max(16, columns // 4)
    threads = min(PAIR_LANES << max(0, ((columns + 1) // 2 - 1).bit_length()), SVD_BLOCK)
    matrices = max(1, LEAST_SVD_BLOCK // threads)
    least = min(rows, columns + 8)

    def nbytes(stride: int) -> int:
        numbers = (matrices * stride * columns, SVD_BLOCK // PAIR_LANES)
        return sum(ceil_div(count, 2) * 16 for count in numbers)

    stride = (min(max(wanted, least), rows) + 3) // 8 * 8 + 4
    while stride > least and nbytes(stride) > limit:
        stride -= 8
    if stride < least or nbytes(stride) > limit:
        return None
    return Layout(stride, threads, matrices, nbytes(stride))


def widest(gpu: Gpu) -> int:
    """The largest n for which an n x n matrix fits a block."""
    return next(n for n in range(1, 1000) if layout(n + 1, n + 1, gpu.shared) is None)


def blocks_at_once(found: Layout, gpu: Gpu) -> int:
    """Blocks that a multiprocessor runs at once, as limited by shared memory and warps."""
    limits = MULTIPROCESSORS[gpu.target]
    of_block = ceil_div(found.nbytes + RESERVED, SHARED_UNIT) * SHARED_UNIT
    return min(
        limits.shared // of_block, limits.warps // (found.threads * found.matrices // 32), 32
    )


def svdvals(count: int, m: int, n: int, sweeps: int, gpu: Gpu) -> Work:
    """`torch.ops.llr.svdvals` of float64 matrices with m >= n, in one piece that fits a block.

    Args:
        count: the number of matrices.
        m: rows.
        n: columns.
        sweeps: the sweeps that Jacobi takes.
        gpu: the GPU.
    """
    found = layout(m, n, gpu.shared)
    if found is None:
        raise ValueError(f"{m} x {n} does not fit {gpu.name}'s shared memory")
    loop = loops(gpu)["values_kernel"]
    blocks = ceil_div(count, found.matrices)
    spread = ceil_div(blocks, gpu.multiprocessors) * gpu.multiprocessors * found.matrices
    work = Work(gpu, count * n * 8, launches=2)  # the largest entries, the values
    work.path = f"{blocks_at_once(found, gpu)} blocks of {found.threads * found.matrices} threads"
    # A warp's step is four rows of eight columns or pairs.
    steps = sum((n - j) * ceil_div(r - j, 4) * 4 for r in (m, n) for j in range(n)) / 32
    pairs = sweeps * n * (n - 1) / 2 * ceil_div(n, 4) * 4 / 32
    products, turn = per_multiply_add(loop["products"], 3), per_multiply_add(loop["turn"], 4)
    work.instructions(spread * pairs, products, 2 * products["LDS"])
    work.instructions(spread * pairs, turn, 2 * (turn["LDS"] + turn["STS"]))
    # A step of QR is a sum of squares, a product and an update: four loads and a store.
    work.instructions(spread * steps, products, 2 * 5)
    work.limits["memory"] = 2 * count * m * n * 8 / (COPY * gpu.bandwidth)
    work.flops = count * 2 * 32 * (7 * pairs + 3 * steps)
    return work
