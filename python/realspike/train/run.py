"""Starting and resuming a run."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from realspike import checkpoint, environment, files
from realspike import data as data_module
from realspike.config import run_config
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import ConfigError, RunConfig
from realspike.data.own import GIVEN, splits_of
from realspike.data.sets import Splits
from realspike.errors import RunError
from realspike.first_input import build_with_sizes, example_input
from realspike.inspect import trained_file
from realspike.names import shown
from realspike.networks.layers import draw_amplitudes
from realspike.train.fitting import RunResult, fit_network, share, try_own
from realspike.train.folder import (
    CONFIG_FILE,
    alone_in,
    check_free,
    resumable_state,
    unreadable,
    write_config,
)
from realspike.train.placement import placement, rank
from realspike.train.saving import RESUME_FILE, network_tensors, write_results
from realspike_ops import RealSpikeLIF


def start(config: RunConfig, out: Path, **options) -> RunResult:
    """Train and write everything into ``out``: configuration, checkpoints, network, logs.

    Under ``torchrun`` all processes call it alike.

    Args:
        config: See `RunConfig`.
        out: A folder without a run.
        options: Passed on to `fit_network`: ``on_epoch``, and ``console``, where what is trained
            and how far it is gets printed.

    The data and the network that ``config`` names are made, and `fit` trains them.

    Raises:
        RunError: if ``out`` holds a run already, or what is left of one, another process trains in
            it, or it cannot be written to.
        Diverged: if the loss or a weight is not finite; the checkpoints before are kept.
        DataError: if the data cannot be read.
    """
    check_free(out)
    config, splits = _data_of(config)  # before there is a folder
    return fit(_network_of(config), splits, out, config=config, **options)


def fit(
    network: nn.Module,
    data: "Splits | tuple",
    out: "str | Path",
    *,
    config: "RunConfig | None" = None,
    on_epoch: Callable[[dict], None] = lambda record: None,
    console=None,
    **settings,
) -> RunResult:
    """Train a network on data, in place, and write everything into a folder, as `realspike train`.

    Args:
        network: Any `nn.Module` from images [B, C, S, S] (frames: [T*B, C, S, S]) to [B, classes],
            on the CPU.
        data: A `realspike.data.Splits`, or a pair (training part, test part); a part is a data set
            of (sample, label), or a pair of tensors: samples [N, C, S, S], or frames
            [N, T, C, S, S], of uint8 or float32, and labels [N] int64. A pair is used as it is,
            uint8 over 255.
        out: A folder without a run. Its ``model.safetensors`` is read again by
            ``realspike.checkpoint.load(path, network=...)``, or without a network if its class can
            be imported, and takes the fields of `NetworkConfig` in the file or has neurons of these
            ``timesteps``.
        config: The whole configuration; None: the defaults and ``settings``.
        on_epoch: Called with the record of every epoch.
        console: See `realspike.output.console`; where the progress is printed. None: nowhere.
        settings: Keys of a configuration, such as ``epochs=10``, ``learning_rate=0.05`` or
            ``optimizer="adamw"``; `realspike train --help` lists them. Those of the network, and
            where the data are, cannot be set here.

    Returns:
        The records, epoch by epoch, and the signal that stopped the run, or 0. The network is left
        on the CPU in eval mode.

    Raises:
        RunError: if ``out`` holds a run already, another process trains in it, or it cannot be
            written to.
        TypeError: if ``network`` is no `nn.Module`.
        ConfigError: for an unknown or impossible setting, and a network that was made for others.
        OwnError, DataError: if the network does not classify the data, or they are no such data.
        Diverged: if the loss or a weight is not finite; the checkpoints before are kept.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be an nn.Module; got {shown(network)}")
    out = Path(out)
    check_free(out)
    splits = splits_of(data, "data")
    if config is None:
        config = data_module.fitted(_config_of(network, settings), splits)
    elif settings:
        raise TypeError(f"config and {min(settings)} must not be given together")
    # What cannot be done is refused before there is a folder.
    share(config, splits)
    _check_made_for(config, network)
    try_own(config, network)
    _begin(config, network)
    placement(config)
    try:
        files.make_writable_folder(out)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}") from error
    with alone_in(out):
        check_free(out)
        write_config(config, out)
        return fit_network(config, network, splits, out, None, on_epoch, console)


