"""Examines a model by running it: on two samples, observing every operation, and on one sample alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from llr.inputs.batched import Comparison, WrongDerivatives, batched_rows
from llr.inputs.evaluation.compare import (
    EVAL,
    UNSUPPORTED,
    Escapes,
    affordable,
    close,
    compare_alone,
    difference,
    interacting,
    loose,
    why_unsupported,
)
from llr.inputs.evaluation.outputs import output_leaves
from llr.inputs.evaluation.surroundings import closed
from llr.inputs.evaluation.watch import Origins, Watch
from llr.inputs.problem import Problem, as_leaves, transformed

_MOST_NUMBERS = 1 << 20
"""The largest number of derivatives used to check that vmap gives the right ones."""


@dataclass
class Probe:
    """What the examination of a model found."""

    model: object
    outputs: int
    """q, numbers for each sample."""
    leaves: list[Tensor]
    """The output's tensors for one sample alone."""
    draws_own: bool
    """Whether it draws random numbers from a generator of its own."""
    count: int
    """The number of samples that may be run again at little cost."""
    run_together: Callable[[], Tensor | None]
    try_vmap: Callable[[], str]

    @functools.cached_property
    def obstacle(self) -> str:
        """Why vmap cannot take the model; empty if it can. May be set by code that finds a reason."""
        return self.try_vmap()

    @property
    def is_looped(self) -> bool:
        """Whether it is known that vmap cannot take the model."""
        return bool(self.__dict__.get("obstacle"))

    @functools.cached_property
    def together(self) -> Tensor | None:
        """(m, q): the outputs for all samples together, or for as many as memory allows.

        None for fewer than three samples, which were compared already. Code that has computed the outputs may
        set this attribute.
        """
        return self.run_together()

    def compare(self, alone: Tensor, first: int) -> None:
        """Refuse outputs (m, q) of samples alone, from sample `first` on, that differ from those together.

        Raises:
            ValueError: the samples interact.
        """
        if self.together is None or first >= len(self.together):
            return
        together = self.together[first : first + len(alone)]
        self._compare(together, alone.detach()[: len(together)])

    def compare_some(self, alone: Tensor, which: Tensor) -> None:
        """As :meth:`compare`, for the samples with these indices."""
        if self.together is not None:
            self._compare(self.together[which], alone.detach())

    def _compare(self, together: Tensor, alone: Tensor) -> None:
        alone = alone.to(together.device)
        if not close(together, alone, loose(alone)):
            count = len(cast(Tensor, self.together))
            raise ValueError(interacting(self.model, difference(together, alone), count))


