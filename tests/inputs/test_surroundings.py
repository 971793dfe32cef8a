"""Settings of the process do not change a call's result, and are left as they were."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.models import F32, F64, Model
from helpers.oracles import assert_matches, mlp
from torch import Tensor, nn

import llr
from llr import recovery
from llr.inputs.evaluation.precision import Precision
from llr.inputs.evaluation.surroundings import closed, full_precision
from llr.jacobians import reference
from llr.landscape import hessian_spectrum
from llr.models import Conv1dTwoLayer, MatrixFactorization
from llr.recovery.train import train


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SURROUNDINGS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "default float64": lambda: default_dtype(F64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "with device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "warnings as errors": warnings_as_errors,
}


def makes(m: Model, x: Tensor) -> Tensor:
    """A forward that creates tensors without naming a dtype and a device."""
    h = torch.tanh(m.a(x)) * torch.linspace(0.1, 1, 4) + torch.arange(4) / 3
    return m.b(h + torch.tensor([0.1, 0.2, 0.3, 0.4]) + torch.full((4,), 0.7)).cumsum(1)


def model(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    if kind == "makes numbers":
        return Model(makes, a=nn.Linear(3, 4), b=nn.Linear(4, 2)), torch.randn(9, 3)
    if kind == "conv":
        layers = (nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(8, 2)), torch.randn(9, 6)
    if kind == "lstm":
        net = Model(
            lambda m, x: m.b(m.a(x)[0][:, -1]),
            a=nn.LSTM(2, 3, batch_first=True),
            b=nn.Linear(3, 2),
        )
        return net, torch.randn(4, 3, 2)
    return mlp(2, 3, 1), torch.randn(9, 2)


ENTRIES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "jacobian": llr.jacobian,
    "gram": llr.gram,
    "rank": lambda m, x: llr.rank(m, x).spectrum,
    "own rank": lambda m, x: llr.rank(m, x, dtype=None).spectrum,
    "tsqr": lambda m, x: llr.rank(m, x, method="tsqr").spectrum,
    "gram rank": lambda m, x: llr.rank(m, x, method="gram").spectrum,
    "plan": lambda m, x: str(llr.plan(m, x)),
    "reference": reference.jacobian,
    "model rank": lambda m, x: str(llr.model_rank(m, sample_shape=x.shape[1:], max_samples=30)),
    "guarantee": lambda m, x: str(llr.has_llr_guarantee(m, x)),
}


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return a == b


@pytest.mark.parametrize("around", list(SURROUNDINGS))
@pytest.mark.parametrize("kind", ["mlp", "conv", "makes numbers", "lstm"])
def test_the_same_answers(kind, around):
    net, x = model(kind)
    names = ("jacobian", "gram", "rank", "plan") if kind == "lstm" else ENTRIES
    for dtype in (F32, F64):
        net, x = net.to(dtype), x.to(dtype)
        for name in names:
            entry = ENTRIES[name]
            want = entry(net, x)
            with SURROUNDINGS[around]():
                found = entry(net, x)
            assert same(want, found), (name, dtype)


@pytest.mark.parametrize("around", list(SURROUNDINGS))
def test_the_same_certificates_and_closed_forms(around):
    net, x = model("mlp")
    factors = MatrixFactorization(3, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    filters = Conv1dTwoLayer(5, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    calls = [
        lambda: llr.rank(net, x, method="certified").lower,
        lambda: str(llr.model_rank(net)),
        lambda: str(llr.model_rank(factors)),
        lambda: str(llr.model_rank(filters, sample_shape=(5,))),
        lambda: str(llr.theory.tangent_dimension(net)),
        lambda: str(llr.theory.points_needed(net)),
    ]
    for call in calls:
        want = call()
        with SURROUNDINGS[around]():
            assert call() == want


@pytest.mark.parametrize("around", list(SURROUNDINGS))
def test_the_same_fits(around):
    net, x = model("conv")
    net, x = net.double(), x.double()
    y = torch.randn(9, 2, dtype=F64)
    generator = torch.Generator()

    def starts() -> Tensor:
        return recovery.initial(net, 3, scale=0.1, generator=generator.manual_seed(0))

    want = starts()
    fits = recovery.levenberg_marquardt(net, want, x, y).loss
    trained = train(net, want, x, y, steps=5).theta
    with SURROUNDINGS[around]():
        assert torch.equal(starts(), want)
        assert torch.equal(recovery.levenberg_marquardt(net, want, x, y).loss, fits)
        assert torch.equal(train(net, want, x, y, steps=5).theta, trained)


def switches() -> list[str]:
    return [
        b.fp32_precision
        for b in (
            *(torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn),
            *(torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn),
        )
    ]


def test_overlapping_calls_put_the_process_back():
    """The first call to enter leaves first: the last call restores the state that the first one found."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        before, filters = switches(), list(warnings.filters)
        inside, may_leave = threading.Barrier(2), [threading.Event(), threading.Event()]
        found: list[list[str]] = []

        def call(number: int) -> None:
            with closed():
                inside.wait()
                may_leave[number].wait()
                found.append(switches())

        with warnings_as_errors():
            threads = [threading.Thread(target=call, args=(i,)) for i in range(2)]
            for thread in threads:
                thread.start()
            for event, thread in zip(may_leave, threads, strict=True):
                event.set()
                thread.join()
            assert all(f[0] == "error" for f in warnings.filters[:1])
        assert found == [["ieee"] * 6] * 2
        assert switches() == before
        assert list(warnings.filters) == filters
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_a_setting_that_somebody_made_meanwhile_stays():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        with full_precision():
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def vmap_warns() -> bool:
    bag, x = nn.EmbeddingBag(5, 3), torch.zeros(4, 2, dtype=torch.int64)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.func.vmap(lambda tokens: bag(tokens[None]))(x)
    return any("performance drop" in str(w.message) for w in heard)


