"""The inputs of each layer, and the derivatives of the model's outputs with respect to the layer's outputs.

A layer's weight is used at positions t (the tokens of a sequence, the positions of a filter). The derivative
of output j of sample i with respect to the weight is the sum over t of delta[i, j, t] a[i, t]', with a the
layer's input and delta the derivative with respect to the layer's output. For an MLP both are computed from
its layers; for other modules by hooks and one backward pass per output.

For every chunk of samples the result of the hooks is compared with autograd's derivative of one combination
of the outputs. The comparison fails for a parameter that is also used where no hook sees it.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from llr.inputs.evaluation.forward_errors import derivatives
from llr.inputs.evaluation.outputs import output_leaves
from llr.inputs.evaluation.surroundings import closed
from llr.inputs.overwrites import overwriting
from llr.inputs.parameters import Columns
from llr.inputs.probe import probe
from llr.inputs.problem import Problem
from llr.jacobians.kinds import Kind, kind_of
from llr.operators.formula import ACTIVATIONS


class Signal(NamedTuple):
    """A layer's signals for some samples, in the groups of its weight (filters may have several)."""

    delta: Tensor
    """(samples, q, groups, T, h)"""
    a: Tensor
    """(samples, groups, T, w); for a vocabulary indices (samples, 1, T, 1), -1 for none."""


@dataclass(frozen=True)
class Layer:
    """A module's weight and bias whose derivatives are sums of outer products; see :class:`Signal`."""

    path: str
    weight: str | None
    """The name of the weight, None if it is missing or no column; its shape is (groups * h, w)."""
    bias: str | None
    groups: int
    positions: int
    """T, for the first samples that were run."""
    outputs: int
    """h"""
    inputs: int
    """w"""
    vocabulary: bool = False
    """Whether it looks up rows of its weight, so that the weight is (w, h)."""

    @property
    def names(self) -> list[str]:
        """The names of its parameters."""
        return [name for name in (self.weight, self.bias) if name is not None]


@dataclass
class Layers:
    """The layers of a model at one parameter point, and the parameters outside them."""

    problem: Problem
    outputs: int
    """q"""
    known: list[Layer]
    others: list[str]
    """Parameters whose columns :mod:`llr.jacobian` must compute."""

    def signals(self, x: Tensor, layers: Sequence[Layer]) -> dict[Layer, Signal]:
        """The signals of these layers for some samples, without the layers whose signals are wrong."""
        if self.problem.mlp is not None:
            return _chain(self.problem, x, layers)
        return _hooked(self.problem, x, layers)


def at_point(problem: Problem, index: int) -> Problem:
    """The problem at one of its parameter points."""
    if problem.columns.points is None:
        return problem
    return replace(problem, columns=Columns(problem.point(index), problem.columns.fixed))


def read_layers(problem: Problem, outputs: int, *, every: bool = True) -> Layers:
    """Divide the columns of a problem at one point into layers and others; runs the model on two samples.

    Args:
        problem: a checked problem at a single parameter point, with at least one sample.
        outputs: q.
        every: whether to look for layers; if False, all parameters are others.
    """
    names = problem.columns.values
    if problem.mlp is not None and every:
        names_of = [_selected(name, names) for name, _ in problem.chain()]
        pairs = zip(names_of[::2], names_of[1::2], pairwise(problem.mlp.widths), strict=True)
        layers = [Layer(str(i), wn, bn, 1, 1, h, w) for i, (wn, bn, (w, h)) in enumerate(pairs)]
        return Layers(problem, outputs, [layer for layer in layers if layer.names], [])
    known: list[Layer] = []
    if isinstance(problem.model, nn.Module) and every:
        candidates = _candidates(problem, problem.model)
        for layer, signal in _hooked(problem, problem.x[:2], candidates).items():
            known.append(replace(layer, positions=signal.delta.shape[3]))
    covered = {name for layer in known for name in layer.names}
    return Layers(problem, outputs, known, [name for name in names if name not in covered])


