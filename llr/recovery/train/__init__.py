"""Training experiments: many seeds, targets and sample sizes at once, and the behaviour of the neurons."""

from llr.recovery.starts import initial as initial
from llr.recovery.train.condensation import Condensation as Condensation
from llr.recovery.train.condensation import condensation as condensation
from llr.recovery.train.condensation import merge as merge
from llr.recovery.train.condensation import tangent_rank as tangent_rank
from llr.recovery.train.descent import GD as GD
from llr.recovery.train.descent import Adam as Adam
from llr.recovery.train.flow import Flow as Flow
from llr.recovery.train.levenberg import LM as LM
from llr.recovery.train.narrowing import Narrow as Narrow
from llr.recovery.train.narrowing import narrow as narrow
from llr.recovery.train.result import History as History
from llr.recovery.train.result import Method as Method
from llr.recovery.train.result import Training as Training
from llr.recovery.train.run import train as train
