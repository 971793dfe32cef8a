"""The contenders of benchmarks/rank.py: singular values, ranks of Jacobians, and proofs of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import gpu
import numpy as np
import torch
from contenders import Case, Disagreement, build, concatenate
from gpu import Run
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import llr
from llr import verify
from llr.operators import _ops

OP, LLR, TORCH = "torch.ops.llr.svdvals", "llr.svdvals", "torch.linalg.svdvals"
NUMPY, GESDD, GEJSV, JAX = "numpy", "scipy gesdd", "scipy gejsv", "JAX"
LLR_RANK, TORCH_RANK = "llr.numerical_rank", "torch.linalg.matrix_rank"

AUTO, GRAM, TSQR, SVD = "llr auto", "llr gram", "llr tsqr", "llr svd"
CERTIFIED, VERIFY, TORCH_FUNC = "llr certified", "verify", "torch.func + matrix_rank"
RANKS = (AUTO, GRAM, TSQR, SVD, TORCH_FUNC)
"""The contenders for the rank of a Jacobian."""

DRIVERS = {f"{TORCH} {driver}": driver for driver in ("gesvd", "gesvdj", "gesvda")}
"""cuSOLVER's routines by name; torch's default among them depends on the size."""

GRAM_OP, GRAM_DD = "torch.ops.llr.mlp_gram", "torch.ops.llr.mlp_gram double-double"
GRAM_TORCH = "torch.func, J J'"
GRAMS = (GRAM_OP, GRAM_DD, GRAM_TORCH)
"""The contenders for a Gram matrix; on a GPU the operators also run as CUDA graphs."""

AGREEMENT = 1e-12
"""Largest difference of two singular values, relative to the largest of their matrix."""

LONG_AGREEMENT = 1e-11
"""The same for Jacobians: LAPACK loses more digits for longer rows, which here have up to 268,801 entries."""


@dataclass(frozen=True)
class Matrices:
    """A batch of matrices for their singular values."""

    number: int
    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.number} of {self.rows} x {self.columns}"

    @property
    def quick(self) -> Matrices:
        return replace(self, number=3)

    @property
    def short_side(self) -> int:
        return min(self.rows, self.columns)


def matrices(case: Matrices, rank: int, device: torch.device) -> Tensor:
    """Matrices with normal entries; for a rank below full, products of two normal factors."""
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, columns: int) -> Tensor:
        shape = (case.number, rows, columns)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if rank == case.short_side:
        return normal(case.rows, case.columns).to(device)
    return (normal(case.rows, rank) @ normal(rank, case.columns)).to(device)


def svd_contenders(A: Tensor, jax: Any) -> dict[str, Run]:
    """All contenders for a batch of matrices; those that run on the CPU only get a copy there."""
    on_cpu = A.cpu().numpy()
    runs: dict[str, Run] = {
        LLR: lambda: llr.svdvals(A),
        TORCH: lambda: torch.linalg.svdvals(A),
        NUMPY: lambda: np.linalg.svd(on_cpu, compute_uv=False),
        LLR_RANK: lambda: llr.numerical_rank(A).rank,
        TORCH_RANK: lambda: torch.linalg.matrix_rank(A),
    }
    if _ops.has_kernel(A):
        op = torch.ops.llr.svdvals.default
        runs[OP] = lambda: op(A)
    if A.is_cuda:
        runs |= {
            name: partial(torch.linalg.svdvals, A, driver=driver)
            for name, driver in DRIVERS.items()
        }
    else:
        runs |= scipy_contenders(on_cpu)
    if jax is not None:
        there = jax.numpy.asarray(on_cpu)
        compiled = jax.jit(lambda a: jax.numpy.linalg.svd(a, compute_uv=False))
        runs[JAX] = lambda: compiled(there).block_until_ready()
    return runs


def scipy_contenders(A: Any) -> dict[str, Run]:
    """LAPACK's drivers called one matrix at a time, if scipy is installed."""
    try:
        from scipy import linalg  # noqa: PLC0415 (optional: adds columns)
    except ImportError:
        return {}
    runs: dict[str, Run] = {
        GESDD: lambda: [linalg.svd(a, compute_uv=False, lapack_driver="gesdd") for a in A]
    }
    gejsv = getattr(linalg.lapack, "dgejsv", None)
    if gejsv is None or A.shape[-2] < A.shape[-1]:  # it does not accept wide matrices
        return runs

    def jacobi(a: Any) -> Any:
        # No vectors; joba=0 keeps the smallest values, which the default would round to zero.
        values, _, _, work, _, _ = gejsv(a, joba=0, jobu=3, jobv=3)
        return values * (work[0] / work[1])

    return runs | {GEJSV: lambda: [jacobi(a) for a in A]}


