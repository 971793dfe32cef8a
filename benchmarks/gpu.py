"""Parts of benchmarks for GPUs: the clock, a copy, CUDA graphs, and facts that the numbers depend on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]

SMI = {
    "driver": "driver_version",
    "clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "highest_clock_mhz": "clocks.max.sm",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
}
"""Facts that torch does not provide, and their names in nvidia-smi."""


class EventClock:
    """Seconds between two events on the current stream of the current device.

    The calls are queued one after the other, as in a program. If the GPU is slower than the queueing, only
    the GPU's time counts. A contender that works on the host or on another stream (JAX) and waits for its
    results is timed correctly too, because the second event is recorded after it has returned.

    Args:
        event: makes an event.
    """

    def __init__(self, event: Callable[..., Any] = torch.cuda.Event) -> None:
        self.event = event

    def __call__(self, run: Run, calls: int) -> float:
        start, end = self.event(enable_timing=True), self.event(enable_timing=True)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()  # the GPU is idle when the next sample begins
        return start.elapsed_time(end) / 1e3


def copier(out: Tensor) -> Run:
    """A call that copies as many bytes as ``out`` has into it, on the device: twice the memory traffic."""
    source = torch.full_like(out, 0.5)
    return lambda: out.copy_(source)


def graph_of(run: Run) -> Run:
    """The same call as a CUDA graph, captured at the first call: the GPU's time without the host's."""
    found: list[Any] = []

    def replay() -> Any:
        if not found:
            found.extend(capture(run))
        graph, result = found
        graph.replay()
        return result

    return replay


def capture(run: Run) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of the work that a call queues, and the result of the call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # initialisation at the first call cannot be captured
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


def facts(device: torch.device) -> dict[str, Any]:
    """The GPU, the CUDA version of torch, the driver, and clocks."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        **state(device),
    }


def state(device: torch.device) -> dict[str, Any]:
    """Driver, clocks, power and temperature from nvidia-smi; empty if it does not work."""
    uuid = torch.cuda.get_device_properties(device).uuid
    query = f"--query-gpu={','.join(SMI.values())}"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id=GPU-{uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    driver, *numbers = (cell.strip() for cell in done.stdout.strip().split(","))
    measured = [float(n) if re.fullmatch(r"\d+(\.\d+)?", n) else None for n in numbers]
    return dict(zip(SMI, [driver, *measured], strict=False))


def short_name(device: torch.device) -> str:
    """The GPU's name for a file name, such as nvidia-h100-80gb-hbm3."""
    name = torch.cuda.get_device_name(device).lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
