"""The slow, obviously right Jacobian, to compare everything else with.

:func:`jacobian` asks autograd for one number's gradient at a time: one sample, one output. It knows no
batching trick, no layout trick and no model structure, so where it and :func:`llr.jacobian` agree, both are
believed. :func:`mlp_jacobian` is the native operator's formula in plain torch operations, under the same
name and with the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llr.inputs.evaluation.forward_errors import explained
from llr.inputs.evaluation.precision import Precision
from llr.inputs.evaluation.private import Private
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.tensors import refuse_meta

Function = Callable[[Mapping[str, Tensor], Tensor], object]
Model = nn.Module | Function


@outside_inference_mode
def jacobian(model: Model, x: Tensor, params: Mapping[str, Tensor] | None = None) -> Tensor:
    """Derivatives of each output of each sample with respect to each parameter, one gradient at a time.

    Args:
        model: a module, or a callable f(params, x).
        x: (n, ...) samples. Each is passed alone, as a batch of one.
        params: for a callable, the parameters; for a module, values for some or all of its parameters
            (default: its trainable ones as they are).

    Returns:
        (n, q, P), in the dtype of the parameters. With n = 0 there is no output to count, and q is 0.

    Example:
        >>> import torch, llr
        >>> x = torch.tensor([[2.0, 3.0]])
        >>> llr.inputs.evaluation.reference.jacobian(torch.nn.Linear(2, 1), x)
        tensor([[[2., 3., 1.]]])
    """
    if params is None:
        assert isinstance(model, nn.Module), "a callable needs params"
        params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, t in (("x", x), *((f"parameter {name!r}", p) for name, p in params.items())):
        refuse_meta(name, t)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    call = _on_copies(model) if isinstance(model, nn.Module) else model
    with explained(x):
        rows = [
            torch.stack(
                [torch.cat([g.flatten() for g in row]) for row in sample_rows(call, leaves, xi)]
            )
            for xi in x
        ]
    if rows:
        return torch.stack(rows)
    first = next(iter(leaves.values()))
    return first.new_zeros(0, 0, sum(p.numel() for p in leaves.values()))


def _on_copies(model: nn.Module) -> Function:
    private = Private(model, None)

    def call(params: Mapping[str, Tensor], x: Tensor) -> object:
        copy = private.copy(params)
        with Precision(next(iter(params.values())).dtype, raised=False):
            return copy(x)

    return call


def sample_rows(
    model: Function, params: Mapping[str, Tensor], sample: Tensor, *, create_graph: bool = False
) -> Iterator[list[Tensor]]:
    """For one sample (without batch dimension), the gradients of its outputs in order, per parameter."""
    with torch.enable_grad():
        sample = sample.clone()  # a forward may work in place
        output = model(params, sample[None])
        values = torch.cat([leaf.flatten() for leaf in output_leaves(output)]).unbind()
    tensors = list(params.values())
    for value in values:
        if not value.requires_grad:
            yield [torch.zeros_like(p) for p in tensors]
            continue
        gradients = torch.autograd.grad(
            value, tensors, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        yield [
            torch.zeros_like(p) if g is None else dense(g)
            for g, p in zip(gradients, tensors, strict=True)
        ]


def dense(gradient: Tensor) -> Tensor:
    """A gradient as a dense tensor: embeddings with ``sparse=True`` have sparse ones."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def output_leaves(output: object) -> list[Tensor]:
    """The tensors of a model's output: a tensor, or nested tuples, lists and mappings, in their order.

    Raises:
        TypeError: something else than floating-point tensors is among them.
    """
    if isinstance(output, Tensor):
        if not output.is_floating_point():
            raise TypeError(
                f"the model's output is a tensor of {output.dtype}; expected floating point"
                + (" (torch.view_as_real(output))" if output.is_complex() else "")
            )
        return [output]
    if isinstance(output, Mapping):
        return [leaf for value in output.values() for leaf in output_leaves(value)]
    if isinstance(output, tuple | list):
        return [leaf for value in output for leaf in output_leaves(value)]
    if output is None:
        return []
    raise TypeError(
        f"the model's output holds a {type(output).__name__}; expected a tensor, or tuples, lists and "
        "mappings of tensors"
    )


