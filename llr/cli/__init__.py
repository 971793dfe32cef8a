"""The ``llr`` command.

``main`` lists the commands. ``ranks``, ``proofs``, ``theory``, ``recovery``, ``sweep``, ``demo`` and
``machine`` define them; the commands call the public functions of llr. ``options`` and ``source`` define
arguments that several commands share. ``shell``, ``output`` and ``streams`` handle errors and output.
"""
