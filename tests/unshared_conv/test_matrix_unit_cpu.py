"""`algorithm="auto"` with int8 weights on a CPU with a matrix unit: the bits of the gather.

On other CPUs of x86-64 the sanitized sweep runs the same kernel on an emulated unit.
"""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from helpers import binary, generator, normal
from realspike.config.network_config import NetworkConfig
from realspike.networks import build
from torch.utils._python_dispatch import TorchDispatchMode

import realspike_ops as rso
from realspike_ops._native import extension

pytestmark = pytest.mark.skipif(
    not extension().multiplies_cpu(64, 3, 3, 16, 16), reason="the CPU has no matrix unit for int8"
)

# Less than four rows, a rest of four, one register of rows and a rest, two; channels likewise.
CHANNELS = [(1, 2), (2, 16), (6, 15), (16, 16), (33, 17), (64, 32), (65, 33), (130, 100)]
# Samples that fill one register, two (not wholly), three, and more than a task takes.
SAMPLES = (16, 17, 33, 48, 300)


def int8(shape, seed=1):
    return torch.randint(256, shape, generator=generator(seed), dtype=torch.uint8)


def both(spikes, weight, *arguments, **settings):
    """Return what "auto" gives, which is what the gather gives."""
    found = rso.unshared_spike_conv(spikes, weight, *arguments, algorithm="auto", **settings)
    assert torch.equal(found, rso.unshared_spike_conv(spikes, weight, *arguments, **settings))
    return found


@pytest.mark.parametrize("shared", [False, True], ids=["unshared", "shared"])
@pytest.mark.parametrize(("Cin", "Cout"), CHANNELS)
def test_the_sums_are_those_of_the_gather(Cin, Cout, shared):
    for N, rate, memory_format in itertools.product(
        SAMPLES if Cin < 100 else SAMPLES[:3],
        (0.0, 0.2, 1.0),
        (torch.contiguous_format, torch.channels_last),
    ):
        weight = int8((4, 5, 1, 3, 3, Cin, Cout))
        weight = weight[:1, :1].expand_as(weight) if shared else weight
        spikes = binary((N, Cin, 4, 5), N, rate).contiguous(memory_format=memory_format)
        both(spikes, weight, normal((Cout, 4, 5), 2), padding=1, scale=normal((Cout,), 3))
        both(rso.pack_spikes(spikes), weight, padding=1)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    ("size", "positions", "geometry"),
    [
        ((7, 9), (3, 5), {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 2)}),
        ((3, 3), (5, 5), {"padding": 2}),
        ((1, 1), (3, 3), {"padding": 2}),  # most taps outside the map
    ],
)
def test_geometries_and_groups(size, positions, geometry, groups):
    weight = int8((*positions, groups, 3, 3, 5, 7))
    bias = normal((7 * groups,), 1)
    both(binary((20, 5 * groups, *size), 1, 0.5), weight, bias, **geometry)


def test_sums_that_16_and_24_bits_do_not_hold():
    """All rows are -128, or 127, and all fire: 2^24 and more is rounded as the gather rounds."""
    for byte, value in ((0, -128.0), (255, 127.0)):
        weight = torch.full((1, 1, 1, 8, 8, 2100, 3), byte, dtype=torch.uint8)
        found = both(torch.ones(16, 2100, 8, 8), weight)
        assert abs(value * 2100 * 64) > 2**24
        assert found.unique().tolist() == [value * 2100 * 64]


def test_the_first_and_the_last_weight_of_a_register():
    """One spike at a time: each names one row, which is its column of the output."""
    weight = int8((1, 1, 1, 1, 1, 70, 19))
    spikes = torch.eye(70)[..., None, None]
    assert torch.equal(both(spikes, weight)[..., 0, 0], weight[0, 0, 0, 0, 0].float() - 128)


