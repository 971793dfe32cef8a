"""Refuses layers with which a model has no per-sample Jacobian, by the look of them.

:mod:`llr.evaluation.probe` refuses what shows when the model runs.
"""

from __future__ import annotations

from torch import nn

_EVAL = "call model.eval() first"


def refuse_layers(model: nn.Module) -> None:
    """Refuse what can be told from the layers alone.

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
        dropout = (
            getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0
        )
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            dropout = module.dropout
        if module.training and dropout > 0:
            raise ValueError(
                f"{label} is active (training mode, p={dropout:g}): its output is random; {_EVAL}"
            )
