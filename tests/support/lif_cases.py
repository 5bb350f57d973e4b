"""Inputs of the LIF tests: shapes, layouts and forms of the neuron."""

import torch
from hypothesis import strategies as st

import realspike_ops as rso

NAN = float("nan")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SCALES = {"rectangular": 1.0, "triangle": 2.0, "atan": 2.0, "sigmoid": 4.0}


def as_channels_last(x):  # [T, B, C, H, W]
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a tensor with the values of x (of x[0] for "expanded") in another layout."""
    if layout == "channels_last":
        return as_channels_last(x) if x.dim() == 5 else x
    if layout == "sliced":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), NAN, dtype=x.dtype, device=x.device)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "sliced-in-time":
        long = torch.full((2 * x.shape[0], *x.shape[1:]), NAN, dtype=x.dtype, device=x.device)
        long[::2] = x
        return long[::2]
    if layout == "transposed":
        return x.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "offset":
        return torch.cat([x[:1] * NAN, x])[1:]
    if layout == "expanded":
        return x[:1].expand_as(x)
    if layout == "expanded-sliced":
        return lay_out(x[:1], "sliced").expand_as(x)
    if layout == "expanded-channels_last" and x.dim() == 5:
        return as_channels_last(x[:1]).expand_as(x)
    return x


LAYOUTS = [
    *("contiguous", "channels_last", "sliced", "sliced-in-time", "transposed", "offset"),
    *("expanded", "expanded-channels_last", "expanded-sliced"),
]

SHAPES = st.one_of(
    st.tuples(st.sampled_from([0, 1, 3, 70])),
    st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([1, 5, 33])),
    st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 2, 65]), st.sampled_from([1, 9])),
    st.tuples(
        st.sampled_from([0, 1, 2, 3]),
        st.sampled_from([1, 2, 5, 17]),
        st.sampled_from([1, 2, 7]),
        st.sampled_from([1, 3, 6]),
    ),
)


@st.composite
def parameter_sizes(draw, shape):
    """Sizes that broadcast against shape[1:] (a timestep's is `shape`), or None."""
    follows = draw(st.one_of(st.none(), st.just("layer"), st.lists(st.booleans(), max_size=3)))
    if follows is None:
        return None
    if follows == "layer" or len(shape) == 1:
        return (1,)
    follows = follows[: len(shape) - 1]
    sizes = shape[len(shape) - len(follows) :]
    return tuple(n if f else 1 for n, f in zip(sizes, follows, strict=True))


def bytes_kept(x, amplitude=None, **form) -> int:
    """Bytes of the storages that autograd keeps for the backward of one call."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = rso.lif(x, amplitude, **form)
    y.sum().backward()
    return sum(storages.values())
