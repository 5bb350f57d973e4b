"""Which data sets there are, what a network must fit, and whether their files are there.

Imports no torch.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from realspike.errors import DataError
from realspike.names import check_choice
from realspike.own import is_own


@dataclass(frozen=True)
class DatasetFacts:
    """The facts about a data set that are known before it is read.

    ``classes`` and ``image_size`` may be overridden by the configuration where ``resizable``. Of
    each of the ``files``, one of the names must be in the folder of the data; ``advice`` says how
    they come there (ROOT).
    """

    classes: int | None  # None: as they are read
    channels: int | None
    image_size: int | None  # pixels, height and width
    encoding: str | None = "direct"  # or "frames": every timestep has its own input
    resizable: bool = False
    description: str = ""
    files: tuple[tuple[str, ...], ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Download:
    """An official archive that `realspike data` downloads."""

    url: str
    sha256: str

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-{}-python.tar.gz"
DOWNLOADS = {
    "cifar10": Download(
        _CIFAR.format(10), "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    ),
    "cifar100": Download(
        _CIFAR.format(100), "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
    ),
}
DVS_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def _cifar(classes: int) -> DatasetFacts:
    name = f"cifar{classes}"
    download = DOWNLOADS[name]
    unpacked = "cifar-10-batches-py" if classes == 10 else "cifar-100-python"
    return DatasetFacts(
        *(classes, 3, 32),
        description=f"CIFAR-{classes}, python version ({download.file})",
        files=((download.file, unpacked),),
        advice=f"`realspike data {name} --root ROOT` downloads it; or put {download.url} there as "
        "it is, or unpack it there",
    )


DATASETS = {
    "digits": DatasetFacts(
        10, 1, 8, description="1,797 handwritten digits of scikit-learn (nothing to fetch)"
    ),
    "digits-events": DatasetFacts(
        10, 2, 16, "frames", description="the same digits as an event camera sees them in motion"
    ),
    "cifar10": _cifar(10),
    "cifar100": _cifar(100),
    "cifar10-dvs": DatasetFacts(
        *(10, 2, 48, "frames", True),
        description="CIFAR10-DVS, the .aedat files in one folder per class",
        files=tuple((name,) for name in DVS_CLASSES),
        advice="download the ten zip files of https://doi.org/10.6084/m9.figshare.4724671 and "
        "unpack them there, so that it holds airplane/*.aedat to truck/*.aedat",
    ),
    "images": DatasetFacts(
        *(None, 3, 224, "direct", True),
        description="an image folder with train/CLASS/* and val/CLASS/* (or test/CLASS/*)",
        files=(("train",), ("val", "test")),
        advice="put the images there, as train/CLASS/*.jpg and val/CLASS/*.jpg",
    ),
}


_OWN = DatasetFacts(None, None, None, None, resizable=True)


def facts_of(name: str) -> DatasetFacts:
    """Return what is known of a data set, or of ``package.module:function``, before it is read.

    Raises:
        ValueError: if there is none of this name.
    """
    if is_own(name):
        return _OWN
    check_choice("data.name", name, DATASETS, "package.module:function")
    return DATASETS[name]


def advice(name: str, root: Path) -> str:
    """Return how the files of a data set come into ``root``."""
    return facts_of(name).advice.replace("ROOT", shlex.quote(str(root)))


def check_present(name: str, root: Path) -> None:
    """Refuse a data set whose files are not in ``root``, before anything slow is imported.

    Raises:
        DataError: naming what is missing, and where to get it.
    """
    facts = facts_of(name)
    for names in facts.files:
        if not any((root / name).exists() for name in names):
            paths = [str(root / name) for name in names]
            missing = (
                f"neither {' nor '.join(paths)}" if len(paths) > 1 else f"no folder {paths[0]}"
            )
            raise DataError(f"there is {missing}: {advice(name, root)} (data.root is {root})")