def test_threads_do_not_matter():
    spikes, weight = binary((40, 32, 6, 6), 1, 0.3), int8((6, 6, 1, 3, 3, 32, 40))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            both(spikes, weight, padding=1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("form", [{}, {"emission": "ternary", "reset": "soft"}], ids=str)
def test_neurons_behind_the_sums(form, signed, maps):
    T, B, signs = 4, 6, 2 if signed else 1
    weight = int8((5, 5, 1, 3, 3, 16, 33))
    samples = T * B * maps * signs
    spikes = rso.pack_spikes(binary((samples, 16, 5, 5), 1, 0.3))
    words = rso.pack_spikes(binary((T * B, 33, 5, 5), 2, 0.5))
    added = [normal((T * B, 33, 5, 5), 3), (normal((33, 5, 5), 4), words)]
    found, expected = (
        rso.unshared_spike_conv_lif(
            spikes, weight, normal((33,), 5), timesteps=T, padding=1, added=added, maps=maps,
            signed=signed, scale=0.01 + normal((33,), 6).abs() / 100, algorithm=algorithm,
            return_state=True, **form,
        )
        for algorithm in ("auto", "gather")
    )  # fmt: skip
    assert all(map(torch.equal, found, expected))
    assert found[0].any()


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        products = " with products" if (kwargs or {}).get("products") else ""
        self.names.append(func.name().removeprefix("realspike::") + products)
        return func(*args, **(kwargs or {}))


def test_who_watches_operators_sees_products():
    weight = int8((4, 4, 1, 3, 3, 16, 16))
    for N, algorithm, products in ((16, "auto", True), (16, "gather", False), (15, "auto", False)):
        spikes = binary((N, 16, 4, 4), 1)
        with Operators() as seen:
            rso.unshared_spike_conv(spikes, weight, padding=1, algorithm=algorithm)
            rso.unshared_spike_conv_lif(spikes, weight, timesteps=1, padding=1, algorithm=algorithm)
        assert ("unshared_matmul" in seen.names) == products
        assert ("unshared_conv_lif with products" in seen.names) == products


def test_floats_and_depthwise_convolutions_add():
    for weight in (normal((4, 4, 1, 3, 3, 16, 16), 1), int8((4, 4, 16, 3, 3, 1, 1))):
        with Operators() as seen:
            both(binary((32, 16, 4, 4), 1), weight, padding=1)
        assert "unshared_matmul" not in seen.names


def network():
    """Residual blocks with identities and with projections; five images are 20 samples."""
    torch.manual_seed(0)
    config = NetworkConfig(
        granularity="element", timesteps=4, width=4, architecture="resnet8", in_channels=2,
        image_size=8,
    )  # fmt: skip
    model = build(config, seed=0)
    for module in model.modules():
        if isinstance(module, rso.RealSpikeLIF) and module.amplitude is not None:
            torch.nn.init.uniform_(module.amplitude, 0.5, 1.5)
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.constant_(module.bias, 0.3)
    x = torch.rand(5, 2, 8, 8)
    model.train()(x)
    return model.eval(), x


def test_folded_networks():
    model, x = network()
    gather = rso.reparameterize(model, x, weight_dtype=torch.int8)
    auto = rso.reparameterize(model, x, weight_dtype=torch.int8, algorithm="auto")
    rso.assert_multiplication_free(gather, x)
    with pytest.raises(rso.MultiplicationError, match='algorithm="auto" chose them'):
        rso.assert_multiplication_free(auto, x)
    rso.assert_multiplication_free(auto, x[:3])  # 12 samples: too few for the unit
    products = [rso.profile(folded, x).total("multiplications") for folded in (gather, auto)]
    assert products[1] > 2 * products[0]
    for batch in (x, x[:1], torch.rand(9, 2, 8, 8)):
        expected = gather(batch)
        assert torch.equal(auto(batch), expected)
        with torch.no_grad():
            assert torch.equal(auto(batch), expected)
    auto.algorithm = "gather"
    rso.assert_multiplication_free(auto, x)
    assert torch.equal(auto(x), gather(x))


def test_a_compiled_and_an_exported_network_take_any_batch():
    model, x = network()
    auto = rso.reparameterize(model, x, weight_dtype=torch.int8, algorithm="auto").eval()
    expected = [auto(batch) for batch in (x, x[:1])]
    with torch.no_grad():
        compiled = torch.compile(auto, backend="aot_eager", dynamic=True)
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(auto, (x,), dynamic_shapes=[{0: batch}])
        for run in (compiled, program.module()):
            for given, wanted in zip((x, x[:1]), expected, strict=True):
                assert torch.equal(run(given), wanted)
    products = [node.kwargs.get("products", False) for node in program.graph.nodes]
    assert sum(products) >= 5  # a network of seven convolutions, one in the encoding


def test_only_a_process_that_may_multiply_asks_for_the_unit():
    """Permission makes Linux refuse small stacks for signals, to all of the process."""
    program = """
import ctypes
import torch
import realspike_ops as rso

def permitted():
    features = ctypes.c_uint64()
    assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(features)) == 0
    return features.value >> 18 & 1

spikes = torch.ones(32, 16, 4, 4)
weight = torch.zeros((4, 4, 1, 3, 3, 16, 16), dtype=torch.uint8)
before = permitted()
rso.unshared_spike_conv(spikes, weight, padding=1)
rso.unshared_spike_conv_lif(spikes, weight, timesteps=2, padding=1)
assert permitted() == before
rso.unshared_spike_conv(spikes, weight, padding=1, algorithm="auto")
assert permitted()
print("before", before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "before 0\n", run.stdout + run.stderr


def test_gradients_are_those_of_the_gather():
    weight, scale = int8((4, 4, 1, 3, 3, 16, 16)), normal((16,), 1)
    found = []
    for algorithm in ("auto", "gather"):
        spikes = binary((32, 16, 4, 4), 1).requires_grad_()
        current = rso.unshared_spike_conv(
            spikes, weight, scale=scale, padding=1, algorithm=algorithm
        )
        current.square().sum().backward()
        found.append(spikes.grad)
    assert torch.equal(*found)


def test_an_instruction_set_without_the_unit_adds():
    program = """
import torch
import realspike_ops as rso
from realspike_ops._native import extension

assert not extension().multiplies_cpu(64, 3, 3, 16, 16)
spikes = (torch.rand(32, 16, 4, 4) < 0.3).float()
weight = torch.randint(256, (4, 4, 1, 3, 3, 16, 16), dtype=torch.uint8)
arguments = spikes, weight, None, None, None, (4, 4), (1, 1), (1, 1), (1, 1), True, True
found, _ = torch.ops.realspike.unshared_matmul(*arguments)
assert torch.equal(found, rso.unshared_spike_conv(spikes, weight, padding=1))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "REALSPIKE_CPU_ISA": "avx2"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
