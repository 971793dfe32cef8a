"""Reads a module as an MLP, if it is one.

An MLP here is a chain of ``nn.Linear`` layers with one activation of the table after every layer but the
last: an ``nn.Sequential`` (nested to any depth), or any module whose ``torch.fx`` trace is such a chain.
Layers that do not change the numbers (``nn.Identity``, dropout in evaluation mode, ``nn.Flatten`` first or
without effect) may be anywhere.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from llr.inputs import gate
from llr.inputs.activations import Erf, Sine
from llr.inputs.evaluation.trace import ChangedBuffer, UnknownTensor, traced
from llr.inputs.reading import Reading
from llr.operators.formula import ACTIVATIONS


class NotAnMLP(Exception):
    """The module is not an MLP that the native operator computes; the message says why."""


@dataclass
class MLP:
    """A chain of linear layers; the tensors are the module's own."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    activation: str
    flattens: bool
    """Whether it flattens its input: samples may then have any shape of the right size."""
    traced: bool = False
    """Whether it was read from a trace, which does not show everything (for example ``torch.no_grad``)."""
    parameters: dict[str, Tensor] | None = field(default=None, compare=False, repr=False)
    """``dict(model.named_parameters())`` of a module whose reading is kept; see :mod:`llr.inputs.reading`."""
    confirmed: set[object] = field(default_factory=set, compare=False, repr=False)
    """Where a comparison of numbers has confirmed this reading; see :mod:`llr.inputs.agreement`."""

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden widths, outputs."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))

    @functools.cached_property
    def tensors(self) -> frozenset[int]:
        """The ``id()`` of each weight and bias."""
        return frozenset(id(t) for t in (*self.weights, *self.biases) if t is not None)

    def __str__(self) -> str:
        widths = "-".join(map(str, self.widths))
        return (
            f"{widths} {self.activation} MLP" if len(self.weights) > 1 else f"{widths} linear map"
        )


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None


_Link = _Linear | str
"""A link of the chain: a linear layer, the name of an activation, or one of the two strings below."""
_FLATTEN = "flatten"
_SQUEEZE = "squeeze"

_MODULES: dict[type[nn.Module], str] = {
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ReLU: "relu",
    nn.Softplus: "softplus",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    Erf: "erf",
    Sine: "sin",
}
SETTINGS: dict[type[nn.Module], dict[str, object]] = {
    nn.Softplus: {"beta": 1, "threshold": 20},
    nn.GELU: {"approximate": "none"},
}
"""The values that an activation's attributes must have for it to be the one of the table."""
_NO_SETTINGS: dict[str, object] = {}
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_FUNCTIONS: dict[Callable[..., Any], str] = {
    function: name
    for function, own, name in (
        (torch.tanh, "tanh", "tanh"),
        (F.tanh, "tanh", "tanh"),
        (torch.sigmoid, "sigmoid", "sigmoid"),
        (F.sigmoid, "sigmoid", "sigmoid"),
        (torch.special.expit, "special_expit", "sigmoid"),
        (torch.relu, "relu", "relu"),
        (F.relu, "relu", "relu"),
        (F.softplus, "softplus", "softplus"),
        (F.gelu, "gelu", "gelu"),
        (F.silu, "silu", "silu"),
        (torch.erf, "erf", "erf"),
        (torch.special.erf, "special_erf", "erf"),
        (torch.sin, "sin", "sin"),
    )
    if gate.is_original(function, own)
}
_READ = frozenset({*_MODULES, *_DROPOUT, nn.Linear, nn.Identity, nn.Flatten})
_METHODS = {"tanh", "sigmoid", "relu", "erf", "sin"}


def read_mlp(model: nn.Module) -> MLP:
    """Read the module as an MLP.

    Raises:
        NotAnMLP: it is not an MLP; the message names the first reason.
    """
    if why := gate.process_departure():
        raise NotAnMLP(why)
    known = _readings.get(id(model))
    if known is not None and known[0]() is model and known[1].holds(model):
        return known[2]
    links = _links_of_module(model, set())
    if links is None:
        return replace(_assemble(_links_of_trace(model)), traced=True)
    mlp, number = _assemble(links), id(model)
    reading = Reading(model, _DECIDING)
    if reading.usual:
        mlp.parameters = reading.parameters
        forget = weakref.ref(model, lambda _: _readings.pop(number, None))
        _readings[number] = forget, reading, mlp
    return mlp


