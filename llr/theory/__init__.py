"""The theory of Local Linear Recovery: dimensions of tangent spaces and optimistic sample sizes, exactly."""

from llr.theory.function import model_rank_of_function as model_rank_of_function
from llr.theory.function import optimistic_sample_size as optimistic_sample_size
from llr.theory.neurons import Independence as Independence
from llr.theory.neurons import independence as independence
from llr.theory.points import Points as Points
from llr.theory.points import points_needed as points_needed
from llr.theory.result import Dimension as Dimension
from llr.theory.result import Term as Term
from llr.theory.stratification import FunctionClass as FunctionClass
from llr.theory.stratification import Stratification as Stratification
from llr.theory.stratification import rank_stratification as rank_stratification
from llr.theory.structure import read_structure as read_structure
from llr.theory.tangent import tangent_dimension as tangent_dimension
from llr.theory.two_layer import generic_rank as generic_rank
