"""Checkpoints survive the round trip, and everything that is not one is refused with a reason."""

import json
import os
import pickle
import struct

import pytest
import torch

safetensors_torch = pytest.importorskip("safetensors.torch")

from realspike import checkpoint
from realspike.checkpoint import CheckpointError
from realspike.networks import GRANULARITIES, NetworkConfig, build

RECORD = {"seed": 3, "test_accuracy": 0.5}


@pytest.fixture
def network():
    network = build(NetworkConfig("element", timesteps=2, width=4, decay=0.5), seed=1)
    for norm in (network.bn1, network.bn2, network.bn3):
        norm.running_mean.uniform_(-1, 1)
    with torch.no_grad():
        network.lif1.amplitude.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture
def saved(network, tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoint.save(path, network, RECORD)
    return path


def tensors_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def metadata_of(network, /, **changes):
    metadata = {
        "format": checkpoint.FORMAT,
        "format_version": checkpoint.FORMAT_VERSION,
        "network": json.dumps(network.config.to_dict()),
        "training": "{}",
    }
    return {name: value for name, value in (metadata | changes).items() if value is not None}


def refusal(path):
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load(path)
    assert isinstance(raised.value, ValueError)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def refusal_of(network, path, tensors=None, /, **metadata):
    tensors = tensors_of(network) if tensors is None else tensors
    path.write_bytes(safetensors_torch.save(tensors, metadata_of(network, **metadata)))
    return refusal(path)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_round_trip(granularity, tmp_path):
    network = build(NetworkConfig(granularity, timesteps=3, width=5), seed=2).eval()
    checkpoint.save(tmp_path / "a", network, RECORD)
    loaded = checkpoint.load(str(tmp_path / "a"))
    assert loaded.training == RECORD
    assert loaded.network.config == network.config
    assert not loaded.network.training
    expected = network.state_dict()
    assert loaded.network.state_dict().keys() == expected.keys()
    for name, tensor in loaded.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_loaded_network_computes_the_same(network, saved):
    images = torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            checkpoint.load(saved).network(images), network(images), rtol=0, atol=0
        )


def test_loading_leaves_the_random_state_alone(saved):
    before = torch.random.get_rng_state()
    checkpoint.load(saved)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_saving_replaces_whole_files(network, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(saved, network, {"other": 1})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_missing(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.safetensors")


def test_folder(tmp_path):
    assert "not a regular file" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.5, 0.99])
def test_truncated(saved, keep):
    content = saved.read_bytes()
    size = keep if isinstance(keep, int) else int(keep * len(content))
    saved.write_bytes(content[:size])
    assert "truncated, corrupt or not a safetensors file" in refusal(saved)


def test_one_byte_too_many(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert "truncated, corrupt" in refusal(saved)


def test_corrupt_header(saved):
    content = bytearray(saved.read_bytes())
    content[12] ^= 0xFF
    saved.write_bytes(content)
    assert "truncated, corrupt" in refusal(saved)


@pytest.mark.parametrize("length", [2**63, 2**40, 99_000_000])
def test_header_that_claims_to_be_huge(saved, length):
    saved.write_bytes(struct.pack("<Q", length) + saved.read_bytes()[8:])
    assert "truncated, corrupt" in refusal(saved)


class Malicious:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.mark.parametrize("write", ["pickle", "torch.save"])
def test_pickle_is_never_run(tmp_path, write):
    path, target = tmp_path / "net.safetensors", tmp_path / "owned"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Malicious(target)))
    else:
        torch.save(Malicious(target), path)
    assert "pickle" in refusal(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target))).close()
    assert target.exists(), "the attack itself must work, or this test shows nothing"


def test_foreign_safetensors(network, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors_torch.save({"w": torch.zeros(2)}))
    assert "not a realspike.checkpoint" in refusal(path)
    assert "not a realspike.checkpoint" in refusal_of(network, path, format="pt")


