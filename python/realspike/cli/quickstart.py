"""`realspike quickstart`."""

import argparse
from pathlib import Path

from realspike import output
from realspike.cli import common
from realspike.progress import bar


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "quickstart",
        run,
        help="train, fold, verify and time four small networks on handwritten digits",
        description="Train a binary network and layer-, channel- and element-wise Real Spike on\n"
        "the handwritten digits of scikit-learn, fold them, verify that the folded networks\n"
        "compute the same without multiplications, and time the element-wise one. Runs on the\n"
        "CPU, takes a minute or two on two cores and downloads nothing.",
        examples=[
            "realspike quickstart",
            "realspike quickstart --epochs 5 --out runs/short",
        ],
    )
    parser.add_argument(
        *("--out", "-o"),
        type=common.path,
        default=Path("runs/quickstart"),
        metavar="FOLDER",
        help="for checkpoints, results.json, report.html and pictures; those of an earlier run are "
        "replaced (default: %(default)s)",
    )
    for name, limits, default, metavar, text in (
        ("--epochs", (1, 10_000), 25, "N", "passes over the data"),
        ("--seed", (0, 2**31 - 1), 0, "S", "of weights and batches"),
        ("--timesteps", (1, 64), 4, "T", "timesteps per image"),
    ):
        parser.add_argument(
            name,
            type=common.integer(*limits),
            default=default,
            metavar=metavar,
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--threads",
        type=common.integer(1, 1024),
        default=argparse.SUPPRESS,
        metavar="N",
        help="CPU threads to fold, verify and time with; the networks are so small that they are "
        "trained with one (default: as many as PyTorch chooses)",
    )


def run(arguments: argparse.Namespace) -> int:
    console = output.console()

    from realspike import files, quickstart
    from realspike.networks import GRANULARITIES
    from realspike.quickstart import report
    from realspike_ops import MultiplicationError

    settings = quickstart.QuickstartSettings(
        out=arguments.out,
        timesteps=arguments.timesteps,
        threads=getattr(arguments, "threads", None),
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    try:
        files.make_writable_folder(arguments.out)
    except OSError as error:
        return common.fail(2, f"cannot write to --out {arguments.out}: {error.strerror or error}")
    epochs = arguments.epochs
    console.print(
        f"Training {len(GRANULARITIES)} networks, {epochs} epoch{'s' * (epochs > 1)} each"
    )
    try:
        with bar(console) as progress:
            task = progress.add_task("", total=len(GRANULARITIES) * epochs)

            def on_epoch(granularity, record):
                name = report.NAMES[granularity]
                progress.update(
                    task,
                    advance=1,
                    description=f"training {name}, epoch {record['epoch']}/{epochs}",
                )
                if record["epoch"] == epochs and not console.is_terminal:
                    console.print(f"  {name}: test accuracy {100 * record['test_accuracy']:.2f} %")

            results = quickstart.run(settings, on_epoch)
    except (OSError, quickstart.QuickstartError, MultiplicationError) as error:
        return common.fail(1, str(error))
    console.print(report.table(results))
    for line in report.notes(results):
        console.print(line)
    console.print(f"Files: {arguments.out}/", soft_wrap=True)
    return 0
