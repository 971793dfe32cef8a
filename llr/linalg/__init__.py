"""Linear algebra that knows nothing of models.

In floating point: ``spectrum`` (singular values), ``error_bound``, ``equilibrate``. Exact: ``balls`` and
``arithmetic`` (balls and rationals), ``integers``, ``elimination``, ``block_inverse``, ``decimals``.
``deadline`` has their time limits.
"""
