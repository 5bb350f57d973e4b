"""The CUDA kernels of pack_spikes, executed on the CPU."""

import ctypes

import pytest
import simt_kernels as simt
import torch
from torch import Tensor

pytestmark = simt.needs_compiler


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    return simt.library()


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
    params = simt.PackSpikesParams(
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
    simt.call(
        lib.pack_spikes_simt, ctypes.byref(params), ctypes.c_int64(blocks), ctypes.c_uint64(shuffle)
    )
    return packed, bool(not_binary)


def call_unpack(lib, packed: Tensor, spikes: Tensor, blocks: int = 0) -> Tensor:
    """Runs the kernel on words [N, P, words]; fills and returns spikes [N, C, P]."""
    N, C, P = spikes.shape
    params = simt.UnpackSpikesParams(
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
    simt.call(
        lib.unpack_spikes_simt, ctypes.byref(params), ctypes.c_int64(blocks), ctypes.c_uint64(1)
    )
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
    assert torch.equal(packed, simt.pack(spikes))
    assert not not_binary
    unpacked = with_layout(torch.full_like(spikes, torch.nan), layout)
    assert torch.equal(call_unpack(lib, packed, unpacked), spikes)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_pack_elements_of_every_size(lib, dtype):
    spikes = torch.rand(2, 40, 9) < 0.5
    packed, not_binary = call_pack(lib, spikes.to(dtype))
    assert torch.equal(packed, simt.pack(spikes))
    assert not not_binary


def test_pack_in_fewer_blocks_than_words(lib):
    spikes = (torch.rand(3, 40, 300) < 0.3).float()
    packed, _ = call_pack(lib, spikes, blocks=2, shuffle=3)
    assert torch.equal(packed, simt.pack(spikes))
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
    # Whatever is not 0 has fired.
    assert packed[1, 4].tolist() == [0, 1]
    assert int(packed.count_nonzero()) == 1


def test_pack_reports_integers_that_are_not_spikes(lib):
    for dtype, value in ((torch.int8, -1), (torch.int8, -128), (torch.uint8, 255)):
        assert call_pack(lib, torch.full((1, 1, 1), value, dtype=dtype))[1]
