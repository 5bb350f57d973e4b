"""Networks in which the images of a batch meet are found; those that keep them apart are not."""

import warnings

import pytest
import torch
from helpers import normal
from torch import nn

import realspike_ops as rso
from realspike_ops.reparam.check.batch_check import warn_if_images_meet

pytestmark = pytest.mark.usefixtures("one_thread")


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(T, start=None, end=None) -> nn.Sequential:
    """`start` and `end` take the place of DirectEncoding and MeanOverTime."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        rso.DirectEncoding(T) if start is None else Apply(start),
        *(rso.RealSpikeLIF(T, "element", (4, 4, 4)), nn.Conv2d(4, 4, 3, padding=1)),
        *(rso.RealSpikeLIF(T), nn.Flatten(), nn.Linear(64, 5)),
        rso.MeanOverTime(T) if end is None else Apply(end),
    ).eval()


def nothing(x):
    return x


def found(model, x, labels=None) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_images_meet(model, x, labels)
    assert len(caught) <= 1
    assert all(w.category is UserWarning for w in caught)
    return str(caught[0].message) if caught else ""


def apart(T):
    """Networks that keep images apart, and their inputs."""
    images = normal((2, 3, 4, 4), 1)
    frames = normal((2 * T, 3, 4, 4), 1)
    return {
        "images": (network(T), images),
        "one image": (network(T), images[:1]),
        "black image": (network(T), torch.zeros(1, 3, 4, 4)),
        "bytes": (network(T), images.abs().mul(50).to(torch.uint8)),
        "repeated by hand": (network(T, start=lambda x: x.repeat(T, 1, 1, 1)), images),
        "averaged by hand": (network(T, end=lambda x: x.view(T, -1, 5).mean(0)), images),
        "scores of timesteps": (network(T, end=nothing), images),
        "a matrix averages": (
            network(T, end=lambda x: torch.eye(len(x) // T).repeat(1, T) @ x / T), images
        ),
        "frames": (network(T, start=nothing), frames),
        "frames of one sample": (network(T, start=nothing), frames[:T]),
        "still frames, scores of timesteps": (
            network(T, start=nothing, end=nothing), images.repeat(T, 1, 1, 1)
        ),
        "images [B, T]": (
            nn.Sequential(Apply(lambda x: x.transpose(0, 1).flatten(0, 1)), network(T, nothing)),
            normal((5, T, 3, 4, 4), 1),
        ),
        "images [T, B]": (
            nn.Sequential(nn.Flatten(0, 1), network(T, nothing)), normal((T, T, 3, 4, 4), 1)
        ),
        "more or fewer images [T, B]": (
            nn.Sequential(nn.Flatten(0, 1), network(T, nothing)), normal((T, T + 1, 3, 4, 4), 1)
        ),
        "no neurons": (nn.Conv2d(3, 4, 3), images),
        "no images": (network(T), images[:0]),
        "a batch of its own": (network(T, end=lambda x: x.view(T, 7, 5).mean(1)), images),
    }  # fmt: skip


@pytest.mark.parametrize("T", [1, 2, 3])
@pytest.mark.parametrize("name", apart(2))
def test_networks_that_keep_images_apart(name, T):
    model, x = apart(T)[name]
    assert found(model, x) == ""
    if name != "a batch of its own" and len(x):
        for layer in model.modules():  # silent networks too
            if isinstance(layer, nn.BatchNorm2d):
                layer.bias.data.fill_(-50.0)
        assert found(model, x) == ""


def meeting(T):
    images = normal((2 * T, 3, 4, 4), 1)
    batch_major = network(T, start=lambda x: x.repeat_interleave(T, 0))
    return {
        "no DirectEncoding, no MeanOverTime": (network(T, nothing, nothing), images, "are missing"),
        "batch-major": (batch_major, images, "timestep outermost"),
        "batch-major, one image": (batch_major, images[:1], "timestep outermost"),
        "batch-major, black": (batch_major, torch.zeros(1, 3, 4, 4), "timestep outermost"),
        "batch-major encoding and averages": (  # the neurons alone read other rows
            network(T, lambda x: x.repeat_interleave(T, 0), lambda x: x.view(-1, T, 5).mean(1)),
            *(images, "timestep outermost"),
        ),
        "batch-major averages": (
            network(T, end=lambda x: x.view(-1, T, 5).mean(1)), images, "timestep outermost"
        ),
        "batch-major frames": (
            network(T, nothing, lambda x: x.view(-1, T, 5).mean(1)), images, "timestep outermost"
        ),
        "statistics of the batch": (network(T, end=lambda x: x - x.mean(0)), images, "neighbours"),
    }  # fmt: skip


@pytest.mark.parametrize("T", [2, 3, 4])
@pytest.mark.parametrize("name", meeting(2))
@pytest.mark.parametrize("silent", [False, True])
def test_networks_whose_images_meet(silent, name, T):
    model, x, missing = meeting(T)[name]
    if silent:
        model[1].bias.data.fill_(-50.0)
        with torch.no_grad():
            assert len({tuple(row.tolist()) for row in model(x.expand(2 * T, 3, 4, 4))}) <= 1
    message = found(model, x)
    assert missing in message
    assert "depend on its neighbours in the batch" in message


def test_labels_tell_images_from_frames():
    x = normal((6, 3, 4, 4), 1)
    for averaged in (False, True):
        model = network(3, nothing, None if averaged else nothing)
        assert found(model, x, torch.zeros(2)) == ""
        message = found(model, x, torch.zeros(6))
        assert "DirectEncoding(T)" in message
        assert ("MeanOverTime(T)" in message) != averaged


def test_one_timestep_keeps_every_image_apart():
    x = normal((6, 3, 4, 4), 1)
    assert found(network(1), x, torch.zeros(6)) == ""


def test_neurons_with_other_timesteps():
    """Rows are timesteps of 4 and of 5."""
    model = nn.Sequential(
        *(nn.Flatten(), rso.RealSpikeLIF(4), nn.Linear(48, 48), rso.RealSpikeLIF(5)),
        nn.Linear(48, 5),
    ).eval()
    assert "are missing" in found(model, normal((20, 3, 4, 4), 1))


def test_reparameterize_and_verify_warn_once():
    x = normal((4, 3, 4, 4), 1)
    model = network(2, nothing, nothing)
    with pytest.warns(UserWarning, match="DirectEncoding") as caught:
        folded = rso.reparameterize(model, x)
    assert [w.filename for w in caught] == [__file__]
    with pytest.warns(UserWarning, match="DirectEncoding") as caught:
        rso.verify(model, folded, [x, x])
    assert [w.filename for w in caught] == [__file__]
    model = network(2, nothing)
    folded = rso.reparameterize(model, x)
    with pytest.warns(UserWarning, match="fewer outputs"):
        rso.verify(model, folded, [(x, torch.zeros(4))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network(2)
        rso.verify(model, rso.reparameterize(model, x), [x, x])


def test_the_model_is_left_as_it_was():
    model, x = network(2), normal((2, 3, 4, 4), 1)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    found(model, x)
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, rso.RealSpikeLIF))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_in_bytes_meet_too(dtype):
    """They are read in the dtype of the network."""
    x = normal((4, 3, 4, 4), 1).abs().mul(50).to(torch.uint8)
    model = network(2, nothing, nothing).to(dtype)
    assert "are missing" in found(model, x)
    assert found(network(2).to(dtype), x) == ""
