"""Random calls of torch.ops.llr, most of them wrong; test_fuzz.py runs them in processes of their own.

    cd tests && python -m operators.fuzz FIRST LAST

runs the cases of these numbers. Of each it writes the number to standard output before it begins, and what
is wrong with it to standard error. A call that takes more than ten seconds of the processor, or five
minutes, ends the process.

What a call may do: return, with the type and shape that its fake kernel foretells, or raise an error of ours,
which begins with the name of the operator. Errors of torch are accepted where its own parser refuses an
argument before it has come to us: a value that is of no type of the schema, a missing or unknown argument.
So are two answers that torch gives for every custom operator: functorch's "functionalize" takes none that
writes into an argument, and fake tensors cannot have sizes that depend on numbers
(DynamicOutputShapeException) unless they are traced. So is autograd's, that parameters are not written into.
So is what a context cannot do to any operator's
tensors. Errors before the operator is reached are the context's.
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
    """The transform over the call's first tensor."""

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
    """Transforms take functions that return a tensor."""

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
"""How torch begins, or ends, when its parser refuses an argument."""
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
"""Of the transforms, around tensors that they do not know."""


def complaint(name: str, context: str, error: BaseException) -> str | None:
    """What is wrong with this error, if anything."""
    text, op = str(error), name.split(".")[0]
    # The formula is mlp_jacobian under autograd, and speaks in its name.
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
    """The fake kernel must take what the kernel has taken, and say what came out."""
    to_meta = lambda a: a.detach().to("meta") if isinstance(a, Tensor) else a  # noqa: E731
    given = torch.utils._pytree.tree_map(to_meta, (arguments, options))
    foretold = op(*given[0], **given[1])
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (foretold, result)), strict=True)
    for fake, real in pairs:
        described = [t if t is None else (t.shape, t.stride(), t.dtype) for t in (fake, real)]
        assert described[0] == described[1], f"foretold {described[0]}, found {described[1]}"


def run_case(number: int) -> str | None:
    """What is wrong in this case, if anything."""
    r = random.Random(number)
    name = r.choice(sorted(OPERATORS))
    overload, build = OPERATORS[name]
    arguments, options = draw(r, name, build)
    context = r.choice(["plainly"] * 8 + sorted(CONTEXTS))
    if name == "_mlp_jacobian_formula" and "under" in context:
        return None  # it is mlp_jacobian that is called there
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
    except Exception as error:  # complaint() looks at it
        wrong = complaint(name, context, error) if reached else None
        return wrong and f"{name} {context}: {wrong}"
    return None


def main() -> None:
    warnings.simplefilter("ignore")
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        print(number, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 10)
        signal.setitimer(signal.ITIMER_REAL, 300)  # of a machine that has other things to do
        wrong = run_case(number)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if wrong is not None:
            print(f"complaint: {number}: {wrong}".replace("\n", " "), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
