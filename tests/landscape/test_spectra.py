"""Eigenvalues of Hessians compared with closed forms and other methods."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from ranks.test_rank import DEGENERATE, samples, two_layer
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import llr
from llr import certify
from llr.landscape import embedded_spectrum, hessian_spectrum
from llr.models import DeepLinear, MatrixFactorization, mlp

from .test_critical import F64, minimised, randn

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestEigenvalues:
    """The values of the eigenvalues."""

    def test_least_squares(self) -> None:
        x, y = randn(9, 4), randn(9, 1, seed=1)
        model = nn.Linear(4, 1, bias=False, dtype=F64)
        expected = torch.linalg.eigvalsh(x.T @ x / 9)
        for kind in ("full", "gauss-newton"):
            found = hessian_spectrum(model, x, y, kind=kind)
            torch.testing.assert_close(found.eigenvalues, expected)
            assert (found.index, found.nullity, found.complete) == (0, 0, True)

    @pytest.mark.parametrize(("m", "p", "n"), [(2, 1, 3), (3, 2, 2), (2, 4, 2)])
    def test_factorization_at_zero(self, m: int, p: int, n: int) -> None:
        # Near A = B = 0 the loss on all m n entries is const - <A B, M> / (m n), with the eigenvalues
        # +- sigma(M) / (m n), each p times, and zeros.
        model = MatrixFactorization(m, p, n).double()
        with torch.no_grad():
            model.A.zero_()
            model.B.zero_()
        M = randn(m, n)
        pairs = torch.cartesian_prod(torch.arange(m), torch.arange(n))
        found = hessian_spectrum(model, pairs, M.reshape(-1, 1))
        s = torch.linalg.svdvals(M).repeat(p) / (m * n)
        expected = torch.cat((s, -s, s.new_zeros((m + n) * p - 2 * len(s)))).sort().values
        torch.testing.assert_close(found.eigenvalues, expected)
        r = min(m, n) * p
        assert (found.index, found.nullity) == (r, (m + n) * p - 2 * r)

    @pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
    def test_against_double_backward(self, loss: str) -> None:
        model, x = mlp([2, 3, 2, 3]).double(), randn(6, 2)
        y = randn(6, 3, seed=1) if loss == "mse" else torch.arange(6) % 3
        named = dict(model.named_parameters())

        def value(*parameters: Tensor) -> Tensor:
            out = torch.func.functional_call(model, dict(zip(named, parameters, strict=True)), (x,))
            if loss == "mse":
                return ((out - y) ** 2).sum() / 12
            return -out.log_softmax(-1)[torch.arange(6), y].mean()

        blocks: Any = torch.autograd.functional.hessian(value, tuple(named.values()))
        sizes = [p.numel() for p in named.values()]
        H = torch.cat(
            [
                torch.cat([b.reshape(s, t) for b, t in zip(row, sizes, strict=True)], 1)
                for row, s in zip(blocks, sizes, strict=True)
            ]
        )
        found = hessian_spectrum(model, x, y, loss)
        torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(H))
        assert found.index == int((torch.linalg.eigvalsh(H) < -1e-10).sum()) > 0

    def test_gauss_newton_of_a_classifier(self) -> None:
        model, x, y = mlp([2, 3, 3]).double(), randn(9, 2), torch.arange(9) % 3
        found = hessian_spectrum(model, x, y, "cross_entropy", kind="gauss-newton")
        J, p = llr.jacobian(model, x), model(x).detach().softmax(-1)
        S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        G = torch.einsum("niP,nij,njQ->PQ", J, S, J) / 9
        torch.testing.assert_close(
            found.eigenvalues, torch.linalg.eigvalsh(G), atol=1e-13, rtol=1e-9
        )
        # Adding a constant to all logits changes nothing: the loss depends on 2 of 3 directions per sample.
        assert found.nullity is not None
        assert found.nullity >= found.n_params - 18
        assert found.index == 0

    def test_a_loss_that_bends_down(self) -> None:
        model, x, y = mlp([1, 2, 1]).double(), randn(5, 1), randn(5, 1, seed=1)
        found = hessian_spectrum(model, x, y, lambda f, y: (f - y).cos().sum(), kind="gauss-newton")
        J = llr.jacobian(model, x)[:, 0]
        G = J.T @ (-(model(x).detach() - y).cos() * J)
        torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh((G + G.T) / 2))
        assert found.index > 0

    def test_small_singular_values_are_not_drowned(self) -> None:
        # J has singular values 1 and 1e-10, so that J'J has an eigenvalue 1e-20, too small for eigvalsh.
        x = torch.tensor([[1.0, 1.0], [0.0, 1e-10], [0.0, 0.0]], dtype=F64)
        model, y = nn.Linear(2, 1, bias=False, dtype=F64), torch.zeros(3, 1, dtype=F64)
        found = hessian_spectrum(model, x, y, kind="gauss-newton")
        assert found.nullity == 0
        assert float(found.eigenvalues[0]) == pytest.approx(0.5e-20 / 3, rel=1e-6)
        assert hessian_spectrum(model, x, y).nullity == 1


class TestNullity:
    """At zero loss the Hessian is J'J/n: its nullity is P - rank."""

    @pytest.mark.parametrize("name", list(DEGENERATE))
    def test_degenerate_networks(self, name: str) -> None:
        neurons, options, _ = DEGENERATE[name]
        model = two_layer(neurons, **options)
        n_params = sum(p.numel() for p in model.parameters())
        x = samples(2 * n_params, model[0].in_features)
        y = model(x).detach()
        rank = certify(model, x).rank
        for kind in ("full", "gauss-newton"):
            found = hessian_spectrum(model, x, y, kind=kind)
            assert (found.nullity, found.index) == (n_params - rank, 0)

    def test_deep_linear(self) -> None:
        model, x = DeepLinear([3, 4, 2]).double(), randn(20, 3)
        found = hessian_spectrum(model, x, model(x).detach())
        assert (found.n_params, found.nullity) == (20, 14)


