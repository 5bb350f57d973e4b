"""A folded network decides once what it runs, and anew as soon as anything it read changes."""

import copy
import gc
import io
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from fold_networks import FAMILIES, Neurons, T, images_for, make
from helpers import normal
from torch import nn
from torch.nn.modules import module as torch_module

import realspike_ops as rso
from realspike_ops.reparam import plan, segment

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def folded_of(family="resnet20", granularity="channel", **form):
    x = images_for(family)
    with torch.enable_grad():
        return rso.reparameterize(make(family, Neurons(granularity, **form)), x[:1]), x


def plain(folded, x):
    """The steps one by one: a hook that sees every layer keeps all maps dense."""
    handle = torch_module.register_module_forward_hook(lambda *_: None)
    try:
        return copy.deepcopy(folded)(x)
    finally:
        handle.remove()


def programs(folded):
    """The programs of the last plan, and how many calls each of them runs."""

    def of(part):
        if not isinstance(part, segment.Segment):
            return []
        found = []
        for program in part._programs.values():
            if isinstance(program, segment._Program):
                found.append((program, len(part.calls)))
            else:
                found += [own for inner in program for own in of(inner)]
        return found

    return [own for part in folded._plans.plan._native for own in of(part)]


@pytest.fixture
def plans(monkeypatch):
    """Collects the plans that are made."""
    made = []
    own = plan._calls
    monkeypatch.setattr(plan, "_calls", lambda network: made.append(network) or own(network))
    return made


@pytest.mark.parametrize("emission", ["binary", "ternary"])
@pytest.mark.parametrize("family", FAMILIES)
def test_most_calls_are_one_program(family, emission):
    form = {"emission": emission} | ({"v_reset": None} if emission == "ternary" else {})
    folded, x = folded_of(family, "element", **form)
    assert torch.equal(folded(x), plain(folded, x))
    neurons = sum(isinstance(m, rso.FoldedLIF) for m in folded.children())
    run = sum(
        call.output in {n for n, m in folded.named_children() if isinstance(m, rso.FoldedLIF)}
        for part in folded._plans.plan._native
        if isinstance(part, segment.Segment)
        for call in part.calls
    )
    assert programs(folded)
    if family not in ("resnet20-odd", "branches"):  # kernels that differ at borders
        assert run == neurons


def test_a_plan_is_made_once(plans):
    folded, x = folded_of()
    for batch in (x, x[:1], torch.cat((x, x)), x.to(memory_format=torch.channels_last), x[:0]):
        for _ in range(3):
            folded(batch)
    assert len(plans) == 1
    # One for each layout of the currents of the encoding, whatever the batch, and one of the layer
    # behind the pooling.
    assert len(programs(folded)) <= 3
    folded.eval()  # the mode that it has
    folded(x)
    assert len(plans) == 1


def test_the_host_does_little():
    """No checks, no modules and no parameters between the layers of one program."""
    folded, x = folded_of()
    folded(x)
    (_, calls), _ = programs(folded)
    assert calls == 9
    part = next(p for p in folded._plans.plan._native if isinstance(p, segment.Segment))
    given = {name: torch.zeros(3, 6, 8, 8) for name in part.inputs}
    entered = []
    sys.setprofile(lambda frame, event, arg: entered.append(event) if event == "call" else None)
    try:
        part.run(given)
        folded._plans.plan.holds(folded)
    finally:
        sys.setprofile(None)
    assert len(entered) < 60  # frames of Python, those of comprehensions included


class _Ends(nn.Module):
    """Ends in currents: of maps, of their features, or of both, beside the neurons they drive."""

    def __init__(self, end):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 6, 3), rso.DirectEncoding(T))
        self.lif1, self.lif2 = rso.RealSpikeLIF(T), rso.RealSpikeLIF(T)
        self.conv, self.fc = nn.Conv2d(6, 35, 3), nn.Linear(35 * 16, 5)
        self.end = end

    def forward(self, x):
        current = self.conv(self.lif1(self.encode(x)))
        if self.end == "maps":
            return current
        features = self.fc(self.lif2(current).flatten(1))
        return features if self.end == "features" else (current, features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=["float32", "int8"])
