"""Folded networks in files: the folded weights, and the configuration that rebuilds their modules.

The modules of a folded network follow from the architecture alone, so that a file holds tensors and
JSON, as a checkpoint does.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

import realspike_ops as rso
from realspike import checkpoint, trained
from realspike.networks import build
from realspike.trained import Trained, example_input

FORMAT = "realspike.folded_checkpoint"


def fold(network: Trained) -> nn.Module:
    """Return the binary-spike network; see `realspike_ops.reparameterize` for what it raises."""
    return rso.reparameterize(network.network, network.example_input())


def save(path: Path, network: Trained, folded: nn.Module) -> None:
    """Write the folded network with the configuration and the record of the trained one."""
    state = folded.state_dict()
    checkpoint.write(path, FORMAT, state, network.network_config, network.record)


def is_folded(path: Path) -> bool:
    """Whether a file says that it holds a folded network."""
    return path.is_file() and checkpoint.format_of(path) == FORMAT


def load(path: Path, overrides: Sequence[str] = ()) -> Trained:
    """Read what `save` wrote; its ``network`` is the folded one.

    Raises:
        CheckpointError: if the file is missing, truncated, corrupt or no folded network.
    """
    made: list[nn.Module] = []

    def expected(config):
        # The weights do not matter: which modules there are follows from the architecture.
        made.append(rso.reparameterize(build(config, seed=0).eval(), example_input(config)))
        return made[0].state_dict()

    config, record, tensors = checkpoint.read(path, FORMAT, expected)
    [network] = made
    network.load_state_dict(tensors)
    return Trained(
        network.eval(), config, trained.config_of(config, record, overrides), record, path
    )