class Examination:
    """Examines one model and its samples."""

    def __init__(self, problem: Problem) -> None:
        x = problem.x.detach()
        self.problem, self.x = problem, x if len(x) else x.new_zeros(1, *x.shape[1:])
        self.values = as_leaves({name: v.clone() for name, v in problem.point().items()})
        self.transformed = transformed([x, *self.values.values()])
        """Whether the call is inside a grad or jvp of the caller."""
        self.module = isinstance(problem.model, nn.Module)
        self.watch = self._watch()
        self.escapes = Escapes(problem.private.path_of if self.module else lambda _: None)

    def outcome(self) -> Probe:
        """Run the model; refuse what has no per-sample Jacobian."""
        few = self._few()
        together = self._watched(few)
        if self.watch.draws:
            self._refuse_randomness(together, few)
        # Take the second sample alone: a sample that depends on another mostly depends on an earlier one.
        single = self._detached(few[-1:])
        try:
            compare_alone(self.problem.model, together, single, len(few))
        except ValueError:
            self._refuse_randomness(together, few)
            raise
        outputs = sum(leaf.numel() for leaf in single)
        count = affordable(len(self.x), outputs, max(1, self.watch.nbytes // len(few)), few.device)
        return Probe(
            self.problem.model,
            outputs,
            single,
            self.watch.draws_own,
            count,
            functools.partial(self._all, count, outputs),
            functools.partial(self._obstacle, few, outputs),
        )

    def _refuse_randomness(self, together: Sequence[Tensor], few: Tensor) -> None:
        """Refuse a forward that drew random numbers, or that gives other outputs for the same samples."""
        how = f"it draws numbers by {self.watch.draws}" if self.watch.draws else ""
        for a, b in zip(together, self._detached(few), strict=True):
            if not close(a, b, 1e3):
                how = (
                    "two evaluations at the same parameters and samples differ by up to "
                    f"{difference(a, b):.3g}"
                )
        if how:
            raise ValueError(
                f"the model's forward is random: {how}. If it is dropout or another layer that is at rest in "
                f"evaluation mode, {EVAL}; otherwise draw the randomness outside of forward"
            )

    def _watched(self, few: Tensor) -> list[Tensor]:
        """The outputs, with every operation observed."""
        leaves = self.values
        try:
            outputs = self._run(leaves, few, self.escapes, self.watch)
        except Exception as error:
            if self.watch.foreign:
                raise ValueError(self._reached()) from error
            if mixture := self._mixture(leaves, few):
                raise ValueError(mixture) from error
            self._run(leaves, few)  # under a dispatch mode TorchScript loses the exception
            raise
        self._refuse_unfaithful()
        if not self.transformed:
            self._refuse_independence(outputs, leaves)
        return [leaf.detach() for leaf in outputs]

    def _few(self) -> Tensor:
        few = _two_samples(self.x)
        if len(self.x) == 1:
            try:
                self.problem.call(self.values, few.clone())
            except Exception:  # the model takes one sample at a time; other errors are raised later
                return self.x
        return few

    def _watch(self) -> Watch:
        problem = self.problem
        kept = problem.dtype if problem.raised else None
        if not self.module:
            return Watch({}, {}, kept, lambda _: None)
        private = problem.private
        return Watch(private.originals, private.stale, kept, private.path_of)

    def _detached(self, x: Tensor) -> list[Tensor]:
        return [leaf.detach() for leaf in self._run(self.values, x)]

    def _run(
        self,
        values: Mapping[str, Tensor],
        x: Tensor,
        *modes: contextlib.AbstractContextManager[object],
    ) -> list[Tensor]:
        versions = {name: v._version for name, v in values.items()}
        model = self.problem.at(values)
        x = x.clone()  # a forward may change its input in place
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            output = model(x)
        leaves = output_leaves(output)
        if not leaves:
            raise TypeError("the model's output holds no tensor; expected at least one")
        for leaf in leaves:
            if leaf.dim() == 0 and len(x) > 1:
                raise ValueError(
                    f"an output is a single number for {len(x)} samples; expected the number of samples "
                    "as its first size (a loss has no per-sample Jacobian: return the values before the mean)"
                )
            if not bool(torch.isfinite(leaf).all()):
                raise ValueError(
                    "the model's output is NaN or infinite at the first samples; expected finite numbers (a "
                    "Jacobian there would be NaN)"
                )
        name = self.problem.private.changed() if self.module else None
        if name is not None:
            raise ValueError(
                f"the model's forward changes its buffer {name!r}, so that no two evaluations are of the "
                f"same function; {EVAL}, or keep state out of forward"
            )
        for name, value in values.items():
            if value._version != versions[name]:
                raise ValueError(
                    f"the model's forward changes its parameter {name!r} in place, so that no two "
                    "evaluations are of the same function; expected a forward that only reads it"
                )
        return leaves

    def _reached(self) -> str:
        kind = type(self.problem.model).__name__
        return (
            f"{kind}'s forward reaches the tensor {self.watch.foreign} past the module, through a global "
            "variable or an object that cannot be copied; expected it as an attribute of the module that "
            "uses it, where other values can be put in its place"
        )

    def _mixture(self, leaves: Mapping[str, Tensor], few: Tensor) -> str:
        """Why the forward failed, if the cause is a tensor of another dtype from outside the model."""
        problem = self.problem
        origins = Origins(problem.dtype, problem.private.path_of if self.module else lambda _: None)
        with contextlib.suppress(Exception):
            self._run(leaves, few, origins)
        if len(origins.mixed) < 2:
            return ""
        found = next((f for f in origins.outside if f[0].dtype.to_real() in origins.mixed), None)
        if found is None:
            return ""
        (t, where), rest = found, f"where the rest is {problem.dtype}"
        what = f"a tensor of shape {tuple(t.shape)}, {t.dtype}"
        if not self.module:
            return (
                f"the model reaches {what}, past its params ({where}), {rest}; expected it among params, or "
                "in that dtype"
            )
        kind = type(problem.model).__name__
        named = problem.private.names_of_clones()
        named |= {id(v): name for name, v in problem.columns.fixed.items()}
        if id(t) in named:
            return (
                f"{kind}'s forward uses the tensor {named[id(t)]!r} ({where}), {t.dtype}, {rest}; expected "
                "one dtype"
            )
        return (
            f"{kind}'s forward reaches {what}, past the module's parameters and buffers ({where}), through a "
            f"global variable, NumPy or an object that cannot be copied, {rest}; expected it as a buffer of "
            "the module that uses it (register_buffer), or in that dtype"
        )

    def _refuse_unfaithful(self) -> None:
        kind, watch = type(self.problem.model).__name__, self.watch
        if watch.foreign:
            raise ValueError(self._reached())
        if watch.stale:
            raise ValueError(
                f"{kind}'s forward uses {watch.stale}, a tensor kept from an earlier evaluation, whose "
                "dependence on the parameters is lost; expected it to be computed in forward (set the "
                "attribute to None, or delete it)"
            )
        if watch.lowered:
            raise ValueError(
                f"{kind}'s forward computes in lower precision: {watch.lowered}. Its rounding would be "
                f"counted as rank; expected {self.problem.dtype} throughout (remove the conversion, or "
                "convert to the dtype of the input)"
            )

    def _refuse_independence(self, outputs: Sequence[Tensor], leaves: Mapping[str, Tensor]) -> None:
        if _depends(outputs, {id(v) for v in leaves.values()}):
            return
        if self.watch.in_inference:
            reason = "it computes under torch.inference_mode"
        elif self.watch.without_gradient:
            reason = "it computes under torch.no_grad"
        elif self.escapes.seen:
            reason = self.escapes.seen
        elif self.module:
            reason = "it does not use them"
        else:
            reason = "it does not use the params that it is called with"
        names = ", ".join(list(leaves)[:3]) + (", ..." if len(leaves) > 3 else "")
        raise ValueError(
            f"no output of {type(self.problem.model).__name__} depends on a chosen parameter ({names}), as "
            f"autograd sees it: {reason}. Its Jacobian would be zero; expected a forward that can be "
            "differentiated with respect to them"
        )

    def _obstacle(self, x: Tensor, outputs: int) -> str:
        """Why vmap cannot take the model or differentiates it wrongly, tested on a few samples."""
        if self.transformed:
            return ""

        values = {name: v.detach() for name, v in self.values.items()}
        numbers = len(x) * sum(v.numel() for v in values.values())
        like = next(iter(values.values()))
        if outputs * numbers <= _MOST_NUMBERS:
            basis = torch.eye(outputs, dtype=like.dtype, device=like.device)
        else:  # a few combinations instead of all outputs
            generator = torch.Generator().manual_seed(1)
            basis = torch.randn(4, outputs, generator=generator)
            basis = basis.to(device=like.device, dtype=like.dtype)
        try:
            with closed(), torch.enable_grad():
                rows, _ = batched_rows(self.problem, values, x.clone(), basis)
                Comparison(self.problem)(values, x, rows, basis)
        except WrongDerivatives as error:
            return str(error)
        except UNSUPPORTED as error:
            return why_unsupported(error, self.watch.draws_own)
        return ""

    def _all(self, count: int, outputs: int) -> Tensor | None:
        """The outputs for the first `count` samples together."""
        x = self.x[:count]
        if len(x) <= 2:
            return None
        with closed(), torch.enable_grad():
            leaves = output_leaves(self.problem.call(self.values, x.clone()))
        parts = []
        for leaf in leaves:
            if leaf.dim() == 0 or len(leaf) != len(x):
                raise ValueError(
                    f"an output has shape {tuple(leaf.shape)} for {len(x)} samples; expected the number of "
                    "samples as its first size"
                )
            parts.append(leaf.detach().reshape(len(x), -1))
        found = torch.cat(parts, 1)
        if found.shape[1] != outputs:
            raise ValueError(
                f"the model's samples interact: there are {found.shape[1]} outputs for each of {len(x)} "
                f"samples together, but {outputs} for the first one alone, so there is no per-sample "
                "Jacobian"
            )
        return found


def _depends(outputs: Sequence[Tensor], leaves: Container[int]) -> bool:
    """Whether autograd's graph connects an output to one of these leaves, given by their ids."""
    waiting = [leaf.grad_fn for leaf in outputs if leaf.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node: Any = waiting.pop()
        if id(getattr(node, "variable", None)) in leaves:
            return True
        following = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(following)
        waiting += following
    return any(id(leaf) in leaves for leaf in outputs)


def _two_samples(x: Tensor) -> Tensor:
    """The first sample and one that differs from it: equal samples would hide interactions."""
    some = x[:1000]
    differs = (some != x[:1]).reshape(len(some), -1).any(1).nonzero()
    return torch.cat([x[:1], x[int(differs[0]) :][:1] if len(differs) else x[-1:]])
