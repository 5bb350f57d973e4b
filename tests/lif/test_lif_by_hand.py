"""realspike_ops.lif in tables by hand; threshold 0.5 and decay 0.25 unless stated."""

import pytest
import torch
from lif_cases import as_channels_last

import realspike_ops as rso

NAN, INF = float("nan"), float("inf")
BELOW_HALF = 0.5 - 2**-25  # the float32 before 0.5


def sequence(values, device) -> torch.Tensor:  # [T, 1]
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]


SPIKES = {
    # id: (x, neuron, spikes, v_last)
    "tie-fires": ([0.5], {}, [1], 0.0),
    "one-ulp-below-is-silent": ([BELOW_HALF], {}, [0], BELOW_HALF),
    "above-fires": ([0.75], {}, [1], 0.0),
    "tie-through-decay": ([0.25, 0.4375], {}, [0, 1], 0.0),
    "one-ulp-below-through-decay": ([0.25, 0.4375 - 2**-25], {}, [0, 0], BELOW_HALF),
    "tie-from-a-negative-potential": ([-1.0, 0.75], {}, [0, 1], 0.0),
    "tie-after-two-decays": ([0.25, 0.0, 0.484375], {}, [0, 0, 1], 0.0),
    "reset-forgets-the-excess": ([2.0, 0.25], {}, [1, 0], 0.25),
    "decay-0-forgets": ([0.25, 0.25], {"decay": 0.0}, [0, 0], 0.25),
    "decay-0-tie": ([0.25, 0.5], {"decay": 0.0}, [0, 1], 0.0),
    "decay-1-adds-up-to-ties": ([0.25] * 5, {"decay": 1.0}, [0, 1, 0, 1, 0], 0.25),
    "decay-as-int": ([0.25] * 2, {"decay": 1}, [0, 1], 0.0),
    "threshold-1": ([0.75, 0.8125, 1.0], {"v_threshold": 1.0}, [0, 1, 1], 0.0),
    "threshold-0-fires-at-rest": ([0.0, -0.25, 0.0625], {"v_threshold": 0.0}, [1, 0, 1], 0.0),
    "negative-threshold": ([-0.5, -0.75], {"v_threshold": -0.5}, [1, 0], -0.75),
    "reset-to-a-value": ([0.5, 0.5625, 0.5], {"v_reset": -0.25}, [1, 1, 0], 0.4375),
    "reset-above-the-threshold-stays": ([0.5, -1.0], {"v_reset": 6.0}, [1, 1], 6.0),
    "soft-reset-keeps-the-excess": ([1.25, 0.25], {"v_reset": None}, [1, 0], 0.4375),
    "soft-reset-tie-through-decay": ([1.5, 0.25], {"v_reset": None}, [1, 1], 0.0),
    "soft-reset-subtracts-the-threshold": (
        [3.0, 0.0, 0.0],
        {"v_reset": None, "decay": 1.0, "v_threshold": 1.0},
        [1, 1, 1],
        0.0,
    ),
    "soft-reset-tie-is-0": ([0.5, 0.0], {"v_reset": None, "decay": 1.0}, [1, 0], 0.0),
    "v_init-tie": ([0.0], {"v_init": 2.0}, [1], 0.0),
    "v_init-decays": ([0.25], {"v_init": 0.5}, [0], 0.375),
    "v_init-negative": ([0.5, 0.5], {"v_init": -1.0}, [0, 1], 0.0),
    "nan-never-fires-and-stays": ([NAN, 1.0, 1.0], {}, [0, 0, 0], NAN),
    "nan-later": ([1.0, NAN, 1.0], {}, [1, 0, 0], NAN),
    "inf-fires-and-resets": ([INF, 0.25], {}, [1, 0], 0.25),
    "inf-soft-reset-stays": ([INF, 0.0], {"v_reset": None}, [1, 1], INF),
    "minus-inf-is-silent-for-good": ([-INF, 1.0], {}, [0, 0], -INF),
    "inf-from-v_init": ([0.0], {"v_init": INF}, [1], 0.0),
    "denormal-is-kept": ([2.0**-149], {}, [0], 2.0**-149),
    "denormal-threshold": ([2.0**-149, 0.0], {"v_threshold": 2.0**-149}, [1, 0], 0.0),
    "negative-zero-threshold": ([0.0], {"v_threshold": -0.0}, [1], 0.0),
}


@pytest.mark.parametrize("case", SPIKES)
def test_spikes_by_hand(case, device):
    x, neuron, spikes, v_last = SPIKES[case]
    neuron = dict(neuron)
    if "v_init" in neuron:
        neuron["v_init"] = torch.tensor([neuron["v_init"]], device=device)
    y, v = rso.lif(sequence(x, device), return_state=True, **neuron)
    assert y[:, 0].tolist() == spikes
    assert v.dtype == torch.float32
    torch.testing.assert_close(v.cpu(), torch.tensor([v_last]), rtol=0, atol=0, equal_nan=True)


