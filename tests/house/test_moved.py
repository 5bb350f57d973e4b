"""An old name leads to the thing itself, and a warning tells the new name."""

import importlib
import pickle
import subprocess
import sys

import pytest

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


def test_imagenet_is_a_folder_of_images():
    run_config = pytest.importorskip("realspike.config.run_config")
    assert run_config.read(None, ["data.name=imagenet"]).data.name == "images"