def _selected(name: str | None, names: Mapping[str, Tensor]) -> str | None:
    return name if name in names else None


def _chain(problem: Problem, x: Tensor, layers: Sequence[Layer]) -> dict[Layer, Signal]:
    assert problem.mlp is not None
    sigma, slope = ACTIVATIONS[problem.mlp.activation]
    tensors = [None if t is None else t.detach() for _, t in problem.chain()]
    weights, biases = cast(list[Tensor], tensors[::2]), tensors[1::2]
    inputs, slopes = [x.detach()], []
    found: dict[Layer, Signal] = {}
    with torch.no_grad(), closed():
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            z = F.linear(inputs[-1], w, b)
            inputs.append(sigma(z))
            slopes.append(slope(z))
        q = len(weights[-1])
        delta = torch.eye(q, dtype=x.dtype, device=x.device).expand(len(x), q, q)
        wanted = {layer.path: layer for layer in layers}
        for i in reversed(range(len(weights))):
            if str(i) in wanted:
                found[wanted[str(i)]] = Signal(delta[:, :, None, None], inputs[i][:, None, None])
            if i > 0:
                delta = (delta @ weights[i]) * slopes[i - 1][:, None]
    return {layer: found[layer] for layer in layers}


def _candidates(problem: Problem, model: nn.Module) -> list[Layer]:
    """Layers by the class of their modules; a parameter of two modules belongs to the others."""
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    layers = []
    for path, module in model.named_modules():
        kind = kind_of(module)
        if kind is None:
            continue
        own = [module._parameters.get(name) for name in ("weight", "bias")]
        weight, bias = (
            problem.names.get(id(p)) if p is not None and owners[id(p)] == 1 else None for p in own
        )
        weight, bias = (_selected(name, problem.columns.values) for name in (weight, bias))
        if own[0] is None or (weight is None and bias is None):
            continue
        groups, outputs, inputs = kind.sizes(module)
        layers.append(Layer(path, weight, bias, groups, 1, outputs, inputs, kind.vocabulary))
    return layers


