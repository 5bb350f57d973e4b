"""Names of nodes that are names of submodules too, in every reader."""

import keyword
import re

from torch import fx, nn

# The names of variables in the code that nirtorch generates.
_VARIABLES = frozenset({"state", "is_none", "initialized_state"})
_OWNERS = (nn.ModuleDict, fx.GraphModule)


class Names:
    """Gives every node a name of its own that hides nothing."""

    def __init__(self, *taken: str):
        self._taken = {*taken, *_VARIABLES}

    def __call__(self, wanted: str) -> str:
        name = re.sub(r"\W", "_", wanted, flags=re.ASCII)
        hides = keyword.iskeyword(name) or any(hasattr(owner, name) for owner in _OWNERS)
        if hides or not name or name.startswith("_"):
            name = f"node_{name}"
        unique, count = name, 1
        while unique in self._taken:
            count += 1
            unique = f"{name}_{count}"
        self._taken.add(unique)
        return unique
