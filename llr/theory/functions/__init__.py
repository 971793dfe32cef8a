"""Model ranks of functions: the smallest dim T at which an architecture represents them.

``function``: `model_rank_of_function`, `optimistic_sample_size`, by a ``*_function`` for each architecture,
with ``neuron_sum``, ``prices`` and ``subset_sums``. ``reduction``: the narrowest network. ``stratification``:
tables of function classes. ``points``: `points_needed`.
"""
