"""One cell of an experiment: a target, a sample, a strategy, and whether the target is recovered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from llr import jacobian
from llr.linalg.spectrum import singular_values
from llr.models import Conv1dTwoLayer, MatrixFactorization, TwoLayer
from llr.recovery.recover import recover
from llr.recovery.search import FITTED, Data, first_fit
from llr.recovery.starts import initial
from llr.recovery.targets import RECOVERED, Target
from llr.recovery.train import GD, Adam, Training, narrow, train
from llr.theory import optimistic_sample_size

Value = str | int | float | bool | None

_MASKS = 400  # random masks from which one is chosen
_ROUNDS = 25  # most rounds of masks until one sees all directions
_FULL = 1e-10  # a mask sees all directions if the smallest singular value relative to the largest is above
_DECAY = 1e-2  # first weight decay of Adam


@dataclass(frozen=True)
class Setting:
    """The coordinates of a cell, with their default values.

    Attributes:
        architecture: the fitted model: "two-layer"; "cnn-shared", "cnn-local" or "cnn-full" for targets of
            convolution kernels; "matrix".
        d: inputs; rows and columns of a matrix.
        k: neurons (kernels) of the target.
        width: neurons (kernels, inner size) of the fitted model; default: as many as the target has.
        q: outputs of a two-layer network.
        kernel: size of a kernel.
        rank: rank of a matrix.
        activation: activation of target and model.
        bias: hidden biases of a two-layer network.
        output_bias: output biases of a two-layer network.
        target: "separated", "generic" or "linear-like".
        n: samples.
        strategy: "lm", many starts of Levenberg-Marquardt; "recover", the same from width 1 up to `width`,
            see :func:`llr.recovery.recover`; "gd", "adam", "adam-annealed" (with weight decay that vanishes),
            one run from a small start; "adam-merge-lm", the last one, followed by merging parallel neurons
            and Levenberg-Marquardt for growing widths until one fits, see
            :func:`llr.recovery.train.narrow`.
        seed: the seed of target, sample and starts. Target and sample are the same for all strategies.
        starts: largest number of starts of "lm" and "recover".
        steps: steps of the other strategies.
        init: standard deviation of the first parameters of these strategies.
        lr: step size of these strategies; default: 0.05 for "gd", 0.01 for Adam; for a matrix a step size
            that follows from its norm.
        mask: which entries of a matrix are observed: "random"; "full-rank", the first random mask that sees
            as many directions of the matrix as possible with n entries; "best", the mask of 400 that sees
            them best.
    """

    n: int
    architecture: str = "two-layer"
    d: int = 5
    k: int = 1
    width: int | None = None
    q: int = 1
    kernel: int = 3
    rank: int = 1
    activation: str = "tanh"
    bias: bool = False
    output_bias: bool = False
    target: str = "separated"
    strategy: str = "lm"
    seed: int = 0
    starts: int = 4096
    steps: int = 20_000
    init: float = 1e-3
    lr: float | None = None
    mask: str = "best"

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> Setting:
        """A setting from its values by name, checked.

        Raises:
            ValueError: an unknown name, a value of the wrong type or out of range; no `n`.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in fields:
                raise ValueError(f"{name!r} is unknown; expected some of {', '.join(fields)}")
            kinds = _KINDS[str(fields[name].type).split(" ")[0]]
            if value is not None and type(value) not in kinds:
                raise ValueError(
                    f"{name} is {value!r}; expected {' or '.join(k.__name__ for k in kinds)}"
                )
            if name in _CHOICES and value not in _CHOICES[name]:
                raise ValueError(
                    f"{name} is {value!r}; expected one of {', '.join(_CHOICES[name])}"
                )
            if isinstance(value, int) and kinds == (int,) and name != "seed" and value < 1:
                raise ValueError(f"{name} is {value}; expected a positive integer")
        if "n" not in values:
            raise ValueError("n is missing; expected a number of samples")
        return cls(**values)  # type: ignore[arg-type]

    def template(self) -> nn.Module:
        """The model that is fitted."""
        return self._model(self.width)

    def _model(self, width: int | None) -> nn.Module:
        if self.architecture == "matrix":
            return MatrixFactorization(self.d, width or self.rank, self.d, dtype=torch.float64)
        if self.architecture == "two-layer":
            return TwoLayer(
                self.d,
                width or self.k,
                self.q,
                activation=self.activation,
                bias=self.bias,
                output_bias=self.output_bias,
                dtype=torch.float64,
            )
        width, positions = width or self.k, self.d + 1 - self.kernel
        if self.architecture == "cnn-full":
            return TwoLayer(
                self.d,
                width * positions,
                activation=self.activation,
                bias=False,
                dtype=torch.float64,
            )
        return Conv1dTwoLayer(
            self.d,
            self.kernel,
            width,
            shared=self.architecture == "cnn-shared",
            activation=self.activation,
            dtype=torch.float64,
        )

    def draw_target(self) -> Target:
        """Draw the function to be recovered."""
        seed = _seed(self.seed, 0)
        if self.architecture == "matrix":
            return Target.generic(MatrixFactorization(self.d, self.rank, self.d), seed=seed)
        if self.architecture == "two-layer":
            architecture = self._model(None)
        else:
            architecture = Conv1dTwoLayer(self.d, self.kernel, self.k, activation=self.activation)
        draw: dict[str, Callable[..., Target]] = {
            "separated": Target.separated,
            "generic": Target.generic,
            "linear-like": Target.linear_like,
        }
        return draw[self.target](architecture, seed=seed)

    def draw_sample(self, target: Target) -> Data:
        """Draw the samples of the target."""
        x = target.inputs(self.n, seed=_seed(self.seed, 1))
        if self.architecture == "matrix" and self.mask != "random":
            x = self._mask(target)
        return Data(x, target(x))

    def _mask(self, target: Target) -> Tensor:
        """A mask of observed entries that sees as many directions of the matrix as possible."""
        pairs = target.inputs(self.d**2, seed=0)
        J = jacobian(target.model, pairs)[:, 0]
        generator = torch.Generator().manual_seed(_seed(self.seed, 1))
        seen = min(self.n, self.rank * (2 * self.d - self.rank))
        for _ in range(1 if self.mask == "best" else _ROUNDS):
            draws = [
                torch.randperm(self.d**2, generator=generator)[: self.n] for _ in range(_MASKS)
            ]
            masks = torch.stack(draws)
            spectra = singular_values(J[masks])
            conditions = spectra[:, seen - 1] / spectra[:, 0]
            chosen = conditions.argmax()
            if self.mask == "full-rank":
                chosen = (conditions > _FULL).int().argmax()
            if float(conditions[chosen]) > _FULL:
                return pairs[masks[chosen]]
        raise ValueError(
            f"random choices of {self.n} entries never had rank {seen}; expected a larger n, another seed, "
            "or mask = 'random'"
        )


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "float": (float, int),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "architecture": ("two-layer", "cnn-shared", "cnn-local", "cnn-full", "matrix"),
    "target": ("separated", "generic", "linear-like"),
    "strategy": ("lm", "recover", "gd", "adam", "adam-annealed", "adam-merge-lm"),
    "mask": ("best", "full-rank", "random"),
}


