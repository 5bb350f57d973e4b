"""Cases of the CUDA convolution for tests that execute it on the CPU, and how it is called."""

import ctypes
from dataclasses import dataclass

import simt_kernels as simt
import torch
from torch import Tensor


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
    shares: int = 0
    threads: int = 0  # if staged
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
        forced = ("vec", "tile", "lanes", "shares", "threads", "splits", "blocks")
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


SCALE = torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.5


def as_stored(case: Case, weight: Tensor) -> Tensor:
    """Returns the weight in its type; a NaN, which int8 lacks, becomes 127."""
    if case.weight.startswith("int8"):
        return (weight.nan_to_num(127.0) + 128).to(torch.uint8)
    return weight.to(WEIGHTS[case.weight][1])


def arguments_of(case: Case, spikes, weight, bias, out):
    """Returns the kernel's parameters, what of the configuration is forced, and the tensors that
    must live until it has run."""
    OH, OW = case.out_size
    packed = simt.pack(spikes)
    if case.weight != "float32":
        weight = as_stored(case, weight)
    scale = SCALE[: case.cout] if case.weight == "int8-scaled" else None
    params = simt.UnsharedConvParams(
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
    forced = (case.vec, case.tile, case.lanes, case.shares, case.splits, case.blocks)
    if case.staged:  # `tile` samples of each stream
        lanes = case.lanes or 4
        forced = (4, case.tile or 4, lanes, case.threads or 8 * lanes, 1, case.blocks)
    forced = (ctypes.c_int64 * 7)(*forced, 2 if case.staged else 0)
    return params, forced, (packed, weight, scale)


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
    params, forced, _alive = arguments_of(case, spikes, weight, bias, out)
    simt.call(lib.unshared_conv_simt, ctypes.byref(params), forced, ctypes.c_uint64(shuffle))
    assert memory[:guard].isnan().all()
    assert memory[guard + numel :].isnan().all()
    return out
