"""`algorithm`: "gather" only adds; "auto" multiplies where there are matrix units that are ahead.

Triton's interpreter stands for a GPU (matrix_units.py); test_unshared_matmul.py tests the kernel.
"""

import contextlib
import copy
import pickle
import warnings

import pytest
import torch
from helpers import binary, normal
from matrix_units import a_card

import realspike_ops as rso
from realspike_ops.ops import unshared_matmul

WITHOUT_CARD = pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled kernels run")


def layers_of(**settings):
    conv, line = torch.nn.Conv2d(4, 6, 3), torch.nn.Conv1d(4, 6, 3)
    weight, unshared = torch.ones(1, 1, 1, 3, 3, 4, 6), torch.ones(3, 3, 1, 3, 3, 4, 6)
    return [
        rso.UnsharedSpikeConv(4, 6, 3, input_size=5, **settings),
        rso.UnsharedSpikeConv.from_conv2d(conv, None, 5, **settings),
        rso.UnsharedSpikeConv.from_weight(unshared, input_size=5, **settings),
        rso.UnsharedSpikeConv1d(4, 6, 3, input_size=5, **settings),
        rso.UnsharedSpikeConv1d.from_conv1d(line, None, 5, **settings),
        rso.SpikeConv2d(4, 6, 3, **settings),
        rso.SpikeConv2d.from_conv2d(conv, **settings),
        rso.SpikeConv2d.from_weight(weight, **settings),
        rso.SpikeLinear(4, 6, **settings),
    ]


def network(width=4):
    """An encoding, a convolution of each kind (element-wise and channel-wise), classes."""
    torch.manual_seed(0)
    layers = [
        rso.DirectEncoding(2),
        torch.nn.Conv2d(3, width, 3, padding=1),
        rso.RealSpikeLIF(2, "element", shape=(width, 4, 4), v_threshold=0.1),
        torch.nn.Conv2d(width, width, 3, padding=1),
        rso.RealSpikeLIF(2, "channel", shape=(width, 4, 4), v_threshold=0.1),
        torch.nn.Conv2d(width, width, 3, padding=1),
        rso.RealSpikeLIF(2, v_threshold=0.1),
        torch.nn.Flatten(),
        torch.nn.Linear(width * 16, 3),
        rso.MeanOverTime(2),
    ]
    model = torch.nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, rso.RealSpikeLIF) and layer.amplitude is not None:
                layer.amplitude.copy_(0.5 + torch.rand(layer.amplitude.shape))
    return model, torch.rand(2, 3, 4, 4)


def test_layers_gather_unless_told_otherwise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for plain, auto in zip(layers_of(), layers_of(algorithm="auto"), strict=True):
            assert plain.algorithm == "gather"
            assert "algorithm" not in repr(plain)
            assert auto.algorithm == "auto"
            assert "algorithm='auto'" in repr(auto)
            assert copy.deepcopy(auto).algorithm == "auto"
        assert all(layer.algorithm == "gather" for layer in layers_of(algorithm="gather"))


def test_matmul_is_taken_as_auto():
    with pytest.warns(DeprecationWarning, match="taken as") as caught:
        layers = layers_of(algorithm="matmul")
    assert [layer.algorithm for layer in layers] == ["auto"] * len(layers)
    assert {warning.filename for warning in caught} == {__file__}


def test_a_layer_pickled_before_gathers():
    layer = rso.SpikeConv2d(4, 6, 3)
    del layer.__dict__["algorithm"]
    again = pickle.loads(pickle.dumps(layer))
    assert again.algorithm == "gather"
    assert torch.equal(again(torch.ones(1, 4, 3, 3)), layer(torch.ones(1, 4, 3, 3)))


