"""The landscape of a loss: critical points, Hessians, branches of global minima, gradient flow."""

from llr.landscape.branches import Branch as Branch
from llr.landscape.branches import Branches as Branches
from llr.landscape.branches import branches as branches
from llr.landscape.critical import Criticality as Criticality
from llr.landscape.critical import criticality as criticality
from llr.landscape.critical_targets import critical_targets as critical_targets
from llr.landscape.embedded import EmbeddedSpectrum as EmbeddedSpectrum
from llr.landscape.embedded import embedded_spectrum as embedded_spectrum
from llr.landscape.flow import Flow as Flow
from llr.landscape.flow import Rate as Rate
from llr.landscape.flow import flow as flow
from llr.landscape.flow import rate as rate
from llr.landscape.points import random_point as random_point
from llr.landscape.spectra import HessianSpectrum as HessianSpectrum
from llr.landscape.spectra import hessian_spectrum as hessian_spectrum
