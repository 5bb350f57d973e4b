"""Networks and data of the user's own: by name, and by `realspike.fit`."""

import dataclasses
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("sklearn", "safetensors", "rich", "lightning", "tensorboard", "yaml"):
    pytest.importorskip(package)

import realspike
from realspike import checkpoint, cli, own, train
from realspike.config import run_config
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import ConfigError, RunConfig
from realspike.data import Splits
from realspike.data.own import splits_of
from realspike.errors import UserError
from realspike.inspect import trained_file
from realspike.networks import build
from realspike.networks.build import try_out
from realspike.train.optimizer import adamw
from stopping import stopping_in
from torch import nn

import realspike_ops as rso

MODULE = '''
import random
import numpy as np
import torch
from torch import nn
import realspike_ops as rso

class Net(nn.Module):
    """Of 2 channels; what is not asked for does not come."""

    def __init__(self, classes, in_channels, granularity="none", timesteps=4):
        super().__init__()
        self.encoding = rso.DirectEncoding(timesteps)
        self.conv = nn.Conv2d(in_channels, 2, 3, padding=1)
        self.lif = rso.RealSpikeLIF(timesteps, granularity, (2, 6, 6))
        self.mean = rso.MeanOverTime(timesteps)
        self.linear = nn.Linear(72, classes)

    def forward(self, x):
        return self.mean(self.linear(self.lif(self.encoding(self.conv(x))).flatten(1)))

class Twice(Net):
    def forward(self, x):
        return super().forward(x).repeat(2, 1)

def needs_more(classes, secret):
    pass

class Needs(Net):
    def __init__(self, classes, secret):
        pass

def images(root, seed):
    """The brighter half says the class."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    samples = torch.rand(60, 1, 6, 6)
    samples[:, 0, :2] += (labels == 1)[:, None, None]
    samples[:, 0, 4:] += (labels == 2)[:, None, None]
    return (samples[:45], labels[:45]), (samples[45:], labels[45:])

def wrong():
    return 3

def odd():
    return [(torch.zeros(4, 1, 6, 5), torch.arange(4))] * 2

def unlike():
    return [(torch.zeros(4, 1, 6, 6), torch.arange(4) - 1)] * 2

class Lines(torch.utils.data.Dataset):
    def __init__(self, odd=(torch.zeros(1, 6, 7), 1), first=(torch.zeros(1, 6, 6), 0)):
        self.odd, self.first = odd, first
        self.files = ["a", "b"]  # which are no files of ours
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if isinstance(self.odd, Exception) and index == 3:
            raise self.odd
        return self.odd if index == 3 else self.first

def lines():
    return Lines(), Lines()

def bad_level():
    return Lines((torch.ones(1, 6, 6, dtype=torch.uint8), 1)), Lines()

def bad_label():
    return Lines((torch.zeros(1, 6, 6), 2)), Lines()

def broken():
    return Lines(KeyError("gone")), Lines()

def half():
    return Lines(first=(torch.zeros(1, 6, 6), 0.5)), Lines()

def one_hot():
    return Lines(first=(torch.zeros(1, 6, 6), torch.eye(2)[0])), Lines()

def entries():
    return Lines(first={"image": torch.zeros(1, 6, 6), "label": 1}), Lines()

def others():
    return Lines(), Lines(first=(torch.zeros(1, 5, 5), 0))

def with_mean(mean=(0.0,), std=(1.0,)):
    from realspike.data import Splits
    return Splits(*images("", 0), mean, std, classes=("a", "b", "c"))

def shifted():
    """The same pictures to a network, were they normalised by this."""
    return with_mean(mean=(0.5,), std=(0.5,))

def two_means():
    return with_mean(mean=(0.5, 0.5))

def no_deviation():
    return with_mean(std=(0.0,))

def hole(part, place, value=float("nan")):
    """Samples in memory of which one has one value that is no number."""
    parts = [(torch.zeros(1100, 1, 2, 2), torch.arange(1100) % 3) for _ in range(2)]
    parts[part][0][place, 0, 1, 0] = value
    return parts

def nan_to_train():
    return hole(0, 1027)

def infinite_to_test():
    return hole(1, 2, -float("inf"))

def nan_of_split():
    from realspike.data import Splits
    return Splits(*hole(0, 0), (0.0,), (1.0,))

def number_of_classes():
    from realspike.data import Splits
    return Splits(*images("", 0), (0.0,), (1.0,), classes=3)

def of_a_method():
    train, test = Lines(), Lines()
    train.classes = lambda: 2
    return train, test

def sparse():
    return [(torch.zeros(4, 1, 6, 6).to_sparse(), torch.arange(4))] * 2

def nan_at_last():
    return Lines((torch.full((1, 6, 6), float("nan")), 1)), Lines()

def frames():
    return ((torch.zeros(8, 3, 1, 6, 6), torch.arange(8) % 2),) * 2

def fails(root):
    open(root / "absent")

class Fails(nn.Module):
    def __init__(self, timesteps):
        raise ZeroDivisionError("by zero")

class Bare(nn.Module):
    """Inherits the __init__ of nn.Module, which declares that it takes anything."""

    def forward(self, x):
        return x.flatten(1)[:, :3]

class Draws(Net):
    """With dropout, and an encoder that draws in a test too."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x + torch.rand_like(x), 0.5, self.training))

class Drawn(Lines):
    """Samples that a transformation changes at random."""

    def __len__(self):
        return 40
    def __getitem__(self, index):
        level = random.random() + np.random.rand() + index % 2
        return torch.rand(1, 6, 6) + level, index % 2

def drawn():
    from realspike.data import Splits
    order = np.random.permutation(2)  # such as what is held out
    return Splits(Drawn(), Drawn(), (1.0 + order[0],), (1.0,), True, ("a", "b"))

class Any(Net):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)

class Some(Net):
    def __init__(self, classes, in_channels, **kwargs):
        super().__init__(classes, in_channels, timesteps=kwargs["timesteps"])

class Still(nn.Module):
    def __init__(self, timesteps):
        super().__init__()
    def forward(self, x):
        return x.flatten(1)[:, :3]

class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(rso.DirectEncoding(3), rso.RealSpikeLIF(3, "layer"), nn.Flatten(), nn.Linear(36, 2)),
            rso.MeanOverTime(3),
        )
    def forward(self, x):
        return self.body(x)

class Noted(Net):
    def get_extra_state(self):
        return {"note": 1}
    def set_extra_state(self, state):
        pass

class Masked(Net):
    def __init__(self, classes, in_channels, timesteps):
        super().__init__(classes, in_channels, timesteps=timesteps)
        self.register_buffer("mask", torch.tensor(-torch.inf))

class Lazy(nn.Module):
    """Learns all sizes from the first input."""

    def __init__(self, classes, timesteps, granularity):
        super().__init__()
        self.body = nn.Sequential(
            *(rso.DirectEncoding(timesteps), nn.LazyConv2d(2, 3)),
            *(rso.RealSpikeLIF(timesteps, granularity), nn.Flatten(), nn.LazyLinear(classes)),
            rso.MeanOverTime(timesteps),
        )
    def forward(self, x):
        return self.body(x)

class Features(nn.Module):
    """Layers without maps, that share a weight, and one whose weight is made of others."""

    def __init__(self, classes, timesteps=2):
        super().__init__()
        self.a = torch.nn.utils.parametrizations.weight_norm(nn.Linear(36, 8))
        self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8)
        self.c.weight = self.b.weight
        self.encoding, self.mean = rso.DirectEncoding(2), rso.MeanOverTime(2)
        self.first, self.second = rso.RealSpikeLIF(2, "layer"), rso.RealSpikeLIF(2)
        self.out = nn.Linear(8, classes)
    def forward(self, x):
        x = self.first(self.encoding(self.a(x.flatten(1))))
        return self.mean(self.out(self.second(self.c(self.b(x)))))

class Plain(nn.Module):
    """No spikes at all."""

    def __init__(self, classes, timesteps):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, classes))
    def forward(self, x):
        return self.body(x)
'''
ARGUMENTS = [
    *("device=cpu", "threads=1", "batch_size=16", "epochs=2", "timesteps=2", "width=null"),
    *("optimizer=adamw", "learning_rate=0.01"),
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the working folder, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "mine_of_test.py").write_text(MODULE)
    yield "mine_of_test"
    sys.modules.pop("mine_of_test", None)


