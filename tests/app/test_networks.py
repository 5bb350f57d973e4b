"""The paper's networks: sizes against arithmetic, shapes, names, gradients, what runs how often."""

import pytest
import torch
from realspike.config.network_config import ARCHITECTURES, GRANULARITIES, NetworkConfig
from realspike.networks import build
from realspike.networks.build import BUILDERS
from torch import nn

import realspike_ops as rso
from realspike_ops.nn.neurons import lif as lif_module

PUBLISHED = [name for name in ARCHITECTURES if name not in ("digits", "resnet8", "vgg5")]
SMALL = {"width": 4, "timesteps": 2, "image_size": 13, "in_channels": 3, "classes": 7}


def small(architecture, granularity="element", **changes):
    return NetworkConfig(granularity, **(SMALL | {"architecture": architecture} | changes))


def of_type(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def lively(config):
    """A network in which spikes reach the classifier; untrained ones fall silent on the way."""
    network = build(config, seed=0).eval()
    for norm in of_type(network, nn.BatchNorm2d):
        nn.init.uniform_(norm.weight, 0.8, 1.6)
        nn.init.constant_(norm.bias, 0.3)
    return network


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in build(config, seed=0).parameters())


def conv_bn(kernel, cin, cout):
    return kernel * kernel * cin * cout + 2 * cout


def basic_blocks(blocks, width):
    """Parameters of stages of two 3x3 convolutions per block, 1x1 where the channels change."""
    total, cin = 0, width
    for stage, count in enumerate(blocks):
        cout = width << stage
        for _ in range(count):
            total += conv_bn(3, cin, cout) + conv_bn(3, cout, cout)
            total += conv_bn(1, cin, cout) if cin != cout else 0
            cin = cout
    return total


def vgg16_features():
    channels = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    pairs = zip([3, *channels], channels, strict=False)
    return sum(conv_bn(3, cin, cout) for cin, cout in pairs)


EXPECTED = {
    "resnet20": conv_bn(3, 3, 64) + 2 * conv_bn(3, 64, 64) + basic_blocks((2,) * 4, 64) + 5130,
    "resnet19": conv_bn(3, 3, 128) + basic_blocks((3, 3, 2), 128) + 5130,
    "vgg16": vgg16_features() + 5130,
    "sew_resnet18": conv_bn(7, 3, 64) + basic_blocks((2,) * 4, 64) + 5130,
    "sew_resnet34": conv_bn(7, 3, 64) + basic_blocks((3, 4, 6, 3), 64) + 5130,
    "sew_resnet10": conv_bn(7, 3, 16) + basic_blocks((1,) * 4, 16) + 10 * 129,
}


def test_the_arithmetic_knows_published_counts():
    # torchvision's resnet18, resnet34 and vgg16_bn without its classifier and biases
    head = 1000 * 513 - 5130
    assert EXPECTED["sew_resnet18"] + head == 11_689_512
    assert EXPECTED["sew_resnet34"] + head == 21_797_672
    assert vgg16_features() == 14_723_136 - 4224


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    config = NetworkConfig(architecture=name, in_channels=3, image_size=32)
    assert parameters(config) == EXPECTED[name]


# neurons per sample of a 32 x 32 image, (layers, channels, elements)
LIFS = {
    "resnet20": (
        3 + 16,
        3 * 64 + 4 * (64 + 128 + 256 + 512),
        3 * 64 * 32**2 + 4 * (64 * 16**2 + 128 * 8**2 + 256 * 4**2 + 512 * 2**2),
    ),
    "resnet19": (
        1 + 16,
        128 + 6 * 128 + 6 * 256 + 4 * 512,
        7 * 128 * 32**2 + 6 * 256 * 16**2 + 4 * 512 * 8**2,
    ),
    "vgg16": (
        13,
        2 * 64 + 2 * 128 + 3 * 256 + 6 * 512,
        2 * 64 * 32**2 + 2 * 128 * 16**2 + 3 * 256 * 8**2 + 3 * 512 * 4**2 + 3 * 512 * 2**2,
    ),
    # The three neurons of the shortcuts are binary in every variant.
    "sew_resnet18": (
        1 + 16,
        64 + 4 * (64 + 128 + 256 + 512),
        64 * 16**2 + 4 * (64 * 8**2 + 128 * 4**2 + 256 * 2**2 + 512),
    ),
}


