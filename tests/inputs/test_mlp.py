"""Which modules are recognised as MLPs and which are not; the results are right for both."""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.models import F64, Model
from helpers.oracles import MODULES, assert_matches, mlp
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import llr
from llr.jacobians import reference
from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

torch_itself = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


class Swapped(nn.Module):
    """Registers its layers in another order than it calls them, with another parameter in between."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 2)
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.first = nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(F.linear(torch.tanh(self.first(x)), self.weight)))


class OwnParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
        self.c = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a, bias=self.b).sigmoid(), self.c)


class Skewed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 3


class OwnSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def custom(
    forward: Callable[[Model, Tensor], object], **parts: nn.Module | Tensor
) -> Callable[[], nn.Module]:
    return lambda: Model(forward, first=nn.Linear(3, 4), second=nn.Linear(4, 2), **parts)


def sequential(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(make() for make in layers))


def in34() -> nn.Module:
    return nn.Linear(3, 4)


def in42() -> nn.Module:
    return nn.Linear(4, 2)


RECOGNISED: dict[str, Callable[[], nn.Module]] = {
    "linear": in34,
    "linear without bias": lambda: nn.Linear(3, 4, bias=False),
    **{kind: sequential(in34, make, in42) for kind, make in MODULES.items()},
    "no activation": sequential(in34, in42),
    "deep": lambda: mlp(3, 5, 4, 6, 2, dtype=torch.float32),
    "nested": sequential(sequential(in34, nn.Tanh), sequential(sequential(in42))),
    "idle layers": sequential(
        nn.Identity, nn.Flatten, in34, nn.Tanh, lambda: nn.Dropout(0.0), in42
    ),
    "resting dropout": lambda: nn.Sequential(in34(), nn.Dropout(0.5), nn.Tanh(), in42()).eval(),
    "activation in place": sequential(in34, lambda: nn.ReLU(inplace=True), in42),
    "functional": custom(lambda m, x: m.second(torch.tanh(m.first(x)))),
    "method": custom(lambda m, x: m.second(m.first(x).sigmoid())),
    "nn.functional": custom(lambda m, x: m.second(F.gelu(m.first(x)))),
    "with keywords": custom(lambda m, x: m.second(F.silu(m.first(x), inplace=True))),
    "sin": custom(lambda m, x: m.second(torch.sin(m.first(x)))),
    "erf": custom(lambda m, x: m.second(torch.special.erf(m.first(x)))),
    "an activation module": custom(lambda m, x: m.second(m.act(m.first(x))), act=nn.Softplus()),
    "own parameters": OwnParameters,
    "another order": Swapped,
    "squeeze": custom(lambda m, x: m.one(torch.relu(m.first(x))).squeeze(-1), one=nn.Linear(4, 1)),
    "flatten": custom(lambda m, x: m.second(torch.relu(m.first(x.flatten(1))))),
    "a layer by index": custom(
        lambda m, x: m.layers[0](x), layers=nn.ModuleList([nn.Linear(3, 5)])
    ),
    "weights in a buffer": custom(
        lambda m, x: m.second(F.linear(x, m.w).tanh()), w=torch.ones(4, 3)
    ),
}


def without_unused(model: nn.Module) -> nn.Module:
    """Freezes parameters that the forward does not use, as the operator has no zero columns for them."""
    used = reference.jacobian(model, torch.randn(2, 3)).abs().amax((0, 1))
    for name, columns in llr.layout(model).items():
        if not used[columns].any():
            model.get_parameter(name).requires_grad_(False)
    return model


@pytest.mark.parametrize("case", list(RECOGNISED))
def test_recognised(case):
    model = without_unused(RECOGNISED[case]()).double()
    x = torch.randn(6, 3, dtype=F64)
    assert llr.plan(model, x).backend == "native", llr.plan(model, x).reason
    assert_matches(llr.jacobian(model, x), reference.jacobian(model, x))


def hooked(register: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = mlp(3, 4, 2, dtype=torch.float32)
        register(model)
        return model

    return make


def replace_forward(module: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    module.forward = types.MethodType(forward, module)


def partly_without_gradient(m: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = torch.tanh(m.first(x))
    return m.second(hidden)


def plain_weight(model: nn.Module) -> None:
    value = model[0].weight.detach().double()
    del model[0].weight
    model[0].weight = value


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "activation after the last layer": sequential(in34, nn.Tanh),
    "activation before the first": sequential(nn.Tanh, in34),
    "two activations": sequential(in34, nn.Tanh, nn.ReLU, in42),
    "mixed activations": sequential(
        in34, nn.Tanh, lambda: nn.Linear(4, 5), nn.ReLU, lambda: nn.Linear(5, 2)
    ),
    "partly none": sequential(in34, lambda: nn.Linear(4, 5), nn.ReLU, lambda: nn.Linear(5, 2)),
    "leaky relu": sequential(in34, nn.LeakyReLU, in42),
    "approximate gelu": sequential(in34, lambda: nn.GELU("tanh"), in42),
    "sharp softplus": sequential(in34, lambda: nn.Softplus(beta=3.0), in42),
    "softplus with a low threshold": sequential(in34, lambda: nn.Softplus(threshold=0.1), in42),
    "layer norm": sequential(in34, lambda: nn.LayerNorm(4), in42),
    "tied": lambda: (lambda layer: nn.Sequential(layer, nn.Tanh(), layer))(nn.Linear(3, 3)),
    "subclass of Linear": sequential(lambda: Skewed(3, 4), nn.Tanh, in42),
    "subclass of Sequential": lambda: OwnSequential(in34(), nn.Tanh(), in42()),
    "residual": custom(lambda m, x: x + torch.tanh(m.second(torch.tanh(m.first(x)))).sum(-1, True)),
    "scaled": custom(lambda m, x: m.second(torch.tanh(2 * m.first(x)))),
    "detached": custom(lambda m, x: m.second(torch.tanh(m.first(x)).detach())),
    "without gradient": custom(partly_without_gradient),
    "gelu by keyword": custom(lambda m, x: m.second(F.gelu(m.first(x), approximate="tanh"))),
    "softplus with arguments": custom(lambda m, x: m.second(F.softplus(m.first(x), 2.0))),
    "computed weight": custom(lambda m, x: F.linear(x, 2 * m.first.weight)),
    "one-dimensional weight": custom(lambda m, x: F.linear(x, m.w), w=nn.Parameter(torch.ones(3))),
    "two outputs of one layer": custom(lambda m, x: torch.tanh(m.first(x)) + m.first(x)),
    "several outputs": custom(lambda m, x: (m.first(x), m.second(torch.tanh(m.first(x))))),
    "hardtanh": sequential(in34, nn.Hardtanh, in42),
    "a parameter of no use": custom(
        lambda m, x: torch.tanh(m.first(x)), idle=nn.Parameter(torch.ones(2))
    ),
    "forward hook": hooked(lambda m: m[0].register_forward_hook(lambda _, __, y: 2 * y)),
    "forward pre-hook": hooked(lambda m: m.register_forward_pre_hook(lambda _, x: (2 * x[0],))),
    "hook on the activation": hooked(lambda m: m[1].register_forward_hook(lambda _, __, y: y + 1)),
    "replaced forward": hooked(lambda m: replace_forward(m, lambda s, x: 3 * s[0](x))),
    "replaced forward of a layer": hooked(
        lambda m: replace_forward(m[0], lambda s, x: F.linear(x, s.weight) * 3)
    ),
    "replaced forward of an activation": hooked(lambda m: replace_forward(m[1], lambda _, x: x**2)),
    "parametrized": hooked(lambda m: parametrizations.weight_norm(m[0])),
    "parametrized bias": hooked(
        lambda m: parametrize.register_parametrization(m[2], "bias", nn.Softplus())
    ),
    "orthogonal": hooked(lambda m: parametrizations.orthogonal(m[2])),
    "pruned": hooked(lambda m: prune.random_unstructured(m[0], "weight", amount=0.5)),
    "weight that is no parameter": hooked(plain_weight),
}


@torch_itself
@pytest.mark.parametrize("case", list(OTHERS))
def test_not_mistaken(case):
    model, x = OTHERS[case]().double(), 3 * torch.randn(6, 3, dtype=F64)
    assert_matches(llr.jacobian(model, x), reference.jacobian(model, x))


NAMED = {
    "activation after the last layer": "tanh after the last layer",
    "mixed activations": "different activations",
    "sharp softplus": "beta=3",
    "approximate gelu": "approximate='tanh'",
    "layer norm": "LayerNorm",
    "tied": "stands in two places",
    "forward hook": "Linear has hooks",
    "leaky relu": "LeakyReLU",
    "several outputs": "does not follow the link before it",
    "a parameter of no use": "after the last layer",
}


@pytest.mark.parametrize("case", list(NAMED))
def test_plan_and_refusal_say_why_it_is_no_mlp(case):
    model, x = OTHERS[case](), torch.randn(6, 3)
    plan = llr.plan(model, x)
    assert plan.backend == "torch"
    assert NAMED[case] in plan.reason
    with pytest.raises(ValueError, match="backend='native' cannot compute this model") as refusal:
        llr.jacobian(model, x, backend="native")
    assert NAMED[case] in str(refusal.value)


def test_global_hooks_are_seen():
    model, x = mlp(3, 4, 2), torch.randn(6, 3, dtype=F64)
    double = lambda module, _, y: 2 * y if isinstance(module, nn.Linear) else None  # noqa: E731
    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        assert_matches(llr.jacobian(model, x), reference.jacobian(model, x))
    finally:
        handle.remove()


def test_softplus_beyond_its_threshold():
    # nn.Softplus is the identity from 20 on, where the slope of ln(1 + e^z) differs from 1 by 2e-9.
    model = mlp(3, 4, 2, activation=nn.Softplus)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(20.5)
    x = torch.randn(6, 3, dtype=F64)
    assert_matches(llr.jacobian(model, x), reference.jacobian(model, x))


@pytest.mark.parametrize("shape", [(6, 2, 3), (6, 1, 2, 3), (6, 6)])
def test_leading_flatten_takes_samples_of_any_shape(shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(shape, dtype=F64)
    assert llr.plan(model, x).backend == "native"
    assert_matches(llr.jacobian(model, x), reference.jacobian(model, x))


def test_samples_with_more_dimensions_go_through_torch():
    model, x = mlp(3, 4, 2), torch.randn(6, 5, 3, dtype=F64)
    assert llr.plan(model, x).reason == "samples of shape (5, 3)"
    J = llr.jacobian(model, x)
    assert J.shape == (6, 10, 26)
    assert_matches(J, reference.jacobian(model, x))


def test_flatten_of_the_samples_dimension_is_refused():
    model = custom(lambda m, x: m.first(x).flatten(end_dim=1))()
    with pytest.raises(ValueError, match="expected the number of samples as its first size"):
        llr.jacobian(model, torch.randn(6, 3))


def test_forward_that_hangs_on_an_attribute_is_read_afresh():
    model = custom(lambda m, x: m.second(m.activation(m.first(x)) * m.scale))().double()
    x = torch.randn(6, 3, dtype=F64)
    for activation, scale in [(torch.tanh, 1), (torch.sin, 1), (torch.tanh, 3), (torch.cos, 1)]:
        model.activation, model.scale = activation, scale
        assert_matches(llr.jacobian(model, x), reference.jacobian(model, x))


def test_changed_parts_are_read_afresh():
    model, x = mlp(3, 4, 2), torch.randn(6, 3, dtype=F64)

    def agrees() -> None:
        assert_matches(llr.jacobian(model, x), reference.jacobian(model, x))

    agrees()
    model[1] = nn.ReLU()
    agrees()
    model[0].weight.data *= 3
    agrees()
    model[0].weight = nn.Parameter(torch.randn(4, 3, dtype=F64))
    agrees()
    model[2] = nn.Linear(4, 5, bias=False, dtype=F64)
    agrees()
    model[2].requires_grad_(False)
    agrees()
    handle = model[0].register_forward_hook(lambda _, __, y: y**2)
    agrees()
    handle.remove()
    agrees()


def test_a_copy_is_its_own_model():
    model, x = mlp(3, 4, 2), torch.randn(6, 3, dtype=F64)
    before = llr.jacobian(model, x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.mul_(2)
    assert_matches(llr.jacobian(twin, x), reference.jacobian(twin, x))
    assert torch.equal(llr.jacobian(model, x), before)


def unchanged(model: nn.Module) -> Callable[[], None]:
    """Return a function that asserts that the model and the random state have not changed since."""

    def facts() -> tuple[object, ...]:
        modules = dict(model.named_modules())
        return (
            {name: (id(t), t._version, t.clone()) for name, t in tensors(model).items()},
            {name: p.grad for name, p in model.named_parameters()},
            {name: m.training for name, m in modules.items()},
            {name: set(vars(m)) for name, m in modules.items()},
            torch.get_rng_state(),
        )

    def tensors(model: nn.Module) -> dict[str, Tensor]:
        return dict(model.named_parameters()) | dict(model.named_buffers())

    before = facts()

    def compare() -> None:
        after = facts()
        for (name, old), new in zip(before[0].items(), after[0].values(), strict=True):
            assert old[:2] == new[:2], f"{name} was written to or replaced"
            assert torch.equal(old[2], new[2]), f"{name} has other values"
        assert after[1:4] == before[1:4]
        assert torch.equal(after[4], before[4]), "random numbers were drawn"

    return compare


def counting(m: Model, x: Tensor) -> Tensor:
    m.count += 1
    return m.second(torch.tanh(m.first(x)))


def replacing(m: Model, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return m.second(torch.tanh(m.first(x)))


def drawing(m: Model, x: Tensor) -> Tensor:
    return m.second(torch.tanh(F.linear(x, torch.randn(4, 3, dtype=F64))))


QUIET: dict[str, Callable[[], nn.Module]] = {
    "recognised": lambda: mlp(3, 4, 2, dtype=torch.float32),
    "traced": RECOGNISED["functional"],
    "constant": custom(lambda m, x: m.second(torch.tanh(F.linear(x, torch.eye(4, 3, dtype=F64))))),
    "constant buffer": custom(
        lambda m, x: m.second(F.linear(x, m.w * 2).tanh()), w=torch.ones(4, 3)
    ),
    "layer norm": OTHERS["layer norm"],
    "batch norm": lambda: nn.Sequential(in34(), nn.BatchNorm1d(4), in42()).eval(),
    "pruned": OTHERS["pruned"],
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten(), in42()
    ),
}
STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "counting": custom(counting, count=torch.zeros(())),
    "replacing": custom(replacing, count=torch.zeros(())),
    "drawing": custom(drawing),
}


@pytest.mark.parametrize("backend", ["auto", "torch", "loop"])
@pytest.mark.parametrize("case", list(QUIET))
def test_the_model_is_left_as_it_was(case, backend):
    model, x = QUIET[case]().double(), torch.randn(6, 3, dtype=F64)
    compare = unchanged(model)
    llr.jacobian(model, x, backend=backend)
    llr.plan(model, x)
    compare()


@pytest.mark.parametrize("case", list(STATEFUL))
def test_a_stateful_model_is_left_as_it_was(case):
    model, x = STATEFUL[case]().double(), torch.randn(6, 3, dtype=F64)
    compare = unchanged(model)
    with contextlib.suppress(ValueError):
        llr.jacobian(model, x)
    compare()
