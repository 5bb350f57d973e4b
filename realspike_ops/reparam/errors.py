"""The error that folding raises."""


class ReparameterizationError(ValueError):
    """The network cannot be folded; the message names the layer, the operation and the reason."""
