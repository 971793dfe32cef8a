"""llr tells how many samples a network needs to pin a function down."""

from importlib.metadata import PackageNotFoundError, version

from llr.inputs.evaluation import reference as reference
from llr.inputs.memory import memory_budget as memory_budget
from llr.inputs.memory import set_memory_budget as set_memory_budget
from llr.inputs.parameters import layout as layout
from llr.jacobians.gram import gram as gram
from llr.jacobians.info import info as info
from llr.jacobians.info import selftest as selftest
from llr.jacobians.jacobian import jacobian as jacobian
from llr.jacobians.jacobian import plan as plan
from llr.ranks.certificates import certify as certify
from llr.ranks.certificates.certificate import Certificate as Certificate
from llr.ranks.guarantee import Guarantee as Guarantee
from llr.ranks.guarantee import has_llr_guarantee as has_llr_guarantee
from llr.ranks.guarantee import llr_sample_size as llr_sample_size
from llr.ranks.matrices import numerical_rank as numerical_rank
from llr.ranks.matrices import svdvals as svdvals
from llr.ranks.matrices import tolerance as tolerance
from llr.ranks.model_rank import ModelRank as ModelRank
from llr.ranks.model_rank import model_rank as model_rank
from llr.ranks.rank import rank as rank
from llr.ranks.result import RankResult as RankResult

try:
    __version__ = version("llr")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"
