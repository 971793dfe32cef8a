"""The operator for least squares. Needs torch, numpy and pytest only.

What it computes is compared with one problem at a time by hand: derivatives by torch.func, each step by a
QR of the Jacobian with the damping below it, which is neither of the two normal matrices of the operator.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from oracles import ACTIVATIONS, run_python, run_tests_at
from torch import Tensor
from torch.func import jacrev
from torch.library import opcheck

from llr import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64 = torch.float64
CASES = int(os.environ.get("LLR_RANDOM_CASES", "25"))
CONVERGED, STALLED, LIMIT, FAILED, SKIPPED = range(5)
Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Model:
    """What the operator is told of a model, and how many samples it is given here."""

    kind: str
    sizes: tuple[int, ...]
    n: int
    activation: str = "tanh"
    biases: tuple[bool, ...] = ()

    @property
    def outputs(self) -> int:
        return self.sizes[-1] if self.kind == "mlp" else 1

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the parameters, in the operator's order."""
        if self.kind == "mlp":
            pairs = zip(itertools.pairwise(self.sizes), self.biases, strict=True)
            return [s for (i, o), b in pairs for s in ([(o, i), (o,)] if b else [(o, i)])]
        if self.kind == "factorization":
            rows, rank, columns = self.sizes
            return [(rows, rank), (rank, columns)]
        d, kernel, channels = self.sizes
        own = () if self.kind == "conv1d" else (d + 1 - kernel,)
        return [(channels, *own, kernel), (channels, d + 1 - kernel)]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def samples(self, sets: int, seed: int) -> Tensor:
        if self.kind == "factorization":
            pairs = [
                torch.randint(m, (sets, self.n), generator=torch.Generator().manual_seed(seed + k))
                for k, m in enumerate((self.sizes[0], self.sizes[2]))
            ]
            return torch.stack(pairs, -1).double()
        return normal(sets, self.n, self.sizes[0], seed=seed)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """The outputs (n, q) at parameters (P), by torch's own functions."""
        sigma = ACTIVATIONS[self.activation]
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = [t.view(s) for t, s in zip(theta.split(sizes), self.shapes, strict=True)]
        if self.kind == "factorization":
            i, j = x.long().unbind(-1)
            return (parts[0][i] * parts[1].T[j]).sum(-1, keepdim=True)
        if self.kind != "mlp":
            weight, out = parts
            patches = x.unfold(1, weight.shape[-1], 1)  # (n, positions, kernel)
            kernels = weight[:, None] if weight.dim() == 2 else weight
            return (sigma((patches[:, None] * kernels).sum(-1)) * out).sum((1, 2))[:, None]
        rest = iter(parts)
        for layer, bias in enumerate(self.biases):
            x = (sigma(x) if layer else x) @ next(rest).T
            x = x + next(rest) if bias else x
        return x


def mlp(*sizes: int, n: int, activation: str = "tanh", biases: Any = True) -> Model:
    has = (biases,) * (len(sizes) - 1) if isinstance(biases, bool) else tuple(biases)
    return Model("mlp", sizes, n, activation, has)


MODELS: dict[str, Model] = {
    **{a: mlp(3, 3, 1, n=20, activation=a) for a in ACTIVATIONS},
    **{f"{a}, few samples": mlp(3, 4, 2, n=4, activation=a) for a in ACTIVATIONS},
    "no bias": mlp(3, 3, 1, n=20, biases=False),
    "no output bias": mlp(3, 3, 1, n=20, biases=(True, False)),
    "output bias alone": mlp(3, 3, 2, n=20, biases=(False, True)),
    "no bias, few samples": mlp(3, 5, 1, n=6, biases=False),
    "no output bias, few samples": mlp(3, 5, 2, n=5, biases=(True, False)),
    "linear": mlp(3, 2, n=9),
    "linear, few samples": mlp(9, 2, n=4, biases=False),
    "one number": mlp(1, 1, n=1, biases=False),
    "one neuron": mlp(1, 1, 1, n=5),
    "deep": mlp(3, 4, 5, 2, n=30),
    "deep, few samples": mlp(3, 4, 5, 2, n=7, biases=(True, False, True)),
    "deeper": mlp(2, 3, 2, 4, 1, n=40, activation="silu"),
    "deeper, few samples": mlp(2, 7, 5, 9, 3, n=5, activation="sin"),
    "wide": mlp(5, 50, 1, n=30),
    **{
        f"{kind}{more}": Model(kind, sizes, n, activation)
        for kind in ("conv1d", "local1d")
        for more, sizes, n, activation in (
            ("", (5, 3, 1), 20, "tanh"),
            (", two channels", (6, 2, 2), 40, "sin"),
            (", few samples", (7, 3, 3), 6, "gelu"),
            (", whole kernel", (4, 4, 2), 12, "sigmoid"),
            (", kernel of one", (3, 1, 2), 5, "erf"),
        )
    },
    "factorization": Model("factorization", (3, 2, 4), 20, "identity"),
    "factorization, few entries": Model("factorization", (5, 3, 4), 9, "identity"),
    "factorization, rank one": Model("factorization", (4, 1, 3), 8, "identity"),
    "factorization, one entry": Model("factorization", (1, 1, 1), 1, "identity"),
}


