"""All public functions from eight threads at once, on shared models: the same results as from one thread."""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flint
import pytest
import torch
from helpers import models
from helpers.oracles import run_python
from torch import Tensor, nn

import llr
from llr import certify, embedding, landscape, lifting, recovery, theory, verify
from llr.exact import network as exact
from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.recovery import train
from llr.theory.spans import neurons

from . import test_private

ROUNDS = int(os.environ.get("LLR_RANDOM_CASES", "1"))
"""Number of rounds. In a round all calls are made twice, in a random order, distributed over the threads."""

F64 = torch.float64
THREADS = 8

Call = Callable[[], object]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


class Calls:
    """Calls of public functions, on models that all threads share."""

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.calls: list[Call] = []
        self.functions: set[object] = set()
        self.text: list[str] = []
        torch.manual_seed(0)
        self.net = self.shared(mlp([2, 3, 1], generator=generator()).double())
        self.narrow = self.shared(mlp([1, 2, 1], generator=generator()).double())
        self.two = self.shared(TwoLayer(2, 2, generator=generator()).double())
        self.conv = self.shared(
            nn.Sequential(
                *(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 2), nn.BatchNorm1d(4), nn.Tanh()),
                *(nn.Flatten(), nn.Linear(20, 2)),
            ).eval()
        )
        self.words = self.shared(models.make("embedding")[0])
        self.x, self.tokens = randn(12, 2), torch.tensor([[0, 1], [2, 3], [0, 1]])
        self.line = torch.linspace(-2, 2, 12).double()[:, None]
        self.y = self.line.sin()

        self.ranks()
        self.proofs()
        self.embeddings()
        self.landscapes()
        self.closed_forms()
        self.fits()

    def shared(self, model: nn.Module) -> Any:
        self.models.append(model)
        return model

    def add(
        self, function: Callable[..., Any], *args: Any, seeded: bool = False, **options: Any
    ) -> None:
        """Add a call; with `seeded`, its last argument is a new generator."""
        self.functions.add(function)
        self.text.append(f"{function.__name__}#{len(self.text)}")
        self.calls.append(lambda: function(*args, *[generator()] * seeded, **options))

    def seen(self, function: Callable[..., Any], call: Call) -> None:
        """Add a call, with a function that reads the result."""
        self.add(call)
        self.functions.add(function)
        self.text[-1] = f"{function.__name__}#{len(self.text) - 1}"

    def ranks(self) -> None:
        x, traced = torch.randn(12, 6), self.shared(test_private.Base())
        traced.end = traced.b.forward  # an MLP, found by tracing
        parametrized = self.shared(test_private.make("parametrized"))
        for model, samples in (
            *((self.conv, x), (traced, x[:, :3]), (parametrized, x[:, :3].double())),
            *((self.net, self.x), (self.words, self.tokens)),
        ):
            for function in (llr.jacobian, llr.plan, llr.gram, llr.rank, llr.layout):
                self.add(function, model, *[samples] * (function is not llr.layout))
            self.add(llr.rank, model, samples, method="tsqr")
            self.add(llr.rank, model, samples, method="svd", dtype=torch.float32)
        A = torch.randn(3, 9, 7)
        for function in (llr.svdvals, llr.numerical_rank, llr.rank):
            self.add(function, A)
        self.add(llr.tolerance, llr.svdvals(A), 7)
        self.seen(llr.memory_budget, lambda: llr.memory_budget() > 0)
        self.seen(llr.info, lambda: sorted(llr.info().facts))
        self.seen(llr.selftest, lambda: llr.selftest("cpu").ok)
        self.add(llr.model_rank, traced, sample_shape=(3,), max_samples=20)
        self.add(llr.model_rank, self.net)
        self.add(llr.has_llr_guarantee, self.net, self.x)
        self.add(llr.llr_sample_size, self.net, self.x)

    def proofs(self) -> None:
        relu = self.shared(mlp([2, 3, 1], "relu", generator=generator()).double())
        filters = self.shared(Conv1dTwoLayer(4, 2, 2, generator=generator()).double())
        for model, x in (
            *((self.net, self.x), (relu, self.x), (self.narrow, self.line)),
            (filters, randn(8, 4)),
        ):
            proof = certify(model, x)
            self.add(certify, model, x)
            self.add(certify, model, x, bits=200)
            self.add(verify, proof, model, x)
        self.add(llr.rank, self.net, self.x, method="certified")
        self.seen(llr.Certificate, lambda: llr.Certificate.from_dict(proof.to_dict()))
        for bits in (64, 300):
            self.seen(
                exact.jacobian,
                lambda bits=bits: exact.jacobian(self.net, self.x, bits=bits).str(bits // 3),
            )
        self.seen(exact.rational_jacobian, lambda: exact.rational_jacobian(relu, self.x[:3]).str())
        self.add(neurons.independence, self.two)

    def embeddings(self) -> None:
        narrow, net = self.narrow, self.net
        critical = landscape.critical_targets(narrow, self.line, self.y, size=1e-3)
        wide, into = embedding.split(narrow, 0, 0, share=0.25)
        self.shared(wide)
        self.add(embedding.split, net, 0, 1)
        self.add(embedding.null, net, 0, bias=0.5)
        self.add(embedding.widen, net, [2, 5, 1], seeded=True)
        self.add(embedding.compatible, narrow, [[0, 0, 1]], [[0.5, 0.5, 1.0]])
        self.add(embedding.random_compatible, net, [2, 5, 1], seeded=True)
        self.add(embedding.check, narrow, wide, self.line, critical)
        self.add(embedding.reduce, wide)
        self.add(embedding.reduce, self.shared(embedding.widen(net, [2, 5, 1], generator())[0]))
        self.add(landscape.embedded_spectrum, narrow, wide, into, self.line, critical)
        self.add(lifting.lift_status, narrow, wide)
        deep = self.shared(mlp([1, 2, 2, 1], generator=generator()).double())
        self.add(lifting.lifted_family, deep, alpha=0.25, t=2.0, lam=0.25)
        self.add(lifting.lifted_critical_points, narrow, self.line, critical, starts=2)

    def landscapes(self) -> None:
        data = self.narrow, self.line, self.y
        self.seen(
            landscape.critical_targets,
            lambda: landscape.critical_targets(*data, generator=generator()),
        )
        self.add(landscape.criticality, *data)
        self.add(landscape.hessian_spectrum, *data)
        conv = self.shared(test_private.make("Closures"))
        more = conv, torch.randn(5, 3).double(), torch.randn(5, 2).double()
        self.add(landscape.hessian_spectrum, *more, k=2, method="lanczos")
        self.add(landscape.rate, self.two, self.x)
        self.add(landscape.flow, *data, [0, 0.5, 1], rtol=1e-6, atol=1e-8)
        self.add(landscape.branches, self.two, 3)
        self.add(
            *(landscape.random_point, self.two, landscape.branches(self.two, 3)[0]), seeded=True
        )

    def closed_forms(self) -> None:
        two = self.two
        for model in (
            *(two, self.shared(DeepLinear([3, 2, 2], generator=generator()))),
            *(self.shared(mlp([2, 2, 2, 1], generator=generator())),),
            self.shared(MatrixFactorization(3, 2, 3)),
        ):
            self.add(theory.tangent_dimension, model)
        for function in (
            *(theory.model_rank_of_function, theory.points_needed, theory.rank_stratification),
            *(theory.read_structure, theory.generic_rank),
        ):
            self.add(function, two)
        self.add(theory.optimistic_sample_size, self.shared(TwoLayer(2, 3)), two)

    def fits(self) -> None:
        two, x = self.two, self.x
        starts, y = recovery.initial(two, 4, scale=0.3, generator=generator()), two(x).detach()
        self.seen(mlp, lambda: mlp([2, 3, 1], generator=generator()))
        for kind in ("normal", "fan-in"):
            self.seen(
                recovery.initial,
                lambda kind=kind: recovery.initial(two, 3, kind=kind, generator=generator()),
            )
        self.add(recovery.levenberg_marquardt, two, starts, x, y + 1)
        other = self.shared(test_private.make("SharedLayer"))
        first = recovery.initial(other, 3, scale=0.1, generator=generator())
        self.add(recovery.levenberg_marquardt, other, first, randn(12, 3), randn(12, 2))
        target = recovery.Target.separated(TwoLayer(2, 2, bias=False), seed=0)
        sample = target.sample(7, seed=1)
        self.add(recovery.recover, *sample, max_width=3, bias=False, budget=64)
        self.seen(recovery.Target, lambda: recovery.Target.generic(two, seed=3).sample(5, seed=1))
        for method in (train.GD(), train.Adam(0.01), train.LM(), train.Flow(1.0)):
            self.add(train.train, two, starts, x, y + 1, method=method, steps=30)
        self.add(train.condensation, two)
        self.add(train.merge, two)
        self.add(train.tangent_rank, two, starts, x)
        self.add(train.narrow, two, starts, x, y)


def facts(found: Any) -> object:
    """The contents of a result with all bits, without times and addresses."""
    if isinstance(found, Tensor):
        return found.dtype, tuple(found.shape), found.detach().numpy().tobytes()
    if isinstance(found, nn.Module):
        return type(found).__name__, facts(dict(found.state_dict()))
    if dataclasses.is_dataclass(found):
        fields = dataclasses.fields(found)
        return [(f.name, facts(getattr(found, f.name))) for f in fields if f.name != "seconds"]
    if isinstance(found, Mapping):
        return [(key, facts(value)) for key, value in found.items()]
    if isinstance(found, list | tuple):
        return [facts(value) for value in found]
    text = repr(found)
    return text.partition(" at 0x")[0]


PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in (llr, embedding, landscape, theory, lifting, recovery, train)
    for name, value in vars(module).items()
    if inspect.isfunction(value) and value.__module__.startswith("llr") and name[0] != "_"
}


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


