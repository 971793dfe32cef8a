"""The ways to compute the Jacobian of a tanh MLP that benchmarks/jacobian.py compares."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gpu
import torch
from gpu import Run
from torch import Tensor, nn
from torch.func import functional_call, jacrev, stack_module_state, vmap

import llr

FILL, COPY, OUT, FRESH = "fill", "copy", "llr out=", "llr fresh"
OP_OUT, OP_FRESH, OP_GRAPH = "op out=", "op fresh", "op graph"
TORCH, TORCH_CAT, BY_HAND, JAX = "torch.func", "torch.func + cat", "by hand out=", "JAX"
COMPILED, COMPILED_GRAPH = "torch.compile", "torch.compile graph"

AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest allowed difference, relative to the largest entry."""


class Disagreement(RuntimeError):
    """Two contenders computed different Jacobians."""


@dataclass(frozen=True)
class Case:
    """The sizes of a tanh network, its samples and its parameter points."""

    widths: tuple[int, ...]
    n: int
    points: int | None = None

    def __str__(self) -> str:
        points = "" if self.points is None else f", {self.points} parameter points"
        return f"{'-'.join(map(str, self.widths))}, n={self.n}{points}"

    @property
    def quick(self) -> Case:
        widths = tuple(min(width, 1024) for width in self.widths)
        return replace(self, widths=widths, n=2, points=self.points and 3)


CASES = {
    "A": Case((5, 64, 1), 1000),
    "B": Case((10, 256, 256, 1), 512),
    "D": Case((2, 20, 1), 100),
    "E": Case((784, 100, 10), 64),
    "F": Case((2, 20, 1), 100, points=256),
}
GPU_CASES = {  # a GPU computes the CPU's cases within microseconds
    "G": Case((10, 1024, 1024, 1), 128),
    "H": Case((2, 20, 1), 100, points=16384),
    "I": Case((2, 20, 1), 1_000_000),
    "K": Case((10, 4096, 4096, 1), 1),
}


