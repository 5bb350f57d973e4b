"""The application: data, networks, training, comparison peers and the `realspike` command."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from digit_images import test_part

import realspike_ops as rso

for package in ("sklearn", "matplotlib", "safetensors", "rich", "lightning"):
    pytest.importorskip(package)

import realspike
from realspike import checkpoint, cli, quickstart
from realspike.inspect.classify import predict
from realspike.inspect.spikes import record_spikes
from realspike.networks import GRANULARITIES, NetworkConfig, build
from realspike.quickstart import report
from realspike.quickstart.timing import time_interleaved
from realspike.quickstart.unfold_bmm import UnfoldBmm, with_unfold_bmm
from torch.utils._python_dispatch import TorchDispatchMode

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # Threads that share busy cores wait for each other far longer than layers this small compute.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    return test_part()[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of the command for one epoch: its folder, its output and its seconds."""
    out = tmp_path_factory.mktemp("run") / "a" / "b"
    command = [sys.executable, "-m", "realspike", "quickstart", "--epochs", "1", "--seed", "5"]
    # Of the processor: what else runs takes none of it.
    start = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    done = subprocess.run(
        [*command, "--timesteps", "2", "--threads", "1", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - start
    assert done.returncode == 0, done.stderr
    return out, done.stdout, seconds


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished[0] / "results.json").read_text())


# Networks and training


def test_the_four_networks_start_alike():
    networks = {g: build(NetworkConfig(g, width=4), seed=7) for g in GRANULARITIES}
    expected = networks["none"].state_dict()
    for granularity, network in networks.items():
        state = network.state_dict()
        amplitudes = {name for name in state if name.endswith("amplitude")}
        assert len(amplitudes) == (0 if granularity == "none" else 3)
        assert state.keys() - amplitudes == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), name
        assert all((state[name] == 1).all() for name in amplitudes)
    other = build(NetworkConfig(width=4), seed=8)
    assert not torch.equal(other.conv1.weight, networks["none"].conv1.weight)


def test_the_four_networks_compute_alike_at_the_start(images):
    logits = [predict(build(NetworkConfig(g, width=4), seed=7), images[:8]) for g in GRANULARITIES]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=0)


def test_predict_is_in_eval_mode_and_restores_the_mode(images):
    network = build(NetworkConfig(width=4, timesteps=2), seed=0)
    images = images[:200]  # more than one batch of the evaluation
    with torch.no_grad():
        expected = network.eval()(images)
    network.train()
    torch.testing.assert_close(predict(network, images), expected)
    assert network.training
    assert network.bn1.num_batches_tracked == 0


# What the network is compared with


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"kernel_size": (3, 2), "padding": 1, "dilation": 2, "groups": 3, "bias": False},
    ],
)
def test_unfold_bmm_equals_unshared_spike_conv(geometry):
    conv = rso.UnsharedSpikeConv(6, 9, input_size=(7, 5), **geometry)
    if conv.bias is not None and geometry.get("stride") == 2:  # a bias per output element
        OH, OW = conv.weight.shape[:2]
        conv.bias = torch.nn.Parameter(torch.randn(9, OH, OW), requires_grad=False)
    spikes = (torch.rand(4, 6, 7, 5) < 0.4).float()
    for given in (spikes, spikes.contiguous(memory_format=torch.channels_last), spikes[:0]):
        out = UnfoldBmm(conv)(given)
        torch.testing.assert_close(out, conv(given), rtol=1e-5, atol=1e-5)


def test_unfold_bmm_replaces_every_unshared_layer(images):
    network = build(NetworkConfig("element", width=4), seed=0).eval()
    with torch.no_grad():
        for lif in (network.lif1, network.lif2, network.lif3):
            lif.amplitude.uniform_(0.5, 1.5)
    images = images[:16]
    folded = rso.reparameterize(network, images)
    unfolded = with_unfold_bmm(folded)
    kinds = [type(module) for module in unfolded.modules()]
    assert kinds.count(UnfoldBmm) == 2
    assert rso.UnsharedSpikeConv not in kinds
    assert any(isinstance(module, rso.UnsharedSpikeConv) for module in folded.modules())
    torch.testing.assert_close(predict(unfolded, images), predict(folded, images))
    with pytest.raises(ValueError, match="UnsharedSpikeConv"):
        with_unfold_bmm(network)
    with pytest.raises(ValueError, match="padding"):
        UnfoldBmm(rso.UnsharedSpikeConv(1, 1, 3, input_size=(4, 4), padding="same"))


def test_timing_is_relative_to_the_first():
    class Slow(torch.nn.Identity):
        def forward(self, x):
            time.sleep(0.004)
            return x

    networks = {"fast": torch.nn.Identity(), "slow": Slow()}
    timings = time_interleaved(networks, torch.zeros(1), rounds=5, warmup=1)
    assert timings["fast"].relative == 1
    assert timings["slow"].relative > 10
    assert timings["slow"].median_ms >= timings["slow"].fastest_ms >= 4
    with pytest.raises(ValueError, match="rounds"):
        time_interleaved(networks, torch.zeros(1), rounds=0)