def train_it(mine, *more):
    names = [f"architecture={mine}:Net", f"data.name={mine}:images"]
    return cli.main(["train", "--out", "run", *names, *ARGUMENTS, *more])


def test_the_command_trains_them_and_the_others_read_them_where_allowed(mine, tmp_path, capsys):
    assert train_it(mine) == 0
    stored = run_config.read(tmp_path / "run" / "config.yaml")
    assert (stored.data.classes, stored.data.channels, stored.data.image_size) == (3, 1, 6)
    assert stored.data.encoding == "direct"
    assert (tmp_path / "run" / "report.html").exists()
    capsys.readouterr()
    net, data = ["--allow", f"{mine}:Net"], ["--allow", f"{mine}:images"]
    assert cli.main(["eval", "run", *net, *data]) == 0
    assert "of 15 test samples" in capsys.readouterr().out
    assert cli.main(["eval", "run", *net, f"data.name={mine}:images"]) == 0
    assert cli.main(["fold", "run", *net, "-o", "folded.safetensors"]) == 0
    assert cli.main(["verify", "run", "folded.safetensors", *net, *data]) == 0
    assert cli.main(["eval", "folded.safetensors", *data]) == 0  # folded, it needs no class
    capsys.readouterr()
    for allowed, what in ((data, "Net"), (net, "images"), ([], "Net")):
        assert cli.main(["eval", "run", *allowed]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"--allow {mine}:{what} imports it" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_what_they_draw_follows_from_the_seed(mine, tmp_path, monkeypatch, workers):
    """So a run that was stopped is the one that was not, whoever reads and whatever ran before."""
    names = {"architecture": f"{mine}:Draws", "data.name": f"{mine}:drawn", "width": None}
    settings = {"batch_size": 8, "epochs": 2, "device": "cpu", "threads": 1, "timesteps": 2}
    config = RunConfig().replaced(**names, **settings, workers=workers)
    whole = train.start(config.replaced(workers=2 - workers), tmp_path / "whole").records
    torch.manual_seed(1)
    random.seed(1)
    with stopping_in(monkeypatch, step=2):
        assert train.start(config, tmp_path / "run").stopped_by == signal.SIGTERM
    assert train.resume(tmp_path / "run").records == whole
    other = train.start(config.replaced(seed=1), tmp_path / "other").records
    assert other[0]["train_loss"] != whole[0]["train_loss"]


def test_a_file_imports_nothing_by_itself(mine, tmp_path):
    assert train_it(mine) == 0
    (tmp_path / "mine_of_test.py").write_text("open('ran', 'w')")
    for command in ("eval", "profile", "plot"):
        code = "import sys; from realspike import cli; sys.exit(cli.main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, command, "run"],
            **{"capture_output": True, "text": True, "check": False, "timeout": 120},
            env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
        )
        assert done.returncode == 2, done.stderr
        assert "--allow mine_of_test:Net" in done.stderr
    assert not (tmp_path / "ran").exists()
    with pytest.raises(checkpoint.CheckpointError, match="--allow"):
        checkpoint.load(tmp_path / "run" / "model.safetensors")


