"""Singular values and tolerances, compared with exact arithmetic and known matrices."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import llr
from llr.operators import _ops
from llr.ranks.matrices import tolerance

DTYPES = [torch.float32, torch.float64]


def low_rank(m: int, n: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """An integer matrix with exact rank r; the first r rows of its left factor are the identity."""
    g = torch.Generator().manual_seed(seed)
    left = torch.randint(-3, 4, (m, r), generator=g).to(dtype)
    left[:r] = torch.eye(r, dtype=dtype)
    right = torch.randint(-3, 4, (r, n), generator=g).to(dtype)
    right[:, :r] = 7 * torch.eye(r, dtype=dtype)
    return left @ right


def with_spectrum(values: Sequence[float], m: int, n: int, seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values, to rounding."""
    g = torch.Generator().manual_seed(seed)
    k = len(values)
    U = torch.linalg.qr(torch.randn(m, k, generator=g, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, k, generator=g, dtype=torch.float64)).Q
    return (U * torch.tensor(values, dtype=torch.float64)) @ V.T


class TestSvdvals:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "shape",
        [(1, 1), (3, 3), (7, 2), (2, 7), (1, 50), (33, 34), (4, 3, 5), (2, 3, 6, 4), (3, 2000)],
    )
    def test_agrees_with_numpy(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        A = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        values = llr.svdvals(A)
        expected = np.linalg.svd(A.double().numpy(), compute_uv=False)
        assert values.dtype == dtype
        assert values.shape == (*shape[:-2], min(shape[-2:]))
        error = np.abs(values.double().numpy() - expected).max()
        assert error <= 10 * torch.finfo(dtype).eps * expected.max()

    @pytest.mark.parametrize("seed", range(3))
    def test_agrees_with_50_digits(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((6, 4)) * 10.0 ** -np.arange(4)  # graded columns
        with mpmath.workdps(50):
            exact = sorted(mpmath.svd_r(mpmath.matrix(A.tolist()), compute_uv=False), reverse=True)
            found = llr.svdvals(torch.from_numpy(A)).tolist()
            for value, truth in zip(found, exact, strict=True):
                assert abs(value - truth) <= 4 * 2.0**-52 * exact[0]

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("length", [2**9, 2**13, 2**17])
    def test_long_matrices_of_known_spectrum(self, length: int, dtype: torch.dtype) -> None:
        # Rows of a Hadamard matrix are orthogonal; scaled by powers of two they stay exact.
        k = 6
        signs = torch.ones(1, 1)
        for _ in range(3):
            signs = torch.cat((torch.cat((signs, signs), 1), torch.cat((signs, -signs), 1)))
        A = signs[:k].repeat(1, length // 8).to(dtype) * 2.0 ** -torch.arange(k)[:, None]
        expected = length**0.5 * 2.0 ** -torch.arange(k).double()
        for matrix in (A, A.T.contiguous(), A.T.contiguous().T):
            values = llr.svdvals(matrix)
            assert (values.double() - expected).abs().max() <= 3 * torch.finfo(
                dtype
            ).eps * expected[0]

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("m", "r"), [(3, 1), (5, 2), (5, 4), (20, 5)])
    @pytest.mark.parametrize("n", [300, 1024, 16_384, 100_000])
    def test_noise_does_not_grow_with_length(
        self, m: int, n: int, r: int, dtype: torch.dtype
    ) -> None:
        values = llr.svdvals(low_rank(m, n, r, dtype=dtype))
        assert values[r] <= 2 * torch.finfo(dtype).eps * values[0]
        assert values[r - 1] > 1e-3 * values[0]

    def test_strides_do_not_matter(self) -> None:
        A = torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        views = {
            "transposed": A.T.contiguous().T,
            "sliced": torch.stack((A, -A), -1)[..., 0],
            "flipped": A.flip(0).flip(0),
        }
        for view in views.values():
            assert torch.equal(view, A)
            torch.testing.assert_close(llr.svdvals(view), llr.svdvals(A), rtol=0, atol=1e-14)
        expanded = llr.svdvals(A[:1].expand(5, 30))
        assert expanded[0].item() == pytest.approx(5**0.5 * A[0].norm().item(), rel=1e-15)
        assert expanded[1] <= 1e-15 * expanded[0]

    def test_a_batch_is_a_loop(self) -> None:
        A = torch.randn(3, 2, 5, 700, dtype=torch.float64)
        A[1, 0] *= 1e200  # one that needs scaling
        A[2, 1] = 0
        values = llr.svdvals(A)
        for i in range(3):
            for j in range(2):
                torch.testing.assert_close(values[i, j], llr.svdvals(A[i, j]), rtol=1e-14, atol=0)

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (2, 0, 3), (0, 3, 2)])
    def test_empty(self, shape: tuple[int, ...]) -> None:
        values = llr.svdvals(torch.zeros(shape))
        assert values.shape == (*shape[:-2], min(shape[-2:]))

    def test_no_history(self) -> None:
        assert not llr.svdvals(torch.ones(2, 2, requires_grad=True)).requires_grad

    @pytest.mark.parametrize("scale", [1e-307, 1e-290, 1e-150, 1e-20, 1e20, 1e150, 1e290])
    def test_scale(self, scale: float) -> None:
        A = with_spectrum([3.0, 2.0, 1e-9], 20, 8)
        values = llr.svdvals(A * scale) / scale
        assert values[:3].tolist() == pytest.approx([3.0, 2.0, 1e-9], rel=1e-5)
        assert values[3] < 1e-15

    @pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e37])
    def test_scale_of_float32(self, scale: float) -> None:
        values = llr.svdvals(torch.diag(torch.tensor([2.0, 1.0])) * scale)
        assert (values / scale).tolist() == pytest.approx([2.0, 1.0], rel=1e-6)


