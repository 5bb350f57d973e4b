"""The Triton LIF kernels against the C++ kernels: the same bits, in the interpreter and on a GPU.

Where there is no GPU the interpreter executes the kernels (conftest.py selects it), and they are
compiled ahead of time for three generations of cards, which also shows what the compiler made of
them: 16-byte accesses, no spills, no fused multiply-add.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import run_python
from sass import read_functions, read_resources

from realspike_ops.ops import lif as lif_op
from realspike_ops.ops import lif_cpu, lif_cuda

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# With a card the compiled kernels run, under `make gpu`; without one the interpreter does.
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

cpu_fwd = lif_op.forward_with(lif_cpu.launch_fwd)
cpu_bwd = lif_op.backward_with(lif_cpu.launch_bwd)
triton_fwd = lif_op.forward_with(lif_cuda.launch_fwd)
triton_bwd = lif_op.backward_with(lif_cuda.launch_bwd)

AMPLITUDES = {"none": None, "layer": (1,), "channel": (3, 1, 1), "element": (3, 5, 7)}
NEURONS = {
    "bits": (0.3, 0.5, 0.0, True, "rectangular", 1.0),
    "bits-soft-wide": (0.9, 0.5, None, True, "rectangular", 2.0),
    "attached": (0.25, 0.5, 0.0, False, "rectangular", 1.0),
    "attached-reset-value": (1.0, 0.7, -0.2, False, "triangle", 1.5),
    "attached-soft": (0.6, 0.5, None, False, "atan", 2.0),
    "detached-smooth": (0.6, 0.5, 0.1, True, "sigmoid", 4.0),
}


def to(device, *tensors):
    return [None if t is None else t.to(device) for t in tensors]


def assert_same_bits(actual, expected, what):
    actual = actual.cpu()
    assert actual.dtype == expected.dtype, what
    assert torch.equal(actual, expected), (what, (actual.float() - expected.float()).abs().max())


def assert_close(actual, expected, what):
    # The surrogates' exponentials and divisions may differ in the last bit between backends.
    assert actual.shape == expected.shape, what
    scale = 1 + expected.float().abs().amax() if expected.numel() else 1
    error = (actual.cpu().float() - expected.float()).abs() / scale
    assert (error <= 8 * torch.finfo(expected.dtype).eps).all(), (what, error.max())


@pytest.mark.parametrize("T", [1, 4, 5, 8, 11, 17])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize(
    ("dtype", "channels_last", "amplitude", "with_state"),
    [
        (torch.float32, False, "element", True),
        (torch.float32, True, "element", False),
        (torch.float16, True, "channel", True),
        (torch.bfloat16, False, "channel", False),
        (torch.float32, False, "layer", False),
        (torch.float32, False, "none", True),
    ],
)
def test_triton_equals_cpu(T, neuron, dtype, channels_last, amplitude, with_state):
    torch.manual_seed(T)
    x = (torch.randn(T, 2, 3, 5, 7) * 0.8).to(dtype)
    if channels_last:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, 2))
    a = None if AMPLITUDES[amplitude] is None else torch.randn(AMPLITUDES[amplitude])
    # The interpreter truncates float32 to bfloat16 where cards and C++ round to nearest.
    truncates = dtype == torch.bfloat16 and DEVICE == "cpu"
    if truncates:
        a = a.bfloat16().float()
    v_init = torch.randn(2, 3, 5, 7) if with_state else None
    form = NEURONS[neuron]
    expected = cpu_fwd(x, a, v_init, *form, True)
    actual = triton_fwd(*to(DEVICE, x, a, v_init), *form, True)
    for name, left, right in zip(("y", "v_last", "saved"), actual, expected, strict=True):
        assert_same_bits(left, right, name)
    inference = triton_fwd(*to(DEVICE, x, a, v_init), *form, False)
    assert_same_bits(inference[0], expected[0], "y without saving")
    assert inference[2].numel() == 0

    grad_y = torch.randn(x.shape).to(dtype)
    grad_v = torch.randn(2, 3, 5, 7) if with_state else None
    bits = lif_op.Neuron(*form).save == lif_op.SAVE_BITS
    inputs = (grad_y, grad_v, None if bits else x, a, None if bits else v_init, expected[2])
    expected_grads = cpu_bwd(*inputs, channels_last, *form)
    actual_grads = triton_bwd(*to(DEVICE, *inputs), channels_last, *form)
    compare = assert_close if truncates or form[4] != "rectangular" else assert_same_bits
    names = ("grad_x", "grad_v_init", "grad_amplitude")
    for name, left, right in zip(names, actual_grads, expected_grads, strict=True):
        # torch sums the neurons that share an amplitude, in another order on another device.
        (assert_close if name == "grad_amplitude" else compare)(left, right, name)


def test_ties_fire():
    # h == v_threshold exactly: at once, and after 0.25 * 1 + 0.25.
    x = torch.tensor([[[0.5, 0.49999997, 0.25]], [[0.0, 0.5, 0.4375]]]).to(DEVICE)
    y, v_last, _ = triton_fwd(x, None, None, 0.25, 0.5, 0.0, False, "rectangular", 1.0, False)
    assert y.cpu().tolist() == [[[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0]]]
    assert v_last.cpu().tolist() == [[0.0, 0.0, 0.0]]


def test_constant_input_is_read_in_place():
    x = torch.randn(1, 2, 300)
    form = NEURONS["attached"]
    expected = cpu_fwd(x.repeat(9, 1, 1), None, None, *form, True)
    actual = triton_fwd(x.to(DEVICE).expand(9, -1, -1), None, None, *form, True)
    for left, right in zip(actual, expected, strict=True):
        assert_same_bits(left, right, "expanded input")


def accesses(code, opcode):
    """Count the accesses of `opcode` (LDG, STG) to global memory by their width in bits."""
    counts = Counter()
    for instruction in code:
        name, *flags = instruction.opcode.split(".")
        if name == opcode:
            counts[next((int(flag) for flag in flags if flag in ("64", "128")), 32)] += 1
    return counts


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles_ahead_of_time(arch, tmp_path):
    run_python(
        str(Path(__file__).with_name("compile_lif_triton.py")),
        *(str(arch), str(tmp_path)),
        TRITON_INTERPRET="0",
    )
    cubins = sorted(tmp_path.glob("*.cubin"))
    assert len(cubins) == 7
    for cubin in cubins:
        (resources,) = read_resources(cubin).values()
        assert resources["STACK"] == resources["LOCAL"] == 0, (cubin.name, "spills")
        (code,) = read_functions(cubin).values()
        opcodes = {instruction.opcode.split(".")[0] for instruction in code}
        # The recurrence is a product and a sum, each rounded (two at a time on sm_100).
        assert opcodes & {"FMUL", "FMUL2"}, cubin.name
        assert opcodes & {"FADD", "FADD2"}, cubin.name
        assert not opcodes & {"FFMA", "FFMA2"}, cubin.name
        kernel, dtype, saved = cubin.stem.split("-")
        # Half precision recomputes with fewer neurons a thread (options() in ops/lif_cuda.py).
        wide = 64 if (dtype, saved) == ("bfloat16", "potentials") else 128
        steps = 8 if saved == "potentials" else 4
        reads = 2 * steps if (kernel, saved) == ("lif_bwd_kernel", "potentials") else steps
        assert accesses(code, "LDG")[wide] >= reads, cubin.name
        assert accesses(code, "STG")[wide] >= steps, cubin.name
