"""Certificates of networks whose rank is known, and every kind of false certificate."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import flint
import pytest
import torch
from flint import arb
from helpers.oracles import mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import llr
from llr import certify, verify
from llr.ranks.certificates.certify import Certificate
from ranks.test_rank import DEGENERATE, samples, two_layer

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")

F64 = torch.float64
ACTIVATIONS = ("tanh", "sigmoid", "softplus")


def random_net(
    *widths: int, seed: int = 0, output_bias: bool = False, activation: type[nn.Module] = nn.Tanh
) -> nn.Sequential:
    """Weights N(0, 1), divided by the fan-in if there are several hidden layers; biases N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (into, out) in enumerate(pairwise(widths)):
        layers += [activation()] if layers else []
        bias = output_bias or i < len(widths) - 2
        layer = nn.Linear(into, out, bias=bias, dtype=F64)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
            if len(widths) > 3:
                layer.weight /= into**0.5
        layers.append(layer)
    return nn.Sequential(*layers)


def model_size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class TestKnownRanks:
    @pytest.mark.parametrize("m", [4, 8, 12, 16, 24, 32])
    def test_one_dimensional_tanh(self, m: int) -> None:
        # Distinct neurons on the line: dim T = 3 m, which no float64 rank reaches for m >= 8.
        model, x = random_net(1, m, 1), samples(6 * m, 1, seed=1)
        certificate = certify(model, x)
        assert certificate.rank == certificate.upper == certificate.n_params == 3 * m
        assert certificate.exact
        assert certificate.stopped == "upper bound met"
        assert verify(certificate, model, x)
        if m >= 12:
            assert torch.linalg.matrix_rank(llr.jacobian(model, x).flatten(0, 1)) < 3 * m

    def test_deep(self) -> None:
        model, x = random_net(1, 10, 10, 1, output_bias=True), samples(282, 1, seed=1)
        certificate = certify(model, x)
        assert certificate.rank == certificate.n_params == 141
        assert verify(certificate, model, x)

    def test_wide_input(self) -> None:
        certificate = certify(random_net(3, 40, 1), samples(220, 3, seed=1))
        assert certificate.rank == certificate.upper == 200
        assert certificate.bits == 64

    @pytest.mark.parametrize("act", ACTIVATIONS)
    @pytest.mark.parametrize("name", DEGENERATE)
    def test_degenerate_two_layer_networks(self, name: str, act: str) -> None:
        neurons, options, expected = DEGENERATE[name]
        model, x = two_layer(neurons, act=act, **options), samples(60, 2)
        certificate = certify(model, x)
        assert certificate.rank == expected[ACTIVATIONS.index(act)]
        # The rank equals the closed form, and the same rank is found without it.
        assert certificate.exact
        assert certificate.upper_from == (
            "shape" if certificate.rank == model_size(model) else "theory"
        )
        assert verify(certificate, model, x)
        alone = certify(model, x, params="*")
        assert alone.rank == certificate.rank
        assert alone.stopped == (
            "upper bound met" if alone.rank == model_size(model) else "stopped growing"
        )
        told = certify(model, x, params="*", upper=certificate.rank)
        assert told.exact
        assert told.upper_from == ("shape" if alone.exact else "caller")

    def test_rows_are_the_shorter_side(self) -> None:
        model, x = random_net(2, 6, 2), samples(5, 2)
        certificate = certify(model, x)
        assert certificate.rank == certificate.n_rows == 10
        assert certificate.rows == tuple(range(10))

    @pytest.mark.parametrize(("d", "k"), [(3, 3), (2, 5)])
    def test_relu(self, d: int, k: int) -> None:
        # k (q + d + beta - 1) for distinct hyperplanes: the scaling of a neuron is free.
        model, x = random_net(d, k, 1, activation=nn.ReLU), samples(300, d, seed=1)
        certificate = certify(model, x)
        assert certificate.rank == certificate.upper == k * (d + 1)
        assert (certificate.arithmetic, certificate.bits) == ("rationals", None)
        assert certificate.upper_from == "exact rank"
        assert verify(certificate, model, x)

    def test_deep_linear_network(self) -> None:
        # sum of (p_l - p_(l-1)) q_l for widths 4-2-5-3: 10.
        model, x = random_net(4, 2, 5, 3, activation=nn.Identity), samples(20, 4)
        model[0].bias = model[2].bias = None
        assert certify(model, x).rank == 10

    def test_neurons_that_differ_in_the_last_bit(self) -> None:
        w = [0.9, -1.3]
        near = [float(torch.nextafter(torch.tensor(w[0], dtype=F64), torch.tensor(2.0))), w[1]]
        model = two_layer([(w, 0.3, [1.0]), (near, 0.3, [0.7])])
        certificate = certify(model, samples(30, 2))
        assert certificate.rank == certificate.upper == 8
        assert certify(two_layer([(w, 0.3, [1.0]), (w, 0.3, [0.7])]), samples(30, 2)).rank == 4

    def test_scales_do_not_matter(self) -> None:
        neurons = [([0.9, -1.3], 0.3, [1e-200]), ([1.1, 0.4], -0.7, [1e180])]
        certificate = certify(two_layer(neurons), samples(30, 2))
        assert (certificate.rank, certificate.bits) == (8, 64)

    def test_columns_that_cancel_to_zero(self) -> None:
        # Two equal neurons with opposite weights: derivatives below them are 0, and balls around 0.
        model = random_net(2, 3, 2, 1)
        with torch.no_grad():
            model[2].weight[1] = model[2].weight[0]
            model[2].bias[1] = model[2].bias[0]
            model[4].weight[0, 1] = -model[4].weight[0, 0]
        certificate = certify(model, samples(40, 2), params="*")
        # Left are tanh(z) and tanh'(z) times 1 and the three hidden neurons.
        assert (certificate.rank, certificate.stopped) == (5, "stopped growing")
        assert certify(model, samples(40, 2)).exact  # symbols show this too

    def test_a_sample_on_a_kink_does_not_hide_the_others(self) -> None:
        # relu(tanh(x) - tanh(x/2 + 1/4)): at x = 1/2 a ball around 0 at every precision.
        model = nn.Sequential(
            nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)
        ).double()
        with torch.no_grad():
            for p, v in zip(
                model.parameters(), ([1, 0.5], [0, 0.25], [1, -1], [0], [2], [1]), strict=True
            ):
                p.copy_(torch.tensor(v).view(p.shape))
        x = torch.cat((torch.tensor([[0.5]]).double(), 1 + samples(30, 1).abs()))
        # Away from it all is linear after tanh: the last layer adds nothing to the one before but its scale,
        # which is in there, too.
        assert certify(model, x, max_bits=256).rank == certify(model, x[1:]).rank == 7

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(
        st.integers(1, 3),
        st.integers(1, 3),
        st.integers(0, 3),
        st.sampled_from(ACTIVATIONS),
        st.integers(0, 10**6),
    )
    def test_planted_copies(self, d: int, k: int, copies: int, act: str, seed: int) -> None:
        # Copies with any outgoing weights leave dim T = k (d + 2) of k distinct neurons as it is.
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
        neurons = [(draw(d).tolist(), float(draw(1)), draw(1).tolist()) for _ in range(k)]
        for i in range(copies):
            w, b, _ = neurons[i % k]
            neurons.append((w, b, draw(1).tolist()))
        model = two_layer(neurons, act=act)
        rank = k * (d + 2)
        certificate = certify(model, samples(rank + 5, d, seed=seed))
        assert certificate.rank == rank
        assert certify(model, samples(rank - 1, d, seed=seed)).rank == rank - 1


