"""The record of an embedding, and the arguments that embeddings refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers.embedding_cases import (
    F64,
    convolution,
    mistake,
    network,
    theta,
)
from torch import nn

import llr
from llr.embedding import compatible, null, random_compatible, split, widen
from llr.models import (
    DeepLinear,
    MatrixFactorization,
    Polynomial,
    TwoLayer,
    mlp,
)

from .test_moves import generator

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class Backwards(nn.Module):
    """An MLP with its own forward; parameters are registered in another order than they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2, dtype=F64)
        self.first = nn.Linear(2, 3, bias=False, dtype=F64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


class TestRecord:
    """The record of an embedding."""

    def test_order_of_parameters(self) -> None:
        narrow = Backwards()
        for found in (split(narrow, 0, 1), null(narrow, 0), widen(narrow, [2, 5, 2], generator())):
            assert mistake(narrow, *found) == ""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_kinds_of_models(self, dtype: torch.dtype) -> None:
        flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 1))
        cubic = TwoLayer(2, 2, activation=Polynomial([0, 1, 0, 2]))
        models = [TwoLayer(2, 2), DeepLinear([2, 2, 1]), mlp([2, 2, 1], "sin"), flat, cubic]
        for narrow in models:
            narrow = narrow.to(dtype)
            wide, embedding = split(narrow, 0, 0, 0.75, -1)
            assert type(wide) is type(narrow)
            assert [p.dtype for p in wide.parameters()] == [dtype] * len(list(wide.parameters()))
            assert torch.equal(embedding(theta(narrow)), theta(wide))
            shape = (5, 2, 2) if narrow is flat else (5, 2)
            x = torch.randn(shape, dtype=dtype)
            torch.testing.assert_close(wide(x), narrow(x))
            assert llr.jacobian(wide, x).shape == (5, 1, embedding.n_wide)

    def test_inverse_and_composition(self) -> None:
        narrow = network(2, 2, 3, 1)
        wide, first = split(narrow, 1, 2, 0.3, -1)
        wider, second = null(wide, 0, bias=0.5, outgoing=[1.0, 2.0, 3.0, 4.0])
        both = first.then(second)
        assert both.steps == first.steps + second.steps
        torch.testing.assert_close(both.matrix, second.matrix @ first.matrix, rtol=0, atol=0)
        torch.testing.assert_close(both(theta(narrow)), theta(wider), rtol=1e-15, atol=1e-16)
        torch.testing.assert_close(both.inverse(theta(wider)), theta(narrow))
        assert torch.linalg.matrix_rank(both.matrix) == both.n_narrow
        off = theta(wider)
        off[-2] += 3.0  # least squares corrects only a part of this
        nearest = torch.linalg.lstsq(both.matrix, (off - both.constant)[:, None]).solution[:, 0]
        distance = float((both.matrix @ nearest + both.constant - off).norm())
        with pytest.raises(ValueError, match=f"theta is {distance:.3g} away"):
            both.inverse(off)
        torch.testing.assert_close(both.inverse(off, tolerance=4.0), nearest)
        batch = torch.stack((theta(narrow), 2 * theta(narrow)))
        assert torch.equal(both(batch)[0], both(theta(narrow)))

    def test_report(self) -> None:
        _, embedding = widen(network(1, 2, 1), [1, 4, 1], generator())
        assert str(embedding).splitlines()[0] == "1-2-1 in 1-4-1: 7 of 13 parameters"
        assert str(embedding).count("\n") == len(embedding.steps) == 2
        plain = json.loads(json.dumps(embedding.to_dict(), allow_nan=False))
        assert plain["wide"] == [1, 4, 1]

    def test_bad_input(self) -> None:
        _, embedding = split(network(1, 2, 1), 0, 0)
        with pytest.raises(ValueError, match="expected 7 numbers, the parameters of the narrow"):
            embedding(torch.zeros(10, dtype=F64))
        with pytest.raises(ValueError, match="NaN"):
            embedding(torch.full((7,), torch.nan))
        with pytest.raises(TypeError, match=r"torch\.int64; expected a floating-point tensor"):
            embedding(torch.zeros(7, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"expected one wide vector \(10,\)"):
            embedding.inverse(torch.zeros(2, 10))
        with pytest.raises(ValueError, match="1-2-1 with 7 parameters; expected 1-3-1 with 10"):
            embedding.then(embedding)
        with pytest.raises(TypeError, match="expected an Embedding"):
            embedding.then(embedding.matrix)  # type: ignore[arg-type]


class TestBadInput:
    """Arguments that the moves refuse."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((2, 0), r"layer is 2, but the model has layers 0 to 1"),
            ((-1, 0), "layer is -1"),
            ((0, 2), "neuron is 2; expected 0 to 1, the neurons of layer 0"),
            ((0, 0.0), "neuron is 0.0"),
            ((0, 0, float("nan")), "share is nan; expected a finite number"),
            ((0, 0, [0.5, 0.5]), "share has shape .* expected 3 numbers"),
            ((0, 0, [0.5, 0.5, float("inf")]), "expected finite numbers"),
            ((0, 0, 0.5, 2), "sign is 2; expected 1 or -1"),
            ((0, 0, 1e308), "out of the range"),
        ],
    )
    def test_split(self, arguments: tuple[Any, ...], message: str) -> None:
        narrow = network(1, 2, 3, 1)
        with torch.no_grad():
            narrow[2].weight.fill_(10.0)
        with pytest.raises(ValueError, match=message):
            split(narrow, *arguments)

    @pytest.mark.parametrize("activation", ["sigmoid", "softplus", "gelu", "silu", "relu"])
    def test_reflections_of_what_is_not_odd(self, activation: str) -> None:
        with pytest.raises(ValueError, match=f"{activation} is not odd"):
            split(network(1, 2, 1, activation=activation), 0, 0, sign=-1)
        with pytest.raises(ValueError, match="polynomial is not odd"):
            split(TwoLayer(1, 1, activation=Polynomial([0, 1, 1])), 0, 0, sign=-1)

    def test_null(self) -> None:
        narrow = network(2, 2, 1)
        with pytest.raises(ValueError, match="expected 2 numbers, one for each of the inputs"):
            null(narrow, 0, incoming=[1.0])
        with pytest.raises(ValueError, match="both not 0"):
            null(narrow, 0, incoming=[1.0, 0.0], outgoing=[1.0])
        with pytest.raises(ValueError, match="bias is nan"):
            null(narrow, 0, bias=float("nan"))
        with pytest.raises(ValueError, match="layer 0 has no biases; expected 0"):
            null(convolution(5, 3, 1), 0, bias=1.0)
        with pytest.raises(TypeError, match="outgoing is 'x'; expected numbers"):
            null(narrow, 0, outgoing="x")  # type: ignore[arg-type]

    def test_widths(self) -> None:
        narrow = network(1, 2, 2, 1)
        for embed in (widen, random_compatible):
            with pytest.raises(
                ValueError, match="widths has 1 neuron in layer 1, but the model has 2"
            ):
                embed(narrow, [1, 3, 1, 1])
            with pytest.raises(ValueError, match=r"expected 4 numbers, .* \[1, 2, 2, 1\]"):
                embed(narrow, [2, 3, 3, 1])
            with pytest.raises(TypeError, match="expected widths such as"):
                embed(narrow, 4)
            with pytest.raises(TypeError, match="expected the number of channels"):
                embed(convolution(5, 3, 1), 2.0)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "move",
        [
            lambda model: split(model, 0, 0),
            lambda model: null(model, 0),
            lambda model: widen(model, [1, 4, 1]),
            lambda model: random_compatible(model, [1, 4, 1]),
            lambda model: compatible(model, [[0]], [[1.0]]),
        ],
    )
    def test_models(self, move: Any) -> None:
        gated = nn.Sequential(nn.Linear(1, 2), nn.GLU(), nn.Linear(1, 1))
        for model in (gated, nn.LSTM(1, 1), MatrixFactorization(2, 1, 2)):
            with pytest.raises(ValueError, match=r"llr\.model_rank\(model\)"):
                move(model)
        with pytest.raises(TypeError, match=r"expected an nn\.Module"):
            move(lambda x: x)
        broken = network(1, 2, 1)
        broken[0].weight.requires_grad_(False)
        with pytest.raises(ValueError, match=r"'0\.weight' is frozen"):
            move(broken)
        broken = network(1, 2, 1)
        with torch.no_grad():
            broken[2].weight[0, 1] = torch.inf
        with pytest.raises(ValueError, match=r"'2\.weight' is inf at index \(0, 1\)"):
            move(broken)
        with pytest.raises(ValueError, match=r"no hidden layer|expected 2 numbers|1 entries"):
            move(nn.Linear(1, 1))