@pytest.mark.parametrize("name", LIFS)
def test_amplitude_counts(name):
    for granularity, count in zip(("layer", "channel", "element"), LIFS[name], strict=True):
        config = NetworkConfig(granularity, architecture=name, in_channels=3, image_size=32)
        assert parameters(config) == EXPECTED[name] + count, granularity


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_amplitude_fits_its_map_and_gets_a_gradient(name):
    network = lively(small(name)).train()
    logits = network(torch.rand(5, 3, 13, 13))
    assert logits.shape == (5, 7)
    logits.square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
    amplitudes = [p.grad for n, p in network.named_parameters() if n.endswith("amplitude")]
    assert sum(grad.abs().sum() > 0 for grad in amplitudes) >= len(amplitudes) - 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_granularities_start_as_the_same_network(name):
    images = torch.rand(3, 3, 13, 13)
    with torch.no_grad():
        logits = [build(small(name, g), seed=5).eval()(images) for g in GRANULARITIES]
    for other in logits[1:]:
        assert torch.equal(other, logits[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_convolution_runs_once_per_image(name):
    network = build(small(name, timesteps=3), seed=0)
    batches = {}
    for module_name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, args, __, n=module_name: batches.setdefault(n, []).append(len(args[0]))
            )
    network(torch.rand(2, 3, 13, 13))
    first, *others = batches.values()
    assert first == [2]
    assert others
    assert all(sizes == [6] for sizes in others)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_neurons_read_one_current_at_every_timestep(name, monkeypatch):
    """As the first convolution and its norm left it, without a copy; as after a repetition."""
    config, seen = small(name), []
    network, images = build(config, seed=0), torch.rand(2, 3, 13, 13)
    functional = lif_module.functional.lif
    monkeypatch.setattr(
        lif_module.functional, "lif", lambda x, **form: seen.append(x) or functional(x, **form)
    )
    logits = network(images)
    first, *others = seen
    assert first.stride(0) == 0
    assert all(x.stride(0) > 0 for x in others)
    monkeypatch.setattr(rso.DirectEncoding, "forward", lambda self, x: x.repeat(2, 1, 1, 1))
    assert torch.equal(network(images), logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_frames_equal_to_the_image_at_every_timestep_give_the_same(name):
    images = torch.rand(2, 3, 13, 13)
    torch.manual_seed(0)
    direct = lively(small(name))
    frames = build(small(name, encoding="frames"), seed=0).eval()
    frames.load_state_dict(direct.state_dict())
    with torch.no_grad():
        repeated = images.expand(2, *images.shape).flatten(0, 1)  # [T*B, 3, 13, 13]
        torch.testing.assert_close(frames(repeated), direct(images))
        assert not torch.equal(frames(torch.rand(4, 3, 13, 13)), direct(images))


def test_names_of_the_state_dict():
    state = build(small("resnet8"), seed=0).state_dict()
    names = [
        name for name in state if not name.endswith(("running_var", "running_mean", "tracked"))
    ]
    block = """conv1.weight bn1.weight bn1.bias lif1.amplitude conv2.weight bn2.weight bn2.bias
        lif2.amplitude""".split()
    shortcut = "shortcut.conv.weight shortcut.bn.weight shortcut.bn.bias".split()
    expected = ["conv1.weight", "bn1.weight", "bn1.bias", "lif1.amplitude"]
    for stage in range(3):
        own = block if stage == 0 else block + shortcut
        expected += [f"stages.{stage}.0.{name}" for name in own]
    expected += ["classifier.linear.weight", "classifier.linear.bias"]
    assert sorted(names) == sorted(expected)
    vgg = build(small("vgg5", pooling="max"), seed=0).state_dict()
    assert {"features.conv5.weight", "features.bn5.bias", "features.lif5.amplitude"} <= set(vgg)


def norm_weights(name="resnet20", **options):
    """The initial weight of every batch norm, by name; all channels start alike."""
    network = build(NetworkConfig(architecture=name, width=4, **options), seed=0)
    found = {}
    for module_name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == module.weight[0]).all()
            found[module_name] = module.weight[0].item()
    return found


def test_initial_weights():
    network = build(NetworkConfig(architecture="resnet20", width=32), seed=0)
    conv = network.stages[3][1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert set(norm_weights().values()) == {1.0}


@pytest.mark.parametrize("name", ["resnet20", "resnet19", "sew_resnet10"])
def test_blocks_may_start_as_their_shortcuts(name):
    for norm, weight in norm_weights(name, zero_init_residual=True).items():
        ends_a_branch = norm.startswith("stages.") and norm.endswith(".bn2")
        assert weight == (0.0 if ends_a_branch else 1.0), norm


def test_norms_may_start_at_the_threshold():
    summed = ("1.0.bn2", "2.0.bn2", "3.0.bn2", "shortcut.bn")
    for norm, weight in norm_weights(threshold_norm=True, v_threshold=0.8).items():
        expected = 0.8 / 2**0.5 if norm.endswith(summed) else 0.8
        assert weight == pytest.approx(expected), norm
    assert set(norm_weights("digits", threshold_norm=True).values()) == {0.5}
    # In a SEW-ResNet spikes are summed, not currents.
    assert set(norm_weights("sew_resnet10", threshold_norm=True).values()) == {0.5}
    both = norm_weights(threshold_norm=True, zero_init_residual=True)
    assert both["stages.1.0.bn2"] == 0
    assert both["stages.1.0.shortcut.bn"] == pytest.approx(0.5 / 2**0.5)


def test_what_is_no_residual_network_has_no_residual_norm():
    with pytest.raises(ValueError, match="zero_init_residual needs a residual network; vgg16"):
        NetworkConfig(architecture="vgg16", zero_init_residual=True)
    with pytest.raises(ValueError, match="threshold_norm must be true or false; got 1"):
        NetworkConfig(threshold_norm=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_config_reaches_every_neuron(name):
    config = small(name, "channel", decay=0.75, v_threshold=1.0, detach_reset=True)
    lifs = of_type(build(config, seed=0), rso.RealSpikeLIF)
    assert {lif.timesteps for lif in lifs} == {2}
    assert {lif.decay for lif in lifs} == {0.75}
    assert {lif.v_threshold for lif in lifs} == {1.0}
    assert {lif.detach_reset for lif in lifs} == {True}
    binary = sum(lif.granularity == "none" for lif in lifs)
    assert binary == (3 if name.startswith("sew") else 0)


def test_the_residual_sum_of_a_resnet_is_a_current_and_of_a_sew_resnet_spikes():
    for name, is_current in (("resnet8", True), ("sew_resnet10", False)):
        network = build(small(name, "none"), seed=0)
        for norm in of_type(network, nn.BatchNorm2d):
            nn.init.constant_(norm.bias, 1.0)
        sums = []
        block = network.stages[0][0]
        block.register_forward_hook(lambda _, __, out, sums=sums: sums.append(out))
        network(torch.rand(2, 3, 13, 13))
        assert set(sums[0].unique().tolist()) <= ({0.0, 1.0} if is_current else {0.0, 1.0, 2.0})
        assert sums[0].max() == (1.0 if is_current else 2.0)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("granularity", ["none", "channel", "element"])
def test_every_network_folds(name, granularity):
    if granularity != "none" and name in ("resnet19", "sew_resnet18", "sew_resnet34"):
        pytest.skip("the same blocks as a smaller network's")
    # Max pooling does not commute with one amplitude per element.
    average = granularity == "element" and name.startswith(("vgg", "sew"))
    network = lively(small(name, granularity, pooling="average" if average else None))
    torch.manual_seed(0)
    with torch.no_grad():
        for lif in of_type(network, rso.RealSpikeLIF):
            if lif.amplitude is not None:
                lif.amplitude.uniform_(-0.5, 1.5)
    images = torch.rand(4, 3, 13, 13)
    folded = rso.reparameterize(network, images)
    report = rso.verify(network, folded, images)
    assert report.agreement == 1
    assert report.max_logit_error < 1e-4
    rso.assert_multiplication_free(folded, images)


def test_every_architecture_has_a_builder():
    assert tuple(BUILDERS) == ARCHITECTURES


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"architecture": "resnet21"}, "did you mean 'resnet20'"),
        ({"architecture": None}, "architecture must be one of"),
        ({"granularity": "elementwise"}, "did you mean 'element'"),
        (
            {"architecture": "resnet20", "pooling": "max"},
            "pooling of resnet20 must be average; got 'max'",
        ),
        ({"encoding": "rate"}, "encoding must be one of direct, frames"),
        ({"image_size": 0}, "image_size"),
        ({"in_channels": 1.0}, "in_channels"),
        ({"classes": -1}, "classes"),
    ],
)
def test_bad_configurations(values, reason):
    with pytest.raises(ValueError, match=reason):
        NetworkConfig(**values)


def test_unknown_key_with_the_nearest():
    values = NetworkConfig().to_dict() | {"time_steps": 4}
    with pytest.raises(ValueError, match=r"unknown configuration key 'time_steps'.*'timesteps'"):
        NetworkConfig.from_dict(values)
