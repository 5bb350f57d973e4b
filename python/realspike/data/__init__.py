"""The data sets: what they hold, how their files are read, how they are augmented and batched."""

from .load import load
from .sets import DataError, Splits

__all__ = ["DataError", "Splits", "load"]
