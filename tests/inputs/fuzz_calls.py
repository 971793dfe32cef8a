"""Random calls of the public functions: the functions, and the arguments of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import llr
from llr import certify, embedding, landscape, lifting, models, recovery, theory, verify
from llr.exact import network as exact
from llr.recovery import train as training
from llr.theory.spans import neurons

from .fuzz_arguments import (
    Draw,
    a_branch,
    an_embedding,
    budget,
    certificate,
    device,
    dtype,
    flag,
    fraction,
    generator,
    index,
    integer,
    loss,
    model,
    model_or_matrix,
    one_of,
    params,
    progress,
    real,
    sampler,
    seed,
    sizes,
    starts,
    targets,
    tensor,
    vector,
    wider,
    word,
)

FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Draw], dict[str, Draw]]] = {
    # name: the function, required arguments, optional arguments
    "jacobian": (
        llr.jacobian,
        {"model": model, "x": tensor},
        {"params": params, "out": tensor, "chunk_size": integer, "backend": word, "create_graph": flag},
    ),
    "plan": (
        llr.plan,
        {"model": model, "x": tensor},
        {"params": params, "chunk_size": integer, "backend": word},
    ),
    "gram": (
        llr.gram,
        {"model": model, "x": tensor},
        {"params": params, "chunk_size": integer, "backend": word,
         "precision": one_of("float64", "double-double", "x", None)},
    ),
    "rank": (
        llr.rank,
        {"model": model_or_matrix, "x": tensor},
        {"params": params, "method": word, "dtype": dtype, "rtol": real, "atol": real, "upper": integer,
         "max_bits": one_of(64, np.int64(256), 3, "x"), "chunk_size": integer, "backend": word,
         "progress": progress},
    ),
    "rank of a matrix": (llr.rank, {"model": tensor}, {"dtype": dtype, "rtol": real, "atol": real}),
    "numerical_rank": (llr.numerical_rank, {"A": tensor}, {"rtol": real, "atol": real}),
    "svdvals": (llr.svdvals, {"A": tensor}, {}),
    "tolerance": (
        llr.tolerance,
        {"spectrum": tensor, "short_side": integer},
        {"rtol": real, "atol": real},
    ),
    "model_rank": (
        llr.model_rank,
        {"model": model},
        {"sampler": sampler, "params": params, "upper": integer, "certify": flag, "margin": integer,
         "max_samples": integer, "seed": seed, "sample_shape": one_of((3,), [3], np.array([3]), 3, (), "x"),
         "method": word, "progress": progress},
    ),
    "has_llr_guarantee": (
        llr.has_llr_guarantee,
        {"model": model, "x": tensor},
        {"model_rank": integer, "params": params, "certify": flag, "method": word},
    ),
    "llr_sample_size": (llr.llr_sample_size, {"model": model, "x": tensor}, {"model_rank": integer}),
    "layout": (llr.layout, {"model": model}, {"params": params}),
    "memory_budget": (llr.memory_budget, {}, {"device": device}),
    "certify": (
        certify,
        {"model": model, "x": tensor},
        {"params": params, "upper": integer, "bits": one_of(64, np.int64(64), 1, "x"),
         "max_bits": one_of(128, np.int64(64), 2.5), "progress": progress},
    ),
    "verify": (
        verify,
        {"certificate": certificate, "model": model, "x": tensor},
        {"params": params},
    ),
    "exact.jacobian": (
        exact.jacobian,
        {"model": model, "x": tensor},
        {"bits": one_of(64, np.int64(64), "x", -3), "params": params, "rows": one_of(None, [0], [99], "x")},
    ),
    "exact.rational_jacobian": (exact.rational_jacobian, {"model": model, "x": tensor}, {}),
    "read_structure": (theory.read_structure, {"model": model}, {}),
    "tangent_dimension": (theory.tangent_dimension, {"model": model}, {}),
    "generic_rank": (theory.generic_rank, {"architecture": model}, {}),
    "model_rank_of_function": (theory.model_rank_of_function, {"model": model}, {}),
    "optimistic_sample_size": (
        theory.optimistic_sample_size,
        {"architecture": model, "target": model},
        {},
    ),
    "points_needed": (theory.points_needed, {"model": model}, {}),
    "rank_stratification": (theory.rank_stratification, {"architecture": model}, {}),
    "check": (
        embedding.check,
        {"narrow": model, "wide": wider, "x": tensor},
        {"y": targets, "seed": seed},
    ),
    "split": (
        embedding.split,
        {"model": model, "layer": index, "neuron": index},
        {"share": vector, "sign": one_of(1, -1, np.int64(1), 2, "x")},
    ),
    "null": (
        embedding.null,
        {"model": model, "layer": index},
        {"incoming": vector, "bias": real, "outgoing": vector},
    ),
    "widen": (embedding.widen, {"model": model, "widths": sizes}, {"generator": generator}),
    "random_compatible": (
        embedding.random_compatible,
        {"model": model, "widths": sizes},
        {"generator": generator},
    ),
    "compatible": (
        embedding.compatible,
        {"model": model,
         "origins": one_of([[0, 1, 2, 3, 0]], [np.array([0, 0, 1, 2, 3])], [[0]], None, 3, [], [[9]], "x"),
         "kappas": one_of([[0.5, 1, 1, 1, 0.5]], [np.ones(5)], [[1.0]], None, "x", [[1, 1, 1, 1, 1]])},
        {"signs": one_of(None, [[1, 1, 1, 1, -1]], 3)},
    ),
    "reduce": (embedding.reduce, {"model": model}, {}),
    "lift_status": (
        lifting.lift_status,
        {"narrow": model, "wide": wider},
        {"x": tensor, "bits": one_of(64, np.int64(64), 1, "x"), "seed": seed},
    ),
    "lifted_family": (
        lifting.lifted_family,
        {"narrow": model, "alpha": fraction, "lam": real},
        {"layer": index, "first": index, "second": index, "t": real, "s": real, "r": vector},
    ),
    "lifted_critical_points": (
        lifting.lifted_critical_points,
        {"narrow": model, "x": tensor, "y": targets},
        {"loss": loss, "layer": index, "starts": one_of(2, np.int64(1), 0, "x"), "scale": real,
         "rtol": real, "seed": seed},
    ),
    "branches": (landscape.branches, {"target": model, "width": integer}, {}),
    "criticality": (
        landscape.criticality,
        {"model": model, "x": tensor, "y": targets},
        {"loss": loss, "params": params, "rtol": real},
    ),
    "critical_targets": (
        landscape.critical_targets,
        {"model": model, "x": tensor},
        {"y": targets, "size": real, "generator": generator},
    ),
    "embedded_spectrum": (
        landscape.embedded_spectrum,
        {"narrow": model, "wide": wider, "embedding": an_embedding, "x": tensor, "y": targets},
        {"loss": loss, "rtol": real},
    ),
    "flow": (
        landscape.flow,
        {"model": model, "x": tensor, "y": targets, "times": one_of([0.0, 0.1], np.ones(1), 3, [-1], "x")},
        {"loss": loss, "rtol": one_of(1e-6, 0, "x", -1), "params": params},
    ),
    "rate": (landscape.rate, {"model": model, "x": tensor}, {"params": params, "rtol": real}),
    "random_point": (
        landscape.random_point,
        {"target": model, "branch": a_branch},
        {"generator": generator},
    ),
    "hessian_spectrum": (
        landscape.hessian_spectrum,
        {"model": model, "x": tensor, "y": targets},
        {"loss": loss, "kind": one_of("full", "gauss-newton", "x", 3), "k": integer,
         "method": one_of("auto", "dense", "lanczos", "x"), "rtol": real, "params": params},
    ),
    "recover": (
        recovery.recover,
        {"x": tensor, "y": targets, "max_width": integer, "budget": budget},
        {"activation": one_of("tanh", "relu", "sin", "x", None), "bias": flag, "output_bias": flag,
         "noise_std": real, "seed": seed, "progress": progress},
    ),
    "initial": (
        recovery.initial,
        {"model": model, "count": integer},
        {"kind": one_of("normal", "torch", "xavier", "x", 3), "scale": real, "generator": generator,
         "dtype": dtype, "device": device},
    ),
    "levenberg_marquardt": (
        recovery.levenberg_marquardt,
        {"model": model, "starts": starts, "x": tensor, "y": targets},
        {"which": one_of(None, torch.tensor([0, 0]), np.array([0, 0]), "x"), "tol": real, "first": flag,
         "damping": one_of("fast", "slow", "x", 3)},
    ),
    "reproduce": (recovery.reproduce, {"name": one_of("nothing", 3, None)}, {"jobs": integer}),
    "train": (
        training.train,
        {"model": model, "starts": starts, "x": tensor, "y": targets,
         "steps": one_of(3, np.int64(2), 0, "x", 2.5)},
        {"which": one_of(None, torch.tensor([0, 0]), "x"), "method": one_of(None, training.GD(), "x", 3),
         "tol": real, "record": one_of(None, 2, np.int64(1), "x", [1, 2], -1), "progress": progress},
    ),
    "condensation": (
        training.condensation,
        {"model": model},
        {"theta": starts, "layer": index, "angle": real, "share": real},
    ),
    "merge": (
        training.merge,
        {"model": model},
        {"theta": starts, "angle": real, "share": real, "width": integer},
    ),
    "narrow": (
        training.narrow,
        {"model": model, "theta": starts, "x": tensor, "y": targets},
        {"angles": one_of((0.1,), np.array([0.1]), "x", 0.1, []), "widest": integer, "tol": real},
    ),
    "tangent_rank": (
        training.tangent_rank,
        {"model": model, "theta": starts, "x": tensor},
        {"rtol": real},
    ),
    "independence": (
        neurons.independence,
        {"neurons": model},
        {"x": tensor, "layer": integer, "constant": flag, "bits": one_of(64, np.int64(64), 1, "x"),
         "seed": seed},
    ),
    "TwoLayer": (
        models.TwoLayer,
        {"d": integer, "m": integer},
        {"q": integer, "activation": one_of("tanh", "x", None, nn.Tanh()), "bias": flag, "dtype": dtype,
         "generator": generator},
    ),
    "Conv1dTwoLayer": (
        models.Conv1dTwoLayer,
        {"d": integer, "kernel_size": integer, "channels": integer},
        {"shared": flag, "activation": one_of("tanh", "x", 3), "dtype": dtype},
    ),
    "MatrixFactorization": (
        models.MatrixFactorization,
        {"m": integer, "p": integer, "n": integer},
        {"dtype": dtype, "generator": generator},
    ),
    "DeepLinear": (models.DeepLinear, {"widths": sizes}, {"dtype": dtype, "generator": generator}),
    "mlp": (
        models.mlp,
        {"widths": sizes},
        {"activation": one_of("tanh", "x", 3, nn.Tanh), "bias": flag, "dtype": dtype},
    ),
    "Polynomial": (models.Polynomial, {"coefficients": vector}, {}),
}  # fmt: skip


def draw(number: int) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    """The call with this number: its name, the function and its arguments."""
    r = random.Random(number)
    torch.manual_seed(number)
    name = r.choice(list(FUNCTIONS))
    called, needed, optional = FUNCTIONS[name]
    context: dict[str, Any] = {"double": r.random() < 0.7, "n": r.choice([5, 9])}
    arguments = {key: value(r, context) for key, value in needed.items()}
    for key, value in optional.items():
        if r.random() < 0.15:
            arguments[key] = value(r, context)
    return name, called, arguments


def shown(arguments: dict[str, Any]) -> str:
    parts = []
    for key, value in arguments.items():
        if isinstance(value, nn.Module):
            text = type(value).__name__ + str([type(m).__name__ for m in value.children()])
        elif isinstance(value, torch.Tensor | np.ndarray):
            text = f"{type(value).__name__} {value.dtype}" + (
                ""
                if isinstance(value, torch.Tensor) and value.is_nested
                else f" {tuple(value.shape)}"
            )
        else:
            text = repr(value)[:80]
        parts.append(f"{key}={text}")
    return ", ".join(parts)
