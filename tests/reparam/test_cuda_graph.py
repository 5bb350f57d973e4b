"""Captured folded networks: what is recorded, when it is recorded anew, and what is refused.

Without a GPU a tape takes the place of CUDA graphs: it repeats operators on the tensors that they
had, so that what a graph would miss is missed here.
"""

import contextlib
import copy
import pickle
import threading

import pytest
import torch
from fold_networks import FAMILIES, Neurons, images_for, make
from no_sync import Synchronised
from tape import Tape
from torch import nn

import realspike_ops as rso
from realspike_ops.reparam import cuda_graph as module

pytestmark = pytest.mark.usefixtures("one_thread")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def tapes(monkeypatch):
    """Collects the tapes that take the place of CUDA graphs, of networks on the CPU."""
    made = []

    class Tapes(Tape):
        device_type = "cpu"

        def __init__(self, device):
            super().__init__()
            assert device == torch.device("cpu")
            made.append(self)

        def turn(self):
            return contextlib.nullcontext()

    monkeypatch.setattr(module, "CudaGraphs", Tapes)
    return made


def folded_of(family="vgg", granularity="channel", **form):
    x = images_for(family)
    return rso.reparameterize(make(family, Neurons(granularity, **form)), x[:1]), x


def plain(folded, x):
    with torch.no_grad():
        return folded(x)


KINDS = [*((f, "binary") for f in FAMILIES), ("resnet20", "ternary"), ("branches", "ternary")]


@pytest.mark.parametrize(("family", "emission"), KINDS)
def test_a_replay_is_the_plain_call(tapes, family, emission):
    folded, x = folded_of(family, "element", emission=emission)
    run = rso.graphed(folded, x)
    (tape,) = tapes
    assert (tape.ran, tape.recorded, tape.replayed) == (module.WARM_UP, 1, 1)
    for n in range(3):
        image = x.roll(n, 0) * (1 + n)
        assert torch.equal(run(image), plain(folded, image))
    assert (tape.recorded, tape.replayed) == (1, 4)


def test_outputs_are_the_callers_own(tapes):
    folded, x = folded_of()
    last = folded.steps[-1]
    folded.output = {"scores": last.name, "before": (last.inputs[0],)}
    run = rso.graphed(folded, x)
    first = run(x)
    kept = copy.deepcopy(first)
    run(-x)
    first["scores"].zero_()
    again = run(x)
    assert torch.equal(again["scores"], kept["scores"])
    assert torch.equal(first["before"][0], kept["before"][0])
    assert not again["scores"].requires_grad


def test_inputs_are_copied_in(tapes):
    folded, x = folded_of()
    run = rso.graphed(folded, x)
    image = x.clone()
    before = run(image)
    image.neg_()
    assert torch.equal(run(image), plain(folded, -x))
    assert torch.equal(image, -x)
    assert torch.equal(run(x), before)


def test_a_call_writes_nothing_before_its_turn(tapes, monkeypatch):
    folded, x = folded_of()
    run = rso.graphed(folded, x)
    (tape,), (place, _) = tapes, run._graphs[next(iter(run._graphs))]

    def turn():
        raise TimeoutError

    monkeypatch.setattr(tape, "turn", turn)
    for image in (-x, x[:1]):
        with pytest.raises(TimeoutError):
            run(image)
    assert torch.equal(place, x)
    assert (tape.ran, tape.recorded, tape.replayed) == (module.WARM_UP, 1, 1)


class FakeStream:
    """Knows what runs before whatever it is asked next."""

    device = torch.device("cuda", 1)

    def __init__(self, device=None):
        self.before = []

    def wait_event(self, event):
        self.before += [work for work in event.before if work not in self.before]


class FakeEvent:
    before = ()

    def record(self, stream):
        self.before = tuple(stream.before)


def test_turns_follow_each_other_on_any_stream(monkeypatch):
    """Recordings share their memory, and another stream would not wait by itself."""
    streams = {name: FakeStream() for name in "ab"}
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    recorder = module.CudaGraphs(FakeStream.device)
    expected = []
    for number, name in enumerate("aabbab"):
        monkeypatch.setattr(
            torch.cuda,
            "current_stream",
            lambda device, name=name: {FakeStream.device: streams[name]}[device],
        )
        fails = pytest.raises(TimeoutError) if number == 2 else contextlib.nullcontext()
        with fails, recorder.turn():
            assert streams[name].before == expected
            streams[name].before.append(number)
            expected.append(number)
            if number == 2:
                raise TimeoutError


