"""Parts of models: layers and tensors with initial values from a generator, and checks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llr.inputs import gate
from llr.inputs.activations import activation_layer
from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.mlp import SETTINGS
from llr.inputs.tensors import as_double


def linear(
    i: int, o: int, bias: bool, dtype: torch.dtype | None, generator: torch.Generator | None
) -> nn.Linear:
    """A linear layer with initial values distributed as torch's, from a generator."""
    layer = nn.utils.skip_init(nn.Linear, i, o, bias=bias, dtype=dtype)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if bias:
        bound = 1 / math.sqrt(i)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def normal(
    shape: tuple[int, ...],
    scale: float,
    dtype: torch.dtype | None,
    generator: torch.Generator | None,
) -> nn.Parameter:
    """A parameter of normally distributed numbers with this standard deviation."""
    return nn.Parameter(torch.randn(*shape, dtype=dtype, generator=generator) * scale)


def departure_from(model: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why a module computes something other than its class `kind`, for which closed forms hold; else None."""
    why = gate.parts_departure(model)
    if why:
        return why
    if type(model).forward is not kind.forward:
        return "a forward of its own"
    act, named = getattr(model, "act", None), getattr(model, "activation", None)
    if act is not None and isinstance(named, str):
        settings = SETTINGS.get(type(act), {})
        if type(act) is not type(activation_layer(named)) or any(
            getattr(act, setting) != expected for setting, expected in settings.items()
        ):
            return f"{act} as its activation, not {named!r}"
    lost = [name for name in getattr(kind, "TENSORS", ()) if name not in model._parameters]
    if lost:
        return f"{lost[0]!r}, which is no parameter any more"
    misfit = getattr(kind, "misfit", None)
    return (misfit(model) or None) if misfit else None


def check_memory(numbers: int, dtype: torch.dtype | None) -> None:
    """Refuse a model with more parameters than fit the memory budget.

    Raises:
        ValueError: names the number of parameters, their bytes and the budget.
    """
    device = torch.device("cpu")
    nbytes = numbers * (dtype or torch.get_default_dtype()).itemsize
    if not fits(nbytes, device):
        raise ValueError(
            f"a model of {numbers:,} parameters takes {format_bytes(nbytes)}, more than the memory budget of "
            f"{format_bytes(memory_budget(device))}; give smaller sizes, or more memory "
            "(llr.set_memory_budget, LLR_MEMORY_BUDGET)"
        )


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a size that is not a positive integer."""
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} is {size!r}; expected a positive integer")


def check_widths(widths: Sequence[int]) -> None:
    """Raise ValueError unless `widths` are at least two positive integers."""
    if len(widths) < 2 or any(type(w) is not int or w < 1 for w in widths):
        raise ValueError(
            f"widths are {widths!r}; expected at least two positive integers, such as [2, 3, 1]"
        )


def check_tensors(**tensors: Tensor | None) -> None:
    """Raise TypeError unless these are floating-point tensors of one dtype and device; None is skipped."""
    given = {name: t for name, t in tensors.items() if t is not None}
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is {type(t).__name__}; expected a tensor (torch.as_tensor)")
        if not t.is_floating_point():
            raise TypeError(f"{name} is {t.dtype}; expected floating point{as_double(name, t)}")
    kinds = {name: f"{t.dtype} on {t.device}" for name, t in given.items()}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise TypeError(f"{found}; expected one dtype and one device")


def matrix_shape(name: str, t: Tensor, shape: str) -> tuple[int, int]:
    """The shape of a matrix; `shape` is the expected shape as text."""
    if t.dim() != 2 or not t.numel():
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected a matrix {shape}, not empty")
    return t.shape[0], t.shape[1]


def check_shape(name: str, t: Tensor | None, expected: tuple[int, ...], why: str) -> None:
    """Refuse a tensor of another shape; `why` explains the expected shape."""
    if t is not None and tuple(t.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {expected}, {why}")
