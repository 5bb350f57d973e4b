"""Options and checks that several commands share."""

import argparse
import sys
from pathlib import Path

from realspike.files import path_of


def add_command(
    commands, name: str, run, *, help: str, description: str, examples: list[str], epilog: str = ""
):
    """Declare a command and return its parser; its help shows the examples behind the options."""
    shown = "\n".join(["examples:", *(f"  {example}" for example in examples)])
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"{shown}\n\n{epilog}" if epilog else shown,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def path(text: str) -> Path:
    """Return the path that a user means, for argparse; the text of a variable that was never set
    is none."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path; got ''")
    return path_of(text)


def integer(smallest: int, largest: int):
    """Return a parser of integers in a range, for argparse."""

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


def share(text: str) -> float:
    """Parse a number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1; got {text!r:.40}")
    return value


def add_checkpoint(parser) -> None:
    parser.add_argument(
        "checkpoint",
        type=path,
        metavar="CHECKPOINT",
        help="a .safetensors file or a run's folder",
    )
    add_allow(parser)


def add_allow(parser) -> None:
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="import this network or data set of your own if the checkpoint names it, which runs "
        "its code; repeatable",
    )


def add_overrides(parser, help: str) -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help)


def add_evaluation(parser) -> None:
    """Declare what commands that read test data share."""
    add_overrides(
        parser,
        "changes of the configuration stored in the checkpoint, such as data.root=FOLDER",
    )
    parser.add_argument(
        "--samples", type=integer(1, 10**9), metavar="N", help="use the first N test samples only"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def fail(code: int, message: str) -> int:
    print(f"realspike: error: {' '.join(message.splitlines())}", file=sys.stderr)
    return code