def test_vmap_does_not_warn_of_slow_operations_for_llr():
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.out = nn.EmbeddingBag(9, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.bag(x)))

    class Peaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.scale * x).cummax(1).values.square().sum(1, keepdim=True)

    model, x = Bags(), torch.randint(9, (40, 3), generator=torch.Generator().manual_seed(0))
    assert vmap_warns()  # torch does warn
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        llr.rank(model, x)
        llr.rank(model, x, method="tsqr")
        llr.jacobian(model, x)
        llr.jacobian(model, x, backend="torch")
        llr.gram(model, x)
        hessian_spectrum(Peaks(), torch.rand(9, 4, dtype=F64), torch.zeros(9, 1))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: llr.rank(model, x).rank, range(8)))
    assert not [str(w.message) for w in heard if "performance drop" in str(w.message)]
    assert vmap_warns()  # other callers still get the warning


def test_warnings_stay_errors_elsewhere():
    with warnings_as_errors():
        with closed():
            warnings.warn("heard, but no error", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="an error again"):
            warnings.warn("an error again", UserWarning, stacklevel=1)


# --- precision ---------------------------------------------------------------------------------------


def softmax(**dtype: torch.dtype) -> Callable[[Model, Tensor], Tensor]:
    return lambda m, x: m.b(torch.softmax(m.a(x), -1, **dtype).to(x.dtype))


def rms(m: Model, x: Tensor) -> Tensor:
    h = m.a(x)
    wide = h.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return m.b(wide.to(h.dtype))


# Two variants of a forward: plain, and with lower precision inside.
SPELLINGS: dict[
    str, tuple[Callable[[Model, Tensor], Tensor], Callable[[Model, Tensor], Tensor]]
] = {
    "softmax": (softmax(), softmax(dtype=F32)),
    "positional": (softmax(), lambda m, x: m.b(m.a(x).softmax(-1, F32).to(x.dtype))),
    "bfloat16": (lambda m, x: m.b(m.a(x).tanh()), lambda m, x: m.b(m.a(x).bfloat16().tanh().to(x))),
    "type": (
        lambda m, x: m.b(m.a(x).tanh()),
        lambda m, x: m.b(m.a(x).type(torch.half).tanh().to(x)),
    ),
    "output": (lambda m, x: m.b(m.a(x).tanh()), lambda m, x: m.b(m.a(x).tanh()).float()),
    "a buffer of its own": (
        lambda m, x: m.b(m.a(x).sin()).cumsum(1),
        lambda m, x: torch.zeros(len(x), 2, dtype=F32).copy_(m.b(m.a(x).sin())).cumsum(1),
    ),
    "complex": (
        lambda m, x: m.b(torch.polar(torch.ones_like(m.a(x)), m.a(x)).real),
        lambda m, x: m.b((torch.polar(torch.ones_like(m.a(x)), m.a(x)).to(torch.complex64)).real),
    ),
}