AMPLITUDES = {
    # id: (amplitude, y) for neurons [C, H, W] = [2, 1, 3] of which all but the last fire
    "none": (None, [[1, 1, 1], [1, 1, 0]]),
    "layer": ([0.75], [[0.75] * 3, [0.75, 0.75, 0]]),
    "layer-negative": ([-2.0], [[-2] * 3, [-2, -2, 0]]),
    "layer-zero": ([0.0], [[0] * 3, [0] * 3]),
    "channel": ([[[0.5]], [[-3.0]]], [[0.5] * 3, [-3, -3, 0]]),
    "element": ([[[1, 2, 3.0]], [[4, -5, 6]]], [[1, 2, 3], [4, -5, 0]]),
    "column": ([[[1, 2, 3.0]]], [[1, 2, 3], [1, 2, 0]]),
}


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", AMPLITUDES)
def test_amplitude_by_hand(case, memory_format, device):
    amplitude, y = AMPLITUDES[case]
    x = torch.tensor([[[1, 1, 1]], [[1, 1, -1.0]]]).expand(3, 1, 2, 1, 3).to(device)
    x = x.contiguous()
    if memory_format == "channels_last":
        x = as_channels_last(x)
    amplitude = None if amplitude is None else torch.tensor(amplitude, device=device)
    out = rso.lif(x, amplitude)
    assert out[:, 0, :, 0].tolist() == [y] * 3


