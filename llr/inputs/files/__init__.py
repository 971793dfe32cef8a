"""Samples and weights in files, and writing whole files.

``load`` reads samples; ``layout``, ``header``, ``tables`` read text, ``arrays`` binary files, ``checkpoints``
weights. ``writing`` writes a whole file or none. Nothing is ever unpickled.
"""

from llr.inputs.files.load import load_inputs as load_inputs