def check_svd(
    runs: Mapping[str, Run],
    case: Matrices,
    rank: int,
    device: torch.device,
    excused: dict[str, str] | None = None,
) -> dict[str, float]:
    """The largest difference of each contender's values from LAPACK's, relative to sigma_1.

    Args:
        runs: the contenders.
        case: the batch of matrices.
        rank: the rank of every matrix.
        device: of the matrices. On a GPU, contenders that use cuSOLVER through torch may fail; they are not
            timed then.
        excused: receives the contenders that failed, and why.

    Raises:
        Disagreement: a difference too large to be rounding, or a rank that is not ``rank``.
    """
    reference = TORCH if device.type == "cpu" else NUMPY
    expected = as_tensor(runs[reference](), device)
    may_fail = set() if device.type == "cpu" or excused is None else {TORCH, TORCH_RANK, *DRIVERS}
    errors = {}
    for name in sorted(runs.keys() - {reference}):
        if name in (TORCH_RANK, LLR_RANK):
            check = partial(check_rank, name, runs[name], case, rank)
        else:
            check = partial(check_values, name, reference, runs[name], expected)
        found = attempt(check, name in may_fail)
        if isinstance(found, str):
            excused[name] = found
        elif found is not None:
            errors[name] = found
    return errors


def attempt(check: Callable[[], float | None], may_fail: bool) -> float | str | None:
    """The result of a check; if it fails and may fail, the reason."""
    try:
        return check()
    except RuntimeError as error:
        if not may_fail:
            raise
        return str(error).partition("\n")[0]


def check_values(name: str, reference: str, run: Run, expected: Tensor) -> float:
    values = as_tensor(run(), expected.device)
    if values.shape != expected.shape or values.dtype != expected.dtype:
        raise Disagreement(
            f"{name} gives {values.dtype} {tuple(values.shape)}; expected {expected.dtype} "
            f"{tuple(expected.shape)}"
        )
    return difference(name, reference, values, expected, AGREEMENT)


def check_rank(name: str, run: Run, case: Matrices, rank: int) -> None:
    ranks = sorted(set(run().tolist()))
    if ranks != [rank]:
        raise Disagreement(f"{name} of {case}, all of rank {rank}, is {ranks}; nothing was timed")


def difference(name: str, other: str, values: Tensor, expected: Tensor, allowed: float) -> float:
    """The largest difference of two batches of spectra, relative to sigma_1; an error if too large."""
    error = float((values.sub(expected).abs() / expected[..., :1]).max())
    if not error <= allowed:
        raise Disagreement(
            f"{name} differs from {other} by {error:.1e} of sigma_1; at most {allowed:.0e} is allowed. "
            "Nothing was timed"
        )
    return error


def as_tensor(values: Any, device: torch.device) -> Tensor:
    """Convert the result of any of the libraries, also a list of arrays, to a tensor."""
    if isinstance(values, list):
        values = torch.stack([torch.from_numpy(v) for v in values])
    elif not isinstance(values, Tensor):
        values = torch.utils.dlpack.from_dlpack(values)
    return values.to(device)


def network(case: Case, device: torch.device) -> tuple[nn.Module, Tensor]:
    """The tanh network and samples of a case of benchmarks/jacobian.py, in float64."""
    problem = build(case, torch.float64, device)
    return problem.model, problem.x


