"""Random calls of torch.ops.llr, most of them wrong; test_fuzz.py runs them in separate processes.

    cd tests && python -m operators.fuzz FIRST LAST

runs the cases with these numbers. The number of each case is written to standard output before it begins, and
complaints about it to standard error. A call that takes more than ten seconds of processor time, or five
minutes, ends the process.

A call may return, with the type and shape that its fake kernel predicts, or raise an error of llr, which
begins with the name of the operator. These errors of torch are accepted too:

* torch's parser refuses an argument before the operator is called: a value of a wrong type, a missing or
  unknown argument.
* functorch's "functionalize" accepts no custom operator that writes into an argument.
* Fake tensors that are not traced cannot have sizes that depend on numbers (DynamicOutputShapeException).
* Autograd does not allow writing into parameters.
* A context cannot handle some kinds of tensors for any operator, or fails before the operator is called.
"""

from __future__ import annotations

import random
import re
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .fuzz_calls import OPERATORS, draw


def over_first(transform: Callable[..., Any]) -> Callable[..., Any]:
    """Applies the transform to a call as a function of its first tensor."""

    def run(op: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        k = next((i for i, a in enumerate(arguments) if isinstance(a, Tensor)), None)
        if k is None:
            return op(*arguments, **options)
        return transform(
            lambda t: op(*arguments[:k], t, *arguments[k + 1 :], **options), arguments[k]
        )

    return run


def fake(op: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=False) as mode:
        convert = lambda a: mode.from_tensor(a) if isinstance(a, Tensor) else a  # noqa: E731
        arguments, options = torch.utils._pytree.tree_map(convert, (arguments, options))
        return op(*arguments, **options)


def inside(context: Callable[[], Any]) -> Callable[..., Any]:
    def run(op: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        with context():
            return op(*arguments, **options)

    return run


def some_output(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """The function with a tensor as its result, as transforms need it."""

    def output(t: Tensor) -> Tensor:
        out = f(t)
        out = out[0] if isinstance(out, tuple) else out
        return out if isinstance(out, Tensor) else t

    return output


CONTEXTS: dict[str, Callable[..., Any]] = {
    "plainly": lambda op, arguments, options: op(*arguments, **options),
    "under no_grad": inside(torch.no_grad),
    "in inference mode": inside(torch.inference_mode),
    "under autocast": inside(lambda: torch.autocast("cpu", torch.bfloat16)),
    "with fake tensors": fake,
    "under vmap": over_first(lambda f, t: torch.func.vmap(some_output(f))(torch.stack([t, t]))),
    "under grad": over_first(lambda f, t: torch.func.grad(lambda s: some_output(f)(s).sum())(t)),
    "under jvp": over_first(
        lambda f, t: torch.func.jvp(some_output(f), (t,), (torch.ones_like(t),))
    ),
    "under functionalize": over_first(lambda f, t: torch.func.functionalize(f)(t)),
}

PARSER = (
    r"llr::{op}\(\) |.* for operator 'llr::{op}|.* Schema: llr::{op}[.(]|"
    r".*INTERNAL ASSERT FAILED at \".*function_schema.cpp"
)
"""Messages of torch when its parser refuses an argument."""
OF_CONTEXT = {
    "under functionalize": (
        r"(?s)Found a custom \(non-ATen\) operator whose output has alias|.*DefaultCPUAllocator"
    ),
    "with fake tensors": "Please convert all Tensors to FakeTensors first",
}
WRAPPERS = (
    r"Internal error: NestedTensorImpl doesn't support|Sparse CSR tensors do not have strides|"
    r"Could not run 'aten::\w+' with arguments from the 'MkldnnCPU'"
)
"""Messages of the transforms for tensors that they do not support."""


def complaint(name: str, context: str, error: BaseException) -> str | None:
    """The text of an error that is not accepted; None if it is."""
    text, op = str(error), name.split(".")[0]
    # The formula is used for mlp_jacobian under autograd, and its messages begin with that name.
    if text.startswith(f"{op.removeprefix('_').removesuffix('_formula')}: "):
        return None
    if re.match(PARSER.format(op=op), text):
        return None
    if type(error).__name__ == "DynamicOutputShapeException" and op == "gram_factor":
        return None
    if re.match(
        r"a (view of a )?leaf Variable that requires grad is being used in an in-place", text
    ):
        return None
    of_context = OF_CONTEXT.get(context, WRAPPERS)
    if context != "plainly" and re.match(of_context, text):
        return None
    return f"{type(error).__name__}: {text[:1500]}"


def check_foretold(op: Any, arguments: list[Any], options: dict[str, Any], result: Any) -> None:
    """Check that the fake kernel accepts the same arguments and predicts the result's types and shapes."""
    to_meta = lambda a: a.detach().to("meta") if isinstance(a, Tensor) else a  # noqa: E731
    given = torch.utils._pytree.tree_map(to_meta, (arguments, options))
    foretold = op(*given[0], **given[1])
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (foretold, result)), strict=True)
    for fake, real in pairs:
        described = [t if t is None else (t.shape, t.stride(), t.dtype) for t in (fake, real)]
        assert described[0] == described[1], f"foretold {described[0]}, found {described[1]}"


def run_case(number: int) -> str | None:
    """The complaint about this case; None if there is none."""
    r = random.Random(number)
    name = r.choice(sorted(OPERATORS))
    overload, build = OPERATORS[name]
    arguments, options = draw(r, name, build)
    context = r.choice(["plainly"] * 8 + sorted(CONTEXTS))
    if name == "_mlp_jacobian_formula" and "under" in context:
        return None  # here mlp_jacobian is called instead
    reached = False

    def op(*arguments: Any, **options: Any) -> Any:
        nonlocal reached
        reached = True
        return overload(*arguments, **options)

    try:
        result = CONTEXTS[context](op, arguments, options)
        if context == "plainly" and name not in (
            "_mlp_jacobian_formula",
            "first_nonfinite",
            "gram_factor",
        ):
            check_foretold(overload, arguments, options, result)
    except Exception as error:  # complaint() decides
        wrong = complaint(name, context, error) if reached else None
        return wrong and f"{name} {context}: {wrong}"
    return None


def main() -> None:
    warnings.simplefilter("ignore")
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        print(number, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 10)
        signal.setitimer(signal.ITIMER_REAL, 300)  # long, as the machine may be busy
        wrong = run_case(number)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if wrong is not None:
            print(f"complaint: {number}: {wrong}".replace("\n", " "), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
