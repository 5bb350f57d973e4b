"""The CUDA kernels of unshared_conv and pack_spikes, executed on the CPU.

The kernels are the shipped source; `tests/simt/simt_cpu.h` stands in for the device. Expected
values come from a float64 computation written here. Weight rows that no sample of the call uses,
and rows of taps outside the map, are NaN in what the kernel sees: adding one of them shows.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parents[1]
OPS = ("unshared_conv", "pack_spikes")
SANITIZE_VARIABLE = "REALSPIKE_SIMT_SANITIZE"  # set in the run that the last test starts
SANITIZE = SANITIZE_VARIABLE in os.environ
SANITIZE_FLAGS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fsanitize-sections=simt_shared",
]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def fields(text: str, ctype) -> list:
    return [(name, ctype) for name in text.split()]


class UnsharedConvParams(ctypes.Structure):
    _fields_ = (
        fields("spikes weight bias amplitude scale out workspace", ctypes.c_void_p)
        + fields("weight_dtype", ctypes.c_int32)
        + fields("N H W words OH OW G KH KW Cin_g Cout_g", ctypes.c_int64)
        + fields("stride_h stride_w padding_h padding_w dilation_h dilation_w", ctypes.c_int64)
        + fields("weight_stride_p bias_stride_c bias_stride_p", ctypes.c_int64)
        + fields("out_stride_n out_stride_c out_stride_p", ctypes.c_int64)
    )


class PackSpikesParams(ctypes.Structure):
    _fields_ = (
        fields("spikes packed", ctypes.c_void_p)
        + fields("N C P words stride_n stride_c stride_p", ctypes.c_int64)
        + fields("element_size", ctypes.c_int32)
        + fields("one sign", ctypes.c_uint64)
        + fields("not_binary", ctypes.c_void_p)
    )


class UnpackSpikesParams(ctypes.Structure):
    _fields_ = fields("packed spikes", ctypes.c_void_p) + fields(
        "N C P words stride_n stride_c stride_p", ctypes.c_int64
    )


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """The expected values are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lib(tmp_path_factory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("simt") / "realspike_simt.so"
    command = ["g++", "-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-ffp-contract=off"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DREALSPIKE_SIMT"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'simt'}", "-o", str(path)]
    command += [str(ROOT / "tests" / "simt" / f"{op}_simt.cpp") for op in OPS]
    built = subprocess.run(
        command + SANITIZE_FLAGS * SANITIZE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert built.returncode == 0, built.stdout.decode()
    lib = ctypes.CDLL(str(path))
    assert bool(lib.unshared_conv_simt_is_sanitized()) == SANITIZE
    assert lib.unshared_conv_simt_sizeof_params() == ctypes.sizeof(UnsharedConvParams)
    assert lib.pack_spikes_simt_sizeof_params() == ctypes.sizeof(PackSpikesParams)
    assert lib.unpack_spikes_simt_sizeof_params() == ctypes.sizeof(UnpackSpikesParams)
    return lib


def pack(spikes: Tensor) -> Tensor:
    """Packs [N, C, ...] of 0 and 1 into int32 words [N, ..., ceil(C / 32)], lowest bit first."""
    bits = spikes.movedim(1, -1).to(torch.int64)
    bits = F.pad(bits, (0, -bits.shape[-1] % 32)).unflatten(-1, (-1, 32))
    words = (bits << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()


@dataclass(frozen=True)
class Case:
    cin: int = 32
    cout: int = 16
    kernel: tuple = (3, 3)
    stride: tuple = (1, 1)
    padding: tuple = (1, 1)
    dilation: tuple = (1, 1)
    groups: int = 1
    samples: int = 3
    size: tuple = (4, 5)
    rate: float = 0.3
    shared: bool = False  # one kernel for all positions
    bias: str = "none"  # none, channel, element
    out: str = "nchw"  # nchw, nhwc
    weight: str = "float32"  # float32, float16, bfloat16, int8, int8-scaled
    # What the launcher would choose, unless not 0.
    vec: int = 0
    tile: int = 0
    lanes: int = 0
    threads: int = 0
    splits: int = 0
    blocks: int = 0
    staged: bool = False  # the kernel for many samples

    def __str__(self) -> str:
        def pair(p: tuple) -> str:
            return str(p[0]) if p[0] == p[1] else f"{p[0]}x{p[1]}"

        text = f"{self.cin}to{self.cout}-n{self.samples}-k{pair(self.kernel)}"
        text += f"-s{pair(self.stride)}-p{pair(self.padding)}-d{pair(self.dilation)}"
        text += f"-g{self.groups}-{self.size[0]}x{self.size[1]}-r{self.rate:g}"
        text += "-shared" * self.shared + f"-bias_{self.bias}" * (self.bias != "none")
        text += "-nhwc" * (self.out == "nhwc")
        text += f"-{self.weight}" * (self.weight != "float32")
        forced = ("vec", "tile", "lanes", "threads", "splits", "blocks")
        text += "-staged" * self.staged
        return text + "".join(f"-{k}{getattr(self, k)}" for k in forced if getattr(self, k))

    @property
    def out_size(self) -> tuple:
        return tuple(
            (self.size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in range(2)
        )


CASES = [
    # channels in: whole words, a word more or less by one, several words
    *(Case(cin=cin, cout=cout) for cin in (1, 31, 32, 33, 64, 65) for cout in (1, 3, 4, 16)),
    # channels out: idle lanes, several channel tiles, rows that are not a multiple of four
    *(Case(cin=33, cout=cout, samples=n) for cout in (20, 128, 132) for n in (1, 3, 8, 9, 17)),
    Case(cin=40, cout=130, samples=2),
    Case(cin=40, cout=33, samples=5),
    # kernel, stride, padding and dilation
    *(
        Case(cin=33, kernel=(k, k), stride=(s, s), padding=(p, p), dilation=(d, d), size=(9, 10))
        for k, s, p, d in itertools.product((1, 3, 5), (1, 2), (0, 1, 2), (1, 2))
        if (k, d) != (1, 2)
    ),
    Case(kernel=(3, 1), padding=(1, 0), size=(3, 7)),
    Case(kernel=(1, 5), padding=(0, 2), size=(7, 3)),
    Case(kernel=(2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), size=(5, 8)),
    Case(kernel=(3, 2), stride=(1, 3), padding=(2, 1), dilation=(2, 1), size=(6, 7)),
    Case(kernel=(5, 5), padding=(2, 2), size=(1, 1)),  # most taps lie outside
    Case(kernel=(1, 1), padding=(2, 2), size=(2, 2)),  # border positions read nothing
    # groups: boundaries at, inside and across words
    Case(cin=64, cout=32, groups=2),
    Case(cin=66, cout=8, groups=2),
    Case(cin=40, cout=20, groups=5),
    Case(cin=90, cout=12, groups=3, bias="element"),
    Case(cin=210, cout=6, groups=3),
    Case(cin=33, cout=33, groups=33, samples=9),  # depthwise
    Case(cin=65, cout=130, groups=65, kernel=(1, 1), padding=(0, 0)),
    Case(cin=36, cout=144, groups=36, samples=2),
    # samples: partly filled tiles, several tiles
    *(
        Case(cin=40, samples=n, cout=cout)
        for n in (1, 2, 3, 4, 8, 9, 16, 17, 35)
        for cout in (8, 5)
    ),
    # rates
    *(Case(cin=65, cout=20, samples=5, rate=rate) for rate in (0.0, 0.05, 0.5, 1.0)),
    *(Case(cin=65, cout=3, samples=5, rate=rate, bias="channel") for rate in (0.0, 1.0)),
    # layouts and biases
    *(
        Case(cin=34, cout=cout, bias=bias, out=out, shared=shared, samples=4)
        for cout in (6, 20)
        for bias in ("none", "channel", "element")
        for out in ("nchw", "nhwc")
        for shared in (False, True)
    ),
    Case(cin=66, cout=8, groups=2, shared=True, stride=(2, 2)),
    # every shipped kernel, whatever the launcher would choose for these few blocks
    *(
        Case(cin=100, cout=40, samples=19, size=(2, 2), vec=vec, tile=tile, bias="channel")
        for vec in (1, 4)
        for tile in (1, 2, 4, 8, 16)
    ),
    *(
        Case(cin=70, cout=140, samples=6, size=(2, 3), lanes=lanes, threads=threads, vec=vec)
        for lanes, threads in ((32, 256), (32, 32), (16, 128), (8, 256), (4, 64), (1, 32))
        for vec in (1, 4)
    ),
    # every type of weights: whole vectors and single weights, idle lanes, several channel tiles
    *(
        Case(cin=cin, cout=cout, samples=n, weight=weight, bias="element", size=(3, 4))
        for weight in ("float16", "bfloat16", "int8", "int8-scaled")
        for cin, cout, n in ((33, 16, 3), (70, 5, 4), (64, 48, 9), (31, 1, 1))
    ),
    *(
        Case(cin=100, cout=48, samples=19, size=(2, 2), vec=vec, tile=tile, weight=weight)
        for weight, widest, tiles in (
            ("float16", 8, (1, 2, 4, 8)),
            ("bfloat16", 8, (1, 2, 4, 8)),
            ("int8", 16, (1, 2, 4)),
        )
        for vec in (1, widest)
        for tile in tiles
    ),
    # int8: all bits of more words than 16-bit lanes hold, in one stream
    *(
        Case(
            **{
                "cin": 600,
                "cout": 16,
                "samples": 2,
                "size": (2, 2),
                "rate": rate,
                "weight": "int8",
            },
            **{"lanes": 1, "threads": 32, "vec": vec},
        )
        for rate in (0.5, 1.0)
        for vec in (1, 16)
    ),
    Case(cin=66, cout=32, groups=2, weight="int8-scaled", shared=True, out="nhwc", bias="channel"),
    Case(cin=66, cout=32, groups=2, weight="bfloat16", shared=True, stride=(2, 2), out="nhwc"),
    # several blocks share the receptive field
    *(
        Case(cin=70, cout=20, samples=3, splits=splits, threads=32, weight=weight, bias="channel")
        for splits in (2, 3, 16)
        for weight in ("float32", "bfloat16", "int8", "int8-scaled")
    ),
    Case(cin=200, cout=8, samples=17, kernel=(1, 1), padding=(0, 0), size=(1, 1), splits=4),
    # the kernel for many samples
    *(
        Case(cin=cin, cout=cout, samples=n, weight=weight, lanes=lanes, bias="channel", staged=True)
        for weight in ("float32", "float16", "bfloat16", "int8", "int8-scaled")
        for cin, cout, n, lanes in ((33, 16, 3, 2), (64, 80, 37, 32), (31, 48, 70, 8))
    ),
    *(
        Case(
            cin=33, cout=16, kernel=(k, k), stride=(s, s), padding=(p, p), size=(6, 5), staged=True
        )
        for k, s, p in itertools.product((1, 3), (1, 2), (0, 2))
    ),
    *(
        Case(cin=cin, cout=48, groups=groups, samples=5, staged=True, shared=shared, out="nhwc")
        for cin, groups, shared in ((66, 3, False), (210, 3, True), (40, 1, False))
    ),
    *(Case(cin=300, cout=16, weight="int8", rate=r, size=(2, 2), staged=True) for r in (0.0, 1.0)),
    Case(cin=40, cout=40, samples=70, bias="element", blocks=3, staged=True, kernel=(1, 1)),
    # fewer blocks than tiles: a block works on several, one after the other
    Case(cin=40, cout=40, samples=9, bias="element", blocks=1),
    Case(cin=40, cout=40, samples=9, bias="element", blocks=7, tile=4),
    Case(cin=70, cout=48, samples=9, blocks=5, weight="int8"),
]

# weight: (number in csrc/core/dtype.h, dtype in memory)
WEIGHTS = {
    "float32": (0, torch.float32),
    "float16": (1, torch.float16),
    "bfloat16": (2, torch.bfloat16),
    "int8": (3, torch.uint8),
    "int8-scaled": (3, torch.uint8),
}


def make_inputs(case: Case, spikes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns spikes [N, Cin, H, W], weight [OH, OW, G, KH, KW, Cin_g, Cout_g] and the bias; the
    weight in float32, with values that its type has."""
    generator = torch.Generator().manual_seed(0)
    if spikes is None:
        shape = (case.samples, case.cin, *case.size)
        spikes = (torch.rand(shape, generator=generator) < case.rate).float()
    OH, OW = (1, 1) if case.shared else case.out_size
    g = case.groups
    weight = torch.randn(
        OH, OW, g, *case.kernel, case.cin // g, case.cout // g, generator=generator
    )
    if case.weight.startswith("int8"):
        weight = torch.randint(-128, 128, weight.shape, generator=generator).float()
    weight = weight.to(torch.float32 if "int8" in case.weight else WEIGHTS[case.weight][1]).float()
    bias = torch.randn(case.cout, *case.out_size, generator=generator)
    return (
        spikes,
        weight,
        {"none": None, "channel": bias[:, 0, 0].clone(), "element": bias}[case.bias],
    )


def expect(case: Case, spikes: Tensor, weight: Tensor, bias: Tensor | None):
    """Returns the output, its error bound and the number of samples that use each weight."""
    OH, OW = case.out_size
    taps = F.unfold(
        spikes.double(), case.kernel, case.dilation, case.padding, case.stride
    )  # [N, Cin * KH * KW, P]
    taps = taps.unflatten(1, (case.groups, -1, *case.kernel)).unflatten(-1, (OH, OW))
    weight = weight.double().expand(OH, OW, *weight.shape[2:])
    equation = "ngiklhw,hwgklio->ngohw"
    out = torch.einsum(equation, taps, weight).flatten(1, 2)
    magnitude = torch.einsum(equation, taps, weight.abs()).flatten(1, 2)
    terms = torch.einsum(equation, taps, torch.ones_like(weight)).flatten(1, 2)
    if case.weight.startswith("int8"):  # a sum of integers is exact: one term
        terms, magnitude = torch.ones_like(terms), out.abs()
    if case.weight == "int8-scaled":
        factor = SCALE[: case.cout].double()[:, None, None]
        out, magnitude, terms = out * factor, magnitude * factor, terms + 1
    if bias is not None:
        bias = bias.double().reshape(case.cout, *((OH, OW) if bias.dim() == 3 else (1, 1)))
        out, magnitude, terms = out + bias, magnitude + bias.abs(), terms + 1
    # A sum of n float32 numbers, in any order, has n - 1 roundings.
    growth = (terms - 1).clamp(min=0) * 2.0**-24
    bound = growth / (1 - growth) * magnitude
    uses = taps.sum(0).permute(4, 5, 0, 2, 3, 1).unsqueeze(-1)  # [OH, OW, G, KH, KW, Cin_g, 1]
    return out, bound, uses


SCALE = torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.5


def as_stored(case: Case, weight: Tensor) -> Tensor:
    """Returns the weight in its type; a NaN, which int8 lacks, becomes 127."""
    if case.weight.startswith("int8"):
        return (weight.nan_to_num(127.0) + 128).to(torch.uint8)
    return weight.to(WEIGHTS[case.weight][1])


def call(lib, case: Case, spikes, weight, bias, shuffle: int = 0) -> Tensor:
    """Runs the kernel on NaN-poisoned, guarded output; returns [N, Cout, OH, OW]."""
    OH, OW = case.out_size
    guard = 64
    numel = case.samples * case.cout * OH * OW
    memory = torch.full((numel + 2 * guard,), float("nan"))
    out = memory[guard : guard + numel]
    if case.out == "nchw":
        out = out.view(case.samples, case.cout, OH, OW)
    else:
        out = out.view(case.samples, OH, OW, case.cout).permute(0, 3, 1, 2)
    packed = pack(spikes)
    if case.weight != "float32":
        weight = as_stored(case, weight)
    scale = SCALE[: case.cout] if case.weight == "int8-scaled" else None
    params = UnsharedConvParams(
        spikes=packed.data_ptr(),
        weight=weight.data_ptr(),
        scale=None if scale is None else scale.data_ptr(),
        weight_dtype=WEIGHTS[case.weight][0],
        bias=None if bias is None else bias.data_ptr(),
        out=out.data_ptr(),
        N=case.samples,
        H=case.size[0],
        W=case.size[1],
        words=packed.shape[-1],
        OH=OH,
        OW=OW,
        G=case.groups,
        KH=case.kernel[0],
        KW=case.kernel[1],
        Cin_g=case.cin // case.groups,
        Cout_g=case.cout // case.groups,
        stride_h=case.stride[0],
        stride_w=case.stride[1],
        padding_h=case.padding[0],
        padding_w=case.padding[1],
        dilation_h=case.dilation[0],
        dilation_w=case.dilation[1],
        weight_stride_p=0 if case.shared else weight.stride(1),
        bias_stride_c=0 if bias is None else bias.stride(0),
        bias_stride_p=1 if bias is not None and bias.dim() == 3 else 0,
        out_stride_n=out.stride(0),
        out_stride_c=out.stride(1),
        out_stride_p=out.stride(3),
    )
    forced = (case.vec, case.tile, case.lanes, case.threads, case.splits, case.blocks)
    if case.staged:  # the tile follows from the number of streams
        widest, samples = {"float32": (4, 8), "int8": (16, 4), "int8-scaled": (16, 4)}.get(
            case.weight, (8, 8)
        )
        lanes = case.lanes or 4
        threads = case.threads or 256
        forced = (widest, threads // lanes * samples, lanes, threads, 1, case.blocks)
    forced = (ctypes.c_int64 * 7)(*forced, 2 if case.staged else 1)
    check(lib.unshared_conv_simt, ctypes.byref(params), forced, ctypes.c_uint64(shuffle))
    assert memory[:guard].isnan().all()
    assert memory[guard + numel :].isnan().all()
    return out


def check(function, *arguments) -> None:
    error = ctypes.create_string_buffer(4096)
    failed = function(*arguments, error, ctypes.c_size_t(len(error)))
    assert not failed, error.value.decode()


def assert_within(out: Tensor, expected: Tensor, bound: Tensor) -> None:
    error = (out.double() - expected).abs()
    assert (error <= bound).all(), f"largest excess {(error - bound).nan_to_num(1e30).max():.3g}"


def run_and_compare(lib, case: Case, spikes: Tensor | None = None) -> None:
    spikes, weight, bias = make_inputs(case, spikes)
    expected, bound, uses = expect(case, spikes, weight, bias)
    # [OH, OW, ...] or, for a shared kernel, whether any position uses the row.
    uses = uses.sum((0, 1), keepdim=True) if case.shared else uses
    weight = torch.where(uses > 0, weight, torch.nan).contiguous()
    out = call(lib, case, spikes, weight, bias)
    assert_within(out, expected, bound)
    # The order of the threads and blocks must not matter, to the last bit.
    again = call(lib, case, spikes, weight, bias, shuffle=1)
    assert torch.equal(again.view(torch.int32), out.view(torch.int32))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_equals_float64(lib, case):
    run_and_compare(lib, case)


@pytest.mark.parametrize("channel", [0, 31, 32, 63, 64, 69])
@pytest.mark.parametrize("corner", ["top-left", "bottom-right"])
def test_conv_of_a_single_spike(lib, corner, channel):
    case = Case(cin=70, cout=12, samples=3, groups=2)
    spikes = torch.zeros(3, 70, *case.size)
    h, w = (0, 0) if corner == "top-left" else (-1, -1)
    spikes[1, channel, h, w] = 1
    run_and_compare(lib, case, spikes)


def test_conv_of_samples_with_nothing_in_common(lib):
    """Sample n fires in the channels c with c % 17 == n: each row is used by one sample."""
    case = Case(cin=65, cout=20, samples=17)
    fires = torch.arange(65) % 17 == torch.arange(17)[:, None]
    run_and_compare(lib, case, fires[:, :, None, None].expand(17, 65, *case.size).float())


def test_conv_without_input_channels_is_the_bias(lib):
    case = Case(cin=0, cout=8, bias="channel")
    bias = torch.randn(8)
    weight = torch.zeros(*case.out_size, 1, 3, 3, 0, 8)
    out = call(lib, case, torch.zeros(3, 0, 4, 5), weight, bias)
    assert torch.equal(out, bias.view(8, 1, 1).expand_as(out))


@pytest.mark.parametrize(("samples", "cout"), [(0, 4), (3, 0)])
def test_conv_without_outputs_launches_nothing(lib, samples, cout):
    case = Case(samples=samples, cout=cout)
    assert call(lib, case, *make_inputs(case)).numel() == 0


def test_conv_of_unaligned_weights(lib):
    """Rows that do not start at a multiple of 16 bytes are read one weight at a time."""
    case = Case(cin=40, cout=16)
    spikes, weight, bias = make_inputs(case)
    memory = torch.empty(weight.numel() + 1)
    unaligned = memory[1:].view(weight.shape).copy_(weight)
    assert unaligned.data_ptr() % 16 != 0
    expected, bound, _ = expect(case, spikes, weight, bias)
    assert_within(call(lib, case, spikes, unaligned, bias), expected, bound)


def test_conv_of_a_sample_tile_without_kernel_is_an_error(lib):
    for weight, tile in (("float32", 32), ("bfloat16", 16), ("int8", 8)):
        with pytest.raises(AssertionError, match="no kernel for this sample tile"):
            run_and_compare(lib, Case(weight=weight, tile=tile))


def config_of(lib, **sizes) -> dict:
    defaults = {
        "N": 4,
        "H": 32,
        "W": 32,
        "OH": 32,
        "OW": 32,
        "G": 1,
        "KH": 3,
        "KW": 3,
        "Cin_g": 128,
        "Cout_g": 128,
    }
    sizes = {**defaults, "weight": 4096, **sizes}
    params = UnsharedConvParams(**sizes)
    values = (ctypes.c_int64 * 10)()
    lib.unshared_conv_simt_config(ctypes.byref(params), values)
    names = "vec sample_tile lanes threads splits shared_bytes sample_tiles channel_tiles blocks"
    names += " staged"
    return dict(zip(names.split(), values, strict=True))


def test_config_of_a_wide_layer(lib):
    assert config_of(lib) == {
        "vec": 4,
        "sample_tile": 4,
        "lanes": 32,
        "threads": 256,
        "splits": 1,
        "shared_bytes": 16384,
        "sample_tiles": 1,
        "channel_tiles": 1,
        "blocks": 1024,
        "staged": 0,
    }


def test_config_of_many_samples_stages_the_rows(lib):
    config = config_of(lib, N=64)
    assert (config["staged"], config["lanes"], config["threads"]) == (1, 32, 256)
    # 8 streams of 8 samples each; 32 rows of 512 bytes.
    assert (config["sample_tile"], config["shared_bytes"], config["blocks"]) == (64, 16384, 1024)
    for weight_dtype, tile in ((1, 128), (2, 128), (3, 128)):
        config = config_of(lib, N=64, weight_dtype=weight_dtype)
        assert (config["staged"], config["sample_tile"]) == (1, tile)


@pytest.mark.parametrize(
    "sizes",
    [{"N": 16}, {"Cout_g": 130}, {"OH": 1, "OW": 1}],
    ids=("few-samples", "unaligned", "one-position"),
)
def test_config_that_streams(lib, sizes):
    assert not config_of(lib, **{"N": 64, **sizes})["staged"]


@pytest.mark.parametrize(
    ("weight_dtype", "expected"),
    [(1, (8, 8, 16, 256)), (2, (8, 8, 16, 256)), (3, (16, 4, 8, 128))],
    ids=("float16", "bfloat16", "int8"),
)
def test_config_of_narrower_weights(lib, weight_dtype, expected):
    config = config_of(lib, N=16, weight_dtype=weight_dtype)
    names = ("vec", "sample_tile", "lanes", "threads")
    assert tuple(config[name] for name in names) == expected


def test_config_of_few_positions_splits_the_receptive_field(lib):
    config = config_of(lib, N=1, OH=1, OW=1, KH=1, KW=1, Cin_g=4096, Cout_g=256)
    # 8 tiles of 32 channels; 128 words are 4 for each of 32 streams.
    assert (config["channel_tiles"], config["lanes"], config["threads"]) == (8, 8, 256)
    assert (config["splits"], config["blocks"]) == (4, 32)


def test_config_of_a_narrow_layer_shares_the_warp(lib):
    config = config_of(lib, Cin_g=16, Cout_g=16, N=16)
    # 4 lanes hold a row of 16 channels; 9 words of spikes keep 9 streams busy.
    assert (config["lanes"], config["threads"], config["sample_tile"]) == (4, 64, 16)
    assert config["blocks"] == 1024


def test_config_of_a_small_map_cuts_the_rows(lib):
    config = config_of(lib, H=4, W=4, OH=4, OW=4, Cin_g=512, Cout_g=512)
    assert (config["lanes"], config["channel_tiles"], config["blocks"]) == (8, 16, 256)


@pytest.mark.parametrize(
    "sizes",
    [{"Cout_g": 130}, {"weight": 4100}, {"weight_stride_p": 4097}],
    ids=("channels", "pointer", "stride"),
)
def test_config_of_unaligned_rows_reads_single_weights(lib, sizes):
    assert config_of(lib, **sizes)["vec"] == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 16, 17, 1000])
@pytest.mark.parametrize("cout", [1, 3, 4, 20, 64, 128, 132, 2048])
@pytest.mark.parametrize("cin", [1, 33, 512])
def test_config_covers_all_outputs_and_fits(lib, n, cout, cin):
    for size, groups in itertools.product((1, 4, 56), (1, 3)):
        config = config_of(lib, N=n, Cin_g=cin, Cout_g=cout, OH=size, OW=size, G=groups)
        streams = config["threads"] // config["lanes"]
        if config["staged"]:
            assert (n > 16, config["sample_tile"], config["splits"]) == (True, 8 * streams, 1)
        else:
            assert config["sample_tile"] in (1, 2, 4, 8, 16)
        assert config["lanes"] in (1, 2, 4, 8, 16, 32)
        assert config["threads"] in range(32, 257, 32)
        assert config["shared_bytes"] <= 16384
        tile = config["lanes"] * config["vec"]
        assert (config["sample_tiles"] - 1) * config["sample_tile"] < n
        assert config["sample_tiles"] * config["sample_tile"] >= n
        assert (config["channel_tiles"] - 1) * tile < cout <= config["channel_tiles"] * tile
        words = 9 * -(-cin // 32)
        assert 1 <= config["splits"] <= 16
        assert config["splits"] == 1 or config["splits"] * streams <= words
        tiles = config["sample_tiles"] * config["channel_tiles"] * config["splits"]
        assert config["blocks"] == tiles * groups * size * size


def test_config_counts_blocks_beyond_32_bits(lib):
    config = config_of(lib, N=10**6, OH=1000, OW=1000, Cout_g=4)
    # Streams of one lane: 2048 samples per block.
    assert config["blocks"] == 489 * 10**6


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 10, 641, 2**31 - 1, 2**32 + 1, 2**62 + 1])
def test_divisor_is_exact(lib, divisor):
    numbers = {0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63 - 2, 123456789012345678}
    numbers |= {k * divisor + d for k in (1, 2, 5, 2**62 // divisor) for d in (-1, 0, 1)}
    for n in sorted(numbers):
        if not 0 <= n < 2**63:
            continue
        quotient, remainder = ctypes.c_int64(), ctypes.c_int64()
        lib.divisor_simt(
            ctypes.c_int64(n),
            ctypes.c_int64(divisor),
            ctypes.byref(quotient),
            ctypes.byref(remainder),
        )
        assert (quotient.value, remainder.value) == divmod(n, divisor)


# dtype: element size, bit pattern of one, bit pattern of the sign
ELEMENTS = {
    torch.bool: (1, 1, 0),
    torch.uint8: (1, 1, 0),
    torch.int8: (1, 1, 0),
    torch.float16: (2, 0x3C00, 0x8000),
    torch.bfloat16: (2, 0x3F80, 0x8000),
    torch.float32: (4, 0x3F800000, 0x80000000),
    torch.float64: (8, 0x3FF0000000000000, 0x8000000000000000),
}


def call_pack(lib, spikes: Tensor, blocks: int = 0, shuffle: int = 0) -> tuple[Tensor, bool]:
    """Runs the kernel on spikes [N, C, P]; returns the words [N, P, words] and the flag."""
    N, C, P = spikes.shape
    words = -(-C // 32)
    packed = torch.full((N, P, words), -1, dtype=torch.int32)
    not_binary = torch.zeros(1, dtype=torch.int32)
    size, one, sign = ELEMENTS[spikes.dtype]
    params = PackSpikesParams(
        spikes=spikes.data_ptr(),
        packed=packed.data_ptr(),
        N=N,
        C=C,
        P=P,
        words=words,
        stride_n=spikes.stride(0),
        stride_c=spikes.stride(1),
        stride_p=spikes.stride(2),
        element_size=size,
        one=one,
        sign=sign,
        not_binary=not_binary.data_ptr(),
    )
    check(
        lib.pack_spikes_simt, ctypes.byref(params), ctypes.c_int64(blocks), ctypes.c_uint64(shuffle)
    )
    return packed, bool(not_binary)


def call_unpack(lib, packed: Tensor, spikes: Tensor, blocks: int = 0) -> Tensor:
    """Runs the kernel on words [N, P, words]; fills and returns spikes [N, C, P]."""
    N, C, P = spikes.shape
    params = UnpackSpikesParams(
        packed=packed.data_ptr(),
        spikes=spikes.data_ptr(),
        N=N,
        C=C,
        P=P,
        words=packed.shape[-1],
        stride_n=spikes.stride(0),
        stride_c=spikes.stride(1),
        stride_p=spikes.stride(2),
    )
    check(lib.unpack_spikes_simt, ctypes.byref(params), ctypes.c_int64(blocks), ctypes.c_uint64(1))
    return spikes


def with_layout(spikes: Tensor, layout: str) -> Tensor:
    """Returns [N, C, P] values in another memory order."""
    if layout == "channels_last":
        return spikes.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "strided":
        return spikes.repeat_interleave(2, dim=2)[:, :, ::2]
    return spikes


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 65])
def test_pack_and_unpack(lib, channels, layout):
    spikes = (torch.rand(3, channels, 35) < 0.3).float()
    packed, not_binary = call_pack(lib, with_layout(spikes, layout))
    assert torch.equal(packed, pack(spikes))
    assert not not_binary
    unpacked = with_layout(torch.full_like(spikes, torch.nan), layout)
    assert torch.equal(call_unpack(lib, packed, unpacked), spikes)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_pack_elements_of_every_size(lib, dtype):
    spikes = torch.rand(2, 40, 9) < 0.5
    packed, not_binary = call_pack(lib, spikes.to(dtype))
    assert torch.equal(packed, pack(spikes))
    assert not not_binary


def test_pack_in_fewer_blocks_than_words(lib):
    spikes = (torch.rand(3, 40, 300) < 0.3).float()
    packed, _ = call_pack(lib, spikes, blocks=2, shuffle=3)
    assert torch.equal(packed, pack(spikes))
    assert torch.equal(call_unpack(lib, packed, torch.full_like(spikes, torch.nan), 2), spikes)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0)], ids=str)
def test_pack_of_nothing(lib, shape):
    packed, not_binary = call_pack(lib, torch.zeros(shape))
    assert packed.numel() == 0
    assert not not_binary
    call_unpack(lib, packed, torch.zeros(shape))


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_pack_takes_negative_zero_for_silence(lib, dtype):
    spikes = torch.zeros(1, 3, 1).neg().to(dtype)
    packed, not_binary = call_pack(lib, spikes)
    assert not packed.any()
    assert not not_binary


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, 1e-45, float("nan"), float("inf")])
def test_pack_reports_what_is_not_a_spike(lib, value):
    spikes = torch.zeros(2, 33, 5)
    spikes[1, 32, 4] = value
    packed, not_binary = call_pack(lib, spikes)
    assert not_binary
    assert not packed.any()


def test_pack_reports_integers_that_are_not_spikes(lib):
    for dtype, value in ((torch.int8, -1), (torch.int8, -128), (torch.uint8, 255)):
        assert call_pack(lib, torch.full((1, 1, 1), value, dtype=dtype))[1]


def test_pack_feeds_conv(lib):
    case = Case(cin=45, cout=8)
    spikes, _, _ = make_inputs(case)
    packed, _ = call_pack(lib, spikes.flatten(2))
    assert torch.equal(packed.view(*spikes[:, 0].shape, -1), pack(spikes))


@pytest.mark.slow
@pytest.mark.skipif(SANITIZE, reason="this is the sanitized run")
def test_everything_again_under_the_sanitizers():
    """AddressSanitizer sees every byte outside a tensor or the block's shared memory."""
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("g++ has no AddressSanitizer runtime")
    environment = {
        **os.environ,
        SANITIZE_VARIABLE: "1",
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert run.returncode == 0, run.stdout.decode()[-5000:]
