"""profile's numbers under NeuroBench's names: by hand, and equal to its own."""

import nir_networks
import pytest
import torch
from fold_networks import Neurons, T, images_for, make
from helpers import generator, normal
from torch import nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")


def of_neurobench(network, x) -> dict:
    reason = "neurobench is not installed: pip install .[peers]"
    models = pytest.importorskip("neurobench.models", reason=reason)
    from neurobench.metrics import static, workload

    model = models.TorchModel(network)
    model.add_activation_module(rso.RealSpikeLIF)
    model.register_hooks()
    with torch.no_grad():
        predictions = model(x)
    data = x, torch.zeros(len(x))
    numbers = {
        name: getattr(static, name)()(model)
        for name in ("Footprint", "ParameterCount", "ConnectionSparsity")
    }
    for name in ("ActivationSparsity", "SynapticOperations"):
        numbers[name] = getattr(workload, name)()(model, predictions, data)
    model.cleanup_hooks()
    return numbers


def numbers_of(network, x) -> dict:
    numbers = rso.profile(network, x).neurobench()
    return numbers | {"ConnectionSparsity": round(numbers["ConnectionSparsity"], 4)}


def with_zeros(network) -> nn.Module:
    g = generator(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                parameter[torch.rand(parameter.shape, generator=g) < 0.2] = 0
    return network


def test_counts_by_hand():
    """Neurons that fire at two of nine pixels, and a kernel with one zero among nine."""
    current = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]).expand(2 * T, 1, 3, 3)
    conv = nn.Conv2d(1, 5, 3, padding=1)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[:, :, 1, 1] = 0  # the centre meets its own pixel
    network = nn.Sequential(rso.RealSpikeLIF(T), conv, rso.MeanOverTime(T)).eval()
    for one in (network, rso.reparameterize(network, current)):
        # The corner reaches 4 windows, the middle 9, each through one 0; windows have 49 taps.
        assert rso.profile(one, current).neurobench() == {
            "Footprint": 50 * 4,
            "ParameterCount": 50,
            "ConnectionSparsity": 5 / 45,
            "ActivationSparsity": 7 / 9,
            "SynapticOperations": {
                "Effective_MACs": 0,
                "Effective_ACs": T * (3 + 8) * 5,
                "Dense": T * 49 * 5,
            },
        }


def test_a_kernel_per_position_and_int8_by_hand():
    weight = torch.full((2, 2, 1, 2, 2, 1, 3), 130, dtype=torch.uint8)  # on a map of 3 x 3
    weight[0, 0, 0, 0, 0, 0, 1] = 128  # 0
    conv = rso.UnsharedSpikeConv.from_weight(weight, input_size=3)
    current = torch.zeros(4, 1, 3, 3)
    current[0, 0, 0, 0] = current[1, 0, 1, 1] = -1  # one window and a zero; four windows
    network = nn.Sequential(rso.RealSpikeLIF(1), conv)
    numbers = rso.profile(network, -current).neurobench()
    assert numbers["SynapticOperations"] == {
        "Effective_MACs": 0,
        "Effective_ACs": (2 + 4 * 3) / 4,
        "Dense": 4 * 4 * 3,
    }
    assert numbers["ConnectionSparsity"] == 1 / 48


def test_one_to_one_synapses_and_sigmoids_by_hand():
    synapses = rso.OneToOneSynapses(torch.tensor([2.0, 0.0, 3.0]))
    network = nn.Sequential(nn.Sigmoid(), rso.RealSpikeLIF(1), synapses)
    x = torch.tensor([[9.0, 9, -9], [9, -9, -9]])
    numbers = rso.profile(network, x).neurobench()
    # All sigmoids are above 0; three neurons of six fire, one at a synapse of 0.
    assert numbers["ActivationSparsity"] == 3 / 12
    assert numbers["SynapticOperations"] == {
        "Effective_MACs": 0,
        "Effective_ACs": 2 / 2,
        "Dense": 6 / 2,
    }
    assert numbers["ConnectionSparsity"] == 1 / 3


@pytest.mark.parametrize(
    ("family", "granularity"),
    [("vgg", "channel"), ("resnet20-odd", "element"), ("branches", "none"), ("depthwise", "none")],
)
def test_trained_networks_have_the_numbers_of_neurobench(family, granularity):
    network, x = with_zeros(make(family, Neurons(granularity))), images_for(family)
    expected = of_neurobench(network, x)
    assert numbers_of(network, x) == expected
    kind = "Effective_ACs" if granularity == "none" else "Effective_MACs"
    assert expected["SynapticOperations"][kind] > 0


def test_lines_and_features_have_the_numbers_of_neurobench():
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv1d(2, 4, 3, padding=1, groups=2), nn.ReLU(), rso.DirectEncoding(T)),
        *(rso.RealSpikeLIF(T), nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=1)),
        *(rso.RealSpikeLIF(T, emission="ternary"), nn.Flatten(), nn.Linear(24, 3, bias=False)),
        rso.MeanOverTime(T),
    )
    network, x = with_zeros(network).eval(), normal((5, 2, 9), 1)
    assert numbers_of(network, x) == of_neurobench(network, x)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.int8])
def test_folded_networks_have_the_numbers_of_the_same_layers_in_stock_form(weight_dtype):
    """NIR writes folded layers as layers that NeuroBench's hooks see."""
    pytest.importorskip("nir", reason="nir is not installed: pip install .[nir]")
    model, x = nir_networks.network("vgg", T)
    scales = "power_of_two" if weight_dtype == torch.int8 else "largest"
    folded = rso.reparameterize(model, x, weight_dtype=weight_dtype, scales=scales)
    stock = rso.import_nir(rso.export_nir(folded), granularity="none").eval()
    own, expected = numbers_of(folded, x), of_neurobench(stock, x)
    for name in ("ConnectionSparsity", "ActivationSparsity", "SynapticOperations"):
        assert own[name] == expected[name], name


def test_batches_add_up():
    network, x = make("vgg", Neurons("none")), images_for("vgg", 5)
    whole = rso.profile(network, x).neurobench()
    parts = rso.profile(network, [x[:2], x[2:]]).neurobench()
    assert parts == whole
