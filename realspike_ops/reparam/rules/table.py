"""Which rule folds which operation; an operation in neither table is refused."""

from collections.abc import Callable
from typing import Any

from torch import nn

from realspike_ops.nn import MeanOverTime, SumOverTime
from realspike_ops.reparam.rules.arithmetic import (
    add,
    mul,
    neg,
    over_time,
    reduction,
    rsub,
    sub,
    truediv,
)
from realspike_ops.reparam.rules.layer import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool1d,
    avg_pool2d,
    batch_norm,
    conv1d,
    conv2d,
    conv_transpose1d,
    conv_transpose2d,
    interpolate,
    linear,
    max_pool1d,
    max_pool2d,
)
from realspike_ops.reparam.rules.shape import by_matrix, cast, cat, dropout, moved, unchanged

# These rules compute the real part of their result; the others leave that to the `Folding`.
ARITHMETIC = frozenset({add, sub, rsub, neg, mul, truediv})

# Operations that move elements: each element of the result is one that was there, or 0.
_MOVES = (
    "flatten view reshape squeeze unsqueeze unflatten permute transpose t T mT movedim moveaxis "
    "swapaxes swapdims view_as reshape_as chunk split split_with_sizes tensor_split unbind "
    "getitem select narrow index_select gather take_along_dim slice pad flip fliplr flipud roll "
    "rot90 pixel_shuffle pixel_unshuffle channel_shuffle stack hstack vstack dstack expand "
    "expand_as broadcast_to repeat tile repeat_interleave unfold diagonal hsplit vsplit dsplit "
    "atleast_2d adjoint ravel constant_pad_nd getattr __get__"
).split()
_PRODUCTS = "matmul mm bmm mv einsum tensordot inner cumsum bilinear unfold".split()

RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_PRODUCTS, by_matrix),
    **dict.fromkeys(_MOVES, moved),
    **{"conv2d": conv2d, "conv1d": conv1d, "linear": linear, "batch_norm": batch_norm},
    **{"conv_transpose2d": conv_transpose2d, "conv_transpose1d": conv_transpose1d},
    **{"avg_pool2d": avg_pool2d, "adaptive_avg_pool2d": adaptive_avg_pool2d},
    **{"avg_pool1d": avg_pool1d, "adaptive_avg_pool1d": adaptive_avg_pool1d},
    **{"max_pool2d": max_pool2d, "adaptive_max_pool2d": adaptive_max_pool2d},
    **{"max_pool1d": max_pool1d, "interpolate": interpolate, "upsample": interpolate},
    **dict.fromkeys(("contiguous", "clone", "detach"), unchanged),
    **dict.fromkeys(("to", "float", "double", "type", "type_as", "half", "bfloat16"), cast),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d"), dropout),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), dropout),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    **{
        "add": add,
        "sub": sub,
        "rsub": rsub,
        "neg": neg,
        "mul": mul,
        "multiply": mul,
        "subtract": sub,
    },
    **dict.fromkeys(("truediv", "div", "divide"), truediv),
    **{"mean": reduction(True), "sum": reduction(False)},
}


def _conv2d_arguments(m):
    if m.padding_mode != "zeros":
        raise ValueError(
            f"padding_mode must be 'zeros' (spikes outside the map are silent); "
            f"got {m.padding_mode!r}"
        )
    return m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups


def _batch_norm_arguments(m):
    return m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps


def _read(names: str):
    """Make the function that returns these attributes of a layer."""
    return lambda m: tuple(getattr(m, name) for name in names.split())


_max_pool_arguments = _read("kernel_size stride padding dilation ceil_mode return_indices")
_avg_pool1d_arguments = _read("kernel_size stride padding ceil_mode count_include_pad")
_avg_pool2d_arguments = _read(
    "kernel_size stride padding ceil_mode count_include_pad divisor_override"
)
_conv_transpose_arguments = _read("weight bias stride padding output_padding groups dilation")
_nothing = _read("")

_UPSAMPLING = (interpolate, _nothing)
_MOVED = (moved, _nothing)

# Layer -> (rule, its arguments after the input).
MODULES: dict[type | None, tuple[Callable[..., Any], Callable[..., Any]]] = {
    nn.Conv2d: (conv2d, _conv2d_arguments),
    nn.Conv1d: (conv1d, _conv2d_arguments),
    nn.ConvTranspose2d: (conv_transpose2d, _conv_transpose_arguments),
    nn.ConvTranspose1d: (conv_transpose1d, _conv_transpose_arguments),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _UPSAMPLING),
    nn.Linear: (linear, _read("weight bias")),
    nn.BatchNorm1d: (batch_norm, _batch_norm_arguments),
    nn.BatchNorm2d: (batch_norm, _batch_norm_arguments),
    nn.SyncBatchNorm: (batch_norm, _batch_norm_arguments),
    nn.AvgPool1d: (avg_pool1d, _avg_pool1d_arguments),
    nn.AdaptiveAvgPool1d: (adaptive_avg_pool1d, _read("output_size")),
    nn.MaxPool1d: (max_pool1d, _max_pool_arguments),
    nn.AvgPool2d: (avg_pool2d, _avg_pool2d_arguments),
    nn.AdaptiveAvgPool2d: (adaptive_avg_pool2d, _read("output_size")),
    nn.MaxPool2d: (max_pool2d, _max_pool_arguments),
    nn.AdaptiveMaxPool2d: (adaptive_max_pool2d, _read("output_size return_indices")),
    **dict.fromkeys((nn.ZeroPad1d, nn.ConstantPad1d, nn.ZeroPad2d, nn.ConstantPad2d), _MOVED),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d), _MOVED),
    **dict.fromkeys((nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d), _MOVED),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle), _MOVED),
    nn.ChannelShuffle: _MOVED,
    nn.Identity: (unchanged, _nothing),
    nn.Dropout: (unchanged, _nothing),
    nn.Dropout1d: (unchanged, _nothing),
    nn.Dropout2d: (unchanged, _nothing),
    nn.AlphaDropout: (unchanged, _nothing),
    nn.FeatureAlphaDropout: (unchanged, _nothing),
    MeanOverTime: (over_time(True), lambda m: (m,)),
    SumOverTime: (over_time(False), lambda m: (m,)),
}
