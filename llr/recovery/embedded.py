"""A cell of the experiment on embeddings: recovery in a wide network, and the target's rank there."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from llr import rank
from llr.embedding import widen
from llr.recovery.experiment import Setting, Value
from llr.recovery.experiment import run_cell as recovered


def run_cell(values: Mapping[str, Value]) -> dict[str, Value]:
    """The result of :func:`llr.recovery.experiment.run_cell`, with proved ranks of the target.

    "narrow_rank" is the rank of the target's own network, and "wide_rank" the rank of a random embedding in
    the fitted one, on as many random samples as the wide network has parameters. "parameters" is this number.

    Example:
        >>> from llr.recovery.embedded import run_cell
        >>> cell = run_cell({"d": 2, "k": 1, "width": 3, "n": 4})
        >>> cell["narrow_rank"], cell["wide_rank"], cell["parameters"]
        (3, 3, 9)
    """
    setting = Setting.of(values)
    target = setting.draw_target()
    generator = torch.Generator().manual_seed(setting.seed)
    wide, record = widen(
        target.model, [setting.d, setting.width or setting.k, setting.q], generator
    )
    x = target.inputs(len(record.matrix), seed=setting.seed)
    return {
        **recovered(values),
        "narrow_rank": int(rank(target.model, x, method="certified").rank),
        "wide_rank": int(rank(wide, x, method="certified").rank),
        "parameters": len(record.matrix),
    }


run_cell.check = Setting.of  # type: ignore[attr-defined]