# Sweeps run in separate processes: see recovery/sweep/test_run.py and test_kill.py.
APART = [recovery.reproduce]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_is_called(name: str, calls: Calls) -> None:
    assert (PUBLIC[name] in calls.functions) != (PUBLIC[name] in APART)


def test_threads(calls: Calls, threads: None) -> None:  # noqa: ARG001
    torch.set_num_threads(1)
    want = [facts(call()) for call in calls.calls]
    before = [test_private.state(model) for model in calls.models]
    for seed in range(ROUNDS):
        twice = 2 * list(range(len(want)))
        order = [twice[i] for i in torch.randperm(len(twice), generator=generator(seed))]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda i: facts(calls.calls[i]()), order))
        assert [calls.text[i] for i, f in zip(order, found, strict=True) if f != want[i]] == []
    assert [test_private.state(model) for model in calls.models] == before


def test_the_working_precision_of_the_caller_is_no_matter(calls: Calls) -> None:
    # Another thread may change it at any time.
    before = flint.ctx.prec
    for text, call in zip(calls.text, calls.calls, strict=True):
        if "selftest" not in text:
            want = facts(call())
            flint.ctx.prec = 20
            try:
                assert facts(call()) == want, text
            finally:
                flint.ctx.prec = before


def test_random_numbers_of_other_threads_are_theirs(calls: Calls) -> None:
    torch.manual_seed(0)
    drawn = []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: [call() for call in calls.calls])
        while not done.done():
            drawn.append(torch.rand(1))
            time.sleep(5e-4)
    torch.manual_seed(0)
    assert all(torch.equal(value, torch.rand(1)) for value in drawn)


# Python up to 3.11 collects garbage in the middle of torch.get_rng_state.
COLLECTING = """
import gc, threading, torch
from llr.inputs.evaluation.surroundings import _global_state

class Cycle:
    pass

def work():
    for _ in range(40000):
        garbage = Cycle()
        garbage.tensor, garbage.itself = torch.empty(1), garbage
        _global_state()

gc.set_threshold(7)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_garbage_collected_while_the_random_state_is_read() -> None:
    assert run_python(COLLECTING, timeout=100).stdout == "done\n"
