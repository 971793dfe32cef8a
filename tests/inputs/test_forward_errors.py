"""Errors of torch in a forward: llr's message names the tensor or the index that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llr
from llr.landscape import criticality

WEIGHT = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
OTHER = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def patched(forward: Callable[[nn.Sequential, Tensor], Tensor]) -> nn.Module:
    """A module whose instance has another forward, a closure over the names in `forward`."""
    model = net()
    model.forward = lambda x: forward(model, x)  # type: ignore[method-assign, assignment]
    return model


class Locked:
    """An object that cannot be copied."""

    __slots__ = ("w",)

    def __init__(self) -> None:
        self.w = WEIGHT

    def __deepcopy__(self, memo: Any) -> Locked:
        raise RuntimeError


LOCKED = Locked()


class Reaching(nn.Module):
    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.made, self.out = made, nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.made(x)))


REACHING = {
    "a global tensor": lambda: patched(lambda m, x: m[2](torch.tanh(x @ WEIGHT))),
    "another module": lambda: patched(lambda m, x: m[2](m[0](x)) + OTHER(x)),
    "an object that cannot be copied": lambda: patched(lambda m, x: m[2](torch.tanh(x @ LOCKED.w))),
    "in einsum, after views": lambda: Reaching(lambda x: torch.einsum("ni,ij->nj", x, WEIGHT)),
    "through lerp": lambda: Reaching(
        lambda x: torch.lerp(x, WEIGHT[:1, :2], 0.5) @ WEIGHT.double()
    ),
    "NumPy": lambda: Reaching(lambda x: x @ torch.from_numpy(WEIGHT.numpy())),
}


@pytest.mark.parametrize("case", REACHING)
def test_a_tensor_past_the_module_is_named(case: str) -> None:
    model, x = REACHING[case](), torch.randn(9, 2)
    for call in (
        lambda: llr.rank(model, x),
        lambda: llr.gram(model, x),
        lambda: criticality(model, x, x[:, :1]),
    ):
        with pytest.raises(ValueError, match="past the module's parameters and buffers") as refused:
            call()
        message = str(refused.value)
        assert re.search(r"tensor of shape \([^)]*\), torch.float32", message)
        assert "test_forward_errors.py" in message
        assert "expected it as a buffer" in message
        assert "mat1" not in message


def test_the_module_s_own_tensors_past_the_copy() -> None:
    model = net()
    kept = Locked()
    kept.w = model[0].weight
    model.forward = lambda x: model[2](torch.tanh(F.linear(x, kept.w)))  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match=r"reaches the tensor '0.weight' .* past the module"):
        llr.rank(model, torch.randn(9, 2))


def test_a_closure_is_made_double_with_the_rest() -> None:
    """A closure stays float32 only if float64 was not asked for; then the message names the dtypes."""
    w, x = WEIGHT.clone(), torch.randn(9, 2)
    model = patched(lambda m, x: m[2](torch.tanh(x @ w)))
    same = Reaching(lambda x: x @ w.double()).double()
    same.out.load_state_dict(model[2].state_dict())
    same.double()
    J = llr.jacobian(same, x.double(), params=["out.weight", "out.bias"])
    assert llr.rank(model, x).rank == torch.linalg.matrix_rank(J.flatten(0, 1))
    with pytest.raises(ValueError, match=r"uses the tensor 'forward' .*float32, where the rest is"):
        llr.jacobian(model.double(), x.double())


def test_a_callable_past_its_params() -> None:
    def f(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.tanh(x @ WEIGHT) @ params["a"]

    with pytest.raises(ValueError, match=r"shape \(2, 3\), torch.float32, past its params"):
        llr.rank(f, torch.randn(9, 2), params={"a": torch.randn(3, 1)})


def test_what_a_forward_mixes_by_itself_is_not_blamed_on_others() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(2, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x.float())

    with pytest.raises(ValueError, match="in Linear 'out': RuntimeError"):
        llr.jacobian(Mixing(), torch.randn(5, 2).double())


# --- indices -------------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, look: Callable[[Words, Tensor], Tensor]) -> None:
        super().__init__()
        self.look, self.words, self.out = look, nn.Embedding(5, 3), nn.Linear(3, 1)
        self.bag = nn.EmbeddingBag(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.look(self, x)))


LOOKS: dict[str, Callable[[Words, Tensor], Tensor]] = {
    "Embedding 'words'": lambda m, x: m.words(x).sum(1),
    "EmbeddingBag 'bag'": lambda m, x: m.bag(x),
    "Words": lambda m, x: F.embedding(x, m.words.weight).sum(1),
}


@pytest.mark.parametrize("where", LOOKS)
def test_indices_of_embeddings(where: str) -> None:
    model = Words(LOOKS[where])
    tokens = torch.randint(5, (300, 2), generator=torch.Generator().manual_seed(0))
    rows = re.escape("expected integers from 0 to 4, the rows of its weight")
    for x in (tokens.float(), tokens.double(), tokens > 2, tokens.to(torch.uint8)):
        with pytest.raises(
            ValueError, match=rf"in {where}: its indices are torch.\w+; {rows} \(x.lo"
        ):
            llr.rank(model, x)
    with pytest.raises(ValueError, match=rf"its indices are torch.complex128; {rows}$"):
        llr.rank(model, tokens.cfloat())
    for bad in (5, 77, -1):
        for at in (0, 299):
            x = tokens.clone()
            x[at, 1] = bad
            for call in (llr.rank, llr.jacobian, llr.gram):
                with pytest.raises(
                    ValueError, match=rf"in {where}: index {bad} is out of range; {rows}$"
                ):
                    call(model, x)


def test_indices_of_a_sequence_that_starts_with_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1))
    with pytest.raises(ValueError, match=r"in Embedding '0': its indices are torch.float64"):
        llr.rank(model, torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"in Embedding '0': index 8 is out of range"):
        llr.rank(model, torch.full((4, 2), 8))


@pytest.mark.parametrize(
    "look", [lambda m, x: m.words.weight[x].sum(1), lambda _, x: F.one_hot(x, 5)]
)
def test_hints_about_indices(look: Callable[[Words, Tensor], Tensor]) -> None:
    model = Words(look)
    with pytest.raises(ValueError, match=r"; if x holds indices, give integers \(x.long\(\)\)$"):
        llr.rank(model, torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"out of bounds|must be smaller") as refused:
        llr.rank(model, torch.full((4, 2), 8))
    assert "float" not in str(refused.value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_code_says_what_failed() -> None:
    model = torch.jit.script(nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1)))
    with pytest.raises(ValueError, match=r"RuntimeError: index out of range in self$"):
        llr.rank(model, torch.full((4, 2), 8))
