"""Recovery of functions from n samples: searches, training runs, and sweeps of many of them."""

from llr.recovery.damping import Damping as Damping
from llr.recovery.lm import Fits as Fits
from llr.recovery.lm import levenberg_marquardt as levenberg_marquardt
from llr.recovery.outcome import Checked as Checked
from llr.recovery.outcome import Evidence as Evidence
from llr.recovery.outcome import NoiseTest as NoiseTest
from llr.recovery.outcome import Proved as Proved
from llr.recovery.outcome import Reason as Reason
from llr.recovery.outcome import Recovery as Recovery
from llr.recovery.outcome import WidthFit as WidthFit
from llr.recovery.recover import recover as recover
from llr.recovery.reproduce import EXPERIMENTS as EXPERIMENTS
from llr.recovery.reproduce import Experiment as Experiment
from llr.recovery.reproduce import Reproduction as Reproduction
from llr.recovery.reproduce import reproduce as reproduce
from llr.recovery.search import Budget as Budget
from llr.recovery.search import Report as Report
from llr.recovery.starts import initial as initial
from llr.recovery.targets import RECOVERED as RECOVERED
from llr.recovery.targets import Target as Target
