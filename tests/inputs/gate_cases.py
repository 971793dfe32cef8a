"""Models, and mutations after which they compute something different from what their classes define."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from llr.models import (
    Conv1dTwoLayer,
    DeepLinear,
    Erf,
    MatrixFactorization,
    Polynomial,
    Sine,
    TwoLayer,
)

Mutation = Callable[[nn.Module, random.Random], Any]
"""Changes a model permanently; or is a context manager that changes something and restores it."""


class Written(nn.Module):
    """An MLP with its own forward, which llr traces."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def _sequential(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(copy.deepcopy(layer) for layer in layers))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tanh": (_sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "sigmoid, flattened": (
        _sequential(nn.Flatten(), nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 1)),
        (2, 2),
    ),
    "relu": (_sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), (3,)),
    "softplus": (_sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 1)), (2,)),
    "gelu, deep": (
        _sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 1)),
        (2,),
    ),
    "silu": (_sequential(nn.Linear(2, 3), nn.SiLU(), nn.Dropout(0.0), nn.Linear(3, 1)), (2,)),
    "sine": (_sequential(nn.Linear(2, 3), Sine(), nn.Linear(3, 1)), (2,)),
    "erf": (_sequential(nn.Linear(2, 3), Erf(), nn.Linear(3, 1)), (2,)),
    "polynomial": (_sequential(nn.Linear(2, 3), Polynomial([0, 1, 2]), nn.Linear(3, 1)), (2,)),
    "linear": (lambda: DeepLinear([3, 2, 2]), (3,)),
    "two layers": (lambda: TwoLayer(2, 3), (2,)),
    "shared kernels": (lambda: Conv1dTwoLayer(5, 3, 2), (5,)),
    "kernels": (lambda: Conv1dTwoLayer(4, 2, 2, shared=False, activation="sigmoid"), (4,)),
    "factorization": (lambda: MatrixFactorization(3, 2, 3), ()),
    "convolution": (
        _sequential(nn.Conv1d(2, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1)),
        (2, 4),
    ),
    "norm": (
        _sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)),
        (3,),
    ),
    "written": (Written, (3,)),
}


# --- mutations -----------------------------------------------------------------------------------------


def _part(model: nn.Module, rng: random.Random) -> nn.Module:
    return rng.choice(list(model.modules()))