_readings: dict[int, tuple[weakref.ref[nn.Module], Reading, MLP]] = {}
"""id of a model -> the model, what its reading depends on, and the result."""
_DECIDING = ("training", "p", "start_dim", "end_dim", "beta", "threshold", "approximate")


def _links_of_module(module: nn.Module, seen: set[type]) -> list[_Link] | None:
    """The links of a known module; None for a module with a forward of its own."""
    kind = type(module)
    chain = isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward
    known = chain or kind in _READ
    why = gate.departure(module, seen) if known else gate.call_departure(module)
    if why:
        raise NotAnMLP(f"{kind.__name__} has {why}")
    if chain:
        links: list[_Link] = []
        for child in module._modules.values():
            inner = _links_of_module(cast(nn.Module, child), seen)
            if inner is None:
                return None
            links += inner
        return links
    if kind is nn.Linear:
        parameters = module._parameters  # not through __getattr__: this runs in every call
        if parameters.get("weight") is None or "bias" not in parameters:
            raise NotAnMLP("a Linear's weight or bias is no parameter")
        return [_Linear(cast(Tensor, parameters["weight"]), parameters["bias"])]
    if kind is nn.Identity:
        return []
    if kind in _DROPOUT:
        if module.training and cast(float, module.p) > 0:
            raise NotAnMLP(f"{kind.__name__} is active")
        return []
    if kind is nn.Flatten:
        if [module.start_dim, module.end_dim] != [1, -1]:
            raise NotAnMLP("nn.Flatten of other dimensions than (1, -1)")
        return [_FLATTEN]
    for setting, expected in SETTINGS.get(kind, _NO_SETTINGS).items():
        found = getattr(module, setting)
        if isinstance(found, Tensor) or found != expected:
            raise NotAnMLP(f"{kind.__name__} with {setting}={found!r}, not {expected!r}")
    if kind in _MODULES:
        return [_MODULES[kind]]
    if kind.__module__.startswith("torch.nn.") and any(
        True for _ in module.parameters(recurse=False)
    ):
        raise NotAnMLP(f"{kind.__name__} is no linear layer")
    return None


