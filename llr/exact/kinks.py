"""Finds samples on which torch's network is not the analytic function of the closed forms, in balls.

ReLU has no derivative at 0, and torch's softplus is ``log(1 + e^z)`` up to 20 and z beyond. Floating point
cannot decide on which side a preactivation is, since its error is unbounded: ``2^60 + 60 - 2^60`` gives 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llr.exact.chain import Affine
from llr.exact.network import Network
from llr.linalg.balls import precision

# Precisions to try. Sums of float64 numbers need at most the last one, unless magnitudes differ very much.
_BITS = (128, 512, 2048)


def off_analytic(network: Network, name: str = "the network") -> str:
    """Where a ReLU's preactivation may be 0, or that of a softplus above 20; empty if nowhere.

    An empty answer is rigorous: every sample then has a neighbourhood, or for softplus one side of it, in
    which the network is one analytic function.
    """
    for step, before in _layers(network):
        width = before.outputs
        undecided: list[int] = []
        z = None
        for bits in _BITS:
            values = before.values(bits)
            with precision(bits):
                entries = values.entries()
                at = range(len(entries)) if z is None else undecided
                undecided = [i for i in at if not _is_fine(step, entries[i])]
                z = entries
                if not undecided or any(step == "softplus" and z[i] > 20 for i in undecided):
                    break
        if undecided and z is not None:
            i = undecided[0]
            why = ", the kink of ReLU, where it has no derivative"
            if step == "softplus":
                why = "; torch's softplus is the identity beyond 20, not the function of the theory"
            place = f"on sample {i // width} neuron {i % width} of a layer of {name}"
            return f"{place} has z = {z[i].str(6, radius=False)}{why}"
    return ""


def _is_fine(activation: str, z: object) -> bool:
    return z <= 20 if activation == "softplus" else not z.contains(0)  # type: ignore[operator, attr-defined]


def _layers(network: Network) -> Iterator[tuple[str, Network]]:
    """The piecewise activations, each with the network that gives its preactivations."""
    width = network.inputs[0].numel()
    for k, step in enumerate(network.steps):
        if isinstance(step, Affine):
            width = step.write.size
        elif step.activation in ("relu", "softplus"):
            yield step.activation, replace(network, steps=network.steps[:k], outputs=width)