@contextlib.contextmanager
def _recording(
    model: nn.Module, layers: Sequence[Layer]
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """A context that records (input of the weight, output) of each call of the layers' modules.

    A layer that is called inside a transform of torch.func is removed at the end, since its tensors are not
    valid outside.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {layer.path: [] for layer in layers}
    transformed: set[str] = set()

    def hook(path: str, kind: Kind) -> Callable[..., Tensor]:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            if any(map(is_functorch_wrapped_tensor, (output, *args))):
                transformed.add(path)
                return output
            with torch.no_grad():
                calls[path].append((kind.read(module, [*args, *kwargs.values()][0]), output))
            return output.clone()  # so that in-place operations change another tensor

        return note

    modules = {layer.path: model.get_submodule(layer.path) for layer in layers}
    handles = [
        # Before the model's own hooks, to record the module's own output.
        module.register_forward_hook(
            hook(path, cast(Kind, kind_of(module))), prepend=True, with_kwargs=True
        )
        for path, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for path in transformed:
            del calls[path]


def _hooked(problem: Problem, x: Tensor, layers: Sequence[Layer]) -> dict[Layer, Signal]:
    if not layers:
        return {}
    leaves = {name: v.detach().requires_grad_() for name, v in problem.columns.values.items()}
    place = functools.partial(overwriting, problem)
    with torch.enable_grad(), closed(), derivatives(x, overwriting=place):
        model = problem.copy(leaves)
        with _recording(model, layers) as calls:
            parts = output_leaves(problem.run(model, x.detach().clone()))
        layers = [layer for layer in layers if layer.path in calls]
        y = torch.cat([part.reshape(len(x), -1) for part in parts], 1)
        if len(x) == len(problem.x) > 2:
            probe(problem).together = y.detach()
        mix = torch.linspace(0, 1, y.numel(), dtype=y.dtype, device=y.device).cos().view_as(y)
        names = [name for layer in layers for name in layer.names]
        truth = dict(
            zip(names, _gradients((mix * y).sum(), [leaves[n] for n in names]), strict=True)
        )
        outs = [out for noted in calls.values() for _, out in noted]
        by_output = [_gradients(y[:, j].sum(), outs) for j in range(y.shape[1])]
    by_call = iter(zip(*by_output, strict=True))  # for each recorded call, all outputs
    found: dict[Layer, Signal] = {}
    for layer in layers:
        inputs = [a for a, _ in calls[layer.path]]
        signal = _signal(model, layer, len(x), inputs, [next(by_call) for _ in inputs])
        if signal is not None and _agrees(layer, signal, mix, truth):
            found[layer] = signal
    return found


class _SamplesNotFirst(Exception):
    """A tensor that cannot be divided among the samples."""


def _signal(
    model: nn.Module,
    layer: Layer,
    n: int,
    inputs: Sequence[Tensor],
    deltas: Sequence[Sequence[Tensor]],
) -> Signal | None:
    """One signal for all calls of a layer, which become further positions; None if samples are not first."""
    first = cast(Kind, kind_of(model.get_submodule(layer.path))).first

    def laid_out(t: Tensor, width: int) -> Tensor:
        """(n, groups, T, width): dimensions between samples and features are positions."""
        if t.numel() == 0 or t.numel() % (n * layer.groups * width) or (first and len(t) % n):
            raise _SamplesNotFirst
        if first:
            t = t.reshape(n, len(t) // n, layer.groups, width, -1).permute(0, 2, 1, 4, 3)
            return t.reshape(n, layer.groups, -1, width)
        return t.reshape(n, -1, layer.groups, width).transpose(1, 2)

    width = 1 if layer.vocabulary else layer.inputs
    try:
        a = [laid_out(t, width) for t in inputs]
        delta = [torch.stack([laid_out(d, layer.outputs) for d in call], 1) for call in deltas]
    except _SamplesNotFirst:
        return None
    if not a or any(d.shape[3] != t.shape[2] for d, t in zip(delta, a, strict=True)):
        return None
    return Signal(torch.cat(delta, 3), torch.cat(a, 2))


def _agrees(layer: Layer, signal: Signal, mix: Tensor, truth: Mapping[str, Tensor]) -> bool:
    """Whether the signals and autograd give the same derivative of one combination of all outputs."""
    delta, a = torch.einsum("nq,nqgth->ngth", mix, signal.delta), signal.a
    pairs = []
    if layer.weight is not None:
        if layer.vocabulary:
            rows = delta.new_zeros(layer.inputs + 1, layer.outputs)  # the last row: index -1
            rows.index_add_(0, a.flatten() % len(rows), delta.flatten(0, -2))
            own, size = rows[:-1], delta.norm(dim=-1).sum()
        else:
            own = torch.einsum("ngth,ngtw->ghw", delta, a)
            size = (delta.norm(dim=-1) * a.norm(dim=-1)).sum()
        pairs.append((own, truth[layer.weight], size))
    if layer.bias is not None:
        pairs.append((delta.sum((0, 2)), truth[layer.bias], delta.norm(dim=-1).sum()))
    # The rounding error is relative to the sum of absolute values of all terms: the sum itself may vanish.
    tolerance = torch.finfo(delta.dtype).eps ** 0.75
    return all(
        bool(
            (own.flatten() - true.flatten()).abs().max() <= tolerance * size.clamp(true.abs().max())
        )
        for own, true, size in pairs
    )


def _gradients(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients; zeros for a tensor on which the value does not depend."""
    wanted = [t for t in tensors if t.requires_grad]
    grads: Iterator[Tensor | None] = iter(())
    if value.requires_grad and wanted:
        grads = iter(torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True))
    found = [next(grads, None) if t.requires_grad else None for t in tensors]
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]