def _gauss_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def _gauss_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _sech_squared(z: Tensor) -> Tensor:
    e = torch.exp(-2 * z.abs())
    return 4 * e / (1 + e) ** 2


def _logistic_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "identity": (lambda z: z, torch.ones_like),
    "tanh": (torch.tanh, _sech_squared),
    "sigmoid": (torch.sigmoid, _logistic_slope),
    "relu": (torch.relu, lambda z: (z > 0).to(z.dtype)),
    # As torch.nn.Softplus is by default: the identity beyond 20.
    "softplus": (F.softplus, lambda z: torch.where(z > 20, 1.0, torch.sigmoid(z))),
    "gelu": (lambda z: z * _gauss_cdf(z), lambda z: _gauss_cdf(z) + z * _gauss_density(z)),
    "silu": (
        lambda z: z * torch.sigmoid(z),
        lambda z: torch.sigmoid(z) + z * _logistic_slope(z),
    ),
    "erf": (torch.erf, lambda z: torch.exp(-z * z) * (2 / math.sqrt(math.pi))),
    "sin": (torch.sin, torch.cos),
}
"""name -> (sigma, sigma'), the native table's twin."""


def mlp_jacobian(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str,
    columns: Sequence[int] | None = None,
) -> Tensor:
    """``torch.ops.llr.mlp_jacobian`` in plain torch operations; any device, differentiable.

    Args:
        x: (n, d), or (B, n, d).
        weights: per layer (out, in), or (B, out, in).
        biases: per layer (out) or (B, out), or None.
        activation: a name in :data:`ACTIVATIONS`, applied after every layer but the last.
        columns: first column of each layer's weight and bias (weight 0, bias 0, weight 1, ...), -1 to leave
            a tensor out; by default all of them in this order.

    Returns:
        (n, q, P), or (B, n, q, P).

    Example:
        >>> import torch, llr
        >>> llr.inputs.evaluation.reference.mlp_jacobian(torch.tensor([[2.0]]), [torch.tensor([[5.0]])], [None], "tanh")
        tensor([[[2.]]])
    """
    sigma, slope = ACTIVATIONS[activation]
    inputs, slopes = [x], []
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        z = inputs[-1] @ w.mT
        if b is not None:
            z = z + b.unsqueeze(-2)
        inputs.append(sigma(z))
        slopes.append(slope(z))
    outputs = weights[-1].shape[-2]
    batch = torch.broadcast_shapes(x.shape[:-2], weights[0].shape[:-2])
    rows = (*batch, x.shape[-2], outputs)
    delta = torch.eye(outputs, dtype=x.dtype, device=x.device).expand(*rows, outputs)
    blocks: list[Tensor] = []
    for layer in reversed(range(len(weights))):
        bias = biases[layer]
        if bias is not None:
            blocks.append(delta)
        outer = delta.unsqueeze(-1) * inputs[layer].unsqueeze(-2).unsqueeze(-2)
        blocks.append(outer.flatten(-2))
        if layer > 0:
            delta = (delta @ weights[layer].unsqueeze(-3)) * slopes[layer - 1].unsqueeze(-2)
    blocks.reverse()
    if columns is not None:
        present = [c for layer, b in enumerate(biases) for c in _places(columns, layer, b)]
        placed = sorted((c, i) for i, c in enumerate(present) if c >= 0)
        blocks = [blocks[i] for _, i in placed]
    return torch.cat([block.expand(*rows, block.shape[-1]) for block in blocks], dim=-1)


def _places(columns: Sequence[int], layer: int, bias: Tensor | None) -> list[int]:
    weight = columns[2 * layer]
    return [weight] if bias is None else [weight, columns[2 * layer + 1]]
