"""The source of a model, its weights and its samples, as given by options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import llr
from llr.cli.output import printing_apart
from llr.inputs.files.layout import Layout
from llr.inputs.files.load import as_taken_by, converted, load_inputs
from llr.inputs.widths import names_widths


@dataclass(frozen=True)
class Source:
    """The source of a model and its samples, as given by options."""

    model: str
    weights: Path | None
    params: tuple[str, ...]
    activation: str | None
    seed: int
    inputs: Path | None = None
    key: str | None = None
    layout: Layout = field(default_factory=Layout)
    inputs_key: str | None = None

    def load(self, dtype: torch.dtype | None = torch.float64) -> nn.Module:
        """The model in evaluation mode; `dtype` None keeps its precision. Its own prints go to stderr."""
        if self.activation is not None and not names_widths(self.model):
            raise ValueError("--activation is for mlp: models; other models define their own")
        if self.key is not None and self.weights is None:
            raise ValueError("--key is for --weights; --inputs-key names an array of --inputs")
        if self.inputs is None and (self.inputs_key or self.layout.given):
            option = "--inputs-key" if self.inputs_key else self.layout.given[0]
            raise ValueError(f"{option} is for --inputs, which are not given")
        with printing_apart():
            net = llr.models.load_model(
                self.model,
                weights=self.weights,
                key=self.key,
                activation=self._activation or "tanh",
                seed=self.seed,
                dtype=dtype,
            )
        return net.eval()

    def samples(self, dtype: torch.dtype, net: nn.Module) -> Tensor:
        """The samples of --inputs, in `dtype`; integers stay integers if `net` takes integers."""
        assert self.inputs is not None
        name = f"inputs {'standard input' if str(self.inputs) == '-' else self.inputs}"
        x = load_inputs(self.inputs, layout=self.layout, key=self.inputs_key)
        with printing_apart():
            x = as_taken_by(net, x, dtype, name)
        return converted(x, dtype, name) if x.is_floating_point() else x

    @property
    def _activation(self) -> str | None:
        return self.activation or ("tanh" if names_widths(self.model) else None)

    def line(self, net: nn.Module) -> str:
        """One line: the model, and where its weights come from, with RANDOM in capitals."""
        parts = [f"model  {self.model}", self._activation or type(net).__name__]
        if self.weights is not None:
            parts.append(f"weights {self.weights}")
        elif names_widths(self.model):
            parts.append(f"RANDOM weights (seed {self.seed}); give --weights for yours")
        else:
            parts.append(f"weights as built (seed {self.seed}); --weights loads others")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, for the JSON of a result."""
        built = "random" if names_widths(self.model) else "as built"
        return {
            "model": self.model,
            "activation": self._activation,
            "weights": built if self.weights is None else str(self.weights),
            "seed": self.seed,
            "params": list(self.params) or None,
            "inputs": None if self.inputs is None else str(self.inputs),
        }
