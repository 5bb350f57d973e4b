"""The documented function that runs a convolution of spikes and the neurons behind it as one."""

from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops.functional.lif import check_neurons, lif
from realspike_ops.functional.unshared_conv import check_convolution, unshared_spike_conv
from realspike_ops.ops import unshared_conv_lif as fused
from realspike_ops.ops import unshared_matmul
from realspike_ops.ops import unshared_matmul_lif as products

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from realspike_ops.functional.settings import ConvLifSettings


@overload
def unshared_spike_conv_lif(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    timesteps: int,
    return_state: Literal[False] = False,
    **settings: "Unpack[ConvLifSettings]",
) -> Tensor: ...
@overload
def unshared_spike_conv_lif(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    timesteps: int,
    return_state: Literal[True],
    **settings: "Unpack[ConvLifSettings]",
) -> tuple[Tensor, Tensor]: ...
@overload
def unshared_spike_conv_lif(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    timesteps: int,
    return_state: bool,
    **settings: "Unpack[ConvLifSettings]",
) -> Tensor | tuple[Tensor, Tensor]: ...


def unshared_spike_conv_lif(
    spikes: Tensor,  # [T*B, Cin, H, W], or packed [T*B, H, W, ceil(Cin / 32)]
    weight: Tensor,  # [OH, OW, G, KH, KW, Cin/G, Cout/G], or [1, 1, ...] for all positions
    bias: Tensor | None = None,  # [Cout] or [Cout, OH, OW]
    *,
    timesteps: int,
    decay: float | Tensor = 0.25,  # a tensor: [1], [Cout, 1, 1] or [Cout, OH, OW]
    v_threshold: float | Tensor = 0.5,  # a tensor: as decay
    v_reset: float | None = 0.0,
    reset: str | None = None,
    emission: str = "binary",
    v_init: Tensor | None = None,  # [B, Cout, OH, OW]
    return_state: bool = False,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    amplitude: Tensor | None = None,  # [Cin, H, W]
    scale: Tensor | None = None,  # [Cout]
    check_binary: bool | None = None,
    algorithm: str = "gather",
) -> (
    Tensor | tuple[Tensor, Tensor]
):  # [T*B, OH, OW, ceil(Cout / 32)] int32, or that and [B, Cout, OH, OW]
    r"""Convolve binary spikes and run LIF neurons on the currents: bits in, bits out.

    .. math::
        o = lif(unshared\_spike\_conv(spikes, weight, bias))

    Equal, bit for bit, to ``lif(currents, packed=True)`` of the currents of `unshared_spike_conv`,
    with T*B as one dimension, timestep outermost.

    On the CPU the currents are never in memory: as soon as the currents of a position are known at
    all timesteps, its neurons run and their spikes are packed. This fused kernel takes up to 256
    timesteps, and groups of a multiple of 32 output channels. On a GPU the neurons are the second
    pass of the convolution's kernels, which take no amplitude; where ``algorithm="auto"``
    multiplies, they run where the sums are finished, for up to 16 timesteps and one group or a
    multiple of 32 output channels in each. In all other cases the convolution and the neurons run
    one after the other.

    Args:
        spikes, weight, bias, stride, padding, dilation, amplitude, scale: See
            `unshared_spike_conv`. With ``scale=None`` and uint8 weights the currents are in steps,
            so that ``v_threshold`` (and ``v_reset``) are to be in steps as well.
        check_binary, algorithm: See `unshared_spike_conv`.
        timesteps: T.
        decay, v_threshold, v_reset, reset, emission, v_init, return_state: See
            `realspike_ops.lif`.

    Returns:
        int32 words [T*B, OH, OW, ceil(Cout / 32)], for ternary neurons
        [2, T*B, OH, OW, ceil(Cout / 32)]: the positive spikes, then the negative ones. With
        ``return_state``, (words, v_last), where v_last is float32.

    Raises:
        TypeError: if a tensor is not of an accepted dtype.
        ValueError: as `unshared_spike_conv` and `realspike_ops.lif` do; if the batch is not a
            multiple of ``timesteps``; if something requires a gradient.

    Note:
        For inference. Deterministic: the same bits for any number of threads.

    Reference:
        Guo et al., "Real Spike", ECCV 2022, equations (5), (6) and (11) to (13).
    """
    checks.check_positive_int("timesteps", timesteps)
    checks.check_choice("algorithm", algorithm, unshared_matmul.ALGORITHMS)
    conv = check_convolution(
        spikes, weight, bias, stride, padding, dilation, amplitude, scale, check_binary
    )
    N, channels = spikes.shape[0], weight.shape[2] * weight.shape[6]
    if N % timesteps != 0:
        raise ValueError(
            f"spikes must have a batch of T*B with T = {timesteps}; got {checks.shape_text(spikes)}"
        )
    tensors = (*conv.tensors, decay, v_threshold, v_init)
    if torch.is_grad_enabled() and any(
        isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors
    ):
        raise ValueError(
            "unshared_spike_conv_lif is for inference: call it under torch.no_grad(), or detach "
            "what requires a gradient"
        )
    # One zero, expanded, has the shape of the currents: the checks of neurons read no more than it.
    currents = torch.zeros((), dtype=torch.float32, device=spikes.device).expand(
        timesteps, N // timesteps, channels, *conv.output_size
    )
    neurons = check_neurons(
        currents, decay, v_threshold, v_reset, reset, True, emission, "rectangular", v_init
    )
    multiplies = conv.multiplies(algorithm)
    if multiplies and products.fits(weight, timesteps):
        spikes, weight, bias, _, scale = conv.tensors
        return products.unshared_matmul_lif(
            spikes, weight, bias, scale, neurons.decay, neurons.v_threshold, neurons.v_init,
            timesteps, conv.output_size, *conv.geometry, conv.check_binary, neurons.form,
            bool(return_state),
        )  # fmt: skip
    if fused.is_fused(spikes, weight, amplitude, timesteps) and not multiplies:
        return fused.unshared_conv_lif(
            *conv.tensors, neurons.decay, neurons.v_threshold, neurons.v_init, timesteps,
            conv.output_size, *conv.geometry, conv.check_binary, neurons.form, bool(return_state),
        )  # fmt: skip
    currents = unshared_spike_conv(
        spikes, weight, bias, stride=stride, padding=padding, dilation=dilation,
        amplitude=amplitude, scale=scale, check_binary=check_binary, algorithm=algorithm,
    )  # fmt: skip
    packed, v_last = lif(
        torch.unflatten(currents, 0, (timesteps, -1)) if N else currents.unsqueeze(0),
        decay=decay, v_threshold=v_threshold, v_reset=v_reset, reset=reset, emission=emission,
        v_init=v_init, return_state=True, packed=True,
    )  # fmt: skip
    packed = packed.flatten(-5, -4)
    return (packed, v_last) if return_state else packed
