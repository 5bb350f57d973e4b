"""The convolution whose currents drive LIF neurons, its CUDA kernels executed on the CPU.

Expected are the spikes and the potentials, to the bit, of the neuron written here, fed with the
currents of the kernels without it.
"""

import ctypes
from dataclasses import dataclass

import pytest
import simt_conv as conv
import simt_kernels as simt
import torch
from torch import Tensor

pytestmark = [simt.needs_compiler, pytest.mark.usefixtures("one_thread")]

RESETS = ("hard", "soft", "none", "soft_delayed")


PerNeuron = simt.record("lif.h", "PerNeuron")
AddedCurrent = simt.record("unshared_conv.h", "AddedCurrent")


class Neurons(ctypes.Structure):
    _fields_ = (
        *(("decay", PerNeuron), ("v_threshold", PerNeuron)),
        *((name, ctypes.c_void_p) for name in ("v_init", "v_last", "packed")),
        *(("T", ctypes.c_int64), ("v_reset", ctypes.c_float)),
        *(("reset", ctypes.c_int32), ("ternary", ctypes.c_int32)),
        *((name, ctypes.c_int64) for name in ("maps", "signs", "added_count")),
        ("added", ctypes.POINTER(AddedCurrent)),
    )


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    return simt.library()


@dataclass(frozen=True)
class Form:
    timesteps: int = 2
    reset: str = "hard"
    ternary: bool = False
    granularity: str = "layer"  # of decay and threshold
    state: bool = True  # v_init is given
    v_reset: float = 0.0
    maps: int = 1
    signs: int = 1
    added: str = ""  # a letter for each: see make_added


def currents(**changes) -> conv.Case:
    sizes = {"cin": 33, "cout": 40, "samples": 6, "size": (3, 2), "kernel": (2, 3), "rate": 0.4}
    return conv.Case(**{**sizes, "bias": "element", **changes})


CASES = [
    # groups of channels that words do not divide, alone and across words
    *((currents(cout=cout, bias=bias), Form()) for cout, bias in ((1, "none"), (65, "channel"))),
    (currents(cin=66, cout=66, groups=3), Form(timesteps=3)),
    # timesteps and batch
    *((currents(samples=6), Form(timesteps=T)) for T in (1, 2, 3, 6)),
    # every reset, signed spikes, one parameter per channel and per neuron
    *(
        (currents(), Form(3, reset, ternary, granularity, v_reset=v_reset))
        for reset, v_reset in (("hard", 0.25), ("soft", 0.0), ("none", 0.0), ("soft_delayed", 0.0))
        for ternary in (False, True)
        for granularity in ("channel", "element")
    ),
    (currents(), Form(3, granularity="element", state=False)),
    # whatever the first pass is: other weights, shared receptive fields, staged rows
    *((currents(weight=w), Form(reset="soft")) for w in ("bfloat16", "int8", "int8-scaled")),
    *((currents(weight=w, splits=3, tile=4), Form()) for w in ("float32", "int8-scaled")),
    (currents(samples=20, cout=48, staged=True), Form(timesteps=5)),
    *(
        (currents(cin=40, cout=40, groups=40, weight=w, tile=tile), Form(3, "soft"))
        for w in ("float32", "bfloat16", "int8", "int8-scaled")
        for tile in (0, 32)
    ),
    # maps through the same weights, and whatever else the neurons get
    *(
        (currents(samples=12, splits=splits, weight=w, tile=tile), Form(3, maps=maps, signs=signs))
        for maps, signs in ((2, 1), (1, 2), (2, 2))
        for splits, tile, w in ((0, 0, "float32"), (3, 4, "int8-scaled"))
    ),
    *((currents(cout=65), Form(3, added=added)) for added in ("m", "l", "b", "s", "t", "mstb")),
    (currents(samples=12, cout=65), Form(3, ternary=True, signs=2, added="ts")),
]


def make_added(form: Form, shape: tuple[int, ...], generator):
    """Return what is added to a current of `shape` [T*B, C, OH, OW]: values, structs, memory.

    m: a map; l: one that is channels_last; b: a bias; s: weights that spikes select; t: ternary
    spikes.
    """
    values, structs, alive = [], [], []
    for letter in form.added:
        value = torch.randn(shape if letter in "ml" else shape[1:], generator=generator)
        if letter == "l":
            value = value.contiguous(memory_format=torch.channels_last)
        if letter == "b":
            value = value[:, :1, :1].expand(shape[1:])
        signs = torch.ones(shape)
        words = [None, None]
        if letter in "st":
            signs = torch.randint(-1 if letter == "t" else 0, 2, shape, generator=generator)
            planes = [signs > 0, signs < 0][: 2 if letter == "t" else 1]
            words[: len(planes)] = [simt.pack(plane) for plane in planes]
        own = value.expand(shape)
        strides = (own.stride(0), own.stride(1), own.stride(3))
        addresses = (None if w is None else w.data_ptr() for w in words)
        structs.append(AddedCurrent(value.data_ptr(), *strides, *addresses))
        values.append(torch.where(signs > 0, own, torch.where(signs < 0, -own, 0.0)))
        alive += [value, words]
    return values, (AddedCurrent * max(1, len(structs)))(*structs), alive