UP, DOWN = 2.0**-23, 2.0**-24  # spacing of float32 above 1 and of |d| above 1/2
# Rectangular surrogate of width 1, decay 0.5; every number is exact in float32.
GRADIENTS = {
    # id: (x, neuron, grad_y, grad_v_last, grad_x, grad_v_init)
    "lower-edge-of-the-window": ([0.0], {}, [1.0], 0.0, [1.0], 0.5),
    "upper-edge-of-the-window": ([1.0], {}, [1.0], 0.0, [1.0], 0.5),
    "below-the-window": ([-DOWN], {}, [1.0], 0.0, [0.0], 0.0),
    "above-the-window": ([1.0 + UP], {}, [1.0], 0.0, [0.0], 0.0),
    "lower-edge-detached": ([0.0], {"detach_reset": True}, [1.0], 0.0, [1.0], 0.5),
    "upper-edge-detached": ([1.0], {"detach_reset": True}, [1.0], 0.0, [1.0], 0.5),
    "below-detached": ([-DOWN], {"detach_reset": True}, [1.0], 0.0, [0.0], 0.0),
    "above-detached": ([1.0 + UP], {"detach_reset": True}, [1.0], 0.0, [0.0], 0.0),
    # h = .5 (a tie: fires), .25
    "tie-attached": ([0.5, 0.25], {}, [1.0, 1.0], 0.0, [0.75, 1.0], 0.375),
    "tie-detached": ([0.5, 0.25], {"detach_reset": True}, [1.0, 1.0], 0.0, [1.0, 1.0], 0.5),
    "window-follows-the-threshold": (
        [0.5, 1.5, 0.0],
        {"v_threshold": 1.0, "decay": 0.0},
        [1.0, 1.0, 1.0],
        0.0,
        [1.0, 1.0, 0.0],
        0.0,
    ),
    "wide-window": (
        [-0.5, 1.5, -0.75],
        {"surrogate": ("rectangular", 2.0), "decay": 0.0},
        [1.0, 1.0, 1.0],
        0.0,
        [0.5, 0.5, 0.0],
        0.0,
    ),
    # h = .75 (fires), .25; q[0] = .5
    "fired-attached": ([0.75, 0.25], {}, [1.0, 1.0], 0.0, [0.625, 1.0], 0.3125),
    "fired-detached": ([0.75, 0.25], {"detach_reset": True}, [1.0, 1.0], 0.0, [1.0, 1.0], 0.5),
    # h = .25, .375
    "silent-attached": ([0.25, 0.25], {}, [1.0, 1.0], 0.0, [1.375, 1.0], 0.6875),
    "silent-detached": ([0.25, 0.25], {"detach_reset": True}, [1.0, 1.0], 0.0, [1.5, 1.0], 0.75),
    "amplitude-2-attached": (
        [0.75, 0.25],
        {"amplitude": 2.0},
        [1.0, 3.0],
        0.0,
        [-0.25, 6.0],
        -0.125,
    ),
    "amplitude-2-detached": (
        [0.75, 0.25],
        {"amplitude": 2.0, "detach_reset": True},
        [1.0, 3.0],
        0.0,
        [2.0, 6.0],
        1.0,
    ),
    "amplitude-negative-detached": (
        [0.75],
        {"amplitude": -3.0, "detach_reset": True},
        [2.0],
        0.0,
        [-6.0],
        -3.0,
    ),
    # h = .75 (fires, v = -.25), .125
    "reset-value-attached": ([0.75, 0.25], {"v_reset": -0.25}, [1.0, 1.0], 0.0, [0.5, 1.0], 0.25),
    # h = .75 (fires, v = .25), .375
    "soft-attached": ([0.75, 0.25], {"v_reset": None}, [1.0, 1.0], 0.0, [1.25, 1.0], 0.625),
    "soft-detached": (
        [0.75, 0.25],
        {"v_reset": None, "detach_reset": True},
        [1.0, 1.0],
        0.0,
        [1.5, 1.0],
        0.75,
    ),
    "state-alone-attached": ([0.25], {}, [0.0], 1.0, [0.75], 0.375),
    "state-alone-detached": ([0.25], {"detach_reset": True}, [0.0], 1.0, [1.0], 0.5),
    "state-alone-fired-attached": ([0.75], {}, [0.0], 1.0, [-0.75], -0.375),
    "state-alone-fired-detached": ([0.75], {"detach_reset": True}, [0.0], 1.0, [0.0], 0.0),
    "state-alone-fired-outside-the-window": ([2.0], {}, [1.0], 1.0, [0.0], 0.0),
    # h = 2 (fires, outside the window): nothing passes; h = -1: the state passes
    "blocked-by-a-hard-reset": ([2.0, 0.25], {}, [1.0, 1.0], 0.0, [0.0, 1.0], 0.0),
    "through-a-silent-state": ([-1.0, 0.75], {}, [1.0, 1.0], 0.0, [0.5, 1.0], 0.25),
    "decay-1": ([0.125] * 3, {"decay": 1.0, "detach_reset": True}, [1] * 3, 0.0, [3, 2, 1], 3.0),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_by_hand(case, device):
    x, neuron, grad_y, grad_v_last, grad_x, grad_v_init = GRADIENTS[case]
    neuron = {"decay": 0.5} | neuron
    amplitude = neuron.pop("amplitude", None)
    amplitude = None if amplitude is None else torch.tensor([amplitude], device=device)
    x = sequence(x, device).requires_grad_()
    v_init = torch.zeros(1, device=device, requires_grad=True)
    y, v_last = rso.lif(x, amplitude, v_init=v_init, return_state=True, **neuron)
    torch.autograd.backward(
        [y, v_last], [sequence(grad_y, device), torch.tensor([grad_v_last], device=device)]
    )
    assert x.grad[:, 0].tolist() == grad_x
    assert v_init.grad.tolist() == [grad_v_init]


@pytest.mark.parametrize(
    ("surrogate", "slopes"),
    [
        # at h - v_threshold = -1, -1/2, 0, 1/2, 1
        pytest.param("rectangular", [0, 1, 1, 1, 0], id="rectangular"),
        pytest.param(("rectangular", 2.0), [0.5, 0.5, 0.5, 0.5, 0.5], id="rectangular-2"),
        pytest.param("triangle", [0, 0.5, 1, 0.5, 0], id="triangle"),
        pytest.param(("triangle", 1.0), [0, 0, 2, 0, 0], id="triangle-1"),
        pytest.param("atan", [0.0919997, 0.2884004, 1, 0.2884004, 0.0919997], id="atan"),
        pytest.param(("atan", 4.0), [0.0494090, 0.1839993, 2, 0.1839993, 0.0494090], id="atan-4"),
        pytest.param("sigmoid", [0.0706508, 0.4199743, 1, 0.4199743, 0.0706508], id="sigmoid"),
        pytest.param(
            ("sigmoid", 2.0), [0.2099872, 0.3932239, 0.5, 0.3932239, 0.2099872], id="sigmoid-2"
        ),
    ],
)
@pytest.mark.parametrize("detach_reset", [False, True], ids=["attached", "detached"])
def test_surrogate_by_hand(surrogate, slopes, detach_reset, device):
    x = torch.tensor([[-0.5, 0.0, 0.5, 1.0, 1.5]], device=device, requires_grad=True)
    rso.lif(x, surrogate=surrogate, detach_reset=detach_reset).sum().backward()
    torch.testing.assert_close(x.grad.cpu(), torch.tensor([slopes]).float(), rtol=3e-6, atol=0)


def test_grad_amplitude_by_hand(device):
    x = torch.tensor([[[1, -1.0]], [[1, 1]], [[-1, 1]]], device=device)  # [T=3, B=1, C=2]
    grad_y = torch.tensor([[[1, 2.0]], [[4, 8]], [[16, 32]]], device=device)
    for shape, expected in (((1,), [45.0]), ((2,), [5.0, 40.0])):
        amplitude = torch.full(shape, 3.0, device=device, requires_grad=True)
        rso.lif(x, amplitude).backward(grad_y)
        assert amplitude.grad.tolist() == expected


def test_infinite_current_does_not_spoil_the_gradient(device):
    x = torch.tensor([[INF], [0.25]], device=device, requires_grad=True)
    rso.lif(x, decay=0.5).sum().backward()
    assert x.grad[:, 0].tolist() == [0.0, 1.0]
