"""What the CUDA launchers say where there is no card to launch on.

An error of a launch must reach Python, and what no kernel does must be refused before it: with the
pointers of these tests, which are none, anything that did run would crash.
"""

import pytest
import torch

from realspike_ops._native import DTYPES, extension

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card"),
    pytest.mark.skipif(not extension().with_cuda, reason="built without CUDA kernels"),
]

NO_DEVICE = "no CUDA-capable device|driver"


ADDRESSES = {"spikes": 4096, "weight": 4096, "out": 4096}
UNIT_GEOMETRY = {
    **{"G": 1, "KH": 1, "KW": 1, "stride_h": 1, "stride_w": 1, "padding_h": 0, "padding_w": 0},
    **{"dilation_h": 1, "dilation_w": 1, "bias_stride_c": 0, "bias_stride_p": 0},
}


def conv_params(N=2, amplitude=0, scale=0, dtype=torch.float32):
    """A layer of 4 -> 8 channels on a 3 x 3 map; addresses are made up."""
    return extension().UnsharedConvParams(
        **ADDRESSES,
        **UNIT_GEOMETRY,
        **{"amplitude": amplitude, "scale": scale, "weight_dtype": DTYPES[dtype]},
        **{"N": N, "H": 3, "W": 3, "words": 1, "OH": 3, "OW": 3, "Cin_g": 4, "Cout_g": 8},
        **{"weight_stride_p": 32, "out_stride_n": 72, "out_stride_c": 9, "out_stride_p": 1},
    )


def linear_params():
    """One sample of 4,096 -> 256 features."""
    return extension().UnsharedConvParams(
        **ADDRESSES,
        **UNIT_GEOMETRY,
        weight_dtype=DTYPES[torch.float32],
        **{"N": 1, "H": 1, "W": 1, "words": 128, "OH": 1, "OW": 1, "Cin_g": 4096, "Cout_g": 256},
        **{"weight_stride_p": 0, "out_stride_n": 256, "out_stride_c": 1, "out_stride_p": 1},
    )


def launch_conv(workspace=0, **arguments):
    extension().unshared_conv_cuda(conv_params(**arguments), workspace, 0)


def launch_grad(**arguments):
    extension().unshared_conv_grad_weight_cuda(conv_params(**arguments), 4096, 4096, 0)


def launch_pack(N=2):
    shape = (N, 4, 9)
    extension().pack_spikes_cuda(
        extension().PackSpikesParams(4096, 4096, *shape, 36, 9, 1, 4, 0x3F800000, 1 << 31, 0), 0
    )


def launch_unpack(N=2):
    extension().unpack_spikes_cuda(extension().UnpackSpikesParams(4096, 4096, N, 4, 9, 36, 9, 1), 0)


LAUNCHES = {
    "unshared_conv_cuda": launch_conv,
    "unshared_conv_grad_weight_cuda": launch_grad,
    "pack_spikes_cuda": launch_pack,
    "unpack_spikes_cuda": launch_unpack,
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_that_fails_raises(name):
    with pytest.raises(RuntimeError, match=f"^{name}: .*({NO_DEVICE})"):
        LAUNCHES[name]()


@pytest.mark.parametrize("name", ["unshared_conv_cuda", "pack_spikes_cuda", "unpack_spikes_cuda"])
def test_nothing_to_compute_launches_nothing(name):
    LAUNCHES[name](N=0)


def test_factored_storage_has_no_kernel():
    with pytest.raises(RuntimeError, match="unshared_conv_cuda: invalid argument"):
        launch_conv(amplitude=4096)


def test_a_workspace_is_there_if_and_only_if_it_is_needed():
    # Blocks share one position of 4,096 channels; elsewhere, scaled or not, one block has it all.
    params = linear_params()
    assert extension().unshared_conv_workspace_cuda(params) == 2 * 256 * 4
    with pytest.raises(RuntimeError, match="unshared_conv_cuda: invalid argument"):
        extension().unshared_conv_cuda(params, 0, 0)
    for arguments in ({}, {"scale": 4096, "dtype": torch.int8}):
        assert extension().unshared_conv_workspace_cuda(conv_params(**arguments)) == 0
        with pytest.raises(RuntimeError, match="unshared_conv_cuda: invalid argument"):
            launch_conv(workspace=4096, **arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_rounded_gradient_is_one_pass(dtype):
    most = extension().unshared_conv_grad_samples
    with pytest.raises(RuntimeError, match=NO_DEVICE):
        launch_grad(N=most, dtype=dtype)
    with pytest.raises(RuntimeError, match="invalid argument"):
        launch_grad(N=most + 1, dtype=dtype)
    with pytest.raises(RuntimeError, match="invalid argument"):
        launch_grad(dtype=torch.int8)
