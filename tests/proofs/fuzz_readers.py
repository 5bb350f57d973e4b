"""Searches inputs that make a reader run code, crash, hang, take memory or end in a traceback.

    python tests/proofs/fuzz_readers.py [--seconds N] [--corpus FOLDER] [READER ...]

Guided by coverage (atheris, the extra `fuzz`). What reaches new code is kept in the corpus, with
which the next search begins. An input that is found is written to tests/proofs/found/READER/, where
tests/proofs/test_readers.py reads it ever after. Exit code 1 if there is one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOUND = Path(__file__).parent / "found"
SECONDS, MEGABYTES = 10, 2048  # that one input may take
INSTRUMENTED = [
    *("pickletools", "realspike.checkpoint", "realspike.data", "realspike.inspect.folded_file"),
    *(
        "realspike.config.network_config",
        "realspike.config.run_config",
        "realspike.config.strict_yaml",
    ),
    *("realspike.train.history", "realspike.inspect.trained_file", "realspike_ops.safe_files"),
    *("realspike_ops.reparam.check.bounded_run", "realspike_ops.reparam.file"),
    "realspike_ops.reparam.layers_in_json",
]
NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")


def search(name: str, arguments: list[str]) -> None:
    """Search until libFuzzer, whose arguments these are, ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from readers import READERS, check

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        corpus = Path(arguments[0])
        for number, seed in enumerate(READERS[name].seeds(scratch)):
            (corpus / f"seed{number}").write_bytes(seed)

        def watch(event: str, values: tuple) -> None:
            opened = event == "open" and isinstance(values[0], str) and _writes(values[1])
            if event in NEVER or (opened and not values[0].startswith(folder)):
                sys.stderr.write(f"an input made Python {event} {values!r:.200}\n")
                os.abort()

        sys.addaudithook(watch)
        atheris.Setup([sys.argv[0], *arguments], lambda content: check(name, content, scratch))
        atheris.Fuzz()


def _writes(mode: "str | None") -> bool:
    return mode is not None and any(letter in mode for letter in "wax+")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=300, help="per reader (default: 300)")
    parser.add_argument("--corpus", type=Path, default=ROOT / "runs" / "fuzz")
    parser.add_argument("readers", nargs="*", metavar="READER")
    arguments = parser.parse_args()

    from readers import READERS

    if unknown := set(arguments.readers) - set(READERS):
        parser.error(f"no such reader: {', '.join(sorted(unknown))}; {', '.join(READERS)}")
    failed = []
    for name in arguments.readers or READERS:
        corpus, found = arguments.corpus / name, FOUND / name
        corpus.mkdir(parents=True, exist_ok=True)
        found.mkdir(parents=True, exist_ok=True)
        print(
            f"{name}: {arguments.seconds} s from {len(list(corpus.iterdir()))} inputs", flush=True
        )
        done = subprocess.run(
            [
                *(sys.executable, __file__, "--search", name, str(corpus)),
                f"-max_total_time={arguments.seconds}",
                f"-timeout={SECONDS}",
                f"-rss_limit_mb={MEGABYTES}",
                f"-artifact_prefix={found}/",
                *("-print_final_stats=1", "-max_len=100000", "-verbosity=0"),
            ],
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        if done.returncode:
            failed.append(name)
        if not any(found.iterdir()):
            found.rmdir()
    for name in failed:
        print(f"FOUND: inputs that {name} does not withstand, in {FOUND / name}/")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--search"]:
        search(sys.argv[2], sys.argv[3:])
    sys.exit(main())