@dataclass(frozen=True)
class Problem:
    """The network and the samples of a case."""

    model: nn.Module
    x: Tensor
    values: dict[str, Tensor]  # detached, stacked over the parameter points if there are any
    points: int | None
    shape: tuple[int, ...]  # of J

    @property
    def weights(self) -> list[Tensor]:
        return [v for name, v in self.values.items() if name.endswith("weight")]

    @property
    def biases(self) -> list[Tensor]:
        return [v for name, v in self.values.items() if name.endswith("bias")]


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Problem:
    torch.manual_seed(0)
    options: dict[str, Any] = {"dtype": dtype, "device": device}

    def network() -> nn.Module:
        layers: list[nn.Module] = []
        for into, out in zip(case.widths, case.widths[1:], strict=False):
            layers += [nn.Linear(into, out, **options), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    model = network()
    if case.points is None:
        values = {name: p.detach() for name, p in model.named_parameters()}
    else:
        stacked, _ = stack_module_state([network() for _ in range(case.points)])
        values = {name: p.detach() for name, p in stacked.items()}
    batch = () if case.points is None else (case.points,)
    columns = sum(p.numel() for p in model.parameters())
    x = torch.randn(case.n, case.widths[0], **options)
    return Problem(model, x, values, case.points, (*batch, case.n, case.widths[-1], columns))


def derivatives_of(problem: Problem) -> Callable[[Mapping[str, Tensor], Tensor], dict[str, Tensor]]:
    """The usual code with torch.func: maps parameters and samples to a dictionary of Jacobians."""

    def outputs(values: Mapping[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(problem.model, dict(values), (sample,))

    derivatives = vmap(jacrev(outputs), in_dims=(None, 0))
    return derivatives if problem.points is None else vmap(derivatives, in_dims=(0, None))


def contenders(problem: Problem, out: Tensor) -> dict[str, Run]:
    """All contenders that need no compiler. "out=", the graph and the fill write into ``out``."""
    model, x, values = problem.model, problem.x, problem.values
    weights, biases = problem.weights, problem.biases
    params = None if problem.points is None else values
    derivatives = derivatives_of(problem)
    runs: dict[str, Run] = {
        FILL: lambda: out.fill_(0.5),
        OUT: lambda: llr.jacobian(model, x, params=params, out=out),
        FRESH: lambda: llr.jacobian(model, x, params=params),
        TORCH: lambda: derivatives(values, x),
        TORCH_CAT: lambda: concatenate(derivatives(values, x), problem.shape),
        BY_HAND: lambda: by_hand(x, weights, biases, out),
    }
    if llr.plan(model, x, params=params).backend == "native":
        op = torch.ops.llr.mlp_jacobian
        arguments = (x, weights, biases, "tanh")

        def op_out() -> Tensor:
            op.out(*arguments, out=out)
            return out

        runs[OP_OUT] = op_out
        runs[OP_FRESH] = lambda: op.default(*arguments)
        if x.is_cuda:
            runs[OP_GRAPH] = gpu.graph_of(op_out)
    if x.is_cuda:
        runs[COPY] = gpu.copier(out)
    return runs


def compiled_contenders(problem: Problem) -> tuple[dict[str, Run], dict[str, str]]:
    """torch.func + cat under torch.compile, on a GPU also as CUDA graphs; and the reasons for missing ones.

    They are compiled for exactly these shapes, in a first call made here.
    """
    derivatives, runs, missing = derivatives_of(problem), {}, {}
    modes = {COMPILED: "default", COMPILED_GRAPH: "reduce-overhead"}
    for name, mode in modes.items() if problem.x.is_cuda else [(COMPILED, "default")]:

        def together(values: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return concatenate(derivatives(values, x), problem.shape)

        compiled = torch.compile(together, dynamic=False, mode=mode)
        run = partial(compiled, problem.values, problem.x)
        try:
            run()
        except Exception as error:  # a missing compiler, or one of many other errors of torch
            lines = str(error).strip().splitlines() or [type(error).__name__]
            missing[name] = lines[0]
        else:
            runs[name] = run
    return runs, missing


def concatenate(blocks: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """Concatenate torch.func's dictionary of (..., n, q, *parameter's shape) to (..., n, q, P)."""
    return torch.cat([block.reshape(*shape[:-1], -1) for block in blocks.values()], dim=-1)


def by_hand(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], out: Tensor) -> Tensor:
    """Hand-written code for a tanh MLP: few products, and outer products written directly to their places."""
    if weights[0].dim() == 3:
        x = x.expand(weights[0].shape[0], *x.shape)
    inputs = [x]
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        z = (
            torch.addmm(b, inputs[-1], w.mT)
            if w.dim() == 2
            else torch.baddbmm(b.unsqueeze(1), inputs[-1], w.mT)
        )
        inputs.append(z.tanh_())
    q, end = out.shape[-2], out.shape[-1]
    delta = torch.eye(q, dtype=x.dtype, device=x.device)
    for layer in reversed(range(len(weights))):
        rows, columns = weights[layer].shape[-2:]
        bias_block = out[..., end - rows : end]
        weight_block = out[..., end - rows - rows * columns : end - rows]
        weight_block = weight_block.unflatten(-1, (rows, columns))
        end -= rows * (columns + 1)
        bias_block.copy_(delta)
        if layer == len(weights) - 1:  # delta is the identity, so most of the block is 0
            weight_block.zero_().diagonal(dim1=-3, dim2=-2).copy_(inputs[layer].unsqueeze(-1))
            pulled = weights[layer].unsqueeze(-3)
        else:
            torch.mul(delta.unsqueeze(-1), inputs[layer][..., None, None, :], out=weight_block)
            if layer == 0:
                break
            pulled = (delta.flatten(-3, -2) @ weights[layer]).unflatten(-2, (-1, q))
        delta = pulled * (1 - inputs[layer].square()).unsqueeze(-2)
    return out


def import_jax(device: torch.device) -> Any:
    """The module, configured for a fair comparison; None if it is not installed or lacks this device."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory for others
    try:
        import jax  # noqa: PLC0415  (optional: adds a column)
    except ImportError:
        return None
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32, like the others
    jax.config.update("jax_platforms", "cpu" if device.type == "cpu" else f"{device.type},cpu")
    try:
        jax.devices(device.type)
    except RuntimeError:  # JAX without CUDA
        return None
    return jax


def jax_contender(jax: Any, problem: Problem) -> Run:
    jnp = jax.numpy
    q = problem.shape[-2]

    def outputs(layers: Sequence[tuple[Any, Any]], sample: Any) -> Any:
        *hidden, (w_last, b_last) = layers
        for w, b in hidden:
            sample = jnp.tanh(w @ sample + b)
        return w_last @ sample + b_last

    def rows(layers: Sequence[tuple[Any, Any]], sample: Any) -> Any:
        blocks = jax.jacrev(outputs)(layers, sample)
        return jnp.concatenate([d.reshape(q, -1) for layer in blocks for d in layer], axis=-1)

    every = jax.vmap(rows, in_axes=(None, 0))
    if problem.points is not None:
        every = jax.vmap(every, in_axes=(0, None))
    compiled = jax.jit(every)
    x = jnp.asarray(problem.x.cpu().numpy())
    pairs = zip(problem.weights, problem.biases, strict=True)
    layers = [tuple(jnp.asarray(t.cpu().numpy()) for t in pair) for pair in pairs]
    return lambda: compiled(layers, x).block_until_ready()


def check(problem: Problem, runs: Mapping[str, Run], out: Tensor) -> dict[str, float]:
    """The largest difference of each contender from torch.func, relative to the largest entry.

    Raises:
        Disagreement: a difference too large to be rounding.
    """
    expected = concatenate(runs[TORCH](), problem.shape)
    scale = float(expected.abs().max())
    errors = {}
    for name in sorted(runs.keys() - {FILL, COPY, TORCH}):
        out.fill_(math.nan)  # so that an earlier result cannot pass for this contender's
        result = runs[name]()
        if not isinstance(result, Tensor):
            result = torch.utils.dlpack.from_dlpack(result)
        if tuple(result.shape) != problem.shape or result.dtype != expected.dtype:
            raise Disagreement(
                f"{name} gives {result.dtype} {tuple(result.shape)}; expected {expected.dtype} "
                f"{problem.shape}"
            )
        errors[name] = float(result.to(expected.device).sub(expected).abs_().max()) / scale
        if not errors[name] <= AGREEMENT[expected.dtype]:
            raise Disagreement(
                f"{name} differs from torch.func by {errors[name]:.1e} of the largest entry; at most "
                f"{AGREEMENT[expected.dtype]:.0e} is allowed. Nothing was timed"
            )
    return errors