def run_cell(values: Mapping[str, Value]) -> dict[str, Value]:
    """Draw a target and a sample, and try to recover the target.

    Args:
        values: see :class:`Setting`; the result depends on nothing else.

    Returns:
        "test_error" and "train_error": relative squared errors on fresh points and on the sample;
        "recovered": whether the test error is below 1e-8; "fitted": whether the train error is below 1e-20;
        "predicted": the optimistic sample size of the target in the fitted architecture.

    Raises:
        ValueError: values that :meth:`Setting.of` refuses.

    Example:
        >>> from llr.recovery.experiment import run_cell
        >>> cell = run_cell({"d": 2, "k": 1, "n": 4})
        >>> cell["recovered"], cell["predicted"]
        (True, 3)
    """
    setting = Setting.of(values)
    target = setting.draw_target()
    model, train_error = _STRATEGIES[setting.strategy](setting, setting.draw_sample(target))
    error = math.inf if model is None else target.error(model)
    return {
        "recovered": error < RECOVERED,
        "fitted": train_error < FITTED,
        "test_error": _finite(error),
        "train_error": _finite(train_error),
        "predicted": optimistic_sample_size(setting.template(), target.model).upper,
    }


run_cell.check = Setting.of  # type: ignore[attr-defined]

Found = tuple[nn.Module | None, float]
"""A model, and its relative squared error on the sample."""


