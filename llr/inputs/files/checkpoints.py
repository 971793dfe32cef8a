"""Loads weights from files into a model: state dicts, as they are or within a checkpoint."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from llr.inputs.files.arrays import describe, load_safetensors, read_torch, some

_EXTRA_STATE = "_extra_state"
# The prefixes of DataParallel and similar wrappers, torch.compile, FSDP, activation checkpointing.
_OF_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_HOW_TO_SAVE = "torch.save(model.state_dict(), ...)"


def load_weights(
    model: nn.Module, path: Path, *, key: str | None = None, exact_dtype: bool = False
) -> None:
    """Load the values of a file into a model: all of them or, if something does not fit, none.

    Accepts what `model.load_state_dict(strict=True)` accepts. A prefix that wrappers add to names is removed,
    and a state dict that a checkpoint has under a key is found if it is the only one; a warning says so.

    Args:
        model: changed in place.
        path: .safetensors, or .pt/.pth that ``weights_only=True`` loads.
        key: where in the checkpoint the state dict is, such as ``model`` or ``ema.shadow``.
        exact_dtype: whether dtypes must be equal to the model's.

    Raises:
        ValueError: an unreadable file, no state dict or several in it, or names, shapes or dtypes that differ
            from the model's; lists them.
    """
    try:
        found, where = _state_dict(_read(path), model, key)
        values, prefix = _named_as_in(model, found)
        problems = _problems(model, values, exact_dtype)
        if any(problems.values()) and not _torch_takes(model, values, problems):
            within = f"under {where!r} " if where else ""
            if prefix:
                within += f"without their prefix {prefix} "
            listed = "; ".join(
                f"{kind}: {some(names)}" for kind, names in problems.items() if names
            )
            raise ValueError(f"{within}do not match the model; {listed}")
    except ValueError as err:
        colon = "" if str(err).startswith(("do not", "under", "without")) else ":"
        raise ValueError(f"weights {path}{colon} {err}") from err
    if where and where != key:
        warnings.warn(f"weights {path}: taken from its entry {where!r}", stacklevel=2)
    if prefix:
        warnings.warn(
            f"weights {path}: names are compared without their prefix {prefix}", stacklevel=2
        )
    model.load_state_dict(values, strict=False)


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    if path.suffix not in (".pt", ".pth", ".ckpt"):
        raise ValueError(
            f"expected .safetensors, .pt, .pth or .ckpt, got {path.suffix or 'no suffix'!r}"
        )
    return read_torch(path, _HOW_TO_SAVE)


def _state_dict(found: object, model: nn.Module, key: str | None) -> tuple[dict[str, Any], str]:
    """The state dict of a file, and its key in the file."""
    if key is not None:
        return _under(found, key), key
    if not isinstance(found, Mapping):
        raise ValueError(
            f"expected a state dict of tensors, got {describe(found)}; save it with {_HOW_TO_SAVE}"
        )
    if _is_state_dict(found) or not found:
        return _plain(found), ""
    nested = {str(name): value for name, value in found.items() if _is_state_dict(value)}
    if len(nested) > 1:  # such as an optimizer's tensors or averages: take the model's names
        own = set(model.state_dict())
        nested = {n: v for n, v in nested.items() if own & set(_named_as_in(model, _plain(v))[0])}
    if len(nested) == 1:
        name, value = next(iter(nested.items()))
        return _plain(value), name
    choice = (
        f"--key names one of {some(list(nested))}" if nested else f"save it with {_HOW_TO_SAVE}"
    )
    raise ValueError(f"expected a state dict of tensors, got {describe(found)}; {choice}")


def _under(found: object, key: str) -> dict[str, Any]:
    value = found
    rest = key
    while rest:
        if not isinstance(value, Mapping):
            raise ValueError(f"--key is {key!r}, but there is {describe(value)} before {rest!r}")
        if rest in value:
            value, rest = value[rest], ""
            break
        part, _, after = rest.partition(".")
        if part not in value or not after:
            raise ValueError(f"no {rest!r} for --key {key}; it has {describe(value)}")
        value, rest = value[part], after
    if not isinstance(value, Mapping) or not _is_state_dict(value):
        raise ValueError(
            f"--key {key} leads to {describe(value)}; expected a state dict of tensors"
        )
    return _plain(value)


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and isinstance(entry, Tensor) for name, entry in value.items()
    )


def _plain(value: Mapping[Any, Any]) -> dict[str, Any]:
    """The entries to load: tensors, and the extra state of modules."""
    return {
        str(name): entry
        for name, entry in value.items()
        if isinstance(entry, Tensor) or str(name).endswith(_EXTRA_STATE)
    }


def _named_as_in(model: nn.Module, values: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The values by the model's names, and the prefix that was removed."""
    own = set(model.state_dict())
    if set(values) <= own:
        return values, ""
    # Wrappers add their prefix to all names, or to those of the modules that they wrap.
    bare = {_without_wrappers(name): name for name in own}
    translated = {bare.get(_without_wrappers(name), name): v for name, v in values.items()}
    one_to_one = len(bare) == len(own) and len(translated) == len(values)
    if one_to_one and len(own & set(translated)) > len(own & set(values)):
        parts = {part for name in {*values} ^ {*translated} for part in name.split(".")}
        return translated, " and ".join(repr(f"{p}.") for p in _OF_WRAPPERS if p in parts)
    prefix, rest = "", values
    while (
        rest and len({name.partition(".")[0] for name in rest}) == 1 and all("." in n for n in rest)
    ):
        prefix += next(iter(rest)).partition(".")[0] + "."
        rest = {name.partition(".")[2]: v for name, v in rest.items()}
        if set(rest) <= own:
            return rest, repr(prefix)
    return values, ""


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _OF_WRAPPERS)


def _problems(model: nn.Module, values: dict[str, Any], exact: bool) -> dict[str, list[str]]:
    own = model.state_dict(keep_vars=True)
    # A tied parameter is one tensor with several names, of which files may have only one.
    present = {id(own[name]) for name in values if name in own}
    # The count of batches is not used in evaluation, and files written before torch 0.4.1 lack it.
    optional = {
        id(module.num_batches_tracked)
        for module in model.modules()
        if isinstance(module, _NormBase)
    }
    both = {
        name: (value, own[name])
        for name, value in values.items()
        if isinstance(value, Tensor) and isinstance(own.get(name), Tensor)
    }
    sized = {k: v for k, v in both.items() if not is_lazy(v[1])}
    return {
        "missing": [name for name, v in own.items() if id(v) not in present | optional],
        "unexpected": [name for name in values if name not in own],
        "of another shape": [
            f"{name} {tuple(value.shape)} (the model has {tuple(mine.shape)})"
            for name, (value, mine) in sized.items()
            if value.shape != mine.shape and not (mine.dim() == 0 and value.shape == (1,))
        ],
        "of another dtype": [
            f"{name} {value.dtype} (the model has {mine.dtype})"
            for name, (value, mine) in both.items()
            if not _fits_in(value, mine, exact)
        ],
    }


def _fits_in(value: Tensor, own: Tensor, exact: bool) -> bool:
    return value.dtype == own.dtype or (
        not exact and value.dtype.is_floating_point and own.dtype.is_floating_point
    )


def _torch_takes(
    model: nn.Module, values: dict[str, Any], problems: Mapping[str, list[str]]
) -> bool:
    """Whether the model itself translates names when it loads, as modules may do."""
    if problems["of another shape"] or problems["of another dtype"]:
        return False
    try:
        copy.deepcopy(model).load_state_dict(values, strict=True)
    except Exception:  # llr lists the reasons itself
        return False
    return True
