"""Models of the theory as ordinary modules, usable wherever llr or torch takes a module."""

from llr.inputs.activations import ACTIVATIONS as ACTIVATIONS
from llr.inputs.activations import Erf as Erf
from llr.inputs.activations import Polynomial as Polynomial
from llr.inputs.activations import Sine as Sine
from llr.models.convolution import Conv1dTwoLayer as Conv1dTwoLayer
from llr.models.factorization import MatrixFactorization as MatrixFactorization
from llr.models.load import load_model as load_model
from llr.models.networks import DeepLinear as DeepLinear
from llr.models.networks import TwoLayer as TwoLayer
from llr.models.networks import mlp as mlp
