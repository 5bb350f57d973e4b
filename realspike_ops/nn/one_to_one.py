"""One synapse per neuron: what an identity shortcut becomes."""

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops._checks import shape_text
from realspike_ops.nn.packed_spikes import PackedSpikes, as_dense


class _Select(torch.autograd.Function):
    """weight where a spike is positive, -weight where it is negative, else 0; backward as of the
    product."""

    @staticmethod
    def forward(ctx, spikes, weight):
        ctx.save_for_backward(spikes, weight)
        nothing = torch.zeros_like(weight)
        current = torch.where(spikes > 0, weight, nothing)
        return torch.where(spikes < 0, -weight, current)

    @staticmethod
    def backward(ctx, grad):
        spikes, weight = ctx.saved_tensors
        grad_spikes = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_spikes = (grad * weight).to(spikes.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * spikes).sum_to_size(weight.shape)
        return grad_spikes, grad_weight


class OneToOneSynapses(nn.Module):
    r"""Give every neuron a synapse of its own: the weight of those that fire, 0 of the others.

    .. math:: out[n, c, h, w] = W[c, h, w] \; o[n, c, h, w]

    The weight is selected by the spike, not multiplied with it.

    Args:
        weight: A tensor that broadcasts against one map: ``[1]``, ``[C, 1, 1]``, ``[C, H, W]`` or,
            for features, ``[F]``.

    Shape: [N, C, H, W] (or [N, F]) of 0 and 1, or of -1, 0 and 1 -> the same shape of currents.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        checks.check_tensor("weight", weight)
        self.weight = nn.Parameter(weight)

    def forward(self, spikes: "Tensor | PackedSpikes") -> Tensor:
        is_binary = isinstance(spikes, PackedSpikes) and not spikes.signed
        # The current is as large as the dense map: to expand the bits first costs no more memory.
        spikes = as_dense(spikes)
        checks.check_tensor("spikes", spikes)
        shape = spikes.shape[1:]
        if torch.broadcast_shapes(self.weight.shape, shape) != shape:
            raise ValueError(
                f"spikes must have maps that weight {shape_text(self.weight)} broadcasts against; "
                f"got shape {shape_text(spikes)}"
            )
        if is_binary and not (torch.is_grad_enabled() and self.weight.requires_grad):
            return torch.where(spikes != 0, self.weight, self.weight.new_zeros(()))
        return _Select.apply(spikes, self.weight)

    def extra_repr(self) -> str:
        return f"weight={shape_text(self.weight)}"
