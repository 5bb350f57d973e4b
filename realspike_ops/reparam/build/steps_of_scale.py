"""int8 synapses: a whole current in steps of one scale per channel, the neurons' too.

Currents, threshold and potential of a LIF layer that resets to 0, or by subtraction, or not at all
can be divided by any positive number without changing a spike. So all synapses that reach a layer
are rounded to steps of one scale per channel, and nothing is multiplied by it.

With scales that are powers of two, everything else that is added to them is rounded too, to a
power of two of a step that is as fine as exact sums allow: every sum, in steps or in the units of
the trained network, in any order, is then a sum of integers below 2^24.
"""

import math

import torch
from torch import Tensor

from realspike_ops.functional.quantize_weight import int8_scale
from realspike_ops.nn import FoldedLIF, OneToOneSynapses
from realspike_ops.reparam.build.steps import EXACT_SUMS, Steps
from realspike_ops.reparam.build.synapses import PlannedCurrent, PlannedKernel


def kernels_of(planned: PlannedCurrent) -> list[PlannedKernel]:
    """Return the synapses that are rounded; one weight per neuron is kept in float32."""
    return [synapses for synapses in planned.synapses if isinstance(synapses, PlannedKernel)]


def current_scale(planned: PlannedCurrent, scales: str) -> Tensor | None:  # [C] float32
    """Return the size of a step of every channel; None where nothing is rounded."""
    kernels = kernels_of(planned)
    if not kernels:
        return None
    largest = torch.zeros(planned.grid[0], dtype=torch.float64)
    for kernel in kernels:
        own = largest[kernel.window.own_range.start : kernel.window.own_range.stop]
        own.copy_(torch.maximum(own, kernel.largest()))
    return int8_scale(largest, scales)


def steps_of(planned: PlannedCurrent, scales: str, is_int8: bool, timesteps: int) -> Steps:
    """Return what a current is counted in.

    Args:
        planned: Of it.
        scales: Of int8 weights: "largest" or "power_of_two".
        is_int8: Whether its weights are rounded to int8.
        timesteps: Over how many its values may be added up.

    Raises:
        ValueError: if scales are powers of two, and sums are not exact for all of them.
    """
    steps = Steps(current_scale(planned, scales) if is_int8 else None)
    return steps if scales == "largest" else Steps(steps.scale, _finest(planned, steps, timesteps))


def _finest(planned: PlannedCurrent, steps: Steps, timesteps: int) -> float:
    """Return the finest power of two whose multiples all sums of a current are exact in."""
    total = torch.zeros(planned.grid[0], dtype=torch.float64)
    if planned.bias is not None:
        total += steps.of(planned.bias).abs().amax((1, 2))
    for synapses in planned.synapses:
        own = synapses.window.own_range
        total[own.start : own.stop] += synapses.total(steps)
    most = total.max().item() * timesteps
    # Rounding moves every number that is rounded by half of what it is rounded to, at most.
    rounded = [s for s in planned.synapses if steps.scale is None or s.kind is OneToOneSynapses]
    count = (1 + sum(synapses.synapses_of_a_neuron for synapses in rounded)) * timesteps
    room = EXACT_SUMS - 1 - count / 2
    finest = 2.0 ** math.ceil(math.log2(most / room)) if room > 0 and most > 0 else 1.0
    if room <= 0 or (steps.scale is not None and finest > 1):
        raise ValueError(
            f"scales='power_of_two' needs sums below 2^24 steps, in which float32 is exact: its "
            f"synapses can add up to {most:.4g} steps at one neuron, of {count:,} numbers; use "
            "scales='largest', or a layer of fewer connections"
        )
    return finest


def refusal_of_steps(planned: PlannedCurrent, neurons: FoldedLIF) -> str | None:
    """Return why the current of these neurons cannot be in steps of a scale, or None."""
    if kernels_of(planned) and neurons.reset == "hard" and neurons.v_reset != 0:
        return (
            f"it is in steps of one scale per channel, and the layer has one v_reset, "
            f"{neurons.v_reset:g}, for all of them; v_reset=0, a soft reset or none can be in "
            "steps. Use weight_dtype=torch.float16 or torch.bfloat16"
        )
    return None
