"""The emulation detects bugs that are planted in a correct kernel, one per process."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

from cuda_on_cpu import build

ORDERS = (0, 1, 2)  # forward, reverse, random
EVERY_VARIANT = ("plain", "asan", "tsan")

RACE = "ThreadSanitizer: data race"
POISON = "AddressSanitizer: use-after-poison"
HEAP = "AddressSanitizer: heap-buffer-overflow"
BARRIER = "in __syncthreads at .*planted.cpp"

# Bugs that must be caught, by which variant, with which report. All variants have the plain one's checks.
CATCHES = {
    # Accesses that only barriers order.
    "missing_block_barrier": ("tsan", RACE),
    "missing_second_block_barrier": ("tsan", RACE),
    "missing_warp_barrier": ("tsan", RACE),
    "missing_second_warp_barrier": ("tsan", RACE),
    "race_without_barriers": ("tsan", RACE),
    "shuffle_for_barrier": ("tsan", RACE),
    "atomic_for_barrier": ("tsan", RACE),
    "block_reads_next": ("tsan", RACE),
    "blocks_write_same": ("tsan", RACE),
    # Memory that does not belong to the kernel.
    "shared_read_past": ("asan", POISON),
    "shared_write_past": ("asan", POISON),
    "shared_write_before": ("asan", POISON),
    "global_read_past": ("asan", HEAP),
    "global_write_past": ("asan", HEAP),
    "global_write_before": ("asan", HEAP),
    "endless_recursion": ("asan", "AddressSanitizer: stack-overflow"),
    # Undefined behaviour of C++.
    "misaligned_scalar": ("asan", "runtime error: load of misaligned address"),
    "integer_overflow": ("asan", "runtime error: signed integer overflow"),
    # Barriers and warp operations that not all threads reach.
    "barriers_at_two_lines": ("plain", f"thread .* waits {BARRIER}.*\n.*{BARRIER}"),
    "barrier_in_half_the_block": ("plain", f"waits {BARRIER}.*\n.*{BARRIER}"),
    "return_before_barrier": ("plain", "deadlock(.*\n)*  thread 40 finished"),
    "barrier_against_shuffle": (
        "plain",
        f"deadlock.*\n  threads 0 to 15 in __shfl_sync at .*\n  threads 16 to 63 {BARRIER}",
    ),
    "lane_not_in_its_mask": ("plain", "lane 0 is not in the mask 0xfffffffe"),
    "lane_never_comes": ("plain", "waits with mask .* in __shfl_down_sync at"),
    "lanes_with_two_masks": ("plain", "waits with mask .* in __s.* at"),
    "part_of_a_warp": ("plain", "0x0000ffff: only barriers of whole warps"),
    "shuffle_from_outside": ("plain", "reads lane [0-9]+, outside 0x0000ffff"),
    # Shared memory and stores.
    "misaligned_vector": ("plain", "store_vector to .* not a multiple of 16"),
    "part_too_large": ("plain", "part 1 .* 200 x 8 bytes from 512 on, launched with 528"),
    "parts_differ": ("plain", "in another thread"),
    "uninitialised_shared": ("plain", "wrong"),  # NaN
    # Launches.
    "no_attribute": ("plain", "cudaFuncSetAttribute allows it: 50000, limit 49152"),
    "more_than_device_has": ("plain", "what the device has: 166912, limit 166911"),
    "empty_grid": ("plain", "blocks: 0"),
    "huge_grid": ("plain", "blocks: 2147483648"),
    "odd_block": ("plain", "threads of a block, in whole warps: 65"),
    "huge_block": ("plain", "threads of a block, in whole warps: 1056"),
    "wrong_stream": ("plain", "not to the current stream"),
}
# Blocks that are not neighbours if blocks run in order.
CATCHES_IN_RANDOM_ORDER = {"block_reads_next_but_one": ("tsan", RACE)}


@functools.cache
def program(variant: str, *flags: str) -> Path:
    if not build.available(variant):
        pytest.skip(f"needs Linux and a C++ compiler with what {variant} needs")
    return build.build_program("planted", variant, *flags)


def run(path: Path, variant: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = build.sanitized(variant, path, *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("variant", EVERY_VARIANT)
@pytest.mark.parametrize("order", ORDERS)
def test_the_correct_kernel_passes(variant: str, order: int) -> None:
    done = run(program(variant), variant, "none", str(order))
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize("order", ORDERS)
def test_fibers_of_other_processors(order: int) -> None:
    done = run(program("plain", "-DLLR_UCONTEXT"), "plain", "none", str(order))
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")


@pytest.mark.parametrize("bug", CATCHES)
@pytest.mark.parametrize("order", ORDERS)
def test_each_planted_bug_is_caught(bug: str, order: int) -> None:
    variant, report = CATCHES[bug]
    assert_caught(variant, bug, order, report)


@pytest.mark.parametrize("bug", CATCHES_IN_RANDOM_ORDER)
def test_bugs_that_another_order_shows(bug: str) -> None:
    variant, report = CATCHES_IN_RANDOM_ORDER[bug]
    assert_caught(variant, bug, 2, report)


def assert_caught(variant: str, bug: str, order: int, report: str) -> None:
    done = run(program(variant), variant, bug, str(order))
    output = done.stdout + done.stderr
    assert done.returncode != 0, f"{bug} went unnoticed: {output}"
    assert re.search(report, output), output
    # Reports name the line of the kernel, except for refused launches.
    assert "planted" in output or output == "wrong\n"


def test_every_planted_bug_is_in_the_tables() -> None:
    bugs = run(program("plain"), "plain").stdout.split()
    assert bugs == ["none", *bugs[1:]]
    assert sorted(bugs[1:]) == sorted([*CATCHES, *CATCHES_IN_RANDOM_ORDER])
