"""One synapse per neuron: an identity shortcut becomes this layer."""

from typing import Any

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops._checks import shape_text
from realspike_ops.nn.packed_spikes import PackedSpikes, as_dense
from realspike_ops.nn.synapses.storage import Stored


class _Select(torch.autograd.Function):
    """weight where a spike is positive, -weight where it is negative, else 0.

    The gradients are those of the product of spike and weight.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def forward(spikes: Tensor, weight: Tensor) -> Tensor:
        nothing = torch.zeros_like(weight)
        current = torch.where(spikes > 0, weight, nothing)
        return torch.where(spikes < 0, -weight, current)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        spikes, weight = ctx.saved_tensors
        grad_spikes = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_spikes = (grad * weight).to(spikes.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * spikes).sum_to_size(weight.shape)
        return grad_spikes, grad_weight


class OneToOneSynapses(Stored):
    r"""Give every neuron a synapse of its own: the weight of those that fire, 0 of the others.

    .. math:: out[n, c, h, w] = W[c, h, w] \; o[n, c, h, w]

    The spike selects the weight; the two are not multiplied. Whatever type the weight is stored in,
    the current is float32, or float64 for spikes in float64.

    Args:
        weight: A tensor that broadcasts against one map: ``[1]``, ``[C, 1, 1]``, ``[C, H, W]`` or,
            for features, ``[F]``.

    Shape: [N, C, H, W] (or [N, F]) of 0 and 1, or of -1, 0 and 1 -> the same shape of currents.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        checks.check_tensor("weight", weight)
        if weight.dim() == 3:  # channels side by side, as the spikes lie in memory
            weight = weight.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        self.weight = nn.Parameter(weight)

    def forward(self, spikes: Tensor | PackedSpikes) -> Tensor:
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        reads_bits = self.weight.dtype in checks.FLOATS and not trains
        if isinstance(spikes, PackedSpikes) and reads_bits:
            return self._depthwise(spikes)
        spikes = as_dense(spikes)
        checks.check_tensor("spikes", spikes)
        checks.check_no_tangent(spikes=spikes, weight=self.weight)
        self._check_map(tuple(spikes.shape[1:]))
        weight = self.weight.to(torch.promote_types(spikes.dtype, torch.float32))
        current: Tensor = _Select.apply(spikes, weight)
        return current

    def _depthwise(self, spikes: PackedSpikes) -> Tensor:
        """Convolve with a 1 x 1 kernel of its own for every position and channel."""
        words = spikes.planes()  # [N, H, W, words], or of features [N, words]
        channels, pixels = spikes.channels, words.shape[1:-1]
        self._check_map((channels, *pixels))
        weight = self.weight if pixels else self.weight[..., None, None]
        words = words if pixels else words[:, None, None]
        weight = weight.expand(channels, *words.shape[1:3]).permute(1, 2, 0)  # [H, W, C]
        weight = weight[..., None, None, None, None]
        current = functional.unshared_spike_conv(words, weight, check_binary=False)
        current = current if pixels else current.flatten(1)
        if not spikes.signed:
            return current
        signs: Tensor = torch.unflatten(current, 0, (2, current.shape[0] // 2))
        return signs[0] - signs[1]

    def _check_map(self, shape: tuple[int, ...]) -> None:
        sizes = zip(reversed(self.weight.shape), reversed(shape), strict=False)
        if self.weight.dim() > len(shape) or any(own not in (1, size) for own, size in sizes):
            raise ValueError(
                f"spikes must have maps that weight {shape_text(self.weight)} broadcasts against; "
                f"got maps of {shape_text(shape)}"
            )

    def reset_parameters(self) -> None:
        """Set every weight to 1: an identity shortcut of spikes."""
        nn.init.ones_(self.weight)

    def extra_repr(self) -> str:
        return f"weight={shape_text(self.weight)}"
