"""Critical lifting: is a wide network critical whenever the narrow network of the same function is?"""

from llr.lifting.family import Lift, lifted_family
from llr.lifting.points import LiftedPoint, LiftedPoints, lifted_critical_points
from llr.lifting.ranks import RankBounds
from llr.lifting.status import LiftStatus, lift_status

__all__ = [
    "Lift",
    "LiftStatus",
    "LiftedPoint",
    "LiftedPoints",
    "RankBounds",
    "lift_status",
    "lifted_critical_points",
    "lifted_family",
]


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
