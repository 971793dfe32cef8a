"""Running a user's model without changing it.

``private`` and ``copier`` make copies. ``surroundings`` and ``precision`` set torch's global state for a run.
``watch`` and ``trace`` observe operations. ``compare`` compares outputs of samples together and alone.
``forward_errors`` explains torch's errors.
"""