def test_a_checkpoint_whose_class_is_gone_is_refused_in_a_line(mine, tmp_path, capsys):
    assert train_it(mine) == 0
    capsys.readouterr()
    (tmp_path / "mine_of_test.py").write_text("")
    sys.modules.pop(mine)
    assert cli.main(["eval", "run", "--allow", f"{mine}:Net"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "mine_of_test has no Net" in line


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("architecture=absent.thing:Net", "cannot import absent.thing"),
        ("architecture=mine_of_test:Nothing", "mine_of_test has no Nothing"),
        ("architecture=mine_of_test:needs_more", "must be a class of nn.Module"),
        ("architecture=os:system", "must be a class of nn.Module"),
        ("architecture=mine_of_test:Needs", "needs the argument 'secret'"),
        ("architecture=mine_of_test:Twice", "must return [B, classes], here [1, 3]; got [2, 3]"),
        ("width=3", "does not take width, which is 3: leave it at None"),
        (
            "architecture=mine_of_test.Net",
            "sew_resnet10 or package.module:Class; got 'mine_of_test.Net'",
        ),
        ("data.name=mine_of_test.odd", "images or package.module:function; got 'mine_of_test.odd'"),
        ("data.name=mine_of_test:wrong", "must give realspike.data.Splits or a pair"),
        ("data.name=mine_of_test:odd", "must be square images"),
        ("data.name=mine_of_test:unlike", "from 0 to 2; they are from -1 to 2"),
        ("data.name=mine_of_test:lines", "how many classes"),
        ("data.name=mine_of_test:of_a_method", "how many classes"),
        ("data.name=mine_of_test:number_of_classes", "must be their names, in the order of the"),
        ("data.name=mine_of_test:sparse", "must be dense; got torch.sparse_coo"),
        ("data.name=mine_of_test:half", "must be an integer; got 0.5"),
        ("data.name=mine_of_test:one_hot", "must be an integer; got tensor([1., 0.])"),
        ("data.name=mine_of_test:entries", "must be a pair (sample, label); got {'image'"),
        ("data.name=mine_of_test:others", "must be of shape [1, 6, 6]; got [1, 5, 5]"),
        ("data.name=mine_of_test:two_means", "mean of mine_of_test:two_means must be 1 finite"),
        ("data.name=mine_of_test:no_deviation", "one per channel, above 0; got (0.0,)"),
        (
            "data.name=mine_of_test:nan_to_train",
            "sample 1027 of the training part of mine_of",
        ),
        ("data.name=mine_of_test:infinite_to_test", "sample 2 of the test part of mine_of_test:in"),
        ("data.name=mine_of_test:nan_of_split", "nan_of_split has values that are not finite"),
        ("data.name=mine_of_test:frames", "have 3 frames, and network.timesteps is 2"),
        ("data.name=mine_of_test:fails", "raised FileNotFoundError: [Errno 2] No such file"),
        ("architecture=mine_of_test:Fails", "Fails raised ZeroDivisionError: by zero"),
        ("architecture=mine_of_test:Bare", "not take timesteps, which is 2: leave it at 4"),
        ("architecture=mine_of_test:Any", "takes any keyword, it is called with all of gran"),
        ("architecture=mine_of_test:Still", "must have a parameter that is trained"),
        ("architecture=mine_of_test:Noted", "tensors, which files hold; '_extra_state' is a dict"),
        ("architecture=mine_of_test:Masked", "begin with finite values, others are taken for"),
        ("data.name=given:to_fit", "what realspike.fit was given has no name"),
        ("data.classes=2", "must be from 0 to 1; they are from 0 to 2"),
        ("data.channels=3", "data.channels is 3, and the samples"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line_and_leaves_no_folder(
    mine, tmp_path, capsys, override, reason
):
    key = override.partition("=")[0]
    names = [f"architecture={mine}:Net", f"data.name={mine}:images", *ARGUMENTS]
    kept = [text for text in names if text.partition("=")[0] != key]
    assert cli.main(["train", "--out", "run", *kept, override]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not (tmp_path / "run").exists()


def test_a_class_gets_the_arguments_that_it_takes_and_no_others(mine):
    def build_it(name):
        config = RunConfig().replaced(architecture=f"{mine}:{name}", timesteps=4)
        return build(config.network_config(), 0)

    bare = build_it("Bare")
    assert bare(torch.ones(1, 1, 2, 2)).shape == (1, 3)
    assert build_it("Some").mean.timesteps == 4  # of the keywords that it collects


def test_the_documentation_names_every_argument():
    text = (Path(__file__).parents[2] / "docs" / "application.md").read_text()
    documented = text.partition("those of these arguments")[2].partition("(all of them")[0]
    fields = {field.name for field in dataclasses.fields(NetworkConfig)}
    assert set(re.findall(r"`(\w+)`", documented)) == fields - {"architecture"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            "lines",
            "shape [1, 6, 6] and dtype torch.float32 of the first; got [1, 6, 7] and ",
        ),
        ("bad_level", "dtype torch.float32 of the first; got [1, 6, 6] and torch.uint8"),
        ("bad_label", "the label of sample 3 of the training part of mine_of_test:bad_label must"),
        ("broken", "mine_of_test:broken cannot be read: KeyError: 'gone'"),
        (
            "nan_at_last",
            "sample 3 of the training part of mine_of_test:nan_at_last has valu",
        ),
    ],
)
def test_a_sample_unlike_the_first_is_named(mine, capsys, data, reason):
    names = [f"architecture={mine}:Net", f"data.name={mine}:{data}", "data.classes=2"]
    assert cli.main(["train", "--out", "run", *names, *ARGUMENTS]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


def test_fit_names_a_sample_that_is_no_number(tmp_path):
    samples, labels = bright(8, seed=0)
    samples[5] = float("nan")
    with pytest.raises(UserError, match=r"^sample 5 of the training part of .* are not finite"):
        realspike.fit(Stranger(2), ((samples, labels), bright(8, seed=1)), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_splits_of_tensors_know_their_classes(mine, tmp_path):
    names = [f"architecture={mine}:Net", f"data.name={mine}:with_mean"]
    assert cli.main(["train", "--out", "run", *names, *ARGUMENTS]) == 0
    assert run_config.read(tmp_path / "run" / "config.yaml").data.classes == 3


@pytest.mark.parametrize(
    ("classes", "kept"),
    [
        (np.unique(["b", "a"]), ["a", "b"]),
        ([*np.unique(["b", "a"])], ["a", "b"]),
        (np.arange(2), [0, 1]),
        ((name for name in "ab"), ["a", "b"]),
    ],
)
def test_names_of_classes_are_kept_as_files_hold_them(tmp_path, classes, kept):
    pair = bright(8, seed=0)
    splits = Splits(pair, pair, (0.0,), (1.0,), classes=classes)
    realspike.fit(Stranger(2), splits, tmp_path, epochs=1, device="cpu")
    record = checkpoint.load(tmp_path / "model.safetensors", network=Stranger(2)).training
    assert record["classes"] == kept
    assert record["config"]["data"]["classes"] == 2


def test_no_names_of_classes_are_none():
    pair = bright(8, seed=0)
    for classes in (None, (), []):
        splits = splits_of(Splits(pair, pair, (0.0,), (1.0,), classes=classes), "mine")
        assert [*splits.classes] == []


def test_samples_that_were_computed_take_no_gradient(tmp_path):
    samples, labels = bright(8, seed=0)
    scale = torch.ones((), requires_grad=True)
    computed = samples * scale
    parts = (computed, labels), [(computed[n], int(labels[n])) for n in range(8)]
    for n, data in enumerate((parts, parts[::-1])):
        realspike.fit(Stranger(2), data, tmp_path / str(n), epochs=2, classes=2, device="cpu")
    assert scale.grad is None


def test_other_data_are_normalised_as_those_of_the_training(mine, capsys):
    assert train_it(mine) == 0
    capsys.readouterr()
    said = []
    for data in ("images", "shifted"):
        names = ["--allow", f"{mine}:Net", f"data.name={mine}:{data}"]
        assert cli.main(["eval", "run", *names]) == 0
        said.append(capsys.readouterr().out.partition("right")[2])
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["Lazy", "Features", "Plain"])
def test_networks_of_every_kind_are_trained_saved_and_reported(mine, tmp_path, capsys, name):
    names = [f"architecture={mine}:{name}", f"data.name={mine}:images", *ARGUMENTS]
    allow = ["--allow", f"{mine}:{name}", "--allow", f"{mine}:images"]
    for out in ("a", "b"):
        assert cli.main(["train", "--out", out, *names]) == 0
        torch.rand(3)  # what was drawn before changes nothing
    said = capsys.readouterr().out
    first = {
        "Lazy": "real, element, T = 2",
        "Features": "real, layer and binary, T = 2",
        "Plain": "without spikes",
    }
    assert f"{mine}:{name}, {first[name]}, " in said
    again = [checkpoint.load(f"{out}/model.safetensors", allow=[allow[1]]) for out in "ab"]
    assert len({checkpoint.digest(each.network) for each in again}) == 1
    page = (tmp_path / "a" / "report.html").read_text()
    assert ("Entropy of a spike" in page) == (name != "Plain")
    assert ("Channels as spikes" in page) == (name == "Lazy")
    assert cli.main(["plot", "a", *allow, "--entropy"]) == (name == "Plain")
    assert cli.main(["plot", "a", *allow, "--samples", "3"]) == 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert ("on 3 test samples" in page) == (name != "Plain")
    assert cli.main(["eval", "a", *allow]) == 0


class Stranger(nn.Module):
    """Takes what no configuration has."""

    def __init__(self, hidden):
        super().__init__()
        self.body = nn.Sequential(
            *(rso.DirectEncoding(70), nn.Conv2d(1, hidden, 3, stride=3)),
            *(rso.RealSpikeLIF(70, "layer"), nn.Flatten(), nn.Linear(4 * hidden, 2)),
        )
        self.mean = rso.MeanOverTime(70)

    def forward(self, x):
        return self.mean(self.body(x))


def bright(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    return torch.rand(count, 1, 6, 6, generator=generator) + labels[:, None, None, None], labels


def test_fit_trains_the_network_it_is_given(tmp_path):
    torch.manual_seed(0)
    network, data = Stranger(4), (bright(64, 0), bright(32, 1))
    settings = {"epochs": 8, "device": "cpu", "batch_size": 8, "learning_rate": 0.01}
    settings |= {"optimizer": "adamw"}
    seen = []
    result = realspike.fit(network, data, tmp_path / "a", on_epoch=seen.append, **settings)
    assert seen == result.records
    assert len(seen) == 8
    assert result.records[-1]["test_accuracy"] > 0.9
    assert not network.training
    correct = (network(data[1][0]).argmax(1) == data[1][1]).double().mean()
    assert correct == result.records[-1]["test_accuracy"]
    # 4 maps of 2 x 2 neurons share the amplitude.
    assert network.body[2].neurons_per_amplitude == 16
    assert run_config.read(tmp_path / "a" / "config.yaml").network.timesteps == 70
    path = tmp_path / "a" / "model.safetensors"
    again = checkpoint.load(path, network=Stranger(4)).network
    assert torch.equal(again(data[1][0]), network(data[1][0]))
    with pytest.raises(checkpoint.CheckpointError, match="must have shape"):
        checkpoint.load(path, network=Stranger(5))
    with pytest.raises(UserError, match="holds a run"):
        realspike.fit(network, data, tmp_path / "a", **settings)
    with pytest.raises(ConfigError, match=r"unknown key 'epohcs' \(did you mean 'epochs'"):
        realspike.fit(network, data, tmp_path / "b", epohcs=2)
    with pytest.raises(own.OwnError, match="cannot run on an input of shape"):
        realspike.fit(nn.Conv2d(3, 2, 3), data, tmp_path / "b", epochs=1)
    with pytest.raises(TypeError, match=r"network must be an nn\.Module; got <function"):
        realspike.fit(bright, data, tmp_path / "b", epochs=1)


def test_a_class_without_arguments_is_made_again_as_fit_was_given_it(mine, tmp_path):
    network = own.find("architecture", f"{mine}:Fixed")()
    data = (bright(8, 0), bright(8, 1))
    realspike.fit(network, data, tmp_path / "a", epochs=1, device="cpu")
    assert run_config.read(tmp_path / "a" / "config.yaml").network.timesteps == 3
    again = realspike.load(tmp_path / "a", allow=[f"{mine}:Fixed"])
    assert torch.equal(again(data[0][0]), network(data[0][0]))


@pytest.mark.parametrize("key", ["granularity", "architecture", "network.width", "name", "root"])
def test_fit_ignores_no_setting(tmp_path, key):
    with pytest.raises(ConfigError, match="cannot be set: it is of the"):
        realspike.fit(Stranger(4), (bright(8, 0),) * 2, tmp_path / "a", **{key: "channel"})
    assert not (tmp_path / "a").exists()


def test_fit_writes_down_the_network_it_was_given(tmp_path, capsys):
    config = NetworkConfig(architecture="digits", width=2, image_size=6, granularity="layer")
    data = (bright(8, 0), bright(8, 1))
    with pytest.raises(ConfigError, match=r"made with classes=10, and .* have 2"):
        realspike.fit(build(config, seed=0), data, tmp_path / "a", epochs=1)
    network = build(dataclasses.replace(config, classes=2), seed=0)
    realspike.fit(network, data, tmp_path / "a", epochs=1, device="cpu")
    assert run_config.read(tmp_path / "a" / "config.yaml").network.granularity == "layer"
    loaded = realspike.load(tmp_path / "a").state_dict()
    assert all(torch.equal(tensor, loaded[n]) for n, tensor in network.state_dict().items())
    for arguments in (["eval", str(tmp_path / "a")], ["train", "--resume", str(tmp_path / "a")]):
        assert cli.main(arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "what realspike.fit was given has no name, so that its runs are not resumed" in line


def test_the_command_is_a_user_of_fit(tmp_path):
    from realspike import data

    overrides = {"architecture": "digits", "width": 2, "timesteps": 1, "epochs": 1, "device": "cpu"}
    config = RunConfig().replaced(threads=1, **overrides)
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    assert cli.main(["train", "--out", str(tmp_path / "a"), "threads=1", *arguments]) == 0
    network = build(config.network_config(), seed=0)
    realspike.fit(network, data.load(config), tmp_path / "b", config=config)
    loaded = trained_file.load(tmp_path / "a").network.state_dict()
    assert all(torch.equal(tensor, loaded[n]) for n, tensor in network.state_dict().items())


def test_adamw_decays_weights_alone_by_hand():
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    nn.init.ones_(network[0].weight)
    nn.init.ones_(network[0].bias)
    optimizer = adamw(network, lr=0.1, weight_decay=0.5, momentum=0.8)
    assert optimizer.defaults["betas"] == (0.8, 0.999)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert network[0].weight.item() == pytest.approx(1 - 0.1 * 0.5)
    assert network[0].bias.item() == network[1].weight.item() == 1.0


def test_every_weight_is_decayed_once(mine):
    sys.path.append(".")
    network = __import__(mine).Features(3)
    groups = adamw(network, lr=0.1, weight_decay=0.5).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    originals = network.a.parametrizations.weight
    weights = [originals.original0, originals.original1, network.b.weight, network.out.weight]
    assert decayed == {id(weight) for weight in weights}
    everything = [p for group in groups for p in group["params"]]
    assert sorted(map(id, everything)) == sorted(map(id, network.parameters()))


def test_the_first_rate_is_that_of_the_weights():
    network = nn.Sequential(rso.RealSpikeLIF(2, "channel", (3, 4, 4)), nn.BatchNorm2d(3))
    network[0].neurons_per_amplitude = 16
    groups = adamw(network, lr=0.1, weight_decay=0.5, scale_amplitudes=True).param_groups
    assert [group["lr"] for group in groups] == [0.1, 0.025]


def test_trying_out_leaves_modes_and_statistics():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(64, 10))
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try_out(network, NetworkConfig(architecture="a:B"), torch.ones(1, 1, 8, 8))
    assert [m.training for m in network] == [True, False, True, True]
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_a_network_in_eval_mode_is_trained_in_training_mode(tmp_path):
    """Batch norms must take statistics: Lightning leaves the mode as it is."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    samples = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 5
    data = (samples, torch.arange(8) % 2)
    realspike.fit(network.eval(), (data, data), tmp_path / "run", epochs=1, batch_size=4)
    assert network[1].num_batches_tracked == 2
    assert not network.training
