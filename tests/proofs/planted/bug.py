"""What a planted bug is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    old: str  # occurs `count` times in the file; every occurrence becomes `new`
    new: str
    tests: str  # arguments for pytest, separated by spaces
    k: str = ""  # the expression after -k
    count: int = 1
    avx512: bool = False  # in what is compiled, and can run, for that instruction set alone
