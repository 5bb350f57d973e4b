"""From planned synapses to a network: their size is checked before they are allocated."""

import operator

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.nn import FoldedLIF, SynapticCurrent
from realspike_ops.reparam.build.steps import Steps
from realspike_ops.reparam.build.steps_of_scale import refusal_of_steps, steps_of
from realspike_ops.reparam.build.synapses import PlannedCurrent
from realspike_ops.reparam.build.walk import Folding
from realspike_ops.reparam.encoding_call import Argument, EncodingCall
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.network import FoldedNetwork, Step
from realspike_ops.reparam.units import bytes_text


def allocate(folding: Folding, dtype: torch.dtype, scales: str = "largest") -> FoldedNetwork:
    """Build the network that `folding` planned, with synapses of `dtype`.

    Args:
        folding: The plan.
        dtype: The type of the synapses.
        scales: The scales of int8 synapses: "largest" or "power_of_two".

    Raises:
        ReparameterizationError: if the synapses cannot be of this type.
    """
    modules = dict(folding.modules)
    encoding, steps = [*folding.encoding], []
    timesteps = max(m.timesteps for m in modules.values() if isinstance(m, FoldedLIF))
    for step in folding.steps:
        if step.name not in folding.planned:
            steps.append(step)
            continue
        planned = folding.planned[step.name]
        own_dtype = _dtype_of(planned, dtype)
        try:
            # Sums over time follow the class scores alone: spikes stand behind the others.
            added = 1 if planned.neurons else timesteps
            units = steps_of(planned, scales, own_dtype == torch.int8, added)
            scale = units.scale  # [C]
            modules[step.name] = _built(planned, own_dtype, units)
            _check_finite(modules[step.name])
        except ValueError as error:
            largest = max(synapses.largest().max().item() for synapses in planned.synapses)
            name = str(own_dtype).removeprefix("torch.")
            raise ReparameterizationError(
                f"{step.name!r} cannot be {name}: {error}; its largest weight is {largest:.3g}"
            ) from error
        inputs = step.inputs
        if scale is not None:
            by_neuron = _by_neuron(scale, planned)
            for neurons in planned.neurons:
                lif = modules[neurons.step]
                assert isinstance(lif, FoldedLIF)
                modules[neurons.step] = lif.in_steps_of(by_neuron)
            if planned.has_real_part:
                # The step is part of the encoding, which computes with real values and may divide.
                name = folding.unique_name(f"{step.name}_real_in_steps")
                arguments = (Argument(0), Argument("scale"))
                modules[name] = EncodingCall(operator.truediv, arguments, {}, {"scale": by_neuron})
                encoding.append(Step(name, inputs[-1:]))
                inputs = (*inputs[:-1], name)
        steps.append(Step(step.name, inputs))
    steps = [*encoding, *steps]
    try:
        for name, module in modules.items():
            # Calls hold constants, which may be infinite (limits, masks).
            if name not in folding.planned and not isinstance(module, EncodingCall):
                _check_finite(module, f"{name}.")
    except ValueError as error:
        raise ReparameterizationError(str(error)) from error
    return FoldedNetwork(
        steps, modules, folding.output, folding.input_shape, folding.batch, folding.neurons
    ).eval()


def _dtype_of(planned: PlannedCurrent, dtype: torch.dtype) -> torch.dtype:
    """Return float32 in the place of int8 where no neurons read the current (the class scores).

    int8 weights need a threshold that takes their scale.
    """
    return torch.float32 if dtype == torch.int8 and not planned.neurons else dtype


def _by_neuron(scale: Tensor, planned: PlannedCurrent) -> Tensor:  # [C, 1, 1], [C, 1] or [F]
    C, H, W = planned.grid
    if planned.flat:
        return scale.repeat_interleave(H * W)
    return scale.view(C, *(1 for _ in range(planned.rank - 2)))


def _int8_refusal(folding: Folding) -> str | None:
    for planned in folding.planned.values():
        for neurons in planned.neurons:
            lif = folding.modules[neurons.step]
            assert isinstance(lif, FoldedLIF)
            reason = refusal_of_steps(planned, lif)
            if reason is not None:
                return f"{neurons.layer} cannot read a current of int8 weights: {reason}"
    return None


def check_plan(folding: Folding, dtype: torch.dtype, max_bytes: int) -> None:
    """Raise `ReparameterizationError` if the planned synapses would take more than ``max_bytes``,
    or if their neurons cannot read currents of `dtype`."""
    if dtype == torch.int8 and (reason := _int8_refusal(folding)):
        raise ReparameterizationError(reason)

    def size_of(planned: PlannedCurrent, dtype: torch.dtype) -> int:
        return sum(s.bytes(_dtype_of(planned, dtype)) for s in planned.synapses)

    def total_of(dtype: torch.dtype) -> int:
        return sum(size_of(planned, dtype) for planned in folding.planned.values())

    total = total_of(dtype)
    if total <= max_bytes:
        return
    sizes = {name: size_of(planned, dtype) for name, planned in folding.planned.items()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    shown = ", ".join(f"{name!r} {bytes_text(size)}" for name, size in largest)
    half, int8 = total_of(torch.float16), total_of(torch.int8)
    less = []
    if half < total:
        less.append(f"weight_dtype=torch.float16 or torch.bfloat16: {bytes_text(half)}")
    if int8 < min(half, total) and _int8_refusal(folding) is None:
        less.append(f"weight_dtype=torch.int8, which rounds the weights: {bytes_text(int8)}")
    shared = sum(
        s.shared_weights * _dtype_of(planned, dtype).itemsize
        for planned in folding.planned.values()
        for s in planned.synapses
    )
    less.append(
        f"amplitudes of granularity 'channel', whose kernels are shared: {bytes_text(shared)}"
    )
    raise ReparameterizationError(
        f"the synapses would take {bytes_text(total)} ({total:,} bytes), more than "
        f"max_bytes ({bytes_text(max_bytes)}); the largest are {shown}. What takes less: "
        f"{'; '.join(less)}. Or raise max_bytes"
    )


def _check_finite(module: nn.Module, prefix: str = "") -> None:
    """Refuse numbers that are not finite, in the model or in the type that they are stored in."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        checks.check_finite(prefix + name, tensor)


def _built(planned: PlannedCurrent, dtype: torch.dtype, steps: Steps) -> nn.Module:
    """Return a layer if it is alone; else a sum of several layers, or of one and a bias."""
    bias = None if planned.bias is None else steps.of(planned.bias)
    layers = []
    for synapses in planned.synapses:
        own_bias = bias if synapses.takes_bias else None
        layers.append(synapses.build(dtype, own_bias, steps))
        bias = bias if own_bias is None else None
    if planned.is_alone and layers[0].is_plain and bias is None:
        return layers[0].layer
    named = {}
    for layer, synapses in zip(layers, planned.synapses, strict=True):
        first, *others = synapses.sources
        name = f"from_{first}" + (f"_and_{len(others)}_more" if others else "")
        while name in named:
            name += "_again"
        named[name] = layer.layer if layer.is_plain else layer
    if bias is not None:
        # Added once per neuron: halving it would save nothing.
        bias = bias.to(torch.float64 if dtype == torch.float64 else torch.float32)
        bias = bias.squeeze(1) if planned.rank == 3 else bias  # [C, 1] or [C, L]
        bias = bias.flatten() if planned.flat else bias.contiguous()
    return SynapticCurrent(named, bias)