def test_other_version(network, tmp_path):
    assert "format version is '1'" in refusal_of(network, tmp_path / "a", format_version="1")
    assert "format version is None" in refusal_of(network, tmp_path / "a", format_version=None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "has no 'network'"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no JSON object"),
        ("{}", "is missing"),
    ],
)
def test_configuration_that_is_no_configuration(network, tmp_path, text, reason):
    assert reason in refusal_of(network, tmp_path / "a", network=text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("granularity", "pixel"),
        ("granularity", ["none"]),
        ("timesteps", 0),
        ("timesteps", 10**12),
        ("timesteps", True),
        ("timesteps", 2.0),
        ("width", -1),
        ("width", 10**30),
        ("width", "4"),
        ("decay", 1.5),
        ("decay", float("nan")),
        ("decay", None),
        ("v_threshold", float("inf")),
        ("v_threshold", 0),
        ("detach_reset", 1),
        ("import os", 1),
    ],
)
def test_absurd_configuration(network, tmp_path, key, value):
    config = json.dumps(network.config.to_dict() | {key: value})
    assert key in refusal_of(network, tmp_path / "a", network=config)


def test_missing_configuration_key(network, tmp_path):
    config = network.config.to_dict()
    del config["decay"]
    assert "'decay' is missing" in refusal_of(network, tmp_path / "a", network=json.dumps(config))


def test_a_file_from_before_ternary_spikes_is_binary(network, tmp_path):
    config = network.config.to_dict()
    del config["emission"]
    path = tmp_path / "old"
    metadata = metadata_of(network, network=json.dumps(config))
    path.write_bytes(safetensors_torch.save(tensors_of(network), metadata))
    assert checkpoint.load(path).config == network.config


def test_configuration_of_another_network(network, tmp_path):
    config = json.dumps(network.config.to_dict() | {"width": 512})
    assert "must have shape [512, 1, 3, 3]" in refusal_of(network, tmp_path / "a", network=config)


def test_wrong_shape(network, tmp_path):
    tensors = tensors_of(network) | {"lif2.amplitude": torch.ones(4, 1, 1)}
    message = refusal_of(network, tmp_path / "a", tensors)
    assert "'lif2.amplitude' must have shape [4, 8, 8]; it has [4, 1, 1]" in message


def test_wrong_dtype(network, tmp_path):
    tensors = tensors_of(network) | {"lif2.amplitude": torch.ones(4, 8, 8).half()}
    assert "must be torch.float32" in refusal_of(network, tmp_path / "a", tensors)


def test_missing_and_unknown_tensor(network, tmp_path):
    tensors = tensors_of(network)
    del tensors["linear.bias"]
    assert "'linear.bias' is missing" in refusal_of(network, tmp_path / "a", tensors)
    tensors = tensors_of(network) | {"extra": torch.zeros(1)}
    assert "unknown tensor 'extra'" in refusal_of(network, tmp_path / "a", tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(network, tmp_path, value):
    tensors = tensors_of(network)
    tensors["conv3.weight"][0, 0, 0, 0] = value
    assert "'conv3.weight' holds values that are not" in refusal_of(
        network, tmp_path / "a", tensors
    )


def test_negative_variance(network, tmp_path):
    tensors = tensors_of(network)
    tensors["bn2.running_var"][1] = -1
    assert "negative variances" in refusal_of(network, tmp_path / "a", tensors)


def test_the_digest_is_that_of_the_tensors():
    one, same, other = (torch.nn.Linear(2, 3) for _ in range(3))
    same.load_state_dict(one.state_dict())
    assert checkpoint.digest(one) == checkpoint.digest(same) != checkpoint.digest(other)
    with torch.no_grad():
        same.weight[0, 0] += 1e-3
    assert checkpoint.digest(one) != checkpoint.digest(same)
    flat = torch.nn.Linear(2, 3)
    flat.weight = torch.nn.Parameter(one.weight.detach().reshape(2, 3))
    flat.bias = one.bias
    assert checkpoint.digest(flat) != checkpoint.digest(one), "the shape is part of it"
