"""realspike_ops.lif on values that most kernels forget, over long sequences, and with parameters in
half precision; and the bytes that its forms keep for backward."""

import itertools
import math

import pytest
import torch
from helpers import float32_value, generator, normal
from lif_cases import DTYPES, NAN, bytes_kept, lay_out

import realspike_ops as rso

INF = float("inf")
TINY = 2.0**-149
SPECIAL = [
    *(NAN, -NAN, INF, -INF, 0.0, -0.0, TINY, -TINY, 2.0**-126, -(2.0**-126), 3.4e38, -3.4e38),
    *(0.5, -0.5, 0.5 - 2**-25, -0.5 + 2**-25, 1.0, -1.0, 1.0 + 2**-23, 0.25, 0.375, -0.25),
]


def special(shape, seed):
    chosen = torch.randint(len(SPECIAL), shape, generator=generator(seed))
    return torch.tensor(SPECIAL)[chosen]


FORMS = [
    {"reset": reset, "emission": emission, "detach_reset": detach_reset, "surrogate": surrogate}
    for reset in ("hard", "soft", "none")
    for emission in ("binary", "ternary")
    for detach_reset in (True, False)
    for surrogate in ("rectangular", "triangle")
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_extreme_values(form, device):
    """The same spikes and potentials; the reference's gradient wherever that is a number (an
    infinite potential outside a window makes it 0 * inf, where the kernels say 0)."""
    for dtype, learn, with_state in itertools.product(DTYPES, (False, True), (False, True)):
        x = special((7, 1100), 1).to(dtype).to(device).requires_grad_()
        tensors = {}
        if learn:
            tensors["decay"] = torch.tensor([0.5], device=device, requires_grad=True)
            tensors["v_threshold"] = torch.tensor([0.5], device=device, requires_grad=True)
        if with_state:
            tensors["v_init"] = special((1100,), 2).to(device)
        results = []
        for lif in (rso.lif, rso.reference.lif):
            y, v_last = lif(x, return_state=True, **tensors, **form)
            outputs = [y, v_last][: 1 + with_state]
            grads = [normal(out.shape, 3).to(out.dtype).to(device) for out in outputs]
            results.append((y, v_last, *torch.autograd.grad(outputs, x, grads)))
        (y, v_last, grad_x), (expected_y, expected_v, expected_grad) = results
        assert torch.equal(y, expected_y)
        torch.testing.assert_close(v_last, expected_v, rtol=0, atol=0, equal_nan=True)
        number = expected_grad.isfinite()
        assert number.float().mean() > 0.1
        torch.testing.assert_close(
            grad_x[number], expected_grad[number], rtol=4 * torch.finfo(dtype).eps, atol=1e-5
        )


@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_extreme_values_packed(emission, device):
    for dtype in DTYPES:
        x = special((7, 2, 40, 30), 1).to(dtype).to(device)
        y = rso.reference.lif(x, emission=emission)
        packed = rso.lif(x, packed=True, emission=emission)
        planes = packed if emission == "ternary" else packed[None]
        for plane, sign in zip(planes, (1, -1), strict=False):
            dense = rso.unpack_spikes(plane.flatten(0, 1), 40)
            assert torch.equal(dense, (sign * y > 0).float().flatten(0, 1))


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_a_long_sequence(reset, device):
    """Thousands of timesteps, in one run and in pieces."""
    T, form = 2051, {"decay": 0.9, "reset": reset, "emission": "ternary", "surrogate": "triangle"}
    x = normal((T, 2, 3), 1).to(device).requires_grad_()
    grad_y = normal(x.shape, 2).to(device)
    y = rso.lif(x, **form)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    expected = rso.reference.lif(x, **form)
    assert torch.equal(y, expected)
    torch.testing.assert_close(grad_x, *torch.autograd.grad(expected, x, grad_y), rtol=0, atol=1e-5)
    ys, v = [], None
    for piece in x.split([1000, 1051]):
        y, v = rso.lif(piece, v_init=v, return_state=True, **form)
        ys.append(y)
    assert torch.equal(torch.cat(ys), expected)
    assert torch.equal(torch.autograd.grad(torch.cat(ys), x, grad_y)[0], grad_x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_in_half_precision(dtype, device):
    x = normal((6, 2, 3, 4), 1).to(device)
    half = [
        torch.tensor([[0.3], [0.6], [0.9]], dtype=dtype, device=device).requires_grad_()
        for _ in range(3)
    ]
    full = [parameter.detach().float().requires_grad_() for parameter in half]
    results = []
    for amplitude, decay, v_threshold in (half, full):
        y = rso.lif(x, amplitude, decay=decay, v_threshold=v_threshold)
        results.append((y, torch.autograd.grad(y.square().sum(), [amplitude, decay, v_threshold])))
    (y, grads), (expected, expected_grads) = results
    assert torch.equal(y, expected)
    assert torch.equal(y, rso.reference.lif(x, half[0], decay=half[1], v_threshold=half[2]))
    for grad, wide in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        assert torch.equal(grad, wide.to(dtype))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("T", [1, 4, 5, 8, 9, 17])
def test_bytes_kept_for_backward(T, layout, device):
    x = lay_out(normal((T, 2, 3, 5, 7), 1).to(device), layout).requires_grad_()
    N = 2 * 3 * 5 * 7
    words, potentials = N * -(-T // 4), 4 * N * (-(-T // 8) - 1)
    ternary = {"emission": "ternary"}
    assert bytes_kept(x, **ternary, detach_reset=True) == 2 * words
    assert bytes_kept(x, **ternary) == 4 * T * N + potentials
    # Without a reset there is nothing to detach.
    assert bytes_kept(x, reset="none") == words
    decay = torch.full((3, 1, 1), 0.5, device=device)
    assert bytes_kept(x, decay=decay, detach_reset=True) == words + 12
    decay.requires_grad_()
    assert bytes_kept(x, decay=decay, detach_reset=True) == 4 * T * N + potentials + 12
    with torch.no_grad():
        y = rso.lif(x, decay=decay, **ternary)
    assert not y.requires_grad


@pytest.mark.parametrize("name", ["decay", "v_threshold", "v_init"])
def test_forward_mode_is_refused(name, device):
    x = normal((4, 2, 3), 1).to(device)
    value = normal((2, 3) if name == "v_init" else (3,), 2).to(device)
    with pytest.raises(NotImplementedError, match=f"{name} carries a tangent"):
        torch.func.jvp(lambda t: rso.lif(x, **{name: t}), (value,), (torch.ones_like(value),))


def slope_in_float64(name, d, scale):
    """The formulas of docs/lif.md, of the distance to the threshold."""
    d = d.double().abs()
    if name == "rectangular":
        return (d <= scale / 2) / scale
    if name == "triangle":
        return (scale - 2 * d).clamp(min=0) / scale * 2 / scale
    if name == "atan":
        return scale / 2 / (1 + (math.pi / 2 * scale * d) ** 2)
    return scale / (torch.exp(scale * d / 2) + torch.exp(-scale * d / 2)) ** 2


# Powers of two and others; those at which squares, products or quotients leave float32.
SCALES = (1.0, 4.0, 3.0, 0.1, 1e-3, 1e3, 2.0**-126, 1e-30, 1e19, 1e30, 1e38)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["rectangular", "triangle", "atan", "sigmoid"])
@pytest.mark.parametrize("function", [rso.lif, rso.reference.lif], ids=["op", "reference"])
def test_slopes_within_a_few_ulps(function, name, scale, device):
    """For a threshold of 0 the distance is x itself, and the slope is the gradient of one step."""
    scale = float32_value(scale)
    near = torch.cat((torch.linspace(-1.0, 1.0, 257), torch.linspace(-190.0, 190.0, 1001)))
    x = torch.cat(((near.double() / scale).float(), near)).clamp(-3e38, 3e38).to(device)
    x = x[None, :].requires_grad_()
    y = function(x, v_threshold=0.0, surrogate=(name, scale))
    slope = torch.autograd.grad(y.sum(), x)[0].cpu().double()
    exact = slope_in_float64(name, x.detach().cpu(), scale)
    ulp = torch.finfo(torch.float32).eps * exact.clamp(min=2.0**-126)
    assert ((slope - exact).abs() <= 6 * ulp).all()
    assert (slope > 0).any()


@pytest.mark.parametrize("scale", [1e39, 1e-39, 0.0, -1.0, math.inf, math.nan])
def test_scales_beyond_float32_are_refused(scale):
    with pytest.raises(ValueError, match=r"surrogate: the scale of 'atan' must be .* float32"):
        rso.lif(torch.zeros(1, 2), surrogate=("atan", scale))


def test_either_zero_is_one_form(device):
    """Forms are kept by their value, and the zeros are equal: the first to come would stay."""
    x = torch.ones(1, 1, 2, device=device)
    for v_reset in (-0.0, 0.0):
        _, v_last = rso.lif(x, v_reset=v_reset, decay=0.8671875, return_state=True)
        assert not v_last.signbit().any()
    for decay in (-0.0, 0.0):
        _, v_last = rso.lif(-0.0 * x, v_init=x[0], v_threshold=9.5, decay=decay, return_state=True)
        assert not v_last.signbit().any()
