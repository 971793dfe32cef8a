"""Models that the public functions accept: each gives the right number, or an error of one line."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import llr
import llr.recovery.train
from llr import embedding, landscape, lifting, models, recovery, theory
from llr.jacobians import reference
from llr.theory.spans import neurons

from .accept_cases import Tied, agree, mlp, normed, samples

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("make", [mlp, normed, Tied])
def test_wrappers_are_taken_off(make: Callable[[], nn.Module]) -> None:
    model, x = make(), samples()
    agree(nn.DataParallel(model), model, x, x)
    name = next(iter(dict(model.named_parameters())))
    J = llr.jacobian(nn.DataParallel(model), x, params="module." + name)
    assert torch.equal(J, llr.jacobian(model, x, params=name))


@pytest.mark.slow
def test_compiled_and_exported_models() -> None:
    model, x = normed(), samples()
    compiled = torch.compile(model, backend="eager")
    agree(compiled, model, x, x)
    values = dict(compiled.named_parameters())
    assert next(iter(values)).startswith("_orig_mod.")
    assert torch.equal(llr.jacobian(compiled, x, params=values), llr.jacobian(model, x))
    agree(nn.DataParallel(compiled), model, x, x)
    assert theory.tangent_dimension(torch.compile(models.TwoLayer(3, 4))).lower == 20
    batch = torch.export.Dim("batch")
    agree(torch.export.export(model, (x,), dynamic_shapes=({0: batch},)), model, x, x)
    with pytest.raises(ValueError, match=r"cannot be evaluated on samples of shape \(3,\).*Guard"):
        llr.jacobian(torch.export.export(model, (x,)), x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [mlp, normed, Tied])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript(how: str, make: Callable[[], nn.Module]) -> None:
    model, x = make(), samples()
    scripted = torch.jit.script(model) if how == "script" else torch.jit.trace(model, x)
    before = copy.deepcopy(dict(scripted.named_parameters()))
    agree(scripted, model, x, x)
    for name, p in scripted.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, before[name])
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    torch.testing.assert_close(
        llr.jacobian(scripted, x, params=other), llr.jacobian(model, x, params=other)
    )
    assert (
        llr.model_rank(scripted, sample_shape=(3,)).rank
        == llr.model_rank(model, sample_shape=(3,)).rank
    )
    with pytest.raises(NotImplementedError, match="one gradient at a time, not"):
        llr.jacobian(scripted, x, backend="torch")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_with_buffers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = samples()
    model(x)
    scripted = torch.jit.script(model)
    with pytest.raises(ValueError, match=r"forward changes its buffer '1[.]"):
        llr.jacobian(scripted, x)
    agree(scripted.eval(), model.eval(), x, x)


class TiedBuffer(nn.Module):
    """One buffer under two names, and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.register_buffer("first", torch.randn(3))
        self.register_buffer("again", self.first)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x * self.first) * self.again)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [Tied, TiedBuffer])
def test_tensors_of_torchscript_with_two_names(make: Callable[[], nn.Module]) -> None:
    model, x = make(), samples()
    agree(torch.jit.script(model), model, x, x)
    plain, part = nn.Sequential(model, nn.Tanh()), torch.jit.script(copy.deepcopy(model))
    agree(nn.Sequential(part, nn.Tanh()), plain, x, x)
    others = {name: 2 * v.detach() for name, v in plain.named_parameters()}
    torch.testing.assert_close(
        llr.jacobian(nn.Sequential(part, nn.Tanh()), x, params=others),
        llr.jacobian(plain, x, params=others),
    )


def test_models_on_the_meta_device_can_be_planned() -> None:
    x = samples()
    for make in (mlp, normed):
        model = make()
        planned, meta = copy.deepcopy(model).to("meta"), x.to("meta")
        for there in (x, meta):
            plan = llr.plan(planned, there)
            assert plan.shape == llr.plan(model, x).shape
            assert plan.nbytes == llr.plan(model, x).nbytes
        assert llr.layout(planned) == llr.layout(model)
        for call in (llr.jacobian, llr.rank, llr.gram, llr.has_llr_guarantee):
            with pytest.raises((TypeError, ValueError), match=r"meta"):
                call(planned, x)
            with pytest.raises((TypeError, ValueError), match=r"x is on (the )?meta"):
                call(model, meta)
            with pytest.raises(TypeError, match=r"is on the meta device, which holds shapes"):
                call(planned, meta)
    with pytest.raises(TypeError, match=r"parameter '0.weight' is on the meta device"):
        theory.tangent_dimension(mlp().to("meta"))


