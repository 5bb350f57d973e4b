"""The folder of a run: whose it is, and what may be continued in it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from realspike import files
from realspike.config import run_config
from realspike.config.run_config import ConfigError, RunConfig
from realspike.errors import InUse, RunError
from realspike.names import shown
from realspike.records import checked
from realspike.train import sealed
from realspike.train.placement import rank
from realspike.train.saving import METRICS_FILE, NETWORK_FILE, RESUME_FILE

CONFIG_FILE = run_config.FILE


def write_config(config: RunConfig, out: Path) -> None:
    if rank() == 0:
        files.write_atomically(out / CONFIG_FILE, config.to_yaml().encode())


def check_free(out: Path) -> None:
    """Refuse a folder whose results would be replaced, and one that the logs cannot name."""
    try:
        str(out).encode()  # as the logs do
    except UnicodeEncodeError:
        raise RunError(
            f"the folder of a run must have a name that is text; got {shown(str(out))}"
        ) from None
    if (out / RESUME_FILE).exists():
        raise RunError(f"{out} holds a run: --resume continues it, --out chooses another folder")
    for name in (NETWORK_FILE, METRICS_FILE):
        if (out / name).exists():
            raise RunError(
                f"{out} holds the {name} of a run whose {RESUME_FILE} is gone, so that it cannot "
                "be continued: --out chooses another folder"
            )


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the folder of a run, for all its processes."""
    if rank() != 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(out))
            files.remove_temporary_files(out)
        except BlockingIOError as error:
            raise InUse(f"another process trains in {out}: wait for it or end it") from error
        except OSError as error:
            raise RunError(f"cannot write to {out}: {error.strerror or error}") from error
        yield


def resumable_state(last: Path, config: RunConfig) -> dict:
    """Return the state in a checkpoint; refuse one that is damaged or of another configuration."""
    try:
        state = sealed.read(last)
        stored = RunConfig.from_dict(state["realspike"]["config"])
        for name in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
            state[name]
        checked(state["callbacks"]["History"]["records"], last)
    except Exception as error:  # whatever a damaged archive, or another version, provokes
        raise unreadable(last) from error
    # A run goes on with the same results, however its layers are computed.
    stored = stored.replaced(fuse=config.training.fuse)
    if stored.anywhere() != config.anywhere() and not _is_extended(stored, config):
        raise RunError(
            f"{last.parent / CONFIG_FILE} was changed since {last.name} was written: a run goes on "
            "as it was configured; change it back, or start another"
        )
    return state


def _is_extended(stored: RunConfig, config: RunConfig) -> bool:
    try:
        return stored.extended(config.training.epochs).anywhere() == config.anywhere()
    except ConfigError:
        return False


def unreadable(last: Path) -> RunError:
    return RunError(
        f"{last} is truncated, corrupt or no checkpoint of a run of this version: without it, "
        f"{NETWORK_FILE} can be used, but the run cannot be continued"
    )
