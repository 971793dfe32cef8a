"""Models in exact arithmetic.

``chain``: modules as affine and entrywise steps, with a rule for each class. ``network``: Jacobians in balls
and in rationals. ``enclosure``: balls that contain results computed in float64. ``kinks``: samples on which
an activation is not analytic.
"""

from llr.exact.network import jacobian as jacobian
from llr.exact.network import rational_jacobian as rational_jacobian
