"""Interrupted operators: by a handler that raises, by one that does not, and outside the main thread."""

from __future__ import annotations

import json

import pytest
from helpers.oracles import run_python

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

# Each call would take from ten seconds to days; the small call of the same operator takes milliseconds.
CALLS = """
import signal, threading, time
import torch
from llr.operators import _ops

f64 = dict(dtype=torch.float64)
torch.manual_seed(0)
op = torch.ops.llr


def one(*shape):
    return torch.linspace(1, 2, shape[-1], **f64).expand(*shape)


def net(n, width, depth=2):
    widths = [3] + [width] * depth + [1]
    weights = [torch.randn(o, i, **f64) / i**0.5 for i, o in zip(widths, widths[1:])]
    return torch.randn(n, 3, **f64), weights, [None] * len(weights), "tanh"


def last_weight(depth):
    return [-1] * 2 * depth + [0, -1]


def fits(starts, iterations, width=10, kind="mlp"):
    if kind == "mlp":
        sizes, parameters, inputs, activation, biases = [2, width, 1], 4 * width, 2, "tanh", [True, False]
    elif kind == "conv1d":
        sizes, parameters, inputs, activation, biases = [9, 4, width], 10 * width, 9, "tanh", []
    else:
        sizes, parameters, inputs, activation, biases = [9, 3, 9], 54, 2, "identity", []
    x = torch.randn(1, 60, inputs, **f64)
    if kind == "factorization":
        x = (x.abs() * 3).floor().clamp(0, 8)
    theta = torch.randn(starts, parameters, **f64)
    return lambda: op.lm_solve(
        theta, x, torch.randn(1, 60, 1, generator=torch.Generator().manual_seed(1), **f64),
        torch.zeros(starts, dtype=torch.long), kind, sizes, activation, biases,
        iterations=iterations, stall=iterations)[0]


def gram(rows, positions):
    K = torch.zeros(2, rows, rows, **f64)
    delta, a = torch.randn(rows, positions, 1, **f64), torch.randn(rows, positions, 2, **f64)

    def call():
        op.gram_add_(K.zero_(), delta, a, True, True)
        return K.clone()

    return call


def factor(rows, batch=()):
    eye = torch.eye(rows, **f64).expand(*batch, rows, rows)
    K = torch.stack([eye, torch.zeros_like(eye)])
    return lambda: op.gram_factor(K)


def into(out, arguments, columns):
    def call():
        op.mlp_jacobian.out(*arguments, columns, out=out)
        return out.clone()

    return call


def calls(long):
    big = net(200_000 if long else 8, 1500 if long else 20)
    wide = net(4000 if long else 9, 300 if long else 5)
    points = torch.ones(1, 2, **f64).expand(10**6 if long else 9, 1, 2)
    out = torch.zeros(len(big[0]), 1, big[1][-1].shape[1], **f64)
    some = torch.ones(1_000_000 if long else 10, **f64)
    batch = torch.randn(100, 100, **f64).expand(20_000 if long else 4, 100, 100)
    return {
        "lm_solve": fits(20_000 if long else 9, 10**9 if long else 50),
        "lm_solve of wide networks": fits(64 if long else 9, 10**9 if long else 5, 400 if long else 100),
        "lm_solve of convolutions": fits(20_000 if long else 9, 10**9 if long else 50, 20, "conv1d"),
        "lm_solve of factorizations": fits(20_000 if long else 9, 10**9 if long else 50, 0, "factorization"),
        "svdvals": lambda: op.svdvals(batch),
        "svdvals of a long matrix": lambda: op.svdvals(one(3_000_000 if long else 3000, 100)),
        "svdvals by LAPACK": lambda: op.svdvals(torch.eye(300, **f64).expand(5000 if long else 1, 300, 300)),
        "svdvals of a long matrix by LAPACK": lambda: op.svdvals(one(500_000 if long else 3000, 150)),
        "mlp_gram": lambda: op.mlp_gram(*wide, double_double=True),
        "mlp_gram of many points": lambda: op.mlp_gram(
            torch.ones(4, 2, **f64), [points], [None], "tanh", double_double=False),
        "gram_add_": gram(200 if long else 20, 3000 if long else 5),
        "gram_factor": factor(2500 if long else 30),
        "gram_factor of many": factor(7, (200_000 if long else 5,)),
        "mlp_jacobian": lambda: op.mlp_jacobian(*big, last_weight(2)),
        "mlp_jacobian.out": into(out, big, last_weight(2)),
        "first_nonfinite": lambda: torch.tensor(op.first_nonfinite([some] * (200_000 if long else 2))),
    }


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted("by the handler")


def same(a, b):
    return a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
"""

