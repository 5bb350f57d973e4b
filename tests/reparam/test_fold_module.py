"""What an ordinary module can, a folded network can: files, copies, dtypes, print; its size."""

import copy

import pytest
import torch
from fold_networks import (
    Neurons,
    images_for,
    make,
    synapses_of,
)
from torch import nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("granularity", ["channel", "element"])
@pytest.mark.parametrize("family", ["resnet20-odd", "sew-resnet18", "branches", "vgg"])
def test_save_and_load_without_the_training_code(family, granularity, tmp_path):
    network = make(family, Neurons(granularity, emission="ternary", decay_granularity="channel"))
    x = images_for(family)
    folded = rso.reparameterize(network, x[:1])
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    loaded = rso.load_folded(tmp_path / "folded.safetensors")
    assert torch.equal(loaded(x), folded(x))
    assert repr(loaded) == repr(folded)
    assert not loaded.training


def test_files_that_are_refused(tmp_path):
    network = make("vgg", Neurons("channel"))
    folded = rso.reparameterize(network, images_for("vgg"))
    path = tmp_path / "folded.safetensors"
    folded.encode_0 = nn.ConvTranspose2d(3, 6, 3)
    with pytest.raises(ValueError, match=r"encode_0.*ConvTranspose2d"):
        rso.save_folded(folded, path)
    with pytest.raises(TypeError, match=r"FoldedNetwork.*Vgg"):
        rso.save_folded(network, path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"folded\.safetensors is not a folded network"):
        rso.load_folded(path)