def jacobian_by_torch(model: nn.Module, x: Tensor) -> Tensor:
    """The (n q, P) Jacobian, computed with torch alone."""
    values = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(values: Mapping[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, dict(values), (sample,))

    blocks = vmap(jacrev(outputs), in_dims=(None, 0))(values, x)
    rows = next(iter(blocks.values())).shape[:2]
    columns = sum(value.numel() for value in values.values())
    return concatenate(blocks, (*rows, columns)).flatten(0, 1)


def rank_contender(name: str, model: nn.Module, x: Tensor) -> Run:
    """A function that computes the rank of a model's Jacobian: by `llr.rank` with a method, or by torch."""
    if name == TORCH_FUNC:
        return lambda: torch.linalg.matrix_rank(jacobian_by_torch(model, x))
    method = name.removeprefix("llr ")
    return lambda: llr.rank(model, x, method=method)


def facts(result: Any) -> dict[str, Any]:
    """The result of a contender for JSON; for torch only the rank."""
    if isinstance(result, Tensor):
        return {"rank": int(result)}
    names = ("rank", "method", "reason", "path", "predicted_bytes", "actual_bytes", "bits", "exact")
    return {name: getattr(result, name) for name in names}


def check_ranks(
    runs: Mapping[str, Run], model: nn.Module, x: Tensor, excused: dict[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, float]]:
    """The result of every contender, and the difference of its spectrum from LAPACK's, relative to sigma_1.

    Args:
        runs: the contenders.
        model: the network.
        x: its samples. On a GPU, torch's rank may differ from llr's; torch is not timed then.
        excused: receives the reason.

    Raises:
        Disagreement: two ranks, or two spectra, differ.
    """
    expected = torch.linalg.svdvals(jacobian_by_torch(model, x).cpu())
    said, errors = {}, {}
    for name, run in runs.items():
        result = run()
        said[name] = facts(result)
        if not isinstance(result, Tensor):
            spectrum = result.spectrum.to(expected.device)
            if spectrum.shape != expected.shape:
                raise Disagreement(
                    f"{name} gives {spectrum.numel()} singular values; expected {expected.numel()}"
                )
            errors[name] = difference(name, TORCH, spectrum, expected, LONG_AGREEMENT)
    ranks = {name: fact["rank"] for name, fact in said.items()}
    if x.is_cuda and excused is not None and ranks[TORCH_FUNC] != ranks[AUTO]:
        excused[TORCH_FUNC] = f"its rank is {ranks.pop(TORCH_FUNC)}, llr's is {ranks[AUTO]}"
    if len(set(ranks.values())) > 1:
        found = ", ".join(f"{name}: {rank}" for name, rank in ranks.items())
        raise Disagreement(f"the ranks differ ({found}); nothing was timed")
    return said, errors


def gram_contenders(model: nn.Module, x: Tensor) -> dict[str, Run]:
    """Gram matrices of a tanh network's Jacobian: as float64, as high and low parts, and by torch."""

    def by_torch() -> Tensor:
        J = jacobian_by_torch(model, x)
        return J @ J.mT

    runs: dict[str, Run] = {GRAM_TORCH: by_torch}
    if not _ops.has_kernel(x):
        return runs
    weights = [p.detach() for name, p in model.named_parameters() if name.endswith("weight")]
    biases = [p.detach() for name, p in model.named_parameters() if name.endswith("bias")]
    op = torch.ops.llr.mlp_gram.default
    for name, double_double in ((GRAM_OP, False), (GRAM_DD, True)):
        runs[name] = partial(op, x, weights, biases, "tanh", None, double_double)
        if x.is_cuda:
            runs[f"{name} graph"] = gpu.graph_of(runs[name])
    return runs


def check_grams(runs: Mapping[str, Run]) -> dict[str, float]:
    """The largest difference of each matrix from torch's, relative to the largest entry.

    Raises:
        Disagreement: a difference too large to be rounding.
    """
    expected = runs[GRAM_TORCH]()
    errors = {}
    for name in sorted(runs.keys() - {GRAM_TORCH}):
        K = runs[name]().to(expected.device).reshape(-1, *expected.shape)[0]  # the high part
        errors[name] = float((K - expected).abs().max() / expected.abs().max())
        if not errors[name] <= AGREEMENT:
            raise Disagreement(
                f"{name} differs from {GRAM_TORCH} by {errors[name]:.1e} of the largest entry; at "
                f"most {AGREEMENT:.0e} is allowed. Nothing was timed"
            )
    return errors


@dataclass(frozen=True)
class Proof:
    """A tanh network with one output whose exact Jacobian has full column rank, but not its rounded one."""

    widths: tuple[int, ...]
    n: int

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, n={self.n}"

    @property
    def quick(self) -> Proof:
        return Proof(tuple(min(width, 3) for width in self.widths), n=44)


def proof_network(case: Proof) -> tuple[nn.Module, Tensor]:
    """Normal parameters and samples, rounded to multiples of 2^-20.

    With one hidden layer: standard normal, biases in the hidden layer only. With more: biases everywhere,
    and weights of variance 1 / fan-in.
    """
    generator = torch.Generator().manual_seed(0)
    deep = len(case.widths) > 3

    def normal(shape: torch.Size | tuple[int, ...], std: float = 1.0) -> Tensor:
        values = std * torch.randn(shape, generator=generator, dtype=torch.float64)
        return torch.round(values * 2**20) / 2**20

    layers: list[nn.Module] = []
    last = len(case.widths) - 2
    for i, (into, out) in enumerate(pairwise(case.widths)):
        layer = nn.Linear(into, out, bias=deep or i < last, dtype=torch.float64)
        layer.weight.data = normal(layer.weight.shape, 1 / math.sqrt(into) if deep else 1.0)
        if layer.bias is not None:
            layer.bias.data = normal(layer.bias.shape)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1]), normal((case.n, case.widths[0]))


def proof_contenders(model: nn.Module, x: Tensor) -> tuple[dict[str, Run], Any]:
    """The contenders (finding a certificate, checking it, torch's rank), and the result of `llr.rank`.

    Raises:
        Disagreement: the certificate is not accepted.
    """
    result = rank_contender(CERTIFIED, model, x)()
    verdict = verify(result.certificate, model, x)
    if not verdict:
        raise Disagreement(f"the certificate is not accepted: {verdict.reason}; nothing was timed")
    runs = {
        CERTIFIED: rank_contender(CERTIFIED, model, x),
        VERIFY: lambda: verify(result.certificate, model, x),
        TORCH_FUNC: rank_contender(TORCH_FUNC, model, x),
    }
    return runs, result
