"""Changes one operator, number or condition of the Python code at a time, at random, and runs the
tests that should notice.

    python tests/proofs/mutants.py [--sample N] [--seed S] [--session FILE] [--again] [PATH ...]

The changes are cosmic-ray's (the extra `mutants`), one for each place in the text. Cosmic-ray's own
command runs one set of tests for every file and knows a change by its line number; here
tests_of.txt says which tests read which file, and a change is known by file, function and text: the
same seed chooses nearly the same sample when the code around it moves, and a session is resumed by
giving its file again. Works on a copy of the checkout, with the extension that is built in it.
mutants_that_change_nothing.txt lists, with the reason, what no test can notice. Exit code 1 if less
than 90 % of the others were noticed, or if the tests that noticed fail without a mutant.
"""

import argparse
import ast
import difflib
import fnmatch
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from limited_run import limited_run

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
MUTATED = (
    *("realspike_ops/functional/*.py", "realspike_ops/nn/**/*.py", "realspike_ops/reparam/**/*.py"),
    *("realspike_ops/ops/*.py", "python/realspike/**/*.py"),
)
TIME_LIMIT = 600  # seconds for the tests of one mutant
OUT_OF_TIME = f"more than {TIME_LIMIT} s"
SHARE = 0.9


@dataclass(frozen=True)
class Mutant:
    file: str
    function: str  # dotted, "" at the level of the module
    change: str  # the lines that differ: "- old" and "+ new", stripped
    code: str  # the whole file with the change

    @property
    def key(self) -> str:
        return f"{self.file} {self.function}\n{self.change}"


@dataclass(frozen=True)
class Place:
    """A place in the text and one way to change it."""

    file: str
    function: str
    line: str  # the text of the line, stripped
    operator: str
    occurrence: int  # of what the operator changes, in the file
    nth: int  # among equal lines and operators of the function, in their order

    def rank(self, seed: int) -> str:
        text = f"{seed} {self.file} {self.function} {self.line} {self.operator} {self.nth}"
        return hashlib.sha256(text.encode()).hexdigest()


def scopes(tree: ast.Module) -> list[tuple[int, int, str]]:
    """Return the first and last line and the dotted name of every function, outer ones first."""
    found = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}".lstrip(".")
                found.append((child.lineno, child.end_lineno, name))
            visit(child, name)

    visit(tree, "")
    return found