def test_other_algorithms_are_refused_by_name():
    spikes, weight = torch.ones(2, 4, 3, 3), torch.ones(1, 1, 1, 3, 3, 4, 6)
    model, x = network()
    folded = rso.reparameterize(model, x)
    layer = rso.SpikeConv2d(4, 6, 3)
    layer.algorithm = "fast"
    calls = [
        lambda: rso.unshared_spike_conv(spikes, weight, algorithm="fast"),
        lambda: rso.unshared_spike_conv_lif(spikes, weight, timesteps=2, algorithm="fast"),
        lambda: rso.SpikeConv2d(4, 6, 3, algorithm="fast"),
        lambda: layer(spikes),
        lambda: rso.reparameterize(model, x, algorithm="fast"),
        lambda: setattr(folded, "algorithm", "fast"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"algorithm must be one of gather, auto; got 'fast'"):
            call()
    assert folded.algorithm == "gather"


def test_on_a_cpu_auto_is_the_gather_of_floats():
    spikes = binary((64, 32, 5, 5), 1)
    weight = normal((3, 3, 1, 3, 3, 32, 64), 2)
    found = rso.unshared_spike_conv(spikes, weight, algorithm="auto")
    assert torch.equal(found, rso.unshared_spike_conv(spikes, weight))
    model, x = network()
    folded = rso.reparameterize(model, x, algorithm="auto")
    assert folded.algorithm == "auto"
    assert torch.equal(folded(x), rso.reparameterize(model, x)(x))
    rso.assert_multiplication_free(folded, x)


def test_the_algorithm_of_a_folded_network(tmp_path):
    model, x = network()
    folded = rso.reparameterize(model, x)
    convolutions = [m for m in folded.modules() if hasattr(m, "algorithm") and m is not folded]
    assert len(convolutions) == 3
    for algorithm in ("auto", "gather", "auto"):
        folded.algorithm = algorithm
        assert folded.algorithm == algorithm
        assert {c.algorithm for c in convolutions} == {algorithm}
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    again = rso.load_folded(tmp_path / "folded.safetensors")
    assert again.algorithm == "gather"
    assert torch.equal(again(x), folded(x))


# --- where there are matrix units ---


@WITHOUT_CARD
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_auto_multiplies_and_gather_does_not(dtype):
    spikes, weight = binary((5, 8, 4, 4), 1), normal((2, 2, 1, 3, 3, 8, 6), 2)
    scale = None
    if dtype == torch.uint8:
        weight, scale = rso.quantize_weight(weight)
    conv = {"weight": weight if scale is not None else weight.to(dtype), "scale": scale}
    conv |= {"bias": normal((6,), 3)}
    with a_card() as launched, torch.no_grad():
        gathered = rso.unshared_spike_conv(spikes, **conv)
        assert not launched
        for shown in (spikes, rso.pack_spikes(spikes)):
            found = rso.unshared_spike_conv(shown, **conv, algorithm="auto")
            torch.testing.assert_close(found, gathered, rtol=0, atol=1e-5 if scale is None else 0)
        assert len(launched) == 2
        with pytest.raises(ValueError, match="0 or 1"):
            rso.unshared_spike_conv(spikes * 2, **conv, algorithm="auto")


@WITHOUT_CARD
def test_what_is_not_ahead_or_factored_or_empty_launches_no_products():
    with a_card() as launched, torch.no_grad():
        for groups, samples in ((8, 5), (1, 0)):
            weight = normal((2, 2, groups, 3, 3, 8 // groups, 8 // groups), 2)
            spikes = binary((samples, 8, 4, 4), 1)
            found = rso.unshared_spike_conv(spikes, weight, algorithm="auto")
            assert torch.equal(found, rso.unshared_spike_conv(spikes, weight))
        amplitude, kernel = 0.5 + torch.rand(8, 4, 4), normal((1, 1, 1, 3, 3, 8, 6), 2)
        factored = {"weight": kernel, "amplitude": amplitude}
        found = rso.unshared_spike_conv(binary((2, 8, 4, 4), 1), **factored, algorithm="auto")
        assert torch.equal(found, rso.unshared_spike_conv(binary((2, 8, 4, 4), 1), **factored))
        assert not launched


@WITHOUT_CARD
@pytest.mark.parametrize("positions", [1, 2], ids=["shared", "unshared"])
def test_gradients_are_those_of_the_gather(positions):
    spikes = binary((3, 8, 4, 4), 1)
    weight, bias = normal((positions, positions, 1, 3, 3, 8, 6), 2), normal((6, 2, 2), 3)
    grad = normal((3, 6, 2, 2), 4)
    grads = []
    with a_card() as launched:
        for algorithm in ("gather", "auto"):
            leaves = [t.clone().requires_grad_() for t in (spikes, weight, bias)]
            out = rso.unshared_spike_conv(*leaves, algorithm=algorithm)
            grads.append(torch.autograd.grad(out, leaves, grad))
    assert len(launched) == 1
    for left, right in zip(*grads, strict=True):
        assert torch.equal(left, right)


@WITHOUT_CARD
@pytest.mark.parametrize(
    ("timesteps", "groups", "fits"), [(3, 1, True), (16, 2, True), (17, 1, False), (2, 4, False)]
)
def test_neurons_that_do_not_fit_run_behind_the_products(timesteps, groups, fits):
    spikes = binary((timesteps, 8, 3, 3), 1)
    weight, scale = rso.quantize_weight(normal((1, 1, groups, 3, 3, 8 // groups, 64 // groups), 2))
    settings = {"scale": scale, "timesteps": timesteps, "return_state": True}
    with a_card() as launched:
        expected = rso.unshared_spike_conv_lif(spikes, weight, **settings)
        assert not launched
        found = rso.unshared_spike_conv_lif(spikes, weight, **settings, algorithm="auto")
        assert [with_neurons for _, with_neurons in launched] == [fits]
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)


@WITHOUT_CARD
def test_a_network_that_multiplies_is_refused_by_name():
    model, x = network()
    folded = rso.reparameterize(model, x, weight_dtype=torch.int8)
    with a_card() as launched, torch.no_grad():
        gathered = folded(x)
        rso.assert_multiplication_free(folded, x)
        folded.algorithm = "auto"
        assert not launched
        # Spikes are equal; the classes are summed in float32.
        torch.testing.assert_close(folded(x), gathered, rtol=0, atol=1e-6)
        kinds = [(sizes["weight_stride_p"] > 0, neurons) for sizes, neurons in launched]
        assert kinds == [(True, True), (False, True), (False, False)]
        with pytest.raises(rso.MultiplicationError, match=r'number 1 .*algorithm="auto"'):
            rso.assert_multiplication_free(folded, x)
        folded.algorithm = "gather"
        rso.assert_multiplication_free(folded, x)


@WITHOUT_CARD
def test_products_are_counted_as_multiplications():
    model, x = network()
    folded = rso.reparameterize(model, x)
    with a_card():
        counted = {}
        for algorithm in ("gather", "auto"):
            folded.algorithm = algorithm
            counted[algorithm] = rso.profile(folded, [x])
    pairs = list(zip(counted["gather"].layers, counted["auto"].layers, strict=True))
    more = [auto.multiplications - gather.multiplications for gather, auto in pairs]
    # Per image: 2 timesteps of 4 channels at 16 positions under 9 taps of 4 channels; 64 to 3.
    assert sorted(m for m in more if m) == [2 * 64 * 3, 2 * 64 * 36, 2 * 64 * 36]
    for gather, auto in pairs:
        assert gather.synops == auto.synops


@WITHOUT_CARD
def test_the_op_keeps_its_contract():
    arguments = (
        (binary((3, 8, 4, 4), 1), normal((2, 2, 1, 3, 3, 8, 6), 2), normal((6,), 3), None, None),
        ((2, 2), (1, 1), (0, 0), (1, 1), False, False),
    )
    flat = (*arguments[0], *arguments[1])
    flat[1].requires_grad_()
    with a_card():
        torch.library.opcheck(
            torch.ops.realspike.unshared_matmul.default,
            flat,
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


def test_no_device_but_a_gpu_has_matrix_units():
    assert unshared_matmul.capability_of(torch.device("cpu")) == (0, 0)
    if not torch.cuda.is_available():
        assert unshared_matmul.capability_of(torch.device("cuda")) == (0, 0)


@WITHOUT_CARD
def test_a_call_is_traced_whole_for_any_batch():
    """The choice is made while tracing; the op is in the graph."""
    weight = normal((2, 2, 1, 3, 3, 8, 6), 2)
    graphs = []

    def backend(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    def call(spikes):
        return rso.unshared_spike_conv(spikes, weight, algorithm="auto")

    products = torch.ops.realspike.unshared_matmul
    torch._dynamo.reset()
    for card in (contextlib.nullcontext, a_card):
        with card(), torch.no_grad():
            compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
            for samples in (7, 9, 11):
                spikes = binary((samples, 8, 4, 4), samples)
                assert torch.equal(compiled(spikes), call(spikes))
            assert len(graphs) == 1
            is_product = [target in (products, products.default) for target in graphs.pop()]
            assert any(is_product) == (card is a_card)
        torch._dynamo.reset()
