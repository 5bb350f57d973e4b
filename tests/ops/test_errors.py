"""Every bad argument of packing and folding raises the right exception, and the message names the
argument, what came, and what is accepted; what a missing device, extension or instruction set says.
The neuron's, the convolution's and the modules' are in the files of their names."""

import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_python
from refusals import SPIKES, assert_refused, zeros
from torch import nn

import realspike_ops as rso

NETWORK = nn.Sequential(nn.Conv2d(4, 4, 1), rso.RealSpikeLIF(2, "layer"), nn.Conv2d(4, 2, 1)).eval()

CASES = {
    # id: (call, exception, words of the message in their order)
    "pack spikes: not a tensor": (lambda: rso.pack_spikes([[1]]), TypeError, ["spikes", "list"]),
    "pack spikes: int64": (
        lambda: rso.pack_spikes(zeros(2, 3, dtype=torch.int64)),
        TypeError,
        ["spikes", "bool", "uint8", "int64"],
    ),
    "pack spikes: rank 1": (
        lambda: rso.pack_spikes(zeros(3)),
        ValueError,
        ["spikes", "2 dimensions", "[3]"],
    ),
    "pack spikes: sparse": (
        lambda: rso.pack_spikes(zeros(2, 3).to_sparse()),
        TypeError,
        ["spikes", "dense", "sparse"],
    ),
    "pack spikes: nested": (
        lambda: rso.pack_spikes(torch.nested.nested_tensor([zeros(2, 3)])),
        TypeError,
        ["spikes", "dense", "nested"],
    ),
    "pack spikes: real values": (
        lambda: rso.pack_spikes(zeros(2, 3) + 0.5),
        ValueError,
        ["spikes", "0 or 1"],
    ),
    "unpack packed: not a tensor": (lambda: rso.unpack_spikes(3, 3), TypeError, ["packed", "int"]),
    "unpack packed: float": (
        lambda: rso.unpack_spikes(zeros(2, 1), 3),
        TypeError,
        ["packed", "int32", "float32"],
    ),
    "unpack packed: words": (
        lambda: rso.unpack_spikes(zeros(2, 1, dtype=torch.int32), 33),
        ValueError,
        ["packed", "2", "33 channels", "[2, 1]"],
    ),
    "unpack packed: rank 1": (
        lambda: rso.unpack_spikes(zeros(1, dtype=torch.int32), 32),
        ValueError,
        ["packed", "[1]"],
    ),
    "unpack channels: 0": (
        lambda: rso.unpack_spikes(zeros(2, 0, dtype=torch.int32), 0),
        ValueError,
        ["channels", "at least 1", "0"],
    ),
    "unpack channels: bool": (
        lambda: rso.unpack_spikes(zeros(2, 1, dtype=torch.int32), True),
        TypeError,
        ["channels", "int", "bool"],
    ),
    "reparameterize model": (
        lambda: rso.reparameterize(3, SPIKES),
        TypeError,
        ["model", "Module", "int"],
    ),
    "reparameterize example_input": (
        lambda: rso.reparameterize(NETWORK, [1]),
        TypeError,
        ["example_input", "Tensor", "list"],
    ),
    "verify model": (
        lambda: rso.verify(3, NETWORK, SPIKES),
        TypeError,
        ["model", "Module", "int"],
    ),
    "verify folded": (
        lambda: rso.verify(NETWORK, 3, SPIKES),
        TypeError,
        ["folded", "Module", "int"],
    ),
    "verify data": (lambda: rso.verify(NETWORK, NETWORK, 3), TypeError, ["data", "int"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_argument(case):
    assert_refused(*CASES[case])


def test_the_good_arguments_are_good():
    """What the table varies is accepted unvaried: each row fails for its own reason."""
    rso.unpack_spikes(rso.pack_spikes(SPIKES), 4)
    rso.verify(NETWORK, rso.reparameterize(NETWORK, SPIKES), SPIKES)


def test_a_device_without_kernels(monkeypatch):
    class Elsewhere:
        """Stands in for a tensor of a device that this machine lacks."""

    from realspike_ops import _checks

    fake = Elsewhere()
    fake.device = torch.device("xpu")
    with pytest.raises(ValueError, match=r"x is on xpu.*cpu and cuda.*reference"):
        _checks.check_supported_device("x", fake)
    fake.device = torch.device("cuda", 0)
    _checks.check_supported_device("x", fake)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(ValueError, match=r"x is on cuda:0, an AMD GPU.*NVIDIA.*\.cpu\(\)"):
        _checks.check_supported_device("x", fake)
    fake.device = torch.device("cpu")
    _checks.check_supported_device("x", fake)


MISSING_EXTENSION = """
import sys
sys.modules["realspike_ops._C"] = None
import torch
import realspike_ops as rso
calls = {
    "lif": lambda: rso.lif(torch.zeros(2, 3)),
    "pack_spikes": lambda: rso.pack_spikes(torch.zeros(2, 3)),
    "unpack_spikes": lambda: rso.unpack_spikes(torch.zeros(2, 1, dtype=torch.int32), 3),
    "unshared_spike_conv": lambda: rso.unshared_spike_conv(
        torch.zeros(1, 1, 2, 2), torch.zeros(2, 2, 1, 1, 1, 1, 1)
    ),
    "build_info": rso.build_info,
}
for name, call in calls.items():
    try:
        call()
    except ImportError as error:
        assert "cannot be loaded: import of realspike_ops._C halted" in str(error), error
        assert "`pip install .` in the checkout builds it" in str(error), error
        print(name)
assert not rso.reference.lif(torch.zeros(2, 3)).any()
"""


def test_a_missing_extension_names_the_command_that_builds_it():
    """And nothing falls back to the reference."""
    printed = run_python("-c", MISSING_EXTENSION).split()
    assert printed == ["lif", "pack_spikes", "unpack_spikes", "unshared_spike_conv", "build_info"]


FIRST_CALL = (
    "import realspike_ops as r\ntry: r.build_info()\nexcept ImportError as error: print(error)"
)


def copied_sources(folder, *extensions: str):
    """Copy the package without its extension; write files in the place of built ones."""
    ignored = shutil.ignore_patterns("_C*", "__pycache__")
    package = shutil.copytree(ROOT / "realspike_ops", folder / "realspike_ops", ignore=ignored)
    for name in extensions:
        (package / name).write_text("no library")
    return folder


def what_the_first_call_says(monkeypatch, *path) -> str:
    monkeypatch.setattr("sys.path", [*map(str, path), *OTHERS])
    monkeypatch.chdir("/")
    return run_python("-S", "-c", FIRST_CALL)  # what is installed for development is not found


# Where torch lies, and no realspike_ops.
OTHERS = [path for path in sys.path if path and not (Path(path) / "realspike_ops").exists()]
THIS = EXTENSION_SUFFIXES[0]


def test_sources_that_hide_an_installed_package_are_named_first(tmp_path, monkeypatch):
    checkout = copied_sources(tmp_path / "checkout")
    installed = copied_sources(tmp_path / "installed", f"_C{THIS}")
    said = what_the_first_call_says(monkeypatch, checkout, installed)
    assert f"is missing: the sources in {checkout} hide the package that is installed in" in said
    assert f"{installed / 'realspike_ops'}. Start Python in another folder (`cd /`)" in said


def test_sources_that_were_never_built_are_named_first(tmp_path, monkeypatch):
    said = what_the_first_call_says(monkeypatch, copied_sources(tmp_path))
    assert f"is missing: nothing was built in {tmp_path / 'realspike_ops'}. `pip install" in said


def test_an_extension_of_another_python_is_named_first(tmp_path, monkeypatch):
    other = "_C.cpython-39-x86_64-linux-gnu.so"
    said = what_the_first_call_says(monkeypatch, copied_sources(tmp_path, other))
    assert f"is missing: it is built for another Python ({other}; this one loads _C{THIS}" in said


def test_an_extension_that_cannot_be_loaded_is_named_first(tmp_path, monkeypatch):
    said = what_the_first_call_says(monkeypatch, copied_sources(tmp_path, f"_C{THIS}"))
    assert f"is missing: {tmp_path / 'realspike_ops' / f'_C{THIS}'} cannot be loaded: " in said
    assert "file too short" in said or "invalid ELF header" in said


@pytest.mark.parametrize("value", ["sse2", "AVX2", "neon"])
def test_unknown_instruction_set(value):
    with pytest.raises(AssertionError, match=f"REALSPIKE_CPU_ISA.*avx2.*{value}"):
        run_python("-c", "import realspike_ops as r; r.build_info()", REALSPIKE_CPU_ISA=value)
