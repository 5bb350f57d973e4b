"""Every reader withstands what the long search found, and damaged files: one line, no traceback."""

import random
from pathlib import Path

import pytest

for package in ("sklearn", "safetensors", "lightning", "yaml"):
    pytest.importorskip(package)

PROOFS = Path(__file__).parent

from readers import READERS, check

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", READERS)
def test_valid_inputs_are_read(name, tmp_path):
    seeds = READERS[name].seeds(tmp_path)
    assert seeds
    for seed in seeds:
        READERS[name].read(seed, tmp_path)


def damaged(content: bytes, chance: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(out) + 1)
        end = at + chance.choice((1, 1, 4, 30))
        match chance.randrange(5):
            case 0 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 1:
                del out[at:end]
            case 2:
                out[at:at] = out[at:end]
            case 3:
                out[at:end] = chance.randbytes(len(out[at:end]))
            case _:
                out[at:at] = chance.choice((b"9" * 40, b"-1", b"[" * 200, b"\xff", b"\0", b"null"))
    return bytes(out)


@pytest.mark.parametrize("name", READERS)
def test_damaged_and_found_files(name, tmp_path):
    chance = random.Random(0)
    seeds = READERS[name].seeds(tmp_path)
    for _ in range(60):
        check(name, damaged(chance.choice(seeds), chance), tmp_path)
    for path in sorted((PROOFS / "found" / name).glob("*")):
        check(name, path.read_bytes(), tmp_path)
