"""Linear algebra that does not depend on models.

In floating point: ``spectrum`` (singular values), ``error_bound``, ``equilibrate``. Exact: ``balls`` and
``arithmetic`` (balls and rationals), ``integers``, ``elimination``, ``block_inverse``, ``decimals``.
``deadline`` has the time limits of exact computations.
"""