class Options(NamedTuple):
    """The operator's, by default as in the schema."""

    damping: float = 1.0
    down: float = 0.2
    up: float = 3.0
    progress: float = 0.0
    stall: int = 20
    iterations: int = 160
    tol: float = 1e-20
    first: bool = False


class Result(NamedTuple):
    theta: Tensor
    loss: Tensor
    iterations: Tensor
    status: Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Data(NamedTuple):
    """Starts and data sets; the targets are those of other parameters, and noise."""

    theta: Tensor
    x: Tensor
    y: Tensor
    which: Tensor


def draw(
    model: Model, starts: int = 11, sets: int = 3, scale: float = 0.7, noise: float = 0.3
) -> Data:
    x = model.samples(sets, seed=1)
    teachers = normal(sets, model.parameters, seed=4)
    exact = torch.stack([model(t, each) for t, each in zip(teachers, x, strict=True)])
    y = exact + noise * normal(*exact.shape, seed=5)
    which = torch.arange(starts) * 7 % sets
    return Data(scale * normal(starts, model.parameters, seed=6), x, y, which)


def native(model: Model, data: Data, **options: Any) -> Result:
    chosen = Options(**options)._asdict()
    description = (model.kind, list(model.sizes), model.activation, list(model.biases))
    return Result(*torch.ops.llr.lm_solve(*data, *description, **chosen))


def by_hand(
    f: Function,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    options: Options,
    jacobian: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, float, int, int]:
    """One problem from its start to its end."""
    J_of = jacobian or jacrev(f)
    squares = float(y.square().sum())
    goal = options.tol * (squares if squares > 0 else y.numel())
    r = f(theta, x) - y
    loss, damping = float(r.square().sum()), options.damping
    iterations = stalled = 0
    vanished = False
    while True:
        if loss <= goal:
            return theta, loss / y.numel(), iterations, CONVERGED
        if not math.isfinite(loss):
            return theta, loss / y.numel(), iterations, FAILED
        if stalled >= options.stall or vanished:
            return theta, loss / y.numel(), iterations, STALLED
        if iterations >= options.iterations:
            return theta, loss / y.numel(), iterations, LIMIT
        J = J_of(theta, x).flatten(0, 1)
        below = math.sqrt(damping) * torch.eye(J.shape[1], dtype=F64)
        Q, R = torch.linalg.qr(torch.cat([J, below]))
        right = torch.cat([r.flatten(), torch.zeros(J.shape[1], dtype=F64)])
        step = torch.linalg.solve_triangular(R, (Q.T @ right)[:, None], upper=True)[:, 0]
        trial = theta - step
        vanished = bool(step.abs().max() <= 2.0**-52 * theta.abs().max())
        tried = f(trial, x) - y
        new = float(tried.square().sum())
        progress = new < loss and new <= loss * (1 - options.progress)
        stalled = 0 if progress else stalled + 1
        iterations += 1
        if new < loss:
            theta, r, loss, damping = trial, tried, new, damping * options.down
        else:
            damping *= options.up


