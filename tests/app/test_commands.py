"""The commands that use a checkpoint: eval, fold, verify, profile, plot."""

import argparse
import dataclasses
import json
import math
import re
import sys

import pytest
import torch

for package in ("sklearn", "safetensors", "rich", "lightning", "yaml", "matplotlib"):
    pytest.importorskip(package)

from digit_images import test_part
from realspike import checkpoint, cli, train
from realspike.cli import common
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import RunConfig
from realspike.inspect import activity, folded_file, kernels, trained_file
from realspike.inspect.activity import LayerActivity
from realspike.inspect.classify import predict
from realspike.inspect.spikes import record_spikes
from realspike.networks import build

import realspike_ops as rso

SETTINGS = {
    **{"architecture": "digits", "width": 4, "timesteps": 3, "batch_size": 64, "device": "cpu"},
    **{"epochs": 2, "learning_rate": 0.1},
}
PNG = "data:image/png;base64,"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained_run(folder, **changes):
    train.start(RunConfig().replaced(**(SETTINGS | {"name": "digits"} | changes)), folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def events_run(tmp_path_factory):
    return trained_run(
        tmp_path_factory.mktemp("events"), name="digits-events", architecture="resnet8", epochs=1
    )


@pytest.fixture(scope="module")
def binary_run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("binary"), granularity="none", epochs=1)


@pytest.fixture(scope="module")
def folded_path(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("folded") / "sub" / "folded.safetensors"
    assert cli.main(["fold", str(run), "-o", str(path)]) == 0
    return path


def output(capsys, *arguments, code=0):
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


# eval


def test_eval(run, capsys):
    result = json.loads(output(capsys, "eval", run, "--json"))
    record = checkpoint.load(run / "model.safetensors").training["history"][-1]
    assert result["samples"] == 450
    assert result["accuracy"] == record["test_accuracy"] == result["correct"] / 450
    printed = output(capsys, "eval", run / "model.safetensors")
    assert f"accuracy {100 * result['accuracy']:.2f} %" in printed
    few = json.loads(output(capsys, "eval", run, "--json", "--samples", 100))
    assert few["samples"] == 100


def test_eval_of_frames(events_run, capsys):
    result = json.loads(output(capsys, "eval", events_run, "--json"))
    record = checkpoint.load(events_run / "model.safetensors").training["history"][-1]
    assert result["accuracy"] == record["test_accuracy"]


def test_eval_of_a_checkpoint_without_a_configuration(tmp_path, capsys):
    network = build(NetworkConfig("element", width=4, timesteps=2), seed=0).eval()
    checkpoint.save(tmp_path / "a.safetensors", network, {"seed": 0})
    images, labels = test_part()
    correct = (predict(network, images).argmax(1) == labels).sum()
    result = json.loads(output(capsys, "eval", tmp_path / "a.safetensors", "--json"))
    assert result["correct"] == int(correct)


@pytest.mark.parametrize("command", ["eval", "profile", "plot"])
def test_commands_without_a_checkpoint(command, tmp_path, capsys):
    assert "no such file" in output(capsys, command, tmp_path / "absent", code=2)
    assert "without model.safetensors" in output(capsys, command, tmp_path, code=2)


def test_overrides_are_for_the_data(run, capsys):
    assert "cannot be changed after training" in output(capsys, "eval", run, "width=3", code=2)
    message = output(capsys, "eval", run, "name=cifar10", "root=absent", code=2)
    assert "cifar10 does not fit this network: in_channels is 3" in message
    assert "did you mean 'data.root'" in output(capsys, "eval", run, "data.rot=x", code=2)


# fold, verify


def test_fold_says_how_large_and_writes_whole_files(run, folded_path, capsys, tmp_path):
    printed = output(capsys, "fold", run, "-o", tmp_path / "a")
    assert "59.3 KiB of folded weights (9.6 KiB trained), free of multiplications" in printed
    expected = folded_file.load(folded_path).network.state_dict()
    for name, tensor in folded_file.load(tmp_path / "a").network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    (tmp_path / "file").touch()
    assert "cannot write" in output(capsys, "fold", run, "-o", tmp_path / "file" / "b", code=2)


def test_a_folded_file_is_the_folded_network(run, folded_path):
    network = trained_file.load(run)
    expected = folded_file.fold(network)
    loaded = folded_file.load(folded_path)
    inputs = torch.cat([inputs for inputs, _ in network.test_batches()])
    with torch.no_grad():
        assert torch.equal(loaded.network(inputs), expected(inputs))
    assert any(isinstance(m, rso.UnsharedSpikeConv) for m in loaded.network.modules())
    rso.assert_multiplication_free(loaded.network, inputs[:4])


def test_a_folded_file_needs_neither_the_application_nor_the_architecture(folded_path, capsys):
    network = rso.load_folded(folded_path)
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    plain = folded_path.with_name("plain.safetensors")
    rso.save_folded(network, plain)
    message = output(capsys, "eval", plain, code=2)
    assert "has no 'trained_network'" in message


def test_eval_of_a_folded_network(run, folded_path, capsys):
    expected = json.loads(output(capsys, "eval", run, "--json"))
    result = json.loads(output(capsys, "eval", folded_path, "--json"))
    assert result["samples"] == 450
    assert abs(result["correct"] - expected["correct"]) <= 1
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-2)


