"""The data sets: what they hold, how their files are read, how they are augmented and batched."""

from .load import fitted, load
from .sets import DataError, Splits

__all__ = ["DataError", "Splits", "fitted", "load"]
