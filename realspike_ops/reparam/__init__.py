"""Re-parameterization of whole networks: real-valued spikes in, binary spikes and additions out."""

from .fold import reparameterize
from .graph import ReparameterizationError
from .multiplication_free import MultiplicationError, assert_multiplication_free
from .verify import VerificationReport, verify

__all__ = [
    "MultiplicationError",
    "ReparameterizationError",
    "VerificationReport",
    "assert_multiplication_free",
    "reparameterize",
    "verify",
]