def test_verify(run, folded_path, capsys):
    report = json.loads(output(capsys, "verify", run, folded_path, "--json"))
    assert report["samples"] == 450
    assert report["agreement"] >= 0.99
    assert [layer["name"] for layer in report["layers"]] == ["lif1", "lif2", "lif3"]
    assert "flipped spikes" in output(capsys, "verify", run, folded_path, "--samples", 64)


def test_verify_of_frames_counts_samples(tmp_path, capsys):
    run = trained_run(tmp_path / "run", name="digits-events", epochs=1)
    output(capsys, "fold", run, "-o", tmp_path / "folded")
    arguments = ("verify", run, tmp_path / "folded", "--json", "--samples", 100)
    report = json.loads(output(capsys, *arguments))
    assert report["samples"] == 100
    assert report["agreement"] >= 0.99
    assert report["layers"][0]["neuron_timesteps"] == 100 * 3 * 4 * 16 * 16


def test_verify_notices_other_weights(run, tmp_path, capsys):
    network = trained_file.load(run)
    binary = folded_file.fold(network)
    with torch.no_grad():
        for parameter in binary.parameters():
            parameter.mul_(-1)
    folded_file.save(tmp_path / "a", network, binary)
    assert "of the predictions agree" in output(capsys, "verify", run, tmp_path / "a", code=1)


def test_verify_of_another_network(binary_run, folded_path, capsys):
    message = output(capsys, "verify", binary_run, folded_path, code=2)
    assert "was folded from another network" in message


def test_trained_and_folded_files_are_not_confused(run, folded_path, capsys):
    message = output(capsys, "fold", folded_path, "-o", "x", code=2)
    assert "it holds a folded network, and a trained one is needed" in message
    message = output(capsys, "verify", run, run / "model.safetensors", code=2)
    assert "not a realspike.folded" in message


def test_data_that_do_not_fit_are_refused(run, folded_path, capsys):
    for file in (run, folded_path):
        message = output(capsys, "eval", file, "data.name=digits-events", code=2)
        assert "digits-events does not fit this network: in_channels is 2" in message


@pytest.mark.parametrize("text", ["2", "-0.1", "nan", "most"])
def test_agreement_is_a_share(run, folded_path, text, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["verify", str(run), str(folded_path), f"--agreement={text}"])
    assert raised.value.code == 2
    assert f"must be a number from 0 to 1; got {text!r}" in capsys.readouterr().err


