"""Where a run computes, how, and what may be captured there; which data stay on the device."""

from types import SimpleNamespace

import pytest
import torch

for package in ("lightning", "yaml"):
    pytest.importorskip(package)

from realspike.config.run_config import RunConfig
from realspike.data import resident
from realspike.data.sets import InMemory, Splits
from realspike.errors import RunError
from realspike.train.placement import placement


def placed(device="auto", **changes):
    return placement(RunConfig().replaced(device=device, **changes))


@pytest.fixture
def card(monkeypatch):
    """A machine that has a card, as far as it is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    hopper = SimpleNamespace(major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: hopper)


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("world", "local", "nodes", "strategy"),
    [(None, None, 1, "auto"), (1, 1, 1, "auto"), (2, 2, 1, "ddp"), (8, 2, 4, "ddp")],
)
def test_where_processes_are_placed(monkeypatch, card, world, local, nodes, strategy):
    for name, value in (("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", local)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(value))
    on_cpu = placed("cpu")
    assert on_cpu.trainer == {
        **{"accelerator": "cpu", "devices": local or 1, "num_nodes": nodes},
        **{"strategy": strategy, "sync_batchnorm": False},
        **{"precision": "32-true", "benchmark": None},
    }
    assert not on_cpu.channels_last
    for device in ("cuda", "auto"):
        on_card = placed(device)
        assert on_card.trainer["accelerator"] == "gpu"
        assert on_card.trainer["sync_batchnorm"] == (strategy == "ddp")
        assert on_card.captures == (strategy == "auto"), "gradients are exchanged inside a step"
    assert not placed("auto", sync_batchnorm=False).trainer["sync_batchnorm"]


def test_without_a_card(no_card):
    assert placed("auto").trainer["accelerator"] == "cpu"
    with pytest.raises(RunError, match="there is no CUDA device"):
        placed("cuda")


def test_a_card_computes_in_bfloat16_and_channels_last_as_it_is_quickest(monkeypatch, card):
    default = placed()
    assert default.channels_last
    assert default.captures
    assert (default.trainer["precision"], default.trainer["benchmark"]) == ("bf16-mixed", True)
    chosen = placed(precision="32-true", channels_last=False, cuda_graph=False)
    assert not chosen.channels_last
    assert not chosen.captures
    assert chosen.trainer["precision"] == "32-true"
    turing = SimpleNamespace(major=7, minor=5)  # emulates bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: turing)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert placed().trainer["precision"] == "32-true"
    assert placed("cpu", channels_last=True, precision="bf16-mixed").channels_last


SUPPORTED = {
    **{
        "accumulation": {"accumulate": 4},
        "average": {"ema": 0.999},
        "adamw": {"optimizer": "adamw"},
    },
    **{"clipping": {"clip_gradient": 1.0}, "bfloat16": {"precision": "bf16-mixed"}},
    **{"float32": {"precision": "32-true"}, "schedule": {"warmup_epochs": 5.0, "restarts": "30"}},
}


@pytest.mark.parametrize("case", SUPPORTED)
def test_what_is_captured(card, case):
    assert placed(**SUPPORTED[case]).captures
    assert placed(**SUPPORTED[case], cuda_graph=True).captures


def test_what_cannot_be_captured_is_refused_by_name(monkeypatch, card):
    def refused(reason, device="auto", **changes):
        assert not placed(device, **changes).captures
        with pytest.raises(RunError, match=rf"training\.cuda_graph is true, but .*{reason}"):
            placed(device, cuda_graph=True, **changes)

    refused("compress_spikes", compress_spikes=True)
    refused("training.device is cpu", device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused("2 processes exchange their gradients")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("there is no CUDA device")


def test_a_network_of_the_users_own_is_captured_when_the_user_says_so(card):
    assert not placed(architecture="package.module:Network").captures
    assert placed(architecture="package.module:Network", cuda_graph=True).captures


def test_data_stay_on_the_device_as_they_are_where_they_fit(monkeypatch):
    """A quarter of what is free: 1,000 bytes of samples fit into 4,000, the next 100 do not."""
    meta = torch.device("meta")  # another device than the CPU, which has no memory to fill
    parts = {
        "train": InMemory(torch.zeros(10, 1, 10, 10, dtype=torch.uint8), torch.zeros(10)),
        "test": InMemory(torch.zeros(1, 1, 10, 10, dtype=torch.uint8), torch.zeros(1)),
    }
    for free, where in ((4000, ("meta", "cpu")), (3999, ("cpu", "meta")), (4400, ("meta", "meta"))):
        left = resident.SHARE * free
        found = []
        for part in parts.values():
            kept, left = resident._kept(part, meta, left)
            found.append(kept.samples.device.type)
            assert kept.samples.dtype == torch.uint8
            assert kept.labels.device == kept.samples.device
        assert tuple(found) == where
    files = Splits([1, 2], [3], (0.0,), (1.0,))
    assert resident._kept(files.train, meta, 10**9)[0] is files.train
    assert resident.kept_on(torch.device("cpu"), files) is files
