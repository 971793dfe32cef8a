"""Critical lifting: is a wide network critical whenever the narrow network of the same function is?"""

from llr.lifting.family import Lift as Lift
from llr.lifting.family import lifted_family as lifted_family
from llr.lifting.points import LiftedPoint as LiftedPoint
from llr.lifting.points import LiftedPoints as LiftedPoints
from llr.lifting.points import lifted_critical_points as lifted_critical_points
from llr.lifting.ranks import RankBounds as RankBounds
from llr.lifting.status import LiftStatus as LiftStatus
from llr.lifting.status import lift_status as lift_status
