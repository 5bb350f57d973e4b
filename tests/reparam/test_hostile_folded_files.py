"""Folded networks in files made to do harm: refused in one line, before memory is taken."""

import itertools
import json
import os
import struct
import subprocess
import sys

import pytest
import torch
from torch import nn

import realspike_ops as rso

safetensors = pytest.importorskip("safetensors")

pytestmark = pytest.mark.usefixtures("one_thread")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.lif = rso.RealSpikeLIF(2, "channel", (4, 6, 6))
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(36, 3)
        self.encode, self.mean = rso.DirectEncoding(2), rso.MeanOverTime(2)

    def forward(self, x):
        current = self.encode(self.norm(self.conv(x)) * 0.5)
        return self.mean(self.head(self.pool(self.lif(current)).flatten(1)))


@pytest.fixture(scope="module")
def folded():
    torch.manual_seed(0)
    return rso.reparameterize(Small().eval(), torch.randn(1, 1, 6, 6))


@pytest.fixture
def path(folded, tmp_path):
    rso.save_folded(folded, tmp_path / "a", {"note": "x"})
    return tmp_path / "a"


def parts(path):
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name).clone() for name in names}
    return json.loads(metadata["network"]), metadata, tensors


def refused(path, network=None, tensors=None, text=None):
    content, metadata, own = parts(path)
    text = json.dumps(content if network is None else network) if text is None else text
    metadata = metadata | {"network": text}
    path.write_bytes(rso.safe_files.to_bytes(own if tensors is None else tensors, metadata))
    with pytest.raises(ValueError) as raised:
        rso.load_folded(path)
    message = str(raised.value)
    assert message.startswith(f"{path} is not a folded network: ")
    assert "\n" not in message
    assert len(message) < 500
    return message


def of_kind(network, kind):
    found = [s["layer"] for s in network["steps"] if s["layer"]["kind"] == kind]
    found += [m for s in network["steps"] for m in [s["layer"].get("layer")] if m]
    return next(layer for layer in found if layer["kind"] == kind)


def test_the_same_network_is_the_same_bytes(folded, path, tmp_path):
    """In another process too, whose hashes have another seed."""
    load = (
        "import sys, realspike_ops as rso; "
        "rso.save_folded(rso.load_folded(sys.argv[1]), sys.argv[2], {'note': 'x'})"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", load, path, tmp_path / seed],
            env=os.environ
            | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=True,
        )
        assert (tmp_path / seed).read_bytes() == path.read_bytes()
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(rso.load_folded(path)(x), folded(x))