@pytest.fixture(scope="module")
def case() -> tuple[nn.Sequential, Tensor, Certificate]:
    """A network with a planted copy (rank 12 of P = 16), a repeated sample, and its certificate."""
    neurons = [([0.3], 0.1, [1.0]), ([1.2], -0.4, [0.6]), ([-0.7], 0.9, [1.1]), ([2.1], 0.2, [0.4])]
    model = two_layer([*neurons, ([1.2], -0.4, [0.5])], output_bias=True)
    x = samples(25, 1)
    x[24] = x[0]
    certificate = certify(model, x, params="*")  # without the closed form, which says 13
    assert (certificate.rank, certificate.upper, certificate.n_params) == (13, 16, 16)
    assert verify(certificate, model, x)
    return model, x, certificate


def forged(certificate: Certificate, **changes: Any) -> Certificate:
    """The certificate with other contents and a matching checksum."""
    return replace(certificate, checksum="", **changes)


class TestVerify:
    def test_duplicate_rows(self, case: tuple[nn.Sequential, Tensor, Certificate]) -> None:
        model, x, honest = case
        others = [i for i in honest.rows if i not in (0, 24)]
        lie = forged(honest, rows=tuple(sorted([0, 24, *others[: honest.rank - 2]])))
        assert "but the determinant is" in verify(lie, model, x).reason
        lie = forged(lie, bound="1.0e-999")  # too small to be refuted by any precision
        assert "could not be shown to be independent" in verify(lie, model, x).reason

    def test_too_high_a_rank(self, case: tuple[nn.Sequential, Tensor, Certificate]) -> None:
        model, x, honest = case
        more = {
            name: tuple(sorted((*chosen, min(set(range(1, size)) - set(chosen)))))
            for name, chosen, size in (("rows", honest.rows, 25), ("columns", honest.columns, 16))
        }
        verdict = verify(forged(honest, rank=honest.rank + 1, **more), model, x)
        assert not verdict
        assert "could not be shown" in verdict.reason or "determinant is" in verdict.reason

    def test_a_smaller_rank_is_fine(self, case: tuple[nn.Sequential, Tensor, Certificate]) -> None:
        model, x, _ = case
        assert verify(certify(model, x, max_bits=32, bits=32), model, x)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"structure": "Linear(1, 5)"}, "the certificate is of Linear"),
            ({"model": "0" * 64}, "parameters, or the choice of columns"),
            ({"samples": "0" * 64}, "samples differ"),
            ({"n_rows": 26}, "n_rows is 25, not 26"),
            ({"n_params": 17}, "n_params is 16, not 17"),
            ({"upper": 14}, "the shape of the Jacobian makes it 16"),
            (
                {"arithmetic": "rationals", "bits": None, "upper_from": "exact rank"},
                "is not certified in rationals",
            ),
        ],
    )
    def test_claims_about_something_else(
        self,
        case: tuple[nn.Sequential, Tensor, Certificate],
        changes: dict[str, Any],
        reason: str,
    ) -> None:
        model, x, honest = case
        assert reason in verify(forged(honest, **changes), model, x).reason

    @pytest.mark.parametrize(
        ("factor", "valid"), [("0.1", True), ("0.9999", True), ("1.0001", False), ("10", False)]
    )
    def test_bound(
        self, case: tuple[nn.Sequential, Tensor, Certificate], factor: str, valid: bool
    ) -> None:
        model, x, honest = case
        bound = f"{Decimal(honest.bound) * Decimal(factor):.11e}"
        verdict = verify(forged(honest, bound=bound), model, x)
        assert bool(verdict) == valid
        assert valid or "but the determinant is" in verdict.reason

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.data())
    def test_random_mutations(
        self, case: tuple[nn.Sequential, Tensor, Certificate], data: st.DataObject
    ) -> None:
        model, x, honest = case
        content = honest.to_dict()
        name = data.draw(st.sampled_from(sorted(set(content) - {"format"})))
        value = content[name]
        if isinstance(value, list):
            at = data.draw(st.integers(0, len(value) - 1))
            changed: Any = [*value[:at], data.draw(st.integers(-1, 30)), *value[at + 1 :]]
        elif isinstance(value, int):
            changed = data.draw(st.integers(-1, 2 * value))
        else:
            at = data.draw(st.integers(0, len(value) - 1))
            changed = value[:at] + data.draw(st.characters(codec="ascii")) + value[at + 1 :]
        if changed == value:
            return
        with pytest.raises(ValueError, match=r"\w"):
            Certificate.from_dict({**content, name: changed})
        if isinstance(changed, list):
            changed = tuple(changed)
        try:
            in_memory = replace(honest, **{name: changed})
        except ValueError:
            return
        assert not verify(in_memory, model, x)

    def test_one_bit_of_a_weight(self, case: tuple[nn.Sequential, Tensor, Certificate]) -> None:
        _, x, honest = case
        neurons = [([0.3], 0.1, [1.0]), ([1.2], -0.4, [0.6]), ([-0.7], 0.9, [1.1])]
        model = two_layer([*neurons, ([2.1], 0.2, [0.4]), ([1.2], -0.4, [0.5])], output_bias=True)
        with torch.no_grad():
            model[2].bias.copy_(case[0][2].bias)
        assert verify(honest, model, x)
        with torch.no_grad():
            model[0].weight[2, 0].view(1).view(torch.int64).bitwise_xor_(1)
        assert "parameters" in verify(honest, model, x).reason

    def test_other_samples(self, case: tuple[nn.Sequential, Tensor, Certificate]) -> None:
        model, x, honest = case
        for other in (x.flip(0), x + 1e-15, x.roll(1, 0)):
            assert verify(honest, model, other).reason == (
                "the samples differ from those of the certificate"
            )
        assert not verify(honest, model, x[:24])

    def test_other_columns(self, case: tuple[nn.Sequential, Tensor, Certificate]) -> None:
        model, x, honest = case
        assert "choice of columns" in verify(honest, model, x, params="0.*").reason
        weights = certify(model, x, params="0.weight")  # five columns, as many as the biases have
        assert "choice of columns" in verify(weights, model, x, params="0.bias").reason

    def test_other_layers(self, case: tuple[nn.Sequential, Tensor, Certificate]) -> None:
        model, x, honest = case
        other = nn.Sequential(model[0], nn.Sigmoid(), model[2])
        assert "the model is Linear(1, 5), sigmoid" in verify(honest, other, x).reason

    def test_exact_rank_is_checked(self) -> None:
        model, x = random_net(2, 3, 1, activation=nn.ReLU), samples(40, 2)
        honest = certify(model, x)
        assert honest.rank == 9
        lie = forged(honest, upper=8, rank=8, rows=honest.rows[1:], columns=honest.columns[1:])
        assert "the exact rank is 9" in verify(lie, model, x).reason

    def test_a_wrong_prover_is_found_out(
        self,
        case: tuple[nn.Sequential, Tensor, Certificate],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model, x, _ = case
        monkeypatch.setattr(
            "llr.ranks.certificates.certify.find_pivots", lambda *_: [(i, i) for i in range(16)]
        )
        monkeypatch.setattr(
            "llr.ranks.certificates.certify.prove", lambda _, pivots, **__: (len(pivots), arb(1))
        )
        certificate = certify(model, x, params="*")
        assert certificate.rank == 16
        assert not verify(certificate, model, x)
        with pytest.raises(RuntimeError, match=r"at least 16, .* the closed form says at most 13"):
            certify(model, x)

    def test_the_closed_form_is_checked(
        self, case: tuple[nn.Sequential, Tensor, Certificate], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, x, _ = case
        certificate = certify(model, x)
        assert (certificate.rank, certificate.upper_from) == (13, "theory")
        assert verify(certificate, model, x)
        monkeypatch.setattr("llr.ranks.certificates.verification.upper_bound", lambda *_: None)
        assert "the closed form is None" in verify(certificate, model, x).reason

    def test_a_callers_upper_bound_is_flagged(
        self, case: tuple[nn.Sequential, Tensor, Certificate]
    ) -> None:
        model, x, _ = case
        certificate = certify(model, x, params="*", upper=13)
        assert (certificate.exact, certificate.upper_from) == (True, "caller")
        assert "trusted" in verify(certificate, model, x).reason

    def test_not_a_certificate(self) -> None:
        with pytest.raises(TypeError, match="certificate is dict; expected a Certificate"):
            verify({}, nn.Linear(1, 1), torch.zeros(1, 1))


class TestCertify:
    def test_precision_cap(self) -> None:
        model, x = random_net(1, 32, 1), samples(192, 1, seed=1)
        certificate = certify(model, x, max_bits=100)
        assert 0 < certificate.rank < certificate.upper == 96
        assert not certificate.exact
        assert certificate.stopped == "precision cap"
        assert "precision cap" in str(certificate)
        assert verify(certificate, model, x)

    def test_zero_jacobian(self) -> None:
        model = two_layer([([0.0, 0.0], 0.0, [0.0])])
        certificate = certify(model, samples(5, 2))
        assert (certificate.rank, certificate.rows, certificate.columns) == (0, (), ())
        assert verify(certificate, model, samples(5, 2))

    def test_disproved_upper_bound(self) -> None:
        model, x = random_net(2, 3, 1), samples(20, 2)
        with pytest.raises(ValueError, match=r"upper=5 is disproved: .* at least 12"):
            certify(model, x, upper=5)
        with pytest.raises(ValueError, match=r"upper=5 is disproved: .* at least 9"):
            certify(random_net(2, 3, 1, activation=nn.ReLU), samples(40, 2), upper=5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"upper": -1}, "upper is -1; expected an integer >= 0"),
            ({"upper": 2.0}, "upper is 2.0; expected an integer"),
            ({"bits": 8}, "bits is 8; expected an integer from 32"),
            ({"bits": 128, "max_bits": 64}, "max_bits is 64; expected an integer from 128"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            certify(mlp(1, 2, 1), samples(3, 1), **arguments)

    def test_progress(self) -> None:
        seen: list[tuple[int | None, int, int]] = []
        certify(random_net(1, 8, 1), samples(48, 1), progress=lambda *now: seen.append(now))
        bits, proved, upper = zip(*seen, strict=True)
        assert list(bits) == sorted(bits)
        assert list(proved) == sorted(proved)
        assert (proved[0], proved[-1], set(upper)) == (0, 24, {24})
        seen.clear()
        certify(nn.Linear(2, 1), samples(5, 2).float(), progress=lambda *now: seen.append(now))
        assert seen[-1] == (None, 3, 3)

    def test_ctrl_c_restores_the_precision(self) -> None:
        before = flint.ctx.prec

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            certify(mlp(1, 2, 1), samples(9, 1), progress=interrupt)
        assert flint.ctx.prec == before