@pytest.mark.parametrize("end", ["maps", "features", "both"])
def test_currents_at_the_end_are_in_the_program(end, dtype):
    x = normal((3, 3, 8, 8), seed=1)
    model = _Ends(end).eval()
    with torch.enable_grad():
        folded = rso.reparameterize(model, x[:1], weight_dtype=dtype)
    for batch in (x, x[:1], x[:0], x.to(memory_format=torch.channels_last)):
        got, expected = folded(batch), plain(folded, batch)
        if end != "both":
            got, expected = (got,), (expected,)
        for own, other in zip(got, expected, strict=True):
            assert own.shape == other.shape
            assert own.stride() == ((35 * 16, 1, 4 * 35, 35) if own.dim() == 4 else (5, 1))
            assert torch.equal(own, other)
    (part,) = (p for p in folded._plans.plan._native if isinstance(p, segment.Segment))
    assert part.calls[-1].neurons is None  # a convolution alone
    layer = part.calls[-1].module
    before = folded(x)
    layer.bias += 1
    after = folded(x)
    if end == "both":
        before, after = before[-1], after[-1]
    torch.testing.assert_close(after, before + 1)


# --- what changes a plan


class _Doubled(rso.SpikeConv2d):
    def forward(self, spikes):
        return 2 * super().forward(spikes)


def first_lif(folded):
    return next(m for m in folded.children() if isinstance(m, rso.FoldedLIF))


def convolution(folded):
    return next(m for m in folded.children() if isinstance(m, rso.SpikeConv2d))


def current(folded):
    return next(m for m in folded.children() if isinstance(m, rso.SynapticCurrent))


def replace_weight(folded):
    conv = convolution(folded)
    conv.weight = nn.Parameter(-conv.weight.detach())


def replace_memory(folded):
    conv = convolution(folded)
    conv.weight.data = -conv.weight.data


def turn_memory(folded):
    """The same address, read in another order."""
    conv = convolution(folded)
    conv.weight.data = conv.weight.data.transpose(5, 6)


def share_memory(folded):
    """Moved within their storages."""
    folded.share_memory()
    convolution(folded).weight.data.neg_()


def resize_storage(folded):
    weight = convolution(folded).weight
    copy, storage = -weight.detach(), weight.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(2 * size)
    weight.data.copy_(copy)


def write_in_place(folded):
    convolution(folded).weight.neg_()


def write_past_the_version(folded):
    convolution(folded).bias.data.add_(1)


def load(folded):
    folded.load_state_dict({k: -v for k, v in folded.state_dict().items()}, strict=False)


def set_threshold(folded):
    first_lif(folded).v_threshold = 0.1


def set_decay(folded):
    first_lif(folded).decay_factor = torch.full((1,), 0.9)


def set_stride_of_time(folded):
    for module in folded.modules():
        if hasattr(module, "timesteps"):
            module.timesteps = 1


def replace_layer(folded):
    for name, conv in folded.named_children():
        if isinstance(conv, rso.SpikeConv2d):
            doubled = _Doubled.from_weight(conv.weight.detach(), conv.bias.detach(), padding=1)
            setattr(folded, name, doubled)
            return


def change_class(folded):
    convolution(folded).__class__ = _Doubled


def replace_inner_layer(folded):
    inner = current(folded).synapses
    name, conv = next((n, m) for n, m in inner.items() if m.kernel_size == (3, 3))
    inner[name] = _Doubled.from_weight(conv.weight.detach(), padding=1)


def replace_bias_of_sum(folded):
    current(folded).bias = nn.Parameter(torch.full((1,), 0.3))


def replace_forward(folded):
    conv = convolution(folded)
    own = conv.forward
    conv.forward = lambda spikes: -own(spikes)


def hook_changes_a_current(folded):
    convolution(folded).register_forward_hook(lambda m, args, out: -out)


def hook_changes_spikes(folded):
    first_lif(folded).register_forward_hook(lambda m, args, out: 1 - out)


def hook_before_neurons(folded):
    first_lif(folded).register_forward_pre_hook(lambda m, args: (-args[0],))


def hook_inside_a_sum(folded):
    layer = next(iter(current(folded).synapses.values()))
    layer.register_forward_hook(lambda m, args, out: -out)


def parametrize(folded):
    class Negative(nn.Module):
        def forward(self, weight):
            return -weight

    nn.utils.parametrize.register_parametrization(convolution(folded), "weight", Negative())


def cast(folded):
    folded.bfloat16()


