"""Which rule folds which operation; what is in neither table is refused."""

from torch import nn

from realspike_ops.nn import MeanOverTime, SumOverTime
from realspike_ops.reparam.arithmetic_rules import (
    add,
    mul,
    neg,
    over_time,
    reduction,
    rsub,
    sub,
    truediv,
)
from realspike_ops.reparam.layer_rules import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    batch_norm,
    conv2d,
    linear,
    max_pool2d,
    pad,
)
from realspike_ops.reparam.shape_rules import cat, dropout, reshaped, unchanged

# These see to the real part of what they read; the others leave that to the `Folding`.
ARITHMETIC = frozenset({add, sub, rsub, neg, mul, truediv})

RULES = {
    **{"conv2d": conv2d, "linear": linear, "batch_norm": batch_norm, "pad": pad},
    **{"avg_pool2d": avg_pool2d, "adaptive_avg_pool2d": adaptive_avg_pool2d},
    **{"max_pool2d": max_pool2d, "adaptive_max_pool2d": adaptive_max_pool2d},
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"), reshaped),
    **dict.fromkeys(("contiguous", "clone", "detach"), unchanged),
    **dict.fromkeys(("dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout"), dropout),
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


def _max_pool2d_arguments(m):
    return m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices


def _avg_pool2d_arguments(m):
    return (
        *(m.kernel_size, m.stride, m.padding),
        *(m.ceil_mode, m.count_include_pad, m.divisor_override),
    )


def _nothing(m):
    return ()


# Layer -> (rule, its arguments after the input).
MODULES = {
    nn.Conv2d: (conv2d, _conv2d_arguments),
    nn.Linear: (linear, lambda m: (m.weight, m.bias)),
    nn.BatchNorm1d: (batch_norm, _batch_norm_arguments),
    nn.BatchNorm2d: (batch_norm, _batch_norm_arguments),
    nn.SyncBatchNorm: (batch_norm, _batch_norm_arguments),
    nn.AvgPool2d: (avg_pool2d, _avg_pool2d_arguments),
    nn.AdaptiveAvgPool2d: (adaptive_avg_pool2d, lambda m: (m.output_size,)),
    nn.MaxPool2d: (max_pool2d, _max_pool2d_arguments),
    nn.AdaptiveMaxPool2d: (adaptive_max_pool2d, lambda m: (m.output_size, m.return_indices)),
    nn.ZeroPad2d: (pad, lambda m: (m.padding,)),
    nn.ConstantPad2d: (pad, lambda m: (m.padding, "constant", m.value)),
    nn.Flatten: (reshaped, _nothing),
    nn.Unflatten: (reshaped, _nothing),
    nn.Identity: (unchanged, _nothing),
    nn.Dropout: (unchanged, _nothing),
    nn.Dropout1d: (unchanged, _nothing),
    nn.Dropout2d: (unchanged, _nothing),
    nn.AlphaDropout: (unchanged, _nothing),
    nn.FeatureAlphaDropout: (unchanged, _nothing),
    MeanOverTime: (over_time(True), lambda m: (m,)),
    SumOverTime: (over_time(False), lambda m: (m,)),
}