def test_a_run_without_an_epoch_says_so(tmp_path, capsys):
    assert "after its first epoch" in output(capsys, "eval", tmp_path, code=2)


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.99])
def test_truncated_folded_files(folded_path, tmp_path, keep, capsys):
    content = folded_path.read_bytes()
    size = keep if isinstance(keep, int) else int(keep * len(content))
    (tmp_path / "a").write_bytes(content[:size])
    message = output(capsys, "eval", tmp_path / "a", code=2)
    assert "truncated, corrupt" in message


# profile


def test_profile(run, folded_path, capsys):
    assert "lif1" in output(capsys, "profile", run, "--samples", 64)
    json.loads(output(capsys, "profile", folded_path, "--samples", 64, "--json"))


# Activity and entropy


def layer_of(spikes, amplitude, chances=8, is_real_valued=True):
    return LayerActivity(
        "lif", torch.tensor(spikes).double(), chances, torch.tensor(amplitude), is_real_valued
    )


def test_entropy_by_hand():
    # One neuron that fires half of the time: one bit, whatever its amplitude.
    layer = layer_of([4], [1.7])
    assert layer.firing_rate == 0.5
    for entropy in (layer.binary_entropy(), layer.emitted_entropy(), layer.neuron_entropy()):
        assert entropy == pytest.approx(1)
    # Two neurons, always firing, with different amplitudes: one bit between them, none in each.
    layer = layer_of([8, 8], [1.0, 2.0])
    assert layer.binary_entropy() == pytest.approx(0)
    assert layer.emitted_entropy() == pytest.approx(1)
    assert layer.neuron_entropy() == pytest.approx(0)
    # Amplitudes that are equal are one value.
    assert layer_of([8, 8], [1.0, 1.0]).emitted_entropy() == pytest.approx(0)
    # 0 with 1/2, two amplitudes with 1/4 each
    assert layer_of([4, 4], [1.0, 2.0]).emitted_entropy() == pytest.approx(1.5)
    # An amplitude of 0 emits what silence emits.
    assert layer_of([4, 4], [0.0, 2.0]).emitted_entropy() == pytest.approx(0.8112781)
    silent = layer_of([0, 0], [1.0, 2.0])
    assert silent.emitted_entropy() == silent.binary_entropy() == silent.neuron_entropy() == 0
    assert (layer.capacity, layer_of([1], [1.0], is_real_valued=False).capacity) == (32, 1)


def test_entropy_of_ternary_spikes_by_hand():
    def ternary(positive, negative, amplitude, **options):
        layer = layer_of([p + n for p, n in zip(positive, negative, strict=True)], amplitude)
        return dataclasses.replace(layer, negative=torch.tensor(negative).double(), **options)

    # -1, 0 and 1, each a third of the time.
    layer = ternary([4], [4], [1.0], chances=12, is_real_valued=False)
    assert layer.capacity == pytest.approx(1.5849625)
    assert layer.emitted_entropy() == layer.neuron_entropy() == pytest.approx(1.5849625)
    assert layer.binary_entropy() == pytest.approx(0.9182958)  # fires with 2/3
    # Always firing, half of them negative: a bit that "fires or not" does not see.
    layer = ternary([4], [4], [1.7])
    assert (layer.binary_entropy(), layer.capacity) == (0, 32)
    assert layer.emitted_entropy() == layer.neuron_entropy() == pytest.approx(1)
    # What one amplitude emits, an opposite one emits with the other sign: 1 and 1, -1 and -1.
    layer = ternary([8, 0], [0, 8], [1.0, -1.0])
    assert layer.emitted_entropy() == layer.neuron_entropy() == 0


