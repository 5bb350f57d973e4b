"""What finished runs came to, in a file beside the page of their table.

The file continues a grid where its runs are not: on another machine, or in another year.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from realspike.config.run_config import ConfigError, RunConfig
from realspike.files import write_atomically
from realspike.names import shown


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        accuracy: Of the last epoch, from 0 to 1.
        seconds: Of training and testing.
        commit: That trained it; "" if unknown.
        device: The model of what it was trained on; "" if unknown.
        weights: The `realspike.checkpoint.digest` of its network.
        config: Of the run, without where its data lay.
    """

    accuracy: float
    seconds: float
    commit: str
    device: str
    weights: str
    config: RunConfig

    def __post_init__(self):
        object.__setattr__(self, "config", self.config.anywhere())

    def is_of(self, config: RunConfig) -> bool:
        return self.config == config.anywhere()


def file_beside(page: Path) -> Path:
    return page.with_suffix(".runs.json")


def read(path: Path) -> dict[str, Outcome]:
    """Return the outcomes in a file by the names of their runs; none without a file.

    Raises:
        ConfigError: if it cannot be read, or holds something else.
    """
    try:
        runs = json.loads(path.read_text())["runs"]
        return {str(name): _outcome(values) for name, values in runs.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no outcomes of runs: {error!s:.200}") from error


def _outcome(values: Mapping) -> Outcome:
    facts = {name: value for name, value in values.items() if name != "config"}
    outcome = Outcome(**facts, config=RunConfig.from_dict(values["config"]))
    for name in ("accuracy", "seconds"):
        number = getattr(outcome, name)
        if type(number) not in (int, float) or not 0 <= number < math.inf:
            raise ValueError(f"{name} must be a number from 0; got {shown(number)}")
    if outcome.accuracy > 1:
        raise ValueError(f"accuracy must be from 0 to 1; got {outcome.accuracy}")
    for name in ("commit", "device", "weights"):
        if not isinstance(getattr(outcome, name), str):
            raise ValueError(f"{name} must be a text; got {shown(getattr(outcome, name))}")
    return outcome


def write(path: Path, found: Mapping[str, Outcome]) -> None:
    """Write outcomes, a line each; those of other runs that the file has stay.

    Raises:
        OSError: if it cannot be written.
        ConfigError: as `read` does.
    """
    merged = {**read(path), **found}
    lines = [
        f"    {json.dumps(name)}: {json.dumps(dataclasses.asdict(outcome))}"
        for name, outcome in sorted(merged.items())
    ]
    write_atomically(path, ('{\n  "runs": {\n' + ",\n".join(lines) + "\n  }\n}\n").encode())