class TestLanczos:
    """The ends of the spectrum, computed without the matrix."""

    @pytest.mark.parametrize("kind", ["full", "gauss-newton"])
    @pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
    def test_ends(self, kind: Any, loss: str) -> None:
        model, x = mlp([2, 6, 3]).double(), randn(30, 2)
        y = randn(30, 3, seed=1) if loss == "mse" else torch.arange(30) % 3
        dense = hessian_spectrum(model, x, y, loss, kind=kind)
        few = hessian_spectrum(model, x, y, loss, kind=kind, method="lanczos", k=4)
        ends = torch.cat((dense.eigenvalues[:4], dense.eigenvalues[-4:]))
        torch.testing.assert_close(few.eigenvalues, ends, atol=4e-9, rtol=0.0)
        assert (few.method, few.nullity, len(few.eigenvalues)) == ("lanczos", None, 8)

    def test_no_negative_eigenvalue(self) -> None:
        # A minimum, with a zero eigenvalue of high multiplicity at the lower end.
        model, x = mlp([2, 6, 3]).double(), randn(4, 2)
        found = hessian_spectrum(model, x, model(x).detach(), method="lanczos", k=3)
        assert (found.index, found.complete) == (0, True)
        dense = hessian_spectrum(model, x, model(x).detach())
        torch.testing.assert_close(found.eigenvalues[-3:], dense.eigenvalues[-3:])

    def test_copies_of_an_eigenvalue_may_be_missed(self) -> None:
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        model = MatrixFactorization(3, 2, 3).double()
        with torch.no_grad():
            model.A.zero_()
            model.B.zero_()
        y = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=F64)).reshape(-1, 1)
        one = hessian_spectrum(model, pairs, y, method="lanczos", k=2)
        assert (1 <= one.index <= 2, one.complete) == (True, False)
        assert "index at least" in str(one)
        dense = hessian_spectrum(model, pairs, y)
        assert (dense.index, dense.nullity, dense.complete) == (4, 4, True)

    def test_a_flat_loss(self) -> None:
        model, x = nn.Linear(4, 1, bias=False, dtype=F64), torch.zeros(2, 4, dtype=F64)
        found = hessian_spectrum(model, x, x[:, :1], method="lanczos", k=1)
        assert found.eigenvalues.tolist() == [0.0, 0.0]

    def test_choice(self) -> None:
        model, x, y = mlp([2, 40, 10, 1]).double(), randn(5, 2), randn(5, 1, seed=1)
        with llr.set_memory_budget("1 MB"):
            found = hessian_spectrum(model, x, y)
            assert (found.method, len(found.eigenvalues)) == ("lanczos", 20)
            with pytest.raises(ValueError, match=r"memory budget of 1 MB; take .*method='lanczos'"):
                hessian_spectrum(model, x, y, method="dense")
        assert hessian_spectrum(model, x, y, k=3).method == "dense"


