"""Every bad argument of lif raises the right exception, before anything runs, and the message names
the argument, what came, and what is accepted."""

import pytest
import torch
from refusals import assert_refused, zeros

import realspike_ops as rso

NAN, INF = float("nan"), float("inf")
X = zeros(2, 3, 4, 5, 6)  # [T, B, C, H, W]


def lif(*args, **kwargs):
    return lambda: rso.lif(*(args or (X,)), **kwargs)


CASES = {
    # id: (call, exception, words of the message in their order)
    "lif x: not a tensor": (lif([1.0]), TypeError, ["x", "Tensor", "list"]),
    "lif x: None": (lif(None), TypeError, ["x", "Tensor", "NoneType"]),
    "lif x: int64": (lif(zeros(2, 3, dtype=torch.int64)), TypeError, ["x", "float32", "int64"]),
    "lif x: bool": (lif(zeros(2, 3, dtype=torch.bool)), TypeError, ["x", "float32", "bool"]),
    "lif x: complex": (
        lif(zeros(2, 3, dtype=torch.cfloat)),
        TypeError,
        ["x", "float32", "complex"],
    ),
    "lif x: float64": (
        lif(zeros(2, 3, dtype=torch.float64)),
        TypeError,
        ["x", "float32, float16, bfloat16", "float64", "reference"],
    ),
    "lif x: sparse": (lif(zeros(2, 3).to_sparse()), TypeError, ["x", "dense", "sparse"]),
    "lif x: rank 0": (lif(zeros()), ValueError, ["x", "2 dimensions", "[]"]),
    "lif x: rank 1": (lif(zeros(3)), ValueError, ["x", "2 dimensions", "[3]"]),
    "lif x: T = 0": (lif(zeros(0, 3)), ValueError, ["x", "T >= 1", "[0, 3]"]),
    "lif decay: above 1": (lif(decay=1.5), ValueError, ["decay", "[0, 1]", "1.5"]),
    "lif decay: below 0": (lif(decay=-0.1), ValueError, ["decay", "[0, 1]", "-0.1"]),
    "lif decay: a time constant": (lif(decay=2), ValueError, ["decay", "[0, 1]", "2"]),
    "lif decay: NaN": (lif(decay=NAN), ValueError, ["decay", "[0, 1]", "nan"]),
    "lif decay: None": (lif(decay=None), TypeError, ["decay", "number", "NoneType"]),
    "lif decay: bool": (lif(decay=True), TypeError, ["decay", "number", "bool"]),
    "lif decay: text": (lif(decay="0.5"), TypeError, ["decay", "number", "str"]),
    "lif decay: a string": (lif(decay="0.5"), TypeError, ["decay", "number", "str"]),
    "lif decay: integers": (
        lif(decay=torch.tensor([1])),
        TypeError,
        ["decay", "float32", "int64"],
    ),
    "lif v_threshold: NaN": (lif(v_threshold=NAN), ValueError, ["v_threshold", "finite", "nan"]),
    "lif v_threshold: inf": (lif(v_threshold=INF), ValueError, ["v_threshold", "finite", "inf"]),
    "lif v_threshold: None": (lif(v_threshold=None), TypeError, ["v_threshold", "number"]),
    "lif v_threshold: a huge int": (lif(v_threshold=10**400), ValueError, ["v_threshold"]),
    "lif v_threshold: beyond float32": (
        lif(v_threshold=1e300),
        ValueError,
        ["v_threshold", "finite in float32", "1e+300"],
    ),
    "lif v_reset: beyond float32": (lif(v_reset=-(2**200)), ValueError, ["v_reset", "float32"]),
    **{
        f"lif {name}: {value!r:.8}": (lif(**{name: value}), TypeError, [name, "True or False"])
        for name in ("detach_reset", "return_state", "packed")
        for value in ("False", 0, None, torch.ones(3))
    },
    "lif v_reset: NaN": (lif(v_reset=NAN), ValueError, ["v_reset", "finite", "nan"]),
    "lif v_reset: text": (lif(v_reset="soft"), TypeError, ["v_reset", "number", "str"]),
    "lif surrogate: unknown": (
        lif(surrogate="relu"),
        ValueError,
        ["surrogate", "rectangular", "atan", "sigmoid", "triangle", "relu"],
    ),
    "lif surrogate: None": (lif(surrogate=None), TypeError, ["surrogate", "NoneType|None"]),
    "lif surrogate: a number": (lif(surrogate=3), TypeError, ["surrogate", "3|int"]),
    "lif surrogate: no scale": (lif(surrogate=("atan",)), (TypeError, ValueError), ["surrogate"]),
    "lif surrogate: scale 0": (lif(surrogate=("atan", 0)), ValueError, ["surrogate", "scale", "0"]),
    "lif surrogate: scale NaN": (
        lif(surrogate=("atan", NAN)),
        ValueError,
        ["surrogate", "scale", "nan"],
    ),
    "lif surrogate: scale inf": (lif(surrogate=("atan", INF)), ValueError, ["surrogate", "inf"]),
    "lif surrogate: scale text": (
        lif(surrogate=("atan", "x")),
        (TypeError, ValueError),
        ["surrogate"],
    ),
    "lif surrogate: name unhashable": (
        lif(surrogate=([], 1.0)),
        (TypeError, ValueError),
        ["surrogate"],
    ),
    "lif amplitude: not a tensor": (lif(X, 2.0), TypeError, ["amplitude", "Tensor", "float"]),
    "lif amplitude: float64": (
        lif(X, zeros(1, dtype=torch.float64)),
        TypeError,
        ["amplitude", "float32", "float64"],
    ),
    "lif amplitude: int": (
        lif(X, zeros(1, dtype=torch.int32)),
        TypeError,
        ["amplitude", "float32", "int32"],
    ),
    "lif amplitude: sparse": (
        lif(X, zeros(4, 1, 1).to_sparse()),
        TypeError,
        ["amplitude", "dense"],
    ),
    "lif amplitude: other device": (
        lif(X, zeros(1, device="meta")),
        ValueError,
        ["amplitude", "device", "cpu", "meta"],
    ),
    "lif x: other device": (
        lif(X.to("meta"), zeros(1)),
        ValueError,
        ["amplitude", "device", "meta", "cpu"],
    ),
    **{
        f"lif amplitude: {list(shape)}": (
            lif(X, zeros(*shape)),
            ValueError,
            ["amplitude", "[1]", "[4, 1, 1]", "[4, 5, 6]", str(list(shape))],
        )
        for shape in [(4,), (2,), (3, 1, 1), (5, 4, 6), (4, 5), (1, 4, 5, 6), (0,), (3, 4, 5, 6)]
    },
    "lif amplitude: enlarges x": (lif(zeros(2, 3, 1), zeros(4)), ValueError, ["amplitude", "[4]"]),
    "lif emission: unknown": (lif(emission="real"), ValueError, ["emission", "ternary", "real"]),
    "lif emission: None": (lif(emission=None), ValueError, ["emission", "binary", "None"]),
    "lif emission: ternary at threshold 0": (
        lif(emission="ternary", v_threshold=0.0),
        ValueError,
        ["v_threshold", "positive", "ternary", "0"],
    ),
    "lif emission: ternary below 0": (
        lif(emission="ternary", v_threshold=-0.5),
        ValueError,
        ["v_threshold", "positive", "-0.5"],
    ),
    "lif reset: unknown": (
        lif(reset="zero"),
        ValueError,
        ["reset", "hard, soft, none, soft_delayed", "zero"],
    ),
    "lif reset: a number": (lif(reset=0.0), ValueError, ["reset", "hard", "0"]),
    "lif reset: hard without a value": (
        lif(reset="hard", v_reset=None),
        ValueError,
        ["v_reset", "number", "None"],
    ),
    "lif decay: shape": (lif(decay=zeros(4)), ValueError, ["decay", "[4, 1, 1]", "[4]"]),
    "lif decay: tensor on another device": (
        lif(decay=zeros(1, device="meta")),
        ValueError,
        ["decay", "cpu", "meta"],
    ),
    "lif v_threshold: shape": (
        lif(v_threshold=zeros(3, 1, 1)),
        ValueError,
        ["v_threshold", "[4, 1, 1]", "[3, 1, 1]"],
    ),
    "lif v_threshold: float64": (
        lif(v_threshold=zeros(1, dtype=torch.float64)),
        TypeError,
        ["v_threshold", "float32", "float64"],
    ),
    "lif packed: an amplitude": (
        lif(X, zeros(4, 1, 1), packed=True),
        ValueError,
        ["amplitude", "None", "packed", "[4, 1, 1]"],
    ),
    "lif packed: a gradient": (
        lambda: rso.lif(X.clone().requires_grad_(), packed=True),
        ValueError,
        ["packed", "inference", "no_grad"],
    ),
    "lif packed: a learnable decay": (
        lambda: rso.lif(X, decay=torch.nn.Parameter(zeros(1)), packed=True),
        ValueError,
        ["packed", "inference"],
    ),
    "lif packed: no channels": (
        lif(zeros(2, 3), packed=True),
        ValueError,
        ["x", "[T, B, C, ...]", "[2, 3]"],
    ),
    "lif v_init: not a tensor": (lif(v_init=0.0), TypeError, ["v_init", "Tensor", "float"]),
    "lif v_init: shape": (
        lif(v_init=zeros(3, 4, 5, 1)),
        ValueError,
        ["v_init", "[3, 4, 5, 6]", "[3, 4, 5, 1]"],
    ),
    "lif v_init: shape of x": (lif(v_init=X), ValueError, ["v_init", "[3, 4, 5, 6]"]),
    "lif v_init: dtype": (lif(v_init=X[0].long()), TypeError, ["v_init", "float32", "int64"]),
    "lif v_init: other device": (
        lif(v_init=X[0].to("meta")),
        ValueError,
        ["v_init", "device", "cpu", "meta"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_argument(case):
    assert_refused(*CASES[case])


def test_the_good_arguments_are_good():
    """What the table varies is accepted unvaried: each row fails for its own reason."""
    rso.lif(X)
    rso.lif(X, zeros(4, 5, 6), v_init=X[0])


def test_save_must_be_asked_for_where_a_gradient_is_required():
    x = zeros(2, 3).requires_grad_()
    with pytest.raises(RuntimeError, match=r"save must not be 0"):
        torch.ops.realspike.lif_fwd(
            x, *[None] * 4, *(0.25, 0.5, 0.0, "hard", False, False, "rectangular", 1.0, 0, False)
        )
