"""The theory of Local Linear Recovery: dimensions of tangent spaces and optimistic sample sizes, exactly."""

from llr.theory.functions.function import model_rank_of_function as model_rank_of_function
from llr.theory.functions.function import optimistic_sample_size as optimistic_sample_size
from llr.theory.functions.points import Points as Points
from llr.theory.functions.points import points_needed as points_needed
from llr.theory.functions.stratification import FunctionClass as FunctionClass
from llr.theory.functions.stratification import Stratification as Stratification
from llr.theory.functions.stratification import rank_stratification as rank_stratification
from llr.theory.result import Dimension as Dimension
from llr.theory.result import Term as Term
from llr.theory.spans.neurons import Independence as Independence
from llr.theory.spans.neurons import independence as independence
from llr.theory.structures.structure import read_structure as read_structure
from llr.theory.tangents.tangent import tangent_dimension as tangent_dimension
from llr.theory.tangents.two_layer import generic_rank as generic_rank