def two(forwards: tuple[Callable[[Model, Tensor], Tensor], ...]) -> list[nn.Module]:
    parts = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 2)}
    return [Model(forward, **parts) for forward in forwards]


@pytest.mark.parametrize("case", list(SPELLINGS))
@pytest.mark.parametrize("method", ["svd", "gram"])
def test_lower_precision_inside_does_not_count_as_rank(case, method):
    plain, spelled = two(SPELLINGS[case])
    x = torch.randn(40, 6)
    want, found = llr.rank(plain, x, method=method), llr.rank(spelled, x, method=method)
    assert found.rank == want.rank
    assert_matches(found.spectrum, want.spectrum, tolerance=1e-12)


def test_root_mean_squares_in_float32():
    spelled = two((rms,))[0]
    plain = Model(
        lambda m, x: m.b(nn.functional.rms_norm(m.a(x), (8,), eps=1e-6)), a=spelled.a, b=spelled.b
    )
    x = torch.randn(40, 6)
    assert_matches(llr.rank(spelled, x).spectrum, llr.rank(plain, x).spectrum, tolerance=1e-12)


def test_constants_that_are_plain_attributes():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.scale = nn.Linear(6, 2), torch.rand(6)
            self.more = [{"shift": torch.rand(6)}]

        def forward(self, x):
            x = x.mul(self.scale) @ torch.diag(self.more[0]["shift"])
            return self.a(torch.outer(self.scale, self.scale).matmul(x.mT).mT).cumsum(1)

    net, x = Scaled(), torch.randn(40, 6)
    assert llr.rank(net, x).dtype == F64
    assert net.scale.dtype == net.more[0]["shift"].dtype == F32


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_cannot_be_raised_is_refused_with_module_and_line():
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.bfloat16).tanh().to(torch.float64)

    net = nn.Sequential(nn.Linear(6, 4), torch.jit.script(Half()), nn.Linear(4, 2))
    x = torch.randn(9, 6)
    with pytest.raises(
        ValueError, match=r"computes in lower precision.*returns torch\.bfloat16 \(.*'1'"
    ):
        llr.rank(net, x)
    with pytest.raises(ValueError, match="computes in lower precision"):
        llr.gram(net, x)


def test_autocast_inside_of_a_forward():
    def forward(m: Model, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = m.a(x)
        return m.b(h.to(x.dtype).tanh()).cumsum(1)

    plain, mixed = two((lambda m, x: m.b(m.a(x).tanh()).cumsum(1), forward))
    x = torch.randn(40, 6)
    assert_matches(llr.rank(mixed, x).spectrum, llr.rank(plain, x).spectrum, tolerance=1e-12)
    line = r"computes in lower precision: .* returns torch\.bfloat16 .*test_surroundings\.py:\d+\)"
    with pytest.raises(ValueError, match=line):
        llr.rank(mixed, x, dtype=None)


@pytest.mark.parametrize("raised", [False, True])
def test_numbers_without_a_dtype(raised):
    makers = [
        lambda: torch.linspace(0, 1, 4),
        lambda: torch.arange(4) / 3,
        lambda: torch.full((2,), 0.1),
        lambda: torch.tensor([0.1, 0.2]),
        lambda: torch.arange(0, 1, 0.3),
        lambda: torch.sqrt(torch.arange(3)),
        lambda: torch.zeros(2),
        lambda: torch.empty(2, dtype=None),
        lambda: torch.arange(3).float() if raised else torch.ones(3),
    ]
    with Precision(F64, raised=raised):
        assert {make().dtype for make in makers} == {F64}
        assert torch.arange(4).dtype == torch.full((2,), 1).dtype == torch.int64
        assert torch.tensor([1, 2]).dtype == torch.int64
        assert float(torch.tensor(0.1)) == 0.1
    with Precision(F32, raised=raised), default_dtype(F64):
        assert {make().dtype for make in makers} == {F32}
