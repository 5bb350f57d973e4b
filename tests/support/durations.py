"""Where the time of a test run went, from the report that ``pytest --junitxml`` wrote.

``python tests/support/durations.py REPORT`` prints seconds by file and those of the slowest tests,
with the machine and the versions that they were measured with.
"""

import os
import platform
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

SLOWEST = 30


def read(report: "str | Path") -> tuple[dict[str, list[float]], list[tuple[float, str]]]:
    """Return the seconds of the tests of every file, and every test with its seconds."""
    files, tests = defaultdict(list), []
    for case in ElementTree.parse(report).iter("testcase"):
        seconds = float(case.get("time", 0))
        # tests.app.test_data, or tests.app.test_data.TestClass
        parts = case.get("classname", "").split(".")
        end = next((n for n, part in enumerate(parts, 1) if part.startswith("test_")), len(parts))
        file = "/".join(parts[:end]).removeprefix("tests/") + ".py"
        files[file].append(seconds)
        tests.append((seconds, f"{file}::{case.get('name')}"))
    return dict(files), tests


def table(files: dict[str, list[float]], tests: list[tuple[float, str]], where: str) -> str:
    """Return the text: files by seconds, then the slowest tests."""
    lines = [f"# {where}", "# Seconds of one process, with those of others beside it.", ""]
    total = sum(map(sum, files.values()))
    lines.append(f"{total:9.1f}  {len(tests):6} tests in {len(files)} files")
    lines += ["", "by file"]
    by_time = sorted(files.items(), key=lambda item: (-sum(item[1]), item[0]))
    lines += [f"{sum(times):9.1f}  {len(times):6}  {file}" for file, times in by_time]
    lines += ["", f"the {min(SLOWEST, len(tests))} slowest"]
    slowest = sorted(tests, key=lambda test: (-test[0], test[1]))[:SLOWEST]
    lines += [f"{seconds:9.1f}  {name}" for seconds, name in slowest]
    return "\n".join(lines) + "\n"


def _where() -> str:
    import torch

    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores ({platform.machine()}), {versions}"


if __name__ == "__main__":
    print(table(*read(sys.argv[1]), _where()), end="")
