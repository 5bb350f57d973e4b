"""Every bad argument of batch_norm_lif raises the right exception, and the message names it."""

import pytest
import torch
from refusals import assert_refused, zeros

import realspike_ops as rso

NAN = float("nan")
X = zeros(2, 3, 4, 5, 6)  # [T, B, C, H, W]
C4 = zeros(4)


def fused(x=X, weight=None, bias=None, running_mean=None, running_var=None, **kwargs):
    tensors = (x, weight, bias, running_mean, running_var)
    return lambda: rso.batch_norm_lif(*tensors, **kwargs)


def of_lif(**kwargs):
    """An argument that `lif` refuses is refused likewise."""
    return fused(**kwargs)


CASES = {
    # id: (call, exception, words of the message in their order)
    "x: not a tensor": (fused([1.0]), TypeError, ["x", "Tensor", "list"]),
    "x: float64": (
        fused(zeros(2, 3, 4, dtype=torch.float64)),
        TypeError,
        ["x", "float32", "float64", "reference.batch_norm_lif"],
    ),
    "x: no channels": (fused(zeros(2, 3)), ValueError, ["x", "3 dimensions", "[2, 3]"]),
    "x: T = 0": (fused(zeros(0, 3, 4)), ValueError, ["x", "T >= 1", "[0, 3, 4]"]),
    "x: one value": (fused(zeros(1, 1, 4)), ValueError, ["x", "more than 1 value", "[1, 1, 4]"]),
    "weight: shape": (fused(weight=zeros(5)), ValueError, ["weight", "[4]", "channels", "[5]"]),
    "weight: a map": (fused(weight=zeros(4, 1, 1)), ValueError, ["weight", "[4]", "[4, 1, 1]"]),
    "weight: int": (
        fused(weight=zeros(4, dtype=torch.int64)),
        TypeError,
        ["weight", "float32", "int64"],
    ),
    "weight: device": (
        fused(weight=zeros(4, device="meta")),
        ValueError,
        ["weight", "cpu", "meta"],
    ),
    "bias: number": (fused(bias=0.5), TypeError, ["bias", "Tensor", "float"]),
    "bias: shape": (fused(bias=zeros(1)), ValueError, ["bias", "[4]", "[1]"]),
    "running_mean: shape": (
        fused(running_mean=zeros(3), running_var=C4),
        ValueError,
        ["running_mean", "[4]", "[3]"],
    ),
    "running_var: alone": (fused(running_var=C4), ValueError, ["running_mean", "running_var"]),
    "running_mean: alone": (fused(running_mean=C4), ValueError, ["running_mean", "running_var"]),
    "running_var: a gradient": (
        fused(running_mean=C4, running_var=torch.ones(4, requires_grad=True)),
        ValueError,
        ["running_var", "gradient"],
    ),
    "process_group: a name": (
        fused(process_group="world"),
        TypeError,
        ["process_group", "ProcessGroup", "str"],
    ),
    "residual: shape": (
        fused(residual=zeros(2, 3, 4, 1, 1)),
        ValueError,
        ["residual", "[2, 3, 4, 5, 6]", "[2, 3, 4, 1, 1]"],
    ),
    "residual: dtype": (
        fused(residual=X.to(torch.bfloat16)),
        TypeError,
        ["residual", "float32", "bfloat16"],
    ),
    "residual: number": (fused(residual=1.0), TypeError, ["residual", "Tensor", "float"]),
    "momentum: None": (fused(momentum=None), TypeError, ["momentum", "number", "NoneType"]),
    "momentum: NaN": (fused(momentum=NAN), ValueError, ["momentum", "finite", "nan"]),
    "eps: negative": (fused(eps=-1e-5), ValueError, ["eps", "[0, inf]", "-1e-05"]),
    "eps: text": (fused(eps="1e-5"), TypeError, ["eps", "number", "str"]),
    "amplitude: shape": (fused(amplitude=zeros(3)), ValueError, ["amplitude", "[1]", "[3]"]),
    "decay": (of_lif(decay=2.0), ValueError, ["decay", "[0, 1]", "2"]),
    "v_init: shape": (fused(v_init=X), ValueError, ["v_init", "[3, 4, 5, 6]"]),
    "surrogate": (of_lif(surrogate="relu"), ValueError, ["surrogate", "rectangular", "relu"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_argument(case):
    call, exception, words = CASES[case]
    assert_refused(call, exception, words)


def test_functorch_is_refused():
    call = torch.func.vmap(lambda x: rso.batch_norm_lif(x, None, None, None, None))
    with pytest.raises(NotImplementedError, match="vmap are not supported"):
        call(X[None])
    gradient = torch.func.grad(lambda x: rso.batch_norm_lif(x, None, None, None, None).sum())
    with pytest.raises(NotImplementedError, match=r"torch\.autograd"):
        gradient(X)


def test_bad_arguments_change_nothing():
    """They are refused before the running statistics move."""
    running = torch.zeros(4), torch.ones(4)
    with pytest.raises(ValueError, match="v_threshold"):
        rso.batch_norm_lif(X + 1, None, None, *running, v_threshold=NAN)
    assert running[0].tolist() == [0.0] * 4
    assert running[1].tolist() == [1.0] * 4