def split_by_hand(narrow: nn.Sequential, t: float) -> tuple[nn.Sequential, Tensor]:
    """Split the first neuron of a d-m-q network, with shares 1 - t and t; and the matrix of this map."""
    m, q = narrow[0].out_features, narrow[2].out_features
    d = narrow[0].in_features
    E = torch.cat((torch.eye(m, dtype=F64), torch.eye(m, dtype=F64)[:1]))
    S = E.clone()
    S[0, 0], S[m, 0] = 1 - t, t
    bias = narrow[0].bias is not None
    ins, outs = torch.kron(E, torch.eye(d, dtype=F64)), torch.kron(torch.eye(q, dtype=F64), S)
    A = torch.block_diag(*[ins, E, outs] if bias else [ins, outs])
    wide = mlp([d, m + 1, q], bias=bias, output_bias=False).double()
    theta = A @ torch.cat([p.detach().flatten() for p in narrow.parameters()])
    with torch.no_grad():
        for p, v in zip(
            wide.parameters(), theta.split([p.numel() for p in wide.parameters()]), strict=True
        ):
            p.copy_(v.view(p.shape))
    return wide, A


class TestEmbedded:
    """The Hessian of a narrow network inside that of a wide one."""

    @pytest.mark.parametrize("t", [0.5, -1.0, 0.25, 2.0])
    def test_chain_rule(self, t: float) -> None:
        x, y = randn(9, 2), randn(9, 2, seed=1)
        narrow = mlp([2, 2, 2], output_bias=False).double()
        wide, A = split_by_hand(narrow, t)
        found = embedded_spectrum(narrow, wide, A, x, y)
        assert found.mismatch < 1e-12
        assert (len(found.inside), len(found.outside)) == (10, 5)
        # Sylvester: the compression has the narrow Hessian's signs; Cauchy: the wide one has at least them.
        for sign in (-1, 1):
            inside = int((sign * found.inside > 1e-10).sum())
            assert inside == int((sign * found.narrow.eigenvalues > 1e-10).sum())
            assert int((sign * found.wide.eigenvalues > 1e-10).sum()) >= inside
        assert found.new_negative == found.wide.index - found.narrow.index >= 0

    @pytest.mark.parametrize("t", [0.5, -1.0])
    def test_explained(self, t: float) -> None:
        x, y = randn(9, 2), randn(9, 2, seed=1)
        narrow = mlp([2, 2, 2], output_bias=False).double()
        wide, A = split_by_hand(narrow, t)
        found = embedded_spectrum(narrow, wide, A, x, y)
        # Independent: least squares with A for each eigenvector, with autograd's Hessian.
        theta = parameters_to_vector(wide.parameters()).detach()
        params = dict(wide.named_parameters())

        def loss(v: torch.Tensor) -> torch.Tensor:
            parts = v.split([p.numel() for p in params.values()])
            shaped = {
                name: part.view(p.shape)
                for part, (name, p) in zip(parts, params.items(), strict=True)
            }
            return (torch.func.functional_call(wide, shaped, (x,)) - y).square().sum() / len(x)

        values, V = torch.linalg.eigh(torch.autograd.functional.hessian(loss, theta))
        shares = (A @ torch.linalg.lstsq(A, V).solution).square().sum(0)
        zero = values.abs() <= found.wide.tolerance
        torch.testing.assert_close(found.explained[~zero], shares[~zero])
        assert float(found.explained.sum()) == pytest.approx(A.shape[1])
        assert len(set(found.explained[zero].tolist())) <= 1
        assert len(found.to_dict(spectrum=True)["explained"]) == len(theta)

    @pytest.mark.parametrize(
        ("bias", "seed"),
        [(True, 13), (True, 19), (True, 22), (False, 1), (False, 3), (False, 4), (False, 5)],
    )
    def test_what_splitting_does_to_a_minimum(self, bias: bool, seed: int) -> None:
        # Fukumizu and Amari (2000): with G = sum e_i a s''(z_i) (x_i, 1)(x_i, 1)' the wide Hessian has the
        # narrow one's signs, those of t (1 - t) G, and a zero along the line of all shares t.
        torch.manual_seed(seed)
        x, y = randn(9, 1, seed=seed), randn(9, 1, seed=100 + seed)
        narrow = mlp([1, 1, 1], bias=bias, output_bias=False).double()
        if not bias:  # near a minimum that is not at zero
            y = x.tanh() + y / 4
            nn.init.ones_(narrow[0].weight), nn.init.ones_(narrow[2].weight)
        narrow = minimised(narrow, x, y)
        inputs = torch.cat((x, torch.ones_like(x)), 1)[:, : 1 + bias]
        s, a = narrow[:2](x).detach(), narrow[2].weight.detach()
        bend = (narrow(x).detach() - y) / 9 * a * -2 * s * (1 - s**2)
        G = torch.linalg.eigvalsh((inputs * bend).T @ inputs)
        assert float(G.abs().min()) > 1e-4
        for t in (0.5, -1.0):
            wide, A = split_by_hand(narrow, t)
            found = embedded_spectrum(narrow, wide, A, x, y, rtol=1e-9)
            assert found.narrow.nullity == 0
            assert found.wide.nullity == 1
            assert found.new_negative == int((t * (1 - t) * G < 0).sum())

    def test_wrong_embeddings(self) -> None:
        x, y = randn(9, 2), randn(9, 2, seed=1)
        narrow = mlp([2, 2, 2], output_bias=False).double()
        wide, A = split_by_hand(narrow, 0.5)
        # A wrong matrix, which is not the derivative of the embedding.
        wrong = A.clone()
        wrong[0, 0] = 2.0
        assert embedded_spectrum(narrow, wide, wrong, x, y).mismatch > 1e-3
        with pytest.raises(ValueError, match=r"shape \(10, 15\); expected \(15, 10\)"):
            embedded_spectrum(narrow, wide, A.T, x, y)
        with pytest.raises(ValueError, match="full column rank"):
            embedded_spectrum(narrow, wide, torch.zeros_like(A), x, y)
        with torch.no_grad():
            wide[2].weight += 1
        with pytest.raises(ValueError, match="outputs of the networks differ"):
            embedded_spectrum(narrow, wide, A, x, y)

    def test_report(self) -> None:
        x, y = randn(9, 2), randn(9, 2, seed=1)
        narrow = mlp([2, 2, 2], output_bias=False).double()
        wide, A = split_by_hand(narrow, 0.5)
        found = embedded_spectrum(narrow, wide, A, x, y)
        assert str(found).count("\n") == 2
        assert "new negative directions" in str(found)
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert plain["new_negative"] == found.new_negative


