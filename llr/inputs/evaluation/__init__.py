"""Running a user's model without touching it.

``private`` and ``copier`` make copies, ``surroundings`` and ``precision`` the state of torch they run in,
``watch`` and ``trace`` look at their operations, ``probe`` and ``compare`` refuse models that have no
per-sample Jacobian, ``forward_errors`` says what torch raised.
"""
