"""A model's Jacobian without rounding: in balls that contain the true derivatives, or in rationals.

Parameters and samples are taken as exact binary numbers, and the model as the function of real numbers that
its layers define. The result is a statement about that function, not about an evaluation in float64.
Activations of the table are evaluated in ball arithmetic (Arb, through python-flint); models of ReLU,
polynomials and linear layers have rational derivatives and need no balls.

The precision of python-flint is a global setting. Each call changes it and then restores it, so do not
evaluate in several threads at once.

Source: F. Johansson, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic", IEEE
Transactions on Computers 66 (2017).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flint import arb_mat, fmpq_mat
from torch import Tensor, nn

from llr.exact.chain import ENCODINGS, OTHERWISE, Affine, Entrywise, Step, dense, steps_of
from llr.exact.enclosure import network_departure
from llr.inputs.accept import a_model, takes, valued
from llr.inputs.memory import fits, format_bytes, memory_budget
from llr.inputs.mlp import MLP
from llr.inputs.parameters import Selection
from llr.inputs.problem import Model, Problem, read_problem
from llr.inputs.roles import check_int, sizes, whole
from llr.linalg.arithmetic import BALLS, RATIONALS, Arithmetic
from llr.linalg.balls import HIGHEST_BITS, LOWEST_BITS, Array, activation, is_rational, precision
from llr.linalg.deadline import poll

# Rows of the Jacobian that are summed in one call: numpy does not handle signals during a call.
_ROWS = 64


@dataclass(frozen=True, eq=False)
class Network:
    """A model that exact arithmetic can evaluate, at its parameters and samples."""

    problem: Problem
    inputs: Tensor
    """(n, ...) floating-point numbers, the input of the first step: the samples, or their encoding."""
    steps: list[Step]
    outputs: int
    """q, the number of outputs per sample."""

    @property
    def n_rows(self) -> int:
        """Rows of the Jacobian: samples times outputs."""
        return len(self.problem.x) * self.outputs

    @property
    def n_params(self) -> int:
        """P, columns of the Jacobian."""
        return self.problem.columns.count

    @property
    def rational(self) -> bool:
        """Whether all derivatives are rational numbers."""
        return all(isinstance(s, Affine) or is_rational(s.activation) for s in self.steps)

    @property
    def structure(self) -> str:
        """The steps as text."""
        return ", ".join(s.label if isinstance(s, Affine) else s.activation for s in self.steps)

    @cached_property
    def model_digest(self) -> str:
        """SHA-256 of what defines the columns: steps, parameters, and the choice of columns."""
        digest = hashlib.sha256()
        starts = self.problem.columns.starts()
        for step in self.steps:
            if isinstance(step, Entrywise):
                digest.update(f"{step.activation}\n".encode())
                continue
            for indices in (step.read, step.write):
                digest.update(f"{indices.shape}".encode() + indices.astype("<i8").tobytes())
            for tensor in (step.weight, step.bias):
                name, value = (None, None) if tensor is None else self._value(tensor)
                digest.update(f"{json.dumps([name, starts.get(name or '')])}\n".encode())
                if value is not None:
                    digest.update(_bytes(value))
        digest.update(f"{self.n_params} columns".encode())
        return digest.hexdigest()

    @cached_property
    def samples_digest(self) -> str:
        """SHA-256 of the samples, which depends on their order."""
        return hashlib.sha256(_bytes(self.problem.x)).hexdigest()

    def predicted_bytes(self, bits: int) -> int:
        """An estimate of the memory for the Jacobian and its elimination at this precision."""
        number = 72 + 2 * (bits // 8 if bits > 128 else 0)  # the object, and limbs outside it
        return 8 * self.n_rows * self.n_params * number

    def jacobian(self, bits: int, rows: Sequence[int] | None = None) -> arb_mat:
        """See :func:`jacobian`."""
        self._check_budget(bits)
        with precision(bits):
            J = self._evaluate(BALLS, rows)
            return arb_mat(len(J), self.n_params, J.ravel().tolist())

    def rational_jacobian(self, rows: Sequence[int] | None = None) -> fmpq_mat:
        """See :func:`rational_jacobian`."""
        if not self.rational:
            raise ValueError(
                f"the derivatives of {self.structure} are no rational numbers; take llr.exact.jacobian"
            )
        self._check_budget(64 * len(self.steps))
        J = self._evaluate(RATIONALS, rows)
        return fmpq_mat(len(J), self.n_params, J.ravel().tolist())

    def values(self, bits: int) -> arb_mat:
        """The outputs (n, q) in balls that contain the exact ones."""
        with precision(bits):
            _, out = self._run(BALLS, np.arange(len(self.inputs)))
            return arb_mat(len(out), self.outputs, out.ravel().tolist())

    def _check_budget(self, bits: int) -> None:
        nbytes, device = self.predicted_bytes(bits), torch.device("cpu")
        if not fits(nbytes, device):
            raise ValueError(
                f"the {self.n_rows} x {self.n_params} Jacobian takes about {format_bytes(nbytes)} at {bits} "
                f"bits, more than the memory budget of {format_bytes(memory_budget(device))}; take fewer "
                "samples, choose parameters with params=, or raise the budget with llr.set_memory_budget"
            )

    def _value(self, tensor: Tensor) -> tuple[str | None, Tensor]:
        """A tensor's name, or None if it is not a parameter, and its value."""
        problem = self.problem
        name = problem.names.get(id(tensor))
        if name is None:
            return None, tensor.double()
        return name, problem.columns.values.get(name, problem.columns.fixed.get(name, tensor))

    def _run(
        self, over: Arithmetic, samples: Array
    ) -> tuple[list[tuple[Step, Array, Array]], Array]:
        """The input and the weights of each step, and the output of the last step."""
        x = over.array(self.inputs[torch.as_tensor(samples)].flatten(1))
        tape: list[tuple[Step, Array, Array]] = []
        for step in self.steps:
            W = over.zeros()
            if isinstance(step, Affine):
                W = self._weight(over, step)
                tape.append((step, x, W))
                x = self._forward(over, step, x, W)
            else:
                tape.append((step, x, W))
                x = over.apply(activation(step.activation)[0], x)
        return tape, x

    def _evaluate(self, over: Arithmetic, rows: Sequence[int] | None) -> Array:
        """The Jacobian (N, P), or some of its rows."""
        at = np.arange(self.n_rows) if rows is None else self._checked(rows)
        samples, sample_of = np.unique(at // self.outputs, return_inverse=True)
        tape, _ = self._run(over, samples)
        delta = over.zeros(len(at), self.outputs)
        delta[np.arange(len(at)), at % self.outputs] = over.number(1.0)
        return self._pulled_back(over, tape, delta, sample_of)

    def _pulled_back(
        self,
        over: Arithmetic,
        tape: Sequence[tuple[Step, Array, Array]],
        delta: Array,
        sample_of: Array,
    ) -> Array:
        """Combinations (N, P) of Jacobian rows of one sample each, with weights delta (N, q)."""
        J = over.zeros(len(delta), self.n_params)
        if not len(delta):
            return J
        for step, x, W in reversed(tape):
            if isinstance(step, Entrywise):
                slope = over.apply(activation(step.activation)[1], x)
                delta = over.times(delta, slope[sample_of])
            else:
                self._add_columns(over, step, x, sample_of, delta, J)
                delta = self._backward(over, step, delta, W, x.shape[1])
        return J

    def _checked(self, rows: Sequence[int]) -> Array:
        at = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(at) and not 0 <= at.min() <= at.max() < self.n_rows:
            raise ValueError(f"rows has {at.min()} to {at.max()}; expected 0 to {self.n_rows - 1}")
        return at

    def _weight(self, over: Arithmetic, step: Affine) -> Array:
        (groups, _, w), h = step.read.shape, step.write.shape[2]
        return over.array(self._value(step.weight)[1]).reshape(groups, h, w)

    def _forward(self, over: Arithmetic, step: Affine, x: Array, W: Array) -> Array:
        out = over.zeros(len(x), step.write.size)
        bias = None if step.bias is None else over.array(self._value(step.bias)[1])
        for g, patches in enumerate(_patches(over, step, x)):
            n, positions, w = patches.shape
            z = over.product(patches.reshape(-1, w), W[g].T).reshape(n, positions, len(W[g]))
            out[:, step.write[g]] = z if bias is None else over.plus(z, bias.reshape(len(W), -1)[g])
        return out

    def _backward(self, over: Arithmetic, step: Affine, delta: Array, W: Array, size: int) -> Array:
        back = over.zeros(len(delta), size + 1)  # one more column, for padding
        for g, write in enumerate(step.write):
            rows = delta[:, write]
            found = over.product(rows.reshape(-1, rows.shape[2]), W[g])
            places: Any = (slice(None), step.read[g])
            found = found.reshape(len(delta), *step.read[g].shape)
            for i in range(0, len(delta), _ROWS):
                poll()
                np.add.at(back[i : i + _ROWS], places, found[i : i + _ROWS])
        return back[:, :size]

    def _add_columns(
        self,
        over: Arithmetic,
        step: Affine,
        x: Array,
        sample_of: Array,
        delta: Array,
        J: Array,
    ) -> None:
        """Add the derivatives with respect to the layer's tensors to their columns."""
        slices = self.problem.columns.slices()
        weight = slices.get(self._value(step.weight)[0] or "")
        bias = None if step.bias is None else slices.get(self._value(step.bias)[0] or "")
        if weight is not None:
            blocks = []
            for g, patches in enumerate(_patches(over, step, x)):
                rows, inputs = delta[:, step.write[g]], patches[sample_of]
                if inputs.shape[1] == 1:
                    block = over.times(rows.swapaxes(1, 2), inputs)
                else:
                    block = np.stack(
                        [over.product(r.T, a) for r, a in zip(rows, inputs, strict=True)]
                    )
                blocks.append(block.reshape(len(delta), rows.shape[2] * inputs.shape[2]))
            J[:, weight] += np.concatenate(blocks, axis=1)
        if bias is not None:
            sums = [delta[:, write].sum(axis=1) for write in step.write]
            J[:, bias] += np.concatenate(sums, axis=1)


def _patches(over: Arithmetic, step: Affine, x: Array) -> Iterator[Array]:
    """Per group the input of each position: (n, T, w)."""
    padded = np.concatenate((x, over.zeros(len(x), 1)), axis=1)  # -1 reads the zero
    for read in step.read:
        yield padded[:, read]


def _bytes(t: Tensor) -> bytes:
    # The promotion to float64 is exact, and adding 0 makes the zeros equal.
    return f"{tuple(t.shape)}".encode() + (t.detach().cpu().double() + 0.0).numpy().tobytes()


def read_network(model: Model, x: Tensor, params: Selection = None) -> Network:
    """Read the model for exact arithmetic; errors as for :func:`jacobian`."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"exact arithmetic reads the layers of an nn.Module; got a {type(model).__name__}, which has "
            f"no layers to read; build the model of layers, {OTHERWISE}"
        )
    problem = read_problem(model, x, params, torch.float64)
    if problem.columns.points is not None:
        raise ValueError(
            f"params has {problem.columns.points} stacked parameter points; exact arithmetic takes one "
            "point at a time"
        )
    encode = ENCODINGS.get(type(model))
    if encode is None and not problem.x.is_floating_point():
        raise ValueError(f"x is {problem.x.dtype}; expected floating-point samples")
    if len(problem.x) == 0:
        raise ValueError(
            f"x has no samples (shape {tuple(x.shape)}); a rank needs at least one row"
        )
    if problem.mlp is None:
        inputs = problem.x if encode is None else encode(model, problem.x)
        try:
            steps, shape = steps_of(model, tuple(inputs.shape[1:]))
        except ValueError as error:
            obstacle = problem.why_not_mlp
            if obstacle.partition(" has ")[2] in str(error):  # the same reason: give it once
                raise
            raise ValueError(f"{error} (it is no MLP either: {obstacle})") from error
        network = Network(problem, inputs, steps, int(np.prod(shape)))
    else:
        network = network_of_mlp(problem, problem.mlp)
    _refuse_hollow(network)
    if why := network_departure(network, discrete=encode is not None):
        raise ValueError(
            f"this {type(model).__name__} is not the function of its layers, {network.structure}: {why}; "
            f"undo what changes it, {OTHERWISE}"
        )
    return network


def network_of_mlp(problem: Problem, mlp: MLP) -> Network:
    """The network of a problem that is an MLP."""
    steps: list[Step] = []
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        steps += [Entrywise(mlp.activation)] if steps else []
        steps.append(dense("Linear({1}, {0})".format(*weight.shape), weight, bias))
    return Network(problem, problem.x, steps, mlp.widths[-1])


def _refuse_hollow(network: Network) -> None:
    if network.n_rows == 0 or any(t.numel() == 0 for t in network.problem.columns.values.values()):
        raise ValueError(
            "the model has a layer of width 0; exact arithmetic takes layers of at least one neuron"
        )


@takes(model=a_model, x=valued, rows=sizes, bits=whole)
def jacobian(
    model: Model,
    x: Tensor,
    *,
    bits: int,
    params: Selection = None,
    rows: Sequence[int] | None = None,
) -> arb_mat:
    """The Jacobian in balls that contain the exact derivatives.

    Args:
        model: an MLP, one of :mod:`llr.models`, or an ``nn.Sequential`` of linear layers, 1-d convolutions,
            reshapes and activations (see :data:`llr.exact.chain.RULES`, and :func:`llr.exact.chain.register`
            for other classes).
        x: (n, ...) samples.
        bits: working precision; an entry of moderate size has about this many correct bits.
        params: columns, or values of the parameters, as for :func:`llr.jacobian`; one point.
        rows: only these rows, numbered sample by sample and within a sample output by output.

    Returns:
        ``flint.arb_mat`` (n q, P), columns as in :func:`llr.jacobian`. A ball that contains the kink of ReLU,
        or softplus' threshold of 20, gives the union of both branches.

    Raises:
        ValueError: a module without a rule, stacked parameter points, no samples, a Jacobian that does not
            fit the memory budget; and everything that :func:`llr.jacobian` refuses.

    Example:
        >>> import torch
        >>> from llr import exact
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Tanh()).double()
        >>> _ = torch.nn.init.ones_(model[0].weight), torch.nn.init.zeros_(model[0].bias)
        >>> exact.jacobian(model, torch.ones(1, 1).double(), bits=100)[0, 0].str(20)
        '[0.41997434161402606939 +/- 4.50e-21]'
    """
    check_int("bits", bits, LOWEST_BITS, HIGHEST_BITS)
    network = read_network(model, x, params)
    return network.jacobian(bits, _checked_rows(rows))


@takes(model=a_model, x=valued, rows=sizes)
def rational_jacobian(
    model: Model, x: Tensor, *, params: Selection = None, rows: Sequence[int] | None = None
) -> fmpq_mat:
    """The Jacobian of a model of ReLU, polynomials and linear layers in rational numbers, exactly.

    Args and errors as for :func:`jacobian`; ValueError for models with another activation.

    Returns:
        ``flint.fmpq_mat`` (n q, P). The slope of ReLU at 0 is 0, as torch has it.

    Example:
        >>> import torch
        >>> from llr import exact
        >>> exact.rational_jacobian(torch.nn.Linear(2, 1), torch.tensor([[0.5, 3.0]]))
        [1/2, 3, 1]
    """
    network = read_network(model, x, params)
    return network.rational_jacobian(_checked_rows(rows))


def _checked_rows(rows: Sequence[int] | None) -> Sequence[int] | None:
    for row in rows if isinstance(rows, list | tuple) else [rows]:
        if rows is not None and type(row) is not int:
            raise TypeError(f"rows has {row!r}; expected row numbers, integers")
    return rows