class TestReport:
    """The report of a spectrum."""

    def test_text_and_json(self) -> None:
        x = torch.eye(3, dtype=F64)[:2]
        model = nn.Linear(3, 1, bias=False, dtype=F64)
        found = hessian_spectrum(model, x, x[:, :1])
        assert math.isinf(found.gap)
        assert str(found).startswith(
            "full Hessian, 3 parameters: index 0, nullity 1, eigenvalues from 0"
        )
        assert str(found).endswith(", the rest exactly 0; dense)")
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["gap"] is None

    def test_tolerance(self) -> None:
        x = torch.diag(torch.tensor([1.0, 1e-3], dtype=F64))
        model = nn.Linear(2, 1, bias=False, dtype=F64)
        for kind in ("full", "gauss-newton"):
            assert hessian_spectrum(model, x, x[:, :1], kind=kind).nullity == 0
            assert hessian_spectrum(model, x, x[:, :1], kind=kind, rtol=1e-5).nullity == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "half"}, "kind is 'half'"),
            ({"method": "qr"}, "method is 'qr'"),
            ({"k": 0}, "k is 0; expected an integer from 1"),
            ({"k": 14}, "k is 14"),
            ({"k": 7, "method": "lanczos"}, "take method='dense'"),
            ({"rtol": math.nan}, "rtol is nan"),
        ],
    )
    def test_bad_input(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            hessian_spectrum(mlp([2, 3, 1]).double(), randn(4, 2), randn(4, 1), **options)
