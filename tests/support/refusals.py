"""What the tables of bad arguments share."""

import re

import pytest
import torch


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


SPIKES = zeros(2, 4, 5, 6)  # [N, Cin, H, W]


def assert_refused(call, exception, words) -> None:
    """The words, in regular expressions where they have a choice, stand in the message."""
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    patterns = [word if "|" in word else re.escape(word) for word in words]
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} is not in: {message}"
