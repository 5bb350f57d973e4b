"""What other tools record of an op (torch.jit.trace, torch.compile, torch.export) computes what the
op does, for any batch; what they cannot record is refused by name."""

import copy
import io

import pytest
import torch
from helpers import binary, normal
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import realspike_ops as rso
from realspike_ops.ops.eager import is_plain_eager

T = 4
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def over_time(x):  # [T*B, ...] -> [T, B, ...]
    return x.unflatten(0, (T, x.shape[0] // T))


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        rso.DirectEncoding(T),
        rso.RealSpikeLIF(T, "element", (4, 6, 6)),
        nn.Conv2d(4, 5, 3),
        rso.RealSpikeLIF(T, "channel", (5, 4, 4)),
        nn.Flatten(),
        nn.Linear(80, 3),
        rso.MeanOverTime(T),
    ).eval()


class TernaryNetwork(nn.Module):
    """Negative spikes into a convolution, a shortcut, max pooling, an average and features."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T))
        form = {"emission": "ternary", "v_threshold": 0.25}
        self.lif0 = rso.RealSpikeLIF(T, "element", (4, 6, 6), **form)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.lif1 = rso.RealSpikeLIF(T, "channel", (4, 6, 6), **form)
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Conv2d(4, 4, 1)
        self.lif2 = rso.RealSpikeLIF(T, "layer", **form)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        spikes = self.lif0(self.encode(x))
        spikes = self.lif1(self.conv(spikes) + spikes)
        out = self.linear(self.lif2(self.deep(self.pool(spikes))).mean((2, 3)))
        return over_time(out).mean(0)


def ternary_network():
    torch.manual_seed(1)
    return TernaryNetwork().eval()


def convolution(**options):
    position = options.pop("position", (6, 6))
    weight = normal((*position, 1, 3, 3, 3, 5), 2)
    if options.pop("int8", False):
        weight, options["scale"] = rso.quantize_weight(weight)
    bias = normal((5,), 3)
    return lambda x: rso.unshared_spike_conv(x, weight, bias, padding=1, **options)


WEIGHT = normal((6, 6, 1, 3, 3, 3, 5), 2)
AMPLITUDE = normal((3, 1, 1), 4)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def maps(batch):
    return normal((batch, 3, 6, 6), batch)


def spikes(batch):
    return binary((batch, 3, 6, 6), batch)


# id: (function or a function that makes a module, input of a batch, T for a batch of T*B, has a
# gradient, ops of the library in inference)
CASES = {
    "lif": (lambda x: rso.lif(over_time(x)), maps, T, True, {"lif_fwd"}),
    "lif-channels-last": (
        lambda x: rso.lif(over_time(channels_last(x)), AMPLITUDE, surrogate="atan"),
        *(maps, T, True, {"lif_fwd"}),
    ),
    "lif-bits": (
        lambda x: rso.lif(over_time(x), detach_reset=True, v_reset=None, return_state=True)[1],
        *(maps, T, True, {"lif_fwd"}),
    ),
    "lif-packed": (
        lambda x: rso.lif(over_time(x), packed=True), maps, T, False, {"lif_packed"},
    ),
    "pack": (rso.pack_spikes, spikes, 1, False, {"pack_spikes"}),
    "unpack": (
        lambda x: rso.unpack_spikes(rso.pack_spikes(x), 3),
        *(spikes, 1, False, {"pack_spikes", "unpack_spikes"}),
    ),
    "conv": (convolution(), spikes, 1, True, {"unshared_conv"}),
    "conv-shared": (convolution(position=(1, 1)), spikes, 1, True, {"unshared_conv"}),
    "conv-int8": (convolution(int8=True), spikes, 1, True, {"unshared_conv"}),
    "conv-of-words": (
        lambda x: rso.unshared_spike_conv(rso.pack_spikes(x), WEIGHT, padding=1),
        *(spikes, 1, False, {"pack_spikes", "unshared_conv"}),
    ),
    "conv-factored": (
        convolution(position=(1, 1), amplitude=normal((3, 6, 6), 5)),
        *(spikes, 1, True, {"unshared_conv"}),
    ),
    "conv-lif": (
        lambda x: rso.unshared_spike_conv_lif(x, WEIGHT, padding=1, timesteps=T),
        *(spikes, T, False, {"unshared_conv_lif"}),
    ),
    "RealSpikeLIF": (
        lambda: rso.RealSpikeLIF(
            *(T, "element", (3, 6, 6)), decay_granularity="channel", threshold_granularity="layer"
        ),
        *(maps, T, True, {"lif_fwd"}),
    ),
    "trained": (network, maps, 1, True, {"lif_fwd"}),
    "folded": (
        lambda: rso.reparameterize(network(), maps(1)),
        *(maps, 1, False, {"lif_packed", "unshared_conv", "unshared_conv_lif"}),
    ),
    "folded-ternary": (
        lambda: rso.reparameterize(ternary_network(), maps(1)),
        *(maps, 1, False, {"lif_packed", "pack_spikes", "unshared_conv", "unshared_conv_lif"}),
    ),
}  # fmt: skip
MODULES = ("RealSpikeLIF", "trained", "folded", "folded-ternary")


def make(name):
    function = CASES[name][0]
    return function() if name in MODULES else Call(function)


def ops_of(graph) -> set[str]:
    kinds = {node.kind() for node in graph.nodes()}
    assert not kinds & {"prim::PythonOp", "aten::empty", "aten::empty_strided"}
    return {kind.removeprefix("realspike::") for kind in kinds if kind.startswith("realspike::")}


@pytest.mark.parametrize("name", CASES)
def test_jit_trace_records_the_ops(name):
    module, (_, inputs, of_T, has_grad, ops) = make(name), CASES[name]
    first, second = inputs(3 * of_T), inputs(3 * of_T).flip(0)
    with torch.no_grad():
        traced = torch.jit.trace(module, first)  # and check it
        assert ops_of(traced.inlined_graph) == ops
        stored = io.BytesIO()
        torch.jit.save(traced, stored)
        stored.seek(0)
        assert torch.equal(torch.jit.load(stored)(second), module(second))
    if not has_grad:
        return
    traced = torch.jit.trace(module, first.requires_grad_(), check_trace=False)
    assert ops_of(traced.inlined_graph)
    gradients = []
    for function in (traced, module):
        x = second.detach().clone().requires_grad_()
        y = function(x)
        (y * normal(y.shape, 6)).sum().backward()
        gradients.append((y, x.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_jit_trace_without_gradients_is_not_trained():
    with torch.no_grad():
        traced = torch.jit.trace(Call(lambda x: rso.lif(over_time(x))), maps(T), check_trace=False)
    with pytest.raises(RuntimeError, match=r"lif_fwd.*save.*torch\.jit\.trace.*torch\.no_grad\(\)"):
        traced(maps(T).requires_grad_())


@pytest.mark.parametrize("op", ["lif_fwd", "batch_norm_lif_fwd"])
def test_a_program_without_gradients_says_how_it_is_run(op):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.amplitude = nn.Parameter(AMPLITUDE.clone())
            self.variance = nn.Buffer(torch.ones(3))

        def forward(self, x):
            if op == "lif_fwd":
                return rso.lif(over_time(x), self.amplitude)
            norm = (None, None, torch.zeros(3), self.variance)
            return rso.batch_norm_lif(over_time(x), *norm, training=False, amplitude=self.amplitude)

    layer, x = Layer(), maps(T)
    with torch.no_grad():
        program = torch.export.export(layer, (x,)).module()
        assert torch.equal(program(x), layer(x))
    with pytest.raises(RuntimeError, match=f"realspike::{op}.*torch.export.*compiled, under torch"):
        program(x)


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        *((name, True) for name in CASES if name != "folded-ternary"),
        *((name, None) for name in ("lif", "conv", "trained")),
    ],
)
def test_compile_serves_every_batch(name, dynamic):
    module, (_, inputs, of_T, has_grad, _) = make(name), CASES[name]
    for grad in (False, True)[: 1 + has_grad]:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(module, backend=counter, dynamic=dynamic, fullgraph=True)
        for batch in (5, 6, 7):  # with fewer or many, F.conv2d itself takes another way
            results = []
            for function in (compiled, module):
                x = inputs(batch * of_T).requires_grad_(grad)
                with torch.set_grad_enabled(grad):
                    y = function(x)
                    if grad:
                        (y * normal(y.shape, 6)).sum().backward()
                results.append((y, x.grad))
            assert torch.equal(results[0][0], results[1][0])
            if grad:
                torch.testing.assert_close(results[0][1], results[1][1])
        assert counter.frame_count <= 2


@pytest.mark.parametrize("kind", ["trained", "folded"])
def test_compile_beside_a_default_device(kind):
    """Programs on a GPU set one; torch's compiler does not know every method of tensors then."""
    model, x = network(), normal((4, 3, 6, 6), 1)
    model = rso.reparameterize(model, x) if kind == "folded" else model
    expected = model(x)
    try:
        torch.set_default_device("cpu")
        found = torch.compile(model, fullgraph=True, backend="eager")(x)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_export_with_a_dynamic_batch(name):
    module, (_, inputs, of_T, _, ops) = make(name), CASES[name]
    batch = torch.export.Dim("batch", min=2, max=64)
    sizes = ({0: of_T * batch if of_T > 1 else batch},)
    dynamic = sizes if name in MODULES[1:] else {"x": sizes[0]}
    with torch.no_grad():
        program = torch.export.export(module, (inputs(2 * of_T),), dynamic_shapes=dynamic)
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert {f"realspike.{op}.default" for op in ops} <= names
        for B in (2, 5, 9):
            x = inputs(B * of_T)
            assert torch.equal(program.module()(x), module(x))


class LeafTracer(torch.fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return (type(m).__module__ + ".").startswith(("torch.nn.", "realspike_ops."))


@pytest.mark.parametrize("fused", [False, True])
def test_fx_takes_the_layers_as_leaves(fused):
    layers = *network()[:1], nn.BatchNorm2d(4), *network()[1:]
    model, x = nn.Sequential(*layers), maps(3)
    model = rso.fuse(model.train(), x) if fused else model.train()
    with pytest.raises(TypeError, match=r"got Proxy; is_leaf_module of a torch\.fx\.Tracer"):
        torch.fx.symbolic_trace(model[3])
    traced = torch.fx.GraphModule(copy.deepcopy(model), LeafTracer().trace(model))
    for _ in range(2):
        assert torch.equal(traced(x), model(x))
    assert torch.equal(traced.get_buffer("1.running_var"), model[1].running_var)
    assert model[1].num_batches_tracked == 2


def batched_equals_looped(function, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    cotangents = normal((3, *y.shape), 7)
    batched = torch.autograd.grad(y, inputs, cotangents, is_grads_batched=True, retain_graph=True)
    for i, cotangent in enumerate(cotangents):
        looped = torch.autograd.grad(y, inputs, cotangent, retain_graph=True)
        for one, all_three in zip(looped, batched, strict=True):
            assert one.any()
            torch.testing.assert_close(all_three[i], one)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("detach_reset", [True, False], ids=["bits", "recomputed"])
def test_batched_gradients_of_lif(detach_reset):
    x, amplitude = normal((T, 2, 3, 4, 4), 1), normal((3, 1, 1), 2)
    batched_equals_looped(lambda x, a: rso.lif(x, a, detach_reset=detach_reset), x, amplitude)
    assert torch.equal(
        torch.autograd.functional.jacobian(rso.lif, x[:, :1, 0], vectorize=True),
        torch.autograd.functional.jacobian(rso.lif, x[:, :1, 0]),
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    ("position", "kernel"),
    [((4, 4), 3), ((6, 6), 1), ((1, 1), 3)],
    ids=["unshared", "unshared, one tap", "shared"],
)
def test_batched_gradients_of_a_convolution(position, kernel):
    weight, bias = normal((*position, 1, kernel, kernel, 3, 5), 2), normal((5,), 3)
    batched_equals_looped(rso.unshared_spike_conv, spikes(2), weight, bias)


def test_functorch_derivatives_of_a_convolution_are_refused():
    weight, x = normal((4, 4, 1, 3, 3, 3, 5), 2), spikes(2)

    def loss(weight):
        return rso.unshared_spike_conv(x, weight).sum()

    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        with pytest.raises(NotImplementedError, match=r"unshared_spike_conv: torch\.func\.grad"):
            transform(loss)(weight)
    with pytest.raises(NotImplementedError, match="weight carries a tangent"):
        torch.func.jvp(loss, (weight,), (weight,))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", ["one-to-one", "signed"])
def test_functorch_through_the_layers_of_a_shortcut(kind):
    """out = weight * spikes: both derivatives by hand."""
    weight, x = normal((3, 6, 6), 1), spikes(2) - spikes(2).flip(0)
    if kind == "one-to-one":
        layer = rso.OneToOneSynapses(weight)
        transform = torch.func.grad(
            lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)).sum()
        )
        assert torch.equal(transform(weight), x.sum(0))
        with pytest.raises(NotImplementedError, match="weight carries a tangent"):
            torch.func.jvp(
                lambda w: torch.func.functional_call(layer, {"weight": w}, (x,)),
                *((weight,), (weight,)),
            )
    else:
        layer = rso.Synapses(rso.SpikeConv2d(3, 5, 3), signed=True)
    with torch.no_grad():
        mapped = torch.func.vmap(layer)(torch.stack([x, -x]))
        torch.testing.assert_close(mapped, torch.stack([layer(x), -layer(x)]))


NOT_IN_MEMORY = {
    # The imaginary part of a conjugate is a view that negates when it is read.
    "negated": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "zeros": lambda t: torch._efficientzerotensor(t.shape),
}


@pytest.mark.parametrize("kind", NOT_IN_MEMORY)
def test_tensors_whose_memory_does_not_hold_their_values(kind):
    lazy, stored = NOT_IN_MEMORY[kind], lambda t: t if kind == "negated" else torch.zeros_like(t)
    x, amplitude, v_init = normal((T, 2, 3), 1), normal((3,), 2), normal((2, 3), 3)
    weight, bias = normal((4, 4, 1, 3, 3, 3, 5), 4), normal((5,), 5)
    steps, scale = rso.quantize_weight(weight)
    calls = {
        "x": (rso.lif, x),
        "amplitude": (lambda a: rso.lif(x, a), amplitude),
        "v_init": (lambda v: rso.lif(x, v_init=v), v_init),
        "packed": (lambda x: rso.lif(x, packed=True), x),
        "pack": (rso.pack_spikes, spikes(2)),
        "spikes": (lambda s: rso.unshared_spike_conv(s, weight), spikes(2)),
        "weight": (lambda w: rso.unshared_spike_conv(spikes(2), w), weight),
        "bias": (lambda b: rso.unshared_spike_conv(spikes(2), weight, b), bias),
        "scale": (lambda s: rso.unshared_spike_conv(spikes(2), steps, scale=s), scale),
        "conv-lif": (lambda w: rso.unshared_spike_conv_lif(spikes(T), w, timesteps=T), weight),
    }
    for name, (function, argument) in calls.items():
        given = lazy(argument)
        assert given.is_neg() or given._is_zerotensor()
        assert torch.equal(function(given), function(stored(argument))), name
    leaf = x.clone().requires_grad_()
    gradients = [torch.autograd.grad(rso.lif(leaf), leaf, of(x))[0] for of in (lazy, stored)]
    assert torch.equal(*gradients)


def test_default_devices_are_no_reason_for_the_dispatcher():
    """Not those of ``with torch.device(...)`` either, in which fused layers stay fused."""
    x = maps(T)
    expected = rso.lif(over_time(x))
    with torch.device("meta"):
        assert is_plain_eager(x)
        assert torch.equal(rso.lif(over_time(x)), expected)
        torch.set_default_device("meta")
        try:
            assert is_plain_eager(x)
        finally:
            torch.set_default_device(None)
        with torch.overrides.BaseTorchFunctionMode():
            assert not is_plain_eager(x)
    assert is_plain_eager(x)


def test_function_modes_see_the_op():
    class Seen(torch.overrides.TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    with Seen() as seen:
        rso.lif(over_time(maps(T)))
    assert any("realspike.lif_fwd" in name for name in seen.names)
    assert not any("empty" in name for name in seen.names)


FORMATS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": channels_last,
    "expanded": lambda x: x[:1].expand(x.shape),
    "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("granularity", ["none", "channel"])
@pytest.mark.parametrize("detach_reset", [True, False], ids=["bits", "recomputed"])
def test_outputs_change_in_place_in_training(layout, granularity, detach_reset):
    lif = rso.RealSpikeLIF(T, granularity, (3, 6, 6), detach_reset=detach_reset)
    results = []
    for in_place in (True, False):
        leaf = maps(2 * T).requires_grad_()
        x = FORMATS[layout](leaf)
        y = lif(x)
        if in_place:
            y.mul_(3.0)
            y += x
            torch.relu_(y)
        else:
            y = torch.relu(y * 3.0 + x)
        (y * normal(y.shape, 1)).sum().backward()
        results.append((y, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert a.any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_currents_and_state_change_in_place_in_training(layout):
    weight = normal((6, 6, 1, 3, 3, 3, 5), 2).requires_grad_()
    x = FORMATS[layout](spikes(2))
    y = rso.unshared_spike_conv(x, weight, padding=1).mul_(2.0)
    plain = rso.unshared_spike_conv(x, weight, padding=1) * 2.0
    gradients = [torch.autograd.grad((out * out).sum(), weight)[0] for out in (y, plain)]
    assert torch.equal(*gradients)
    x = FORMATS[layout](maps(T)).requires_grad_()
    y, v_last = rso.lif(over_time(x), return_state=True)
    (y.mul_(2.0).sum() + v_last.mul_(3.0).sum()).backward()
    y, v_last = rso.lif(over_time(x), return_state=True)
    assert torch.equal(torch.autograd.grad(2 * y.sum() + 3 * v_last.sum(), x)[0], x.grad)


def test_a_changed_input_is_noticed_where_backward_reads_it():
    for detach_reset in (True, False):
        leaf = maps(T).requires_grad_()
        x = leaf * 1.0
        y = rso.lif(over_time(x), detach_reset=detach_reset)
        x.mul_(2.0)
        if detach_reset:  # bits were kept
            y.sum().backward()
            again = rso.lif(over_time(leaf), detach_reset=True)
            assert torch.equal(torch.autograd.grad(again.sum(), leaf)[0], leaf.grad)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()


def penalty(conv, weight, spikes, **options):
    """Return the gradient of what depends on the gradient of the weight."""
    y = conv(spikes, weight, **options)
    (gradient,) = torch.autograd.grad((y**2).sum(), weight, create_graph=True)
    return torch.autograd.grad((gradient**2).sum() + y.sum(), weight)[0]


@pytest.mark.parametrize("position", [(4, 3), (1, 1)], ids=["unshared", "shared"])
def test_second_derivative_of_weights(position):
    """The loss is quadratic in the weights, so that its gradient's derivative is that of dense
    products."""
    weight = normal((*position, 2, 2, 2, 3, 4), 2).requires_grad_()
    x, options = binary((3, 6, 8, 5), 1), {"stride": (2, 1), "dilation": (1, 2)}
    convs = rso.unshared_spike_conv, rso.reference.unshared_spike_conv
    results = [penalty(conv, weight, x, **options) for conv in convs]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-2)
    assert results[0].any()


def test_second_derivative_through_spikes_is_refused():
    weight = normal((4, 4, 1, 3, 3, 3, 5), 2).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative through spikes"):
        penalty(rso.unshared_spike_conv, weight, spikes(2).requires_grad_())


@pytest.mark.parametrize("detach_reset", [True, False], ids=["bits", "recomputed"])
def test_second_derivative_of_lif_is_refused(detach_reset):
    x, amplitude = normal((T, 2, 3), 1).requires_grad_(), torch.ones(1, requires_grad=True)
    y = rso.lif(x, amplitude, detach_reset=detach_reset)
    for gradient in torch.autograd.grad((y**2).sum(), (x, amplitude), create_graph=True):
        with pytest.raises(RuntimeError, match="lif has no second derivative"):
            gradient.sum().backward(retain_graph=True)


def test_a_scale_that_learns_is_refused():
    weight, scale = rso.quantize_weight(normal((4, 4, 1, 3, 3, 3, 5), 2))
    with pytest.raises(ValueError, match="scale must not require a gradient"):
        rso.unshared_spike_conv(spikes(2), weight, scale=scale.requires_grad_())
