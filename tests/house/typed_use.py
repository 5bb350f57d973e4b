"""What a checker says about a user's code: read by `make lint`, never run.

An `assert_type` fails where an overload or a result goes wrong; an expected error that no longer is
one is reported as an unnecessary `pyright: ignore`.
"""

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import realspike_ops as rso
from realspike_ops import functional
from realspike_ops.nn import AtTimestep, Rearrange
from realspike_ops.nn.packed_spikes import PackedSpikes


def functions(x: Tensor, weight: Tensor, wanted: bool) -> None:
    assert_type(rso.lif(x), Tensor)
    assert_type(rso.lif(x, weight, decay=0.5, v_reset=None, surrogate=("atan", 2.0)), Tensor)
    assert_type(rso.lif(x, decay=weight, v_init=x[0], packed=True), Tensor)
    assert_type(rso.lif(x, return_state=False), Tensor)
    assert_type(rso.lif(x, return_state=True), tuple[Tensor, Tensor])
    assert_type(rso.lif(x, return_state=True, packed=True), tuple[Tensor, Tensor])
    assert_type(rso.lif(x, return_state=wanted), Tensor | tuple[Tensor, Tensor])
    assert_type(rso.lif(x, surrogate=rso.Surrogate("atan", 2.0)), Tensor)

    normed = rso.batch_norm_lif
    assert_type(normed(x, weight, None, None, None, residual=x, decay=0.5), Tensor)
    assert_type(normed(x, weight, weight, weight, weight, training=False), Tensor)
    assert_type(normed(x, None, None, None, None, return_state=True), tuple[Tensor, Tensor])
    stated = normed(x, None, None, None, None, return_state=wanted)
    assert_type(stated, Tensor | tuple[Tensor, Tensor])

    words = rso.pack_spikes(x)
    assert_type(words, Tensor)
    assert_type(rso.unpack_spikes(words, 32), Tensor)
    assert_type(rso.quantize_weight(weight), tuple[Tensor, Tensor])
    assert_type(rso.unshared_spike_conv(x, weight, stride=2, padding="same"), Tensor)
    fused = rso.unshared_spike_conv_lif
    assert_type(fused(x, weight, timesteps=4, padding=(1, 0)), Tensor)
    assert_type(fused(x, weight, timesteps=4, return_state=True), tuple[Tensor, Tensor])
    assert_type(fused(x, weight, timesteps=4, return_state=wanted), Tensor | tuple[Tensor, Tensor])
    before, size = functional.output_size((8, 8), (3, 3), 1, "same", 1)
    assert_type((before, size), tuple[tuple[int, int], tuple[int, int]])


def functions_refuse(x: Tensor, weight: Tensor) -> None:
    rso.lif(x, decy=0.5)  # pyright: ignore[reportCallIssue]
    rso.lif(x, decay="0.5")  # pyright: ignore[reportArgumentType]
    rso.lif(x, 0.5)  # pyright: ignore[reportArgumentType]
    rso.lif(x, return_state=True).sum()  # pyright: ignore[reportAttributeAccessIssue]
    rso.unshared_spike_conv(x, weight, stride="2")  # pyright: ignore[reportArgumentType]
    rso.unshared_spike_conv_lif(x, weight)  # pyright: ignore[reportCallIssue]
    rso.unshared_spike_conv_lif(  # pyright: ignore[reportCallIssue]
        x, weight, timesteps=4, surrogate="atan"
    )


def layers(x: Tensor, packed: PackedSpikes, wanted: bool) -> None:
    neurons = rso.RealSpikeLIF(4, "channel", (3, 8, 8))
    assert_type(neurons.forward(x), Tensor)
    assert_type(neurons.amplitude, nn.Parameter | None)
    assert_type(neurons.decay, float | Tensor)
    assert_type(neurons.half(), rso.RealSpikeLIF)
    folded = rso.FoldedLIF(4, decay=torch.ones(1))
    assert_type(folded.forward(x), Tensor)
    assert_type(folded.forward(x, packed=True), PackedSpikes)
    assert_type(folded.forward(x, packed=wanted), Tensor | PackedSpikes)
    assert_type(folded.in_steps_of(x), rso.FoldedLIF)

    conv = rso.UnsharedSpikeConv(3, 8, 3, padding="same", input_size=8)
    assert_type(conv.forward(packed), Tensor)
    assert_type(conv.forward(x), Tensor)
    assert_type(conv.fire(x, folded), PackedSpikes)
    assert_type(conv.weight, Tensor)
    assert_type(conv.bias, nn.Parameter | None)
    assert_type(conv.stride, tuple[int, int])
    assert_type(conv.threshold(0.5), float | Tensor)
    plain = nn.Conv2d(3, 8, 3)
    assert_type(rso.UnsharedSpikeConv.from_conv2d(plain, input_size=(8, 8)), rso.UnsharedSpikeConv)
    assert_type(rso.UnsharedSpikeConv.from_weight(x, input_size=8), rso.UnsharedSpikeConv)
    assert_type(rso.SpikeConv2d.from_conv2d(plain), rso.SpikeConv2d)
    assert_type(rso.SpikeConv2d.from_weight(x, scale=x), rso.SpikeConv2d)
    assert_type(rso.SpikeLinear.from_linear(nn.Linear(3, 8)), rso.SpikeLinear)
    line = rso.UnsharedSpikeConv1d(3, 8, 3, input_size=8, storage="factored")
    assert_type(line.forward(x), Tensor)
    assert_type(rso.UnsharedSpikeConv1d.from_conv1d(nn.Conv1d(3, 8, 3), x), rso.UnsharedSpikeConv1d)
    assert_type(rso.SpikeMaxPool2d(2).forward(packed), Tensor | PackedSpikes)
    assert_type(rso.SynapticCurrent({"a": conv}).forward(packed, x), Tensor)
    assert_type(rso.MeanOverTime(4).forward(x), Tensor)
    assert_type(AtTimestep(4, 0).forward(x), Tensor)
    assert_type(Rearrange(x, (3, 8, 8)).forward(x), Tensor)


def layers_refuse(x: Tensor) -> None:
    rso.RealSpikeLIF("4")  # pyright: ignore[reportArgumentType]
    rso.UnsharedSpikeConv(3, 8, 3)  # pyright: ignore[reportCallIssue]
    rso.SpikeConv2d(3, 8, (3, 3, 3))  # pyright: ignore[reportArgumentType]
    rso.SpikeConv2d.from_weight(x, stride=None)  # pyright: ignore[reportArgumentType]
