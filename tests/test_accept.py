"""What the public functions take as models, samples, matrices and spellings: the number, or one line."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

import llr
from llr import embedding, landscape, models, recovery, theory

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))


def samples(n: int = 5, d: int = 3) -> Tensor:
    return torch.randn(n, d)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def agree(model: Any, plain: nn.Module, x: Any, dense: Tensor) -> None:
    """All that evaluates a model gives for it and x what it gives for the plain ones."""
    expected = llr.reference.jacobian(plain, dense)
    torch.testing.assert_close(llr.jacobian(model, x), expected)
    exact = copy.deepcopy(plain).double()
    promoted = dense.double() if dense.is_floating_point() else dense
    J = llr.reference.jacobian(exact, promoted).flatten(0, 1)
    torch.testing.assert_close(llr.gram(model, x).reshape(len(J), len(J)), J @ J.T)
    found = llr.rank(model, x)
    assert found.rank == int(torch.linalg.matrix_rank(J))
    torch.testing.assert_close(found.spectrum, torch.linalg.svdvals(J), rtol=0, atol=1e-10)
    assert llr.plan(model, x).shape == tuple(expected.shape)


# --- models ----------------------------------------------------------------------------------------------


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
    torch.testing.assert_close(
        llr.jacobian(model, x, backend="loop"), llr.reference.jacobian(plain, x)
    )
    y = torch.randn(4, 2)
    if isinstance(model[0], nn.EmbeddingBag):  # torch has no second derivatives of it
        with pytest.raises(ValueError, match="derivatives of the model cannot be evaluated on"):
            landscape.hessian_spectrum(model, x, y)
        return
    torch.testing.assert_close(
        landscape.hessian_spectrum(model, x, y).eigenvalues,
        landscape.hessian_spectrum(plain, x, y).eigenvalues,
    )


class Phases(nn.Module):
    """A real output of complex arithmetic."""

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
    J = llr.reference.jacobian(model, x)
    torch.testing.assert_close(llr.jacobian(model, x), J)
    exact = Phases().double()
    exact.load_state_dict(model.state_dict())  # exact in twice the precision
    exact.turn, exact.factor.data = model.turn.cdouble(), model.factor.data.cdouble()
    J = llr.reference.jacobian(exact, x.double()).flatten(0, 1)
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
        llr.certify.certify(hollow, x)
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
    J = llr.reference.jacobian(copy.deepcopy(model).double(), x.double()).flatten(0, 1)
    torch.testing.assert_close(
        llr.rank(model, x).spectrum, torch.linalg.svdvals(J), rtol=0, atol=1e-12
    )
    assert next(model.parameters()).dtype == dtype
    with pytest.raises(TypeError, match=rf"'0.weight' is {dtype}; expected float32 or float64"):
        llr.jacobian(model, x)


# --- samples ---------------------------------------------------------------------------------------------

SPELLINGS: dict[str, Callable[[Tensor], Any]] = {
    "coo": lambda x: x.to_sparse(),
    "coalesced twice": lambda x: torch.sparse_coo_tensor(
        torch.cat([x.to_sparse().indices()] * 2, 1), torch.cat([x.to_sparse().values() / 2] * 2), x.shape
    ),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "bsr": lambda x: x.to_sparse_bsr((1, 3)),
    "scipy": lambda x: scipy.sparse.csr_array(x.numpy()),
    "array": lambda x: x.numpy(),
    "float64 array": lambda x: x.double().numpy(),
    "big-endian array": lambda x: x.numpy().astype(">f4"),
    "read-only array": lambda x: np.broadcast_to(x.numpy(), x.shape),
    "reversed array": lambda x: x.numpy()[::-1].copy()[::-1],
    "masked array without masks": lambda x: np.ma.MaskedArray(x.numpy()),
    "list": lambda x: x.tolist(),
    "tuple of lists": lambda x: tuple(x.tolist()),
    "list of arrays": lambda x: list(x.numpy()),
    "parameter": nn.Parameter,
    "requires grad": lambda x: x.clone().requires_grad_(),
    "transposed": lambda x: x.T.contiguous().T,
    "negative bit": lambda x: torch.complex(x, -x).conj().imag,
    "subclass": lambda x: x.as_subclass(type("Labelled", (Tensor,), {})),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse :UserWarning")
@pytest.mark.parametrize("spelling", list(SPELLINGS))
@pytest.mark.parametrize("make", [mlp, normed])
def test_samples_as_people_have_them(spelling: str, make: Callable[[], nn.Module]) -> None:
    model, x = make(), samples() * (torch.rand(5, 3) > 0.4)
    agree(model, model, SPELLINGS[spelling](x), x)


class Frame:
    """What llr uses of a table of pandas."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._data = {name: np.asarray(values) for name, values in columns.items()}
        self.columns, self.dtypes = list(columns), [v.dtype for v in self._data.values()]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        kind = object if any(d.kind == "O" for d in self.dtypes) else None
        return np.stack([v.astype(kind or v.dtype) for v in self._data.values()], 1)


