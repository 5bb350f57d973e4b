"""The classes that a network tells of images, and how often it is right."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 128  # images; bounds the memory of long sequences


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
    """Return the logits in eval mode; the mode of the network is restored."""
    was_training = network.training
    network.eval()
    try:
        return torch.cat([network(batch) for batch in images.split(BATCH)])
    finally:
        network.train(was_training)


@torch.inference_mode()
def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict:
    """Return ``samples``, ``correct``, ``accuracy`` and the mean cross-entropy ``loss``."""
    samples = correct = 0
    loss = 0.0
    for inputs, labels in batches:
        logits = network(inputs)
        samples += len(labels)
        correct += int((logits.argmax(1) == labels).sum())
        loss += F.cross_entropy(logits.double(), labels, reduction="sum").item()
    return {
        "samples": samples,
        "correct": correct,
        "accuracy": correct / samples,
        "loss": loss / samples,
    }
