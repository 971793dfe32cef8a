"""Refuses layers with which a model has no per-sample Jacobian, without running the model.

:mod:`llr.inputs.probe` refuses what is found by running the model.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llr.inputs.evaluation.outputs import output_leaves

_EVAL = "call model.eval() first"


def refuse_layers(model: nn.Module) -> None:
    """Refuse what can be seen from the layers alone.

    Raises:
        ValueError: batch statistics in use, or active dropout; names the layer.
    """
    for name, module in model.named_modules():
        label = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training:
                raise ValueError(
                    f"{label} is in training mode, where samples interact and there is no per-sample "
                    f"Jacobian; {_EVAL}"
                )
            if module.running_mean is None:
                raise ValueError(
                    f"{label} has no running statistics, so that samples interact even in evaluation "
                    "mode and there is no per-sample Jacobian; build it with track_running_stats=True"
                )
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and (
            module.training and module.track_running_stats
        ):
            raise ValueError(f"{label} is in training mode, where its buffers change; {_EVAL}")
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise ValueError(
                f"{label} is lazy and has no shape yet; run the model once on a batch (model(x)) first"
            )
        if getattr(module, "max_norm", None) is not None:
            raise ValueError(
                f"{label} has max_norm={module.max_norm}, so that its forward rewrites its weight; set it to "
                "None, with the weight normalised once"
            )
        if getattr(module, "scale_grad_by_freq", False):
            raise ValueError(
                f"{label} has scale_grad_by_freq=True, so torch's gradient of its weight is no derivative; "
                "set it to False"
            )
        dropout = (
            getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
        )
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            dropout = module.dropout
        if module.training and dropout > 0:
            raise ValueError(
                f"{label} is active (training mode, p={dropout:g}): its output is random; {_EVAL}"
            )


def refuse_quantized(model: nn.Module) -> None:
    """Refuse a module with quantized layers, whose integer weights are not parameters.

    Raises:
        ValueError: names the first such layer.
    """
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise ValueError(
                f"{type(module).__name__} {name!r} is quantized: its weights are integers and have no "
                "derivatives; give the model that it was made from"
            )


def count_on_meta(evaluate: Callable[[Tensor], object], sample: Tensor) -> int:
    """The number of outputs of one sample, for a model on the meta device.

    Raises:
        ValueError: an output does not have the sample as its first size.
    """
    leaves = output_leaves(evaluate(sample.clone()))
    for leaf in leaves:
        if leaf.dim() == 0 or len(leaf) != 1:
            raise ValueError(
                f"an output has shape {tuple(leaf.shape)} for one sample; expected (1, ...)"
            )
    return sum(leaf.numel() for leaf in leaves)