def test_a_file_whose_weights_do_not_fit(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    folded = rso.reparameterize(make("vgg", Neurons("channel")), images_for("vgg"))
    path = tmp_path / "folded.safetensors"
    rso.save_folded(folded, path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for name in ("encode_0.weight", "classifier_5.weight"):
        save_file({k: t for k, t in tensors.items() if k != name}, path, metadata)
        with pytest.raises(ValueError, match="is not a folded network"):
            rso.load_folded(path)
    for old, new in (("FoldedLIF", "os.system"), ("vgg", "vgg"), ('"output"', '"out"')):
        changed = metadata | {"network": metadata["network"].replace(old, new)}
        save_file(tensors, path, changed)
        if changed != metadata:
            with pytest.raises(ValueError, match="is not a folded network"):
                rso.load_folded(path)
    save_file(tensors, path, metadata | {"format_version": "0"})
    with pytest.raises(ValueError, match="format"):
        rso.load_folded(path)


def _negate(module):
    module.register_forward_hook(lambda module, args, out: -out)


def _replace_forward(module):
    own = module.forward
    module.forward = lambda x: own(-x)


@pytest.mark.parametrize("change", [_negate, _replace_forward])
@pytest.mark.parametrize("layer", ["", "encode_0", "features_0", "features_1"])
def test_a_file_would_not_hold_hooks_and_replaced_methods(change, layer, tmp_path):
    folded = rso.reparameterize(make("vgg", Neurons("channel")), images_for("vgg"))
    change(folded.get_submodule(layer))
    with pytest.raises(ValueError, match=f"'{layer or 'folded'}' must compute what its class"):
        rso.save_folded(folded, tmp_path / "folded.safetensors")
    assert not [*tmp_path.iterdir()]


def test_what_would_not_be_read_is_not_written(tmp_path):
    """Weights in float64, which kernels do not take; a class that has the name of ours alone."""
    folded = rso.reparameterize(make("vgg", Neurons("channel")), images_for("vgg"))
    path = tmp_path / "folded.safetensors"
    with pytest.raises(ValueError, match=r"cannot be stored in a file: .*float64"):
        rso.save_folded(copy.deepcopy(folded).double(), path)
    ours = folded.features_1
    theirs = type("SpikeConv2d", (rso.SpikeConv2d,), {"forward": lambda self, spikes: -spikes})
    folded.features_1 = theirs.from_weight(ours.weight.detach(), ours.bias.detach(), padding=1)
    with pytest.raises(ValueError, match="'features_1' is a SpikeConv2d, which the format"):
        rso.save_folded(folded, path)
    assert not path.exists()


def test_state_dict_and_copies():
    x = images_for("resnet19")
    folded, other = (
        rso.reparameterize(make("resnet19", Neurons("element"), seed), x[:1]) for seed in (0, 1)
    )
    assert not torch.equal(folded(x), other(x))
    other.load_state_dict(folded.state_dict())
    assert torch.equal(folded(x), other(x))
    assert torch.equal(copy.deepcopy(folded)(x), folded(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(dtype):
    form = {"decay_granularity": "channel", "threshold_granularity": "element"}
    network, x = make("resnet20", Neurons("element", **form)), images_for("resnet20")
    folded = rso.reparameterize(network, x[:1], weight_dtype=dtype)
    assert all(s.weight.dtype == dtype for s in synapses_of(folded))
    report = rso.verify(network, folded, x, bounds=True)
    assert report.within_bounds, report
    assert max(layer.max_current_error for layer in report.layers) > 1e-5
    whole = rso.reparameterize(network, x[:1])
    exact = {k: v for k, v in whole.named_buffers() if "decay" in k or "threshold" in k}
    whole.to(dtype)
    assert whole(x.to(dtype)).shape == (3, 5)
    assert exact
    for name, buffer in exact.items():  # neurons keep their dynamics
        assert torch.equal(whole.get_buffer(name), buffer)
    # By way of float64, too, in which the reference runs.
    whole = rso.reparameterize(network, x[:1])
    expected = whole(x)
    assert torch.equal(whole.double().float()(x), expected)
    assert whole.double().to(dtype)(x.to(dtype)).shape == (3, 5)
    for name, buffer in exact.items():
        assert torch.equal(whole.get_buffer(name), buffer)


def test_print_names_sources_synapses_and_sizes():
    folded = rso.reparameterize(
        make("sew-resnet18", Neurons("element")), images_for("sew-resnet18")
    )
    lines = {line.split()[1]: line for line in repr(folded).splitlines() if line.startswith("  ")}
    assert lines["encode_0"].split()[0] == "encoding"
    assert "SpikeConv2d(4, 4" in lines["blocks_0_first_0"]
    assert "[592 B]" in lines["blocks_0_first_0"]  # 4 * 4 * 9 + 4 floats
    # The shortcut's spikes and the block's meet in front of the second block.
    assert "sum of" in lines["blocks_1_lif1_current"]
    text = repr(folded)
    assert "blocks_0_lif2" in text
    assert "UnsharedSpikeConv(4, 4" in text
    assert f"{sum(p.numel() for p in folded.parameters()):,} parameters" in text


def test_too_large_is_refused_before_it_is_allocated():
    """512 channels on a 64 x 64 map: 36 GiB of unshared weights."""
    lif = rso.RealSpikeLIF(1, "element", (512, 64, 64))
    network = nn.Sequential(lif, nn.Conv2d(512, 512, 3, padding=1, bias=False)).eval()
    x = torch.zeros(1, 512, 64, 64)
    with pytest.raises(rso.ReparameterizationError) as refused:
        rso.reparameterize(network, x)
    count = 64 * 64 * 9 * 512 * 512 * 4
    for part in (f"{count:,} bytes", "'1' 36 GiB", "bfloat16: 18 GiB", "'channel'", "9 MiB"):
        assert part in str(refused.value)
    with pytest.raises(rso.ReparameterizationError, match=r"18 GiB"):
        rso.reparameterize(network, x, weight_dtype=torch.bfloat16)


def test_the_limit_counts_the_bytes_of_the_weights():
    network, x = make("resnet19", Neurons("element")), images_for("resnet19")
    weights = synapses_of(rso.reparameterize(network, x))
    count = sum(layer.weight.numel() for layer in weights)
    for dtype, size in ((torch.float32, 4 * count), (torch.float16, 2 * count)):
        rso.reparameterize(network, x, weight_dtype=dtype, max_bytes=size)
        with pytest.raises(rso.ReparameterizationError, match=rf"\({size:,} bytes\)"):
            rso.reparameterize(network, x, weight_dtype=dtype, max_bytes=size - 1)


def test_arguments():
    network, x = make("vgg", Neurons("none")), images_for("vgg")
    with pytest.raises(TypeError, match=r"weight_dtype must be one of.*int32"):
        rso.reparameterize(network, x, weight_dtype=torch.int32)
    with pytest.raises(ValueError, match="max_bytes must be at least 1; got 0"):
        rso.reparameterize(network, x, max_bytes=0)


@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_equal_kernels_of_several_maps_are_one(emission, tmp_path):
    """A vanilla SEW-ResNet adds spikes to spikes in front of one convolution: it stays one."""
    network, x = (
        make("sew-resnet18", Neurons("none", emission=emission)),
        images_for("sew-resnet18"),
    )
    folded = rso.reparameterize(network, x[:1])
    current = folded.blocks_1_first_0
    (synapses,) = current.synapses.values()
    (reads,) = (step.inputs for step in folded.steps if step.name == "blocks_1_first_0")
    assert synapses.maps == len(reads) == 2
    trained = sum(
        m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    )
    kept = sum(layer.weight.numel() for layer in synapses_of(folded))
    kept += sum(p.numel() for p in folded.encode_0.parameters())
    assert kept == trained
    assert "the same weights" in repr(folded)
    # One tensor in the state and in the file; training on changes it for both.
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    loaded = rso.load_folded(tmp_path / "folded.safetensors")
    names = [name for name in loaded.state_dict() if name.startswith("blocks_1_first_0.")]
    assert sum("weight" in name for name in names) == 1
    assert torch.equal(loaded(x), folded(x))
    loaded(x).sum().backward()
    (weight,) = (p for n, p in loaded.blocks_1_first_0.named_parameters() if "weight" in n)
    conv = network.blocks[1].first[0]
    network(x).sum().backward()
    norm = network.blocks[1].first[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = conv.weight.grad / scale[:, None, None, None]
    got = weight.grad[0, 0, 0].permute(3, 2, 0, 1)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_kernels_of_different_amplitudes_stay_apart():
    network, x = make("sew-resnet18", Neurons("channel")), images_for("sew-resnet18")
    folded = rso.reparameterize(network, x[:1])
    assert len(folded.blocks_1_lif1_current.synapses) == 2
