"""What a reduction reports, and which arguments it refuses."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from helpers.embedding_cases import (
    network,
    two_layer,
)
from torch import nn

from llr.embedding import reduce, split
from llr.models import (
    MatrixFactorization,
)

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestReport:
    """The report of a reduction, and the arguments that it refuses."""

    def test_text_and_json(self) -> None:
        found = reduce(two_layer("tanh", [(1, 0.5, 1), (-1, -0.5, 2)]))
        text = str(found).splitlines()
        assert text[0].startswith("1-2-1 reduced to 1-1-1: proved to be the same function")
        assert text[1:] == ["  layer 0: neuron 1 = -neuron 0: merged"]
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert plain["widths"] == [1, 1, 1]

    @pytest.mark.parametrize("layer", [0, 1])
    def test_nearly_equal_neurons(self, layer: int) -> None:
        narrow = network(2, 2, 2, 1)
        wide, _ = split(narrow, layer, 0, 0.5)
        with torch.no_grad():
            wide[2 * layer].weight[2] *= 1 + 1e-12
        with pytest.warns(
            UserWarning, match=f"layer {layer}: neurons .* 0 and 2 differ by"
        ) as caught:
            assert reduce(wide).widths[layer + 1] == 3
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reduce(narrow)

    def test_refused(self) -> None:
        for model in (nn.LSTM(1, 1), MatrixFactorization(2, 1, 2)):
            with pytest.raises(ValueError, match=r"llr\.model_rank\(model\)"):
                reduce(model)
        with pytest.raises(TypeError, match=r"expected an nn\.Module"):
            reduce(torch.tanh)  # type: ignore[arg-type]
        model = network(1, 2, 1)
        with torch.no_grad():
            model[0].bias[1] = torch.nan
        with pytest.raises(ValueError, match=r"'0\.bias' is nan at index \(1,\)"):
            reduce(model)
        huge = two_layer("tanh", [(1, 0, 1.5e308), (1, 0, 1.5e308)])
        with pytest.raises(ValueError, match="leave the range"):
            reduce(huge)

    def test_no_hidden_layer(self) -> None:
        found = reduce(nn.Linear(2, 3).double())
        assert found.widths == (2, 3)
        assert found.steps == ()
