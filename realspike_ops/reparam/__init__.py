"""Re-parameterization of whole networks: real-valued spikes in, binary spikes and additions out."""

from .fold import reparameterize
from .graph import ReparameterizationError
from .multiplication_free import MultiplicationError, assert_multiplication_free
from .verify import LayerReport, VerificationReport, verify

__all__ = [
    "LayerReport",
    "MultiplicationError",
    "ReparameterizationError",
    "VerificationReport",
    "assert_multiplication_free",
    "reparameterize",
    "verify",
]