def annotations(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations begin and end: they say `X | None`, which computes nothing."""
    nodes = [
        node
        for parent in ast.walk(tree)
        for node in (getattr(parent, "annotation", None), getattr(parent, "returns", None))
        if isinstance(node, ast.AST)
    ]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes]


def places(file: str, seed: int) -> list[Place]:
    """Return one change for each place of the file that an operator of cosmic-ray can change."""
    source = (ROOT / file).read_text(encoding="utf-8")
    lines, tree = source.split("\n"), ast.parse(source)
    functions, silent = scopes(tree), annotations(tree)
    nodes = list(ast_nodes(get_ast(source)))
    at: dict[tuple, list[Place]] = {}
    seen: dict[tuple, int] = {}
    for name in plugins.operator_names():
        operator_class = plugins.get_operator(name)
        if operator_class.arguments():
            continue
        operator = operator_class()
        positions = (p for node in nodes for p in operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(positions):
            if any(begin <= start < end for begin, end in silent):
                continue
            function = max((s for s in functions if s[0] <= start[0] <= s[1]), default=(0, 0, ""))
            line = lines[start[0] - 1].strip()
            nth = seen[function, line, name] = seen.get((function, line, name), -1) + 1
            place = Place(file, function[2], line, name, occurrence, nth)
            at.setdefault(start, []).append(place)
    return [min(ways, key=lambda place: place.rank(seed)) for ways in at.values()]


def mutant(place: Place) -> Mutant:
    source = (ROOT / place.file).read_text(encoding="utf-8")
    code = mutate_code(source, plugins.get_operator(place.operator)(), place.occurrence)
    differing = difflib.unified_diff(source.split("\n"), code.split("\n"), lineterm="", n=0)
    change = [f"{d[0]} {d[1:].strip()}" for d in differing if d[:3] not in ("---", "+++", "@@ ")]
    return Mutant(place.file, place.function, "\n".join(change), code)


def blocks(path: Path) -> Iterator[list[str]]:
    """Yield the paragraphs of a file, without comments."""
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        if lines := [line for line in block.splitlines() if line and not line.startswith("#")]:
            yield lines


def changing_nothing() -> dict[str, str]:
    """Return the reason for every listed mutant, by its key."""
    reasons = {}
    for where, *change, because in blocks(HERE / "mutants_that_change_nothing.txt"):
        if not because.startswith("because "):
            sys.exit(f"mutants_that_change_nothing.txt: no reason for the mutant of {where}")
        file, _, function = where.partition(" ")
        reasons[f"{file} {function}\n" + "\n".join(change)] = because
    return reasons


def tests_of(file: str) -> list[str]:
    """Return the tests that read a file, the closest first."""
    for pattern, *tests in blocks(HERE / "tests_of.txt"):
        if fnmatch.fnmatch(file, pattern):
            return [f"tests/{test}" for line in tests for test in line.split()]
    sys.exit(f"tests_of.txt has no tests for {file}")


def copy_checkout(folder: Path) -> None:
    listed = subprocess.run(
        "git ls-files -z --cached --others --exclude-standard".split(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    extensions = [str(path.relative_to(ROOT)) for path in ROOT.glob("realspike_ops/_C*.so")]
    for name in filter(None, [*listed.split("\0"), *extensions]):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def run_tests(folder: Path, tests: list[str]) -> tuple[int | None, str]:
    """Return the exit code, None beyond the time limit, and the output."""
    search_path = [folder, folder / "python", os.environ.get("PYTHONPATH", "")]
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("-m", "not gpu and not slow", *tests),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in search_path if path),
        # Byte code is told apart by size and whole seconds: that of a mutant could outlive it.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return limited_run(command, folder, environment, TIME_LIMIT)


def try_mutant(folder: Path, mutant: Mutant) -> str:
    """Return what noticed the mutant, "" if nothing did."""
    source = folder / mutant.file
    text = source.read_text(encoding="utf-8")
    source.write_text(mutant.code, encoding="utf-8")
    try:
        code, output = run_tests(folder, tests_of(mutant.file))
    finally:
        source.write_text(text, encoding="utf-8")
    if code == 0:
        return ""
    if code is None:
        return OUT_OF_TIME
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    return failed[1] if failed else f"exit code {code}"


def sample(paths: list[str], count: int | None, seed: int) -> list[Mutant]:
    names = paths or sorted(
        str(path.relative_to(ROOT)) for pattern in MUTATED for path in ROOT.glob(pattern)
    )
    every = sorted((p for name in names for p in places(name, seed)), key=lambda p: p.rank(seed))
    print(f"{len(every)} places in {len(names)} files", flush=True)
    # cosmic-ray takes the * of `def f(*, x)` for an operator: what does not parse tests nothing.
    return list(itertools.islice(filter(is_program, map(mutant, every)), count))


def is_program(mutant: Mutant) -> bool:
    try:
        ast.parse(mutant.code)
    except SyntaxError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Change code at random and see the tests fail.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="these files alone")
    parser.add_argument("--sample", type=int, metavar="N", help="so many places; all without it")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--session", type=Path, default=ROOT / "build" / "mutants.jsonl", help="results, to resume"
    )
    parser.add_argument("--again", action="store_true", help="try anew what nothing noticed")
    arguments = parser.parse_args()
    session = arguments.session
    session.parent.mkdir(parents=True, exist_ok=True)
    lines = session.read_text(encoding="utf-8").splitlines() if session.is_file() else []
    results = dict(map(json.loads, lines))
    nothing = changing_nothing()
    mutants = sample(arguments.paths, arguments.sample, arguments.seed)
    tried = [mutant for mutant in mutants if mutant.key not in nothing]
    with tempfile.TemporaryDirectory(prefix="mutants_") as temporary:
        copy_checkout(Path(temporary))
        for number, one in enumerate(tried, 1):
            tried_before = results.get(one.key)
            if tried_before is not None and not (
                arguments.again and tried_before in ("", OUT_OF_TIME)
            ):
                continue
            results[one.key] = try_mutant(Path(temporary), one)
            with session.open("a", encoding="utf-8") as file:
                file.write(json.dumps([one.key, results[one.key]]) + "\n")
            print(f"{number}/{len(tried)}  {results[one.key] or 'SURVIVED ' + one.key}", flush=True)
        noticed_by = {results[one.key] for one in tried if results[one.key].startswith("tests/")}
        code, output = run_tests(Path(temporary), sorted(noticed_by)) if noticed_by else (0, "")
    # A slow machine is no test that noticed: what ran out of time counts neither way.
    decided = [one for one in tried if results[one.key] != OUT_OF_TIME]
    survivors = [one for one in decided if not results[one.key]]
    for one in survivors:
        print(f"NOT NOTICED: {one.key}")
    noticed = len(decided) - len(survivors)
    print(
        f"{noticed} of {len(decided)} mutants noticed ({noticed / max(len(decided), 1):.1%}); "
        f"{len(tried) - len(decided)} ran out of time, "
        f"{len(mutants) - len(tried)} are listed as changing nothing"
    )
    if code != 0:
        print(f"{output}\nTHE TESTS THAT NOTICED FAIL WITHOUT A MUTANT (exit code {code})")
    return 0 if code == 0 and noticed >= SHARE * len(decided) else 1


if __name__ == "__main__":
    sys.exit(main())