@torch.no_grad()
def test_activity_knows_the_sign_of_a_spike():
    """[T*B, C, H, W] of one sample and two timesteps; the second amplitude is negative."""
    lif = rso.RealSpikeLIF(2, "element", (1, 1, 3), decay=0.0, emission="ternary")
    lif.amplitude.copy_(torch.tensor([[[2.0, -2.0, 1.0]]]))
    currents = torch.tensor([[[[1.0, 1.0, -1.0]]], [[[-1.0, 0.0, -1.0]]]])
    [layer] = activity.record_activity(lif, [currents])
    assert layer.spikes.tolist() == [[[2.0, 1.0, 2.0]]]
    assert layer.negative.tolist() == [[[1.0, 0.0, 2.0]]]
    # Emitted: 2, -2 twice, 0, and -1 twice.
    assert layer.emitted_entropy() == pytest.approx(2 * math.log2(6) / 6 + 2 * math.log2(3) * 2 / 6)


def test_activity_counts_every_spike(run):
    network = trained_file.load(run)
    batches = [inputs for inputs, _ in network.test_batches(150)]
    layers = activity.record_activity(network.network, batches)
    spikes = [record_spikes(network.network, batch) for batch in batches]
    assert [layer.name for layer in layers] == ["lif1", "lif2", "lif3"]
    for layer in layers:
        emitted = torch.cat([part[layer.name] for part in spikes], 1)  # [T, B, C, H, W]
        assert layer.chances == 3 * 150
        assert torch.equal(layer.spikes, (emitted != 0).sum((0, 1)).double())
        values, counts = emitted.flatten().unique(return_counts=True)
        shares = counts.double() / counts.sum()
        assert values[0] == 0
        expected = -(shares * shares.log2()).sum().item()
        assert layer.emitted_entropy() == pytest.approx(expected)
    assert not network.network.lif1._forward_hooks
    with pytest.raises(ValueError, match="at least one batch"):
        activity.record_activity(network.network, [])


def test_binary_spikes_carry_what_firing_carries(binary_run):
    network = trained_file.load(binary_run)
    for layer in activity.record_activity(network.network, [network.example_input()]):
        assert layer.emitted_entropy() == pytest.approx(layer.binary_entropy())
        assert layer.capacity == 1


def test_plot_entropy(run, capsys):
    rows = json.loads(output(capsys, "plot", run, "--entropy", "--json"))
    assert [row["layer"] for row in rows] == ["lif1", "lif2", "lif3"]
    assert all(row["capacity"] == 32 for row in rows)
    assert all(0 < row["neuron_entropy"] <= row["emitted_entropy"] < 32 for row in rows)
    printed = output(capsys, "plot", run, "--entropy")
    assert f"{rows[1]['emitted_entropy']:.2f}" in printed
    assert "…" not in printed


# Pictures


def test_unshared_kernels_are_those_of_the_folded_layer(run):
    network = trained_file.load(run)
    readings = kernels.find_readings(network.network, network.example_input())
    assert [(r.conv_name, r.lif_name) for r in readings] == [("conv2", "lif1"), ("conv3", "lif2")]
    for reading in readings:
        layer = rso.UnsharedSpikeConv.from_conv2d(
            reading.conv, reading.lif.amplitude, reading.input_size
        )  # [OH, OW, G, KH, KW, Cin, Cout]
        shared, amplitude, unshared = kernels.unshared_kernels(reading, 3, 1)
        torch.testing.assert_close(unshared, layer.weight[:, :, 0, :, :, 1, 3])
        assert torch.equal(shared, reading.conv.weight[3, 1])
        assert torch.equal(amplitude, reading.lif.amplitude[1])


def test_readings_behind_a_sum_are_found_only_where_one_layer_is_read():
    config = NetworkConfig("element", architecture="sew_resnet10", width=4, image_size=16)
    found = kernels.find_readings(build(config, seed=0).eval(), torch.zeros(1, 1, 16, 16))
    names = {reading.conv_name: reading.lif_name for reading in found}
    assert names["stages.0.0.conv2"] == "stages.0.0.lif1"
    assert "stages.1.0.conv1" not in names, "it reads a sum of spikes"


