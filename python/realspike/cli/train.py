"""`realspike train`."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

from realspike import output
from realspike.cli import common
from realspike.config import run_config
from realspike.config.datasets import check_present
from realspike.config.run_config import ConfigError
from realspike.names import nearest
from realspike.optional import require, require_training


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "train",
        run,
        help="train a network as a configuration says",
        description="Train as a YAML file and overrides say, into a folder: config.yaml,\n"
        "metrics.csv, TensorBoard logs, last.ckpt (to resume), model.safetensors (the\n"
        "network) and report.html. Ctrl-C or SIGTERM stops after the current step, with a\n"
        "checkpoint from which --resume continues exactly. On many GPUs:\n"
        "  torchrun --nproc-per-node 8 -m realspike train --config FILE --out FOLDER",
        examples=[
            "realspike train --config configs/cifar10_resnet20_t4_element.yaml --out runs/real",
            "realspike train name=digits epochs=20 --out runs/digits",
            "realspike train --resume runs/real",
        ],
        epilog=f"keys, with their defaults (the section may be left out):\n{run_config.describe()}",
    )
    parser.add_argument(
        "--config",
        type=common.path,
        metavar="FILE|NAME",
        help="a YAML file, or one of the paper's configurations by its name",
    )
    parser.add_argument(
        "--configs", action="store_true", help="print the names of the paper's configurations"
    )
    parser.add_argument(
        "--from",
        dest="start_from",
        type=common.path,
        metavar="WEIGHTS",
        help="begin with the weights of this .safetensors file, run or network that comes with the "
        "package, tensor by tensor of the same name and shape",
    )
    parser.add_argument(
        "--out",
        "-o",
        type=common.path,
        metavar="FOLDER",
        help="of the run (default: runs/ and the name of the configuration)",
    )
    parser.add_argument(
        "--resume",
        type=common.path,
        metavar="FOLDER",
        help="continue the run in this folder; epochs=N lets it go on to more of them, and\n"
        "data.root=FOLDER and data.workers=N may be others than before",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the whole configuration and exit"
    )
    common.add_overrides(parser, "changes of the configuration")


def run(arguments) -> int:
    if arguments.configs:
        print(*run_config.shipped(), sep="\n")
        return 0
    overrides = [*arguments.overrides]
    if arguments.start_from is not None:
        from realspike.inspect import trained_file

        known = trained_file.networks_by_name()
        source = arguments.start_from
        if not source.exists() and str(source) not in known:
            hint = nearest(str(source), known)
            raise ConfigError(f"--from: there is no file, run or network {source}{hint}")
        source = source if source.exists() else known[str(source)]
        overrides.append(f"training.start_from={source.absolute()}")
    if arguments.resume is not None:
        changes = run_config.parse_overrides(overrides)
        free = {"training.epochs", *run_config.PLACES}
        if arguments.config or arguments.out or changes.keys() - free:
            raise ConfigError(
                "--resume continues a run as it was configured: no other arguments with it than "
                f"epochs=N, {' and '.join(run_config.PLACES)}; --from begins another run with its "
                "weights"
            )
        if not (arguments.resume / run_config.FILE).exists():
            raise ConfigError(f"there is no run in {arguments.resume}: it has no {run_config.FILE}")
        config = run_config.read(arguments.resume / run_config.FILE)
        more = changes.pop("training.epochs", None)
        config = config.replaced(**changes)
        if more is not None:
            # By itself: else too few would be blamed on the run's warm-up or restarts.
            config = config.extended(run_config.RunConfig().replaced(epochs=more).training.epochs)
    else:
        if arguments.config is not None:
            arguments.config = run_config.find(arguments.config)
        config = run_config.read(arguments.config, overrides)
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return 0
    check_present(config.data.name, config.data.folder)
    require_training()
    require("matplotlib.figure")  # draws the report at the end
    console = output.console()

    from realspike import train

    began = time.perf_counter()
    options = {"on_epoch": lambda record: _print(console, config, record), "console": console}
    if arguments.resume is not None:
        out = arguments.resume
        result = train.resume(out, _note, config.training.epochs, config.places(), **options)
    else:
        out = arguments.out or Path("runs") / (
            arguments.config.stem if arguments.config else config.data.name
        )
        result = train.start(config, out, **options)
    if result.stopped_by:
        name = signal.Signals(result.stopped_by).name
        print(
            f"realspike: stopped by {name}; `realspike train --resume {shlex.quote(str(out))}` "
            "continues",
            file=sys.stderr,
        )
        return 128 + result.stopped_by
    if os.environ.get("RANK", "0") != "0":
        return 0

    from realspike.report import run_report

    # The network and data that the user asked to train may be imported.
    run_report.write(out, allow=(config.network.architecture, config.data.name))
    _line(console, f"Files: {out}/ ({time.perf_counter() - began:.0f} s)")
    return 0


def _print(console, config: run_config.RunConfig, record: dict) -> None:
    _line(
        console,
        f"epoch {record['epoch']:>3}: training loss {record['train_loss']:.4f}, "
        f"accuracy {100 * record['train_accuracy']:.2f} %; "
        f"{config.data.measured} {100 * record['test_accuracy']:.2f} %",
    )


def _note(text: str) -> None:
    print(f"realspike: note: {text}", file=sys.stderr)


def _line(console, text: str) -> None:
    console.print(text, soft_wrap=True)
