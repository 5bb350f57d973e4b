"""Which data sets there are and what a network must fit. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is read.

    ``classes`` and ``image_size`` may be overridden by the configuration where ``resizable``.
    """

    classes: int
    channels: int
    image_size: int  # pixels, height and width
    encoding: str = "direct"  # or "frames": every timestep has its own input
    resizable: bool = False
    in_paper: bool = False
    description: str = ""


DATASETS = {
    "digits": DatasetFacts(
        10, 1, 8, description="1,797 handwritten digits of scikit-learn (nothing to fetch)"
    ),
    "digits-events": DatasetFacts(
        10, 2, 16, "frames", description="the same digits as an event camera sees them in motion"
    ),
    "cifar10": DatasetFacts(
        10, 3, 32, in_paper=True, description="CIFAR-10, python version (cifar-10-python.tar.gz)"
    ),
    "cifar100": DatasetFacts(
        100, 3, 32, in_paper=True, description="CIFAR-100, python version (cifar-100-python.tar.gz)"
    ),
    "cifar10-dvs": DatasetFacts(
        *(10, 2, 48, "frames", True, True),
        description="CIFAR10-DVS, the .aedat files in one folder per class",
    ),
    "imagenet": DatasetFacts(
        *(1000, 3, 224, "direct", True, True),
        description="any image folder with train/CLASS/* and val/CLASS/*, such as ImageNet",
    ),
}