def test_plot_writes_one_page_with_all_pictures(run, binary_run, capsys):
    printed = output(capsys, "plot", run, "--beside", binary_run)
    assert str(run / "report.html") in printed
    names = {path.name for path in (run / "plots").iterdir()}
    pictures = {"accuracy", "kernels", "channels", "firing_rates"}
    pictures |= {"amplitudes", "amplitude_course"}
    assert names == {f"{name}.png" for name in pictures}
    page = (run / "report.html").read_text()
    assert page.count(PNG) == len(names)
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "http" not in page
    record = checkpoint.load(run / "model.safetensors").training["history"][-1]
    assert f"{100 * record['test_accuracy']:.2f} %" in page
    assert "lif2" in page
    assert "architecture: digits" in page


def test_plot_of_a_binary_network_and_of_frames(binary_run, events_run, capsys):
    output(capsys, "plot", binary_run)
    names = {path.stem for path in (binary_run / "plots").iterdir()}
    assert names == {"accuracy", "channels", "firing_rates"}
    output(capsys, "plot", events_run)
    assert len(list((events_run / "plots").iterdir())) == 6


def test_help_of_every_command(capsys):
    for command in (
        "quickstart",
        "data",
        "train",
        "eval",
        "fold",
        "verify",
        "profile",
        "table",
        "plot",
    ):
        with pytest.raises(SystemExit) as raised:
            cli.main([command, "--help"])
        assert raised.value.code == 0
        assert f"usage: realspike {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["evaluate"])
    assert "did you mean 'eval'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", "x", "--sample", "3", "--jsn"])
    assert "unrecognized arguments: --jsn (did you mean '--json'?)" in capsys.readouterr().err
    for option in ("--learning-rate=1", "--epochs"):
        with pytest.raises(SystemExit):
            cli.main(["train", option, "3"])
        name = option.strip("-=1").replace("-", "_")
        assert f"is given as {name}=VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval"])
    assert capsys.readouterr().err.endswith("arguments are required: CHECKPOINT\n")


# export


def test_export_of_a_trained_and_of_a_folded_network(run, tmp_path, capsys):
    nir = pytest.importorskip("nir")
    output(capsys, "fold", run, "-o", tmp_path / "folded.safetensors")
    graphs = []
    for source in (run, tmp_path / "folded.safetensors"):
        written = output(capsys, "export", source, "-o", tmp_path / "new" / "net.nir")
        assert "3 timesteps" in written
        graphs.append(nir.read(tmp_path / "new" / "net.nir"))
    assert graphs[0].metadata["sha256"] == graphs[1].metadata["sha256"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.nir"]
    network = rso.import_nir(graphs[0]).eval()
    digits = test_part()[0][:20]
    expected = predict(trained_file.load(run).network, digits)
    assert torch.allclose(predict(network, digits), expected, atol=1e-5)


def test_outputs_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/someone")
    for arguments in (["export", "a", "-o", "~/b"], ["fold", "a", "-o", "~/b"]):
        assert str(cli._parse(arguments).out) == "/home/of/someone/b"


def test_export_says_what_it_cannot_do(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("nir")
    out = tmp_path / "net.nir"
    assert "max_bytes" in output(capsys, "export", run, "-o", out, "--max-bytes", 1000, code=1)
    assert "no such file" in output(capsys, "export", tmp_path / "none", "-o", out, code=2)
    monkeypatch.setitem(sys.modules, "nir", None)
    assert "pip install '.[nir]'" in output(capsys, "export", run, "-o", out, code=2)
    assert not out.exists()


def test_numbers_of_samples():
    samples = common.integer(1, 10**9)
    assert [samples(text) for text in ("1", "10000", "1000000000")] == [1, 10**4, 10**9]
    for text in ("0", "1000000001", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 1000000000"):
            samples(text)
