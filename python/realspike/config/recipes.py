"""The paper's tables as configurations: which networks, on what data, trained how.

``python -m realspike.config.recipes FOLDER`` writes one YAML file per configuration. The numbers
are top-1 accuracies in % as Guo et al., "Real Spike", ECCV 2022, report them; the settings of the
training are those of the authors' later releases, since the paper's appendix was not at hand.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realspike.config.datasets import DATASETS
from realspike.config.network_config import method_of
from realspike.config.run_config import ConfigError, RunConfig
from realspike.files import path_of, write_atomically
from realspike.optional import require

# The authors' spiking networks start every batch norm at 1: their code makes new ones of those of
# the ANN that it converts, whose zeros at the end of a block are lost.
_AUTHORS_NORMS = {"zero_init_residual": False, "threshold_norm": False}
_CIFAR = {
    "network": _AUTHORS_NORMS,
    "data": {"batch_size": 128, "crop": 4, "flip": True, "autoaugment": True, "cutout": 16},
    "training": {
        **{"epochs": 400, "learning_rate": 0.1, "weight_decay": 1e-4},
        "scale_amplitudes": False,
    },
}
_SMALL = {
    "network": {"width": 16},
    "data": {"batch_size": 64, "crop": 1},
    "training": {"epochs": 30, "learning_rate": 0.1, "weight_decay": 1e-4, "threads": 1},
}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "cifar10-dvs": {
        "network": _AUTHORS_NORMS,
        "data": {"batch_size": 32, "crop": 4, "flip": True},
        "training": _CIFAR["training"],
    },
    "imagenet": {
        "network": {"decay": 1.0, "v_threshold": 1.0, "detach_reset": True},
        "data": {
            **{"name": "images", "classes": 1000},
            **{"batch_size": 32, "workers": 8, "flip": True},
        },
        "training": {
            **{"epochs": 200, "learning_rate": 0.1, "weight_decay": 1e-4},
            **{"precision": "bf16-mixed", "scale_amplitudes": False},
        },
    },
    # Two cores train a network in about a minute; nothing is shown that the paper claims.
    "digits": _SMALL,
    "digits-events": _SMALL,
}


@dataclass(frozen=True)
class Cell:
    """One trained network of a table, any seed.

    ``width`` is None where it is that of the recipe, ``paper`` where the paper has no number, as
    for ternary spikes, which have no amplitudes in a table.
    """

    data: str
    architecture: str
    timesteps: int
    granularity: str
    paper: "float | None" = None
    width: "int | None" = None
    emission: str = "binary"

    @property
    def method(self) -> str:
        return method_of(self)

    @property
    def name(self) -> str:
        width = f"_w{self.width}" if self.width else ""
        return f"{self.data}_{self.architecture}{width}_t{self.timesteps}_{self.method}"

    def config(self, seed: int = 0) -> RunConfig:
        sections = {"network": {}, "data": {}, "training": {}}
        for name, section in sections.items():
            section.update(RECIPES[self.data].get(name, {}))
        sections["network"] |= {
            "architecture": self.architecture,
            "granularity": self.granularity,
            "timesteps": self.timesteps,
            "emission": self.emission,
        }
        if self.width is not None:
            sections["network"]["width"] = self.width
        sections["data"].setdefault("name", self.data)
        sections["training"]["seed"] = seed
        return RunConfig.from_dict(sections)


def _cells(data, architecture, timesteps, granularities, numbers) -> list[Cell]:
    return [
        Cell(data, architecture, timesteps, granularity, number)
        for granularity, number in zip(granularities, numbers, strict=True)
    ]


_PAIR = ("none", "element")
_FOUR = ("none", "layer", "channel", "element")
TABLES = {
    1: [
        *_cells("cifar10", "resnet20", 2, _PAIR, (88.91, 90.47)),
        *_cells("cifar10", "resnet20", 4, _PAIR, (91.73, 92.53)),
        *_cells("cifar10", "resnet20", 6, _PAIR, (92.98, 93.44)),
        *_cells("cifar100", "resnet20", 2, _PAIR, (62.59, 63.40)),
        *_cells("cifar100", "resnet20", 4, _PAIR, (63.27, 64.87)),
        *_cells("cifar100", "resnet20", 6, _PAIR, (67.12, 68.60)),
    ],
    2: [
        *_cells("cifar10", "resnet20", 4, _FOUR, (91.73, 92.12, 92.25, 92.53)),
        *_cells("cifar100", "resnet20", 4, _FOUR, (63.27, 64.28, 64.71, 64.87)),
    ],
    3: [
        Cell("cifar10", "resnet19", 2, "element", 94.01),
        Cell("cifar10", "resnet19", 4, "element", 95.60),
        Cell("cifar10", "resnet19", 6, "element", 95.71),
        Cell("cifar10", "resnet20", 5, "element", 93.01),
        Cell("cifar10", "resnet20", 10, "element", 93.65),
        Cell("cifar10", "vgg16", 5, "element", 92.90),
        Cell("cifar10", "vgg16", 10, "element", 93.58),
        Cell("cifar100", "resnet20", 5, "element", 66.60),
        Cell("cifar100", "vgg16", 5, "element", 70.62),
        Cell("cifar100", "vgg16", 10, "element", 71.17),
        Cell("imagenet", "sew_resnet18", 4, "channel", 63.68),
        Cell("imagenet", "sew_resnet34", 4, "channel", 67.69),
        Cell("cifar10-dvs", "resnet19", 10, "element", 72.85),
        Cell("cifar10-dvs", "resnet20", 10, "element", 78.00),
    ],
}


def in_paper(data: str) -> bool:
    """Whether a table of the paper has a recipe's data."""
    return any(cell.data == data for cells in TABLES.values() for cell in cells)


