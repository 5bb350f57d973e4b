"""Trained networks that come with the package, by name, with a card each.

``python -m realspike.shipped RUN NAME FOLDER`` writes both files of one from a run's folder.
"""

import sys
from collections.abc import Collection
from pathlib import Path

from torch import nn

from realspike import checkpoint, files
from realspike.checkpoint import CheckpointError
from realspike.config.datasets import facts_of
from realspike.config.run_config import RunConfig
from realspike.inspect import trained_file
from realspike.inspect.trained_file import RUN_FILE, networks_by_name

LARGEST = 8 * 2**20  # bytes


def load(source: "str | Path", *, allow: Collection[str] = ()) -> nn.Module:
    """Return a trained network, on the CPU and in eval mode: [B, Cin, S, S] -> [B, classes].

    Its input is ``(pixels / 255 - mean) / std`` with the mean and deviation that its card names.

    Args:
        source: The name of a shipped network, the folder of a run, or a ``.safetensors`` file.
        allow: Names ``package.module:Class`` of networks that may be imported.

    Raises:
        CheckpointError: if there is none, or it cannot be read.
    """
    return checkpoint.load(trained_file.file_of(files.path_of(str(source))), allow=allow).network


def write(run: Path, name: str, folder: Path) -> Path:
    """Write the network of a finished run and its card; return the network's file.

    Raises:
        CheckpointError: if the run has no network, or one that is too large to be shipped.
        OSError: if a file cannot be written.
    """
    source = run / RUN_FILE
    loaded = checkpoint.load(source)
    record = loaded.training
    config = RunConfig.from_dict(record["config"])
    record |= {"config": config.anywhere().to_dict()}
    path = folder / f"{name}.safetensors"
    if source.stat().st_size > LARGEST:
        raise CheckpointError(f"{source} has more than {LARGEST >> 20} MiB: it is not shipped")
    checkpoint.write(path, loaded.config, loaded.network.state_dict(), record)
    files.write_atomically(path.with_suffix(".md"), card(name, loaded.network, record).encode())
    return path


def card(name: str, network: nn.Module, record: dict) -> str:
    """Return what is to be known of a network before it is used, as Markdown."""
    config, last = RunConfig.from_dict(record["config"]), record["history"][-1]
    section, data = config.network_config(), config.data
    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = section.image_size
    mean, std = ([round(value, 4) for value in record[key]] for key in ("mean", "std"))
    settings = [f"{s}.{k}={v}" for s, keys in config.to_dict().items() for k, v in keys.items()]
    lines = [
        f"# {name}",
        "",
        f"{section.architecture} of width {section.width}, {section.granularity} amplitudes, "
        f"T = {section.timesteps}, {parameters:,} parameters.",
        "",
        f"- Reads: {section.in_channels} x {size} x {size}, pixels p of 0 to 255 as "
        f"(p / 255 - mean) / std, mean {mean}, std {std}",
        f"- Says: {section.classes} logits",
        f"- Data: {facts_of(data.name).description or data.name}",
        f"- Epochs: {last['epoch']}; {data.measured} of the last: "
        f"{100 * last['test_accuracy']:.2f} %",
        f"- Commit: {record['commit'] or 'unknown'}",
        f"- Weights (SHA-256 of the tensors): {checkpoint.digest(network)}",
        "- Not for: anything but experiments; no other data has been tried",
        "",
        f"`realspike eval {name}` tests it, "
        f'`realspike.load("{name}")` returns it. Configuration: '
        + ", ".join(f"`{setting}`" for setting in settings)
        + ".",
    ]
    return "\n".join(lines) + "\n"


__all__ = ["card", "load", "networks_by_name", "write"]

if __name__ == "__main__":
    print(write(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
