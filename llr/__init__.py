"""llr tells how many samples a network needs to pin a function down.

What a user calls is here; the sub-packages `embedding`, `landscape`, `lifting`, `models`, `neurons`,
`recovery`, `relu` and `theory` are loaded when they are first used. docs/architecture.md has the folders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llr.inputs.memory import memory_budget, set_memory_budget
from llr.inputs.parameters import layout
from llr.jacobians.gram import gram
from llr.jacobians.jacobian import jacobian, plan
from llr.ranks.certificates.certificate import Certificate
from llr.ranks.certificates.certify import certify
from llr.ranks.certificates.verification import Verdict, verify
from llr.ranks.guarantee import Guarantee, has_llr_guarantee, llr_sample_size
from llr.ranks.info import VERSION, info, selftest
from llr.ranks.matrices import numerical_rank, svdvals, tolerance
from llr.ranks.model_rank import ModelRank, model_rank
from llr.ranks.rank import rank
from llr.ranks.result import RankResult

if TYPE_CHECKING:
    from llr import embedding as embedding
    from llr import landscape as landscape
    from llr import lifting as lifting
    from llr import models as models
    from llr import neurons as neurons
    from llr import recovery as recovery
    from llr import theory as theory
    from llr.theory import relu as relu

__version__ = VERSION

__all__ = [
    "Certificate",
    "Guarantee",
    "ModelRank",
    "RankResult",
    "Verdict",
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
]
_PACKAGES = {
    **{name: f"llr.{name}" for name in ("embedding", "landscape", "lifting", "models", "neurons")},
    "recovery": "llr.recovery",
    "relu": "llr.theory.relu",
    "theory": "llr.theory",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(_PACKAGES[name])
    raise AttributeError(f"module 'llr' has no attribute {name!r}")


def __dir__() -> list[str]:
    special = [name for name in globals() if name.startswith("__")]
    return [*__all__, *_PACKAGES, *special]
