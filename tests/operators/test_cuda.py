"""The operators on a GPU: the CPU's results, the current stream and device, no waiting for the device, and
memory unchanged if there is not enough. Needs torch, numpy and pytest only."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import targets
from helpers.oracles import Net, Tensors, assert_matches, draw, error, name
from helpers.targets import Target
from torch import Tensor

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

OP = torch.ops.llr
F64, F32 = torch.float64, torch.float32
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
# One that a block computes completely, one that uses matrix products, and parameter points of both.
NETS = [
    Net((5, 40, 3), 33),
    Net((300, 200, 150, 2), 9, biases=(True, False, True)),
    Net((3, 20, 1), 17, points=5),
    Net((40, 300, 2), 5, points=3, own_x=True),
]


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
)
def gpu(request: pytest.FixtureRequest) -> Target:
    """The CUDA kernels, on a GPU or emulated."""
    return targets.target(request.param)


@pytest.fixture
def cuda() -> Iterator[str]:
    """A real GPU, with the memory of other tests freed."""
    targets.require_gpus()
    gc.collect()
    torch.cuda.empty_cache()
    yield "cuda"
    torch.cuda.synchronize()


on_a_gpu = pytest.mark.cuda


# --- the CPU's results ---------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("activation", ["tanh", "gelu", "erf", "softplus"])
@pytest.mark.parametrize("net", NETS, ids=name)
def test_jacobians_agree_to_rounding(net, activation, dtype, gpu):
    here = OP.mlp_jacobian(*draw(net, dtype), activation)
    there = gpu.op.mlp_jacobian(*draw(net, dtype, gpu.device), activation)
    # The signals are doubles: they are rounded once to float32.
    assert error(there.cpu(), here) <= (1e-14 if dtype == F64 else 2.0**-23)


@both_dtypes
@pytest.mark.parametrize("net", NETS, ids=name)
def test_gram_matrices_agree_to_rounding(net, dtype, gpu):
    for dd in (False, True):
        here = OP.mlp_gram(*draw(net, dtype), "tanh", None, dd)
        there = gpu.op.mlp_gram(*draw(net, dtype, gpu.device), "tanh", None, dd)
        assert error(there.cpu(), here) <= 1e-14


@pytest.mark.parametrize("shape", [(40, 1, 7, 9), (65, 2, 30, 3), (33, 3, 1, 100)], ids=str)
def test_sums_in_double_double_agree(shape, gpu):
    n, t, h, w = shape
    generator = torch.Generator().manual_seed(0)
    delta, a = (torch.randn(n, t, k, generator=generator, dtype=F64) for k in (h, w))
    here = torch.zeros(2, n, n, dtype=F64)
    there = here.to(gpu.device, copy=True)
    for bias, weight in itertools.product([False, True], repeat=2):
        OP.gram_add_(here, delta, a, bias, weight)
        gpu.op.gram_add_(there, delta.to(gpu.device), a.to(gpu.device), bias, weight)
    high, low = there.cpu() - here
    # Far below the last digit of a double.
    assert float((high + low).abs().max() / here[0].abs().max()) <= 2.0**-95
    assert float(here[1].abs().max()) > 0


@both_dtypes
@pytest.mark.parametrize(
    "shape", [(9, 7, 4), (3, 200, 30), (2, 20, 500), (1, 64, 64), (4, 90, 70)], ids=str
)
def test_singular_values_agree_to_rounding(shape, dtype, gpu):
    A = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    A[..., -1] = A[..., 0]
    A = A.to(dtype)
    here, there = OP.svdvals(A), gpu.op.svdvals(A.to(gpu.device)).cpu()
    short = min(shape[1:])
    allowed = 10 * short * torch.finfo(F64).eps if dtype == F64 else 2.0**-23
    assert ((there - here).abs() <= allowed * here[:, :1]).all()
    rounding = torch.finfo(dtype).eps * short * here[:, :1]
    assert torch.equal((there > rounding).sum(-1), (here > rounding).sum(-1))


@both_dtypes
def test_the_same_bits_every_time(dtype, gpu):
    tensors, A = draw(NETS[1], dtype, gpu.device), torch.randn(6, 50, 20, dtype=dtype)
    computations: list[Callable[[], Tensor]] = [
        lambda: gpu.op.mlp_jacobian(*tensors, "tanh"),
        lambda: gpu.op.mlp_gram(*tensors, "tanh", None, True),
        lambda: gpu.op.svdvals(A.to(gpu.device)),
    ]
    for compute in computations:
        first = compute()
        assert all(torch.equal(compute(), first) for _ in range(3))


# --- streams, graphs and devices ------------------------------------------------------------------------


def into(out: Tensor, tensors: Tensors) -> Callable[[], None]:
    return lambda: OP.mlp_jacobian.out(*tensors, "tanh", out=out)


@on_a_gpu
@both_dtypes
@pytest.mark.parametrize("net", NETS, ids=name)
def test_capture_in_a_graph(net, dtype, cuda):
    tensors = draw(net, dtype, cuda)
    J = OP.mlp_jacobian(*tensors, "tanh")
    K: list[Tensor] = []

    def compute() -> None:
        OP.mlp_jacobian.out(*tensors, "tanh", out=J)
        K[:] = [OP.mlp_gram(*tensors, "tanh", None, dd) for dd in (False, True)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries initialise at the first use, which cannot be captured
        compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    for seed in (1, 2):
        for kept, new in zip(tensors, draw(net, dtype, cuda, seed), strict=True):
            pairs = [(kept, new)] if isinstance(kept, Tensor) else zip(kept, new, strict=True)
            for a, b in pairs:
                if a is not None:
                    a.copy_(b)
        J.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(J, OP.mlp_jacobian(*tensors, "tanh"))
        for dd, captured in zip((False, True), K, strict=True):
            assert torch.equal(captured, OP.mlp_gram(*tensors, "tanh", None, dd))


@on_a_gpu
@pytest.mark.parametrize("net", NETS, ids=name)
def test_nothing_waits_for_the_gpu(net, cuda):
    tensors = draw(net, F64, cuda)
    out = OP.mlp_jacobian(*tensors, "tanh")
    OP.mlp_gram(*tensors, "tanh")
    torch.cuda.set_sync_debug_mode("error")
    try:
        into(out, tensors)()
        OP.mlp_jacobian(*tensors, "tanh")
        OP.mlp_gram(*tensors, "tanh")
        OP.mlp_gram(*tensors, "tanh", None, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
@pytest.mark.parametrize("net", NETS, ids=name)
def test_the_current_stream(net, cuda):
    """The stream still has to copy the samples: on another stream, the operators would run too early."""
    tensors = draw(net, F64, cuda)
    A = torch.randn(20, 60, 30, dtype=F64, device=cuda)
    computations: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, _: OP.mlp_jacobian(x, *tensors[1:], "tanh"),
        lambda x, _: OP.mlp_gram(x, *tensors[1:], "tanh", None, True),
        lambda _, A: OP.svdvals(A),
    ]
    for compute in computations:
        expected = compute(tensors.x, A)
        x, matrices = torch.zeros_like(tensors.x), torch.zeros_like(A)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
            x.copy_(tensors.x)
            matrices.copy_(A)
            found = compute(x, matrices)
        side.synchronize()
        assert torch.equal(found, expected)


@on_a_gpu
@pytest.mark.parametrize("net", NETS, ids=name)
def test_a_gpu_that_is_not_the_current_one(net):
    targets.require_gpus(2)
    expected, there = draw(net, F64, "cuda:0"), draw(net, F64, "cuda:1")
    A = torch.randn(5, 60, 30, dtype=F64, device="cuda:0")
    with torch.cuda.device(0):
        pairs = [
            (OP.mlp_jacobian(*tensors, "tanh"), OP.mlp_gram(*tensors, "tanh"), OP.svdvals(matrix))
            for tensors, matrix in [(expected, A), (there, A.to("cuda:1"))]
        ]
        assert torch.cuda.current_device() == 0
    for here, elsewhere in zip(*pairs, strict=True):
        assert str(elsewhere.device) == "cuda:1"
        assert_matches(elsewhere.cpu(), here.cpu())


@on_a_gpu
def test_arguments_on_two_devices(cuda):
    x, weights, biases = draw(Net((3, 4, 2)), F64, cuda)
    here = str(x.device)
    for arguments, message in [
        ((x.cpu(), weights, biases), rf"weights\[0\] is on {here} but x is on cpu"),
        (
            (x, [weights[0], weights[1].cpu()], biases),
            rf"weights\[1\] is on cpu but x is on {here}",
        ),
        ((x, weights, [biases[0].cpu(), None]), rf"biases\[0\] is on cpu but x is on {here}"),
    ]:
        for op in (OP.mlp_jacobian, OP.mlp_gram):
            with pytest.raises(RuntimeError, match=message):
                op(*arguments, "tanh")
    with pytest.raises(RuntimeError, match=f"out is .*on cpu; expected .*{here}"):
        OP.mlp_jacobian.out(x, weights, biases, "tanh", out=torch.empty(5, 2, 26, dtype=F64))
    K, delta = x.new_zeros(5, 5), x[:, None]
    with pytest.raises(RuntimeError, match=f"a is Double .* on cpu; expected .* on {here}"):
        OP.gram_add_(K, delta, delta.cpu(), True, True)
    with pytest.raises(RuntimeError, match=f"delta is Double .* on {here}; expected .* on cpu"):
        OP.gram_add_(K.cpu(), delta, delta, True, True)


# --- memory --------------------------------------------------------------------------------------------


@on_a_gpu
def test_out_of_memory_leaves_everything_as_it_was(cuda):
    # Only the last bias: 8 kB of results, and the signals of one round.
    tensors = draw(Net((10, 4096, 4096, 1), 1024), F64, cuda)
    columns = [-1, -1, -1, -1, -1, 0]
    out = torch.full((1024, 1, 1), 12345.0, dtype=F64, device=cuda)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**24) / total)
    try:
        for compute in (
            lambda: OP.mlp_jacobian.out(*tensors, "tanh", columns, out=out),
            lambda: OP.mlp_jacobian(*tensors, "tanh", columns),
            lambda: OP.mlp_gram(*tensors, "tanh"),
        ):
            with pytest.raises(torch.OutOfMemoryError):
                compute()
            assert torch.cuda.memory_allocated() == before
        assert bool((out == 12345.0).all())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    OP.mlp_jacobian.out(*tensors, "tanh", columns, out=out)
    assert bool((out == 1.0).all())


def require_memory(nbytes: int) -> None:
    free = torch.cuda.mem_get_info()[0]
    if free < nbytes:
        pytest.skip(f"needs {nbytes / 1e9:.0f} GB on the GPU; {free / 1e9:.0f} GB are free")


@on_a_gpu
@pytest.mark.slow
def test_more_samples_than_32_bits_count(cuda):
    require_memory(16 << 30)
    n = 2**29 + 7
    _, weights, biases = draw(Net((1, 1, 1), 1), F32, cuda)
    x = torch.linspace(-2, 2, n, device=cuda)[:, None]
    J = torch.full((n, 1, 4), float("nan"), device=cuda)
    OP.mlp_jacobian.out(x, weights, biases, "tanh", out=J)
    assert J.numel() > 2**31
    for part in (slice(0, 1000), slice(2**28 - 500, 2**28 + 500), slice(n - 1000, n)):
        assert torch.equal(J[part], OP.mlp_jacobian(x[part], weights, biases, "tanh"))
    assert torch.isfinite(torch.stack(J.aminmax())).all()


@on_a_gpu
@pytest.mark.slow
def test_more_parameters_than_32_bits_count(cuda):
    require_memory(48 << 30)
    width = 46_342
    generator = torch.Generator(cuda).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=cuda) / width**0.5

    x, weights = width**0.5 * normal(1, width), [normal(width, width), normal(1, width)]
    biases = [normal(width), normal(1)]
    J = OP.mlp_jacobian(x, weights, biases, "tanh")[0, 0]
    assert J.numel() > 2**31
    rest = OP.mlp_jacobian(x, weights, biases, "tanh", [-1, 0, width, 2 * width])[0, 0]
    assert torch.equal(J[width**2 :], rest)
    delta = rest[:width].double()
    for row in (0, 1, width // 2, width - 1):
        found, expected = J[row * width : (row + 1) * width], delta[row] * x[0].double()
        assert_matches(found, expected, 1e-6)
    assert torch.isfinite(torch.stack(J.aminmax())).all()


@on_a_gpu
@pytest.mark.slow
def test_more_entries_of_matrices_than_32_bits_count(cuda):
    require_memory(32 << 30)
    count = 2**25 + 3
    A = torch.randn(count, 8, 8, generator=torch.Generator(cuda).manual_seed(0), device=cuda)
    assert A.numel() > 2**31
    values = OP.svdvals(A)
    for part in (slice(0, 100), slice(2**24 - 50, 2**24 + 50), slice(count - 100, count)):
        assert torch.equal(values[part], OP.svdvals(A[part]))
        assert_matches(values[part], torch.linalg.svdvals(A[part].double().cpu()).to(cuda), 1e-6)
