"""llr tells how many samples a network needs to pin a function down."""

from importlib.metadata import PackageNotFoundError, version

from llr import _transforms as _transforms
from llr import certify as certify
from llr import reference as reference
from llr.certificate import Certificate as Certificate
from llr.gram import gram as gram
from llr.guarantee import Guarantee as Guarantee
from llr.guarantee import has_llr_guarantee as has_llr_guarantee
from llr.guarantee import llr_sample_size as llr_sample_size
from llr.info import info as info
from llr.info import selftest as selftest
from llr.jacobian import jacobian as jacobian
from llr.jacobian import plan as plan
from llr.memory import memory_budget as memory_budget
from llr.memory import set_memory_budget as set_memory_budget
from llr.model_rank import ModelRank as ModelRank
from llr.model_rank import model_rank as model_rank
from llr.parameters import layout as layout
from llr.rank import rank as rank
from llr.result import RankResult as RankResult
from llr.spectrum import numerical_rank as numerical_rank
from llr.spectrum import svdvals as svdvals
from llr.spectrum import tolerance as tolerance

try:
    __version__ = version("llr")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"
