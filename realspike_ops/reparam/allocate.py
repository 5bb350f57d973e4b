"""From planned synapses to a network: their size is checked before they are allocated."""

import torch
from torch import Tensor, nn

from realspike_ops.nn import SynapticCurrent
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.folding import Folding, PlannedCurrent
from realspike_ops.reparam.network import FoldedNetwork, Step, bytes_text


def allocate(folding: Folding, dtype: torch.dtype, max_bytes: int) -> FoldedNetwork:
    """Build the network that `folding` planned, with synapses of `dtype`.

    Raises:
        ReparameterizationError: if the synapses would take more than ``max_bytes``.
    """
    _check_size(folding.planned, dtype, max_bytes)
    modules = dict(folding.modules)
    steps = [*folding.encoding]
    flattened: dict[str, str] = {}
    for step in folding.steps:
        if step.name not in folding.planned:
            steps.append(step)
            continue
        planned = folding.planned[step.name]
        inputs = step.inputs
        if planned.reads_features_of_maps:
            (source,) = inputs
            if source not in flattened:
                flattened[source] = folding.unique_name("flatten")
                modules[flattened[source]] = nn.Flatten()
                steps.append(Step(flattened[source], inputs))
            inputs = (flattened[source],)
        modules[step.name] = _built(planned, dtype)
        steps.append(Step(step.name, inputs))
    return FoldedNetwork(steps, modules, folding.output_step).eval()


def _check_size(planned: dict[str, PlannedCurrent], dtype: torch.dtype, max_bytes: int) -> None:
    weights = {name: sum(s.weights for s in p.synapses) for name, p in planned.items()}
    total = sum(weights.values())
    if total * dtype.itemsize <= max_bytes:
        return

    def size(count: int, itemsize: int = dtype.itemsize) -> str:
        return bytes_text(count * itemsize)

    largest = sorted(weights.items(), key=lambda item: -item[1])[:3]
    shown = ", ".join(f"{name!r} {size(count)}" for name, count in largest)
    shared = sum(s.shared_weights for p in planned.values() for s in p.synapses)
    half = f"weight_dtype=torch.float16 or torch.bfloat16: {size(total, 2)}; "
    half = "" if dtype.itemsize <= 2 else half
    raise ReparameterizationError(
        f"the synapses would take {size(total)} ({total * dtype.itemsize:,} bytes), more than "
        f"max_bytes ({bytes_text(max_bytes)}); the largest are {shown}. What takes less: {half}"
        f"amplitudes of granularity 'channel', whose kernels are shared: {size(shared)}. Or raise "
        "max_bytes"
    )


def _built(planned: PlannedCurrent, dtype: torch.dtype) -> nn.Module:
    """One layer where that is all; else the sum of several, or of one and a bias."""
    own_bias = planned.bias if planned.is_alone else None
    layers = [synapses.build(dtype, own_bias) for synapses in planned.synapses]
    if planned.reads_features_of_maps:
        layers[0].flatten = None  # a step of its own
    has_bias = hasattr(layers[0].layer, "bias")
    if planned.is_alone and layers[0].is_plain and (has_bias or planned.bias is None):
        return layers[0].layer
    if has_bias:
        layers[0].layer.bias = None  # it is added behind the sum
    named = {}
    for layer, synapses in zip(layers, planned.synapses, strict=True):
        name = f"from_{synapses.source}"
        while name in named:
            name += "_again"
        named[name] = layer.layer if layer.is_plain else layer
    return SynapticCurrent(named, _bias(planned, dtype))


def _bias(planned: PlannedCurrent, dtype: torch.dtype) -> "Tensor | None":
    if planned.bias is None:
        return None
    # Added once per neuron: halving it would save nothing.
    bias = planned.bias.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return bias.flatten() if planned.flat else bias.contiguous()
