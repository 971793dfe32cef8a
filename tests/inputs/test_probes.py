"""Models without a per-sample Jacobian are refused, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.models import F64, Model
from helpers.oracles import assert_matches
from torch import Tensor, nn

import llr
from llr.jacobians import reference
from llr.landscape import criticality

BACKENDS = ["auto", "torch", "loop"]


def doing(forward: Callable[[Model, Tensor], object], *parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Model(
        forward, linear=nn.Linear(3, 4), parts=nn.Sequential(*parts), count=torch.zeros(())
    )


def with_layer(*parts: nn.Module) -> Callable[[], nn.Module]:
    return doing(lambda m, x: m.parts(m.linear(x)), *parts)


def counting(m: Model, x: Tensor) -> Tensor:
    m.count += 1
    return m.linear(x).cos()


def replacing(m: Model, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return m.linear(x).cos() * m.count


# name -> (model, text that the message must contain)
LAYERS = {
    "BatchNorm": (
        with_layer(nn.BatchNorm1d(4)),
        r"BatchNorm1d 'parts\.0' is in training mode, where samples interact.*call model\.eval\(\) first",
    ),
    "BatchNorm without statistics": (
        lambda: with_layer(nn.BatchNorm1d(4, track_running_stats=False))().eval(),
        r"BatchNorm1d 'parts\.0' has no running statistics.*track_running_stats=True",
    ),
    "InstanceNorm": (
        with_layer(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True)),
        r"InstanceNorm1d 'parts\.1' is in training mode, where its buffers change.*model\.eval\(\)",
    ),
    "Dropout": (
        with_layer(nn.Dropout(0.3)),
        r"Dropout 'parts\.0' is active \(training mode, p=0\.3\): its output is random; call model\.eval",
    ),
    "AlphaDropout": (with_layer(nn.AlphaDropout(0.3)), r"AlphaDropout 'parts\.0' is active"),
    "dropout in a recurrent layer": (
        with_layer(nn.Unflatten(1, (2, 2)), nn.GRU(2, 2, 2, dropout=0.1, batch_first=True)),
        r"GRU 'parts\.1' is active \(training mode, p=0\.1\)",
    ),
    "dropout in attention": (
        with_layer(nn.TransformerEncoderLayer(4, 2, 8, 0.2)),
        r"is active \(training mode, p=0\.2\)",
    ),
}
BEHAVIOUR = {
    "functional dropout": (
        doing(lambda m, x: F.dropout(m.linear(x))),
        ValueError,
        "forward is random",
    ),
    "noise": (
        doing(lambda m, x: m.linear(x + torch.randn_like(x))),
        ValueError,
        r"forward is random: two evaluations .* differ by up to \d.*call model\.eval\(\) first",
    ),
    "a weight drawn in forward": (
        doing(lambda m, x: F.linear(m.linear(x), torch.randn(2, 4, dtype=x.dtype))),
        ValueError,
        "forward is random",
    ),
    "random ReLU": (with_layer(nn.RReLU()), ValueError, "forward is random"),
    "a counter": (
        doing(counting),
        ValueError,
        r"forward changes its buffer 'count'.*keep state out",
    ),
    "a replaced counter": (doing(replacing), ValueError, "forward changes its buffer 'count'"),
    "centred samples": (
        doing(lambda m, x: m.linear(x - x.mean(0))),
        ValueError,
        r"samples interact: the output for a sample changes by up to \d",
    ),
    "softmax over samples": (
        doing(lambda m, x: m.linear(x).softmax(0)),
        ValueError,
        "samples interact",
    ),
    "running sum": (doing(lambda m, x: m.linear(x).cumsum(0)), ValueError, "samples interact"),
    "earlier samples": (
        doing(lambda m, x: m.linear(x + x.roll(1, 0) * torch.arange(len(x))[:, None].clamp(max=1))),
        ValueError,
        "samples interact",
    ),
    "a loss": (
        doing(lambda m, x: m.linear(x).pow(2).mean()),
        ValueError,
        r"an output is a single number for \d+ samples.*return the values before the mean",
    ),
    "samples summed away": (
        doing(lambda m, x: m.linear(x).sum(0)),
        ValueError,
        r"an output has shape \(4,\).*expected the number of samples as its first size",
    ),
    "samples in the second dimension": (
        doing(lambda m, x: m.linear(x).T),
        ValueError,
        r"an output has shape \(4, 2\) for 2 samples and \(4, 1\) for one",
    ),
    "integer output": (
        doing(lambda m, x: m.linear(x).argmax(1)),
        TypeError,
        r"the model's output is a tensor of torch\.int64; expected floating point",
    ),
    "complex output": (doing(lambda m, x: m.linear(x).to(torch.cdouble)), TypeError, "complex128"),
    "text": (doing(lambda m, x: {"y": m.linear(x), "note": "ok"}), TypeError, "output holds a str"),
    "a number": (doing(lambda m, x: m.linear(x).sum().item()), TypeError, "output holds a float"),
    "nothing": (doing(lambda _, __: None), TypeError, "holds no tensor; expected at least one"),
    "no tensor": (doing(lambda _, __: ()), TypeError, "holds no tensor; expected at least one"),
    "half output": (
        doing(lambda m, x: m.linear(x).half()),
        TypeError,
        r"the model's output is torch\.float16 but its parameters are torch\.float64; expected one",
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(LAYERS))
def test_layers_are_refused(case, backend):
    make, message = LAYERS[case]
    with pytest.raises(ValueError, match=message):
        llr.jacobian(make().double(), torch.randn(5, 3, dtype=F64), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(BEHAVIOUR))
def test_behaviour_is_refused(case, backend):
    make, kind, message = BEHAVIOUR[case]
    model, x = make().double(), torch.randn(5, 3, dtype=F64)
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
        llr.jacobian(model, x, backend=backend)
    with pytest.raises(kind, match=re.compile(message, re.DOTALL)):
        llr.plan(model, x, backend=backend)


@pytest.mark.parametrize(
    "forward",
    [lambda m, x: (m.linear(x) - 100).log(), lambda m, x: (m.linear(x) * 0).pow(-1)],
    ids=["NaN", "infinity"],
)
def test_outputs_that_are_not_finite_are_called_so(forward):
    with pytest.raises(ValueError, match=r"(?i)\b(nan|inf|infinity|finite)\b") as refusal:
        llr.jacobian(doing(forward)().double(), torch.randn(5, 3, dtype=F64))
    assert not re.search("random|interact", str(refusal.value))


def test_interaction_shows_though_the_first_samples_are_equal():
    model = doing(lambda m, x: m.linear(x - x.mean(0)))().double()
    x = torch.randn(5, 3, dtype=F64)
    x[1] = x[0]
    with pytest.raises(ValueError, match="samples interact"):
        llr.jacobian(model, x)


def test_callables_are_probed_too():
    w = torch.randn(3, dtype=F64)
    with pytest.raises(ValueError, match="samples interact"):
        llr.jacobian(
            lambda p, x: (x - x.mean(0)) @ p["w"], torch.randn(5, 3, dtype=F64), params={"w": w}
        )
    with pytest.raises(ValueError, match="forward is random"):
        llr.jacobian(
            lambda p, x: F.dropout(x) @ p["w"], torch.randn(5, 3, dtype=F64), params={"w": w}
        )


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm at rest": lambda: with_layer(nn.BatchNorm1d(4), nn.Linear(4, 2))().eval(),
    "BatchNorm without affine": lambda: with_layer(nn.BatchNorm1d(4, affine=False))().eval(),
    "GroupNorm": with_layer(nn.GroupNorm(2, 4)),
    "InstanceNorm": with_layer(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2), nn.Flatten()),
    "LayerNorm": with_layer(nn.LayerNorm(4)),
    "dropout at rest": lambda: with_layer(nn.Dropout(0.5), nn.Linear(4, 2))().eval(),
    "dropout of nothing": with_layer(nn.Dropout(0.0), nn.LayerNorm(4)),
    "functional dropout at rest": lambda: doing(
        lambda m, x: F.dropout(m.linear(x), training=m.training)
    )().eval(),
    "a buffer that is read": doing(lambda m, x: m.linear(x) + m.count),
    "a tiny output": doing(lambda m, x: 1e-40 * m.linear(x)),
    "a huge output": doing(lambda m, x: 1e200 * m.linear(x)),
    "a constant output": doing(lambda m, x: (m.linear(x), x.detach())),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", list(ACCEPTED))
def test_accepted(case, backend):
    model, x = ACCEPTED[case]().double(), torch.randn(5, 3, dtype=F64)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.add_(1)  # statistics other than the initial ones
    assert_matches(
        llr.jacobian(model, x, backend=backend),
        reference.jacobian(model, x),
        tolerance=1e-12,
    )


@pytest.mark.parametrize("n", [0, 1])
def test_few_samples_are_probed(n):
    model = doing(lambda m, x: F.dropout(m.linear(x)))()
    with pytest.raises(ValueError, match="forward is random"):
        llr.jacobian(model, torch.ones(n, 3))


def test_random_state_is_left_alone_by_a_refusal():
    model = doing(lambda m, x: F.dropout(m.linear(x)))()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="forward is random"):
        llr.jacobian(model, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


# --- what shows only among many samples, with gradients, or in what a forward draws ----------------------


def group_of_five(m: Model, x: Tensor) -> Tensor:
    h = m.linear(x)
    if len(x) % 5 == 0:
        h = h - h.reshape(-1, 5, 4).mean(1).repeat_interleave(5, 0)
    return h.cos()


def median(m: Model, x: Tensor) -> Tensor:
    h = m.linear(x)
    return (h - h.median(0).values.clamp(max=0) if len(x) > 6 else h).cos()


def sorted_ranks(m: Model, x: Tensor) -> Tensor:
    return m.linear(x) * (1 + (len(x) > 9) * x.argsort(0).argsort(0)[:, :1])


def last_is_dropped(m: Model, x: Tensor) -> Tensor:
    kept = (torch.arange(len(x)) < 20).to(x.dtype)  # a capacity
    return m.linear(x).cos() * kept[:, None]


MANY = {f.__name__: f for f in (group_of_five, median, sorted_ranks, last_is_dropped)}


@pytest.mark.parametrize("call", ["jacobian", "loop", "gram", "tsqr", "criticality"])
@pytest.mark.parametrize("case", list(MANY))
def test_interactions_among_many(case, call):
    model, x = doing(MANY[case])().double(), torch.randn(25, 3, dtype=F64)
    calls = {
        "jacobian": lambda: llr.jacobian(model, x),
        "loop": lambda: llr.jacobian(model, x, backend="loop"),
        "gram": lambda: llr.gram(model, x),
        "tsqr": lambda: llr.rank(model, x, method="tsqr"),
        "criticality": lambda: criticality(model, x, torch.zeros(25, 4, dtype=F64)),
    }
    with pytest.raises(ValueError, match=r"samples interact.* instead of among 25"):
        calls[call]()


def test_ragged_outputs_are_refused():
    def forward(m: Model, x: Tensor) -> Tensor:
        return m.linear(x)[:, : 2 + int(x[0, 0] > 0)]

    model = doing(forward)().double()
    x = torch.cat([-torch.ones(2, 3, dtype=F64), torch.ones(3, 3, dtype=F64)])
    x[1, 1] = 0
    with pytest.raises(ValueError, match="a sample has 3 outputs alone, but the first one has 2"):
        llr.jacobian(model, x)


CUTS = {
    "no_grad": (torch.no_grad()(lambda m, x: m.linear(x).cos()), "under torch.no_grad"),
    "inference": (torch.inference_mode()(lambda m, x: m.linear(x).cos()), "torch.inference_mode"),
    "detached": (
        lambda m, x: m.linear(x).cos().detach(),
        r"it detaches \(Model, .*test_probes\.py:\d+",
    ),
    "data": (lambda m, x: m.linear(x).cos().data, r"it takes \.data \(.*test_probes\.py"),
    "lists": (
        lambda m, x: torch.tensor(m.linear(x).cos().tolist(), dtype=x.dtype),
        "it goes through numpy or lists",
    ),
    "not used": (lambda _, x: x.cos() * x.requires_grad_().sin(), "it does not use them"),
}


@pytest.mark.parametrize("case", list(CUTS))
def test_outputs_that_depend_on_no_parameter_are_refused(case):
    forward, reason = CUTS[case]
    model, x = doing(forward)().double(), torch.randn(5, 3, dtype=F64)
    for call in (llr.jacobian, llr.plan, llr.gram, llr.rank):
        with pytest.raises(
            ValueError, match=rf"no output of Model depends .* \(linear\.weight.*{reason}"
        ):
            call(model, x)


def test_a_parameter_that_is_not_used_is_a_column_of_zeros_beside_others():
    model, x = (
        doing(lambda m, x: m.linear(x).cos(), nn.Linear(2, 2))().double(),
        torch.ones(4, 3).double(),
    )
    J = llr.jacobian(model, x)
    assert J[..., llr.layout(model)["parts.0.weight"]].abs().max() == 0
    with pytest.raises(ValueError, match="it does not use them"):
        llr.jacobian(model, x, params="parts.*")


@pytest.mark.parametrize("seed", range(8))
def test_rare_dropout_is_random(seed):
    torch.manual_seed(seed)
    model = doing(lambda m, x: F.dropout(m.linear(x), 0.02))().double()
    x, before = torch.randn(5, 3, dtype=F64), torch.get_rng_state()
    for call in (llr.jacobian, llr.gram, llr.plan):
        with pytest.raises(ValueError, match="forward is random"):
            call(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_of_its_own_is_no_randomness():
    def forward(m: Model, x: Tensor) -> Tensor:
        own = torch.Generator().manual_seed(3)
        return m.linear(x).cos() @ torch.randn(4, 2, generator=own, dtype=x.dtype)

    model, x = doing(forward)().double(), torch.randn(5, 3, dtype=F64)
    for backend in ("auto", "loop"):
        assert_matches(
            llr.jacobian(model, x, backend=backend),
            reference.jacobian(model, x),
            tolerance=1e-12,
        )


@pytest.mark.parametrize("drawn", [0, 3])
def test_random_state_of_forwards_that_seed(drawn):
    def forward(m: Model, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return m.linear(x).cos()

    model, x = doing(forward)().double(), torch.ones(5, 3, dtype=F64)
    torch.manual_seed(0)
    torch.rand(drawn)
    before = torch.get_rng_state()
    for call in (llr.jacobian, llr.gram, llr.rank, llr.plan):
        call(model, x)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_squeezed_outputs(n):
    x = torch.randn(n, 3, dtype=F64)
    for shape in ((4,), (2, 1, 2), (1, 4)):
        plain = doing(lambda m, x: m.linear(x).cos().reshape(-1, *shape))().double()  # noqa: B023
        bare = doing(lambda m, x: m.linear(x).cos().reshape(-1, *shape).squeeze())().double()  # noqa: B023
        bare.load_state_dict(plain.state_dict())
        for call in (llr.jacobian, llr.gram, lambda m, x: llr.rank(m, x).spectrum):
            assert torch.equal(call(bare, x), call(plain, x))


def test_plan_knows_what_vmap_cannot_take():
    model, x = doing(lambda m, x: m.linear(x).cos() + 0 * x[x > 9].sum())(), torch.randn(5, 3)
    prepared = llr.plan(model, x)
    assert prepared.backend == "loop"
    assert "vmap cannot take it" in prepared.reason
    assert llr.plan(model, x, backend="torch").backend == "torch"
    assert llr.plan(doing(lambda m, x: m.linear(x).cos())(), x).backend == "torch"


class Force(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


class FunctionalForce(Force):
    def forward(self, x):
        return torch.func.vmap(torch.func.grad(lambda s: self.net(s)[0]))(x) * 2


@pytest.mark.parametrize("kind", [Force, FunctionalForce])
def test_derivatives_inside_of_forward(kind):
    model, x = kind().double(), torch.randn(7, 2, dtype=F64)
    want = torch.stack(
        [
            torch.stack(
                [
                    torch.cat(
                        [
                            (torch.zeros_like(p) if g is None else g).flatten()
                            for g, p in zip(
                                torch.autograd.grad(
                                    y,
                                    list(model.parameters()),
                                    retain_graph=True,
                                    allow_unused=True,
                                ),
                                model.parameters(),
                                strict=True,
                            )
                        ]
                    )
                    for y in model(s[None].clone())[0]
                ]
            )
            for s in x
        ]
    )
    rows = want.flatten(0, 1)
    assert_matches(llr.jacobian(model, x), want, tolerance=1e-12)
    assert_matches(llr.gram(model, x).reshape(14, 14), rows @ rows.mT, tolerance=1e-12)
    found = llr.rank(model, x, method="tsqr").spectrum
    assert_matches(found[: len(rows)], torch.linalg.svdvals(rows), tolerance=1e-12)
