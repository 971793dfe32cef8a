"""Training experiments: many seeds, targets and sample sizes at once, and the behaviour of the neurons."""

from llr.recovery.starts import initial
from llr.recovery.train.condensation import Condensation, condensation, merge, tangent_rank
from llr.recovery.train.descent import GD, Adam
from llr.recovery.train.flow import Flow
from llr.recovery.train.levenberg import LM
from llr.recovery.train.narrowing import Narrow, narrow
from llr.recovery.train.result import History, Method, Training
from llr.recovery.train.run import train

__all__ = [
    "GD",
    "LM",
    "Adam",
    "Condensation",
    "Flow",
    "History",
    "Method",
    "Narrow",
    "Training",
    "condensation",
    "initial",
    "merge",
    "narrow",
    "tangent_rank",
    "train",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
