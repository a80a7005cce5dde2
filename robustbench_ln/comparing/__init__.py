"""Two results side by side: which rows answer each other, what is measured on them, and how sure the difference is.

NumPy only: a gate decides in a second, and does not wait for torch or scipy.
"""

from robustbench_ln.comparing.differences import Comparison, Difference, compare
from robustbench_ln.comparing.formats import FORMATS

__all__ = ["FORMATS", "Comparison", "Difference", "compare"]
