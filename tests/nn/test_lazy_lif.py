"""RealSpikeLIF without a shape: the first input, or a state, gives its parameters theirs."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import realspike_ops as rso

T = 2


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


FORM = {"granularity": "element", "decay_granularity": "channel", "decay": 0.75}


def network(**form):
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), rso.DirectEncoding(T), rso.RealSpikeLIF(T, **(FORM | form))),
        *(nn.Flatten(), nn.Linear(144, 5), rso.MeanOverTime(T)),
    )


def test_the_first_input_gives_the_shape():
    model = network()
    assert isinstance(model[2], rso.RealSpikeLIF)
    assert is_lazy(model[2].amplitude)
    assert "uninitialized" in repr(model)
    assert [*model.state_dict()][2:4] == ["2.amplitude", "2.decay_logit"]
    x = images(3, 3, 8, 8)
    out = model(x)
    lif = model[2]
    assert type(lif) is rso.RealSpikeLIF
    assert (lif.amplitude.shape, lif.decay_logit.shape) == ((4, 6, 6), (4, 1, 1))
    assert (lif.amplitude == 1).all()
    torch.testing.assert_close(lif.decay.data, torch.full((4, 1, 1), 0.75))
    shaped = rso.RealSpikeLIF(T, shape=(4, 6, 6), **FORM)
    assert torch.equal(out, nn.Sequential(*model[:2], shaped, *model[3:])(x))
    assert not lif._forward_pre_hooks
    assert not lif._load_state_dict_pre_hooks


def test_a_state_gives_the_shape_and_the_values():
    trained = network()
    trained(images(3, 3, 8, 8))
    trained[2].amplitude.data.uniform_(0.5, 2)
    for copied in (network(), copy.deepcopy(network()), pickle.loads(pickle.dumps(network()))):
        copied.load_state_dict(trained.state_dict())
        x = images(2, 3, 8, 8)
        assert type(copied[2]) is rso.RealSpikeLIF
        assert torch.equal(copied(x), trained(x))
        rso.reparameterize(copied, x)


def test_it_is_moved_and_reset_before_it_has_a_shape():
    lif = rso.RealSpikeLIF(T, "channel", threshold_granularity="layer", v_threshold=0.7).half()
    lif.v_threshold.data.fill_(3)
    lif.reset_parameters()
    assert lif.v_threshold.item() == pytest.approx(0.7, rel=1e-2)
    assert is_lazy(lif.amplitude)
    lif(images(4, 5).half())
    assert lif.amplitude.shape == (5, 1, 1)
    assert lif.amplitude.dtype == torch.float16
    with torch.no_grad():
        lif.amplitude.fill_(2)
    lif(images(4, 5).half())
    assert (lif.amplitude == 2).all()


def test_only_what_needs_a_shape_is_lazy():
    for form in ({}, {"granularity": "layer"}, {"granularity": "element", "shape": (3, 2, 2)}):
        assert type(rso.RealSpikeLIF(T, **form)) is rso.RealSpikeLIF
    assert is_lazy(rso.RealSpikeLIF(T, threshold_granularity="element").v_threshold)


def test_errors_before_the_first_call():
    x = images(2, 3, 8, 8)
    for refused in (rso.reparameterize, lambda m, x: rso.convert(m, x, timesteps=T)):
        with pytest.raises(rso.ReparameterizationError, match=r"'2'.*lazy.*run it once"):
            refused(network(), x)
    with pytest.raises(ValueError, match=r"must be one of.*pixel"):
        rso.RealSpikeLIF(T, "pixel")
    lif = rso.RealSpikeLIF(T, "element")
    with pytest.raises(RuntimeError, match="uninitialized"):
        _ = lif.amplitude.shape
    with pytest.raises(ValueError, match=r"T\*B, C.*\[4\]"):
        lif(torch.zeros(4))
    with pytest.raises(ValueError, match="2 timesteps divide"):
        lif(torch.zeros(5, 3))
    assert is_lazy(lif.amplitude)
