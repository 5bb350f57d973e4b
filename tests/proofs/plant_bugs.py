"""Plants the bugs of planted/, one at a time, and runs the tests that should notice.

    python tests/proofs/plant_bugs.py [--list] [--only NAME ...] [--jobs N]

Works on a copy of the checkout as it lies, uncommitted edits included, without CUDA. Fails if a bug
survives, no longer applies, or is not noticed by a test that fails: a crash, a hang, an error while
collecting and a broken build are not a test's doing. In the end the tests that noticed must pass
without a bug.
"""

import argparse
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from limited_run import limited_run
from planted import BUGS
from planted.bug import Bug

ROOT = Path(__file__).resolve().parents[2]
# The extension is built from these; the CUDA kernels are built by the tests that execute them.
COMPILED = ("csrc/cpu/", "csrc/core/", "csrc/bindings.cpp")
TIME_LIMIT = 300  # seconds for one build or one run of the tests
WIDTH = max(len(bug.name) for bug in BUGS)


@dataclass(frozen=True)
class Outcome:
    bug: Bug
    noticed_by: str | None  # the first test that failed
    problem: str  # why none did
    seconds: float

    def __str__(self) -> str:
        verdict = self.noticed_by or self.problem
        return f"{self.bug.name:<{WIDTH}}  {self.seconds:4.0f} s  {verdict}"


