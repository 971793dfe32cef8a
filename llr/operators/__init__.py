"""The native operators, and the same in torch operations.

``_ops`` loads the library, or says why not, and calls its operators. ``_transforms`` gives them fake kernels,
derivatives and vmap rules, ``_arguments`` their checks in Python. ``formula`` and ``double_double`` compute
the same in torch. Nothing here knows of models.
"""

from llr.operators import _transforms as _transforms
