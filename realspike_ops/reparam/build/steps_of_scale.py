"""int8 synapses: a whole current in steps of one scale per channel, the neurons' too.

Currents, threshold and potential of a LIF layer that resets to 0, or by subtraction, or not at all
can be divided by any positive number without changing a spike. So all synapses that reach a layer
are rounded to steps of one scale per channel, and nothing is multiplied by it.
"""

import torch
from torch import Tensor

from realspike_ops.functional.quantize_weight import int8_scale
from realspike_ops.nn import FoldedLIF
from realspike_ops.reparam.build.synapses import PlannedCurrent, PlannedKernel


def kernels_of(planned: PlannedCurrent) -> list[PlannedKernel]:
    """Return the synapses that are rounded; one weight per neuron is kept in float32."""
    return [synapses for synapses in planned.synapses if isinstance(synapses, PlannedKernel)]


def current_scale(planned: PlannedCurrent) -> "Tensor | None":  # [C] float32
    """Return the size of a step of every channel; None where nothing is rounded."""
    kernels = kernels_of(planned)
    if not kernels:
        return None
    largest = torch.zeros(planned.grid[0], dtype=torch.float64)
    for kernel in kernels:
        own = largest[kernel.window.own_range.start : kernel.window.own_range.stop]
        own.copy_(torch.maximum(own, kernel.largest()))
    return int8_scale(largest)


def refusal_of_steps(planned: PlannedCurrent, neurons: FoldedLIF) -> "str | None":
    """Return why the current of these neurons cannot be in steps of a scale, or None."""
    if kernels_of(planned) and neurons.reset == "hard" and neurons.v_reset != 0:
        return (
            f"it is in steps of one scale per channel, and the layer has one v_reset, "
            f"{neurons.v_reset:g}, for all of them; v_reset=0, a soft reset or none can be in "
            "steps. Use weight_dtype=torch.float16 or torch.bfloat16"
        )
    return None
