"""unshared_spike_conv_lif is unshared_spike_conv, then lif(packed=True): the same bits."""

import itertools

import pytest
import torch

import realspike_ops as rso
from realspike_ops.ops import unshared_conv_lif as fused

GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
H, W, OH, OW = 5, 6, 3, 6  # of 3 x 3 kernels in that geometry


def composed(spikes, weight, bias, timesteps, conv, neuron, v_init=None):
    currents = rso.unshared_spike_conv(spikes, weight, bias, **conv)
    steps = currents.unflatten(0, (timesteps, -1))
    packed, v_last = rso.lif(steps, **neuron, v_init=v_init, return_state=True, packed=True)
    return packed.flatten(-5, -4), v_last


def check(spikes, weight, bias, timesteps, conv, neuron, v_init=None):
    arguments = dict(timesteps=timesteps, **conv, **neuron, v_init=v_init)
    packed, v_last = rso.unshared_spike_conv_lif(
        spikes, weight, bias, **arguments, return_state=True
    )
    expected, expected_v = composed(spikes, weight, bias, timesteps, conv, neuron, v_init)
    assert packed.dtype == torch.int32
    assert torch.equal(packed, expected)
    assert torch.equal(v_last, expected_v)
    assert torch.equal(rso.unshared_spike_conv_lif(spikes, weight, bias, **arguments), packed)
    return packed


def make_weight(Cout_g, groups=1, Cin_g=37, positions=(OH, OW), kernel=(3, 3)):
    return torch.randn(*positions, groups, *kernel, Cin_g, Cout_g) * 0.2


def make_spikes(N, channels=37, rate=0.3, size=(H, W)):
    return (torch.rand(N, channels, *size) < rate).float()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_by_hand():
    # One channel, one pixel; two timesteps that both fire, and two channels out. The first reaches
    # its threshold exactly; the second, 0.25 below, fires once the rest of its potential is added.
    spikes = torch.ones(2, 1, 1, 1)
    weight = torch.tensor([0.5, 0.4]).view(1, 1, 1, 1, 1, 1, 2)
    packed, v_last = rso.unshared_spike_conv_lif(
        spikes, weight, timesteps=2, decay=0.5, v_threshold=0.5, return_state=True
    )
    assert packed.flatten().tolist() == [0b01, 0b11]
    assert v_last.flatten().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("Cout", [1, 31, 32, 33, 64, 130, 200, 513])
@pytest.mark.parametrize("timesteps", [1, 3, 4, 6])
def test_sizes(timesteps, Cout):
    for batch in (1, 3, 6):
        spikes = make_spikes(timesteps * batch)
        check(spikes, make_weight(Cout), torch.randn(Cout), timesteps, GEOMETRY, {})


@pytest.mark.parametrize("batch", [17, 40, 130])
def test_several_tiles_of_samples(batch):
    """4 * 130 samples are more than one task takes; the last tile is short."""
    spikes = make_spikes(4 * batch, 5, size=(3, 3))
    weight = make_weight(40, Cin_g=5, positions=(3, 3))
    packed = check(spikes, weight, None, 4, {"padding": 1}, {})
    assert 0 < rso.unpack_spikes(packed, 40).mean() < 1