def compare(
    model: Model,
    data: Data,
    jacobian: Callable[[Tensor, Tensor], Tensor] | None = None,
    allowed: float = 1e-9,
    **options: Any,
) -> Result:
    """Fail unless the operator ends where the steps by hand do."""
    found = native(model, data, **options)
    for s, (start, which) in enumerate(zip(data.theta, data.which.tolist(), strict=True)):
        expected = by_hand(model, start, data.x[which], data.y[which], Options(**options), jacobian)
        theta, loss, iterations, status = expected
        assert int(found.status[s]) == status, s
        assert int(found.iterations[s]) == iterations, s
        assert float((found.theta[s] - theta).abs().max()) <= allowed * float(theta.abs().max()), s
        scale = float(data.y[which].square().mean().sqrt())
        assert abs(float(found.loss[s]) ** 0.5 - loss**0.5) <= allowed * scale, s
    return found


@pytest.mark.parametrize("name", MODELS)
def test_step_for_step(name):
    model = MODELS[name]
    data = draw(model)
    for iterations in (0, 1, 2, 6):  # beyond that roundings grow
        # Where a linear model has arrived, rounding decides which steps are taken.
        allowed = 1e-9 if len(model.sizes) > 2 else 1e-7
        found = compare(model, data, allowed=allowed, iterations=iterations)
        assert int(found.iterations.max()) == iterations
    assert (found.loss < native(model, data, iterations=0).loss).any(), "nothing was improved"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13])
@pytest.mark.parametrize("q", [1, 2, 3])
def test_every_size_of_a_tile(n, q):
    for model in (
        mlp(2, n, q, n=n),
        mlp(n, 20, q, n=n, biases=False),  # J J' is the smaller one, and made of factors
        mlp(1, n, 3, q, n=40),
        Model("conv1d", (n + 1, 2, q), n),
        Model("local1d", (n + 1, n, q), 3 * n + 1),
        Model("factorization", (n, q, 3), 7, "identity"),
    ):
        compare(model, draw(model, starts=2, sets=2), iterations=3, damping=0.1)


def random_model(choose: random.Random) -> Model:
    """Of any kind, at sizes on both sides of every tile and vector."""

    def size(most: int) -> int:
        return choose.randint(1, most)

    kind, n = choose.choice(["mlp", "mlp", "conv1d", "local1d", "factorization"]), size(30)
    activation = choose.choice(list(ACTIVATIONS))
    if kind == "mlp":
        widths = [size(5), *(size(10) for _ in range(choose.randint(0, 3))), size(3)]
        return mlp(*widths, n=n, activation=activation, biases=[size(2) < 2 for _ in widths[1:]])
    if kind == "factorization":
        return Model(kind, (size(6), size(4), size(6)), n, "identity")
    kernel = size(4)
    return Model(kind, (kernel + size(6) - 1, kernel, size(4)), n, activation)


@pytest.mark.parametrize("seed", range(CASES))
def test_random_models(seed):
    choose = random.Random(seed)
    model = random_model(choose)
    data = draw(model, starts=2, sets=2, scale=choose.uniform(0.1, 1.5))
    options = {
        "damping": 10 ** choose.uniform(-1, 2),
        "down": choose.uniform(0.1, 1.0),
        "up": choose.uniform(1.5, 10.0),
        "progress": choose.choice([0.0, 0.01, 0.3]),
        "stall": choose.randint(1, 4),
    }
    # Where a linear model has arrived, rounding decides which steps are taken.
    iterations = 4 if len(model.sizes) > 2 else 1
    compare(model, data, allowed=1e-7, iterations=iterations, **options)


def test_the_smaller_normal_matrix_is_large():
    """Sums in pieces that the cache holds: thousands of samples, or of parameters."""
    for model in (mlp(3, 5, 1, n=3000), mlp(40, 20, 1, n=9), Model("conv1d", (40, 3, 20), 7)):
        compare(model, draw(model, starts=1, sets=1), iterations=2)