def in_memory(values: Tensor) -> Tensor:
    """[..., C, H, W] in the memory order of the neurons, [..., H, W, C], as a flat tensor."""
    return values.movedim(-3, -1).contiguous().flatten()


def make_parameter(form: Form, shape, low: float, generator) -> tuple[Tensor, PerNeuron, Tensor]:
    """Returns values that broadcast against [C, OH, OW], the struct, and its memory."""
    sizes = {"layer": (1, 1, 1), "channel": (shape[0], 1, 1), "element": shape}[form.granularity]
    values = low + 0.5 * torch.rand(sizes, generator=generator)
    if form.granularity == "layer":
        return values, PerNeuron(None, values.item(), 1, 1), values
    memory = in_memory(values)
    return values, PerNeuron(memory.data_ptr(), float("nan"), 1, memory.numel()), memory


def fire(x: Tensor, v: Tensor, decay: Tensor, v_threshold: Tensor, form: Form):
    """x [T, B, C, OH, OW] -> (positive spikes, negative spikes, v after the last timestep)."""
    positive, negative = [], []
    for x_t in x:
        h = decay * v + x_t
        if form.reset == "soft_delayed":
            h = torch.where(v >= v_threshold, h - v_threshold, h)
            h = torch.where((-v >= v_threshold) & form.ternary, h + v_threshold, h)
        up = h >= v_threshold
        down = (-h >= v_threshold) & form.ternary
        after = {
            "hard": torch.full_like(h, form.v_reset),
            "soft": h + torch.where(down, v_threshold, -v_threshold),
        }.get(form.reset, h)
        v = torch.where(up | down, after, h)
        positive.append(up)
        negative.append(down)
    return torch.stack(positive), torch.stack(negative), v


@pytest.mark.parametrize(("case", "form"), CASES, ids=str)
def test_lif_fires_as_it_does_after_the_convolution(lib, case, form):
    spikes, weight, bias = conv.make_inputs(case)
    if case.weight.startswith("int8"):  # currents of about the size of the threshold
        weight = (weight / 64).round()
    T, (OH, OW) = form.timesteps, case.out_size
    shape, words = (case.cout, OH, OW), -(-case.cout // 32)
    B = case.samples // (T * form.maps * form.signs)
    generator = torch.Generator().manual_seed(2)
    decay, decay_struct, _decay = make_parameter(form, shape, 0.25, generator)
    v_threshold, threshold_struct, _threshold = make_parameter(form, shape, 0.5, generator)
    v_init = torch.randn(B, *shape, generator=generator) if form.state else torch.zeros(B, *shape)
    start = in_memory(v_init)

    whole = conv.call(lib, case, spikes, weight, bias)
    parts = whole.reshape(form.maps, form.signs, T * B, *shape)
    parts = parts[:, 0] - parts[:, 1] if form.signs == 2 else parts[:, 0]
    x = parts[0]
    for part in parts[1:]:
        x = x + part
    values, added, _added = make_added(form, tuple(x.shape), generator)
    for value in values:
        x = x + value
    x = x.reshape(T, B, *shape)
    positive, negative, v = fire(x, v_init, decay, v_threshold, form)
    expected = [simt.pack(positive.flatten(0, 1))]
    if form.ternary:
        expected.append(simt.pack(negative.flatten(0, 1)))
    assert 0 < positive.float().mean() < 1

    for shuffle in (0, 1):
        packed = torch.full((len(expected), T * B, OH, OW, words), -1, dtype=torch.int32)
        v_last = torch.full((v.numel(),), float("nan"))
        neurons = Neurons(
            **{"decay": decay_struct, "v_threshold": threshold_struct, "packed": packed.data_ptr()},
            v_init=start.data_ptr() if form.state else None,
            v_last=v_last.data_ptr(),
            T=T,
            v_reset=form.v_reset,
            reset=RESETS.index(form.reset),
            ternary=form.ternary,
            maps=form.maps,
            signs=form.signs,
            added_count=len(values),
            added=added,
        )
        # The output is not touched: it is nowhere.
        params, forced, _alive = conv.arguments_of(case, spikes, weight, bias, whole)
        params.out = None
        simt.call(
            *(lib.unshared_conv_lif_simt, ctypes.byref(params), ctypes.byref(neurons), forced),
            *(ctypes.c_int64(shuffle), ctypes.c_uint64(shuffle)),  # the second time, one block
        )
        assert torch.equal(packed, torch.stack(expected))
        bits = in_memory(v).view(torch.int32)
        assert torch.equal(v_last.view(torch.int32), bits)