FORMS = {
    "hard": {},
    "v_reset": {"v_reset": 0.1},
    "soft": {"v_reset": None},
    "none": {"reset": "none"},
    "delayed": {"reset": "soft_delayed"},
    "ternary": {"emission": "ternary"},
    "ternary-soft": {"emission": "ternary", "reset": "soft"},
    "ternary-delayed": {"emission": "ternary", "reset": "soft_delayed"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parameters", ["numbers", "layer", "channel", "element"])
def test_neurons(form, parameters):
    shape = {"layer": (1,), "channel": (45, 1, 1), "element": (45, OH, OW)}.get(parameters)
    neuron = {"decay": 0.6, "v_threshold": 0.8}
    if shape is not None:
        neuron = {"decay": torch.rand(shape), "v_threshold": torch.rand(shape) + 0.5}
    for v_init in (None, torch.randn(3, 45, OH, OW)):
        packed = check(
            *(make_spikes(15), make_weight(45), torch.randn(45, OH, OW), 5, GEOMETRY),
            {**neuron, **FORMS[form]},
            v_init,
        )
        assert packed.any()


@pytest.mark.parametrize("bias", [None, "channel", "element"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_storage(dtype, bias):
    bias = {"channel": torch.randn(70), "element": torch.randn(70, OH, OW)}.get(bias)
    weight, conv = make_weight(70), dict(GEOMETRY)
    scales = [None]
    if dtype == torch.uint8:
        weight, scale = rso.quantize_weight(weight)
        scales = [None, scale]
    weight = weight.to(dtype)
    for scale, shared in itertools.product(scales, (False, True)):
        kernels = weight[:1, :1] if shared else weight
        v_threshold = 0.5 if scale is not None or dtype != torch.uint8 else 40.0
        neuron = {"v_threshold": v_threshold}
        packed = check(make_spikes(8), kernels, bias, 4, {**conv, "scale": scale}, neuron)
        assert packed.any()


def test_factored():
    weight, amplitude = make_weight(70)[:1, :1], torch.rand(37, H, W)
    check(make_spikes(8), weight, None, 4, {**GEOMETRY, "amplitude": amplitude}, {})


@pytest.mark.parametrize(("groups", "Cout_g"), [(2, 32), (3, 64), (2, 5), (37, 1)])
def test_groups(groups, Cout_g):
    weight = make_weight(Cout_g, groups, Cin_g=3)
    check(make_spikes(6, 3 * groups), weight, None, 3, GEOMETRY, {})
    assert fused.fits(weight, 3) == (Cout_g % 32 == 0)


def test_what_is_added_by_hand():
    """Four channels; the second is silent, the third one's shortcut is silent, the last subtracts.

    The order of the sums decides: 1e8 + 0.5 is 1e8 in float32, -1e8 + 1e8 + 0.5 is 0.5.
    """
    spikes = torch.ones(1, 1, 1, 1)
    weight = torch.tensor([-1e8, 0.25, 0.25, 1.0]).view(1, 1, 1, 1, 1, 1, 4)
    words = torch.tensor([[[[[0b0011]]]], [[[[0b1000]]]]], dtype=torch.int32)
    shortcut = torch.tensor([1e8, 0.125, 9.0, 0.75])[:, None, None]
    added = [(shortcut, words), torch.tensor([0.5, 0.0, 0.25, 0.25])[:, None, None]]
    packed, v = rso.unshared_spike_conv_lif(
        spikes, weight, timesteps=1, v_threshold=0.5, added=added, return_state=True
    )
    assert packed.item() == 0b1101
    assert v.flatten().tolist() == [0.0, 0.375, 0.0, 0.0]
    packed = rso.unshared_spike_conv_lif(
        spikes, weight, timesteps=1, v_threshold=0.5, added=added[::-1]
    )
    assert packed.item() == 0b1100  # -1e8 + 0.5 is lost


def test_silent_shortcuts_add_a_positive_zero():
    """-0.0 + 0.0 is 0.0: ternary neurons whose threshold is 0 would take the other sign."""
    spikes, weight = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1, 1, 1, 33), -0.0)
    silent = torch.zeros(1, 1, 1, 2, dtype=torch.int32)
    packed, v = rso.unshared_spike_conv_lif(
        *(spikes, weight), timesteps=1, v_threshold=1.0, return_state=True,
        added=[torch.full((33, 1, 1), -0.0), (torch.full((33, 1, 1), 5.0), silent)],
    )  # fmt: skip
    assert not packed.any()
    assert not v.signbit().any()


def test_maps_and_signs_by_hand():
    """Two ternary maps through one weight: 0.5 * (1 - 0) + 0.5 * (0 - 1) + a bias of each map."""
    spikes = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(4, 1, 1, 1)
    weight = torch.full((1,) * 7, 0.5)
    _, v = rso.unshared_spike_conv_lif(
        spikes, weight, timesteps=1, maps=2, signed=True, v_threshold=9.0, return_state=True
    )
    assert v.item() == 0.0
    _, v = rso.unshared_spike_conv_lif(
        spikes, weight, timesteps=1, maps=4, v_threshold=9.0, return_state=True
    )
    assert v.item() == 1.0
    _, v = rso.unshared_spike_conv_lif(
        spikes, weight, timesteps=2, maps=2, v_threshold=9.0, decay=0.5, return_state=True
    )
    assert v.item() == 0.75  # timesteps of 0.5 and 0.5


def added_to(channels, batch, kinds):
    words = (-(-channels // 32),)
    spikes = rso.pack_spikes(make_spikes(batch, channels, 0.5, (OH, OW)))
    negative = rso.pack_spikes(make_spikes(batch, channels, 0.5, (OH, OW))) & ~spikes
    assert spikes.shape[-1:] == words
    weight = torch.randn(channels, OH, OW)
    maps = torch.randn(batch, channels, OH, OW)
    all_kinds = {
        "map": maps,
        "channels_last": maps.contiguous(memory_format=torch.channels_last),
        "turned": maps.transpose(2, 3).contiguous().transpose(2, 3),
        "of all samples": maps[:1],
        "bias": weight[:, :1, :1],
        "number": torch.tensor([0.25]),
        "half": maps.bfloat16(),
        "selected": (weight, spikes),
        "one weight": (torch.tensor([0.3]), spikes),
        "of a row": (weight[:, :1], spikes),
        "ternary": (
            weight.permute(1, 2, 0).contiguous().permute(2, 0, 1),
            torch.stack((spikes, negative)),
        ),
    }
    return [all_kinds[kind] for kind in kinds]


def by_hand(currents, added, channels):
    for each in added:
        value, words = each if isinstance(each, tuple) else (each, None)
        if words is None:
            currents = currents + value.float()
            continue
        planes = words.unsqueeze(0) if words.dim() == 4 else words
        dense = [rso.unpack_spikes(plane, channels) for plane in planes]
        signs = dense[0] - dense[1] if len(dense) == 2 else dense[0]
        currents = currents + torch.where(signs > 0, value, torch.where(signs < 0, -value, 0.0))
    return currents


ADDED = [
    *(["map"], ["channels_last"], ["turned"], ["of all samples"], ["bias"], ["number"], ["half"]),
    *(
        ["selected"],
        ["one weight"],
        ["of a row"],
        ["ternary"],
        ["map", "selected", "bias", "ternary"],
    ),
    ["bias", "map", "selected", "channels_last", "number"],  # more than a kernel takes
]


@pytest.mark.parametrize("kinds", ADDED, ids="+".join)
@pytest.mark.parametrize(("maps", "signed"), [(1, False), (1, True), (3, False), (2, True)])
@pytest.mark.parametrize(("groups", "Cout_g"), [(1, 70), (2, 32), (37, 1)])
def test_what_joins_the_current(groups, Cout_g, maps, signed, kinds):
    T, batch, channels = 3, 2, groups * Cout_g
    Cin_g = 37 if groups == 1 else 1
    weight = make_weight(Cout_g, groups, Cin_g)
    planes = maps * (2 if signed else 1)
    spikes = make_spikes(planes * T * batch, groups * Cin_g)
    added = added_to(channels, T * batch, kinds)
    bias = torch.randn(channels)
    parts = rso.unshared_spike_conv(spikes, weight, bias, **GEOMETRY).chunk(planes)
    if signed:
        parts = [p - n for p, n in zip(parts[::2], parts[1::2], strict=True)]
    currents = parts[0]
    for part in parts[1:]:
        currents = currents + part
    currents = by_hand(currents, added, channels)
    for emission in ("binary", "ternary"):
        expected, expected_v = rso.lif(
            currents.unflatten(0, (T, batch)), packed=True, emission=emission, return_state=True
        )
        packed, v = rso.unshared_spike_conv_lif(
            *(spikes, weight, bias), timesteps=T, maps=maps, signed=signed, added=added,
            emission=emission, return_state=True, **GEOMETRY,
        )  # fmt: skip
        assert torch.equal(packed, expected.flatten(-5, -4))
        assert torch.equal(v, expected_v)
        assert packed.any()


@pytest.mark.parametrize("batch", [1, 6, 130])
def test_what_joins_the_current_in_several_tiles(batch):
    """A tile has some sequences of each map and timestep, not neighbouring samples."""
    weight = make_weight(33, 1, 5, positions=(1, 1), kernel=(1, 1)).expand(3, 4, *(-1,) * 5)
    spikes, maps = make_spikes(2 * 4 * batch, 5, size=(3, 4)), torch.randn(4 * batch, 33, 3, 4)
    words = rso.pack_spikes(make_spikes(4 * batch, 33, size=(3, 4)))
    added = [maps, (torch.randn(33, 3, 4), words)]
    positive, negative = rso.unshared_spike_conv(spikes, weight).chunk(2)
    currents = by_hand(positive - negative, added, 33)
    expected = rso.lif(currents.unflatten(0, (4, batch)), packed=True).flatten(0, 1)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        packed = rso.unshared_spike_conv_lif(spikes, weight, timesteps=4, signed=True, added=added)
        torch.set_num_threads(1)
        assert torch.equal(packed, expected)


@pytest.mark.parametrize("batch", [1, 3, 6, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_depthwise(dtype, batch):
    """A channel of its own for every group: their neurons share words and tasks."""
    weight = make_weight(1, 70, Cin_g=1)
    assert fused.fits(weight, 2)
    if dtype == torch.uint8:
        weight, _ = rso.quantize_weight(weight)
    neuron = {"v_threshold": 0.5 if dtype != torch.uint8 else 40.0}
    packed = check(
        *(make_spikes(2 * batch, 70), weight.to(dtype), torch.randn(70), 2, GEOMETRY), neuron
    )
    assert packed.any()


def test_more_timesteps_than_a_task_takes():
    weight = make_weight(6, Cin_g=3, positions=(1, 1), kernel=(1, 1))
    assert fused.fits(weight, 256)
    assert not fused.fits(weight, 257)
    for timesteps in (255, 256, 257):
        spikes = make_spikes(2 * timesteps, 3, size=(1, 1))
        check(spikes, weight, None, timesteps, {}, {})


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_one_position_is_shared_out_by_sequences(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weight = make_weight(96, Cin_g=200, positions=(1, 1), kernel=(1, 1))
        check(make_spikes(4 * 33, 200, size=(1, 1)), weight, None, 4, {}, {})
    finally:
        torch.set_num_threads(before)


def test_spikes_as_they_come():
    spikes, weight = make_spikes(6), make_weight(33)
    expected = check(spikes, weight, None, 3, GEOMETRY, {})
    others = (
        spikes.contiguous(memory_format=torch.channels_last),
        spikes.bool(),
        rso.pack_spikes(spikes),
        torch.stack([spikes, spikes], -1)[..., 0],
    )
    for given in others:
        assert torch.equal(check(given, weight, None, 3, GEOMETRY, {}), expected)


def test_no_samples():
    weight = make_weight(33)
    packed, v_last = rso.unshared_spike_conv_lif(
        make_spikes(0), weight, timesteps=4, **GEOMETRY, return_state=True
    )
    assert packed.shape == (0, OH, OW, 2)
    assert v_last.shape == (0, 33, OH, OW)


def test_a_sequence_in_pieces():
    spikes, weight = make_spikes(8 * 2), make_weight(33)
    whole, v_whole = rso.unshared_spike_conv_lif(
        spikes, weight, timesteps=8, **GEOMETRY, return_state=True
    )
    first, v = rso.unshared_spike_conv_lif(
        spikes[:6], weight, timesteps=3, **GEOMETRY, return_state=True
    )
    second, v = rso.unshared_spike_conv_lif(
        spikes[6:], weight, timesteps=5, **GEOMETRY, v_init=v, return_state=True
    )
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(v, v_whole)


@pytest.mark.parametrize("keep_state", [False, True])
@pytest.mark.parametrize("ternary", [False, True])
def test_registration(ternary, keep_state):
    neuron = (0.25, 0.5, 0.0, "hard", False, ternary, "rectangular", 1.0)
    arguments = (
        *(make_spikes(6), make_weight(33), torch.randn(33), None, None, None, None, None),
        *(
            [torch.randn(6, 33, OH, OW)],
            [torch.empty(0).int()],
            1,
            1,
            3,
            (OH, OW),
            *GEOMETRY.values(),
            True,
            *neuron,
            keep_state,
        ),
    )
    torch.library.opcheck(torch.ops.realspike.unshared_conv_lif.default, arguments)


def test_compiles():
    spikes, weight = make_spikes(6), make_weight(33)

    def network(spikes):
        packed = rso.unshared_spike_conv_lif(spikes, weight, timesteps=3, **GEOMETRY)
        return rso.unpack_spikes(packed, 33)

    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(compiled(spikes), network(spikes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": 0}, "timesteps must be"),
        ({"timesteps": 4}, r"spikes must have a batch of T\*B with T = 4"),
        ({"decay": 1.5}, "decay must be"),
        ({"decay": torch.rand(7)}, "decay"),
        ({"v_threshold": torch.rand(2, 1, 1)}, "v_threshold"),
        ({"reset": "gentle"}, "reset must be"),
        ({"emission": "loud"}, "emission must be"),
        ({"v_init": torch.zeros(2, 33)}, "v_init must have shape"),
        ({"padding": 9}, "weight is for an output map"),
        ({"weight": torch.randn(OH, OW, 1, 3, 3, 37, 33, requires_grad=True)}, "for inference"),
        ({"decay": torch.rand(1, requires_grad=True)}, "for inference"),
        ({"spikes": torch.full((6, 37, H, W), 0.5)}, "0 or 1"),
        ({"maps": 0}, "maps must be"),
        ({"maps": 4}, r"batch of T\*B with T = 3 and 4 maps; got"),
        ({"signed": True, "timesteps": 6}, "T = 6 and 2 maps"),
        (
            {"added": [torch.zeros(5, 33, OH, OW)]},
            r"added\[0\] must broadcast against \[6, 33, 3, 6\]",
        ),
        ({"added": torch.zeros(6, 33, OH, OW)}, "added must be a list or tuple.*got Tensor"),
        ({"added": None}, "added must be a list or tuple.*got NoneType"),
        ({"added": [(torch.zeros(1),) * 3]}, r"added\[0\] must be a torch.Tensor; got tuple"),
        ({"added": [torch.zeros(1, 1), 3]}, r"added\[1\] must be a torch.Tensor; got int"),
        ({"added": [torch.zeros(1, dtype=torch.float64)]}, r"added\[0\] must have dtype"),
        ({"added": [torch.zeros(1, requires_grad=True)]}, "for inference"),
        (
            {"added": [(torch.zeros(6, 33, OH, OW), torch.zeros(6, OH, OW, 2).int())]},
            r"\[33, 3, 6\]",
        ),
        (
            {"added": [(torch.zeros(1), torch.zeros(6, OH, OW, 2))]},
            r"added\[0\] spikes must have dtype",
        ),
        ({"added": [(torch.zeros(1), torch.zeros(6, OH, OW, 1).int())]}, r"added\[0\] spikes must"),
    ],
)
def test_refusals(change, message):
    arguments = dict(spikes=make_spikes(6), weight=make_weight(33), timesteps=3, **GEOMETRY)
    with pytest.raises((ValueError, TypeError), match=message):
        rso.unshared_spike_conv_lif(**{**arguments, **change})
