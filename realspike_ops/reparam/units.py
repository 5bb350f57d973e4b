"""Numbers as texts with a unit that keeps them short."""


def bytes_text(count: float) -> str:
    return _text(count, 1024, (" B", " KiB", " MiB", " GiB"))


def count_text(count: float) -> str:
    return _text(count, 1000, ("", " k", " M", " G", " T"))


def joules_text(picojoules: float) -> str:
    return _text(picojoules, 1000, (" pJ", " nJ", " uJ", " mJ"))


def _text(number: float, step: int, units: tuple[str, ...]) -> str:
    """Write a number with four digits, in the first unit where it is below `step`, or the last."""
    for unit in units[:-1]:
        if number < step:
            return f"{number:.4g}{unit}"
        number /= step
    return f"{number:.4g}{units[-1]}"
