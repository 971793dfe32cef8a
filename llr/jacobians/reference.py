"""A slow and simple Jacobian, to compare all other methods with.

:func:`jacobian` computes the gradient of one number at a time by autograd: one sample, one output. It uses
neither batching nor special layouts nor the structure of the model. Agreement of :func:`llr.jacobian` with it
is therefore independent evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from llr.inputs.evaluation.forward_errors import explained
from llr.inputs.evaluation.outputs import dense, output_leaves
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
        x: (n, ...) samples. Each is passed as a batch of one.
        params: for a callable, the parameters; for a module, values for some or all of its parameters
            (default: the current values of the trainable ones).

    Returns:
        (n, q, P), in the dtype of the parameters. If n = 0 the number of outputs is unknown, and q is 0.

    Example:
        >>> import torch
        >>> from llr.jacobians import reference
        >>> x = torch.tensor([[2.0, 3.0]])
        >>> reference.jacobian(torch.nn.Linear(2, 1), x)
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
    """The gradients of one sample's outputs, in order, per parameter; the sample has no batch dimension."""
    with torch.enable_grad():
        sample = sample.clone()  # a forward may change its input in place
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
