"""The `realspike` command.

Exit codes: 0 done; 1 it ran and failed; 2 it cannot run as asked; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Nothing above or at the top of this file imports torch: --help and wrong arguments answer at once.


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        import realspike

        print(f"realspike {realspike.__version__}")
        parser.exit()


def _integer(smallest: int, largest: int):
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not smallest <= value <= largest:
            raise argparse.ArgumentTypeError(
                f"must be an integer from {smallest} to {largest}; got {text!r:.40}"
            )
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="realspike",
        description="Train, fold, verify and use Real Spike networks.",
        epilog="`realspike COMMAND --help` explains a command.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version of realspike and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    quickstart = commands.add_parser(
        "quickstart",
        help="train, fold, verify and time four small networks on handwritten digits",
        description="Train a binary network and layer-, channel- and element-wise Real Spike on "
        "the handwritten digits of scikit-learn, fold them, verify that the folded networks "
        "compute the same without multiplications, and time the element-wise one. Runs on the "
        "CPU, takes a minute or two on two cores and downloads nothing.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = quickstart.add_argument
    add(
        *("--out", "-o"),
        type=Path,
        default=Path("runs/quickstart"),
        metavar="FOLDER",
        help="for checkpoints, results.json and pictures; those of an earlier run are replaced",
    )
    add("--epochs", type=_integer(1, 10_000), default=25, metavar="N", help="passes over the data")
    add(
        "--seed", type=_integer(0, 2**31 - 1), default=0, metavar="S", help="of weights and batches"
    )
    add("--timesteps", type=_integer(1, 64), default=4, metavar="T", help="timesteps per image")
    add(
        "--threads",
        type=_integer(1, 1024),
        default=argparse.SUPPRESS,
        metavar="N",
        help="CPU threads to fold, verify and time with; the networks are so small that they are "
        "trained with one (default: as many as PyTorch chooses)",
    )
    quickstart.set_defaults(run=_quickstart)
    return parser


def _quickstart(arguments: argparse.Namespace) -> int:
    from realspike.optional import MissingPackageError, require

    try:
        console = require("rich.console").Console(highlight=False, markup=False)
        progress_module = require("rich.progress")
    except MissingPackageError as error:
        return _fail(2, str(error))

    from realspike import files, quickstart, report
    from realspike.networks import GRANULARITIES
    from realspike.training import TrainingSettings
    from realspike_ops import MultiplicationError

    settings = quickstart.QuickstartSettings(
        out=arguments.out,
        timesteps=arguments.timesteps,
        threads=getattr(arguments, "threads", None),
        training=TrainingSettings(epochs=arguments.epochs, seed=arguments.seed),
    )
    try:
        files.make_writable_folder(arguments.out)
    except OSError as error:
        return _fail(2, f"cannot write to --out {arguments.out}: {error.strerror or error}")
    progress = progress_module.Progress(
        progress_module.TextColumn("{task.description:<22}"),
        progress_module.BarColumn(),
        progress_module.MofNCompleteColumn(),
        progress_module.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    epochs = arguments.epochs
    console.print(
        f"Training {len(GRANULARITIES)} networks, {epochs} epoch{'s' * (epochs > 1)} each"
    )
    try:
        with progress:
            task = progress.add_task("", total=len(GRANULARITIES) * epochs)

            def on_epoch(granularity, record):
                name = report.NAMES[granularity]
                progress.update(task, advance=1, description=f"training {name}")
                if record.epoch == epochs and not console.is_terminal:
                    console.print(f"  {name}: test accuracy {100 * record.test_accuracy:.2f} %")

            results = quickstart.run(settings, on_epoch)
    except MissingPackageError as error:
        return _fail(2, str(error))
    except (OSError, quickstart.QuickstartError, MultiplicationError) as error:
        return _fail(1, str(error))
    console.print(report.table(results))
    for line in report.notes(results):
        console.print(line)
    console.print(f"Files: {arguments.out}/", soft_wrap=True)
    return 0


def _fail(code: int, message: str) -> int:
    print(f"realspike: error: {message}", file=sys.stderr)
    return code


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run the command line; return the exit code (argparse exits by itself on wrong arguments)."""
    try:
        parsed = _parser().parse_args(arguments)
        return parsed.run(parsed)
    except KeyboardInterrupt:
        print("realspike: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
