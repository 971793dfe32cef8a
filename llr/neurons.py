"""Linear independence of functions of neurons; the code is in :mod:`llr.theory.neurons`."""

from llr.theory.neurons import Independence as Independence
from llr.theory.neurons import independence as independence
