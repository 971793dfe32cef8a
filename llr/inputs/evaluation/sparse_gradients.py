"""Evaluates embeddings that request sparse gradients with dense gradients, which have the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

# The position of the argument `sparse` in functions that take it by position.
_SPARSE_AT: dict[Any, int] = {
    F.embedding: 6,
    F.embedding_bag: 7,
    torch.embedding: 4,
    torch.embedding_bag: 5,
}


def has_sparse_gradients(model: object) -> bool:
    """Whether a layer of the model requests sparse gradients."""
    return isinstance(model, nn.Module) and any(
        getattr(module, "sparse", False) is True for module in model.modules()
    )


def dense_gradients(wanted: bool) -> AbstractContextManager[object]:
    """A context in which embeddings have dense gradients if `wanted`; a null context otherwise."""
    return _Dense() if wanted else nullcontext()


class _Dense(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        at = _SPARSE_AT.get(func)
        if at is not None:
            if len(args) > at:
                args = (*args[:at], False, *args[at + 1 :])
            elif "sparse" in kwargs:
                kwargs["sparse"] = False
        return func(*args, **kwargs)
