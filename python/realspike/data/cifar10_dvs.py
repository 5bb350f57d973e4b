"""CIFAR10-DVS (Li et al., 2017) from its .aedat files, one folder per class.

AEDAT 2.0: lines that start with #, then pairs of big-endian 32-bit words, address and microseconds.
The camera is a DVS128, whose addresses have 15 bits.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from realspike.config.datasets import DATASETS
from realspike.config.datasets import DVS_CLASSES as CLASSES
from realspike.data.events import frames_of_events
from realspike.data.sets import DataError, Files, Splits

SENSOR = 128  # pixels, height and width
TRAIN_SHARE = 0.9
LARGEST_FILE = 2**27  # bytes, 17 million events; those of CIFAR10-DVS have some 200,000


def read_events(path: Path) -> dict[str, np.ndarray]:
    """Return ``t`` (microseconds), ``x``, ``y`` (pixels) and ``p`` (0 or 1), each [E].

    The microseconds go on where the camera's counter of 32 bits begins anew.

    Raises:
        DataError: if the file is missing, truncated or empty, of another version than AEDAT 2.0, or
            of another camera.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): fetch it again") from error
    if size > LARGEST_FILE:
        raise DataError(f"{path} has {size} bytes; a recording has at most {LARGEST_FILE}")
    start = _end_of_header(path, content)
    if (len(content) - start) % 8:
        raise DataError(f"{path} is truncated (it ends inside an event): fetch it again")
    if len(content) == start:
        raise DataError(f"{path} holds no events, a header alone: fetch it again")
    words = np.frombuffer(content, ">u4", offset=start).reshape(-1, 2)
    address = words[:, 0].astype(np.int64)
    if (largest := address.max()) >= 2**15:
        raise DataError(
            f"{path} holds the address {largest:#x}, and those of a DVS128 end at 0x7fff: it was "
            "recorded by another camera, is in another order of bytes, or is corrupt"
        )
    time = words[:, 1].astype(np.uint32)
    steps = np.diff(time).astype(np.int32)  # modulo 2**32, where the counter begins anew
    # The sensor is mounted turned: its axes are exchanged and both run backwards. Bit 0 is 0 for
    # an event of rising intensity.
    return {
        "t": int(time[0]) + np.concatenate([[0], np.cumsum(steps, dtype=np.int64)]),
        "x": SENSOR - 1 - (address >> 8 & 0x7F),
        "y": SENSOR - 1 - (address >> 1 & 0x7F),
        "p": 1 - (address & 1),
    }


def _end_of_header(path: Path, content: bytes) -> int:
    version = re.match(rb"#!AER-DAT(\d{1,3}\.\d{1,3})", content)
    if not version or version[1] != b"2.0":
        found = f"AEDAT {version[1].decode()}" if version else "no AEDAT file"
        raise DataError(f"{path} is {found}, and no AEDAT 2.0, which begins with #!AER-DAT2.0")
    start = 0
    while content[start : start + 1] == b"#":
        end = content.find(b"\n", start)
        if end < 0:
            raise DataError(f"{path} is truncated (it ends inside its header): fetch it again")
        chip = re.match(rb"# *AEChip: *([\w.]{1,80})", content[start:end])
        if chip and b"dvs128" not in chip[1].lower():
            raise DataError(
                f"{path} was recorded by a {chip[1].decode(errors='replace')} (AEChip), and those "
                "of CIFAR10-DVS by a DVS128"
            )
        start = end + 1
    return start


class CIFAR10DVS(Files):
    """Recordings as frames of event counts, [T, 2, size, size]."""

    def __init__(self, files: list[tuple[Path, int]], timesteps: int, size: int):
        self.files, self.timesteps, self.size = files, timesteps, size

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
        files = sorted((root / name).glob("[!.]*.[aA][eE][dD][aA][tT]"), key=_number)
        if len(files) < 2:
            advice = DATASETS["cifar10-dvs"].advice
            raise DataError(f"{root / name}/ has {len(files)} .aedat files: {advice}")
        count = min(len(files) - 1, round(TRAIN_SHARE * len(files)))
        train += [(path, label) for path in files[:count]]
        test += [(path, label) for path in files[count:]]
    sets = (CIFAR10DVS(files, timesteps, size) for files in (train, test))
    return Splits(*sets, mean=(0.0, 0.0), std=(1.0, 1.0), read_in_workers=True)
