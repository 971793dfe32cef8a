"""Copies of a module's structure that are run instead of the module.

``torch.func.functional_call`` puts other values into the module itself while it runs. Threads that share the
module then see each other's values, and everything that forward writes (attributes, lists, buffers) persists.
A private copy has the same classes and attributes, its own containers, and the given values; parameters are
not copied. References inside the module to itself or its parts (bound methods, closures, hooks, lists of
layers, weak references) become references to the copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from llr.inputs.evaluation.copier import Copier, TooMany
from llr.inputs.tensors import wider


class Private:
    """Makes copies of one module. Holds clones of its tensors in the wanted dtype, and their names."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        """Read a module and its parts; if a dtype is given, tensors that are not parameters are promoted."""
        self.model = model
        self.originals: dict[int, tuple[str, Tensor]] = {}
        """id of a user's tensor -> its name and the tensor, which keeps the id unique."""
        self.stale: dict[int, str] = {}
        """id of the clone of a tensor that was part of an autograd graph -> its name."""
        self.shares_objects = False
        """Whether there are too many objects to copy, so that copies share them with the user's module."""
        self._dtype = dtype
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._clones: dict[int, tuple[Tensor, int]] = {}  # with its version
        self._modules = _outside_of_scripts(model)
        self._shells: list[nn.Module] = []  # of the last copy
        for name, p in model.named_parameters():
            self.originals[id(p)] = (name, p)

    def copy(self, values: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the module with these values for its parameters, and clones for the missing ones."""
        try:
            return self._copied(values)
        except TooMany:
            self.shares_objects = True
            return self._copied(values)

    def _copied(self, values: Mapping[str, Tensor]) -> nn.Module:
        memo: dict[int, Any] = {}
        for number, name in self._parameters.items():
            value = values.get(name)
            memo[number] = self.clone(self.originals[number][1], name) if value is None else value
        copier = Copier(memo, self.clone, shares_objects=self.shares_objects)
        # Make all modules before their attributes, which may refer to any module.
        self._shells = [copier.shell(module) for _, module in self._modules]
        for path, module in self._modules:
            copier.fill(module, path)
        return cast(nn.Module, memo[id(self.model)])

    def own(self, value: Tensor, name: str) -> Tensor:
        """The value, or its clone if it is a user's parameter, which forward might write to."""
        return self.clone(value, name) if id(value) in self._parameters else value

    def clone(self, t: Tensor, name: str) -> Tensor:
        """The clone of a user's tensor that all copies share."""
        known = self._clones.get(id(t))
        if known is not None:
            return known[0]
        # This may run inside a transform of torch.func, but the clone must not belong to the transform.
        with torch.no_grad(), torch.inference_mode(False), temporarily_clear_interpreter_stack():
            plain = t.detach()
            found = wider(plain, self._dtype)
            found = found.clone() if found is plain else found
            if t.requires_grad and t.is_leaf and id(t) not in self._parameters:
                found.requires_grad_()
        self.originals[id(t)] = (name, t)
        self._clones[id(t)] = (found, found._version)
        if t.grad_fn is not None:
            self.stale[id(found)] = name
        return found

    def names_of_clones(self) -> dict[int, str]:
        """id of a clone -> the name of the original tensor."""
        return {id(t): self.originals[number][0] for number, (t, _) in self._clones.items()}

    def changed(self) -> str | None:
        """The name of a buffer or constant that the last copy's forward wrote to or replaced, if any."""
        for (path, original), shell in zip(self._modules, self._shells, strict=True):
            if isinstance(original, torch.jit.ScriptModule):
                continue
            for name, buffer in original._buffers.items():
                known = None if buffer is None else self._clones.get(id(buffer))
                if known is not None and shell._buffers.get(name) is not known[0]:
                    return f"{path}.{name}" if path else name
        for number, (clone, version) in self._clones.items():
            if clone._version != version:
                return self.originals[number][0]
        return None

    def path_of(self, module: object) -> str | None:
        """The name of a module of the last copy; None for any other object."""
        pairs = zip(self._modules, self._shells, strict=True)
        return next((path for (path, _), shell in pairs if shell is module), None)


def _outside_of_scripts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules in a module by name, without those inside compiled code."""
    found: list[tuple[str, nn.Module]] = []
    scripts: list[str] = []
    for path, module in model.named_modules():
        if any(not outer or path.startswith(f"{outer}.") for outer in scripts):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            scripts.append(path)
        found.append((path, module))
    return found
