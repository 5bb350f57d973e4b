"""Folded networks of PyTorch's own operators: equal where sums are exact; in ONNX and in C++."""

import shutil
import subprocess
import sys
from pathlib import Path

import nir_networks
import numpy as np
import pytest
import torch
from fold_networks import Neurons, T, images_for, make
from helpers import normal
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import realspike_ops as rso
from realspike_ops.export.to_onnx import exported_program
from realspike_ops.reparam.network import Step

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = {
    "paper": {},
    "ternary-soft": {"emission": "ternary", "v_reset": None, "decay": 0.5},
    "no-reset": {
        "reset": "none",
        "threshold_granularity": "element",
        "decay_granularity": "channel",
    },
    "delayed": {"reset": "soft_delayed"},
    "to-another-potential": {"v_reset": -0.1},
}


def exact(network, x):
    return rso.reparameterize(network, x, weight_dtype=torch.int8, scales="power_of_two")


class _NoneOfOurs(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not func.name().startswith("realspike"), func.name()
        return func(*args, **(kwargs or {}))


CASES = [
    ("vgg", "element", "delayed"),
    ("resnet20-odd", "element", "no-reset"),
    ("sew-resnet34", "none", "ternary-soft"),
    ("branches", "channel", "ternary-soft"),
    ("depthwise", "channel", "paper"),
]


@pytest.mark.parametrize(("family", "granularity", "form"), CASES)
def test_exact_networks_are_equal_bit_for_bit(family, granularity, form):
    network = make(family, Neurons(granularity, **FORMS[form]))
    folded = exact(network, images_for(family))
    stock = rso.without_custom_ops(folded)
    x = images_for(family, 5, seed=3)
    with torch.no_grad(), _NoneOfOurs():
        output = stock(x)
    with torch.no_grad():
        assert torch.equal(output, folded(x))
    assert not any(p.requires_grad for p in stock.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_others_up_to_the_order_of_sums(dtype, form):
    network, x = make("vgg-average", Neurons("element", **FORMS[form])), images_for("vgg-average")
    folded = rso.reparameterize(network, x, weight_dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(rso.without_custom_ops(folded)(x), folded(x))


@pytest.mark.parametrize("name", ["vgg", "residual"])
def test_ties_on_a_grid(name):
    """Potentials meet the threshold exactly, again and again."""
    model, x = nir_networks.network(name, 4, decay=0.5, granularity="element")
    folded = rso.reparameterize(model, x)
    with torch.no_grad():
        output = folded(x)
        assert torch.equal(rso.without_custom_ops(folded)(x), output)
    assert output.unique().numel() > 5


def lines():
    """A kernel per position of lines."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv1d(2, 4, 3, padding=1), rso.DirectEncoding(3)),
        *(rso.RealSpikeLIF(3, "element", (4, 9)), nn.Conv1d(4, 5, 3, stride=2, padding=1)),
        *(rso.RealSpikeLIF(3), nn.Flatten(), nn.Linear(25, 3), rso.SumOverTime(3)),
    ).eval()
    network[2].amplitude.data = 1 + 0.5 * normal((4, 9), 2)
    return network, normal((4, 2, 9), 1)


def frames():
    """Timesteps come from outside, and spikes are the output."""
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3), rso.RealSpikeLIF(3, "layer"), nn.Conv2d(3, 4, 2)

    class Frames(nn.Sequential):
        pass

    return Frames(*layers, rso.RealSpikeLIF(3)).eval(), 4 * normal((6, 2, 5, 5), 1)


@pytest.mark.filterwarnings("ignore:an image's outputs depend")
@pytest.mark.parametrize("made", [lines, frames])
def test_lines_and_frames(made):
    network, x = made()
    folded = exact(network, x)
    with torch.no_grad():
        assert torch.equal(rso.without_custom_ops(folded)(x), folded(x))


def test_a_copy_of_its_own():
    network, x = make("resnet19", Neurons("channel")), images_for("resnet19")
    folded = rso.reparameterize(network, x)
    stock = rso.without_custom_ops(folded)
    with torch.no_grad():
        before = stock(x)
        for parameter in folded.parameters():
            parameter.zero_()
        assert torch.equal(stock(x), before)
    with pytest.raises(ValueError, match=r"x must have shape \[N, 3, 8, 8\]"):
        stock(torch.zeros(1, 3, 8, 9))


def test_what_is_no_folded_network_is_refused():
    with pytest.raises(TypeError, match=r"folded must be a FoldedNetwork.*got Linear"):
        rso.without_custom_ops(nn.Linear(2, 2))
    network, x = lines()
    folded = rso.reparameterize(network, x)
    folded.add_module("3", rso.UnsharedSpikeConv(4, 5, 1, input_size=3, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"'3' has a scale of its own.*reparameterize"):
        rso.without_custom_ops(folded)


class _Negative(rso.SpikeConv2d):
    def forward(self, spikes):
        return -super().forward(spikes)


def _observe(folded):
    folded.features_1.register_forward_hook(lambda module, args, out: -out)


def _observe_input(folded):
    folded.register_forward_pre_hook(lambda module, args: (-args[0],))


def _replace_forward(folded):
    own = folded.features_0.forward
    folded.features_0.forward = lambda x: own(-x)


def _replace_class(folded):
    folded.features_1.__class__ = _Negative


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_observe, "'features_1' must compute.*forward hooks"),
        (_observe_input, "'folded' must compute.*forward hooks"),
        (_replace_forward, "'features_0' must compute.*forward is replaced on the instance"),
        (_replace_class, "'features_1' must compute.*_Negative has a forward of its own"),
    ],
)
def test_what_another_form_would_not_do_is_refused(change, reason, tmp_path):
    network, x = make("vgg", Neurons("channel")), images_for("vgg")
    folded = rso.reparameterize(network, x)
    change(folded)
    with pytest.raises(ValueError, match=reason):
        rso.without_custom_ops(folded)
    with pytest.raises(ValueError, match=reason):
        rso.export_onnx(folded, tmp_path / "net.onnx")


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_layers_of_other_forms():
    """Parametrized weights, one kernel in an unshared layer, and kernels of their own in a shared
    one: 3 spikes, or 2 at either end, times what a spike adds."""
    spikes = torch.ones(1, 1, 1, 4)
    shared = rso.SpikeConv2d.from_weight(torch.full((1, 1, 1, 1, 3, 1, 1), 2.0), padding=(0, 1))
    nn.utils.parametrize.register_parametrization(shared, "weight", _Doubled())
    one = rso.UnsharedSpikeConv.from_weight(
        torch.full((1, 1, 1, 1, 3, 1, 1), 2.0), input_size=(1, 4), padding=(0, 1)
    )
    of_line = rso.UnsharedSpikeConv1d.from_weight(
        torch.full((1, 1, 1, 1, 3, 1, 1), 2.0), input_size=4, padding=1
    )
    steps = torch.arange(1.0, 5).view(1, 4, 1, 1, 1, 1, 1)
    own = rso.SpikeConv2d.from_weight(steps.expand(1, 4, 1, 1, 3, 1, 1), padding=(0, 1))
    for layer, expected in (
        (shared, [8, 12, 12, 8]),
        (one, [4, 6, 6, 4]),
        (of_line, [4, 6, 6, 4]),
        (own, [2, 6, 9, 8]),
    ):
        x = spikes[:, :, 0] if layer is of_line else spikes
        assert layer(x).flatten().tolist() == expected
        folded = rso.FoldedNetwork([Step("layer", ("input",))], {"layer": layer}, "layer")
        assert rso.without_custom_ops(folded)(x).flatten().tolist() == expected


# --- ONNX -----------------------------------------------------------------------------------------


@pytest.fixture
def runtime():
    reason = "is not installed: pip install .[peers]"
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} {reason}")
    return pytest.importorskip("onnxruntime", reason=f"onnxruntime {reason}")


def run_onnx(runtime, path, x):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("family", "granularity", "form"), [CASES[0], CASES[3]])
def test_onnx_of_any_batch(runtime, family, granularity, form, tmp_path):
    network = make(family, Neurons(granularity, **FORMS[form]))
    folded = exact(network, images_for(family))
    rso.export_onnx(folded, tmp_path / "net.onnx")
    for batch in (1, 4, 7):
        x = images_for(family, batch, seed=batch)
        with torch.no_grad():
            expected = folded(x).numpy()
        assert np.array_equal(run_onnx(runtime, tmp_path / "net.onnx", x), expected)


@pytest.mark.filterwarnings("ignore:an image's outputs depend", "ignore::FutureWarning")
def test_onnx_of_frames(runtime, tmp_path):
    network, x = frames()
    folded = exact(network, x)
    rso.export_onnx(folded, tmp_path / "net.onnx")
    for rows in (3, 6):
        with torch.no_grad():
            expected = folded(x[:rows]).numpy()
        assert 0 < expected.sum() < expected.size
        assert np.array_equal(run_onnx(runtime, tmp_path / "net.onnx", x[:rows]), expected)


# --- torch.export and AOTInductor -----------------------------------------------------------------

FRESH = """
import sys, torch
if sys.argv[2] == "registered":
    import realspike_ops
torch.set_grad_enabled(False)  # as it was exported
x, expected = torch.load(sys.argv[1] + ".pt")
for program in (
    torch.export.load(sys.argv[1] + ".export.pt2").module(),
    torch._inductor.aoti_load_package(sys.argv[1] + ".pt2"),
):
    for rows in (1, 5):
        if sys.argv[3] == "exact":
            assert torch.equal(program(x[:rows]), expected[:rows]), rows
        torch.testing.assert_close(program(x[:rows]), expected[:rows])
assert sys.argv[2] == "registered" or "realspike_ops" not in sys.modules
"""


def packaged(network, folded, x, path):
    """Write an exported program, a package and what is expected of them."""
    with torch.no_grad():
        torch.save((x, network(x)), f"{path}.pt")
        program = exported_program(network, folded)
        torch.export.save(program, f"{path}.export.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=f"{path}.pt2")


def small():
    torch.manual_seed(1)
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T)),
        *(rso.RealSpikeLIF(T, "element", (4, 6, 6)), nn.Conv2d(4, 5, 3)),
        *(rso.RealSpikeLIF(T, "channel", (5, 4, 4)), nn.Flatten(), nn.Linear(80, 3)),
        rso.MeanOverTime(T),
    ).eval()
    network[2].amplitude.data = 1 + 0.5 * normal((4, 6, 6), 2)
    return network, exact(network, images_for("vgg", 1)[..., :6, :6]), normal((5, 3, 6, 6), 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("form", ["trained", "folded"])
def test_packages_in_a_fresh_process(form, tmp_path):
    network, folded, x = small()
    one = {"trained": network, "folded": folded}[form]
    packaged(one, folded, x, tmp_path / "net")
    # The compiler sums the trained network's real values in an order of its own.
    assert_equal_in_a_fresh_process(tmp_path, "registered", "exact" if form == "folded" else "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.skipif(not all(map(shutil.which, ("cmake", "c++"))), reason="there is no compiler")
def test_a_package_without_this_library_and_without_python(tmp_path):
    """In Python alone, then by examples/cpp, which is built as its CMakeLists.txt says."""
    _, folded, x = small()
    packaged(rso.without_custom_ops(folded), folded, x, tmp_path / "net")
    assert_equal_in_a_fresh_process(tmp_path, "alone", "exact")
    source, build = Path(__file__).parents[2] / "examples" / "cpp", tmp_path / "build"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    done(["cmake", "-S", source, "-B", build, prefix], tmp_path)
    done(["cmake", "--build", build], tmp_path)
    x.numpy().tofile(tmp_path / "images.f32")
    files = [tmp_path / name for name in ("net.pt2", "images.f32", "scores.f32")]
    printed = done([build / "classify", *files, "3", "6", "6"], tmp_path)
    with torch.no_grad():
        expected = folded(x)
    scores = torch.from_numpy(np.fromfile(files[2], np.float32)).view(len(x), -1)
    assert torch.equal(scores, expected)
    assert [*map(int, printed.split()[: len(x)])] == expected.argmax(1).tolist()
    failed = subprocess.run(
        [build / "classify", *files, "3", "6", "7"], capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert failed.stderr == "the images are not whole ones of C x H x W\n"


def assert_equal_in_a_fresh_process(folder, *words):
    done([sys.executable, "-c", FRESH, folder / "net", *words], folder)


def done(command, folder) -> str:
    finished = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=folder
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout
