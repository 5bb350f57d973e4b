"""Errors about names that are not known, with the nearest one that is."""

import difflib
import reprlib
from collections.abc import Iterable

# What others say, and what they mean by it, where letters alone tell another name or none.
_MEANT = {
    **{"gpu": "cuda", "fp32": "32-true", "float32": "32-true", "32": "32-true"},
    **{"bfloat16": "bf16-mixed", "mean": "average", "neuron": "element", "binary": "none"},
    **{"vth": "v_threshold", "dataset": "name", "data_dir": "root", "model": "architecture"},
    **{"grad_clip": "clip_gradient", "dtype": "precision", "resnet18": "sew_resnet18"},
}
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80
_brief.maxlevel, _brief.maxlist, _brief.maxdict = 1, 3, 3


def shown(value: object) -> str:
    """Return ``repr(value)``, short however long, deep or entangled the value is."""
    return _brief.repr(value)


def nearest(name: object, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for what ``name`` means or is most like, or nothing."""
    name, known = name[:80].lower() if isinstance(name, str) else "", list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    # An abbreviation: lr, learning_rate.
    initials = ("".join(word[:1] for word in k.rpartition(".")[2].split("_")) for k in known)
    close = [k for k, short in zip(known, initials, strict=True) if short == name] or close
    longer = [k for k in known if len(name) > 2 and k.startswith(name)]
    close = longer if len(longer) == 1 else close
    meant = _MEANT.get(name.rpartition(".")[2].partition(":")[0])  # training.dtype, gpu:0
    close = [k for k in known if k.rpartition(".")[2] == meant] or close
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(what: str, value: object, choices: Iterable[str], own: str = "") -> None:
    """Raise ValueError, naming the choices and the nearest one, unless ``value`` is a choice.

    ``own`` is the form of what may be given instead, and is named too.
    """
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        one_of = "one of " if len(choices) > 1 else ""
        raise ValueError(
            f"{what} must be {one_of}{', '.join(choices)}{own and ' or '}{own}; got {shown(value)}"
            f"{nearest(value, choices)}"
        )


def check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for the first of ``names`` that is not in ``known``."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {shown(name)}{nearest(name, known)}")
