"""The proof by execution that a graph computes what its model computes.

Both run on the same images, and every LIF layer emits the same random spikes in both. Half of the
neurons fire, so that nothing stays hidden behind neurons that are silent on an example.
"""

import zlib
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from realspike_ops.nn import RealSpikeLIF
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.trace import OTHER_VALUES

# A part of the largest value: the order of sums differs where a layout does.
_TOLERANCE = 1e-4
_SEED = 8_403_017_265


def prove(model: nn.Module, graph: fx.GraphModule, example: Tensor, batch_is_free: bool) -> None:
    """Raise `ReparameterizationError` unless `graph` gives what `model` gives, a copy of it.

    Args:
        model: A network in eval mode; its forward is run, and nothing else changes it.
        example: The rows that the graph was recorded for.
        batch_is_free: Whether twice as many rows are tried as well.
    """
    generator = torch.Generator().manual_seed(0)
    proven, reason = False, None
    for times in (1, 2) if batch_is_free else (1,):
        x = torch.cat([example] * times)
        if x.is_floating_point():
            x = x + torch.randn(x.shape, generator=generator, dtype=x.dtype)
        try:
            expected = _run(model, model, x)
        except Exception as error:
            # Some models take no single image: they change in place what they repeat over time.
            reason = reason or error
            continue
        got = _run(graph, fx.Interpreter(graph).run, x)
        proven = True
        if (name := first_difference(expected, got)) is None:
            continue
        if first_difference(expected, _run(model, model, x)) is not None:
            raise ReparameterizationError(OTHER_VALUES)
        raise ReparameterizationError(
            f"forward() cannot be followed: {name} would be another than in the model, for a batch "
            f"of {len(x)}; the usual causes are numbers computed from tensors or from the size of "
            "the batch, and changes that PyTorch does not see (numpy, .data)"
        )
    if not proven:
        raise ReparameterizationError(f"the model cannot be run on example_input: {reason}")


def _run(module: nn.Module, call, x: Tensor) -> list[tuple[str, Tensor]]:
    """Return the currents of all LIF layers, in the order in which they run, and the outputs."""
    seen: list[tuple[str, Tensor]] = []
    calls: Counter[str] = Counter()
    neurons = [(n, m) for n, m in module.named_modules() if isinstance(m, RealSpikeLIF)]

    def emits(name: str, lif: RealSpikeLIF):
        def forward(x: Tensor) -> Tensor:
            seen.append((f"the current of {name!r}", x.clone()))
            calls[name] += 1
            seed = zlib.crc32(f"{name} {calls[name]}".encode())
            generator = torch.Generator().manual_seed(seed)
            low = -1 if lif.emission == "ternary" else 0
            spikes = torch.randint(low, 2, x.shape, generator=generator, device="cpu").to(x.dtype)
            amplitude = lif.fitted(x.dim() - 1).get("amplitude")
            return spikes if amplitude is None else spikes * amplitude

        return forward

    for name, lif in neurons:
        lif.forward = emits(name, lif)
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            torch.manual_seed(_SEED)  # one that no forward sets
            result = call(x.clone())
    finally:
        for _, lif in neurons:
            del lif.forward
    outputs = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
    return seen + [("the output", t) for t in outputs]


def first_difference(a: list, b: list) -> str | None:
    """Return the name of the first of the named tensors that are not equal, up to rounding."""
    for (name, x), (_, y) in zip(a, b, strict=False):
        if x.shape != y.shape or x.dtype != y.dtype or not _close(x, y):
            return name
    return None if len(a) == len(b) else "the number of outputs"


def _close(x: Tensor, y: Tensor) -> bool:
    if not x.is_floating_point():
        return torch.equal(x, y)
    largest = x.nan_to_num(0, 0, 0).abs().amax().item() if x.numel() else 0.0
    return torch.allclose(x, y, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)
