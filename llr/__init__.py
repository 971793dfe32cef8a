"""llr tells how many samples a network needs to pin a function down.

What a user calls is here; the sub-packages `embedding`, `landscape`, `lifting`, `models`, `neurons`,
`recovery` and `theory` are loaded when they are first used. docs/architecture.md has the folders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llr.inputs.memory import memory_budget as memory_budget
from llr.inputs.memory import set_memory_budget as set_memory_budget
from llr.inputs.parameters import layout as layout
from llr.jacobians.gram import gram as gram
from llr.jacobians.jacobian import jacobian as jacobian
from llr.jacobians.jacobian import plan as plan
from llr.ranks.certificates.certificate import Certificate as Certificate
from llr.ranks.certificates.certify import certify as certify
from llr.ranks.certificates.verification import Verdict as Verdict
from llr.ranks.certificates.verification import verify as verify
from llr.ranks.guarantee import Guarantee as Guarantee
from llr.ranks.guarantee import has_llr_guarantee as has_llr_guarantee
from llr.ranks.guarantee import llr_sample_size as llr_sample_size
from llr.ranks.info import VERSION
from llr.ranks.info import info as info
from llr.ranks.info import selftest as selftest
from llr.ranks.matrices import numerical_rank as numerical_rank
from llr.ranks.matrices import svdvals as svdvals
from llr.ranks.matrices import tolerance as tolerance
from llr.ranks.model_rank import ModelRank as ModelRank
from llr.ranks.model_rank import model_rank as model_rank
from llr.ranks.rank import rank as rank
from llr.ranks.result import RankResult as RankResult

if TYPE_CHECKING:
    from llr import embedding as embedding
    from llr import landscape as landscape
    from llr import lifting as lifting
    from llr import models as models
    from llr import neurons as neurons
    from llr import recovery as recovery
    from llr import theory as theory

__version__ = VERSION

_FUNCTIONS = (
    "certify",
    "gram",
    "has_llr_guarantee",
    "info",
    "jacobian",
    "layout",
    "llr_sample_size",
    "memory_budget",
    "model_rank",
    "numerical_rank",
    "plan",
    "rank",
    "selftest",
    "set_memory_budget",
    "svdvals",
    "tolerance",
    "verify",
)
_RESULTS = ("Certificate", "Guarantee", "ModelRank", "RankResult", "Verdict")
_PACKAGES = ("embedding", "landscape", "lifting", "models", "neurons", "recovery", "theory")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"llr.{name}")
    raise AttributeError(f"module 'llr' has no attribute {name!r}")


def __dir__() -> list[str]:
    special = [name for name in globals() if name.startswith("__")]
    return [*_FUNCTIONS, *_RESULTS, *_PACKAGES, *special]
