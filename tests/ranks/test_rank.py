"""Ranks of models compared with closed forms: every expected number is a theorem, not a measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import llr

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64


def two_layer(
    neurons: Sequence[tuple[list[float], float, list[float]]],
    *,
    act: str = "tanh",
    beta: bool = True,
    output_bias: bool = False,
) -> nn.Sequential:
    """sum_i a_i s(w_i x + b_i) (+ c); neurons are (w, b, a) with w in R^d, a in R^q."""
    w, b, a = (torch.tensor(part, dtype=F64) for part in zip(*neurons, strict=True))
    d, q, m = w.shape[1], a.shape[1], len(neurons)
    activation = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus}[act]()
    model = nn.Sequential(
        nn.Linear(d, m, bias=beta), activation, nn.Linear(m, q, bias=output_bias)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(w)
        if beta:
            model[0].bias.copy_(b)
        model[2].weight.copy_(a.T)
    return model


def samples(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


W1, W2 = [0.9, -1.3], [1.1, 0.4]

# Neurons (w, b, a), model options, and dim T for tanh, sigmoid and softplus (docs: two-layer networks).
DEGENERATE = {
    "two distinct neurons": ([(W1, 0.3, [1.0]), (W2, -0.7, [0.8])], {}, (8, 8, 8)),
    "output bias": (
        [(W1, 0.3, [1.0]), (W2, -0.7, [0.8])],
        {"output_bias": True},
        (9, 9, 9),
    ),
    "mirror images": (
        [(W1, 0.3, [1.0]), ([-0.9, 1.3], -0.3, [1.0])],
        {},
        (4, 5, 7),
    ),
    "no outgoing weight": ([(W1, 0.3, [0.0])], {}, (1, 1, 1)),
    "constant": ([([0.0, 0.0], 0.5, [1.0])], {}, (3, 3, 3)),
    "constant, no outgoing weight": ([([0.0, 0.0], 0.5, [0.0])], {}, (1, 1, 1)),
    "zero input": ([([0.0, 0.0], 0.0, [1.0])], {}, (3, 3, 3)),
    "zero": ([([0.0, 0.0], 0.0, [0.0])], {}, (0, 1, 1)),
    "no biases, w = 0": ([([0.0, 0.0], 0.0, [1.0])], {"beta": False}, (2, 3, 3)),
    "copies, parallel outputs": ([(W1, 0.3, [1.0, 2.0]), (W1, 0.3, [2.0, 4.0])], {}, (5, 5, 5)),
    "copies, independent outputs": ([(W1, 0.3, [1.0, 0.0]), (W1, 0.3, [0.0, 1.0])], {}, (8, 8, 8)),
    "zero input, q = 2": ([([0.0, 0.0], 0.0, [1.0, 0.0])], {}, (3, 4, 4)),
    "two constants": (
        [([0.0, 0.0], 0.0, [1.0]), ([0.0, 0.0], 1.0, [1.0])],
        {},
        (3, 3, 3),
    ),
    "q = 3, four copies of rank 2 and a constant": (
        [
            (W1, 0.3, [1.0, 0.0, 0.0]),
            (W1, 0.3, [0.0, 1.0, 0.0]),
            (W1, 0.3, [1.0, 1.0, 0.0]),
            (W1, 0.3, [2.0, -1.0, 0.0]),
            ([0.0, 0.0], 1.0, [0.0, 0.0, 1.0]),
        ],
        {"output_bias": True},
        (14, 14, 14),
    ),
}


class TestClosedForms:
    @pytest.mark.parametrize("act", ["tanh", "sigmoid", "softplus"])
    @pytest.mark.parametrize("name", DEGENERATE)
    def test_degenerate_two_layer_networks(self, name: str, act: str) -> None:
        neurons, options, expected = DEGENERATE[name]
        result = llr.rank(two_layer(neurons, act=act, **options), samples(60, 2))
        assert result.rank == expected[("tanh", "sigmoid", "softplus").index(act)]
        assert not result.ambiguous

    @pytest.mark.parametrize(("d", "m", "expected"), [(3, 16, 80), (10, 8, 96)])
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_well_conditioned(self, d: int, m: int, expected: int, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(0)
        w, b, a = (torch.randn(m, k, generator=g, dtype=F64) for k in (d, 1, 1))
        model = two_layer(list(zip(w.tolist(), b[:, 0].tolist(), a.tolist(), strict=True)))
        result = llr.rank(model, samples(2 * expected, d, seed=1), dtype=dtype)
        assert result.n_params == expected
        assert result.rank == expected

    def test_beyond_float64(self) -> None:
        # 16 distinct neurons on the line: rank 48 is certain, sigma_48 is near 1e-30.
        g = torch.Generator().manual_seed(0)
        w, b, a = torch.randn(3, 16, 1, generator=g, dtype=F64)
        model = two_layer(list(zip(w.tolist(), b[:, 0].tolist(), a.tolist(), strict=True)))
        result = llr.rank(model, samples(96, 1), resolve=False)
        assert result.rank < 48
        assert result.ambiguous
        assert "AMBIGUOUS" in str(result)
        settled = llr.rank(model, samples(96, 1))
        assert (settled.rank, settled.exact, settled.method) == (48, True, "certified")

    @pytest.mark.parametrize(("n", "expected"), [(7, 7), (8, 8), (9, 8), (1, 1)])
    def test_rank_grows_with_samples_up_to_the_model_rank(self, n: int, expected: int) -> None:
        # k = 2 distinct neurons split into 4: dim T = k (d + 2) = 8 of P = 16.
        halves = [(W1, 0.3, [0.5]), (W1, 0.3, [0.5]), (W2, -0.7, [0.3]), (W2, -0.7, [0.5])]
        assert llr.rank(two_layer(halves), samples(n, 2)).rank == expected

    @pytest.mark.parametrize(("d", "s", "k"), [(3, 2, 1), (4, 2, 1), (5, 3, 2)])
    def test_shared_convolution(self, d: int, s: int, k: int) -> None:
        class Convolution(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.kernels = nn.Conv1d(1, k, s, bias=False)
                self.read = nn.Parameter(torch.randn(k, d + 1 - s))

            def forward(self, x: Tensor) -> Tensor:
                return (torch.tanh(self.kernels(x[:, None])) * self.read).sum((1, 2))

        result = llr.rank(Convolution(), samples(40, d))
        assert result.rank == k * (d + 1)
        assert result.clear  # but no rule gives an error bound for such a model
        assert result.ambiguous

    @pytest.mark.parametrize(("m", "n", "p", "r"), [(4, 5, 5, 1), (4, 5, 5, 2), (5, 5, 8, 3)])
    def test_matrix_factorization(self, m: int, n: int, p: int, r: int) -> None:
        # f(i, j) = (AB)_ij at A, B of rank r: r (m + n - r).
        g = torch.Generator().manual_seed(0)
        A = torch.randn(m, r, generator=g, dtype=F64) @ torch.randn(r, p, generator=g, dtype=F64)
        B = torch.linalg.pinv(A) @ torch.randn(
            m, n, generator=g, dtype=F64
        )  # rows in A's row space
        x = torch.cartesian_prod(torch.arange(m), torch.arange(n))
        x = torch.cat((torch.eye(m)[x[:, 0]], torch.eye(n)[x[:, 1]]), 1).double()

        def entry(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return ((x[:, :m] @ params["A"]) * (params["B"] @ x[:, m:].T).T).sum(1)

        result = llr.rank(entry, x, params={"A": A, "B": B})
        assert (result.rank, result.n_params) == (r * (m + n - r), m * p + p * n)

    def test_linear_model(self) -> None:
        some = (8 * samples(6, 3)).round()  # so that sums are exact
        x = torch.cat((some, some @ torch.ones(3, 2, dtype=F64)), 1)
        assert llr.rank(nn.Linear(5, 1, bias=False), x).rank == 3
        assert llr.rank(nn.Linear(5, 4, bias=False), x).rank == 12


def random_network(g: torch.Generator, d: int, hidden: list[int], q: int) -> nn.Sequential:
    widths = [d, *hidden, q]
    layers = []
    for into, out in pairwise(widths):
        layers += [nn.Linear(into, out), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=F64) / p.shape[-1] ** 0.5)
    return model


def change_layer(
    model: nn.Module, layer: int, rows: Tensor, signs: Tensor, shares: Tensor
) -> nn.Sequential:
    """The network whose hidden neurons in `layer` are copies of `rows`, reflected and with shares."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    parts = []
    for i, linear in enumerate(linears):
        weight, bias = linear.weight.detach(), linear.bias.detach()
        if i == layer:
            weight, bias = signs[:, None] * weight[rows], signs * bias[rows]
        if i == layer + 1:
            weight = weight[:, rows] * (signs * shares)
        new = nn.Linear(weight.shape[1], weight.shape[0]).double()
        with torch.no_grad():
            new.weight.copy_(weight)
            new.bias.copy_(bias)
        parts += [new, nn.Tanh()]
    return nn.Sequential(*parts[:-1])


