"""An old name leads to the thing itself, and a warning tells the new name."""

import importlib
import pickle
import subprocess
import sys

import pytest
import torch

import realspike_ops as rso
from realspike_ops._moved import MOVED


@pytest.mark.parametrize("old", sorted(name for name in MOVED if name.startswith("realspike_ops")))
def test_modules_by_their_old_names(old):
    new = importlib.import_module(MOVED[old])
    spec = new.__spec__
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is {MOVED[old]}"):
        assert importlib.import_module(old) is new
    assert new.__spec__ is spec


def test_pickles_name_old_modules():
    pickled = b"crealspike_ops.nn.lif\nRealSpikeLIF\n."  # GLOBAL, STOP
    sys.modules.pop("realspike_ops.nn.lif", None)
    with pytest.warns(DeprecationWarning, match="neurons.lif"):
        assert pickle.loads(pickled) is rso.RealSpikeLIF


def test_all_old_names_lead_somewhere():
    for new in MOVED.values():
        assert importlib.util.find_spec(new), new


def test_the_application_by_its_old_names():
    program = (
        "import sys, realspike; assert 'torch' not in sys.modules\n"
        "from realspike import run_config\n"
        "from realspike.network_config import NetworkConfig\n"
        "from realspike.config import network_config, run_config as new\n"
        "assert run_config is new and NetworkConfig is network_config.NetworkConfig\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("algorithm", ["gather", "matmul", "auto"])
def test_an_algorithm_decides_nothing(algorithm):
    spikes = (torch.arange(2 * 3 * 4 * 4) % 3 == 0).float().view(2, 3, 4, 4)
    weight = torch.arange(4.0 * 4 * 9 * 3 * 5).view(4, 4, 1, 3, 3, 3, 5) / 64
    wanted = rso.unshared_spike_conv(spikes, weight, padding=1)
    with pytest.warns(DeprecationWarning, match="algorithm is deprecated"):
        found = rso.unshared_spike_conv(spikes, weight, padding=1, algorithm=algorithm)
    assert torch.equal(found, wanted)
    conv, line = torch.nn.Conv2d(3, 5, 3), torch.nn.Conv1d(3, 5, 3)
    layers = {
        rso.UnsharedSpikeConv: ((3, 5, 3), {"input_size": 4}),
        rso.UnsharedSpikeConv1d: ((3, 5, 3), {"input_size": 4}),
        rso.SpikeConv2d: ((3, 5, 3), {}),
        rso.UnsharedSpikeConv.from_conv2d: ((conv, None, 4), {}),
        rso.UnsharedSpikeConv1d.from_conv1d: ((line, None, 4), {}),
        rso.SpikeConv2d.from_weight: ((weight[:1, :1],), {}),
    }
    for make, (given, settings) in layers.items():
        with pytest.warns(DeprecationWarning, match="algorithm is deprecated"):
            assert isinstance(make(*given, **settings, algorithm=algorithm), torch.nn.Module)


def test_another_algorithm_is_refused():
    with pytest.raises(ValueError, match="algorithm"):
        rso.UnsharedSpikeConv(3, 5, 3, input_size=4, algorithm="fast")


def test_imagenet_is_a_folder_of_images():
    run_config = pytest.importorskip("realspike.config.run_config")
    assert run_config.read(None, ["data.name=imagenet"]).data.name == "images"
