"""Folded networks in inference: spikes travel as bits, and nothing else changes."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from fold_networks import FAMILIES, Neurons, T, images_for, make
from helpers import normal
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import realspike_ops as rso
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.ops.unshared_conv_lif import fits

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = {"binary": {}, "ternary": {"emission": "ternary", "v_reset": None, "decay": 0.5}}


def dense_and_packed(folded, x):
    """Return the outputs of training and of inference."""
    assert any(p.requires_grad for p in folded.parameters())
    dense = folded(x)
    assert dense.requires_grad
    with torch.no_grad():
        return dense.detach(), folded(x)


class DenseSpikes(TorchDispatchMode):
    """Collects what makes dense spikes of these shapes, and counts what packs and unpacks."""

    def __init__(self, shapes=()):
        super().__init__()
        self.shapes = shapes
        self.dense, self.unpacked, self.packed, self.neurons, self.fused = [], 0, 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.name()
        self.neurons += name in ("realspike::lif_packed", "realspike::unshared_conv_lif")
        self.fused += name == "realspike::unshared_conv_lif"
        self.unpacked += name == "realspike::unpack_spikes"
        self.packed += name == "realspike::pack_spikes" and args[0].dim() > 2
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            is_map = isinstance(tensor, torch.Tensor) and tensor.dtype.is_floating_point
            is_map = is_map and tuple(tensor.shape) in self.shapes
            if is_map and self.neurons and name != "realspike::unshared_conv":
                values = set(tensor.unique().tolist())
                if values <= {-1.0, 0.0, 1.0} and len(values) > 1:
                    self.dense.append((name, tuple(tensor.shape)))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("granularity", ["none", "element"])
def test_currents_that_one_layer_reads_are_not_in_memory(granularity, dtype):
    """Those of convolutions; until a hook is to see one, or its weights learn."""
    form = {"decay_granularity": "channel", "threshold_granularity": "element"}
    network = make("vgg-average", Neurons(granularity, **form))
    x = images_for("vgg-average")
    folded = rso.reparameterize(network, x[:1], weight_dtype=dtype)
    dense, packed = dense_and_packed(folded, x)
    assert torch.equal(dense, packed)
    for hooked in (None, folded.features_7, folded.features_5):
        seen = []
        if hooked is not None:
            handle = hooked.register_forward_pre_hook(lambda m, args: seen.append(args[0]))  # noqa: B023
        with torch.no_grad(), DenseSpikes() as counts:
            assert torch.equal(folded(x), packed)
        assert counts.neurons == (4 if hooked is not folded.features_5 else 3)
        assert counts.fused == {None: 3, folded.features_7: 2, folded.features_5: 1}[hooked]
        if hooked is not None:
            handle.remove()
            size = 4 if hooked is folded.features_7 else 8  # the pooling is in the kernel
            assert seen[0].shape == (T * 3, 8, size, size)
    folded.requires_grad_(False)
    folded.features_5.requires_grad_(True)  # its weights alone learn: their current is computed
    with DenseSpikes() as counts:
        folded(x)
    assert counts.fused == 1


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_images_of_another_size_are_refused(granularity, tmp_path):
    """Kernels, averages and borders are those of the size that was folded."""
    network, x = make("resnet20", Neurons(granularity)), images_for("resnet20")
    folded = rso.reparameterize(network, x[:1])
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    other = x[:, :, :7]
    for net in (folded, rso.load_folded(tmp_path / "folded.safetensors")):
        for enabled in (False, True):
            with (
                torch.set_grad_enabled(enabled),
                pytest.raises(ValueError, match=r"\[N, 3, 8, 8\].*got \[3, 3, 7, 8\]"),
            ):
                net(other)
    conv = rso.UnsharedSpikeConv(4, 4, 3, input_size=8, stride=2, padding=1).requires_grad_(False)
    lif = rso.FoldedLIF(1)
    with pytest.raises(ValueError, match=r"8 x 8 \(input_size\); got 7 x 7"):
        conv.fire(lif(torch.zeros(1, 4, 7, 7), packed=True), lif)


LAYERS = (rso.FoldedLIF, rso.UnsharedSpikeConv, rso.SpikeConv2d, rso.SpikeLinear)


@contextlib.contextmanager
def global_hooks(folded, seen):
    everywhere = torch.nn.modules.module
    handles = [
        everywhere.register_module_forward_pre_hook(lambda m, args: seen(m, args[0])),
        everywhere.register_module_forward_hook(lambda m, args, out: seen(m, out)),
    ]
    yield
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def replaced_forwards(folded, seen):
    def looking(layer, forward):
        def call(x):
            seen(layer, x)
            out = forward(x)
            seen(layer, out)
            return out

        return call

    for layer in folded.modules():
        if isinstance(layer, LAYERS):
            layer.forward = looking(layer, layer.forward)
    yield


@pytest.mark.parametrize("look", [global_hooks, replaced_forwards])
def test_whoever_looks_at_layers_sees_every_call_and_dense_tensors(look):
    folded = rso.reparameterize(make("vgg-average", Neurons("element")), images_for("vgg-average"))
    x, calls = images_for("vgg-average"), []
    count = sum(isinstance(layer, LAYERS) for layer in folded.modules())

    def seen(layer, value):
        if isinstance(layer, LAYERS):
            assert isinstance(value, torch.Tensor)
            calls.append(layer)

    with torch.no_grad():
        expected = folded(x)
        with look(folded, seen):
            assert torch.equal(folded(x), expected)
    assert len(calls) == 2 * count == 2 * len(set(calls))


def shapes_of_spikes(folded, x):
    """[T*B, C, H, W], and [T, B, C, H, W], of all that neurons and pooling emit."""
    shapes = set()

    def note(module, args, out):
        shapes.add(tuple(out.shape))
        shapes.add((T, out.shape[0] // T, *out.shape[1:]))

    emit = (rso.FoldedLIF, rso.SpikeMaxPool2d)
    handles = [m.register_forward_hook(note) for m in folded.modules() if isinstance(m, emit)]
    folded(x)
    for handle in handles:
        handle.remove()
    return shapes


def runs_as_one(synapses):
    """Whether the kernel takes the convolution that fires."""
    if not isinstance(synapses, rso.SynapticCurrent):
        return fits(synapses.weight, T)
    layer = list(synapses.synapses.values())[synapses.firing]
    maps = getattr(layer, "maps", 1) * (2 if getattr(layer, "signed", False) else 1)
    return fits(getattr(layer, "layer", layer).weight, T * maps)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granularity", ["none", "channel", "element"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_change_nothing(family, granularity, form):
    network, x = make(family, Neurons(granularity, **FORMS[form])), images_for(family)
    folded = rso.reparameterize(network, x[:1])
    dense, packed = dense_and_packed(folded, x)
    assert torch.equal(dense, packed)
    assert torch.equal(dense_and_packed(folded, x.to(memory_format=torch.channels_last))[1], packed)
    neurons = {n for n, m in folded.named_children() if isinstance(m, rso.FoldedLIF)}
    assert neurons <= folded.steps_in_bits()
    with torch.no_grad(), DenseSpikes(shapes_of_spikes(folded, x)) as seen:
        assert torch.equal(folded(x), packed)
    assert seen.neurons == len(neurons)
    assert seen.packed == 0
    fused = folded.fused_steps(folded.steps_in_bits())
    assert seen.fused == sum(map(runs_as_one, map(folded.get_submodule, fused)))
    sums = {n for n, m in folded.named_children() if isinstance(m, rso.SynapticCurrent)}
    behind = {s.inputs[0] for s in folded.steps if s.name in neurons}
    assert {n for n in sums & behind if folded.get_submodule(n).firing is not None} <= set(fused)
    one_to_one = sum(isinstance(m, rso.OneToOneSynapses) for m in folded.modules())
    assert seen.unpacked == 0
    if one_to_one == 0:  # their current is as large as the map
        assert not seen.dense


def test_a_convolution_and_its_neurons_are_one_op_where_nobody_looks():
    network, x = make("vgg", Neurons("element")), images_for("vgg")
    folded = rso.reparameterize(network, x[:1])
    fused = folded.fused_steps(folded.steps_in_bits())
    assert len(fused) == 3
    with torch.no_grad():
        expected = folded(x)
        for name in (*fused, *fused.values()):
            calls = []
            handle = folded.get_submodule(name).register_forward_pre_hook(
                lambda *call, calls=calls: calls.append(call)
            )
            assert torch.equal(folded(x), expected)
            assert len(calls) == 1
            handle.remove()


@pytest.mark.parametrize("emission", ["binary", "ternary"])
@pytest.mark.parametrize("C", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("timesteps", [1, 3])
def test_any_number_of_channels(C, timesteps, emission):
    """Words are full, almost full, and hold a single channel."""
    torch.manual_seed(C)

    def lif(size):
        layer = rso.RealSpikeLIF(timesteps, "channel", (C, size, size), emission=emission)
        layer.amplitude.data = normal((C, 1, 1), C)
        return layer

    network = nn.Sequential(
        *(nn.Conv2d(3, C, 3, padding=1), rso.DirectEncoding(timesteps), lif(7)),
        *(nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(C, C, 3, padding=1, bias=False), lif(4)),
        *(nn.Flatten(), nn.Linear(16 * C, 5), rso.MeanOverTime(timesteps)),
    ).eval()
    x = normal((4, 3, 7, 7), 1)
    folded = rso.reparameterize(network, x[:1])
    dense, packed = dense_and_packed(folded, x)
    assert torch.equal(dense, packed)
    assert rso.verify(network, folded, x).flipped_spikes == 0
    for empty in dense_and_packed(folded, x[:0]):
        assert empty.shape == (0, 5)
    rso.assert_multiplication_free(folded, x)


@pytest.mark.parametrize(
    "form",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 1), "stride": (1, 2), "padding": (1, 0)},
        {"kernel_size": 2, "stride": 3, "ceil_mode": True},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2},
        {"kernel_size": (2, 3), "stride": (2, 1), "dilation": (3, 1), "ceil_mode": True},
        {"kernel_size": 1, "stride": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(7, 8), (6, 5)])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("emission", FORMS)
def test_max_pooling_of_words(emission, negative, size, form):
    C = 37
    current = normal((2 * 3, C, *size), 5)
    lif = rso.FoldedLIF(2, emission=emission)
    negative = torch.arange(C) % 3 == 1 if negative else None
    pool = rso.SpikeMaxPool2d(**form, negative=negative)
    expected = pool(lif(current))
    pooled = pool(lif(current, packed=True))
    assert isinstance(pooled, PackedSpikes)
    assert torch.equal(pooled.dense(), expected)
    # No bit beyond the last channel.
    words = rso.pack_spikes((expected > 0).float())
    assert torch.equal(pooled.words[0] if pooled.signed else pooled.words, words)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_windows_begin_and_end_where_those_of_torch_do(ceil_mode):
    """Every line of up to 9 pixels, in which one fires, and every small window."""
    forms = itertools.product(range(1, 4), range(1, 5), range(2), range(1, 3))
    for (k, s, p, d), size in itertools.product(forms, range(1, 10)):
        spikes = torch.eye(size)[:, None, None]  # [N, 1, 1, size]
        form = {"kernel_size": (1, k), "stride": (1, s), "padding": (0, p), "dilation": (1, d)}
        form["ceil_mode"] = ceil_mode
        if 2 * p > k:
            continue
        try:
            expected = F.max_pool2d(spikes, **form)
        except RuntimeError:
            continue  # the window does not fit
        pool = rso.SpikeMaxPool2d(**form)
        # Outside the map there is no spike; torch has minus infinity there.
        assert torch.equal(pool(PackedSpikes(rso.pack_spikes(spikes), 1)).dense(), expected.relu())


def test_max_pooling_of_words_by_hand():
    """Two channels of a row 1 0 | 0 0 | 1 1; the second has a negative amplitude."""
    row = torch.tensor([1.0, 0, 0, 0, 1, 1])
    words = rso.pack_spikes(torch.stack((row, row)).view(1, 2, 1, 6))
    pool = rso.SpikeMaxPool2d((1, 2), negative=torch.tensor([False, True]))
    pooled = pool(PackedSpikes(words, 2))
    assert pooled.dense()[0, :, 0].tolist() == [[1, 0, 1], [0, 0, 1]]


class Chain(nn.Module):
    """Neurons whose spikes other neurons, a sum over time or the output read as they are."""

    def __init__(self, end):
        super().__init__()
        self.lif1, self.lif2 = rso.RealSpikeLIF(T), rso.RealSpikeLIF(T)
        self.conv, self.mean, self.end = nn.Conv2d(2, 2, 3, padding=1), rso.MeanOverTime(T), end

    def forward(self, x):
        return self.end(self, self.lif1(x))


@pytest.mark.parametrize(
    ("end", "in_bits"),
    [
        (lambda m, o: m.conv(o), {"lif1"}),
        (lambda m, o: o, set()),
        (lambda m, o: m.lif2(o), set()),
        (lambda m, o: m.conv(m.lif2(o)), {"lif2"}),
        (lambda m, o: m.lif2(m.conv(o)), {"lif1"}),
    ],
    ids=["conv", "output", "neurons-output", "neurons", "last-neurons"],
)
def test_spikes_that_are_read_as_they_are_stay_dense(end, in_bits):
    torch.manual_seed(0)
    network, x = Chain(end).eval(), normal((T * 3, 2, 5, 5), 1, scale=2.0)
    folded = rso.reparameterize(network, x)
    assert folded.steps_in_bits() == in_bits
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x))


def test_hooks_see_dense_spikes():
    network, x = make("vgg", Neurons("channel", emission="ternary")), images_for("vgg")
    folded = rso.reparameterize(network, x[:1])
    with torch.no_grad():
        expected = folded(x)
    everything = folded.steps_in_bits()
    seen = []
    synapses = folded.features_1.synapses.from_features_0.layer
    handles = [
        synapses.register_forward_pre_hook(lambda m, args: seen.append(args[0])),
        folded.features_3.register_forward_hook(lambda m, args, out: seen.append(out)),
        folded.features_8.register_forward_pre_hook(lambda m, args: seen.append(args[0])),
    ]
    with torch.no_grad():
        assert torch.equal(folded(x), expected)
    assert everything - folded.steps_in_bits() == {
        *("features_0", "features_3", "features_4", "features_7", "features_8")
    }
    assert len(seen) == 3
    assert all(isinstance(spikes, torch.Tensor) and spikes.dim() == 4 for spikes in seen)
    for handle in handles:
        handle.remove()
    assert folded.steps_in_bits() == everything


def test_a_layer_of_the_users_own_reads_dense_spikes():
    network, x = make("vgg", Neurons("none")), images_for("vgg")
    folded = rso.reparameterize(network, x[:1])
    with torch.no_grad():
        expected = folded(x)

        class Own(nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, spikes):
                assert spikes.dtype == torch.float32
                return self.layer(spikes)

        folded.classifier_2 = Own(folded.classifier_2)
        torch.testing.assert_close(folded(x), expected)


@pytest.mark.parametrize("name", ["features_0", "features_1", "features_4", "classifier_2"])
def test_a_class_that_comes_from_a_layer_sees_dense_spikes(name):
    """A forward of its own may do with spikes what tensors can."""
    network, x = make("vgg", Neurons("channel")), images_for("vgg")
    folded = rso.reparameterize(network, x[:1])
    layer = folded.get_submodule(name)
    kind = type(layer)

    def forward(self, x):
        assert x.dtype == torch.float32
        return kind.forward(self, x * 1)

    with torch.no_grad():
        expected = folded(x)
        layer.__class__ = type("Own", (kind,), {"forward": forward})
        assert torch.equal(folded(x), expected)
        layer.__class__ = type("Plain", (kind,), {})
        assert torch.equal(folded(x), expected)


def test_training_is_dense_and_frozen_networks_are_not():
    network, x = make("resnet20", Neurons("element")), images_for("resnet20")
    folded = rso.reparameterize(network, x[:1])
    with torch.no_grad():
        expected = folded(x)
    folded(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())
    folded.requires_grad_(False)
    with DenseSpikes() as seen:
        assert torch.equal(folded(x), expected)
    assert seen.neurons == 9
    # The first weights alone are frozen: their spikes are bits, the gradients the same.
    folded.requires_grad_(True)
    for name in folded.encoding:
        folded.get_submodule(name).requires_grad_(False)
    grads = [p.grad.clone() for p in folded.parameters() if p.requires_grad]
    folded.zero_grad()
    with DenseSpikes() as seen:
        folded(x).sum().backward()
    assert seen.neurons == 1
    for p, grad in zip((p for p in folded.parameters() if p.requires_grad), grads, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_half_precision_input():
    network, x = make("resnet19", Neurons("channel")), images_for("resnet19")
    folded = rso.reparameterize(network, x[:1]).bfloat16()
    dense, packed = dense_and_packed(folded, x.bfloat16())
    assert torch.equal(dense, packed)


def test_other_modes_of_inference():
    """inference_mode, threads, train() without gradients, autocast and vmap."""
    network, x = make("resnet20", Neurons("channel")), images_for("resnet20")
    folded = rso.reparameterize(network, x[:1])
    with torch.no_grad():
        expected = folded(x)
        torch.set_num_threads(2)
        assert torch.equal(folded(x), expected)
        torch.set_num_threads(1)
        for mapped in torch.func.vmap(folded)(torch.stack((x, x))):
            assert torch.equal(mapped, expected)
    with torch.inference_mode():
        assert torch.equal(folded(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = folded(x).detach()
        with torch.no_grad():
            assert torch.equal(folded(x), dense)


def test_compiled():
    network, x = make("vgg", Neurons("channel", emission="ternary")), images_for("vgg")
    folded = rso.reparameterize(network, x[:1])
    with torch.no_grad():
        compiled = torch.compile(folded, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), folded(x))


def test_packed_spikes_that_do_not_fit():
    spikes = PackedSpikes(rso.pack_spikes(torch.zeros(2, 6, 4, 4)), 6)
    for layer in (rso.SpikeConv2d(5, 3, 3), rso.UnsharedSpikeConv(5, 3, 3, input_size=4)):
        with pytest.raises(ValueError, match=r"5 channels; got binary ones of 6"):
            layer(spikes)
    signed = rso.FoldedLIF(1, emission="ternary")(torch.zeros(2, 6, 4, 4), packed=True)
    with pytest.raises(ValueError, match=r"binary ones of 6 channels; got ternary ones"):
        rso.SpikeConv2d(6, 3, 3)(signed)
    linear = rso.SpikeLinear(6, 3)
    with pytest.raises(ValueError, match=r"spikes must have shape \[N, 6\]; got \[2, 4, 4, 1\]"):
        linear(spikes)
    with pytest.raises(ValueError, match=r"kernel_size \(5, 5\) fits"):
        rso.SpikeMaxPool2d(5)(spikes)
