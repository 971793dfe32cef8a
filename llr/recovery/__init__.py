"""Recovery of functions from n samples: searches, training runs, and sweeps of many of them."""

from llr.recovery.damping import Damping
from llr.recovery.lm import Fits, levenberg_marquardt
from llr.recovery.outcome import Checked, Evidence, NoiseTest, Proved, Reason, Recovery, WidthFit
from llr.recovery.recover import recover
from llr.recovery.reproduce import EXPERIMENTS, Experiment, Reproduction, reproduce
from llr.recovery.search import Budget, Report
from llr.recovery.starts import initial
from llr.recovery.targets import RECOVERED, Target

__all__ = [
    "EXPERIMENTS",
    "RECOVERED",
    "Budget",
    "Checked",
    "Damping",
    "Evidence",
    "Experiment",
    "Fits",
    "NoiseTest",
    "Proved",
    "Reason",
    "Recovery",
    "Report",
    "Reproduction",
    "Target",
    "WidthFit",
    "initial",
    "levenberg_marquardt",
    "recover",
    "reproduce",
]


def __dir__() -> list[str]:
    return [*__all__, "sweep", "train", *(name for name in globals() if name.startswith("__"))]
