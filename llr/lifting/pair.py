"""A narrow and a wide network in the same symbols, and in ball arithmetic on the same samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llr.exact.kinks import off_analytic
from llr.exact.network import Network, read_network
from llr.inputs.samplers import read_sampler, sample_shape
from llr.theory.spans.formal import Formal, formal
from llr.theory.spans.formal_span import formal_rank
from llr.theory.spans.symbols import Symbols
from llr.theory.structures.structure import (
    DeepNet,
    Factorization,
    Structure,
    TwoLayerNet,
    read_structure,
)
from llr.theory.tangents.tangent import dimension_of

_SPARE_SAMPLES = 16


@dataclass(frozen=True, eq=False)
class Pair:
    """Two networks in the same symbols, and in ball arithmetic on the same samples."""

    one: Formal
    two: Formal
    networks: tuple[Network, Network]
    eps: float
    """The coarser rounding unit of the parameters as the models store them."""

    @classmethod
    def of(cls, narrow: nn.Module, wide: nn.Module, x: Tensor | None, seed: int) -> Pair:
        """Read and check both networks; errors as for :func:`llr.lifting.lift_status`."""
        symbols = Symbols()
        forms = []
        for name, model in (("narrow", narrow), ("wide", wide)):
            if not isinstance(model, nn.Module):
                raise TypeError(f"{name} is {type(model).__name__}; expected an nn.Module")
            if isinstance(read_structure(model), Factorization):
                raise ValueError(
                    f"{name} is a matrix factorization, which has no neurons to lift; llr.model_rank(model) "
                    "finds its rank, and that of the function x -> narrow(x) + wide(x), numerically"
                )
            forms.append(formal(model, symbols))
        one, two = forms
        sizes = [(_inputs(form.net), len(form.outputs)) for form in forms]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the narrow network has {sizes[0][0]} inputs and {sizes[0][1]} outputs, the wide one "
                f"{sizes[1][0]} and {sizes[1][1]}; expected networks of the same function"
            )
        if x is None:
            try:
                shape, _ = sample_shape(narrow, None)
            except ValueError:
                raise ValueError(
                    f"the shape of samples of a {type(narrow).__name__} is not known; give x="
                ) from None
            source = read_sampler(
                "normal",
                narrow,
                shape=shape,
                dtype=torch.float64,
                device=torch.device("cpu"),
                seed=seed,
            )
            x = source.first(one.net.n_params + two.net.n_params + _SPARE_SAMPLES)
        networks = (read_network(narrow, x), read_network(wide, x))
        for name, network in zip(("narrow", "wide"), networks, strict=True):
            _refuse_kinks(name, network)
        kinds = [p.dtype for model in (narrow, wide) for p in model.parameters()]
        return cls(one, two, networks, max(torch.finfo(kind).eps for kind in kinds))

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        return len(self.networks[0].inputs)

    def upper_bounds(self) -> list[int]:
        """Upper bounds of the dimensions of T_narrow, of T_wide and of both together."""
        nets = self.one.net, self.two.net
        bounds = [
            [self.one.rank, *_closed(nets[0])],
            [self.two.rank, *_closed(nets[1])],
            [formal_rank([*self.one.tangents, *self.two.tangents]), *_closed(_side_by_side(*nets))],
        ]
        return [min(bound) for bound in bounds]


def _inputs(net: Structure) -> int:
    assert not isinstance(net, Factorization)
    return net.widths[0] if hasattr(net, "widths") else net.d


def _closed(net: Structure | None) -> list[int]:
    """The closed form of the dimension, for structures for which it is sharper than the formal rank."""
    if net is None or isinstance(net, DeepNet):
        return []
    return [dimension_of(net).upper]


def _side_by_side(one: Structure, two: Structure) -> TwoLayerNet | None:
    """A network of one hidden layer whose tangent space is the sum of both; None if there is none."""
    if not isinstance(one, TwoLayerNet) or not isinstance(two, TwoLayerNet):
        return None
    kinds = [(net.activation, net.coefficients, net.beta) for net in (one, two)]
    if kinds[0] != kinds[1]:
        return None
    b = None if one.b is None or two.b is None else one.b + two.b
    return replace(one, w=one.w + two.w, b=b, a=one.a + two.a, c=two.c if one.c is None else one.c)


def _refuse_kinks(name: str, network: Network) -> None:
    """Refuse samples on which torch computes another function than the one of the closed forms."""
    if where := off_analytic(network, f"the {name} network"):
        raise ValueError(f"{where}; omit x, or choose other samples")