def _links_of_trace(model: nn.Module) -> list[_Link]:
    """The links of the module's torch.fx trace.

    Each call makes a new trace, since what a forward does may depend on attributes that have changed.
    """
    seen: set[type] = set()
    for module in model.modules():
        _links_of_module(module, seen)  # may refuse the module before a costly trace
    try:
        graph = traced(model)
    except UnknownTensor:
        raise NotAnMLP("its forward uses a tensor that is neither parameter nor buffer") from None
    except ChangedBuffer as change:
        raise NotAnMLP(f"its forward changes the buffer {str(change)!r}") from None
    except Exception as error:  # anything that the user's forward raises for a symbolic input
        raise NotAnMLP(f"torch.fx cannot trace it ({type(error).__name__}: {error})") from error
    nodes = list(graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(inputs) != 1 and any(not node.args for node in inputs[1:]):
        raise NotAnMLP(f"its forward takes {len(inputs)} inputs")
    links: list[_Link] = []
    current = inputs[0]
    for node in nodes:
        if node.op in ("placeholder", "get_attr"):
            continue
        if node.op == "output":
            if node.args[0] is not current:
                raise NotAnMLP("its output is not the last link of a chain")
            continue
        if not node.args or node.args[0] is not current or _uses(node, current) != 1:
            raise NotAnMLP(f"{node.target} does not follow the link before it alone")
        links += _links_of_node(model, node)
        current = node
    return links


def _uses(node: fx.Node, other: fx.Node) -> int:
    return sum(other is a for a in node.args) + sum(other is a for a in node.kwargs.values())


def _links_of_node(model: nn.Module, node: fx.Node) -> list[_Link]:
    arguments = (*node.args[1:], *node.kwargs.values())
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        links = _links_of_module(module, set())
        if links is None:
            raise NotAnMLP(f"{type(module).__name__} is neither a linear layer nor in the table")
        return links
    if node.op == "call_function":
        if node.target is F.linear:
            named = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
            weight = _attribute(model, named["weight"])
            bias = named.get("bias")
            return [_Linear(weight, None if bias is None else _attribute(model, bias))]
        if node.target is torch.flatten and arguments == (1,):
            return [_FLATTEN]
        if node.target is torch.squeeze and arguments == (-1,):
            return [_SQUEEZE]
        if node.target is F.relu and set(node.kwargs) <= {"inplace"} and len(node.args) == 1:
            return ["relu"]
        if node.target is F.silu and set(node.kwargs) <= {"inplace"} and len(node.args) == 1:
            return ["silu"]
        if node.target is F.gelu and arguments in ((), ("none",)):
            return ["gelu"]
        name = _FUNCTIONS.get(node.target) if callable(node.target) else None
        if name is not None and not arguments:
            return [name]
    if node.op == "call_method":
        if node.target in _METHODS and not arguments:
            return [str(node.target)]
        if node.target == "flatten" and arguments == (1,):
            return [_FLATTEN]
        if node.target == "squeeze" and arguments == (-1,):
            return [_SQUEEZE]
    raise NotAnMLP(f"{node.target} with these arguments is not in the table")


def _attribute(model: nn.Module, argument: object) -> Tensor:
    """The tensor of a get_attr node of the trace."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        raise NotAnMLP("F.linear with computed weights")
    owner: Any = model
    for part in str(argument.target).split("."):
        owner = getattr(owner, part)
    if not isinstance(owner, Tensor):
        raise NotAnMLP(f"{argument.target} is no tensor")
    return owner


def _assemble(links: Sequence[_Link]) -> MLP:
    linears: list[_Linear] = []
    activations: list[str | None] = []  # after each linear layer
    for link in links:
        if isinstance(link, _Linear):
            linears.append(link)
            activations.append(None)
        elif link == _FLATTEN:
            continue  # first: the samples are flattened anyway; later: their shape is (n, h) already
        elif not linears:
            raise NotAnMLP(f"{link} before the first linear layer")
        elif link == _SQUEEZE:
            if link is not links[-1]:
                raise NotAnMLP("squeeze before the end")
        elif activations[-1] is not None:
            raise NotAnMLP(f"{link} after {activations[-1]}")
        else:
            activations[-1] = link
    if not linears:
        raise NotAnMLP("it has no linear layer")
    if activations[-1] is not None:
        raise NotAnMLP(f"{activations[-1]} after the last layer")
    if _SQUEEZE in links and (links.count(_SQUEEZE) > 1 or linears[-1].weight.shape[0] != 1):
        raise NotAnMLP("squeeze of other than a single output")
    for layer in linears:
        _check_linear(layer.weight, layer.bias)
    hidden = {a or "identity" for a in activations[:-1]}
    if len(hidden) > 1:
        raise NotAnMLP(f"its layers have different activations ({', '.join(sorted(hidden))})")
    tensors = [t for layer in linears for t in (layer.weight, layer.bias) if t is not None]
    if len({id(t) for t in tensors}) != len(tensors):
        raise NotAnMLP("a parameter stands in two places (tied weights)")
    for before, after in pairwise(linears):
        if before.weight.shape[0] != after.weight.shape[1]:
            raise NotAnMLP("consecutive layers do not fit each other")
    activation = hidden.pop() if hidden else "identity"
    assert activation in ACTIVATIONS
    return MLP(
        weights=tuple(layer.weight for layer in linears),
        biases=tuple(layer.bias for layer in linears),
        activation=activation,
        flattens=links[0] == _FLATTEN,
    )


def _check_linear(weight: Tensor, bias: Tensor | None) -> None:
    for tensor in (weight, bias):
        if tensor is not None and (why := gate.tensor_departure(tensor)):
            raise NotAnMLP(why)
    if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
        raise NotAnMLP(f"a linear layer whose weight and bias have shapes {shapes}")