def test_tables() -> None:
    model, x = normed(), samples()
    table = Frame({"a": x[:, 0].numpy(), "b": x[:, 1].numpy(), "c": x[:, 2].numpy()})
    agree(model, model, table, x)
    nullable = {name: x[:, i].numpy().astype(object) for i, name in enumerate("abc")}
    agree(model, model, Frame(nullable), x)
    named = Frame({"a": x[:, 0].numpy(), "city": np.array(["x"] * 5, dtype=object)})
    with pytest.raises(TypeError, match="x has a column 'city' of object; expected numbers only"):
        llr.jacobian(model, named)


def test_tokens_stay_integers() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2))
    x = torch.tensor([[1, 1], [2, 3], [0, 4]])
    for given in (
        x.numpy(),
        x.to(torch.int32),
        x.tolist(),
        x.numpy().astype(np.uint16),
        x.to_sparse(),
    ):
        torch.testing.assert_close(llr.jacobian(model, given), llr.reference.jacobian(model, x))
    for kind in (torch.uint8, torch.bool):
        with pytest.raises(
            (TypeError, ValueError), match=rf"x is {kind}.*(x.to\(torch|x.float\(\))"
        ):
            llr.jacobian(normed(), torch.ones(4, 3).to(kind))
        with pytest.raises(
            TypeError, match=rf"x is {kind}; expected torch.float32 as the parameters"
        ):
            llr.jacobian(mlp(), torch.ones(4, 3).to(kind))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
            "x is quantized (torch.qint8)",
        ),
        (lambda x: torch.nested.nested_tensor(list(x)), "x is a nested tensor"),
        (
            lambda x: torch.masked.masked_tensor(x, x > 0),
            "x is a MaskedTensor: what is masked has no",
        ),
        (
            lambda x: np.ma.masked_greater(x.numpy(), 0.0),
            "masked entries; expected a number for each",
        ),
        (lambda x: x.numpy().astype(np.longdouble), "x is an array of"),
        (lambda x: {"x": x}, "x is dict; expected a tensor (pass its tensor, or wrap the model)"),
        (lambda x: (x, x), "x is a tuple of tensors; expected one tensor"),
        (lambda _: "data.npy", "x is str; expected a tensor"),
        (lambda _: None, "x is NoneType; expected a tensor"),
        (lambda _: 3.0, "x is a single number; expected samples along a first dimension"),
        (lambda _: np.array(["a"]), "x has entries of dtype <U1; expected numbers only"),
        (lambda _: [[10**30]], "integers beyond 64 bits"),
        (lambda _: torch.utils.data.DataLoader([1, 2]), "x is DataLoader; expected a tensor"),
        (
            lambda _: torch.sparse_coo_tensor(
                torch.tensor([[0], [1]]), torch.ones(1), (1 << 50, 3)
            ),
            "takes 13.5 PB dense, more than the memory budget",
        ),
    ],
)
def test_samples_that_are_refused(make: Callable[[Tensor], Any], message: str) -> None:
    for model in (mlp(), normed()):
        for call in (llr.jacobian, llr.plan, llr.gram):
            with pytest.raises((TypeError, ValueError), match=re.escape(message)):
                call(model, make(samples()))


