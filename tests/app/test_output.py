"""What is printed: on terminals without our characters, and into pipes that nobody reads."""

import contextlib
import io
import os
import subprocess
import sys

import pytest

for package in ("yaml", "rich", "safetensors"):
    pytest.importorskip(package)

from realspike import cli, output


@pytest.fixture
def encoded(monkeypatch):
    """Make stdout one of an encoding; returns how to read what was printed."""

    def of(encoding):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        return lambda: raw.getvalue().decode(encoding)

    return of


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "84.00 +/- 1.50 a*o ? T x 4 - ...\n"),
        ("latin-1", "84.00 \u00b1 1.50 a\u00b7o ? T \u00d7 4 - ...\n"),
        ("utf-8", "84.00 \u00b1 1.50 a\u00b7o \u03a9 T \u00d7 4 \u2014 \u2026\n"),
    ],
)
def test_characters_that_an_encoding_has_not_are_spelled(encoded, encoding, expected):
    printed = encoded(encoding)
    with output.prepared():
        print("84.00 \u00b1 1.50 a\u00b7o \u03a9 T \u00d7 4 \u2014 \u2026")
    assert printed() == expected


def test_names_that_are_no_text_can_be_printed(encoded):
    printed = encoded("utf-8")
    with output.prepared():
        print(os.fsdecode(b"run-\xff"))
    assert printed() == "run-?\n"


def test_a_table_of_rich_has_lines_of_the_encoding(encoded):
    from rich.table import Table

    printed = encoded("ascii")
    table = Table(title="\u00b1")
    table.add_column("a")
    table.add_row("1 \u00b1 2")
    with output.prepared():
        output.console().print(table)
    assert "| 1 +/- 2 |" in printed()
    assert "?" not in printed()


@contextlib.contextmanager
def unread(monkeypatch):
    """Make stdout a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield


def test_a_command_that_nobody_reads_ends_quietly(monkeypatch, capfd):
    with unread(monkeypatch):
        assert cli.main(["train", "--print-config"]) == 141
    assert capfd.readouterr().err == ""


def test_work_goes_on_where_nobody_reads(monkeypatch):
    with unread(monkeypatch):
        console = output.console()
        for _ in range(3):
            console.print("x" * 50)
        assert console.quiet


def test_help_into_a_closed_pipe_leaves_no_trace():
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        f"{sys.executable} -m realspike train --help | head -c 1; echo ${{PIPESTATUS[0]}}",
        **{"shell": True, "executable": "/bin/bash", "capture_output": True, "text": True},
        env=os.environ | {"PYTHONPATH": path},
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout in ("u0\n", "u141\n")


def test_a_full_disk_behind_stdout_is_named(monkeypatch, capfd):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["train", "--print-config"]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert "No space left on device" in line


def test_a_message_is_one_line(capsys):
    assert cli.main(["eval", "a\nb\x85c"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "a b c" in line
