"""What hooks on saved tensors return in backward: laid out otherwise, or refused by name."""

import pytest
import torch
from helpers import normal
from torch import nn

import realspike_ops as rso

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LAYERS = ["lif", "norm", "norm with residual", "synapses"]


def otherwise(t):
    """Turn what is channels_last to contiguous and the other way round, over time too."""
    if t.dim() == 5:
        steps = [otherwise(step) for step in t]
        back = FORMATS["channels_last"] if steps[0].stride(1) == 1 else torch.contiguous_format
        return torch.stack(steps).flatten(0, 1).contiguous(memory_format=back).view(t.shape)
    if t.dim() == 4:
        is_last = t.is_contiguous(memory_format=torch.channels_last)
        return t.contiguous(memory_format=FORMATS["contiguous" if is_last else "channels_last"])
    return t


def layer_of(kind, timesteps, granularity, detach_reset, learnable="none"):
    if kind == "synapses":
        return rso.UnsharedSpikeConv(6, 2, 3, padding=1, input_size=(5, 3))
    lif = rso.RealSpikeLIF(
        timesteps, granularity, (6, 5, 3), detach_reset=detach_reset,
        decay_granularity=learnable, threshold_granularity=learnable,
    )  # fmt: skip
    return lif if kind == "lif" else rso.NormLIF(nn.BatchNorm2d(6), lif)


def gradients(kind, hook, x, *settings):
    torch.manual_seed(0)
    layer = layer_of(kind, *settings)
    x = x.detach().requires_grad_()
    inputs, leaves = [x], [x, *layer.parameters()]
    if kind == "norm with residual":
        inputs.append(x.flip(0).detach().requires_grad_())
        leaves.append(inputs[1])
    if kind == "synapses":
        inputs = [(x > 0).float().detach().requires_grad_()]
        leaves[0] = inputs[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, hook):
        y = layer(*inputs)
    return torch.autograd.grad(y, leaves, normal(y.shape, 3))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("learnable", ["none", "layer", "element"])
@pytest.mark.parametrize("granularity", ["none", "channel", "element"])
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("timesteps", [1, 4, 9, 17])
@pytest.mark.parametrize("kind", ["lif", "norm", "norm with residual"])
def test_copies_may_lie_in_another_format(
    kind, timesteps, detach_reset, granularity, learnable, layout
):
    x = normal((2 * timesteps, 6, 5, 3), 1).contiguous(memory_format=FORMATS[layout])
    settings = (x, timesteps, granularity, detach_reset, learnable)
    expected = gradients(kind, lambda t: t, *settings)
    assert all(map(torch.equal, gradients(kind, otherwise, *settings), expected))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("timesteps", [4, 9])
@pytest.mark.parametrize(
    "hook",
    [
        lambda t: t.bfloat16(),
        lambda t: t if t.is_floating_point() else t.to(torch.int64),
        lambda t: t if t.is_floating_point() else t[:0],
        lambda t: t.flatten()[:1],
        lambda t: t[..., :1],
        lambda t: t[None],
        lambda t: t.to("meta"),
        lambda t: t.to_sparse(),
    ],
    ids=[
        "bfloat16",
        "wide bits",
        "no bits",
        "one value",
        "a slice",
        "a dimension",
        "meta",
        "sparse",
    ],
)
def test_others_are_refused_by_name(hook, timesteps, kind):
    x = normal((2 * timesteps, 6, 5, 3), 1)
    with pytest.raises(RuntimeError, match=r"hooks on saved tensors must return what they were"):
        gradients(kind, hook, x, timesteps, "element", True)


@pytest.mark.parametrize("timesteps", [1, 4, 9])
@pytest.mark.parametrize("kind", ["lif", "norm"])
def test_memory_that_holds_the_negative(kind, timesteps):
    """The imaginary part of a conjugate is such a view."""
    grads = []
    for view in (torch.Tensor.neg, torch._neg_view):
        torch.manual_seed(0)
        layer = layer_of(kind, timesteps, "element", False)
        x = normal((2 * timesteps, 6, 5, 3), 1).requires_grad_()
        y = layer(view(x))
        grads.append(torch.autograd.grad(y, [x, *layer.parameters()], normal(y.shape, 3)))
    for planned, grad in zip(*grads, strict=True):
        torch.testing.assert_close(grad, planned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("detach_reset", [True, False])
def test_a_copy_of_a_constant_residual(detach_reset):
    grads = []
    for hook in (lambda t: t, torch.clone):
        x, once = normal((9, 2, 6, 5, 3), 1).requires_grad_(), normal((1, 2, 6, 5, 3), 2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, hook):
            y = rso.batch_norm_lif(
                x, None, None, None, None, residual=once.expand_as(x), detach_reset=detach_reset
            )
        grads.append(torch.autograd.grad(y, x, normal(y.shape, 3))[0])
    assert torch.equal(*grads)