def test_a_recording_for_every_kind_of_input(tapes):
    folded, x = folded_of()
    run = rso.graphed(folded, x)
    kinds = [x, x[:2], torch.cat((x, x)), x.to(memory_format=torch.channels_last)]
    for _ in range(2):
        for image in kinds:
            assert torch.equal(run(image), plain(folded, image))
    (tape,) = tapes
    assert tape.recorded == len(kinds)
    assert "4 of up to 8 inputs" in repr(run)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(x)
        assert torch.equal(mixed, plain(folded, x))
    assert tape.recorded == len(kinds) + 1
    assert torch.equal(run(x), plain(folded, x))


def test_the_oldest_recording_goes_first(tapes):
    folded, x = folded_of()
    run = rso.graphed(folded, x[:1], most=2)
    (tape,) = tapes
    for size, recorded in ((2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        run(torch.cat((x, x))[:size])
        assert tape.recorded == recorded


def conv_of(folded):
    return next(m for m in folded.children() if isinstance(m, rso.SpikeConv2d))


def replace_weight(folded):
    conv_of(folded).weight = nn.Parameter(-conv_of(folded).weight.detach())


def replace_memory(folded):
    conv_of(folded).weight.data = -conv_of(folded).weight.data


def replace_layer(folded):
    name, conv = next((n, m) for n, m in folded.named_children() if isinstance(m, rso.SpikeConv2d))
    other = rso.SpikeConv2d.from_weight(-conv.weight.detach(), padding=conv.padding)
    setattr(folded, name, other.eval())


def change_the_encoding(folded):
    next(m for m in folded.children() if isinstance(m, nn.BatchNorm2d)).eps = 3.0


def change_a_threshold(folded):
    next(m for m in folded.children() if isinstance(m, rso.FoldedLIF)).v_threshold = 0.05


CHANGES = (replace_weight, replace_memory, replace_layer, change_the_encoding, change_a_threshold)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_was_replaced_is_recorded_anew(tapes, change):
    folded, x = folded_of()
    run = rso.graphed(folded, x)
    before = run(x)
    change(folded)
    assert torch.equal(run(x), plain(folded, x))
    assert not torch.equal(run(x), before)
    assert len(tapes) == 2


def test_memory_that_moves_under_a_tensor_is_seen(tapes):
    folded, x = folded_of()
    run = rso.graphed(folded, x)
    run(x)
    folded.share_memory()
    assert torch.equal(run(x), plain(folded, x))
    assert len(tapes) == 2


def test_what_was_written_in_place_is_seen_under_autocast(tapes):
    """Outside of recordings autocast keeps weights that it has cast."""
    folded, x = folded_of()
    with torch.autocast("cpu", torch.bfloat16):
        run = rso.graphed(folded, x)
        before = run(x)
        assert torch.is_autocast_cache_enabled()
    folded.get_submodule(folded.encoding[0]).weight.data.neg_()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(x), plain(folded, x))
        assert not torch.equal(run(x), before)
    assert len(tapes) == 1


def test_what_was_written_in_place_is_seen(tapes):
    folded, x = folded_of(granularity="element", threshold_granularity="element")
    run = rso.graphed(folded, x)
    before = run(x)
    folded.load_state_dict({k: 0.7 * v for k, v in folded.state_dict().items()})
    next(iter(folded.parameters())).data.neg_()
    assert torch.equal(run(x), plain(folded, x))
    assert not torch.equal(run(x), before)
    assert len(tapes) == 1


class Reads(nn.Module):
    """Waits for the device."""

    def forward(self, x):
        try:
            return x * float(x.sum() > 0)
        except Synchronised as error:  # as CUDA says it while a stream is captured
            raise RuntimeError(str(error)) from error


def hook(folded):
    conv_of(folded).register_forward_hook(lambda *_: None)


def hook_before(folded):
    folded.register_forward_pre_hook(lambda *_: None)


def train_a_layer(folded):
    next(m for m in folded.children() if isinstance(m, nn.BatchNorm2d)).train()


REFUSED = {
    hook: r"hooks are not run by a replay: remove those of features_\d+ \(SpikeConv2d\)",
    hook_before: "hooks are not run by a replay: remove those of the network",
    train_a_layer: r"eval mode to be captured; \w+ \(BatchNorm2d\) is training",
    lambda folded: folded.train(): "eval mode to be captured; the network is training",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("late", [False, True])
def test_refused_by_name(tapes, change, late):
    folded, x = folded_of()
    if late:  # after it was captured
        run = rso.graphed(folded, x)
        change(folded)
        with pytest.raises(ValueError, match=REFUSED[change]):
            run(x)
        return
    change(folded)
    with pytest.raises(ValueError, match=REFUSED[change]):
        rso.graphed(folded, x)


def test_steps_that_wait_are_named(tapes):
    folded, x = folded_of()
    name = folded.steps[0].name
    setattr(folded, name, nn.Sequential(folded.get_submodule(name), Reads()).eval())
    with pytest.raises(rso.ReparameterizationError, match=rf"step '{name}' \(Sequential\) cannot"):
        rso.graphed(folded, x)


def test_refused_without_a_gpu():
    folded, x = folded_of()
    name = next(n for n, _ in folded.named_parameters())
    with pytest.raises(ValueError, match=f"must be on a GPU to be captured; {name} is on cpu"):
        rso.graphed(folded, x)


def test_other_refusals(tapes):
    folded, x = folded_of()
    with pytest.raises(TypeError, match="FoldedNetwork, as reparameterize returns it; got Conv2d"):
        rso.graphed(nn.Conv2d(3, 3, 3), x)
    with pytest.raises(ValueError, match="most must be"):
        rso.graphed(folded, x, most=0)
    with pytest.raises(ValueError, match="must not require a gradient"):
        rso.graphed(folded, x.clone().requires_grad_())
    run = rso.graphed(folded, x)
    with pytest.raises(ValueError, match=r"\[N, 3, 8, 8\].*got \[3, 3, 7, 8\]"):
        run(x[:, :, :7])
    with pytest.raises(TypeError, match="x must be a torch"):
        run([1])
    with pytest.raises(ValueError, match="x must be on cpu, as the network is; got meta"):
        run(x.to("meta"))
    with pytest.raises(ValueError, match="dense in memory to be captured"):
        run(x[:1].expand(3, -1, -1, -1))
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor stored"):
            copied(run)
    assert torch.equal(run(x), plain(folded, x))


def test_calls_of_threads_take_turns(tapes):
    folded, x = folded_of()
    run = rso.graphed(folded, x)
    images = [x, -x, x + 1, 2 * x]
    expected = [plain(folded, image) for image in images]
    got = {}

    def work(n):
        got[n] = [run(images[n]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(images)
    for n, outputs in got.items():
        assert all(torch.equal(out, expected[n]) for out in outputs)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("granularity", ["channel", "element"])
@pytest.mark.parametrize("family", ["vgg", "resnet20", "sew-resnet18", "branches"])
def test_on_a_gpu(family, granularity, dtype):
    x = images_for(family).cuda()
    network = make(family, Neurons(granularity)).cuda()
    folded = rso.reparameterize(network, x[:1], weight_dtype=dtype)
    run = rso.graphed(folded, x)
    for image in (x, -x, x[:1], x.to(memory_format=torch.channels_last), 2 * x):
        assert torch.equal(run(image), plain(folded, image))
    first = next(p for p in folded.parameters())
    first.data.neg_()
    assert torch.equal(run(x), plain(folded, x))
    first.data = first.data.neg()
    assert torch.equal(run(x), plain(folded, x))


@pytest.mark.gpu
@needs_gpu
def test_steps_that_wait_are_named_on_a_gpu():
    folded, x = folded_of()
    folded, x = folded.cuda(), x.cuda()
    name = folded.steps[0].name
    setattr(folded, name, nn.Sequential(folded.get_submodule(name), Reads()).eval())
    with pytest.raises(rso.ReparameterizationError, match=rf"step '{name}' \(Sequential\) cannot"):
        rso.graphed(folded, x)
    assert plain(folded, x).shape[0] == len(x)  # the device works on