# --- matrices --------------------------------------------------------------------------------------------


def test_matrices_as_people_have_them() -> None:
    A = torch.randn(4, 2, dtype=F64) @ torch.randn(2, 5, dtype=F64)
    for given in (
        A.numpy(),
        A.tolist(),
        A.to_sparse(),
        scipy.sparse.coo_array(A.numpy()),
        A.numpy()[::-1],
    ):
        assert llr.numerical_rank(given).rank == 2
        assert llr.rank(given).rank == 2
        torch.testing.assert_close(llr.svdvals(given), torch.linalg.svdvals(A), rtol=0, atol=1e-12)
    assert llr.numerical_rank([[1, 2], [2, 4]]).rank == 1
    spectrum = llr.svdvals(A)
    assert llr.tolerance(spectrum.numpy(), np.int64(4)) == llr.tolerance(spectrum.tolist(), 4)
    for given, message in (
        (3.0, "A is a single number"),
        ([1.0, 2.0], r"A is a vector of shape \(2,\)"),
        (A.to("meta"), "A is on the meta device"),
        (A.to(torch.complex64), "need float32 or float64, got torch.complex64"),
        (A.long(), "need float32 or float64, got torch.int64"),
        (A > 0, "need float32 or float64, got torch.bool"),
        (torch.ones(1, 1).expand(2**30, 2**12), "more than the memory budget"),
        ("A", "A is str"),
        (None, "A is NoneType"),
    ):
        for call in (llr.numerical_rank, llr.svdvals):
            with pytest.raises((TypeError, ValueError), match=message):
                call(given)


# --- spellings -------------------------------------------------------------------------------------------


def test_numbers_of_numpy() -> None:
    model, x = mlp(), samples(30)
    one = np.int64(1)
    assert torch.equal(llr.jacobian(model, x, chunk_size=np.int32(2)), llr.jacobian(model, x))
    assert llr.rank(model, x, upper=np.uint8(26), rtol=np.float32(1e-6), chunk_size=one).upper == 26
    assert llr.rank(model, x, method="certified", max_bits=np.int64(128)).lower == 26
    assert (
        llr.model_rank(model, margin=np.int64(4), seed=one, sample_shape=np.array([3])).rank == 26
    )
    assert llr.has_llr_guarantee(model, x, model_rank=np.int64(26), certify=np.True_)
    assert embedding.widen(model, [np.int64(3), 5, 2])[0][0].out_features == 5
    assert embedding.split(model, np.int64(0), one, np.float64(0.25))[1].n_narrow == 26
    assert models.mlp(np.array([2, 3, 1]))[0].in_features == 2
    assert models.TwoLayer(np.int64(2), one, bias=np.True_, dtype="float64")[0].weight.dtype == F64
    assert (
        recovery.initial(model, np.int64(3), dtype="float32", device="cpu").dtype == torch.float32
    )
    assert recovery.Budget(starts=np.int64(3), seconds=np.float32(2)).starts == 3
    assert recovery.Damping(start=np.float32(0.5), iterations=np.int16(7)).iterations == 7
    with llr.set_memory_budget(np.int64(10**9)):
        assert llr.memory_budget() == 10**9


@pytest.mark.parametrize(
    "name", ["float32", "torch.float32", np.float32, np.dtype("f4"), torch.float32]
)
def test_dtypes_by_name(name: Any) -> None:
    assert llr.rank(mlp(), samples(), dtype=name).dtype == torch.float32
    assert llr.rank(torch.eye(2, dtype=F64), dtype=name).dtype == torch.float32


def test_dtypes_that_are_none() -> None:
    for name, kind, message in (
        ("float31", ValueError, "dtype is 'float31'; expected float32, float64"),
        (3, TypeError, "dtype is 3; expected a torch.dtype or its name"),
        ("int64", TypeError, "dtype is torch.int64; expected float32 or float64"),
    ):
        with pytest.raises(kind, match=message):
            llr.rank(mlp(), samples(), dtype=name)


