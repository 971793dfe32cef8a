"""A RankResult as a line of text and as JSON."""

from __future__ import annotations

import json

import pytest
import torch
from linalg.test_spectrum import low_rank
from torch import Tensor

import llr


class TestRankResult:
    def test_line(self) -> None:
        line = str(llr.numerical_rank(low_rank(20, 90, 2)))
        assert line.startswith("rank 2 of a 20 x 90 matrix: sigma_2/error = ")
        assert "(svd, float64); AMBIGUOUS (clear gap): the rank is at least 2 and at most " in line
        assert "\n" not in line
        line = str(llr.numerical_rank(low_rank(5, 9, 2)))
        assert line.startswith(
            "rank 2 of a 5 x 9 matrix (exact: upper bound by exact elimination): "
        )
        assert "AMBIGUOUS" not in line
        line = str(llr.numerical_rank(torch.eye(3).double()))
        assert line.startswith(
            "rank 3 of a 3 x 3 matrix (exact: upper bound by shape): sigma_3/error = "
        )
        assert line.endswith("(svd, float64)")

    def test_line_names_the_ends(self) -> None:
        assert "sigma_2/error" in str(llr.numerical_rank(torch.eye(2)))
        assert "sigma_2/tolerance" in str(llr.numerical_rank(torch.eye(2), rtol=1e-3))
        assert "tolerance/sigma_1" in str(llr.numerical_rank(torch.eye(2), atol=3.0))

    def test_line_of_what_has_no_ratio(self) -> None:
        """The line does not say "error/sigma_1 = inf"; it has the numbers that exist."""
        zeros, empty = llr.numerical_rank(torch.zeros(2, 2)), llr.numerical_rank(torch.zeros(0, 3))
        assert str(zeros).endswith("by different rows): all singular values are 0 (svd, float32)")
        assert str(empty).endswith("by shape): no entries (svd, float32)")
        line = str(llr.numerical_rank(torch.zeros(2, 2), atol=3.0))
        assert "matrix: all singular values are 0, tolerance 3 (svd" in line
        line = str(llr.numerical_rank(torch.diag(torch.tensor([4.0, 2.0])), rtol=0.0))
        assert "matrix: tolerance 0, sigma_1 4, sigma_2 2 (svd" in line
        assert "inf" not in str(llr.numerical_rank(torch.zeros(2, 3, 3)))

    @pytest.mark.parametrize(
        ("dtype", "advice"), [(torch.float32, "in float64"), (torch.float64, "vary rtol")]
    )
    def test_ambiguous_line(self, dtype: torch.dtype, advice: str) -> None:
        i = torch.arange(1, 21, dtype=dtype)
        line = str(llr.numerical_rank(1 / (i[:, None] + i - 1)))
        assert "AMBIGUOUS" in line
        assert line.endswith(advice) or advice in line.split("; ")[-1]
        assert "\n" not in line

    def test_batch_line(self) -> None:
        line = str(llr.numerical_rank(torch.stack((torch.eye(3), torch.zeros(3, 3)))))
        assert line.startswith("ranks of 2 matrices from 0 to 3")
        assert "ranks of 0 matrices" in str(llr.numerical_rank(torch.zeros(0, 3, 3)))

    @pytest.mark.parametrize(
        "A", [torch.eye(3), torch.zeros(2, 3), torch.zeros(0, 2), torch.zeros(2, 3, 3)]
    )
    def test_to_dict_is_strict_json(self, A: Tensor) -> None:
        result = llr.numerical_rank(A)
        back = json.loads(json.dumps(result.to_dict(spectrum=True), allow_nan=False))
        assert back["dtype"] == "float32"
        assert back["n_rows"] == A.shape[-2]
        assert torch.equal(torch.tensor(back["spectrum"]), result.spectrum)
        assert torch.equal(torch.tensor(back["rank"]), torch.as_tensor(result.rank))
        assert set(back) == {*result.__dataclass_fields__, "exact", "clear"}
        assert set(result.to_dict()) == {*back, "tensors"} - {"spectrum"}

    def test_infinite_gap_is_null(self) -> None:
        assert llr.numerical_rank(torch.zeros(2, 2)).to_dict()["gap"] is None
        assert llr.numerical_rank(torch.zeros(2, 2, 2)).to_dict()["gap"] == [None, None]

    def test_frozen(self) -> None:
        with pytest.raises(AttributeError):
            llr.numerical_rank(torch.eye(2)).rank = 5