ON_META: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "Target": lambda m, _: recovery.Target(m, "given"),
    "Target.generic": lambda m, _: recovery.Target.generic(m, seed=1),
    "Target.separated": lambda m, _: recovery.Target.separated(m, seed=1),
    "Target.linear_like": lambda m, _: recovery.Target.linear_like(m, seed=1),
    "Target.given": lambda m, _: recovery.Target.given(m),
    "Target.error": lambda m, _: recovery.Target.given(models.TwoLayer(3, 4)).error(m),
    "initial": lambda m, _: recovery.initial(m, 2, generator=torch.Generator()),
    "levenberg_marquardt": lambda m, x: recovery.levenberg_marquardt(m, x, x, x),
    "train": lambda m, x: recovery.train.train(m, x, x, x),
    "condensation": lambda m, x: recovery.train.condensation(m, x),
    "merge": lambda m, x: recovery.train.merge(m, x[0]),
    "narrow": lambda m, x: recovery.train.narrow(m, x[0], x, x),
    "tangent_rank": lambda m, x: recovery.train.tangent_rank(m, x, x),
    "reference.jacobian": reference.jacobian,
    "certify": llr.certify,
    "model_rank": lambda m, _: llr.model_rank(m),
    "criticality": lambda m, x: landscape.criticality(m, x, x),
    "hessian_spectrum": lambda m, x: landscape.hessian_spectrum(m, x, x),
    "branches": lambda m, _: landscape.branches(m, 5),
    "critical_targets": landscape.critical_targets,
    "flow": lambda m, x: landscape.flow(m, x, x, times=[0.0, 1.0]),
    "rate": landscape.rate,
    "check": lambda m, x: embedding.check(m, mlp(), x),
    "check of the wide one": lambda m, x: embedding.check(mlp(), m, x),
    "compatible": lambda m, _: embedding.compatible(m, [3, 5, 2]),
    "split": lambda m, _: embedding.split(m, 0, 0),
    "reduce": lambda m, _: embedding.reduce(m),
    "lift_status": lambda m, x: lifting.lift_status(m, mlp(), x),
    "lifted_critical_points": lambda m, x: lifting.lifted_critical_points(m, x, x),
    "generic_rank": lambda m, _: theory.generic_rank(m),
    "points_needed": lambda m, _: theory.points_needed(m),
    "optimistic_sample_size": lambda m, _: theory.optimistic_sample_size(mlp(), m),
    "independence": neurons.independence,
    "independence of several": lambda m, x: neurons.independence([m, m], x),
}


@pytest.mark.parametrize("make", [mlp, normed, lambda: models.TwoLayer(3, 4)])
@pytest.mark.parametrize("name", ON_META)
def test_models_on_the_meta_device_have_no_numbers(
    name: str, make: Callable[[], nn.Module]
) -> None:
    with pytest.raises((TypeError, ValueError), match=r"is on (the )?meta"):
        ON_META[name](make().to("meta"), samples())


def test_targets_take_models_and_numbers_as_people_have_them() -> None:
    wrapped = nn.DataParallel(models.TwoLayer(3, 2))
    target = recovery.Target.separated(wrapped, seed=np.int64(3))
    x, y = target.sample(np.int32(7), seed=1)
    assert torch.equal(target(x.numpy()), y)
    with pytest.raises(TypeError, match=r"architecture is the class TwoLayer"):
        recovery.Target.generic(models.TwoLayer, seed=0)
    with pytest.raises(ValueError, match="seed is -1; expected an integer from 0"):
        recovery.Target.generic(models.TwoLayer(3, 2), seed=-1)
    with pytest.raises(ValueError, match="found cannot be evaluated on samples of shape"):
        target.error(models.TwoLayer(4, 2).double())
    with pytest.raises(ValueError, match="the target cannot be evaluated on samples of shape"):
        target(samples(5, 9).double())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(4), nn.Tanh()), TypeError, "run the model once on a batch"),
        (lambda: nn.Linear, TypeError, "model is the class Linear; expected an instance of it"),
        (lambda: "mlp:3-4-1", TypeError, "model is str; expected an nn.Module or a callable"),
        (lambda: [mlp()], TypeError, "model is list; expected"),
        (lambda: None, TypeError, "model is NoneType; expected"),
        (
            lambda: torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, dtype=torch.qint8),
            ValueError,
            "Linear '0' is quantized: its weights are integers",
        ),
        (
            lambda: nn.Sequential(nn.Embedding(7, 3, scale_grad_by_freq=True), nn.Flatten()),
            ValueError,
            "Embedding '0' has scale_grad_by_freq=True",
        ),
        (
            lambda: nn.Sequential(nn.Embedding(7, 3, max_norm=1.0), nn.Flatten()),
            ValueError,
            "Embedding '0' has max_norm=1.0, so that its forward rewrites its weight",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
            ValueError,
            "shape (3,), torch.float32: in Linear '0': RuntimeError: mat1 and mat2 shapes cannot be",
        ),
    ],
)  # fmt: skip
def test_models_that_are_refused(make: Any, kind: type[Exception], message: str) -> None:
    model = make()
    x = torch.zeros(5, 3, dtype=torch.long) if "Embedding" in message else samples()
    with pytest.raises(kind, match=re.escape(message)):
        llr.jacobian(model, x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)),
        nn.Sequential(nn.EmbeddingBag(7, 3, sparse=True, mode="sum"), nn.Tanh(), nn.Linear(3, 2)),
    ],
)
def test_sparse_gradients(model: nn.Sequential) -> None:
    x = torch.tensor([[1, 1], [2, 3], [0, 4], [3, 2]])
    plain = copy.deepcopy(model)
    plain[0].sparse = False
    agree(model, plain, x, x)
    assert model[0].sparse
    torch.testing.assert_close(llr.jacobian(model, x, backend="loop"), reference.jacobian(plain, x))
    y = torch.randn(4, 2)
    if isinstance(model[0], nn.EmbeddingBag):  # torch does not implement its second derivatives
        with pytest.raises(ValueError, match="derivatives of the model cannot be evaluated on"):
            landscape.hessian_spectrum(model, x, y)
        return
    torch.testing.assert_close(
        landscape.hessian_spectrum(model, x, y).eigenvalues,
        landscape.hessian_spectrum(plain, x, y).eigenvalues,
    )


