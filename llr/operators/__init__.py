"""The native operators, and the same computations in torch operations.

``_ops`` loads the library, or says why it cannot, and calls its operators. ``_transforms`` registers their
fake kernels, derivatives and vmap rules. ``_arguments`` checks their arguments in Python. ``formula`` and
``double_double`` compute the same in torch. Nothing here depends on models.
"""

from llr.operators import _transforms as _transforms