CHANGES = [
    *(replace_weight, replace_memory, turn_memory, write_in_place, write_past_the_version, load),
    *(set_threshold, set_decay, set_stride_of_time, replace_layer, change_class),
    *(share_memory, resize_storage),
    *(replace_inner_layer, replace_bias_of_sum, replace_forward, hook_changes_a_current),
    *(hook_changes_spikes, hook_before_neurons, hook_inside_a_sum, parametrize, cast),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_seen(change):
    folded, x = folded_of()
    before = folded(x)
    folded(x)
    change(folded)
    if change is cast:
        x = x.bfloat16()
    expected = plain(folded, x)
    assert torch.equal(folded(x), expected)
    assert torch.equal(folded(x), expected)
    assert not torch.equal(expected.float(), before)


def test_hooks_come_and_go():
    folded, x = folded_of()
    expected = folded(x)
    for module in (first_lif(folded), convolution(folded), current(folded)):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            calls = []
            handle = getattr(module, register)(lambda *call, calls=calls: calls.append(call))
            assert torch.equal(folded(x), expected)
            handle.remove()
            assert torch.equal(folded(x), expected)
            assert len(calls) == 1


def test_a_class_whose_method_is_replaced(monkeypatch):
    folded, x = folded_of()
    expected = folded(x)
    own = rso.FoldedLIF.forward
    monkeypatch.setattr(
        rso.FoldedLIF, "forward", lambda self, x, packed=False: own(self, -x, packed)
    )
    assert not torch.equal(folded(x), expected)


def test_steps_and_outputs_are_read_anew():
    folded, x = folded_of()
    scores = folded(x)
    last = folded.steps[-1]
    folded.output = last.inputs[0]
    assert folded(x).shape == (T * len(scores), *scores.shape[1:])
    folded.output = (last.name, last.inputs[0])
    assert torch.equal(folded(x)[0], scores)


def test_gradients_are_asked_for_at_every_call():
    folded, x = folded_of()
    expected = folded(x)
    with torch.enable_grad():
        assert folded(x).requires_grad
        folded.requires_grad_(False)
        assert torch.equal(folded(x), expected)
        assert folded(x.clone().requires_grad_()).requires_grad
        current(folded).requires_grad_(True)
        assert folded(x).requires_grad
    assert torch.equal(folded(x), expected)


def test_inference_mode_comes_and_goes():
    """The first call, in inference mode, copies biases of bfloat16; others write to the copy."""
    folded, x = folded_of()
    folded, x = folded.bfloat16(), x.bfloat16()
    expected = plain(folded, x)
    with torch.inference_mode():
        assert torch.equal(folded(x), expected)
    assert torch.equal(folded(x), expected)
    with torch.inference_mode():
        convolution(folded).bias.neg_()
    changed = plain(folded, x)
    assert torch.equal(folded(x), changed)
    assert not torch.equal(changed, expected)


# --- copies, threads, inputs


def test_copies_have_their_own():
    folded, x = folded_of()
    expected = folded(x)
    deep = copy.deepcopy(folded)
    file = io.BytesIO()
    torch.save(folded, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    shallow = copy.copy(folded)
    write_in_place(folded)
    changed = folded(x)
    assert not torch.equal(changed, expected)
    for _ in range(2):
        assert torch.equal(deep(x), expected)
        assert torch.equal(loaded(x), expected)
        assert torch.equal(shallow(x), changed)  # the same layers
        assert torch.equal(folded(x), changed)


@pytest.mark.parametrize("family", ["resnet20", "depthwise"])  # a program, and parts of one
def test_a_plan_keeps_no_network_alive(family):
    folded, x = folded_of(family)
    folded(x)
    gone = weakref.ref(folded)
    gc.disable()
    try:
        del folded
        assert gone() is None
    finally:
        gc.enable()


def test_threads_share_a_plan():
    folded, x = folded_of()
    batches = [x, x[:1], torch.cat((x, x)), -x]
    expected = [copy.deepcopy(folded)(batch) for batch in batches]
    results = {}

    def work(n):
        with torch.no_grad():
            results[n] = [folded(batches[n]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, outputs in results.items():
        assert all(torch.equal(out, expected[n]) for out in outputs)
    assert len(results) == len(batches)


@pytest.mark.parametrize("threads", [2, 5])
def test_a_team_of_threads_runs_a_program(threads):
    """Loops of all sizes, of which some are for one thread, beside other callers' loops."""
    with torch.enable_grad():
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), rso.DirectEncoding(4), rso.RealSpikeLIF(4)),
            *(nn.Conv2d(32, 64, 3, padding=1, stride=2), rso.RealSpikeLIF(4)),
            *(nn.Conv2d(64, 2, 3, padding=1), rso.RealSpikeLIF(4), nn.Flatten()),
            *(nn.Linear(2 * 64, 3), rso.MeanOverTime(4)),
        ).eval()
        x = normal((3, 3, 16, 16), 1)
        folded = rso.reparameterize(network, x)
    expected = folded(x)
    assert programs(folded)
    assert torch.equal(expected, plain(folded, x))
    torch.set_num_threads(threads)
    try:
        for _ in range(50):
            assert torch.equal(folded(x), expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_any_layout_and_batch(granularity):
    """Frames that neurons read as they come: [T*B, ...], of every layout."""
    with torch.enable_grad():
        torch.manual_seed(0)
        network = nn.Sequential(
            rso.RealSpikeLIF(4, granularity, (33, 7, 6)),
            nn.Conv2d(33, 40, 3, padding=1),
            rso.RealSpikeLIF(4, "none"),
            nn.Flatten(),
            nn.Linear(40 * 42, 64),
            rso.RealSpikeLIF(4, "none", threshold_granularity="channel", shape=(64,)),
            nn.Linear(64, 5),
            rso.MeanOverTime(4),
        ).eval()
        nn.init.uniform_(network[0].amplitude, 0.5, 1.5)
        nn.init.uniform_(network[5].v_threshold, 0.1, 0.5)
        x = normal((12, 33, 7, 6), 1)
        folded = rso.reparameterize(network, x[:4])
    seen = set()
    for batch in (x, x[:4], torch.cat((x, x))):
        contiguous = folded(batch)
        assert torch.equal(contiguous, plain(folded, batch))
        last = batch.to(memory_format=torch.channels_last)
        turned = batch.transpose(2, 3).contiguous().transpose(2, 3)
        for given in (last, turned, torch.stack((batch, batch), -1)[..., 0]):
            assert torch.equal(folded(given), contiguous)
        assert torch.equal(folded(batch.bfloat16()), folded(last.bfloat16()))
        seen |= {id(program) for program, _ in programs(folded)}
    assert seen
    assert folded(x[:0]).shape == (0, 5)
    assert torch.equal(folded(x[:4]), contiguous[:1] if len(contiguous) == 1 else folded(x[:4]))
    with pytest.raises(ValueError, match="that 4 timesteps divide"):
        folded(x[:6])
    assert torch.equal(folded(x), plain(folded, x))


def net_of_frames(timesteps):
    with torch.enable_grad():
        network = nn.Sequential(
            rso.DirectEncoding(timesteps) if timesteps > 1 else nn.Identity(),
            *(rso.RealSpikeLIF(timesteps), nn.Conv2d(3, 8, 3), rso.RealSpikeLIF(timesteps)),
            *(nn.Flatten(), nn.Linear(8 * 4 * 3, 5)),
        ).eval()
        nn.init.normal_(network[2].weight)
        return rso.reparameterize(network, normal((1, 3, 6, 5), 1))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("timesteps", [1, 2])
def test_a_frame_of_every_other_says_nothing_of_a_batch_of_them(timesteps, layout):
    """One element of `x[::2]` is dense, with the strides of a batch that has gaps."""
    folded = net_of_frames(timesteps)
    frames = normal((8, 3, 6, 5), 3, scale=2.0).contiguous(memory_format=layout)
    single = folded(frames[:1])
    assert torch.equal(folded(frames[:2][::2]), single)
    assert [calls for _, calls in programs(folded)]
    expected = plain(folded, frames[::2])
    assert torch.equal(expected.unflatten(0, (timesteps, 4))[:, :1].flatten(0, 1), single)
    assert not torch.equal(expected, plain(folded, frames[:4]))
    for given in (frames[::2], frames[::2].clone(), frames[:2][::2].expand(4, -1, -1, -1)):
        assert torch.equal(folded(given), plain(folded, given))


def test_a_plan_keeps_no_input_alive():
    folded = net_of_frames(2)
    memory = np.ones((4, 3, 6, 5), np.float32)
    gone = weakref.ref(memory)
    folded(torch.from_numpy(memory))
    assert programs(folded)
    del memory
    assert gone() is None


def test_copies_of_what_lies_otherwise_follow_it():
    """Thresholds [C, H, W] and a bias in half precision are laid out anew for the kernels."""
    with torch.enable_grad():
        torch.manual_seed(0)
        lif = rso.RealSpikeLIF(2, "none", threshold_granularity="element", shape=(5, 6, 7))
        nn.init.uniform_(lif.v_threshold, 0.2, 0.8)
        network = nn.Sequential(
            *(rso.RealSpikeLIF(2), nn.Conv2d(3, 5, 3, padding=1), lif, nn.Flatten()),
            nn.Linear(210, 4),
        ).eval()
        x = normal((4, 3, 6, 7), 2, scale=2.0)
        folded = rso.reparameterize(network, x).half().float()
    folded.get_submodule(folded.steps[1].name).bias.data = torch.randn(5).half().float()
    for _ in range(2):
        assert torch.equal(folded(x), plain(folded, x))
        assert any(program._copies for program, _ in programs(folded))
        neurons = [m for m in folded.children() if isinstance(m, rso.FoldedLIF)][1]
        neurons.v_threshold.data.mul_(0.3)  # no version tells
    assert torch.equal(folded(x), plain(folded, x))
