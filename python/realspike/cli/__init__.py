"""The `realspike` command.

Exit codes: 0 done; 1 it ran and failed; 2 it cannot run as asked; 130 interrupted, 143 terminated,
141 nobody read its output to the end.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from realspike import output
from realspike.cli import (
    common,
    data,
    doctor,
    evaluate,
    export,
    fold,
    plot,
    profile,
    quickstart,
    table,
    train,
)
from realspike.config.run_config import ConfigError, resolve_key
from realspike.errors import UserError
from realspike.names import nearest
from realspike.optional import require

# Nothing above or at the top of this file imports torch: --help and wrong arguments answer at once.

_COMMANDS = (quickstart, data, train, evaluate, fold, export, profile, table, plot, doctor)


class _Version(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        import realspike

        print(f"realspike {realspike.__version__}")
        parser.exit()


class _Completion(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        shtab = require("shtab")
        whole, commands = _parsers()
        for command in commands.values():
            for action in command._actions:
                if action.type is common.path:
                    vars(action)["complete"] = shtab.FILE
        print(shtab.complete(whole, shell=values))
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def _check_value(self, action, value):
        """Refuse a choice that there is not, with the nearest that there is."""
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            hint = nearest(value, map(str, action.choices))
            raise argparse.ArgumentError(action, f"must be one of {choices}; got {value!r}{hint}")


def _parsers() -> "tuple[_Parser, dict[str, _Parser]]":
    """Return the parser of the whole command and those of its commands."""
    parser = _Parser(
        prog="realspike",
        description="Train, fold, verify and use Real Spike networks.",
        epilog="example: realspike quickstart\n\n`realspike COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version of realspike and exit"
    )
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        help="print a script that completes commands, options and files, and exit",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser, commands.choices


def _parse(arguments: "Sequence[str] | None") -> argparse.Namespace:
    """Parse, with key=value anywhere: argparse takes arguments behind an option for unknown."""
    parser, commands = _parsers()
    parsed, others = parser.parse_known_args(arguments)
    unknown = [other for other in others if other.startswith("-")]
    if not hasattr(parsed, "overrides"):
        unknown = others
    if unknown:
        command = commands[parsed.command]
        options = [o for action in command._actions for o in action.option_strings]
        hint = _as_a_key(unknown[0]) if hasattr(parsed, "overrides") else ""
        hint = hint or nearest(unknown[0].partition("=")[0], options)
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if others:
        parsed.overrides = [*parsed.overrides, *others]
    return parsed


def _as_a_key(option: str) -> str:
    """Say how the key of a configuration is written that was given as an option."""
    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    try:
        resolve_key(name)
    except ConfigError:
        return ""
    return f" (a key of the configuration is given as {name}=VALUE)"


def _is_want_of_memory(error: Exception) -> bool:
    """Whether an allocator failed: those of Python, and of PyTorch on a GPU and on a CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run the command line; return the exit code (argparse exits by itself on wrong arguments)."""
    try:
        with output.prepared():
            parsed = _parse(arguments)
            return parsed.run(parsed)
    except UserError as error:
        return common.fail(error.exit_code, str(error))
    except BrokenPipeError:
        return 141
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return common.fail(1, f"{named}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_want_of_memory(error):
            raise
        said = str(error).strip().partition("\n")[0] or "MemoryError"
        return common.fail(
            1,
            f"there is not enough memory ({said:.200}); smaller data.batch_size, network.width, "
            "network.timesteps and images take less",
        )
    except KeyboardInterrupt as interrupt:
        print("realspike: interrupted", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


if __name__ == "__main__":
    raise SystemExit(main())
