"""Does training find a function again from n samples? Searches, training runs and sweeps that answer it."""

from llr.recovery.damping import Damping as Damping
from llr.recovery.lm import Fits as Fits
from llr.recovery.lm import levenberg_marquardt as levenberg_marquardt
from llr.recovery.lm import starts as starts
