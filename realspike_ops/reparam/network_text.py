"""A folded network as the table that `print` shows."""

import math

from torch import nn

from realspike_ops.nn import SynapticCurrent
from realspike_ops.reparam.units import bytes_text


def bytes_of(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def as_text(network) -> str:
    """Return a row for every step of a `FoldedNetwork`, and for every layer of a current."""
    rows = [("kind", "step", "reads", "layer", "weights")]
    for step in network.steps:
        module = network.get_submodule(step.name)
        kind, size = network.kind_of(step.name), bytes_text(bytes_of(module))
        if isinstance(module, SynapticCurrent):
            rows.append((kind, step.name, "", "sum of", size))
            readers = module.readers
            for n, source in enumerate(step.inputs):
                inner = readers[n] if n < len(readers) else None
                layer = getattr(inner, "layer", inner)
                again = n > 0 and inner is not None and inner is readers[n - 1]
                weights = "" if layer is None or again else bytes_text(bytes_of(layer))
                shown = "a current" if layer is None else _line(layer)
                shown = "the same weights" if again else shown
                signed = "+-" if getattr(inner, "signed", False) else ""
                rows.append(("", "", signed + source, shown, weights))
        else:
            size = "" if bytes_of(module) == 0 else size
            rows.append((kind, step.name, ", ".join(step.inputs), _line(module), size))
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    lines = [
        "  " + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]])
        + (f"  [{row[4]}]" if row[4] else "")
        for row in rows
    ]  # fmt: skip
    count = sum(math.prod(p.shape) for p in network.parameters())
    total = f"  {count:,} parameters, {bytes_text(bytes_of(network))}; output: {network.output}"
    return "\n".join(["FoldedNetwork(", *lines, total, ")"])


def _line(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"
