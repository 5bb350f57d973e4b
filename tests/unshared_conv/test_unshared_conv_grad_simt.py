"""The CUDA kernels of the weight's gradient, executed on the CPU.

Expected values are sums in float32 over ascending samples, written here: what the CPU promises, to
the bit. Gradients of samples that fire nowhere are NaN in what the kernel sees, and so is all that
it has to write.
"""

import ctypes
import itertools
from dataclasses import dataclass

import pytest
import simt_kernels as simt
import torch
import torch.nn.functional as F
from torch import Tensor

pytestmark = [simt.needs_compiler, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    return simt.library()


@dataclass(frozen=True)
class Case:
    cin: int = 33
    cout: int = 16
    kernel: tuple = (3, 3)
    stride: tuple = (1, 1)
    padding: tuple = (1, 1)
    dilation: tuple = (1, 1)
    groups: int = 1
    samples: int = 3
    size: tuple = (2, 3)
    rate: float = 0.3
    layout: str = "nchw"  # of grad_out: nchw, nhwc
    dtype: torch.dtype = torch.float32  # of grad_weight
    # What the launcher would choose, unless not 0.
    vec: int = 0
    tile: int = 0
    lanes: int = 0
    threads: int = 0
    splits: int = 0
    blocks: int = 0

    def __str__(self) -> str:
        changed = {k: v for k, v in vars(self).items() if v != getattr(Case, k)}
        return "-".join(f"{k}{v}".replace(" ", "") for k, v in changed.items()) or "default"

    @property
    def out_size(self) -> tuple:
        return tuple(
            (self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in range(2)
        )

    @property
    def weight_shape(self) -> tuple:
        g = self.groups
        return (*self.out_size, g, *self.kernel, self.cin // g, self.cout // g)


HALVES = (torch.float16, torch.bfloat16)

CASES = [
    Case(),
    # channels in: whole words, a word more or less by one, several words
    *(Case(cin=cin, cout=cout) for cin in (1, 31, 32, 65) for cout in (1, 3, 4)),
    # channels out: idle lanes, several channel tiles, rows that are no multiple of a vector
    *(
        Case(cout=cout, samples=5, kernel=(1, 3), padding=(0, 1), dtype=dtype)
        for cout in (20, 24, 130, 136)
        for dtype in (torch.float32, *HALVES)
    ),
    # samples: a word of them more or less by one, several words
    *(Case(cin=5, kernel=(1, 2), samples=n) for n in (1, 2, 31, 32, 33, 64, 65)),
    *(Case(cin=35, kernel=(1, 1), padding=(0, 0), samples=n, rate=0.1) for n in (256, 257)),
    Case(cin=35, cout=130, kernel=(1, 1), padding=(0, 0), samples=129, size=(1, 2)),
    # more than a block stages: what is stored is added to, also where a tile has nothing to add
    *(Case(cin=40, samples=19, tile=tile, rate=r) for tile in (4, 8) for r in (0.02, 0.3)),
    Case(cin=40, cout=5, samples=75, tile=33, kernel=(2, 2)),
    # kernel, stride, padding and dilation
    *(
        Case(cin=3, kernel=(k, k), stride=(s, s), padding=(p, p), dilation=(d, d), size=(6, 7))
        for k, s, p, d in itertools.product((1, 3), (1, 2), (0, 2), (1, 2))
        if (k, d) != (1, 2)
    ),
    Case(kernel=(2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), size=(5, 4)),
    Case(cin=3, kernel=(5, 5), padding=(2, 2), size=(1, 1)),  # most taps lie outside
    Case(kernel=(1, 1), padding=(2, 2), size=(1, 1)),  # border positions read nothing
    # groups: boundaries at, inside and across words
    *(
        Case(cin=cin, cout=cout, groups=groups, kernel=(2, 2))
        for cin, cout, groups in ((64, 32, 2), (66, 8, 2), (40, 20, 5), (90, 12, 3), (210, 6, 3))
    ),
    Case(cin=33, cout=66, groups=33, samples=9, kernel=(1, 3)),  # depthwise
    # rates and layouts
    *(Case(rate=rate, dtype=torch.float16) for rate in (0.0, 0.05, 1.0)),
    *(Case(cout=cout, layout="nhwc", samples=4) for cout in (6, 20)),
    # launches that these few blocks would not choose
    *(
        Case(cin=70, cout=40, dtype=dtype, vec=vec, lanes=lanes, threads=threads)
        for dtype, vec in ((torch.float32, 4), (torch.bfloat16, 8), (torch.float16, 1))
        for lanes, threads in ((32, 64), (8, 256), (1, 32))
    ),
    *(Case(cin=70, splits=splits, threads=32) for splits in (1, 3, 16)),
    Case(cin=40, cout=40, samples=9, blocks=1),
    Case(cin=40, cout=40, samples=9, tile=4, blocks=5, threads=64),
]


def make_inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Returns spikes [N, Cin, H, W] and grad_out [N, Cout, OH, OW], in its layout."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.samples, case.cin, *case.size)
    spikes = (torch.rand(shape, generator=generator) < case.rate).float()
    grad_out = torch.randn(case.samples, case.cout, *case.out_size, generator=generator)
    if case.layout == "nhwc":
        grad_out = grad_out.contiguous(memory_format=torch.channels_last)
    return spikes, grad_out


def expect(case: Case, spikes: Tensor, grad_out: Tensor) -> Tensor:
    """Adds the gradients of the samples that fired, one after the other, in float32."""
    OH, OW, G, KH, KW, Cin_g, Cout_g = case.weight_shape
    taps = F.unfold(spikes, case.kernel, case.dilation, case.padding, case.stride)
    taps = taps.view(-1, G, Cin_g, KH, KW, OH, OW).permute(0, 5, 6, 1, 3, 4, 2)
    rows = grad_out.reshape(-1, G, Cout_g, OH, OW).permute(0, 3, 4, 1, 2)
    total = torch.zeros(case.weight_shape)
    for fired, row in zip(taps, rows, strict=True):
        total += torch.where(fired[..., None] != 0, row[:, :, :, None, None, None], 0.0)
    return total


def run_guarded(lib, case: Case, spikes, grad_out, shuffle: int = 0) -> Tensor:
    """Runs the kernel on NaN-poisoned, guarded memory; returns the gradient."""
    guard, numel = 64, torch.Size(case.weight_shape).numel()
    memory = torch.full((numel + 2 * guard,), float("nan"), dtype=case.dtype)
    grad_weight = memory[guard : guard + numel].view(case.weight_shape)
    run(lib, case, spikes, grad_out, grad_weight, shuffle)
    assert memory[:guard].isnan().all()
    assert memory[guard + numel :].isnan().all()
    return grad_weight


def run(lib, case: Case, spikes, grad_out, grad_weight, shuffle: int = 0) -> None:
    OH, OW, G, KH, KW, Cin_g, Cout_g = case.weight_shape
    packed = simt.pack(spikes)
    params = simt.UnsharedConvParams(
        spikes=packed.data_ptr(),
        weight_dtype={torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}[case.dtype],
        **{"N": case.samples, "H": case.size[0], "W": case.size[1], "words": packed.shape[-1]},
        **{"OH": OH, "OW": OW, "G": G, "KH": KH, "KW": KW, "Cin_g": Cin_g, "Cout_g": Cout_g},
        **dict(zip(("stride_h", "stride_w"), case.stride, strict=True)),
        **dict(zip(("padding_h", "padding_w"), case.padding, strict=True)),
        **dict(zip(("dilation_h", "dilation_w"), case.dilation, strict=True)),
        weight_stride_p=grad_weight.stride(1),
        out_stride_n=grad_out.stride(0),
        out_stride_c=grad_out.stride(1),
        out_stride_p=grad_out.stride(3) if OW > 1 else grad_out.stride(2),
    )
    forced = (case.vec, case.tile, case.lanes, case.threads, case.splits, case.blocks)
    simt.call(
        lib.unshared_conv_grad_simt,
        ctypes.byref(params),
        ctypes.c_void_p(grad_out.data_ptr()),
        ctypes.c_void_p(grad_weight.data_ptr()),
        (ctypes.c_int64 * 6)(*forced),
        ctypes.c_uint64(shuffle),
    )


def assert_equal_bits(actual: Tensor, expected: Tensor) -> None:
    integer = {4: torch.int32, 2: torch.int16}[actual.element_size()]
    differs = actual.view(integer) != expected.to(actual.dtype).view(integer)
    assert not differs.any(), f"{int(differs.sum())} of {differs.numel()} elements differ"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_grad_equals_sums_in_ascending_samples(lib, case):
    spikes, grad_out = make_inputs(case)
    expected = expect(case, spikes, grad_out)
    # A silent sample's gradients are not touched.
    grad_out[spikes.flatten(1).sum(1) == 0] = float("nan")
    assert_equal_bits(run_guarded(lib, case, spikes, grad_out), expected)
    # The order of the threads and blocks must not matter.
    assert_equal_bits(run_guarded(lib, case, spikes, grad_out, shuffle=1), expected)


@pytest.mark.parametrize("channel", [0, 31, 32, 69])
def test_grad_of_a_single_spike(lib, channel):
    case = Case(cin=70, cout=8, samples=40, groups=2)
    spikes, grad_out = make_inputs(case)
    spikes.zero_()[33, channel, 0, 0] = 1
    expected = expect(case, spikes, grad_out)
    assert (expected != 0).any()
    grad_out[torch.arange(40) != 33] = float("nan")
    assert_equal_bits(run_guarded(lib, case, spikes, grad_out), expected)


def test_grad_without_samples_is_zero(lib):
    case = Case(samples=0)
    grad = run_guarded(
        lib, case, torch.zeros(0, case.cin, *case.size), torch.zeros(0, 16, *case.out_size)
    )
    assert torch.equal(grad, torch.zeros(case.weight_shape))


@pytest.mark.parametrize("sizes", [{"cin": 0}, {"cout": 0}], ids=str)
def test_grad_without_rows_launches_nothing(lib, sizes):
    case = Case(**sizes)
    assert run_guarded(lib, case, *make_inputs(case)).numel() == 0


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_grad_that_goes_on_after_rounding_is_an_error(lib, dtype):
    case = Case(dtype=dtype, samples=9, tile=8)
    with pytest.raises(AssertionError, match="no kernel"):
        run_guarded(lib, case, *make_inputs(case))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 65520.0, 3.3961e38, 1e-42])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_grad_of_extreme_values_is_rounded_once(lib, dtype, value):
    case = Case(dtype=dtype, samples=2, rate=1.0)
    spikes, grad_out = make_inputs(case)
    grad_out[0, :, 0] = value
    actual = run_guarded(lib, case, spikes, grad_out)
    torch.testing.assert_close(
        actual, expect(case, spikes, grad_out).to(dtype), rtol=0, atol=0, equal_nan=True
    )


def test_grad_of_more_than_2_to_31_weights(lib):
    case = Case(kernel=(1, 1), padding=(0, 0), size=(1, 3))
    spikes, grad_out = make_inputs(case)
    poison = torch.full(case.weight_shape, float("nan"))
    far = simt.far_apart(poison, dim=1, stride=2**31 + 16)
    run(lib, case, spikes, grad_out, far)
    assert_equal_bits(far.contiguous(), expect(case, spikes, grad_out))
