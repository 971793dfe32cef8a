"""What all results share: text and HTML, dictionaries and files, figures, and the progress of long work."""

from llr.results.record import Record as Record
from llr.results.record import Shown as Shown