class TestNoConvergence:
    """If the first method fails, another one is used, and the result says so."""

    @staticmethod
    def agrees(A: Tensor, caplog: pytest.LogCaptureFixture) -> None:
        expected = np.linalg.svd(A.numpy(), compute_uv=False)
        with caplog.at_level(logging.WARNING, logger="llr"):
            values = llr.svdvals(A)
        assert np.abs(values.numpy() - expected).max() < 1e-13
        assert "failed; computing its singular values as eigenvalues" in caplog.text

    @pytest.mark.skipif(not _ops.NATIVE, reason="needs the native library")
    def test_the_operator_gives_up_on_one(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        native = _ops.svdvals

        def fails(A: Tensor) -> Tensor:
            values = native(A)
            values[1] = math.nan
            return values

        monkeypatch.setattr(_ops, "svdvals", fails)
        self.agrees(torch.randn(3, 9, 4, dtype=torch.float64), caplog)
        assert "1 x 9 x 4" in caplog.text

    def test_torch_gives_up(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(_: Tensor) -> Tensor:
            raise torch.linalg.LinAlgError("linalg.svd: (Batch element 0): failed to converge")

        monkeypatch.setattr(_ops, "has_kernel", lambda *_: False)
        monkeypatch.setattr(torch.linalg, "svdvals", fails)
        self.agrees(torch.randn(2, 9, 4, dtype=torch.float64), caplog)
        assert "2 x 9 x 4" in caplog.text

    def test_torch_gives_nan(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(_ops, "has_kernel", lambda *_: False)
        monkeypatch.setattr(torch.linalg, "svdvals", lambda B: B.new_full(B.shape[-1:], math.nan))
        self.agrees(low_rank(9, 12, 3), caplog)

    def test_both_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nan = torch.tensor(math.nan, dtype=torch.float64)
        monkeypatch.setattr(_ops, "has_kernel", lambda *_: False)
        monkeypatch.setattr(torch.linalg, "svdvals", lambda B: nan.expand(B.shape[-1]))
        monkeypatch.setattr(torch.linalg, "eigvalsh", lambda B: nan.expand(B.shape[-1]))
        with pytest.raises(torch.linalg.LinAlgError, match=r"no method .* \(1, 5, 3\) matrix"):
            llr.svdvals(torch.ones(1, 5, 3))


class TestBadMatrices:
    @pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.complex64])
    def test_dtype(self, dtype: torch.dtype) -> None:
        way = (
            "float32 or float64 (A.double()"
            if not dtype.is_complex
            else "real matrix. The real form"
        )
        with pytest.raises(
            TypeError, match=re.escape(f"A is {dtype}; expected ") + ".*" + re.escape(way)
        ):
            llr.svdvals(torch.ones(2, 2, dtype=dtype))

    def test_the_real_form_of_a_complex_matrix(self) -> None:
        """The message's advice, checked with NumPy for complex matrices: each singular value twice."""
        g = torch.Generator().manual_seed(0)
        left, right = (
            torch.randn(*s, dtype=torch.complex128, generator=g) for s in ((5, 3), (3, 7))
        )
        for A in (
            left @ right,
            (left @ right)[:, :2],
            torch.stack((left @ right, 0 * left @ right)),
        ):
            with pytest.raises(TypeError) as refused:
                llr.numerical_rank(A)
            form = eval(str(refused.value).split(": ", 1)[1])
            twice = np.repeat(np.linalg.svd(A.numpy(), compute_uv=False), 2, axis=-1)
            torch.testing.assert_close(
                llr.svdvals(form), torch.from_numpy(twice), rtol=0, atol=1e-12
            )
            rank = np.linalg.matrix_rank(A.numpy(), tol=1e-9)
            assert np.array_equal(np.asarray(llr.numerical_rank(form, atol=1e-9).rank), 2 * rank)

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize("call", [llr.numerical_rank, llr.svdvals, llr.rank])
    def test_messages_name_the_argument(self, call: Any) -> None:
        name = "matrix" if call is llr.rank else "A"
        bad = [
            torch.ones(3),
            torch.ones(2, 2).cfloat(),
            torch.ones(2, 2).long(),
            torch.full((2, 2), math.nan),
            torch.full((2, 2), 1e308, dtype=torch.float64),
            torch.ones(2, 2, device="meta"),
            [[1.0, 2.0], [3.0]],
            [["a"]],
            [torch.ones(2), torch.ones(2)],
            torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            [[2**53 + 1]],
            np.ma.masked_array([[1.0]], [[True]]),
        ]
        for A in bad:
            with pytest.raises((TypeError, ValueError)) as refused:
                call(A)
            message = str(refused.value)
            assert re.search(rf"^{name} (is|has) |of {name} is", message), message
            assert not re.search("model|sample", message), message

    def test_not_a_tensor(self) -> None:
        with pytest.raises(TypeError, match=r"A is str; expected a tensor"):
            llr.svdvals("matrix.npy")

    @pytest.mark.parametrize(
        ("shape", "what"), [((), "a single number"), ((3,), r"a vector of shape \(3,\)")]
    )
    def test_too_few_dimensions(self, shape: tuple[int, ...], what: str) -> None:
        with pytest.raises(
            ValueError, match=rf"A is {what}; expected a matrix \(m, n\) or a batch"
        ):
            llr.svdvals(torch.ones(shape))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite(self, bad: float) -> None:
        A = torch.zeros(3, 4)
        A[1, 2] = A[2, 0] = bad
        with pytest.raises(
            ValueError, match=rf"has 2 NaN or Inf .* 12, .*\({bad}\) at row 1, column 2"
        ):
            llr.numerical_rank(A)

    def test_non_finite_in_a_batch(self) -> None:
        A = torch.zeros(2, 3, 3)
        A[1, 0, 2] = math.nan
        with pytest.raises(ValueError, match="at batch 1, row 0, column 2"):
            llr.svdvals(A)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_overflow(self, dtype: torch.dtype) -> None:
        A = torch.full((3, 3), torch.finfo(dtype).max, dtype=dtype)
        with pytest.raises(ValueError, match=r"value of A is too large for .*divide A"):
            llr.svdvals(A)


class TestTolerance:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_default_is_eps_times_the_short_side(self, dtype: torch.dtype) -> None:
        tol = tolerance(torch.tensor([8.0, 1.0], dtype=dtype), 2)
        assert tol.dtype == dtype
        assert tol.item() == 16 * torch.finfo(dtype).eps

    def test_the_larger_of_the_two(self) -> None:
        s = torch.tensor([[8.0, 1.0], [0.5, 0.1]])
        assert tolerance(s, 2, rtol=0.25, atol=1.0).tolist() == [2.0, 1.0]
        assert tolerance(s, 2, rtol=0.0).tolist() == [0.0, 0.0]

    def test_empty_spectrum(self) -> None:
        assert tolerance(torch.zeros(3, 0), 0, atol=0.5).tolist() == [0.5] * 3

    @pytest.mark.parametrize("name", ["rtol", "atol"])
    @pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf])
    def test_bad_values(self, name: str, value: float) -> None:
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0, got {value}"):
            llr.numerical_rank(torch.eye(2), **{name: value})

    def test_more_columns_than_1_over_eps(self) -> None:
        # max(m, n) * eps >= 1 in float32: the usual rule calls every such matrix zero.
        A = torch.ones(2, 8_400_000)
        A[1, ::2] = -1
        assert torch.linalg.matrix_rank(A) == 0
        result = llr.numerical_rank(A)
        assert result.rank == 2
        assert result.exact
        A[1] = -A[0]
        assert llr.numerical_rank(A).rank == 1
