"""Prints what the PyTorch beside this interpreter was built for: "CUDA 13.0", "CPU", "ROCm 6.4", or
nothing where there is none.

PyTorch is not imported, which takes seconds and may fail: its version.py is read. pip builds in an
isolated environment, whose path hides the packages of the environment that is installed into; but
the interpreter is that environment's, so its folders are looked through as well.
"""

import re
import site
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path


def folders() -> list[str]:
    """Return where this interpreter's packages lie, those that an isolated build hides too."""
    own = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        own.append(site.getusersitepackages())
    return [*sys.path, *own]


def built_for(folders: Iterable[str]) -> str:
    """Return what the first PyTorch in the folders was built for, or "" if none holds any."""
    for folder in folders:
        try:
            text = (Path(folder) / "torch" / "version.py").read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        for name, title in (("cuda", "CUDA"), ("hip", "ROCm")):
            # cuda: Optional[str] = '13.0'
            found = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
            if found:
                return f"{title} {found[1]}"
        return "CPU"
    return ""


if __name__ == "__main__":
    print(built_for(folders()))