RAISES = """
small, long = calls(False), calls(True)
before = {name: small[name]() for name in NAMES}
signal.signal(signal.SIGALRM, interrupt)
for name in NAMES:
    call = long[name]
    torch.set_num_threads(1 if name.startswith("gram") else 2)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        call()
    except Interrupted as error:
        assert error.args == ("by the handler",) and error.__traceback__ is not None
        print("interrupted:", name, flush=True)
    else:
        print("not interrupted:", name, flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert same(small[name](), before[name]), name
"""


SOME = [
    "lm_solve",
    "svdvals",
    "svdvals of a long matrix",
    "gram_add_",
    "gram_factor",
    "mlp_jacobian",
]
OTHERS = [
    *("lm_solve of wide networks", "lm_solve of convolutions", "lm_solve of factorizations"),
    *(
        "svdvals by LAPACK",
        "svdvals of a long matrix by LAPACK",
        "mlp_gram",
        "mlp_gram of many points",
    ),
    *("gram_factor of many", "mlp_jacobian.out", "first_nonfinite"),
]


@pytest.mark.parametrize("names", [SOME, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_handlers_that_raise_end_the_call(names):
    run = run_python(f"NAMES = {names}\n{CALLS}{RAISES}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines() == [f"interrupted: {name}" for name in names]


CTRL_C = """
import os
A = torch.randn(100, 100, **f64).expand(20_000, 100, 100)
for _ in range(2):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        op.svdvals(A)
    except KeyboardInterrupt:
        print("interrupted")
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
op.svdvals(A)
"""


def test_ctrl_c_is_a_keyboard_interrupt_and_ends_the_program():
    run = run_python(CALLS + CTRL_C)
    assert run.stdout == "interrupted\n" * 2
    assert run.returncode not in (0, 1)
    assert run.stderr.rstrip().endswith("KeyboardInterrupt")


# The handler uses autograd, our operators and matrix products. It restarts the timer when it is done: a
# repeating timer would interrupt a slow handler (under a sanitizer) endlessly.
GOES_ON = """
count, running = 0, False


def handler(*_):
    global count
    count += 1
    w = torch.ones(3, requires_grad=True)
    (w * w).sum().backward()
    assert torch.equal(w.grad, torch.full((3,), 2.0))
    assert op.svdvals(torch.eye(3, **f64)).tolist() == [1, 1, 1]
    assert torch.equal(torch.ones(200, 200) @ torch.ones(200, 200), torch.full((200, 200), 200.0))
    if running:
        signal.setitimer(signal.ITIMER_REAL, 0.01)


def medium(name):
    if name == "lm_solve":
        return fits(1000, 100)
    if name == "svdvals":
        A = torch.randn(800, 100, 100, generator=torch.Generator().manual_seed(3), **f64)
        return lambda: op.svdvals(A)


signal.signal(signal.SIGALRM, handler)
for name in ("lm_solve", "svdvals"):
    call = medium(name)
    expected = call()
    count, running = 0, True
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    result = call()
    running = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert same(result, expected), name
    print(name, count, flush=True)
"""


def test_handlers_that_do_not_raise_change_nothing():
    run = run_python(CALLS + GOES_ON)
    assert run.returncode == 0, run.stdout + run.stderr
    counts = [line.split() for line in run.stdout.splitlines()]
    assert [name for name, _ in counts] == ["lm_solve", "svdvals"]
    assert sum(int(count) for _, count in counts) > 0


OFF_THE_MAIN_THREAD = """
call = fits(1000, 100)
expected, results = call(), []


def start():
    done = threading.Event()

    def run():
        results.append(call())
        done.set()

    threading.Thread(target=run).start()
    return done


signal.signal(signal.SIGALRM, interrupt)
done, raised = start(), 0
signal.setitimer(signal.ITIMER_REAL, 0.02)
try:
    done.wait()
except Interrupted:
    raised += 1
done.wait()
assert same(results[0], expected)
# Both at work: a signal ends the call of the main thread, and not the other one.
done = start()
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    fits(5_000, 10**9)()
except Interrupted:
    raised += 1
done.wait()
assert same(results[1], expected)
print(raised)
"""


def test_other_threads_are_not_interrupted():
    run = run_python(CALLS + OFF_THE_MAIN_THREAD)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split() == ["2"]


MEMORY = """
import json, resource
signal.signal(signal.SIGALRM, interrupt)
used = []
for _ in range(4):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        op.svdvals(one(3_000_000, 100))
    except Interrupted:
        pass
    used.append(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize())
print(json.dumps(used))
"""


@pytest.mark.slow
def test_memory_of_an_interrupted_call_is_freed():
    # Blocks of its rows take 1.2 GB.
    run = run_python(CALLS + MEMORY)
    assert run.returncode == 0, run.stderr
    used = json.loads(run.stdout)
    assert max(used) - used[0] < 300e6
