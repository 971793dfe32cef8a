"""Models run as private copies: all references to the module from inside it refer to the copy."""

from __future__ import annotations

import dataclasses
import functools
import threading
import types
import weakref

import pytest
import torch
from helpers.models import EVERY, F64
from helpers.oracles import assert_matches
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import llr
from llr.inputs.evaluation.private import Private

# Building such models gives deprecation warnings, but users still have them.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.prepare()

    def prepare(self):
        pass

    def end(self, h: Tensor) -> Tensor:
        return self.b(h).cumsum(-1)  # so it is not an MLP

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.tanh(self.a(x)))


class BoundMethods(Base):
    def prepare(self):
        self.steps = [functools.partial(self.scaled, 2.0), self.end]

    def scaled(self, factor, x):
        return torch.tanh(self.a(x)) * factor

    def forward(self, x):
        return self.steps[1](self.steps[0](x))


class Closures(Base):
    def prepare(self):
        def inner(x, times=[3]):  # noqa: B006
            return outer.end(torch.tanh(outer.a(x))) * times[0]

        outer, self.run, self.me = self, inner, weakref.ref(self)

    def forward(self, x):
        return self.run(x) + self.me().a.bias.sum()


class Unregistered(Base):
    def prepare(self):
        self.parts = {"first": (self.a, [nn.Linear(3, 4).double()])}

    def forward(self, x):
        own, (other,) = self.parts["first"]
        return self.end(torch.tanh(own(x) + other(x)))


@dataclasses.dataclass
class Setting:
    scale: Tensor
    layer: nn.Module


class Slotted:
    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer


class Objects(Base):
    def prepare(self):
        self.setting = Setting(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64), self.a)
        self.slotted, self.lock = Slotted(self.b), threading.Lock()

    def forward(self, x):
        with self.lock:
            return self.slotted.layer(torch.tanh(self.setting.layer(x)) * self.setting.scale)


class PatchedForward(Base):
    def prepare(self):
        self.forward = types.MethodType(lambda m, x: m.end(torch.sin(m.a(x))), self)


class Hooked(Base):
    def prepare(self):
        seen = {}
        self.a.register_forward_hook(lambda _m, _i, out: seen.__setitem__("a", out))
        self.seen = seen

    def forward(self, x):
        self.a(x)
        return self.end(self.seen["a"].tanh())


class Caching(Base):
    def prepare(self):
        self.cache, self.history, self.calls = {}, [], 0

    def forward(self, x):
        self.calls += 1
        if "w" not in self.cache:
            self.cache["w"] = self.a.weight.exp()
        h = torch.tanh(x @ self.cache["w"].mT)
        self.history.append(h)
        return self.end(h)


class CachedProperty(Base):
    @functools.cached_property
    def weight(self):
        return self.a.weight.exp()

    def forward(self, x):
        return self.end(torch.tanh(x @ self.weight.mT))


class SharedLayer(Base):
    def prepare(self):
        self.a = nn.Linear(3, 3)
        self.net, self.b = nn.Sequential(self.a, nn.Tanh(), self.a), nn.Linear(3, 2)

    def forward(self, x):
        return self.end(self.net(x))


class Checkpointed(Base):
    def forward(self, x):
        return self.end(checkpoint(lambda x: torch.tanh(self.a(x)), x, use_reentrant=False))


class Twofold(nn.Module):
    def forward(self, w):
        return 2 * w + w.sum()


def changed(change) -> type[Base]:
    return type("Changed", (Base,), {"prepare": lambda self: change(self)})


def parametrized(m: Base) -> None:
    for name in ("weight", "bias", "weight"):
        parametrize.register_parametrization(m.a, name, Twofold())


CASES = {
    kind.__name__: kind
    for kind in (
        *(BoundMethods, Closures, Unregistered, Objects, PatchedForward, Hooked, Caching),
        *(CachedProperty, SharedLayer, Checkpointed),
    )
} | {
    "weight norm as hooks": changed(lambda m: nn.utils.weight_norm(m.a)),
    "spectral norm as hooks": changed(lambda m: nn.utils.spectral_norm(m.a).eval()),
    "weight norm": changed(lambda m: parametrizations.weight_norm(m.a)),
    "orthogonal": changed(lambda m: parametrizations.orthogonal(m.a)),
    "parametrized": changed(parametrized),
    "pruned": changed(lambda m: prune.l1_unstructured(m.a, "weight", 0.3)),
    "script": lambda: torch.jit.script(Base()),
    "a part that is a script": changed(lambda m: setattr(m, "a", torch.jit.script(m.a))),
    "trace": lambda: torch.jit.trace(Base(), torch.randn(2, 3)),
    "fx": lambda: torch.fx.symbolic_trace(Base()),
    "compiled in place": changed(lambda m: m.compile(backend="eager")),
}


def make(case: str) -> nn.Module:
    torch.manual_seed(1)
    return CASES[case]().double()