def test_recorded_spikes_are_amplitude_times_binary(images):
    network = build(NetworkConfig("channel", width=4, timesteps=3), seed=0).eval()
    with torch.no_grad():
        network.lif2.amplitude.uniform_(0.5, 1.5)
    images = images[:2]
    real = record_spikes(network, images)
    binary = record_spikes(rso.reparameterize(network, images), images)
    assert [*real] == [*binary] == ["lif1", "lif2", "lif3"]
    assert real["lif2"].shape == (3, 2, 4, 8, 8)
    assert set(binary["lif2"].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(real["lif2"], binary["lif2"] * network.lif2.amplitude)
    assert not network.lif2._forward_hooks


# The command


def test_quickstart_writes_its_files_in_time(finished, results):
    out, _, seconds = finished
    names = {"binary", "layer", "channel", "element"}
    expected = {f"{name}.safetensors" for name in names} | {"results.json", "report.html", "plots"}
    expected |= {network["picture"] for network in results["shipped"] if network["picture"]}
    assert {path.name for path in out.iterdir()} == expected
    pictures = {"accuracy", "kernels", "channels", "amplitudes", "firing_rates"}
    assert {path.stem for path in (out / "plots").iterdir()} == pictures
    for picture in pictures:
        content = (out / "plots" / f"{picture}.png").read_bytes()
        assert content.startswith(PNG)
        assert len(content) > 10_000
    page = (out / "report.html").read_text()
    for heading in ("Folding", "Verification", "Energy", "Epochs"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<figcaption>") == len(pictures)
    assert page.count("One sample takes") == 2
    assert seconds < 60


def test_quickstart_prints_one_table_and_where_the_files_are(finished, results):
    out, printed, _ = finished
    assert "\x1b" not in printed, "no colours or progress bar where nobody looks"
    lines = printed.splitlines()
    for granularity, name in report.NAMES.items():
        [row] = [line for line in lines if line.startswith(f"{name} ")]
        network = results["networks"][granularity]
        percent = [f"{100 * network[f'accuracy_{key}']:.2f}" for key in ("trained", "folded")]
        assert row.split()[1:3] == percent
    assert any("UnsharedSpikeConv" in line and "1.00" in line for line in lines)
    assert str(out) in printed
    assert max(map(len, lines[:-1])) <= 80
    assert "…" not in printed


def test_quickstart_numbers_agree_with_each_other(results):
    tests = results["data"]["test_images"]
    assert results["data"]["train_images"] + tests == 1797
    assert results["training"]["epochs"] == 1
    assert results["training"]["seed"] == 5
    assert set(results["networks"]) == set(GRANULARITIES)
    for granularity, network in results["networks"].items():
        assert network["config"]["granularity"] == granularity
        assert network["config"]["timesteps"] == 2
        assert network["multiplication_free"] is True
        assert len(network["history"]) == 1
        assert network["history"][-1]["test_accuracy"] == network["accuracy_trained"]
        assert network["accuracy_trained"] == network["correct_trained"] / tests
        assert network["accuracy_folded"] == network["correct_folded"] / tests
        assert network["accuracy_trained"] > 0.2, "better than chance"
        changed = round((1 - network["agreement"]) * tests)
        assert abs(network["correct_trained"] - network["correct_folded"]) <= changed
        layers = network["layers"]
        assert [layer["name"] for layer in layers] == ["lif1", "lif2", "lif3"]
        assert network["flipped_spikes"] == sum(layer["flipped_spikes"] for layer in layers)
        for layer, neurons in zip(layers, (32 * 64, 32 * 64, 64 * 16), strict=True):
            assert layer["neuron_timesteps"] == neurons * tests * 2
            assert layer["firing_rate"] == layer["spikes"] / layer["neuron_timesteps"]
            assert 0 < layer["firing_rate"] < 1
        if network["flipped_spikes"] == 0:
            assert network["max_logit_difference"] < 1e-4
            assert network["accuracy_trained"] == network["accuracy_folded"]
        assert set(network["amplitudes"]) == (
            set() if granularity == "none" else {"lif1", "lif2", "lif3"}
        )


def test_quickstart_compares_three_ways(results):
    inference, element = results["inference"], results["networks"]["element"]
    ways = inference["ways"]
    assert set(ways) == {"unshared_spike_conv", "unfold_bmm", "shared_conv2d"}
    assert ways["unshared_spike_conv"]["accuracy"] == element["accuracy_folded"]
    assert ways["shared_conv2d"]["accuracy"] == element["accuracy_trained"]
    assert ways["shared_conv2d"]["max_logit_difference"] == 0
    assert [batch["batch_size"] for batch in inference["batches"]] == [1, 64]
    for batch in inference["batches"]:
        assert set(batch["runs"]) == set(ways)
        assert batch["runs"]["unshared_spike_conv"]["relative"] == 1
        for run in batch["runs"].values():
            assert 0 < run["fastest_ms"] <= run["median_ms"]


def test_quickstart_names_the_environment(results):
    environment = results["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["realspike"] == rso.__version__
    assert environment["threads"] == 1
    assert environment["cpu"]
    assert environment["build_info"] == rso.build_info()
    assert results["reloaded"]["same_predictions"] == results["data"]["test_images"]


def test_quickstart_checkpoints_classify_as_reported(finished, results):
    images, labels = test_part()
    for network in results["networks"].values():
        loaded = checkpoint.load(finished[0] / network["checkpoint"])
        assert loaded.network.config.to_dict() == network["config"]
        assert loaded.training["history"] == network["history"]
        correct = predict(loaded.network, images).argmax(1) == labels
        assert int(correct.sum()) == network["correct_trained"]


class _Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "realspike":
            self.ops.add(op.name().removeprefix("realspike::"))
        return op(*args, **kwargs or {})


def test_the_ops_that_run_are_the_real_ones(images):
    network = build(NetworkConfig("element", width=4, timesteps=2), seed=3)
    with _Recorded() as trained:
        network(images[:8]).sum().backward()
    folded = rso.reparameterize(network.eval(), images[:1])
    with _Recorded() as tested:
        predict(folded, images[:8])
    assert trained.ops == {"lif_fwd", "lif_bwd"}
    assert tested.ops == {"lif_packed", "unshared_conv", "unshared_conv_lif"}


def test_a_checkpoint_that_classifies_otherwise_is_an_error(tmp_path):
    trained = build(NetworkConfig("element", width=4), seed=0).eval()
    other = build(NetworkConfig("element", width=4), seed=1).eval()
    path = tmp_path / quickstart.checkpoint_name("element")
    checkpoint.save(path, other, {})
    with pytest.raises(quickstart.QuickstartError, match="classifies"):
        quickstart._reload(path, trained)


def test_trained_and_folded_are_examined_apart():
    images, labels = test_part()
    trained = build(NetworkConfig("element", width=4), seed=0).eval()
    other = build(NetworkConfig("element", width=4), seed=1).eval()
    folded = rso.reparameterize(other, images[:1])
    examined = quickstart._examine(trained, folded, images, labels)
    for name, network in (("trained", trained), ("folded", other)):
        correct = predict(network, images).argmax(1) == labels
        assert examined[f"correct_{name}"] == int(correct.sum())
    assert examined["correct_trained"] != examined["correct_folded"]
    assert examined["flipped_spikes"] > 0
    assert examined["max_logit_difference"] > 0.01


def test_a_network_that_multiplies_is_an_error():
    trained = build(NetworkConfig("element", width=4), seed=0).eval()
    with pytest.raises(rso.MultiplicationError):
        quickstart._examine(trained, trained, *test_part())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--seed", "-1"], "--seed"),
        (["--timesteps", "0"], "--timesteps"),
        (["--threads", "0"], "--threads"),
        (["--width", "3"], "--width"),
    ],
)
def test_bad_arguments(arguments, reason, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["quickstart", *arguments])
    assert raised.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["quickstart", "--out", str(tmp_path / "file" / "below")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert "cannot write to --out" in line
    assert str(tmp_path) in line


def test_interrupt_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "_train", interrupt)
    torch.set_num_threads(2)
    try:
        assert cli.main(["quickstart", "--threads", "3", "--out", str(tmp_path)]) == 130
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert capsys.readouterr().err == "realspike: interrupted\n"


def test_failure_while_running_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quickstart, "_train", fail)
    assert cli.main(["quickstart", "--out", str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left" in line


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("sklearn", "scikit-learn"),
        ("matplotlib", "matplotlib"),
        ("safetensors", "safetensors"),
        ("rich", "rich"),
        ("lightning", "lightning"),
    ],
)
def test_missing_package_says_what_to_install(module, package, tmp_path, monkeypatch, capsys):
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["quickstart", "--out", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert package in line
    extra = {"lightning": "train"}.get(module, "app")
    assert f"pip install '.[{extra}]'" in line


def run_python(code):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_import_is_light():
    heavy = ("torch", "numpy", "sklearn", "matplotlib", "rich", "safetensors")
    code = "import sys, realspike, realspike.cli; print(*sys.modules)"
    assert not set(heavy) & set(run_python(code).split())


def test_the_modules_need_no_optional_package_to_be_imported():
    package = Path(realspike.__file__).parent
    rooms = ("*", "quickstart/*", "inspect/*", "report/*", "config/*")
    files = {p for room in rooms for p in package.glob(room + ".py") if p.stem != "__main__"}
    names = sorted(".".join(p.relative_to(package).with_suffix("").parts) for p in files)
    assert "quickstart.report" in names
    imports = ", ".join(f"realspike.{name}".removesuffix(".__init__") for name in names)
    loaded = run_python(f"import sys, {imports}; print(*sys.modules)").split()
    assert not {"sklearn", "matplotlib", "rich", "safetensors", "lightning"} & set(loaded)


def test_help_and_version(capsys):
    for arguments in (["--help"], ["quickstart", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as raised:
            cli.main(arguments)
        assert raised.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--out", "--epochs", "--seed", "--timesteps", "--threads", "--version"):
        assert option in printed
    assert f"realspike {rso.__version__}" in printed