def _with_parameters(model: nn.Module, rng: random.Random) -> nn.Module:
    return rng.choice(
        [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    )


def _twisted(function: Callable[..., Any], rng: random.Random) -> Callable[..., Any]:
    """The function with its result changed."""
    twist = rng.choice([lambda y: 2 * y, torch.sin, lambda y: y * 0, lambda y: y + y**2])

    @functools.wraps(function)
    def other(*args: Any, **kwargs: Any) -> Any:
        return twist(function(*args, **kwargs))

    return other


def instance_forward(model: nn.Module, rng: random.Random) -> None:
    part = _part(model, rng)
    part.forward = _twisted(part.forward, rng)  # type: ignore[method-assign]


def instance_call(model: nn.Module, rng: random.Random) -> None:
    part = _part(model, rng)
    part._call_impl = _twisted(part._call_impl, rng)  # type: ignore[method-assign]


def compiled_call(model: nn.Module, rng: random.Random) -> None:
    part = _part(model, rng)
    part._compiled_call_impl = _twisted(part._call_impl, rng)


def subclass(model: nn.Module, rng: random.Random) -> None:
    """Gives a part another class, with a changed method that runs in a call."""
    part = _part(model, rng)
    kind = type(part)
    name = rng.choice(["__call__", "_call_impl", "forward", "__getattr__"])
    if isinstance(part, nn.Sequential):
        name = rng.choice([name, "__iter__"])
    if name == "__iter__":

        def method(self: Any) -> Any:
            return iter([*self._modules.values(), nn.Tanh()])
    elif name == "__getattr__":

        def method(self: Any, key: str) -> Any:
            found = kind.__getattr__(self, key)
            return 2 * found if isinstance(found, Tensor) else found
    else:
        method = _twisted(getattr(kind, name), rng)
    part.__class__ = type(kind.__name__, (kind,), {name: method})


def weight_of_another_shape(model: nn.Module, rng: random.Random) -> None:
    """Gives a parameter another shape with which the model still runs."""
    part = _with_parameters(model, rng)
    if isinstance(part, nn.Linear):
        if rng.random() < 0.5 and part.bias is not None:
            part.bias = nn.Parameter(torch.randn(1))
        else:
            part.weight = nn.Parameter(torch.randn(1, part.weight.shape[1]))
    elif isinstance(part, nn.Conv1d):
        part.weight = nn.Parameter(torch.randn(2, 2, 1))
        part.padding = (0,)


def plain_tensor(model: nn.Module, rng: random.Random) -> None:
    """Replaces a parameter by a plain tensor, or hides it behind one."""
    part = _with_parameters(model, rng)
    name = rng.choice([n for n, _ in part.named_parameters(recurse=False)])
    value = torch.randn_like(getattr(part, name))
    if rng.random() < 0.5:
        del part._parameters[name]
        setattr(part, name, value)
    else:
        part.__dict__[name] = value


class Doubled(Tensor):
    """A tensor that computes with twice its stored value."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(a: Any) -> Any:
            return 2 * a.as_subclass(Tensor) if isinstance(a, Doubled) else a

        if func in (F.linear, torch.einsum, F.conv1d):
            return func(*map(plain, args), **{k: plain(v) for k, v in (kwargs or {}).items()})
        return super().__torch_function__(func, types, args, kwargs or {})


def tensor_subclass(model: nn.Module, rng: random.Random) -> None:
    part = _with_parameters(model, rng)
    name = rng.choice([n for n, _ in part.named_parameters(recurse=False)])
    part._parameters[name] = nn.Parameter(getattr(part, name).detach().as_subclass(Doubled))


def hook(model: nn.Module, rng: random.Random) -> None:
    part, change = _part(model, rng), rng.choice([torch.sin, lambda t: 2 * t])
    if rng.random() < 0.5 and part is not model:
        part.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        part.register_forward_hook(lambda *args: change(args[-1]))


@contextlib.contextmanager
def global_hook(_: nn.Module, rng: random.Random) -> Iterator[None]:
    kind = rng.choice([nn.Linear, nn.Tanh, nn.Sequential, nn.Conv1d])

    def change(module: nn.Module, _: Any, out: Tensor) -> Tensor | None:
        return torch.sin(out) if isinstance(module, kind) else None

    handle = nn.modules.module.register_module_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def parametrized(model: nn.Module, rng: random.Random) -> None:
    class Skew(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w - w.mean()

    part = _with_parameters(model, rng)
    name = rng.choice([n for n, _ in part.named_parameters(recurse=False)])
    if rng.random() < 0.3 and getattr(part, name).dim() > 1 and name == "weight":
        parametrizations.weight_norm(part)
    else:
        parametrize.register_parametrization(part, name, Skew())


@contextlib.contextmanager
def class_patch(model: nn.Module, rng: random.Random) -> Iterator[None]:
    """Replaces a method of a class, as some libraries and notebooks do."""
    kind = type(_part(model, rng))
    if rng.random() < 0.2:
        kind = nn.Module
    name = rng.choice(
        ["forward", "__call__", "_call_impl"] if kind is not nn.Module else ["_call_impl"]
    )
    own = vars(kind).get(name)
    setattr(kind, name, _twisted(getattr(kind, name), rng))
    try:
        yield
    finally:
        if own is None:
            delattr(kind, name)
        else:
            setattr(kind, name, own)


@contextlib.contextmanager
def class_attribute(_: nn.Module, rng: random.Random) -> Iterator[None]:
    """Replaces a parameter by a property of the class."""
    kind = rng.choice([nn.Linear, nn.Conv1d])
    kind.weight = property(lambda self: torch.sin(self._parameters["weight"]))  # type: ignore[assignment]
    try:
        yield
    finally:
        del kind.weight


_PATCHES = [
    *((F, name) for name in ("linear", "relu", "softplus", "gelu", "silu", "conv1d", "layer_norm")),
    *((torch, name) for name in ("tanh", "sigmoid", "relu", "erf", "sin", "einsum")),
    (nn.Conv1d, "_conv_forward"),
]


@contextlib.contextmanager
def function_patch(_: nn.Module, rng: random.Random) -> Iterator[None]:
    """Replaces a function that forwards call, in its module."""
    space, name = rng.choice(_PATCHES)
    own, inherited = getattr(space, name), name not in vars(space)
    if rng.random() < 0.3 and space is torch and name in ("tanh", "sigmoid", "erf"):
        other: Any = torch.sin  # another builtin
    else:
        other = _twisted(own, rng)
    setattr(space, name, other)
    try:
        yield
    finally:
        if inherited:
            delattr(space, name)
        else:
            setattr(space, name, own)


def attribute(model: nn.Module, rng: random.Random) -> None:
    """Changes an attribute after construction; some affect the result, others only the printed form."""
    part = _part(model, rng)
    choices: dict[type, list[tuple[str, Any]]] = {
        nn.Linear: [("in_features", 7), ("out_features", 7)],
        nn.Softplus: [("beta", 2.0), ("threshold", 0.1)],
        nn.GELU: [("approximate", "tanh")],
        nn.Conv1d: [
            ("padding", (0,)),
            ("padding", "same"),
            ("padding", 1),
            ("stride", (2,)),
            ("stride", 2),
            ("dilation", (2,)),
            ("kernel_size", (2,)),
            ("in_channels", 5),
            ("out_channels", 5),
            ("padding_mode", "circular"),
        ],
        nn.LayerNorm: [("eps", 0.5)],
        nn.Dropout: [("p", 0.5), ("training", True)],
        nn.Flatten: [("start_dim", 2), ("end_dim", 1)],
        Polynomial: [("coefficients", (0.0, 0.5, 3.0))],
        Conv1dTwoLayer: [
            ("positions", 2),
            ("channels", 1),
            ("kernel_size", 2),
            ("d", 6),
            ("activation", "erf"),
            ("act", nn.ReLU()),
            ("shared", False),
        ],
    }
    if type(part) in choices:
        setattr(part, *rng.choice(choices[type(part)]))


def another_part(model: nn.Module, rng: random.Random) -> None:
    """Exchanges, ties or repeats a layer."""
    if not isinstance(model, nn.Sequential) or len(model._modules) < 3:
        return
    key = rng.choice(list(model._modules))
    if type(model._modules[key]) in (nn.Tanh, nn.ReLU, nn.Sigmoid):
        model._modules[key] = rng.choice(
            [nn.Hardtanh(), nn.ELU(), nn.Sequential(nn.Tanh(), nn.Tanh())]
        )


def reweighted(model: nn.Module, rng: random.Random) -> None:
    for p in model.parameters():
        p.data = p.data * rng.choice([0.0, 1.0, -2.0])


def dtype(model: nn.Module, rng: random.Random) -> None:
    """Makes a part compute in float32 inside."""
    part = _part(model, rng)
    forward = part.forward

    def rounded(x: Tensor) -> Tensor:
        y = forward(x)
        return y.float().to(y.dtype) if y.is_floating_point() else y

    part.forward = rounded  # type: ignore[method-assign]


MUTATIONS: dict[str, Mutation] = {
    f.__name__: f
    for f in (
        instance_forward,
        instance_call,
        compiled_call,
        subclass,
        weight_of_another_shape,
        plain_tensor,
        tensor_subclass,
        hook,
        global_hook,
        parametrized,
        class_patch,
        class_attribute,
        function_patch,
        attribute,
        another_part,
        reweighted,
        dtype,
    )
}
