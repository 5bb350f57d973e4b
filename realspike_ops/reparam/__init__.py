"""Re-parameterization of whole networks: real-valued spikes in, binary spikes and additions out."""

from .check.exact_sums import assert_exact_sums
from .check.multiplication_free import MultiplicationError, assert_multiplication_free
from .check.profile import profile
from .check.profile_report import LayerProfile, ProfileReport
from .check.verify import LayerReport, VerificationReport, verify
from .cuda_graph import Graphed, graphed
from .errors import ReparameterizationError
from .file import load_folded, save_folded
from .network import FoldedNetwork
from .reparameterize import reparameterize

__all__ = [
    "FoldedNetwork",
    "Graphed",
    "LayerProfile",
    "LayerReport",
    "MultiplicationError",
    "ProfileReport",
    "ReparameterizationError",
    "VerificationReport",
    "assert_exact_sums",
    "assert_multiplication_free",
    "graphed",
    "load_folded",
    "profile",
    "reparameterize",
    "save_folded",
    "verify",
]