def wrong(model: Model, column: int, factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A Jacobian with a mistake in one of its columns."""

    def jacobian(theta: Tensor, x: Tensor) -> Tensor:
        J = jacrev(model)(theta, x).clone()
        J[..., column] *= factor
        return J

    return jacobian


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1 + 1e-6])
@pytest.mark.parametrize(
    "name", ["tanh", "wide", "conv1d", "local1d, few samples", "factorization"]
)
def test_a_planted_mistake_is_noticed(name, factor):
    model = MODELS[name]
    data = draw(model, starts=2)
    for column in range(0, model.parameters, max(1, model.parameters // 5)):
        with pytest.raises(AssertionError):
            compare(model, data, wrong(model, column, factor), iterations=6)


def test_linear_least_squares_in_the_end():
    model = mlp(4, 2, n=30)
    data = draw(model, starts=5, sets=5)
    found = native(model, data, damping=1e-3, iterations=100)
    assert (found.status == STALLED).all()
    for s, which in enumerate(data.which):
        A = np.hstack([data.x[which].numpy(), np.ones((30, 1))])
        exact, squares, *_ = np.linalg.lstsq(A, data.y[which].numpy(), rcond=None)
        W, b = found.theta[s, :8].view(2, 4), found.theta[s, 8:]
        # A sum of squares is flat around its least value, as far as the root of eps.
        assert np.abs(np.hstack([W.numpy(), b.numpy()[:, None]]).T - exact).max() <= 2.0**-26
        assert float(found.loss[s]) == pytest.approx(squares.sum() / 60, rel=1e-13)


# Not at a kink, and not in the valleys of a deep net that nearly interpolates.
@pytest.mark.parametrize("name", [n for n in MODELS if "relu" not in n and n != "deep"])
def test_no_gradient_is_left_where_nothing_improves(name):
    model = MODELS[name]
    data = draw(model, noise=0.05)
    teachers = normal(3, model.parameters, seed=4)[data.which]
    close = data._replace(theta=teachers + 0.05 * data.theta)
    # So many rejected steps that lambda, however small, becomes large: what stalls then is at rest.
    found = native(model, close, iterations=10_000, stall=100)
    ended = (found.status == STALLED) | (found.status == CONVERGED)
    ended &= found.theta.abs().amax(1) < 1e3  # some have their infimum at infinity
    assert ended.any()
    for s in ended.nonzero()[:, 0].tolist():
        x, y = data.x[data.which[s]], data.y[data.which[s]]
        r, J = model(found.theta[s], x) - y, jacrev(model)(found.theta[s], x)
        error = float(found.loss[s]) ** 0.5 - float(r.square().mean()) ** 0.5
        assert abs(error) <= 1e-11 * float(y.square().mean()) ** 0.5
        if found.status[s] == CONVERGED:
            assert float(r.square().sum()) <= 1.01e-20 * float(y.square().sum())
        else:
            gradient = (J.flatten(0, 1).T @ r.flatten()).norm()
            assert float(gradient) <= 1e-6 * float(J.norm() * r.norm()), s


def test_how_starts_end():
    model = mlp(2, 3, 1, n=12)
    teacher = normal(1, model.parameters, seed=4)
    x = model.samples(1, seed=1)
    y = model(teacher[0], x[0])[None]
    far = torch.full_like(teacher, 1e200)  # whose loss overflows
    starts = torch.cat([teacher, teacher + 1e-3, far, normal(3, model.parameters, seed=9)])
    data = Data(starts, x, y, torch.zeros(6, dtype=torch.int64))
    found = native(model, data, iterations=30)
    assert found.status[:3].tolist() == [CONVERGED, CONVERGED, FAILED]
    assert torch.equal(found.theta[[0, 2]], starts[[0, 2]])
    assert found.iterations[[0, 2]].tolist() == [0, 0]
    assert 0 < found.iterations[1] < 30
    assert found.loss[2] == math.inf
    assert (found.loss[:2] <= 1e-20 * y.square().mean()).all()
    assert native(model, data, iterations=2, tol=0.0).status[3:].tolist() == [LIMIT] * 3
    assert (native(model, data, iterations=999, tol=0.0).status[:2] == STALLED).all()  # vanishing
    # A tolerance that any start meets; zero targets, for which it is one per number.
    assert (native(model, data, tol=1e6).status[[0, 1, 3]] == CONVERGED).all()
    zero = data._replace(y=torch.zeros_like(y))
    at = native(model, zero, iterations=0)
    assert (at.status[[0, 1]] == LIMIT).all()
    assert native(model, zero, iterations=0, tol=1.01 * float(at.loss[0])).status[0] == CONVERGED
    assert native(model, zero, iterations=0, tol=0.99 * float(at.loss[0])).status[0] == LIMIT


def test_progress_counts_from_a_fraction_on():
    model = MODELS["tanh"]
    data = draw(model, starts=5)
    for progress in (0.0, 0.01, 0.3, 0.9):
        found = compare(model, data, progress=progress, stall=2, iterations=8)
        assert progress < 0.9 or (found.status == STALLED).all()


def test_damping_stays_within_its_bounds():
    """Factors that would take lambda to 0 or to infinity in a few steps."""
    model = MODELS["linear"]
    found = native(model, draw(model), down=1e-60, up=1e90, iterations=40)
    assert (found.status == STALLED).all()
    assert found.theta.isfinite().all()
    assert torch.allclose(found.theta, native(model, draw(model)).theta, rtol=0, atol=2.0**-26)


# --- The same bits -------------------------------------------------------------------------------


def same(a: Result, b: Result, rows: Tensor | slice = slice(None)) -> bool:
    return all(torch.equal(s, t[rows]) for s, t in zip(a, b, strict=True))


SAME_BITS = ["tanh", "sin", "deep", "wide", "conv1d, two channels", "factorization"]


def digest() -> str:
    """Of results on every path, with more starts than a thread has lanes."""
    bits = hashlib.sha256()
    for name, first in itertools.product(SAME_BITS, (False, True)):
        model = MODELS[name]
        data = draw(model, starts=120, noise=0.0, scale=1.0)
        for part in native(model, data, iterations=25, first=first, tol=1e-4):
            bits.update(part.numpy().tobytes())
    return bits.hexdigest()


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_threads():
    torch.set_num_threads(1)
    expected = digest()
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        for _ in range(2):  # who works on what is a matter of chance
            assert digest() == expected, f"{count} threads"
    code = "import test_ops_lm; print(test_ops_lm.digest())"
    run = run_python(code, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    assert run.stdout.strip() == expected, run.stderr


@pytest.mark.parametrize("name", SAME_BITS)
def test_bits_do_not_depend_on_company(name):
    model = MODELS[name]
    data = draw(model, starts=41, scale=1.0)
    expected = native(model, data, iterations=60)

    def chosen(rows: Tensor) -> Data:
        return data._replace(theta=data.theta[rows], which=data.which[rows])

    for rows in (
        *torch.arange(41)[:, None],  # alone
        torch.arange(41).flip(0),
        torch.randperm(41),
        torch.arange(3, 20),
        torch.zeros(19, dtype=torch.int64),
    ):
        assert same(native(model, chosen(rows), iterations=60), expected, rows), rows
    # Data sets elsewhere, and each start with its own.
    moved = data._replace(x=data.x.flip(0), y=data.y.flip(0), which=2 - data.which)
    assert same(native(model, moved, iterations=60), expected)
    own = Data(data.theta, data.x[data.which], data.y[data.which], torch.arange(41))
    assert same(native(model, own, iterations=60), expected)


NEIGHBOURS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "overflowing": lambda theta: theta.sign() * 1e300,
    "large angles": lambda theta: theta * 1e9,
    "tiny": lambda theta: theta * 1e-310,
    "saturated": lambda theta: theta * 1e3,
}


@pytest.mark.parametrize("name", SAME_BITS)
@pytest.mark.parametrize("others", NEIGHBOURS.values(), ids=list(NEIGHBOURS))
def test_bits_do_not_depend_on_neighbours(name, others):
    model = MODELS[name]
    data = draw(model, starts=23, scale=1.0)
    expected = native(model, data, iterations=40)
    for kept in ([0], [7, 8], [22], [3, 15, 16]):
        theta = others(data.theta)
        theta[kept] = data.theta[kept]
        found = native(model, data._replace(theta=theta), iterations=40)
        assert same(Result(*(t[kept] for t in found)), expected, torch.tensor(kept)), kept


# --- first ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads_used", [1, 2, 5])
def test_first_skips_what_comes_behind(threads_used):
    torch.set_num_threads(threads_used)
    model = mlp(2, 2, 1, n=9, biases=False)
    data = draw(model, starts=200, sets=5, noise=0.0)
    hopeless = data.y.clone()
    hopeless[3] += normal(9, 1, seed=8)  # nothing fits
    data = data._replace(y=hopeless)
    everything = native(model, data)
    found = native(model, data, first=True)
    skipped = found.status == SKIPPED
    for which in range(5):
        mine = (data.which == which).nonzero()[:, 0]
        won = mine[everything.status[mine] == CONVERGED]
        assert (which == 3) == (len(won) == 0)
        last = int(won[0]) if len(won) else 200
        assert torch.equal(skipped[mine], mine > last)
    assert same(Result(*(t[~skipped] for t in found)), everything, ~skipped)
    assert torch.equal(found.theta[skipped], data.theta[skipped])
    assert (found.loss[skipped] == math.inf).all()
    assert (found.iterations[skipped] == 0).all()


def test_first_with_one_start_and_none():
    model = MODELS["tanh"]
    data = draw(model, starts=1, sets=1)
    assert same(native(model, data, first=True), native(model, data))
    assert len(native(model, draw(model, starts=0), first=True).status) == 0


# --- What it is called with ------------------------------------------------------------------------


def test_no_starts():
    for model in (MODELS["deep"], MODELS["factorization"]):
        found = native(model, draw(model, starts=0))
        assert found.theta.shape == (0, model.parameters)
        assert [len(t) for t in found] == [0] * 4
        none = draw(model, starts=0)
        found = native(model, none._replace(x=none.x[:0], y=none.y[:0]))
        assert len(found.status) == 0


def misaligned(t: Tensor) -> Tensor:
    memory = bytearray(b"-" + t.numpy().tobytes())
    return torch.frombuffer(memory, dtype=t.dtype, offset=1).view(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "last dimension first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "strided": lambda t: t.repeat_interleave(3, -1)[..., ::3],
    "between two numbers": misaligned,
    "part of something": lambda t: torch.cat([t + 1, t, t - 1])[len(t) : -len(t)],
    "lazily negated": lambda t: torch.complex(t * 0, -t).conj().imag if t.dtype == F64 else t,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts(layout):
    model = MODELS["no bias"]
    data = draw(model)
    expected = native(model, data, iterations=20)
    views = Data(*(layout(t) for t in data))
    assert all(torch.equal(v, t) for v, t in zip(views, data, strict=True))
    assert same(native(model, views, iterations=20), expected)
    assert all(torch.equal(v, t) for v, t in zip(views, data, strict=True)), "only read"
    one = data._replace(x=data.x[:1].expand(3, -1, -1), y=data.y[:1].expand(3, -1, -1))
    copies = Data(*(t.contiguous() for t in one))
    assert same(native(model, one, iterations=20), native(model, copies, iterations=20))


def test_results_are_new_tensors():
    model = MODELS["tanh"]
    data = draw(model)
    found = native(model, data, iterations=0)
    pointers = {t.untyped_storage().data_ptr() for t in (*found, *data)}
    assert len(pointers) == 8
    assert torch.equal(found.theta, data.theta)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["tanh", "deep", "conv1d", "local1d", "factorization"])
def test_opcheck(name):
    model = MODELS[name]
    description = (model.kind, list(model.sizes), model.activation, list(model.biases))
    op = torch.ops.llr.lm_solve.default
    data = draw(model)
    opcheck(op, (*data, *description), {"iterations": 3})
    opcheck(op, (*draw(model, starts=0), *description), {"first": True})
    views = Data(*(LAYOUTS["last dimension first"](t) for t in data))
    opcheck(op, (*views, *description), {"iterations": 2, "damping": 0.5})


def test_shapes_without_numbers():
    model = MODELS["deep"]
    data = draw(model)
    expected = native(model, data, iterations=0)
    found = native(model, Data(*(t.to("meta") for t in data)))
    for fake, real in zip(found, expected, strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
        assert fake.is_meta
    with pytest.raises(RuntimeError, match="x is on cpu; expected meta as theta"):
        native(model, data._replace(theta=data.theta.to("meta")))


GOOD = mlp(3, 4, 1, n=5)


def changed(model: Model = GOOD, **changes: Any) -> Callable[[], Result]:
    """A call with some arguments replaced, by values or by functions of what was there."""

    def call() -> Result:
        data, options, other = draw(GOOD)._asdict(), {}, model
        for name, value in changes.items():
            if name in data:
                data[name] = value(data[name])
            elif name in Options._fields:
                options[name] = value
            else:
                other = replace(other, **{name: value})
        return native(other, Data(**data), **options)

    return call


def spoiled(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(t: Tensor) -> Tensor:
        t = t.clone()
        t.view(-1)[-1] = value
        return t

    return spoil


def far(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.flatten()[:1].expand(shape)


FACTORS = Model("factorization", (3, 2, 4), 5, "identity")


def observed(row: float, column: float) -> Callable[[], Result]:
    def call() -> Result:
        data = draw(FACTORS)
        x = data.x.clone()
        x[-1, -1] = torch.tensor([row, column], dtype=F64)
        return native(FACTORS, data._replace(x=x))

    return call


BAD: dict[str, tuple[Callable[[], Result], str]] = {
    "kind": (
        changed(kind="cnn", biases=()),
        r"unknown kind 'cnn'; expected one of mlp, conv1d, local1d",
    ),
    "activation": (changed(activation="step"), "unknown activation 'step'; expected one of"),
    "one width": (changed(sizes=(3,), biases=()), "sizes has 1 entries; expected the widths"),
    "no width": (changed(sizes=(), biases=()), "sizes has 0 entries; expected the widths"),
    "zero width": (changed(sizes=(3, 0, 1)), r"sizes are \[3, 0, 1\]; expected positive ones"),
    "negative width": (changed(sizes=(3, -4, 1)), r"sizes are \[3, -4, 1\]"),
    "huge width": (changed(sizes=(3, 2**62, 1)), r"more than 2\^40 parameters"),
    "many wide layers": (
        changed(sizes=(1, *[2**39, 1] * 3), biases=(False,) * 6),
        r"more than 2\^40 parameters",
    ),
    "biases": (changed(biases=(True,)), "biases has 1 entries; expected 2, one per layer"),
    "biases of a convolution": (
        changed(kind="conv1d", sizes=(3, 2, 1)),
        "biases has 2 entries; expected none for conv1d",
    ),
    "sizes of a convolution": (
        changed(kind="conv1d", sizes=(3, 2), biases=()),
        r"sizes has 2 entries; expected \(d, kernel size, channels\)",
    ),
    "kernel": (
        changed(kind="local1d", sizes=(3, 4, 1), biases=()),
        r"sizes are \[3, 4, 1\]; expected a kernel no longer than d",
    ),
    "channels": (changed(kind="conv1d", sizes=(2, 1, 2**62), biases=()), r"more than 2\^40"),
    "sizes of a factorization": (
        changed(FACTORS, sizes=(3, 2, 4, 1)),
        r"sizes has 4 entries; expected \(rows, rank, columns\)",
    ),
    "activation of a factorization": (
        changed(FACTORS, activation="tanh"),
        "activation is 'tanh'; expected identity, as a factorization has none",
    ),
    "row": (observed(3, 0), "x holds the row 3; expected an integer from 0 to 2"),
    "column": (observed(0, 4), "x holds the column 4; expected an integer from 0 to 3"),
    "negative column": (observed(0, -1), "x holds the column -1; expected an integer"),
    "half a row": (observed(0.5, 0), "x holds the row 0.5; expected an integer"),
    "huge row": (observed(1e300, 0), r"x holds the row 1e\+300; expected an integer"),
    "theta dtype": (changed(theta=Tensor.float), "theta is Float; expected Double"),
    "x dtype": (changed(x=Tensor.float), "x is Float; expected Double"),
    "y dtype": (changed(y=Tensor.cfloat), "y is ComplexFloat; expected Double"),
    "which dtype": (changed(which=Tensor.int), "which is Int; expected Long"),
    "theta shape": (changed(theta=lambda t: t[0]), r"theta has shape \[21\]; expected \(S, P\)"),
    "parameters": (
        changed(theta=lambda t: t[:, 1:]),
        r"theta has shape \[11, 20\]; expected \(S, 21\) for the parameters of this model",
    ),
    "x shape": (changed(x=lambda t: t[0]), r"x has shape \[5, 3\]; expected \(B, n, inputs\)"),
    "inputs": (
        changed(x=lambda t: t[..., :2]),
        r"x has shape \[3, 5, 2\]; expected \(B, n, 3\) with n >= 1",
    ),
    "no samples": (
        changed(x=lambda t: t[:, :0], y=lambda t: t[:, :0]),
        r"x has shape \[3, 0, 3\]; expected \(B, n, 3\) with n >= 1",
    ),
    "y shape": (
        changed(y=lambda t: t[..., 0]),
        r"y has shape \[3, 5\]; expected \(B, n, outputs\)",
    ),
    "outputs": (
        changed(y=lambda t: t.expand(3, 5, 2)),
        r"y has shape \[3, 5, 2\]; expected \(3, 5, 1\) to go with x of shape \[3, 5, 3\]",
    ),
    "samples of y": (
        changed(y=lambda t: t[:, :4]),
        r"y has shape \[3, 4, 1\]; expected \(3, 5, 1\)",
    ),
    "sets of y": (changed(y=lambda t: t[:2]), r"y has shape \[2, 5, 1\]; expected \(3, 5, 1\)"),
    "which shape": (changed(which=lambda t: t[None]), r"which has shape \[1, 11\]; expected \(S\)"),
    "number of which": (
        changed(which=lambda t: t[:9]),
        r"which has shape \[9\]; expected \(11\), a data set for each row of theta",
    ),
    "set": (
        changed(which=lambda t: t + 1),
        r"which\[1\] is 3; expected a data set from 0 to 2|is 3",
    ),
    "negative set": (changed(which=lambda t: t - 1), r"which\[0\] is -1; expected a data set"),
    "no sets": (
        changed(x=lambda t: t[:0], y=lambda t: t[:0]),
        r"which\[0\] is 0; expected a data set",
    ),
    "too many samples": (
        changed(x=far(1, 2**50, 3), y=far(1, 2**50, 1), which=lambda t: t * 0),
        "do not fit into any memory",
    ),
    "targets that are too large": (
        changed(y=lambda t: t * 1e160),
        "y of data set 0 has a sum of squares of inf; expected targets of a size that can be squared",
    ),
    "targets that are too small": (
        changed(y=lambda t: torch.cat([t[:2], t[2:] * 1e-170])),
        "y of data set 2 has a sum of squares of 0; expected targets of a size that can be squared",
    ),
    **{
        f"{value} in {name}": (
            changed(**{name: spoiled(value)}),
            f"{name} has a NaN or an infinity; expected finite numbers",
        )
        for name in ("theta", "x", "y")
        for value in (math.nan, math.inf, -math.inf)
    },
    **{
        f"{name} {value}": (changed(**{name: value}), message)
        for name, value, message in (
            ("damping", 0.0, "damping is 0; expected a positive number"),
            ("damping", math.nan, "damping is nan"),
            ("damping", math.inf, "damping is inf"),
            ("down", -0.5, "down is -0.5; expected a positive number"),
            ("down", 1.5, "down is 1.5 and up is 3; expected down <= 1 < up"),
            ("up", 1.0, "down is 0.2 and up is 1; expected down <= 1 < up"),
            ("up", math.inf, "up is inf; expected a positive number"),
            ("progress", 1.0, "progress is 1; expected 0 <= progress < 1"),
            ("progress", -0.1, "progress is -0.1"),
            ("progress", math.nan, "progress is nan"),
            ("stall", 0, "stall is 0; expected at least 1"),
            ("iterations", -1, "iterations is -1; expected at least 0"),
            ("tol", -1e-9, "tol is -1e-09; expected a number >= 0"),
            ("tol", math.nan, "tol is nan"),
        )
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, message = BAD[case]
    with pytest.raises(RuntimeError, match=f"lm_solve: .*{message}"):
        call()


def test_good_arguments_are_good():
    changed()()
    observed(2, 3)()
    native(replace(FACTORS), draw(FACTORS))


def test_large_numbers_end_in_a_status():
    """Overflow on the way is no error and no endless loop."""
    scales: Sequence[float] = (1e-300, 1e-150, 1e3, 1e80, 1e150, 1e160, 1e300)
    for name in ("tanh", "relu", "deep", "wide", "identity", "conv1d", "factorization"):
        model = MODELS[name]
        data = draw(model, starts=len(scales), scale=1.0)
        theta = data.theta * torch.tensor(scales, dtype=F64)[:, None]
        for y in (data.y, data.y * 1e150, data.y * 1e-150):
            found = native(model, data._replace(theta=theta, y=y), iterations=30)
            assert ((found.status >= CONVERGED) & (found.status <= FAILED)).all()
            assert not found.loss.isnan().any()
            assert torch.equal(found.loss.isinf(), found.status == FAILED)
            assert found.theta.isfinite().all()


@pytest.mark.slow
def test_every_instruction_level(simd_level):
    if simd_level == _ops.build_info()["simd_running"]:
        pytest.skip("the level of this very run")
    run = run_tests_at(simd_level, "test_ops_lm.py", "not threads")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