NETWORKS = st.tuples(
    st.integers(2, 4),  # d
    st.lists(st.integers(2, 4), min_size=1, max_size=2),  # hidden widths
    st.integers(1, 2),  # q
    st.integers(0, 2**32 - 1),  # seed
)


class TestSymmetries:
    @settings(max_examples=40, deadline=None)
    @given(NETWORKS, st.data())
    def test_same_function_same_rank(
        self, network: tuple[int, list[int], int, int], data: st.DataObject
    ) -> None:
        d, hidden, q, seed = network
        g = torch.Generator().manual_seed(seed)
        model = random_network(g, d, hidden, q)
        x = samples(120, d, seed)
        layer = data.draw(st.integers(0, len(hidden) - 1))
        width = hidden[layer]
        order = torch.randperm(width, generator=g)
        signs = torch.randint(0, 2, (width,), generator=g).double() * 2 - 1
        share = data.draw(st.sampled_from([0.3, 0.0, 1.0, -0.75]))
        rows = torch.cat((torch.arange(width), torch.tensor([0])))
        shares = torch.ones(width + 1, dtype=F64)
        shares[0], shares[-1] = 1 - share, share
        flipped = torch.ones(width + 1, dtype=F64)
        flipped[-1] = -1
        ones = torch.ones(width, dtype=F64)
        expected = llr.rank(model, x, resolve=False).rank
        for variant in (
            change_layer(model, layer, order, ones, ones),
            change_layer(model, layer, torch.arange(width), signs, ones),
            change_layer(model, layer, rows, torch.ones_like(shares), shares),
            change_layer(model, layer, rows, flipped, shares),
        ):
            torch.testing.assert_close(variant(x), model(x), rtol=1e-12, atol=1e-12)
            # Shares are rounded: a proof would find that outgoing weights of copies are not quite parallel.
            assert llr.rank(variant, x, resolve=False).rank == expected

    def test_adding_a_neuron_without_copying_adds_rank(self) -> None:
        # The counterpart: what keeps the function but is no copy changes the rank, so the test
        # above can fail.
        narrow = two_layer([(W1, 0.3, [1.0])])
        wide = two_layer([(W1, 0.3, [1.0]), (W2, -0.7, [0.0])])
        x = samples(40, 2)
        torch.testing.assert_close(narrow(x), wide(x), rtol=0, atol=1e-15)
        assert (llr.rank(narrow, x).rank, llr.rank(wide, x).rank) == (4, 5)

    def test_sample_order_and_repetition(self) -> None:
        model = random_network(torch.Generator().manual_seed(5), 3, [4], 1)
        x = samples(9, 3)
        assert llr.rank(model, x).rank == 9
        assert llr.rank(model, x.flip(0)).rank == 9
        assert llr.rank(model, torch.cat((x, x))).rank == 9


