"""Neurons behind the sums of matrix units: the words and potentials of the gather and then `lif`.

int8 sums and those of whole numbers are exact, so every bit is the same. In the interpreter, and
on a GPU.
"""

import functools

import pytest
import torch
import triton
from helpers import binary, generator, normal
from matrix_units import products_of_bfloat16

import realspike_ops as rso
from realspike_ops.functional.conv_geometry import geometry_of
from realspike_ops.functional.lif import check_neurons
from realspike_ops.ops import unshared_conv, unshared_matmul, unshared_matmul_lif
from realspike_ops.ops.rounding_cuda import check_devices

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.fixture(autouse=True, scope="module")
def interpreter():
    with products_of_bfloat16():
        yield


def to(device, tensor):
    return tensor.to(device) if isinstance(tensor, torch.Tensor) else tensor


def fired(
    spikes, weight, bias=None, scale=None, *, timesteps, decay=0.25, v_threshold=0.5, v_reset=0.0,
    reset=None, emission="binary", v_init=None, return_state=True, padding=0, stride=1,
):  # fmt: skip
    """Call the kernel; the words, and v_last, are back on the CPU."""
    H, W = spikes.shape[2:]
    geometry, output = geometry_of(H, W, *weight.shape[3:5], stride, padding, 1)
    channels = weight.shape[2] * weight.shape[6]
    size = (timesteps, spikes.shape[0] // timesteps, channels, *output)
    neurons = check_neurons(
        torch.zeros(()).expand(size), decay, v_threshold, v_reset, reset, True, emission,
        "rectangular", v_init,
    )  # fmt: skip
    tensors = (spikes, weight, bias, scale, neurons.decay, neurons.v_threshold, neurons.v_init)
    tensors = [to(DEVICE, tensor) for tensor in tensors]
    packed, v_last = unshared_matmul_lif.run(
        *tensors, timesteps, output, *geometry, False, neurons.form, return_state
    )
    return packed.cpu(), to("cpu", v_last)


def assert_fires_as_the_gather(spikes, weight, bias=None, scale=None, **settings):
    expected = rso.unshared_spike_conv_lif(
        spikes, weight, bias, scale=scale, return_state=True, **settings
    )
    found = fired(spikes, weight, bias, scale, **settings)
    rate = rso.unpack_spikes(expected[0], weight.shape[2] * weight.shape[6]).mean()
    assert 0 < rate < 1, "the neurons of this case tell nothing"
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


def whole(shape, seed):
    return torch.randint(-40, 41, shape, generator=generator(seed)).float()


@pytest.mark.skipif(DEVICE == "cuda", reason="a card that fuses takes the place of none")
def test_a_compiler_that_fuses_is_refused_where_it_would_change_bits(monkeypatch):
    """Behind the sums, and in neurons. A sum itself has no product that could be fused."""
    anew = functools.cache(check_devices.__wrapped__)
    for module in (unshared_matmul, unshared_matmul_lif):
        monkeypatch.setattr(module, "check_devices", anew)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    monkeypatch.setattr(triton, "__version__", "3.6.0")
    spikes, weight = binary((4, 3, 2, 2), 1), whole((2, 2, 1, 1, 1, 3, 33), 2)
    run = unshared_conv.forward_with(unshared_matmul.launch)

    def convolved(weight, scale):
        fixed = ((2, 2), (1, 1), (0, 0), (1, 1), False, False)
        return run(spikes, weight, None, None, scale, *fixed)[0]

    assert torch.equal(convolved(weight, None), rso.unshared_spike_conv(spikes, weight))
    for call in (
        lambda: convolved((weight + 128).to(torch.uint8), torch.ones(33)),
        lambda: fired(spikes, weight, timesteps=2),
    ):
        with pytest.raises(RuntimeError, match=r"Triton 3\.6\.0 rounds a product and a sum"):
            call()


def test_by_hand():
    """One synapse of weight 3 and one of -1, threshold 4, decay 1/2, three timesteps, two maps."""
    spikes = torch.tensor([[1, 0], [1, 1], [1, 1], [0, 0], [1, 0], [1, 0]]).float()
    weight = torch.zeros(1, 1, 1, 1, 1, 2, 33)
    weight[..., 0, 0], weight[..., 1, 0], weight[..., 0, 32] = 3, -1, 4
    # Neuron 0, map 0: h = 3, 1.5 + 2, 1.75 + 3 >= 4. Map 1: 2, 1, 3.5. Neuron 32 fires at once.
    packed, v_last = fired(spikes[..., None, None], weight, timesteps=3, decay=0.5, v_threshold=4.0)
    words = packed.view(3, 2, 2).tolist()
    assert words == [[[0, 1], [0, 1]], [[0, 1], [0, 0]], [[1, 1], [0, 1]]]
    assert v_last[:, 0].flatten().tolist() == [0.0, 3.5]
    assert v_last[:, 32].flatten().tolist() == [0.0, 0.0]
    assert v_last[:, 1:32].abs().max() == 0


@pytest.mark.parametrize("reset", ["hard", "soft", "none", "soft_delayed"])
@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_every_neuron(emission, reset):
    weight = whole((1, 2, 1, 1, 2, 5, 33), 1)
    v_init = normal((2, 33, 1, 2), 2, 20.0)
    settings = {"emission": emission, "reset": reset, "v_threshold": 20.0, "decay": 0.75}
    settings["v_reset"] = 1.5 if reset == "hard" else 0.0
    spikes = binary((6, 5, 1, 3), 3)
    assert_fires_as_the_gather(spikes, weight, timesteps=3, v_init=v_init, **settings)


PARAMETERS = {"layer": (1,), "channel": (70, 1, 1), "element": (70, 2, 2)}


@pytest.mark.parametrize("size", PARAMETERS)
@pytest.mark.parametrize("shared", [False, True], ids=["unshared", "shared"])
def test_every_neuron_has_its_own_parameters(shared, size):
    decay = torch.rand(PARAMETERS[size], generator=generator(1))
    v_threshold = 10 + 10 * torch.rand(PARAMETERS[size], generator=generator(2))
    weight = whole((*((1, 1) if shared else (2, 2)), 1, 2, 2, 6, 70), 3)
    bias = whole((70, 2, 2), 4)
    parameters = {"decay": decay, "v_threshold": v_threshold}
    spikes = binary((10, 6, 3, 3), 5)
    assert_fires_as_the_gather(spikes, weight, bias, timesteps=2, **parameters)


@pytest.mark.parametrize("timesteps", [1, 2, 3, 5, 8, 16])
def test_all_timesteps_of_a_neuron_are_in_its_tile(timesteps):
    """More maps than a tile holds; scaled int8, padding, groups of whole words."""
    int8, scale = rso.quantize_weight(normal((1, 1, 2, 2, 1, 9, 64), 1))
    spikes = binary((timesteps * 9, 18, 2, 2), timesteps)
    settings = {"timesteps": timesteps, "padding": (1, 0), "v_threshold": 0.2}
    assert_fires_as_the_gather(spikes, int8, None, scale, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_types_of_weights(dtype):
    weight = whole((1, 2, 1, 1, 1, 40, 32), 1).to(dtype)
    assert_fires_as_the_gather(binary((4, 40, 1, 2), 2), weight, timesteps=2, v_threshold=8.0)


def test_nothing_is_kept_that_is_not_asked():
    spikes, weight = binary((4, 5, 2, 2), 1), whole((2, 2, 1, 1, 1, 5, 32), 2)
    words, v_last = fired(spikes, weight, timesteps=2, v_threshold=8.0, return_state=False)
    assert v_last is None
    assert torch.equal(words, fired(spikes, weight, timesteps=2, v_threshold=8.0)[0])
    words, v_last = fired(spikes[:0], weight, timesteps=2)
    assert words.shape == (0, 2, 2, 1)
    assert v_last.shape == (0, 32, 2, 2)


@pytest.mark.parametrize(
    ("groups", "channels", "timesteps", "fits"),
    [(1, 5, 16, True), (1, 5, 17, False), (2, 32, 4, True), (2, 40, 4, False), (1, 40, 1, True)],
)
def test_what_fits(groups, channels, timesteps, fits):
    weight = torch.empty(1, 1, groups, 1, 1, 4, channels)
    assert unshared_matmul_lif.fits(weight, timesteps) is fits
