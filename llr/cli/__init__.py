"""The ``llr`` command.

``main``, ``theory``, ``recovery``, ``sweep``, ``demo``: the commands. ``source``: their options for models
and samples. ``shell``, ``output``: errors, what is written, what other code prints.
"""