class TestInterface:
    def test_facts(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        result = llr.rank(model, torch.randn(7, 3))
        assert (result.n_rows, result.n_params) == (14, 26)
        assert result.spectrum.shape == (14,)
        assert result.dtype == F64
        assert result.spectrum.dtype == F64
        assert result.path
        assert f"J by {result.path}" in str(result)
        assert result.to_dict()["path"] == result.path

    def test_every_backend_agrees(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x = samples(20, 3)
        found = [llr.rank(model, x, backend=b) for b in ("auto", "torch", "loop")]
        assert len({r.path for r in found}) >= 2
        for r in found:
            assert r.rank == 26
            torch.testing.assert_close(r.spectrum, found[0].spectrum, rtol=1e-10, atol=1e-13)

    @pytest.mark.parametrize(
        ("given_dtype", "used"),
        [("auto", F64), (None, torch.float32), (torch.float32, torch.float32), (F64, F64)],
    )
    def test_dtype_of_a_model(
        self, given_dtype: torch.dtype | str | None, used: torch.dtype
    ) -> None:
        model, x = nn.Linear(3, 2), torch.randn(9, 3)
        before = {name: p.clone() for name, p in model.named_parameters()}
        assert llr.rank(model, x, dtype=given_dtype).dtype == used
        for name, p in model.named_parameters():
            assert p.dtype == torch.float32
            assert torch.equal(p, before[name])

    @pytest.mark.parametrize(
        ("given_dtype", "used"), [("auto", torch.float32), (None, torch.float32), (F64, F64)]
    )
    def test_dtype_of_a_tensor(
        self, given_dtype: torch.dtype | str | None, used: torch.dtype
    ) -> None:
        assert llr.rank(torch.eye(3), dtype=given_dtype).dtype == used

    def test_tensor_is_ranked_as_a_matrix(self) -> None:
        A = torch.diag(torch.tensor([1.0, 1e-3, 0.0]))
        assert llr.rank(A).rank == 2
        assert llr.rank(A, rtol=1e-2).rank == 1
        assert llr.rank(A, atol=2.0).rank == 0
        assert llr.rank(A).path is None

    def test_jacobian_tensor(self) -> None:
        model, x = nn.Linear(3, 2), torch.randn(9, 3)
        J = llr.jacobian(model.double(), x.double())
        assert llr.rank(J.flatten(-3, -2)).rank == llr.rank(model, x.double()).rank == 8
        assert llr.rank(J).rank.tolist() == [2] * 9

    def test_tolerances_reach_the_result(self) -> None:
        model, x = nn.Linear(3, 1).double(), samples(9, 3)
        assert llr.rank(model, x, rtol=0.5).tol == pytest.approx(
            0.5 * llr.rank(model, x).spectrum[0].item()
        )
        assert llr.rank(model, x, atol=1e6).rank == 0

    def test_params_select_columns(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        result = llr.rank(model, samples(50, 3), params="2.*")
        assert (result.n_params, result.rank) == (5, 5)

    def test_parameter_points_are_a_loop(self) -> None:
        models = [two_layer([(W1, 0.3, [1.0]), (w, -0.7, [a])]) for w, a in ((W2, 0.5), (W1, 0.0))]
        models.append(two_layer([(W1, 0.3, [1.0]), (W1, 0.3, [0.5])]))
        stacked = {
            name: torch.stack([dict(m.named_parameters())[name].detach() for m in models])
            for name, _ in models[0].named_parameters()
        }
        x = samples(30, 2)
        result = llr.rank(models[0], x, params=stacked)
        assert result.rank.tolist() == [llr.rank(m, x).rank for m in models] == [8, 5, 4]
        assert result.spectrum.shape == (3, 8)
        assert str(result).startswith("ranks of 3 matrices from 4 to 8")

    def test_chunks_do_not_matter(self) -> None:
        model, x = nn.Linear(3, 2).double(), samples(9, 3)
        whole = llr.rank(model, x, backend="torch")
        parts = llr.rank(model, x, backend="torch", chunk_size=2)
        torch.testing.assert_close(whole.spectrum, parts.spectrum, rtol=1e-13, atol=0)


class TestBadInput:
    def test_no_samples_argument(self) -> None:
        with pytest.raises(
            TypeError, match=r"needs samples: llr.rank\(model, x\); got only a Linear"
        ):
            llr.rank(nn.Linear(2, 1))

    @pytest.mark.parametrize(
        "extra",
        [{"x": torch.ones(2, 2)}, {"params": "0.*"}, {"chunk_size": 3}, {"backend": "loop"}],
    )
    def test_model_arguments_with_a_tensor(self, extra: dict[str, object]) -> None:
        with pytest.raises(TypeError, match=r"describe a model, but a tensor was given"):
            llr.rank(torch.eye(2), **extra)

    def test_no_samples(self) -> None:
        with pytest.raises(ValueError, match=r"x has no samples \(shape \(0, 2\)\)"):
            llr.rank(nn.Linear(2, 1), torch.zeros(0, 2))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_non_finite_input(self, bad: float) -> None:
        x = torch.zeros(3, 2)
        x[1, 0] = bad
        with pytest.raises(ValueError, match=rf"x is {bad} at index \(1, 0\)"):
            llr.rank(nn.Linear(2, 1), x)

    def test_non_finite_jacobian(self) -> None:
        def f(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
            return (x @ params["w"]).abs().sqrt()

        x = torch.tensor([[1.0, 2.0], [2.0, -1.0]])  # the second sample is on the kink of the root
        with pytest.raises(
            ValueError,
            match=r"derivative of output 0 of sample 1 by parameter 'w', index \(0,\), is nan",
        ):
            llr.rank(f, x, params={"w": torch.tensor([1.0, 2.0])})

    def test_neither_model_nor_tensor(self) -> None:
        with pytest.raises(TypeError, match="model is dict; expected"):
            llr.rank({"weight": torch.ones(2, 2)})

    @pytest.mark.parametrize("name", ["rtol", "atol"])
    def test_tolerances(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
            llr.rank(nn.Linear(2, 1), torch.ones(3, 2), **{name: -1.0})


@pytest.mark.parametrize(
    "width", [8, 300]
)  # where a proof would be tried at once, and where it would not
def test_no_proof_is_advised_where_there_can_be_none(width: int) -> None:
    model = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 1))
    found = llr.rank(model, torch.randn(60, 4))
    assert found.ambiguous
    assert "no certificate: exact arithmetic has no rule for LayerNorm" in str(found.reason)
    assert "resolve=True" not in f"{found} {found.reason}"
    with pytest.raises(ValueError, match="no rule for LayerNorm"):
        llr.rank(model, torch.randn(60, 4), resolve=True)


def test_more_bits_are_advised_where_they_ran_out() -> None:
    torch.manual_seed(0)
    model = llr.models.TwoLayer(1, 32).double()
    x = torch.randn(120, 1).double()
    found = llr.rank(model, x)
    assert found.certificate is not None
    assert found.certificate.stopped == "precision cap"
    assert "more bits may settle it (resolve=True, a larger max_bits)" in str(found)
    assert llr.rank(model, x, resolve=True).exact