def test_state_dicts_as_values() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = samples()
    model(x)
    model.eval()
    J = llr.jacobian(model, x)
    assert torch.equal(llr.jacobian(model, x, params=model.state_dict()), J)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(2)
    assert torch.equal(llr.jacobian(model, x, params=other.state_dict()), llr.jacobian(other, x))
    other[1].running_mean.add_(1)
    with pytest.raises(
        ValueError, match=r"the buffer '1[.]running_mean' with values that the model's"
    ):
        llr.jacobian(model, x, params=other.state_dict())


def test_stacked_models_with_their_buffers() -> None:
    x = samples()
    ensemble = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval() for _ in range(3)]
    stacked = torch.func.stack_module_state(ensemble)
    J = llr.jacobian(ensemble[0], x, params=stacked)
    for i, member in enumerate(ensemble):
        torch.testing.assert_close(J[i], llr.reference.jacobian(member, x))
    ensemble[1][1].running_var.mul_(2)
    with pytest.raises(ValueError, match="take models whose buffers differ one at a time"):
        llr.jacobian(ensemble[0], x, params=torch.func.stack_module_state(ensemble))


def test_second_names_of_tied_weights() -> None:
    model, x = Tied(), samples()
    J = llr.jacobian(model, x)
    first = J[..., llr.layout(model)["a.weight"]]
    assert torch.equal(llr.jacobian(model, x, params="b.weight"), first)
    assert llr.layout(model, params=["b.*"]) == {"a.weight": slice(0, 9), "b.bias": slice(9, 12)}
    assert torch.equal(llr.jacobian(model, x, params=model.state_dict()), J)
    value = torch.randn(3, 3)
    one, other = ({name: value} for name in ("a.weight", "b.weight"))
    assert torch.equal(llr.jacobian(model, x, params=other), llr.jacobian(model, x, params=one))
    with pytest.raises(
        ValueError, match=r"two values for one tied parameter, 'a[.]weight' and 'b[.]weight'"
    ):
        llr.jacobian(model, x, params={"a.weight": value, "b.weight": value + 1})


def test_certificates_with_params_in_other_forms() -> None:
    model, x = mlp(), samples()
    proof = llr.certify.certify(model, x, params=model.state_dict())
    wrapped = nn.DataParallel(model)
    for params in (model.state_dict(), dict(wrapped.named_parameters())):
        assert llr.certify.verify(proof, wrapped, x, params=params)
        assert llr.certify.verify(proof, model=wrapped, x=x.numpy(), params=params)


def test_params_in_other_forms() -> None:
    model, x = mlp(), samples()
    J = llr.jacobian(model, x)
    assert torch.equal(llr.jacobian(model, x, params=(name for name in ("0.*", "2.*"))), J)
    arrays = {name: p.detach().numpy() for name, p in model.named_parameters()}
    assert torch.equal(llr.jacobian(model, x, params=arrays), J)

    def line(params: Any, x: Tensor) -> Tensor:
        return x @ params["w"]

    values = nn.ParameterDict({"w": torch.randn(3, 2)})
    expected = llr.jacobian(line, x, params={"w": values["w"].detach()})
    assert torch.equal(llr.jacobian(line, x, params=values), expected)
    for bad in (3, b"0.*", torch.ones(3)):
        with pytest.raises(
            TypeError, match=f"params is {type(bad).__name__}; expected a name or glob"
        ):
            llr.jacobian(model, x, params=bad)


def test_integers_that_float64_rounds():
    for value in (
        [[2**60 + 1, 2**60], [2**60 + 1, 2**60 + 2]],
        np.array([[2**60 + 1, 2**60], [2**60 + 1, 2**60 + 2]]),
        [[2**60 + 1, 0.5], [1.0, 2.0]],
    ):
        with pytest.raises(ValueError, match="integer 1152921504606846977 at index"):
            llr.numerical_rank(value)
    assert llr.numerical_rank([[2**60, 2**60], [2**60, 2**61]]).rank == 2
    assert llr.rank(np.arange(9).reshape(3, 3)).rank == 2
    assert llr.numerical_rank(np.eye(3) > 0).rank == 3