def _config_of(network: nn.Module, settings: dict) -> RunConfig:
    """Return the configuration of a run of a network that the caller made."""
    made = getattr(network, "config", None)
    values: dict[str, object] = {"data.name": GIVEN}
    if isinstance(made, NetworkConfig):
        section = RunConfig().to_dict()["network"]
        values |= {f"network.{key}": getattr(made, key) for key in section}
    else:
        kind = type(network)
        values["network.architecture"] = f"{kind.__module__}:{kind.__name__}"
        for lif in network.modules():
            if isinstance(lif, RealSpikeLIF):
                values["network.timesteps"] = lif.timesteps
                for key in {"granularity", "emission"} & inspect.signature(kind).parameters.keys():
                    values[f"network.{key}"] = getattr(lif, key)
    for key, value in settings.items():
        section, name = run_config.resolve_key(key)
        if section == "network" or (section, name) in (("data", "name"), ("data", "root")):
            what = "network" if section == "network" else "data"
            raise ConfigError(f"{section}.{name} cannot be set: it is of the {what} given to fit")
        values[f"{section}.{name}"] = value
    return RunConfig().replaced(**values)


def _check_made_for(config: RunConfig, network: nn.Module) -> None:
    """Refuse a network of ours that was made for another configuration than is written down."""
    made, wanted = getattr(network, "config", None), config.network_config()
    if isinstance(made, NetworkConfig) and made != wanted:
        key = next(k for k, v in made.to_dict().items() if v != getattr(wanted, k))
        raise ConfigError(
            f"the network was made with {key}={getattr(made, key)}, and the configuration and the "
            f"data have {getattr(wanted, key)}"
        )


def _begin(config: RunConfig, network: nn.Module) -> None:
    """Draw the amplitudes, and take the weights, that the configuration begins with."""
    draw_amplitudes(network, config.training.amplitude_spread, config.training.seed)
    if config.training.start_from is not None:
        path = trained_file.file_of(files.path_of(config.training.start_from))
        checkpoint.begin_with(path, network)


def _network_of(config: RunConfig) -> nn.Module:
    return build_with_sizes(config.network_config(), config.training.seed)


def resume(
    out: Path,
    on_note: Callable[[str], None] = lambda note: None,
    epochs: "int | None" = None,
    places: "Mapping[str, object] | None" = None,
    **options,
) -> RunResult:
    """Continue the run in ``out`` from its last checkpoint, exactly as if it had never stopped.

    A run that was stopped before its first checkpoint starts again.

    Args:
        out: The run's folder.
        epochs: More than it was configured with, see `RunConfig.extended`; None: as many.
        places: What has changed of `run_config.PLACES`; None: nothing.
        on_note: Called with what may make the run another than if it had never stopped.
        options: As of `start`.

    Raises:
        RunError: if there is no run in ``out``, another process is at it, or its checkpoint is
            damaged or of another configuration than its file.
        ConfigError: if its configuration cannot be read.
    """
    if not (out / CONFIG_FILE).exists():
        raise RunError(f"there is no run in {out}: it has no {CONFIG_FILE}")
    with alone_in(out):
        last = out / RESUME_FILE
        config = run_config.read(out / CONFIG_FILE).replaced(**places or {})
        config = config if epochs is None else config.extended(epochs)
        if not last.exists():
            check_free(out)
            config, splits = _data_of(config)
            network = _network_of(config)
            _begin(config, network)
            write_config(config, out)
            return fit_network(config, network, splits, out, None, **options)
        state = resumable_state(last, config)
        config, splits = _data_of(config)
        if rank() == 0:
            digest = share(config, splits).digest()
            if state["realspike"].get("data") not in (None, digest):
                on_note("the run goes on with other data: samples were added, removed or renamed")
            for name, now in environment.versions().items():
                before = state["realspike"].get(name)
                if before != now:
                    on_note(
                        f"the run goes on with another {name}: {now or 'unknown'} instead of "
                        f"{before or 'unknown'}"
                    )
            try:
                _network_of(config).load_state_dict(network_tensors(state))  # it fits
                write_results(out, state)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise unreadable(last) from error
        write_config(config, out)
        if state["global_step"] == config.training.max_steps:  # it was stopped behind its end
            return RunResult(state["callbacks"]["History"]["records"])
        return fit_network(config, _network_of(config), splits, out, last, **options)


def _data_of(config: RunConfig) -> tuple[RunConfig, Splits]:
    """Read the data of a run that can be trained as configured; what they say is configured."""
    placement(config)
    splits = data_module.load(config)
    config = data_module.fitted(config, splits)
    if min(config.data.batch_size, len(share(config, splits).train)) == 1:
        _check_single_samples(config)
    return config, splits


@torch.no_grad()
def _check_single_samples(config: RunConfig) -> None:
    """Refuse batches of one sample where a batch norm sees one value per channel."""
    network = config.network_config()
    try:
        build_with_sizes(network, seed=0)(example_input(network))
    except ValueError as error:
        raise RunError(
            f"{network.architecture} with timesteps={network.timesteps} cannot be trained on "
            f"batches of one sample: give data.batch_size=2 or more, of 2 or more samples ({error})"
        ) from error
