"""The operator for least squares. Needs torch, numpy and pytest only.

Its results are compared with a slow solver for one problem at a time: derivatives by torch.func, each step by
a QR of the Jacobian with the damping below it, so without the two normal matrices of the operator.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.oracles import ACTIVATIONS, run_python
from torch import Tensor
from torch.func import jacrev

from llr.operators import _ops

from .lm_cases import MODELS, Data, Model, Options, Result, draw, mlp, native, normal, same

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64 = torch.float64
CASES = int(os.environ.get("LLR_RANDOM_CASES", "25"))
CONVERGED, STALLED, LIMIT, FAILED, SKIPPED = range(5)
Function = Callable[[Tensor, Tensor], Tensor]


def by_hand(
    f: Function,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    options: Options,
    jacobian: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, float, int, int]:
    """Solve one problem, from one start, with the slow solver."""
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
    """Assert that the operator and the slow solver give the same results."""
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
    for iterations in (0, 1, 2, 6):  # with more iterations, roundings grow
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
        mlp(n, 20, q, n=n, biases=False),  # J J' is smaller, and computed from factors
        mlp(1, n, 3, q, n=40),
        Model("conv1d", (n + 1, 2, q), n),
        Model("local1d", (n + 1, n, q), 3 * n + 1),
        Model("factorization", (n, q, 3), 7, "identity"),
    ):
        compare(model, draw(model, starts=2, sets=2), iterations=3, damping=0.1)


def random_model(choose: random.Random) -> Model:
    """A model of any kind, with sizes below and above those of tiles and vectors."""

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
    """Sums over thousands of samples or parameters, which are computed in pieces that fit the cache."""
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
    # Enough rejected steps that even a small lambda becomes large: starts that stall then are at a minimum.
    found = native(model, close, iterations=10_000, stall=100)
    ended = (found.status == STALLED) | (found.status == CONVERGED)
    ended &= found.theta.abs().amax(1) < 1e3  # for some starts, the infimum is at infinity
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
    # A tolerance that every start satisfies; zero targets, for which it is relative to 1 per number.
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
    """With factors that would make lambda 0 or infinite in a few steps."""
    model = MODELS["linear"]
    found = native(model, draw(model), down=1e-60, up=1e90, iterations=40)
    assert (found.status == STALLED).all()
    assert found.theta.isfinite().all()
    assert torch.allclose(found.theta, native(model, draw(model)).theta, rtol=0, atol=2.0**-26)


# --- The same bits -------------------------------------------------------------------------------


SAME_BITS = ["tanh", "sin", "deep", "wide", "conv1d, two channels", "factorization"]


def digest() -> str:
    """A digest of results on every path, with more starts than a thread has lanes."""
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
        for _ in range(2):  # the distribution over threads is random
            assert digest() == expected, f"{count} threads"
    code = "from operators.test_lm import digest; print(digest())"
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
    # Data sets in another order, and a separate one for each start.
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
    hopeless[3] += normal(9, 1, seed=8)  # noise, which no model fits
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


def test_large_numbers_end_in_a_status():
    """Overflow in intermediate results is not an error and causes no endless loop."""
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
