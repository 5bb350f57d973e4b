"""`realspike data`."""

import shlex
from pathlib import Path

from realspike.cli import common
from realspike.config.datasets import DOWNLOADS


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "data",
        run,
        help="download CIFAR-10 or CIFAR-100",
        description="Download the official archive of a data set into the folder that `train`\n"
        "reads it from, and check its SHA-256. A download that broke off goes on where it\n"
        "stopped; one that is there is checked.",
        examples=["realspike data cifar10", "realspike data cifar100 --root ~/data"],
    )
    parser.add_argument("name", choices=sorted(DOWNLOADS), help="of the data set")
    parser.add_argument(
        "--root",
        type=common.path,
        default=Path("data"),
        metavar="FOLDER",
        help="for the archive; the data.root of `train` (default: %(default)s)",
    )
    parser.add_argument(
        "--url", metavar="URL", help="of a mirror of the archive, whose SHA-256 is the same"
    )


def run(arguments) -> int:
    from realspike.data import download

    path = download.fetch(arguments.name, arguments.root, arguments.url)
    root = shlex.quote(str(arguments.root))
    print(
        f"{path}: SHA-256 {DOWNLOADS[arguments.name].sha256}\n"
        f"`realspike train data.name={arguments.name} data.root={root}` reads it"
    )
    return 0
