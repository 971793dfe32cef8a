"""Linear independence of functions of neurons; the code is in :mod:`llr.theory.spans.neurons`."""

from llr.theory.spans.neurons import Independence as Independence
from llr.theory.spans.neurons import independence as independence
