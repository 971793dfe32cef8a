"""The tensors of a model's output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def output_leaves(output: object) -> list[Tensor]:
    """The tensors of a model's output, in order: a tensor, or nested tuples, lists and mappings.

    Raises:
        TypeError: the output contains anything other than floating-point tensors.
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


def dense(gradient: Tensor) -> Tensor:
    """A gradient as a dense tensor: embeddings with ``sparse=True`` have sparse ones."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()