def test_a_file_that_cannot_be_written_leaves_the_one_before(folded, path, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        rso.save_folded(folded, path)
    assert os.listdir(path.parent) == ["a"]
    assert path.read_bytes() == before


def test_a_pipe_is_not_replaced(folded, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no regular file"):
        rso.save_folded(folded, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def call(kind, value, *arguments, **described):
    args = {"tuple": [{"argument": 0}, *arguments]}
    return {"kind": "EncodingCall", "args": args, "kwargs": {"dict": {}}, kind: value, **described}


def value(number):
    return {"value": number}


TEXT_TIMES = call("function", "operator.mul") | {
    "args": {"tuple": [value("ab"), value(60_000_000)]}
}
CALLS = {
    "a text times a number": (TEXT_TIMES, "computes with str"),
    "a list times a number": (
        call("function", "operator.mul") | {"args": {"tuple": [{"list": []}, value(10**9)]}},
        "computes with list",
    ),
    "many repeats": (
        call("method", "repeat", *map(value, (60000, 60000, 9, 9))),
        "memory_limit is",
    ),
    "an expansion that is copied": (call("method", "expand", *map(value, (10**6, 1, 6, 6))), ""),
    "a file of another name": (call("function", "os.system", value("true")), "os.system"),
    "a method by another name": (call("method", "numpy"), "unknown method 'numpy'"),
    "a dotted method": (call("method", "__class__"), "unknown method"),
    "a change in place by any name": (
        call("function", "changed_copy")
        | {"args": {"tuple": [value("share_memory_"), {"argument": 0}]}},
        "unknown change in place",
    ),
    "an attribute": (
        call("function", "add") | {"args": {"tuple": [{"argument": "forward"}, value(1)]}},
        "'forward', which is none of its tensors",
    ),
    "an output": (
        call("function", "add") | {"kwargs": {"dict": {"out": {"argument": 0}}}},
        "no out",
    ),
    "an input that is not there": (
        call("function", "operator.add") | {"args": {"tuple": [{"argument": 7}, value(1)]}},
        "index",
    ),
    "an unknown argument": (call("method", "flatten", {"code": "1"}), "unknown argument"),
    "two arguments": (call("method", "flatten", {"value": 1, "slice": [1]}), ""),
    "half a batch": (
        call("function", "batch_size", value(1), value(0), value(0)),
        "",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_calls_of_the_encoding(path, what):
    layer, reason = CALLS[what]
    network, _, tensors = parts(path)
    step = next(s for s in network["steps"] if s["layer"]["kind"] == "EncodingCall")
    step["layer"] = layer
    assert reason in refused(path, network, tensors)


def test_doubling_over_and_over(path):
    network, _, tensors = parts(path)
    first = network["steps"][0]["name"]
    doubled = [f"d{n}" for n in range(40)]
    cat = call("function", "cat") | {
        "args": {"tuple": [{"list": [{"argument": 0}, {"argument": 0}]}]}
    }
    network["steps"][1:1] = [
        {"name": name, "inputs": [before], "layer": cat}
        for before, name in zip([first, *doubled], doubled, strict=False)
    ]
    network["output"] = value(doubled[-1])
    assert "memory_limit is 1 GiB" in refused(path, network, tensors)


def test_numbers_that_double_their_digits(path):
    network, _, _ = parts(path)
    size = call("function", "batch_size", value(1000), value(1), value(0))
    square = call("function", "operator.mul") | {"args": {"tuple": [{"argument": 0}] * 2}}
    names = [f"d{n}" for n in range(60)]
    network["steps"] = [{"name": names[0], "inputs": ["input"], "layer": size}] + [
        {"name": name, "inputs": [before], "layer": square}
        for before, name in itertools.pairwise(names)
    ]
    network["output"], network["neurons"] = value(names[-1]), {}
    assert "computes with int" in refused(path, network, {})


CHANGES = {
    "a layer of 10^12 weights": ("Conv2d", {"in_channels": 10**6, "out_channels": 10**6}, "size"),
    "weights that are not there": (
        "Conv2d",
        {"in_channels": 10**6, "out_channels": 10**6, "kind": "Conv2d", "bias": False},
        "size mismatch",
    ),
    "no channels": ("Conv2d", {"in_channels": 0, "out_channels": 0}, "must be at least 1; got 0"),
    "more than all memory": ("Conv2d", {"in_channels": 2**40, "out_channels": 2**40}, ""),
    "an absurd border": ("Conv2d", {"padding": [10**9, 10**9]}, "padding of a Conv2d is larger"),
    "a large border": ("Conv2d", {"padding": [60000, 60000]}, "memory_limit"),
    "a kernel of another size": ("Conv2d", {"kernel_size": [5, 5]}, "size mismatch"),
    "an unknown argument": ("Conv2d", {"device": "cuda"}, "got in_channels"),
    "timesteps": (
        "DirectEncoding",
        {"timesteps": 10**9},
        "timesteps of a DirectEncoding is larger",
    ),
    "no timesteps": ("FoldedLIF", {"timesteps": 0}, "timesteps"),
    "text for a number": ("FoldedLIF", {"decay": "0.5"}, "decay"),
    "a decay above 1": ("FoldedLIF", {"decay": 1.5}, "decay"),
    "an unknown layer": ("FoldedLIF", {"kind": "os.system"}, "unknown layer 'os.system'"),
    "no layer": ("FoldedLIF", {"kind": None}, "unknown layer"),
}


@pytest.mark.parametrize("argument", ["padding_mode", "held", "dtype", "storage"])
def test_synapses_have_no_arguments_but_their_geometry(path, argument):
    network, _, _ = parts(path)
    of_kind(network, "SpikeLinear")[argument] = "zeros"
    assert "no arguments but its geometry: ['stride', 'padding', 'dilation', 'input_size', " in (
        refused(path, network)
    )


@pytest.mark.parametrize("what", CHANGES)
def test_layers_that_do_not_fit_their_tensors(path, what):
    kind, changes, reason = CHANGES[what]
    network, _, tensors = parts(path)
    of_kind(network, kind).update(changes)
    assert reason in refused(path, network, tensors)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "no JSON object"),
        ("{", ""),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"steps": [], "steps": []}', "'steps' is there twice"),
        ('{"a": NaN}', "'a' is nan"),
        ('{"a": [1, [1e999]]}', "'a' is inf"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ('{"a": ' + "9" * 30 + "}", "beyond 2^53"),
        ("{}", "must have steps"),
        (" " * 2**24 + "{}", "at most 16777216"),
    ],
)
def test_json(path, text, reason):
    assert reason in refused(path, text=text)


def test_steps_that_are_no_sequence(path):
    def changed(change):
        network, _, _ = parts(path)
        change(network["steps"], network)
        rso_path = path.with_name("b")
        rso_path.write_bytes(path.read_bytes())
        return refused(rso_path, network)

    def swap(steps, network):
        steps[0], steps[-1] = steps[-1], steps[0]

    assert "no step before it" in changed(swap)
    assert "no step before it" in changed(
        lambda steps, _: steps[1].update(inputs=[steps[1]["name"]])
    )
    for name in ("forward", "steps", "input", "", "a.b", None, 3):
        changed(lambda steps, _, name=name: steps[-1].update(name=name))
    assert "another has it" in changed(lambda steps, _: steps[1].update(name=steps[0]["name"]))
    assert "must have name, inputs" in changed(lambda steps, _: steps[0].update(more=1))
    assert "is no step" in changed(lambda _, n: n.update(output=value("absent")))
    assert "is no step" in changed(lambda _, n: n.update(output={"argument": 0}))
    assert "input_shape must be" in changed(lambda _, n: n.update(input_shape=[2**70 % 99, -1]))
    assert "input_shape must be" in changed(lambda _, n: n.update(input_shape=None))
    assert "batch must be" in changed(lambda _, n: n.update(batch=0))
    for neurons in ([], {"absent": ["lif", 0]}, {"lif": "lif"}, {"lif": ["lif", "0"]}, None):
        assert "neurons must name" in changed(lambda _, n, to=neurons: n.update(neurons=to))
    changed(lambda _, n: n.update(input_shape=[1, 7, 7]))
    changed(lambda _, n: n.update(steps=[]))
    changed(lambda _, n: n.update(steps=3))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(folded, path, number):
    _, _, tensors = parts(path)
    name = next(name for name in tensors if name.endswith("weight"))
    tensors[name].view(-1)[0] = number
    assert f"{name} must be finite" in refused(path, tensors=tensors)
    copy = rso.load_folded(rso_saved(folded, path))
    with torch.no_grad():
        next(copy.parameters()).view(-1)[0] = number
    with pytest.raises(ValueError, match="must be finite"):
        rso.save_folded(copy, path)


def rso_saved(folded, path):
    rso.save_folded(folded, path)
    return path


def test_tensors_that_do_not_belong(path):
    _, _, tensors = parts(path)
    assert "'extra' is missing, or nothing is made of it" in refused(
        path, tensors=tensors | {"extra": torch.zeros(1)}
    )
    name = next(name for name in tensors if name.endswith("running_var"))
    assert "negative variances" in refused(path, tensors=tensors | {name: -tensors[name]})
    assert "has dtype I8" in refused(path, tensors=tensors | {name: tensors[name].to(torch.int8)})
    refused(path, tensors=tensors | {name: tensors[name].to(torch.int64)})
    refused(path, tensors=tensors | {name: tensors[name].half()[:2]})
    weight = next(n for n, t in tensors.items() if t.dim() == 7)
    assert "7 dimensions" in refused(path, tensors=tensors | {weight: tensors[weight][0]})


def header_of(path, change):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_headers_that_lie(path):
    original = path.read_bytes()
    name = next(iter(parts(path)[2]))

    def offsets(*at):
        return lambda header: header[name].update(data_offsets=list(at))

    for change in (
        *(offsets(0, 2**40), offsets(-4, 4), offsets(8, 4), offsets(4, 8)),
        lambda header: header[name].update(shape=[2**40, 2**40]),
        lambda header: header[name].update(dtype="F128"),
        lambda header: header.update(copy=header[name]),
    ):
        path.write_bytes(original)
        header_of(path, change)
        with pytest.raises(ValueError, match="is not a folded network"):
            rso.load_folded(path)
    for keep in (0, 4, 8, 100, len(original) - 1):
        path.write_bytes(original[:keep])
        with pytest.raises(ValueError, match="is not a folded network"):
            rso.load_folded(path)


class Twice(Small):
    """Two convolutions and two layers of neurons with the same tensors, and a view of a weight."""

    def __init__(self):
        super().__init__()
        self.lif = rso.RealSpikeLIF(2, shape=(4, 6, 6), decay_granularity="channel")
        self.bias = nn.Parameter(torch.zeros(2, 4, 1, 1))

    def forward(self, x):
        current = self.encode(self.conv(x) + self.bias[0] + self.conv(-x) * self.bias[1])
        return self.mean(self.head(self.pool(self.lif(self.lif(current))).flatten(1)))


def test_tensors_that_share_memory_are_stored_by_each_name(path):
    network, x = Twice().eval(), torch.randn(3, 1, 6, 6)
    folded = rso.reparameterize(network, x)
    rso.save_folded(folded, path)
    loaded = rso.load_folded(path)
    assert torch.equal(loaded(x), folded(x))
    assert loaded.state_dict().keys() == folded.state_dict().keys()


class Limited(Small):
    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, x):
        return super().forward(self.limit(x))


@pytest.mark.parametrize(
    ("limit", "exception", "reason"),
    [
        (lambda x: x.clamp(-1, torch.inf), ValueError, "'clamp' has what JSON cannot hold: inf"),
        (lambda x: x + torch.ones(6, dtype=torch.int16), TypeError, "add.*int16"),
        (lambda x: x + torch.full((6,), torch.inf), ValueError, "must be finite"),
    ],
)
def test_what_no_file_holds_is_refused_when_it_is_stored(limit, exception, reason, path):
    before = path.read_bytes()
    folded = rso.reparameterize(Limited(limit).eval(), torch.randn(2, 1, 6, 6))
    with pytest.raises(exception, match=reason):
        rso.save_folded(folded, path)
    assert path.read_bytes() == before


def test_an_input_larger_than_a_file_may_say_is_refused_when_it_is_stored(path):
    network = nn.Sequential(nn.Linear(2**17, 2), rso.RealSpikeLIF(1)).eval()
    folded = rso.reparameterize(network, torch.randn(1, 2**17))
    with pytest.raises(ValueError, match=r"cannot be stored.*input_shape must be.*131072"):
        rso.save_folded(folded, path)


def test_a_network_outlives_its_file(path):
    x = torch.randn(2, 1, 6, 6)
    network = rso.load_folded(path)
    before = network(x)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(network(x), before)


def test_a_larger_memory_may_be_allowed(path):
    with pytest.raises(ValueError, match="memory_limit is 1000 B"):
        rso.load_folded(path, memory_limit=1000)
    rso.load_folded(path, memory_limit=10**5)


def test_as_many_steps_as_may_be_are_read(tmp_path, monkeypatch):
    """Three steps and one tensor: the neurons, the current of the output, its sum over time."""
    network = nn.Sequential(rso.RealSpikeLIF(2), rso.MeanOverTime(2)).eval()
    x = torch.rand(2, 1, 3, 3)
    path = tmp_path / "a"
    rso.save_folded(rso.reparameterize(network, x), path)
    monkeypatch.setattr(rso.reparam.file, "MOST_TENSORS", 3)
    assert torch.equal(rso.load_folded(path)(x), network(x))
    monkeypatch.setattr(rso.reparam.file, "MOST_TENSORS", 2)
    with pytest.raises(ValueError, match="it must have 1 to 2 steps; got 3"):
        rso.load_folded(path)
