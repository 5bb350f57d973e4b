"""Rounding weights to int8: the documented function, and the steps that layers share."""

import torch
from torch import Tensor

from realspike_ops import _checks as checks

SCALES = ("largest", "power_of_two")


def quantize_weight(
    weight: Tensor,  # [OH, OW, G, KH, KW, Cin/G, Cout/G]
    *,
    scales: str = "largest",
) -> tuple[Tensor, Tensor]:  # uint8 of the same shape, and scale [Cout]
    """Round weights to int8, with one scale per output channel.

    ``weight[:, :, g, ..., co]`` is about ``scale[g * Cout/G + co] * (q[:, :, g, ..., co] - 128)``,
    where the scale is the largest magnitude of the channel over 127, or 1 if that is 0; ties round
    to even. A power of two as scale makes every product with it exact.

    Args:
        weight: In kernel order, of a floating dtype.
        scales: "largest": the scale as above; "power_of_two": the next power of two from it on.

    Returns:
        (q, scale): uint8, the int8 weight plus 128, as `unshared_spike_conv` takes it; float32.

    Raises:
        TypeError: if the dtype is not accepted.
        ValueError: if there are not 7 dimensions, a weight is not finite, or ``scales`` is another.
    """
    checks.check_tensor("weight", weight)
    checks.check_dtype("weight", weight, (*checks.FLOATS, torch.float64))
    if weight.dim() != 7:
        raise ValueError(
            "weight must have shape [OH, OW, groups, KH, KW, Cin/groups, Cout/groups]; "
            f"got {checks.shape_text(weight)}"
        )
    scale = int8_scale(weight.detach().abs().amax((0, 1, 3, 4, 5)), scales)  # [G, Cout/G]
    out = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    # Row by row of positions: little more than the result is ever held.
    for rows, quantized in zip(weight.detach(), out, strict=True):
        quantized.copy_(int8_steps(rows, scale))
    return out, scale.flatten()


def int8_scale(largest: Tensor, scales: str = "largest") -> Tensor:
    """Return the size of a step for weights of these magnitudes at most."""
    checks.check_choice("scales", scales, SCALES)
    largest, limits = largest.double(), torch.finfo(torch.float32)
    low, high = 127 * limits.tiny, limits.max  # a subnormal step would be rounded itself
    if not ((largest == 0) | ((low <= largest) & (largest <= high))).all():
        raise ValueError(
            "weight must be finite to be rounded to int8, and its largest magnitude in a channel "
            f"0 or from {low:.2g} to {high:.2g}; got magnitudes of {largest.min():.3g} to "
            f"{largest.max():.3g}"
        )
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (next_power_of_two(scale) if scales == "power_of_two" else scale).float()


def next_power_of_two(numbers: Tensor) -> Tensor:
    """Return the smallest powers of two that are not below positive numbers."""
    mantissa, exponent = torch.frexp(numbers)  # in [0.5, 1)
    return torch.ldexp(torch.ones_like(numbers), exponent - (mantissa == 0.5).int())


def in_steps(values: Tensor, scale: Tensor) -> Tensor:  # float64
    """Return weights, biases, thresholds or potentials as numbers of steps.

    All of them are divided by the size of a step, and the same spikes are fired.
    """
    return values.double() / scale.double()


def int8_steps(weight: Tensor, scale: Tensor) -> Tensor:  # [..., G, KH, KW, Cin/G, Cout/G] uint8
    """Round to steps of scale [G, Cout/G] and add 128."""
    steps = in_steps(weight, scale[:, None, None, None, :])
    return (steps.round_().clamp_(-127, 127) + 128).to(torch.uint8)
