"""CIFAR10-DVS (Li et al., 2017) from its .aedat files, one folder per class.

AEDAT 2.0: lines that start with #, then pairs of big-endian 32-bit words, address and microseconds.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from realspike.data.events import frames_of_events
from realspike.data.sets import DataError, Splits

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
SENSOR = 128  # pixels, height and width
TRAIN_SHARE = 0.9
ADVICE = (
    "download the ten zip files of CIFAR10-DVS (figshare, doi 10.6084/m9.figshare.4724671) and "
    "unpack them there, so that it holds airplane/*.aedat to truck/*.aedat"
)


def read_events(path: Path) -> dict[str, np.ndarray]:
    """Return ``t`` (microseconds), ``x``, ``y`` (pixels) and ``p`` (0 or 1), each [E].

    Raises:
        DataError: if the file is missing, truncated or no AEDAT 2.0.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): fetch it again") from error
    if not content.startswith(b"#!AER-DAT2.0"):
        raise DataError(f"{path} is no AEDAT 2.0 file (it must begin with #!AER-DAT2.0)")
    start = 0
    while content[start : start + 1] == b"#":
        end = content.find(b"\n", start)
        start = end + 1 if end >= 0 else len(content)
    if (len(content) - start) % 8:
        raise DataError(f"{path} is truncated (it ends inside an event): fetch it again")
    words = np.frombuffer(content, ">u4", offset=start).reshape(-1, 2)
    address = words[:, 0].astype(np.int64)
    # The sensor is mounted turned: its axes are exchanged and both run backwards. Bit 0 is 0 for
    # an event of rising intensity.
    return {
        "t": words[:, 1].astype(np.int64),
        "x": SENSOR - 1 - (address >> 8 & 0x7F),
        "y": SENSOR - 1 - (address >> 1 & 0x7F),
        "p": 1 - (address & 1),
    }


class CIFAR10DVS(Dataset):
    """Recordings as frames of event counts, [T, 2, size, size]."""

    def __init__(self, files: list[tuple[Path, int]], timesteps: int, size: int):
        self.files, self.timesteps, self.size = files, timesteps, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        e = read_events(path)
        frames = frames_of_events(
            *(e["t"], e["x"], e["y"], e["p"]), self.timesteps, SENSOR, self.size
        )
        return torch.from_numpy(frames), label


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0, path.name)


def load(root: Path, timesteps: int, size: int) -> Splits:
    """Find the recordings; in every class the first nine tenths by number are for training.

    Raises:
        DataError: if a folder is missing or has fewer than two recordings.
    """
    train, test = [], []
    for label, name in enumerate(CLASSES):
        files = sorted((root / name).glob("*.aedat"), key=_number)
        if len(files) < 2:
            raise DataError(f"{root / name}/ has {len(files)} .aedat files: {ADVICE}")
        count = min(len(files) - 1, round(TRAIN_SHARE * len(files)))
        train += [(path, label) for path in files[:count]]
        test += [(path, label) for path in files[count:]]
    sets = (CIFAR10DVS(files, timesteps, size) for files in (train, test))
    return Splits(*sets, mean=(0.0, 0.0), std=(1.0, 1.0), read_in_workers=True)
