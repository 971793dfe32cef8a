"""Loads models by name: widths, or an object in a Python module."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from llr.inputs.files.checkpoints import load_weights
from llr.inputs.named import (
    current_directory_importable,
    explained,
    named_object,
    program_arguments,
)
from llr.inputs.widths import names_widths, read_widths, require_memory
from llr.models.networks import mlp


def load_model(
    spec: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    key: str | None = None,
    activation: str = "tanh",
    seed: int = 0,
    dtype: torch.dtype | None = torch.float64,
) -> nn.Module:
    """The model that `spec` names, with the weights of a file or reproducible random ones.

    Args:
        spec: ``mlp:10-64-1`` for a fully connected network of these widths, with biases and
            `activation` between its layers; or ``module:name``, or ``file.py:name``, for a module-level
            ``nn.Module``, or a function or class that returns one when called without arguments. `name` may
            have dots, for attributes of a class. Modules are also found in the current directory.
        weights: a file .safetensors or .pt/.pth/.ckpt with a state dict that the model's ``load_state_dict``
            accepts: alone, under a key of a checkpoint, or with a prefix that a wrapper added to all names.
            One name of a tied parameter is enough.
        key: the key of the state dict in the file, if there are several.
        activation: tanh, sigmoid, relu, softplus, gelu (exact), silu, erf, sin or identity; only for
            ``mlp:``.
        seed: seeds torch's CPU generator while the model is built, so that random weights are
            reproducible; the generator's state is restored afterwards.
        dtype: of the parameters and floating buffers. None keeps the model's own; a weights file
            must then have that dtype.

    Raises:
        ValueError: a malformed spec, no object of that name, a file that cannot be read or does not match.
        TypeError: the object is not a module, nor a callable that returns one.
        ImportError: importing the module failed, or ended the program.
        RuntimeError: the callable raised an exception, or ended the program.

    Example:
        >>> from llr.models.load import load_model
        >>> [p.shape[0] for p in load_model("mlp:10-64-1").parameters()]
        [64, 64, 1, 1]
    """
    model: nn.Module
    if names_widths(spec):
        widths = read_widths(spec)
        require_memory(spec, widths)
        with _seeded(seed):
            model = mlp(widths, activation)
    else:
        model = _named_model(spec, seed)
    if dtype is not None:
        model = model.to(dtype)
    if weights is not None:
        load_weights(model, Path(weights), key=key, exact_dtype=dtype is None)
    return model


def _named_model(spec: str, seed: int) -> nn.Module:
    expected = (
        "module:callable, such as mypkg.models:build or models.py:build, or widths, such as "
        "mlp:10-64-1"
    )
    with current_directory_importable():
        with _seeded(seed):  # models may be made at import, which happens only once
            found = named_object(spec, "model", expected)
        if isinstance(found, nn.Module):
            return found
        if not callable(found):
            raise TypeError(
                f"model {spec!r} is {type(found).__name__}; expected an nn.Module or a callable that "
                "returns one"
            )
        calling = explained(f"model {spec!r}: calling it without arguments", RuntimeError)
        with calling, _seeded(seed), program_arguments(spec):
            model = found()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {spec!r} returned {type(model).__name__}; expected an nn.Module")
    return model


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the generators of GPUs.
        torch.default_generator.manual_seed(seed)
        yield
