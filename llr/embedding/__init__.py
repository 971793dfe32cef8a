"""The same function in a wider network, or in the narrowest one: embeddings, and reductions."""

from llr.embedding.check import Bounds as Bounds
from llr.embedding.check import Check as Check
from llr.embedding.check import check as check
from llr.embedding.compatible import compatible as compatible
from llr.embedding.compatible import random_compatible as random_compatible
from llr.embedding.moves import null as null
from llr.embedding.moves import split as split
from llr.embedding.moves import widen as widen
from llr.embedding.record import Embedding as Embedding
from llr.embedding.reduce import Reduction as Reduction
from llr.embedding.reduce import reduce as reduce