def description(data: str) -> str:
    """Return what the data of a recipe are."""
    return DATASETS[RECIPES[data].get("data", {}).get("name", data)].description


def cells_of(table: int, data: str) -> list[Cell]:
    """Return the cells of a table on a data set; on one that is not in the paper, those that the
    table has for CIFAR-10. Empty where the paper's table leaves the data set out."""
    if in_paper(data):
        return [cell for cell in TABLES[table] if cell.data == data]
    return [
        Cell(data, cell.architecture, cell.timesteps, cell.granularity)
        for cell in TABLES[table]
        if cell.data == "cifar10"
    ]


def with_ternary(cells: list[Cell]) -> list[Cell]:
    """Return cells and, behind them, every binary one with ternary spikes."""
    binary = [cell for cell in cells if cell.granularity == "none"]
    return [*cells, *(replace(cell, emission="ternary", paper=None) for cell in binary)]


def changed(cells: list[Cell], overrides: Mapping[str, str]) -> list[Cell]:
    """Return what overrides make of the cells of a table, each once.

    A network that is not the paper's has no number of the paper's.

    Raises:
        ConfigError: for a wrong override, or one of what the table itself varies.
    """
    for key, why in _OF_THE_TABLE.items():
        if key in overrides:
            raise ConfigError(f"{key} cannot be changed in a table: {why}")
    found: dict[str, Cell] = {}
    for cell in cells:
        before, after = cell.config(), cell.config().replaced(**overrides)
        network = after.network
        new = replace(
            cell,
            architecture=network.architecture,
            timesteps=network.timesteps,
            width=network.width if "network.width" in overrides else None,
            paper=cell.paper if before.network_config() == after.network_config() else None,
        )
        # Others may have become one that the paper has a number of.
        if new.paper is not None or new.name not in found:
            found[new.name] = new
    return list(found.values())


_OF_THE_TABLE = {
    "network.granularity": "it is what the table compares",
    "network.emission": "--ternary adds a row of ternary spikes",
    "data.name": "--data chooses the data",
    "training.seed": "--seeds says how many there are",
}


def all_cells() -> dict[str, tuple[Cell, list[int]]]:
    """Return every cell of the paper, once, by name, with the tables that it is in."""
    found: dict[str, tuple[Cell, list[int]]] = {}
    for table, cells in TABLES.items():
        for cell in cells:
            found.setdefault(cell.name, (cell, []))[1].append(table)
    return found


# Written even where they are the defaults.
_ALWAYS = (
    *("architecture", "granularity", "timesteps", "name", "batch_size"),
    *("epochs", "learning_rate", "weight_decay"),
)


def write_configs(folder: Path) -> list[Path]:
    """Write one YAML file per cell of the paper, with what differs from the defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    defaults, paths = RunConfig().to_dict(), []
    for name, (cell, tables) in all_cells().items():
        where = " and ".join(f"Table {table}" for table in tables)
        sections = {
            section: {
                key: value
                for key, value in values.items()
                if key in _ALWAYS or value != defaults[section][key]
            }
            for section, values in cell.config().to_dict().items()
        }
        text = f"# {where} of the paper, which reports {cell.paper:.2f} %.\n"
        text += require("yaml").safe_dump({k: v for k, v in sections.items() if v}, sort_keys=False)
        paths.append(folder / f"{name}.yaml")
        write_atomically(paths[-1], text.encode())
    return paths


if __name__ == "__main__":
    write_configs(path_of(sys.argv[1]))
