"""The ``llr`` command.

``main`` knows the commands. ``ranks``, ``proofs``, ``theory``, ``recovery``, ``sweep``, ``demo`` and
``machine`` have them, and call what users of Python call. ``options``, ``source``: what several commands
take. ``shell``, ``output``, ``streams``: errors, what is written, what other code prints.
"""