class Checkout:
    """A copy of the checkout with its own build, as a rule without AVX: the kernels are one
    template, which need not be compiled three times."""

    def __init__(self, folder: Path, avx512: bool):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "python")]),
            # Byte code is told apart by size and whole seconds: that of a bug could outlive it.
            "PYTHONDONTWRITEBYTECODE": "1",
            "REALSPIKE_CUDA": "off",
            "CUDA_VISIBLE_DEVICES": "",
        }
        if not avx512:
            system = f"-DCMAKE_SYSTEM_NAME={platform.system()} -DCMAKE_SYSTEM_PROCESSOR=any"
            self.environment["CMAKE_ARGS"] = system
        for name in ("PYTEST_ADDOPTS", "REALSPIKE_CPU_ISA"):
            self.environment.pop(name, None)
        self._run_or_exit(sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        self.build_folder = folder / "build" / "cmake"
        (self.built,) = folder.glob("build/lib*/realspike_ops/_C*")
        self.extension = folder / "realspike_ops" / self.built.name
        self.clean_extension = shutil.copyfile(self.built, folder / "build" / "clean_extension")
        for package in ("realspike_ops", "realspike"):
            found = self._run_or_exit(
                sys.executable, "-c", f"import {package}; print({package}.__file__)"
            )
            if folder not in Path(found.strip()).parents:
                sys.exit(f"the tests would run {found.strip()}, not the copy in {folder}")

    def run(self, *command: str) -> tuple[int | None, str]:
        """Return the exit code, None beyond the time limit, and the output."""
        return limited_run(command, self.folder, self.environment, TIME_LIMIT)

    def _run_or_exit(self, *command: str) -> str:
        code, output = self.run(*command)
        if code != 0:
            sys.exit(f"{output}\nwithout a bug: {' '.join(command)}: exit code {code}")
        return output

    def run_tests(self, *arguments: str) -> tuple[int | None, str]:
        return self.run(sys.executable, *"-m pytest -q -x -p no:cacheprovider".split(), *arguments)

    def try_bug(self, bug: Bug) -> Outcome:
        start = time.perf_counter()
        source = self.folder / bug.file
        text = read(source)
        if not applies(bug, text):
            return Outcome(bug, None, "NO LONGER APPLIES", 0.0)
        source.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
        try:
            noticed_by, problem = self._noticed(bug)
        finally:
            source.write_text(text, encoding="utf-8")
            shutil.copyfile(self.clean_extension, self.extension)
        return Outcome(bug, noticed_by, problem, time.perf_counter() - start)

    def _noticed(self, bug: Bug) -> tuple[str | None, str]:
        if bug.file.startswith(COMPILED):
            # Not setup.py: it configures afresh, and everything would be compiled.
            code, output = self.run("cmake", "--build", str(self.build_folder))
            if code != 0:
                return None, f"BROKE THE BUILD\n{last_lines(output)}"
            shutil.copyfile(self.built, self.extension)
        selection = ["-k", bug.k] if bug.k else []
        code, output = self.run_tests(*bug.tests.split(), *selection)
        failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", output, re.MULTILINE)
        if code == 0:
            return None, "SURVIVED"
        if code is None:
            return None, f"HUNG\n{last_lines(output)}"
        if code != 1 or not failed or re.search(r"^ERROR ", output, re.MULTILINE):
            return None, f"BROKE THE TESTS (exit code {code})\n{last_lines(output)}"
        return failed[0], ""


def read(source: Path) -> str:
    return source.read_text(encoding="utf-8") if source.is_file() else ""


def applies(bug: Bug, text: str) -> bool:
    return text.count(bug.old) == bug.count and bug.old != bug.new


def last_lines(output: str) -> str:
    return "\n".join(f"    {line}" for line in output.splitlines()[-25:])


def show_list(bugs: list[Bug]) -> int:
    """Print every bug and whether it still applies; return how many do not."""
    missing = [bug for bug in bugs if not applies(bug, read(ROOT / bug.file))]
    for bug in bugs:
        print(f"{bug.name:<{WIDTH}}  {'NO LONGER APPLIES' if bug in missing else bug.file}")
    return len(missing)


def has_avx512() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and "avx512f" in cpu.read_text()


def plant(bugs: list[Bug], jobs: int, avx512: bool) -> int:
    """Try the bugs and print what noticed them; return how many went unnoticed."""
    start = time.perf_counter()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="planted_bugs_") as temporary:
        checkouts: queue.SimpleQueue[Checkout] = queue.SimpleQueue()
        for job in range(jobs):
            checkouts.put(Checkout(Path(temporary).resolve() / f"copy{job}", avx512))

        def try_bug(bug: Bug) -> Outcome:
            checkout = checkouts.get()
            try:
                return checkout.try_bug(bug)
            finally:
                checkouts.put(checkout)

        with ThreadPoolExecutor(jobs) as pool:
            for outcome in pool.map(try_bug, bugs):
                print(outcome, flush=True)
                outcomes.append(outcome)
        noticed_by = sorted({o.noticed_by for o in outcomes if o.noticed_by is not None})
        code, output = checkouts.get().run_tests(*noticed_by) if noticed_by else (0, "")
    unnoticed = [outcome for outcome in outcomes if outcome.noticed_by is None]
    minutes = (time.perf_counter() - start) / 60
    print(
        f"{len(outcomes) - len(unnoticed)} of {len(outcomes)} bugs noticed, by "
        f"{len(noticed_by)} tests, in {minutes:.1f} minutes"
    )
    for outcome in unnoticed:
        print(f"NOT NOTICED: {outcome.bug.name} in {outcome.bug.file}")
    if code != 0:
        print(f"{last_lines(output)}\nTHE TESTS THAT NOTICED FAIL WITHOUT A BUG (exit code {code})")
        return len(unnoticed) + 1
    return len(unnoticed)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant bugs and see the tests fail.")
    parser.add_argument("--list", action="store_true", help="list the bugs; build and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these bugs alone")
    parser.add_argument("--jobs", type=int, default=1, help="bugs at once, each in its own copy")
    arguments = parser.parse_args()
    names = [bug.name for bug in BUGS]
    if repeated := {name for name in names if names.count(name) > 1}:
        parser.error(f"two bugs have one name: {', '.join(sorted(repeated))}")
    if unknown := set(arguments.only or []) - set(names):
        parser.error(f"no such bug: {', '.join(sorted(unknown))} (see --list)")
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {arguments.jobs}")
    bugs = [bug for bug in BUGS if not arguments.only or bug.name in arguments.only]
    if arguments.list:
        return 1 if show_list(bugs) else 0
    failures = 0
    for avx512 in (False, True):
        chosen = [bug for bug in bugs if bug.avx512 == avx512]
        if avx512 and chosen and not has_avx512():
            print(f"NOT PLANTED on this CPU, which lacks AVX-512: {len(chosen)} bugs")
        elif chosen:
            failures += plant(chosen, arguments.jobs, avx512)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
