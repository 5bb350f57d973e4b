"""The documented function that runs a convolution of spikes and the neurons behind it as one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops.functional.lif import check_neurons, lif
from realspike_ops.functional.unshared_conv import check_convolution, unshared_spike_conv
from realspike_ops.ops import unshared_conv_lif as fused
from realspike_ops.ops import unshared_matmul
from realspike_ops.ops import unshared_matmul_lif as products

# A current, or values and the packed spikes that select from them.
Added = Tensor | tuple[Tensor, Tensor]

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
    spikes: Tensor,  # [maps*T*B, Cin, H, W], or packed [maps*T*B, H, W, ceil(Cin / 32)]
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
    maps: int = 1,
    signed: bool = False,
    added: Sequence[Added] = (),
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
    with T*B as one dimension, timestep outermost. Where several maps of spikes meet the same
    weights, and other currents reach the same neurons, these are added before the neurons run.

    On the CPU the currents are never in memory: as soon as the currents of a position are known at
    all timesteps, its neurons run and their spikes are packed. This fused kernel takes up to 256
    timesteps (of all maps together), groups of one channel or of a multiple of 32 output channels,
    and four added currents. On a GPU the neurons are the second pass of the convolution's kernels,
    which take no amplitude; where ``algorithm="auto"`` multiplies there, they run where the sums
    are finished, for up to 16 timesteps, one map, nothing added, and one group or a multiple of 32
    output channels in each. In all other cases the convolution and the neurons run one after the
    other.

    Args:
        spikes, weight, bias, stride, padding, dilation, amplitude, scale: See
            `unshared_spike_conv`. With ``scale=None`` and uint8 weights the currents are in steps,
            so that ``v_threshold`` (and ``v_reset``) are to be in steps as well.
        check_binary, algorithm: See `unshared_spike_conv`.
        timesteps: T.
        maps: Maps of spikes that meet the same weights, side by side in the batch; their currents
            are added up.
        signed: Every map is two: where spikes are positive and, behind it, where they are
            negative. The current of the negative ones is subtracted.
        added: Currents that are added to that of the convolution, in this order: tensors of a
            floating dtype that broadcast against [T*B, Cout, OH, OW]; or pairs of such a tensor,
            without the batch, and packed spikes [T*B, OH, OW, ceil(Cout / 32)] (of ternary ones
            [2, ...]) that select from it: an identity shortcut.
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
    checks.check_positive_int("maps", maps)
    checks.check_flag("signed", signed)
    checks.check_flag("return_state", return_state)
    conv = check_convolution(
        spikes, weight, bias, stride, padding, dilation, amplitude, scale, check_binary
    )
    planes = maps * (2 if signed else 1)
    channels = weight.shape[2] * weight.shape[6]
    if spikes.shape[0] % (planes * timesteps) != 0:
        of_maps = f" and {planes} maps" if planes > 1 else ""
        raise ValueError(
            f"spikes must have a batch of T*B with T = {timesteps}{of_maps}; "
            f"got {checks.shape_text(spikes)}"
        )
    N = spikes.shape[0] // planes
    shape = (N, channels, *conv.output_size)
    joined = _joined(added, shape, spikes, maps, signed)
    tensors = (*conv.tensors, decay, v_threshold, v_init, *joined.values)
    if torch.is_grad_enabled() and any(
        isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors
    ):
        raise ValueError(
            "unshared_spike_conv_lif is for inference: call it under torch.no_grad(), or detach "
            "what requires a gradient"
        )
    # One zero, expanded, has the shape of the currents: the checks of neurons read no more than it.
    currents = torch.zeros((), dtype=torch.float32, device=spikes.device).expand(
        timesteps, N // timesteps, *shape[1:]
    )
    neurons = check_neurons(
        currents, decay, v_threshold, v_reset, reset, True, emission, "rectangular", v_init
    )
    multiplies = conv.multiplies(algorithm)
    on_card = multiplies and unshared_matmul.is_card(spikes.device)
    alone = planes == 1 and not joined.values
    if on_card and alone and products.fits(weight, timesteps):
        spikes, weight, bias, _, scale = conv.tensors
        return products.unshared_matmul_lif(
            spikes, weight, bias, scale, neurons.decay, neurons.v_threshold, neurons.v_init,
            timesteps, conv.output_size, *conv.geometry, conv.check_binary, neurons.form,
            return_state,
        )  # fmt: skip
    if fused.is_fused(spikes, weight, amplitude, timesteps, joined) and not on_card:
        return fused.unshared_conv_lif(
            *conv.tensors, neurons.decay, neurons.v_threshold, neurons.v_init, joined, timesteps,
            conv.output_size, *conv.geometry, conv.check_binary, neurons.form, return_state,
            multiplies,
        )  # fmt: skip
    currents = unshared_spike_conv(
        spikes, weight, bias, stride=stride, padding=padding, dilation=dilation,
        amplitude=amplitude, scale=scale, check_binary=check_binary, algorithm=algorithm,
    )  # fmt: skip
    currents = join_maps(currents, maps, signed)
    for values, words in zip(*joined[:2], strict=True):
        currents = currents + (values if words is None else _selected(values, words, channels))
    packed, v_last = lif(
        torch.unflatten(currents, 0, (timesteps, -1)) if N else currents.unsqueeze(0),
        decay=decay, v_threshold=v_threshold, v_reset=v_reset, reset=reset, emission=emission,
        v_init=v_init, return_state=True, packed=True,
    )  # fmt: skip
    packed = packed.flatten(-5, -4)
    return (packed, v_last) if return_state else packed


def join_maps(current: Tensor, maps: int, signed: bool) -> Tensor:
    """[maps (* 2)*N, ...] -> [N, ...]: add the maps up; positive minus negative where signed."""
    count = maps * (2 if signed else 1)
    if count == 1:
        return current
    # torch.export can follow a size that is a quotient, but not the size of a chunk.
    parts: Tensor | list[Tensor] = torch.unflatten(current, 0, (count, current.shape[0] // count))
    if signed:
        parts = [p - n for p, n in zip(parts[::2], parts[1::2], strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _selected(values: Tensor, words: Tensor, channels: int) -> Tensor:  # [N, Cout, OH, OW]
    """Return the values of the neurons that fired, and 0 of the others."""
    if words.dim() == 4:
        fired = torch.ops.realspike.unpack_spikes(words, channels, True) > 0
        return torch.where(fired, values, 0.0)
    return _selected(values, words[0], channels) - _selected(values, words[1], channels)


def _joined(
    added: Sequence[Added], shape: tuple[int, ...], spikes: Tensor, maps: int, signed: bool
) -> fused.Joined:
    """Check the currents that are added to one of `shape` [T*B, Cout, OH, OW]."""
    if not isinstance(added, list | tuple):  # a tensor would be as many currents as it has rows
        raise TypeError(
            "added must be a list or tuple of currents, [current] for one; "
            f"got {type(added).__name__}"
        )
    values: list[Tensor] = []
    selecting: list[Tensor | None] = []
    for i, each in enumerate(added):
        name = f"added[{i}]"
        value, words = each if isinstance(each, tuple) and len(each) == 2 else (each, None)
        checks.check_tensor(name, value)
        checks.check_dtype(name, value, checks.FLOATS)
        checks.check_device(name, value, "spikes", spikes)
        checks.check_no_tangent(added=value)
        against = shape if words is None else shape[1:]
        sizes = zip(reversed(value.shape), reversed(against), strict=False)
        if value.dim() > len(against) or any(own not in (1, size) for own, size in sizes):
            raise ValueError(
                f"{name} must broadcast against {checks.shape_text(against)}; "
                f"got {checks.shape_text(value)}"
            )
        if words is not None:
            checks.check_tensor(f"{name} spikes", words)
            checks.check_dtype(f"{name} spikes", words, (torch.int32,))
            checks.check_device(f"{name} spikes", words, "spikes", spikes)
            wanted = (shape[0], *shape[2:], -(-shape[1] // 32))
            wanted = (2, *wanted) if words.dim() == 5 else wanted
            checks.check_shape(f"{name} spikes", words, wanted, "[T*B, OH, OW, ceil(Cout / 32)]")
        values.append(value.to(torch.float32))
        selecting.append(words)
    return fused.Joined(values, selecting, maps, 2 if signed else 1)
