"""The operations of a forward on one symbolic input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from llr.inputs.evaluation.private import Private
from llr.inputs.evaluation.watch import keeping_random_state


class UnknownTensor(Exception):
    """A forward uses a tensor that is neither parameter nor buffer."""


class ChangedBuffer(Exception):
    """A forward changes a buffer, which the message names."""


def traced(model: nn.Module) -> fx.Graph:
    """The ``torch.fx`` graph of a module's forward, called with one argument.

    ``fx.Tracer.trace`` patches ``nn.Module`` while it runs, for all threads. Here a private copy runs
    instead. Its leaves (modules of torch.nn) record their own calls, and everything that forward writes stays
    in the copy.

    Raises:
        UnknownTensor: forward uses a tensor that is neither parameter nor buffer.
        ChangedBuffer: forward changes a buffer.
        Exception: any exception that forward raises for a symbolic input.
    """
    private = Private(model, None)
    copy = private.copy(
        {
            name: nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
            for name, p in model.named_parameters()
        }
    )
    tracer = _Tracer(copy)
    # Operations that do not depend on the input are executed.
    with keeping_random_state(torch.device("cpu")):
        graph = tracer.run()
    name = private.changed()
    if name is not None:
        raise ChangedBuffer(name)
    return graph


class _Tracer(fx.Tracer):
    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {}
        self._known = {id(t) for t in (*root.parameters(), *root.buffers())}

    def run(self) -> fx.Graph:
        for path, module in list(self.root.named_modules()):
            if self.is_leaf_module(module, path):
                module.__dict__["forward"] = self._noting(path)
        x = self.create_proxy("placeholder", "x", (), {})
        output = self.root(x)
        self.create_node("output", "output", (self.create_arg(output),), {})
        return self.graph

    def _noting(self, path: str) -> Callable[..., fx.Proxy]:
        def forward(*args: Any, **kwargs: Any) -> fx.Proxy:
            return self.create_proxy("call_module", path, args, kwargs)

        return forward

    def create_arg(self, a: Any) -> Any:
        """A node's argument; fx would store an unknown tensor on the module."""
        if isinstance(a, Tensor) and id(a) not in self._known:
            raise UnknownTensor
        return super().create_arg(a)
