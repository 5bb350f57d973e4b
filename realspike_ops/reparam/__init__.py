"""Re-parameterization of whole networks: real-valued spikes in, binary spikes and additions out."""

from .errors import ReparameterizationError
from .file import load_folded, save_folded
from .fold import reparameterize
from .multiplication_free import MultiplicationError, assert_multiplication_free
from .network import FoldedNetwork
from .profile import LayerProfile, ProfileReport, profile
from .verify import LayerReport, VerificationReport, verify

__all__ = [
    "FoldedNetwork",
    "LayerProfile",
    "LayerReport",
    "MultiplicationError",
    "ProfileReport",
    "ReparameterizationError",
    "VerificationReport",
    "assert_multiplication_free",
    "load_folded",
    "profile",
    "reparameterize",
    "save_folded",
    "verify",
]
