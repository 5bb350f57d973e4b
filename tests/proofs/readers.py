"""Every reader of files that others may have written: small valid inputs, and what it may raise."""

import csv
import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from realspike import checkpoint
from realspike.config import run_config
from realspike.config.network_config import NetworkConfig
from realspike.data import cifar, cifar10_dvs
from realspike.errors import UserError
from realspike.inspect import folded_file, trained_file
from realspike.inspect.trained_file import Trained, example_input
from realspike.networks import build
from realspike.train.history import FIELDS, read_csv

import realspike_ops as rso


@dataclass(frozen=True)
class Reader:
    """Reads bytes through a file in a scratch folder; `errors` are those it declares."""

    read: Callable[[bytes, Path], object]
    seeds: Callable[[Path], list[bytes]]
    errors: tuple[type[Exception], ...] = (UserError,)


def _written(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


# CIFAR


def _batches(scratch: Path) -> list[bytes]:
    contents = {
        b"data": np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072),
        b"labels": [3, 9],
        b"filenames": [b"a.png", b"b.png"],
    }
    numbers = contents | {b"labels": list(np.array([3, 9]))}
    return [pickle.dumps(c, protocol) for c in (contents, numbers) for protocol in (2, 4)]


def _archives(scratch: Path) -> list[bytes]:
    archive = cifar.ARCHIVES["cifar10"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in archive.train + archive.test:
            member = tarfile.TarInfo(f"{archive.folder}/{name}")
            member.mtime = 1.5  # a header of its own
            image = np.zeros((1, 3072), np.uint8)
            content = pickle.dumps({b"data": image, b"labels": [0]}, 4)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return [out.getvalue(), gzip.compress(out.getvalue(), mtime=0)]


def _read_archive(content: bytes, scratch: Path):
    _written(content, scratch / cifar.ARCHIVES["cifar10"].file)
    return cifar.load("cifar10", scratch)


# Networks


def _trained(scratch: Path) -> list[bytes]:
    network = build(NetworkConfig("element", timesteps=2, width=2), seed=0).eval()
    checkpoint.save(scratch / "trained", network, {"seed": 0})
    return [(scratch / "trained").read_bytes()]


def _read_trained(content: bytes, scratch: Path):
    return trained_file.load(_written(content, scratch / "a"))


def _folded(scratch: Path) -> list[bytes]:
    network = build(NetworkConfig("channel", timesteps=2, width=2), seed=0).eval()
    config, made = run_config.RunConfig(), scratch / "folded"
    of = Trained(network, network.config, config, {"seed": 0}, scratch)
    folded_file.save(made, of, rso.reparameterize(network, example_input(network.config)))
    return [made.read_bytes()]


def _read_folded(content: bytes, scratch: Path):
    return folded_file.load(_written(content, scratch / "a"))


def _steps(scratch: Path) -> list[bytes]:
    metadata, tensors = _parts_of_folded(scratch)
    torch.save(tensors, scratch / "tensors")
    return [metadata["network"].encode()]


def _parts_of_folded(scratch: Path):
    import safetensors

    path = scratch / "parts"
    if not path.exists():
        path.write_bytes(_folded(scratch)[0])
    with safetensors.safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return file.metadata(), {name: file.get_tensor(name).clone() for name in names}


def _read_steps(content: bytes, scratch: Path):
    """Only the JSON of the steps differs: what bytes of a whole file seldom reach."""
    metadata, tensors = _parts_of_folded(scratch)
    text = content.decode("utf-8", "replace")
    packed = rso.safe_files.to_bytes(tensors, metadata | {"network": text})
    return folded_file.load(_written(packed, scratch / "a"))


# Texts and events


def _configurations(scratch: Path) -> list[bytes]:
    defaults = run_config.RunConfig().to_yaml()
    return [defaults.encode(), b"network: {width: 4}\ndata: {root: ~/x, name: digits}\n"]


def _records(scratch: Path) -> list[bytes]:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([FIELDS, (1, 2.5, 0.1, 2.25, 0.2, 0.1), (2, 1.5, 0.5, 1.25, 0.5, 0.0)])
    return [text.getvalue().encode()]


def _events(scratch: Path) -> list[bytes]:
    words = np.array([[5 << 8 | 7 << 1, 100], [127 << 8 | 1, 2**31]], ">u4")
    return [b"#!AER-DAT2.0\r\n# a comment\r\n" + words.tobytes()]


READERS = {
    "cifar-batch": Reader(
        lambda content, scratch: cifar._batch(content, cifar.ARCHIVES["cifar10"]),
        _batches,
        (ValueError,),
    ),
    "cifar-archive": Reader(_read_archive, _archives),
    "aedat": Reader(
        lambda content, scratch: cifar10_dvs.read_events(_written(content, scratch / "a")), _events
    ),
    "trained": Reader(_read_trained, _trained),
    "folded": Reader(_read_folded, _folded),
    "folded-steps": Reader(_read_steps, _steps),
    "configuration": Reader(
        lambda content, scratch: run_config.read(_written(content, scratch / "a")), _configurations
    ),
    "records": Reader(
        lambda content, scratch: read_csv(_written(content, scratch / "a")), _records
    ),
}


def check(name: str, content: bytes, scratch: Path) -> None:
    """Read; an error that is not declared, or of several lines, is raised."""
    reader = READERS[name]
    try:
        reader.read(content, scratch)
    except reader.errors as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"an error of several lines: {json.dumps(str(error))}") from error