class Phases(nn.Module):
    """Computes a real output with complex arithmetic."""

    def __init__(self, learned: bool = False, raw: bool = False) -> None:
        super().__init__()
        self.inner, self.raw = nn.Linear(3, 4), raw
        self.register_buffer("turn", torch.randn(4, 2, dtype=torch.cfloat))
        self.factor = nn.Parameter(torch.randn(2, dtype=torch.cfloat), requires_grad=learned)

    def forward(self, x: Tensor) -> Tensor:
        z = (torch.tanh(self.inner(x)) + 0j) @ self.turn * self.factor
        return z if self.raw else torch.view_as_real(z)


def test_complex_numbers_inside() -> None:
    model, x = Phases(), samples()
    J = reference.jacobian(model, x)
    torch.testing.assert_close(llr.jacobian(model, x), J)
    exact = Phases().double()
    exact.load_state_dict(model.state_dict())  # converting to double is exact
    exact.turn, exact.factor.data = model.turn.cdouble(), model.factor.data.cdouble()
    J = reference.jacobian(exact, x.double()).flatten(0, 1)
    found = llr.rank(model, x)
    torch.testing.assert_close(found.spectrum, torch.linalg.svdvals(J), rtol=0, atol=1e-12)
    assert model.turn.dtype == torch.complex64
    with pytest.raises(
        TypeError, match=r"'factor' is torch.complex64; expected real .*view_as_complex"
    ):
        llr.jacobian(Phases(learned=True), x)
    with pytest.raises(
        TypeError, match=r"tensor of torch.complex64; .* \(torch.view_as_real\(output\)\)"
    ):
        llr.jacobian(Phases(raw=True), x)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.inner(z.abs()))


def test_complex_samples() -> None:
    model, z = Spectrum(), torch.randn(5, 3, dtype=torch.cfloat)
    plain = nn.Sequential(model.inner, nn.Tanh())
    torch.testing.assert_close(llr.jacobian(model, z), llr.jacobian(plain, z.abs()))
    assert llr.rank(model, z).rank == 8
    spoiled = torch.view_as_real(z).clone()
    spoiled[0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"x is nan at index \(0, 1, 1\)"):
        llr.jacobian(model, torch.view_as_complex(spoiled))
    with pytest.raises(TypeError, match=r"x is torch.complex128 .* \(x.to\(torch.complex64\)"):
        llr.jacobian(model, z.cdouble())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_nothing_to_count() -> None:
    x = samples()
    hollow = nn.Sequential(nn.Linear(3, 0), nn.Tanh(), nn.Linear(0, 2))
    agree(hollow, hollow, x, x)
    assert llr.rank(hollow, x).rank == 2  # the last bias
    with pytest.raises(ValueError, match="a layer of width 0"):
        theory.tangent_dimension(hollow)
    with pytest.raises(ValueError, match="a layer of width 0"):
        llr.certify(hollow, x)
    silent = nn.Linear(3, 0)
    for backend in ("auto", "torch", "loop"):
        assert llr.jacobian(silent, x, backend=backend).shape == (5, 0, 0)
        assert llr.jacobian(normed(), x[:0], backend=backend).shape == (0, 2, 34)
    assert llr.rank(silent, x).rank == 0
    with pytest.raises(
        ValueError, match="0 outputs per sample and 0 parameters; expected at least one"
    ):
        llr.model_rank(silent)
    with pytest.raises(ValueError, match="has no trainable parameters"):
        llr.jacobian(nn.Tanh(), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_for_ranks(dtype: torch.dtype) -> None:
    model, x = mlp().to(dtype), samples().to(dtype)
    J = reference.jacobian(copy.deepcopy(model).double(), x.double()).flatten(0, 1)
    torch.testing.assert_close(
        llr.rank(model, x).spectrum, torch.linalg.svdvals(J), rtol=0, atol=1e-12
    )
    assert next(model.parameters()).dtype == dtype
    with pytest.raises(TypeError, match=rf"'0.weight' is {dtype}; expected float32 or float64"):
        llr.jacobian(model, x)