def _many_starts(setting: Setting, data: Data) -> Found:
    budget, seed = setting.starts, _seed(setting.seed, 2)
    fits, _ = first_fit(setting.template(), data, budget=budget, seed=seed)
    return fits.model(0), float(fits.relative[0])


def _narrowest_first(setting: Setting, data: Data) -> Found:
    if setting.architecture != "two-layer":
        raise ValueError(
            f"strategy 'recover' is for two-layer networks, not for {setting.architecture}"
        )
    neuron = setting.q + setting.d + setting.bias + setting.q * setting.output_bias
    if data.y.numel() < neuron:
        return (
            None,
            math.inf,
        )  # recover() refuses so few samples; in a grid they are a point of the curve
    found = recover(
        data.x,
        data.y,
        max_width=setting.width or setting.k,
        activation=setting.activation,
        bias=setting.bias,
        output_bias=setting.output_bias,
        budget=setting.starts,
        seed=_seed(setting.seed, 2),
    )
    return found.model, found.train_error


def _descended(setting: Setting, data: Data) -> Found:
    trained = _trained(setting, data)
    return _at(setting.template(), trained.theta[0]), float(trained.relative[0])


def _narrowed(setting: Setting, data: Data) -> Found:
    found = narrow(setting.template(), _trained(setting, data).theta[0], data.x, data.y, tol=FITTED)
    return found.model, found.relative


def _trained(setting: Setting, data: Data) -> Training:
    template = setting.template()
    generator = torch.Generator().manual_seed(_seed(setting.seed, 3))
    start = initial(template, 1, scale=setting.init, generator=generator)
    if setting.strategy == "gd":
        method: GD | Adam = GD(lr=setting.lr or _rate(setting, data), momentum=0.9)
    else:
        decay = 0.0 if setting.strategy == "adam" else _DECAY
        method = Adam(setting.lr or 0.01, weight_decay=decay, decay_schedule="linear")
    return train(template, start, data.x, data.y, method=method, steps=setting.steps, tol=FITTED)


def _rate(setting: Setting, data: Data) -> float:
    """A step size of gradient descent with momentum."""
    if setting.architecture != "matrix":
        return 0.05
    # Near a solution the curvature is at most 2 sigma_1(M) / n, and sigma_1 is at most the norm of M.
    return len(data.y) / (2 * float(data.y.square().mean().sqrt()) * setting.d)


_STRATEGIES: dict[str, Callable[[Setting, Data], Found]] = {
    "lm": _many_starts,
    "recover": _narrowest_first,
    "gd": _descended,
    "adam": _descended,
    "adam-annealed": _descended,
    "adam-merge-lm": _narrowed,
}


def _at(template: nn.Module, theta: Tensor) -> nn.Module:
    model = Target.given(template).model
    with torch.no_grad():
        vector_to_parameters(theta.double(), model.parameters())
    return model


def _finite(value: float) -> Value:
    """The number if JSON can hold it, otherwise None."""
    return value if math.isfinite(value) else None


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