def autograd(model: nn.Module, x: Tensor) -> Tensor:
    """(n, q, P) by torch.autograd, on the module itself."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    samples = []
    for sample in x:
        y = model(sample[None].clone()).flatten()
        grads = [
            torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True) for v in y
        ]
        samples.append(
            torch.stack(
                [
                    torch.cat(
                        [
                            torch.zeros_like(p).flatten() if g is None else g.flatten()
                            for g, p in zip(row, parameters, strict=True)
                        ]
                    )
                    for row in grads
                ]
            )
        )
        for name in ("cache", "history"):
            getattr(model, name, {}).clear()
        model.__dict__.pop("weight", None) if isinstance(model, CachedProperty) else None
    return torch.stack(samples)


@pytest.mark.parametrize("case", list(CASES))
def test_a_copy_is_the_module(case):
    x = torch.randn(6, 3, dtype=F64)
    want = autograd(make(case), x)
    model = make(case)
    assert_matches(llr.jacobian(model, x), want, tolerance=1e-12)
    assert_matches(llr.jacobian(model, x, backend="loop"), want, tolerance=1e-12)
    rows = want.flatten(0, 1)
    assert_matches(llr.gram(model, x).flatten(2).flatten(0, 1), rows @ rows.mT, tolerance=1e-12)


@pytest.mark.parametrize("case", list(CASES))
def test_a_copy_has_the_values_that_it_is_given(case):
    x, model, other = torch.randn(6, 3, dtype=F64), make(case), make(case)
    values = {n: p + 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.copy_(values[name])
    values = {n: v.detach() for n, v in values.items()}
    assert_matches(llr.jacobian(model, x, params=values), autograd(other, x), tolerance=1e-12)


def state(model: nn.Module) -> list[object]:
    """Everything that a forward might change: objects by identity, tensors by their bits."""
    found: list[object] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, value in module.__dict__.items():
            found.append((path, name, id(value)))
            if isinstance(value, dict):
                found.append([(k, id(v)) for k, v in value.items()])
            if isinstance(value, list):
                found.append([id(v) for v in value])
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        found.append(
            (
                name,
                t.dtype,
                t._version,
                t.requires_grad,
                t.grad,
                t.detach().clone().numpy().tobytes(),
            )
        )
    return found


def calls_on(model: nn.Module, x: Tensor) -> dict[str, object]:
    return {
        "jacobian": lambda: llr.jacobian(model, x),
        "plan": lambda: llr.plan(model, x),
        "gram": lambda: llr.gram(model, x),
        "rank": lambda: llr.rank(model, x),
        "tsqr": lambda: llr.rank(model, x, method="tsqr"),
        "float32": lambda: llr.rank(model, x, dtype=torch.float32, method="svd"),
    }


@pytest.mark.parametrize("case", [*CASES, *EVERY])
def test_the_module_is_left_as_it_was(case):
    if case in CASES:
        model, x = make(case), torch.randn(4, 3, dtype=F64)
    else:
        model, x = EVERY[case][0]().double(), EVERY[case][1]()
    before, random = state(model), torch.get_rng_state()
    for call in calls_on(model, x).values():
        call()
        assert state(model) == before
    assert torch.equal(torch.get_rng_state(), random)


class Interrupting(Base):
    """Fails in the middle of a later evaluation, after it has changed attributes and a buffer."""

    def prepare(self):
        self.register_buffer("shift", torch.zeros(4))
        self.kept, self.count, self.error = None, [0], KeyboardInterrupt

    def forward(self, x):
        self.kept = self.a(x)
        h = torch.tanh(self.kept + self.shift)
        if len(x) > 2:
            raise self.error
        return self.end(h)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("name", ["jacobian", "gram", "rank", "tsqr"])
def test_failures_leave_the_module_as_it_was(name, error):
    model, x = Interrupting().float(), torch.randn(5, 3)
    model.error = error
    before, precision = state(model), torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(error):
        calls_on(model, x)[name]()
    assert state(model) == before
    assert torch.backends.cuda.matmul.fp32_precision == precision


def test_a_cache_that_is_filled_is_refused_where_its_graph_is_lost():
    model, x = make("Caching"), torch.randn(6, 3, dtype=F64)
    model(x)
    with pytest.raises(
        ValueError, match=r"uses 'cache\.w' \(Caching.*test_private.*earlier evaluation"
    ):
        llr.jacobian(model, x)


class PastItself(Base):
    def forward(self, x):
        return self.end(torch.tanh(x @ GLOBAL[0].mT))


GLOBAL: list[Tensor] = []


def test_what_a_copy_cannot_replace_is_refused_with_name_and_line():
    model = PastItself().double()
    GLOBAL[:] = [model.a.weight]
    with pytest.raises(
        ValueError, match=r"PastItself.*'a\.weight' \(PastItself, .*test_private\.py:\d+\)"
    ):
        llr.jacobian(model, torch.randn(6, 3, dtype=F64))


def test_objects_beyond_number_are_shared_and_layers_are_copied_all_the_same():
    class Many(Base):
        def prepare(self):
            self.objects = [types.SimpleNamespace() for _ in range(5000)]
            self.layers = [self.a]

        def forward(self, x):
            return self.end(torch.tanh(self.layers[0](x)))

    model, x = Many().double(), torch.randn(6, 3, dtype=F64)
    private = Private(model, None)
    copy = private.copy(dict(model.named_parameters()))
    assert private.shares_objects
    assert copy.objects is not model.objects
    assert copy.objects[0] is model.objects[0]
    assert_matches(llr.jacobian(model, x), autograd(model, x), tolerance=1e-12)


def test_parametrizations_compute_although_a_cache_is_on():
    model, x = make("parametrized"), torch.randn(6, 3, dtype=F64)
    want = llr.jacobian(model, x)
    with parametrize.cached():
        model(x)  # fills it
        kept = dict(parametrize._cache)
        assert torch.equal(llr.jacobian(model, x), want)
        assert kept == dict(parametrize._cache)


def test_a_forward_that_writes_to_its_parameters_is_refused():
    class Clamping(Base):
        def forward(self, x):
            with torch.no_grad():
                self.a.weight.clamp_(-0.1, 0.1)
            return self.end(torch.tanh(self.a(x)))

    model = Clamping().double()
    before = state(model)
    with pytest.raises(ValueError, match=r"changes its parameter 'a\.weight' in place"):
        llr.jacobian(model, torch.randn(6, 3, dtype=F64))
    assert state(model) == before
