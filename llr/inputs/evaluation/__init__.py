"""Running a user's model without touching it.

``private`` and ``copier`` make copies, ``surroundings`` and ``precision`` set the state of torch they run in,
``watch`` and ``trace`` look at their operations, ``compare`` at outputs of samples together and alone.
``forward_errors`` says what torch raised.
"""
