"""`realspike table`."""

import signal
import sys
from pathlib import Path

from realspike import output
from realspike.cli import common
from realspike.config import recipes, run_config
from realspike.config.datasets import check_present
from realspike.config.run_config import ConfigError
from realspike.files import make_writable, write_atomically
from realspike.names import check_choice
from realspike.optional import require, require_training


def add(commands) -> None:
    described = "\n".join(f"  {name:<14} {recipes.description(name)}" for name in recipes.RECIPES)
    parser = common.add_command(
        commands,
        "table",
        run,
        help="train the grid behind a table of the paper and print it",
        description="Train every network of a table of the paper on a data set, with several\n"
        "seeds, and print the table in the paper's layout: mean and standard deviation, the\n"
        "paper's own numbers beside them where the data are the paper's. Stopped, it\n"
        "continues where it was; networks that two tables share are trained once.",
        examples=[
            "realspike table 2 --data digits",
            "realspike table 1 data.root=~/data --seeds 5 --save table1.md",
        ],
        epilog=f"data sets:\n{described}",
    )
    parser.add_argument("table", type=int, choices=sorted(recipes.TABLES), help="of the paper")
    common.add_overrides(parser, "changes of every configuration")
    parser.add_argument(
        "--data", default="cifar10", metavar="NAME", help="data set (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        type=common.integer(1, 1000),
        default=3,
        metavar="N",
        help="how many (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        "-o",
        type=common.path,
        default=Path("runs/tables"),
        metavar="FOLDER",
        help="of the runs (default: %(default)s)",
    )
    parser.add_argument(
        "--cells",
        type=common.integer(0, 10**6),
        metavar="N",
        help="train at most N networks now (0: print what there is)",
    )
    parser.add_argument(
        "--ternary", action="store_true", help="add networks of ternary spikes without amplitudes"
    )
    parser.add_argument(
        "--save",
        type=common.path,
        metavar="FILE",
        help="also write the table as Markdown, and beside it, as .runs.json, what every run came\n"
        "to: runs that are in that file are not trained again",
    )


def run(arguments) -> int:
    try:
        check_choice("--data", arguments.data, recipes.RECIPES)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    overrides = run_config.parse_overrides(arguments.overrides)
    cells = recipes.cells_of(arguments.table, arguments.data)
    if not cells:
        raise ConfigError(f"table {arguments.table} of the paper has no {arguments.data}")
    if arguments.ternary:
        without, cells = cells, recipes.with_ternary(cells)
        if cells == without:
            raise ConfigError(
                f"--ternary stands beside binary networks; table {arguments.table} has none"
            )
    # Before anything slow, and hours of training.
    cells = recipes.changed(cells, overrides)
    data = cells[0].config().replaced(**overrides).data
    check_present(data.name, data.folder)
    if arguments.save:
        try:
            make_writable(arguments.save)
        except OSError as error:
            raise ConfigError(
                f"cannot write --save {arguments.save}: {error.strerror or error}"
            ) from error
    require_training()
    console = output.console()

    from realspike.train import jobs as grid
    from realspike.train import outcomes, paired, tables

    beside = outcomes.file_beside(arguments.save) if arguments.save else None
    known = outcomes.read(beside) if beside else {}
    jobs = grid.jobs_of(cells, arguments.seeds, arguments.out, overrides, known)
    shown = arguments.table, arguments.data
    if elsewhere := sum(job.known is not None for job in jobs):
        text = f"{elsewhere} of {len(jobs)} networks are known from {beside}"
        console.print(text, soft_wrap=True)

    def save() -> None:
        if beside:
            ended = {job.folder.name: outcome for job in jobs if (outcome := job.outcome())}
            if ended:
                outcomes.write(beside, ended)
            page = tables.markdown(*shown, jobs, ended, arguments.overrides)
            write_atomically(arguments.save, page.encode())

    def announce(job, left: int) -> None:
        save()  # what the runs before it came to
        console.print(f"{left} to train; now {job.folder}", soft_wrap=True)

    stopped = grid.run(jobs, arguments.cells, announce, console=console)
    save()
    found = tables.entries(jobs)
    measured = jobs[0].config.data.measured
    title = tables.title(*shown, found, arguments.overrides, measured)
    _print(console, title, *tables.layout(arguments.table, found))
    differences = paired.differences(jobs)
    if any(difference.interval() for difference in differences):
        _print(console, "Differences, paired by seed", *tables.paired_rows(differences))
    missing = sum(job.accuracy() is None for job in jobs)
    if missing:
        console.print(f"{missing} of {len(jobs)} networks are not trained yet")
    if stopped:
        name = signal.Signals(stopped).name
        print(f"realspike: stopped by {name}; the same command continues", file=sys.stderr)
        return 128 + stopped
    return 0


def _print(console, title: str, header: list[str], rows: list[list[str]]) -> None:
    out = require("rich.table").Table(title=title, title_justify="left")
    for number, text in enumerate(header):
        is_text = text in ("data", "method", "network", "difference")
        out.add_column(text, justify="left" if is_text or number == 0 else "right")
    for row in rows:
        out.add_row(*row)
    console.print(out)
