"""Folding of whole networks: every family, granularity and kind of spike."""

import pytest
import torch
from fold_networks import (
    FAMILIES,
    GRANULARITIES,
    Neurons,
    assert_equal_in_float64,
    assert_rounding_alone,
    images_for,
    make,
)

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = {
    "paper": {},
    "ternary-soft": {"emission": "ternary", "v_reset": None, "decay": 0.5},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, granularity, form):
    network, x = make(family, Neurons(granularity, **FORMS[form])), images_for(family)
    assert_equal_in_float64(network, x)
    report = assert_rounding_alone(network, x)
    assert all(0.02 < layer.firing_rate < 0.98 for layer in report.layers), report
    folded = rso.reparameterize(network, x[:1])
    with torch.no_grad():
        spikes = {0.0, 1.0} | ({-1.0} if "ternary" in form else set())
        for name, module in folded.named_modules():
            if isinstance(module, rso.RealSpikeLIF):
                emitted = module(torch.randn(4, 1, 1, 1))
                assert set(emitted.unique().tolist()) <= spikes, name


@pytest.mark.parametrize("family", FAMILIES)
def test_any_batch_in_any_memory_format(family, device):
    network, x = make(family, Neurons("element", emission="ternary")), images_for(family)
    network, x = network.to(device), x.to(device)
    folded = rso.reparameterize(network, x[:1])
    with torch.no_grad():
        expected = folded(x)
        assert expected.device == x.device
        assert folded(x[:0]).shape == (0, 5)
        apart = torch.cat([folded(one[None]) for one in x])
        torch.testing.assert_close(apart, expected)
        channels_last = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(folded(channels_last), expected)
