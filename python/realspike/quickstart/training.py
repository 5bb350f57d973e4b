"""Training: stochastic gradient descent on the cross-entropy of the mean over time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from realspike.data.digits import Digits
from realspike.optimizer import sgd

EVALUATION_BATCH = 128  # images; bounds the memory of long sequences


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; one value of ``seed`` gives one order of batches and one augmentation.

    Args:
        epochs: Passes over the training images, at least 1.
        batch_size: Images per step, at least 1; the last batch of an epoch may be smaller.
        learning_rate: At the start; it falls to 0 along a cosine, step by step.
        momentum: Of the gradient (Nesterov).
        weight_decay: Of the weights of convolutions and linear layers.
        max_shift: Largest random displacement of a training image, in pixels per axis.
        seed: At least 0.

    Raises:
        ValueError: if a count is not an integer or too small.
    """

    epochs: int = 25
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_shift: int = 1
    seed: int = 0

    def __post_init__(self):
        for name, smallest in (("epochs", 1), ("batch_size", 1), ("max_shift", 0), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < smallest:
                raise ValueError(f"{name} must be an integer of at least {smallest}; got {value!r}")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. Accuracies are fractions; training figures are means over the epoch's steps."""

    epoch: int  # from 1
    train_loss: float
    train_accuracy: float
    test_accuracy: float


def random_shift(
    images: Tensor,  # [B, C, H, W]
    max_shift: int,
    fill: float,
    generator: torch.Generator,
) -> Tensor:  # [B, C, H, W]
    """Move every image by up to ``max_shift`` pixels along each axis, filling with ``fill``."""
    B, _, H, W = images.shape
    padded = F.pad(images, (max_shift,) * 4, value=fill)
    shift = torch.randint(0, 2 * max_shift + 1, (2, B, 1), generator=generator)
    rows = (shift[0] + torch.arange(H))[:, :, None]  # [B, H, 1]
    columns = (shift[1] + torch.arange(W))[:, None, :]  # [B, 1, W]
    samples = torch.arange(B)[:, None, None]
    return padded.permute(0, 2, 3, 1)[samples, rows, columns].permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor) -> Tensor:  # [B, 1, H, W] -> [B, classes]
    """Return the logits in eval mode; the mode of the network is restored."""
    was_training = network.training
    network.eval()
    try:
        return torch.cat([network(batch) for batch in images.split(EVALUATION_BATCH)])
    finally:
        network.train(was_training)


def count_correct(logits: Tensor, labels: Tensor) -> int:  # [B, classes], [B]
    return int((logits.argmax(1) == labels).sum())


def train(network: nn.Module, data: Digits, settings: TrainingSettings) -> Iterator[EpochRecord]:
    """Train the network in place and yield a record after every epoch; it ends in eval mode.

    The random numbers come from a generator of its own: the same settings give the same batches,
    whatever the network draws and whatever ran before.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = sgd(
        network,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
    )
    count = len(data.train_labels)
    steps = settings.epochs * -(-count // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(1, settings.epochs + 1):
        network.train()
        total_loss, correct = 0.0, 0
        for batch in torch.randperm(count, generator=generator).split(settings.batch_size):
            images, labels = data.train_images[batch], data.train_labels[batch]
            images = random_shift(images, settings.max_shift, data.background, generator)
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(batch)
            correct += count_correct(logits, labels)
        network.eval()
        test_correct = count_correct(predict(network, data.test_images), data.test_labels)
        yield EpochRecord(
            epoch=epoch,
            train_loss=total_loss / count,
            train_accuracy=correct / count,
            test_accuracy=test_correct / len(data.test_labels),
        )
