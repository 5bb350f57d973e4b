"""convert: networks of SpikingJelly, snnTorch and norse, whose spikes stay equal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import realspike_ops as rso

T = 4


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


X, FRAMES = images(6, 3, 8, 8), images(T, 5, 3, 8, 8)


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install .[peers]")


def lively(model):
    """Currents of a few thresholds, so that neurons of random networks fire and reset."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
            module.weight.data.mul_(6)
    return model.eval()


def layers(neuron):
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), neuron(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 8, 3), neuron(), nn.Flatten(), nn.Linear(32, 20), neuron()),
        nn.Linear(20, 5),
    )


def assert_equal_and_foldable(network, x, expected, folds=True):
    with torch.no_grad():
        out = network.eval()(x)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        assert out.std() > 0.01
    lifs = [m for m in network.modules() if isinstance(m, rso.RealSpikeLIF)]
    assert lifs
    if folds:
        folded = rso.reparameterize(network, x)
        report = rso.verify(network, folded, x)
        assert report.max_logit_error < 1e-4
    with torch.enable_grad():
        network.train()(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    return lifs


# --- SpikingJelly ---------------------------------------------------------------------------------

JELLY = {
    "IF": lambda n, s: n.IFNode(),
    "IF, from a rest": lambda n, s: n.IFNode(v_reset=0.25, surrogate_function=s.Rect(2.0)),
    "IF, soft": lambda n, s: n.IFNode(v_reset=None, detach_reset=True),
    "LIF": lambda n, s: n.LIFNode(tau=2.0, surrogate_function=s.ATan()),
    "LIF, to a rest": lambda n, s: n.LIFNode(tau=4.0, v_reset=-0.25),
    "LIF, whole input": lambda n, s: n.LIFNode(tau=3.0, decay_input=False, v_reset=None),
    "PLIF": lambda n, s: n.ParametricLIFNode(),
    "PLIF, whole input": lambda n, s: n.ParametricLIFNode(init_tau=3.0, decay_input=False),
}


def reset(model):
    library("spikingjelly")
    from spikingjelly.activation_based import functional

    functional.reset_net(model)
    return model


@pytest.mark.parametrize("name", JELLY)
def test_spikingjelly_neurons(name):
    library("spikingjelly")
    from spikingjelly.activation_based import neuron, surrogate

    model = lively(layers(lambda: JELLY[name](neuron, surrogate)))
    network = rso.convert(model, X, timesteps=T)
    with torch.no_grad():
        reset(model)
        expected = torch.stack([model(X) for _ in range(T)]).mean(0)
    lifs = assert_equal_and_foldable(network, X, expected)
    assert (lifs[0].decay_granularity == "layer") == name.startswith("PLIF")


def test_spikingjelly_gradients_are_equal():
    library("spikingjelly")
    from spikingjelly.activation_based import neuron, surrogate

    for function in (surrogate.ATan(3.0), surrogate.Sigmoid(2.0), surrogate.PiecewiseQuadratic()):
        model = lively(layers(lambda f=function: neuron.LIFNode(surrogate_function=f)))
        network = rso.convert(model, X, timesteps=T)
        reset(model)
        torch.stack([model(X) for _ in range(T)]).mean(0).square().sum().backward()
        network(X).square().sum().backward()
        for key, parameter in model.named_parameters():
            ours = network.get_parameter(key).grad
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-4)


class MultiStep(nn.Module):
    """Layers and neurons of [T, B, ...], also nn.Linear; the input is repeated inside or not."""

    def __init__(self, repeats: bool):
        super().__init__()
        from spikingjelly.activation_based import functional, layer, neuron

        self.repeats = repeats
        self.conv1, self.bn1 = layer.Conv2d(3, 8, 3, padding=1), layer.BatchNorm2d(8)
        self.sn1, self.pool = neuron.LIFNode(), layer.AvgPool2d(2)
        self.rest = layer.SeqToANNContainer(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        self.sn2, self.flat, self.fc = neuron.IFNode(), layer.Flatten(), nn.Linear(32, 5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        if self.repeats:
            x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
        x = self.pool(self.sn1(self.bn1(self.conv1(x))))
        return self.fc(self.flat(self.sn2(self.rest(x)))).mean(0)


@pytest.mark.parametrize("batch", [6, T])
def test_spikingjelly_multi_step(batch):
    library("spikingjelly")
    model, x = lively(MultiStep(repeats=True)), X[:batch]
    network = rso.convert(model, x, timesteps=T, granularity="element")
    with torch.no_grad():
        assert_equal_and_foldable(network, x, reset(model)(x))
    assert type(network.conv1) is nn.Conv2d


def test_spikingjelly_multi_step_frames():
    library("spikingjelly")
    model = lively(MultiStep(repeats=False))
    network = rso.convert(model, FRAMES, timesteps=T, norms_at_threshold=False)
    with torch.no_grad():
        assert_equal_and_foldable(network, FRAMES.flatten(0, 1), reset(model)(FRAMES))
    assert set(network.state_dict()) == set(model.state_dict())
    started = rso.convert(model, FRAMES, timesteps=T, norms_at_threshold=True)
    assert (started.bn1.weight == 2).all()  # of LIFNode(tau=2), in units of tau
    assert (started.get_submodule("rest.1").weight == 1).all()


@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikingjelly_networks_ask_their_layers_for_the_step_mode(mode):
    """As the ResNets of SpikingJelly do."""
    library("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.sn = layer.Conv2d(3, 8, 3), neuron.IFNode()
            self.avgpool, self.fc = layer.AdaptiveAvgPool2d((2, 2)), layer.Linear(32, 5)
            functional.set_step_mode(self, mode)

        def forward(self, x):
            x = self.avgpool(self.sn(self.conv(x)))
            return self.fc(x.flatten(1 if self.avgpool.step_mode == "s" else 2))

    model = lively(Asks())
    frames = FRAMES if mode == "m" else X.expand(T, *X.shape)
    network = rso.convert(model, FRAMES if mode == "m" else X, timesteps=T)
    with torch.no_grad():
        expected = model(frames) if mode == "m" else torch.stack([model(X) for _ in range(T)])
        out = network(FRAMES.flatten(0, 1)) if mode == "m" else network(X)
    expected = expected if mode == "m" else expected.mean(0)
    torch.testing.assert_close(out.view_as(expected), expected)


# --- snnTorch -------------------------------------------------------------------------------------

LEAKY = {
    "subtract": {},
    "zero": {"reset_mechanism": "zero"},
    "none": {"reset_mechanism": "none"},
    "zero at once": {"reset_mechanism": "zero", "reset_delay": False},
    "graded": {"graded_spikes_factor": 0.5},
    "learnt": {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True},
}


@pytest.mark.parametrize("name", LEAKY)
def test_snntorch_neurons(name):
    snntorch = library("snntorch")
    from snntorch import utils

    sigmoid = snntorch.surrogate.sigmoid(slope=5)
    form = {"threshold": 0.9, "spike_grad": sigmoid, "init_hidden": True} | LEAKY[name]
    model = lively(layers(lambda: snntorch.Leaky(0.8, **form)))
    network = rso.convert(model, X, timesteps=T)
    with torch.no_grad():
        utils.reset(model)
        expected = torch.stack([model(X) for _ in range(T)]).mean(0)
    lif = assert_equal_and_foldable(network, X, expected)[0]
    assert lif.surrogate == ("sigmoid", 5.0)
    if name == "graded":
        assert lif.amplitude.item() == 0.5
        assert not lif.amplitude.requires_grad
    if name == "learnt":
        assert all(p.requires_grad for p in lif.parameters())
        assert lif.decay.item() == pytest.approx(0.8)


class Loop(nn.Module):
    """The loop of snnTorch's tutorials; what is joined behind it is in `join`."""

    def __init__(self, join, frames=False):
        super().__init__()
        import snntorch

        self.join, self.frames = join, frames
        self.conv, self.lif1 = nn.Conv2d(3, 8, 3), snntorch.Leaky(0.9)
        self.fc, self.lif2 = nn.Linear(72, 5), snntorch.Leaky(0.8, reset_mechanism="zero")

    def forward(self, x):
        mem1, mem2 = self.lif1.reset_mem(), None
        currents, spikes = [], []
        for t in range(T):
            current = self.conv(x[t] if self.frames else x)
            spike, mem1 = self.lif1(current, mem1)
            spike = F.dropout(F.max_pool2d(spike, 2), 0.1, self.training)
            currents.append(self.fc(spike.view(spike.size(0), -1)))
            spike, mem2 = self.lif2(currents[-1], mem2)
            spikes.append(spike)
        return self.join(spikes, currents, mem2)


JOINED = {
    "stack": lambda spikes, currents, mem: torch.stack(spikes).mean(0),
    "sum": lambda spikes, currents, mem: sum(spikes) / T,
    "both": lambda spikes, currents, mem: (torch.stack(spikes) + torch.stack(currents)).mean(0),
    "cat": lambda spikes, currents, mem: torch.cat(currents).unflatten(0, (T, -1)).sum(0),
}


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("name", JOINED)
def test_loops_over_time(name, frames):
    library("snntorch")
    model = lively(Loop(JOINED[name], frames))
    x = FRAMES if frames else X
    network = rso.convert(model, x, timesteps=T, granularity="layer")
    given = x.flatten(0, 1) if frames else x
    with torch.no_grad():
        lifs = assert_equal_and_foldable(network, given, model(x), folds=name != "both")
    assert len(lifs) == (1 if name == "cat" else 2)


# --- norse ----------------------------------------------------------------------------------------


def test_what_a_loop_draws_is_drawn_at_every_timestep():
    snntorch = library("snntorch")

    class Rates(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.drop = nn.Linear(12, 9), snntorch.Leaky(0.5), nn.Dropout()

        def forward(self, x):
            mem, spikes = self.lif.init_leaky(), []
            for _ in range(T):
                spike, mem = self.lif(self.fc(torch.bernoulli(x)), mem)
                spikes.append(self.drop(spike))
            return torch.stack(spikes).mean(0)

    network = rso.convert(Rates().eval(), images(5, 12), timesteps=T)
    seen = []
    network.lif.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    network(images(5, 12))
    steps = seen[0].unflatten(0, (T, -1))
    assert all(not torch.equal(steps[0], step) for step in steps[1:])


def test_norse_single_steps_and_loops():
    norse = library("norse.torch")
    reset_subtract = pytest.importorskip("norse.torch.functional.reset").reset_subtract

    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            p = norse.LIFBoxParameters(torch.tensor(500.0), method="triangle", alpha=1.0)
            q = norse.LIFBoxParameters(torch.tensor(250.0), reset_method=reset_subtract)
            r = torch.tensor(0.125)
            p = p._replace(v_leak=torch.tensor(-0.25), v_reset=r)
            self.fc1, self.cell1 = nn.Linear(192, 40), norse.LIFBoxCell(p)
            self.fc2, self.cell2 = nn.Linear(40, 5), norse.LIFBoxCell(q)

        def forward(self, x):  # [T, B, ...]
            state1, state2, spikes = None, None, []
            for x_t in x.flatten(2).unbind(0):
                z, state1 = self.cell1(self.fc1(x_t), state1)
                z, state2 = self.cell2(self.fc2(z), state2)
                spikes.append(z)
            return torch.stack(spikes).mean(0)

    model = lively(Cells())
    network = rso.convert(model, FRAMES, timesteps=T, surrogate="atan")
    lifs = assert_equal_and_foldable(network, FRAMES.flatten(0, 1), model(FRAMES).detach())
    assert [(lif.decay, lif.reset) for lif in lifs] == [(0.5, "hard"), (0.75, "soft")]
    with pytest.raises(rso.ReparameterizationError, match=r"'cell2'.*super.*surrogate="):
        rso.convert(model, FRAMES, timesteps=T)


# --- what is refused ------------------------------------------------------------------------------


def refused(model, reason, **arguments):
    with pytest.raises(rso.ReparameterizationError, match=reason):
        rso.convert(model, X, **({"timesteps": T} | arguments))


def test_refused_of_spikingjelly():
    library("spikingjelly")
    from spikingjelly.activation_based import layer, neuron, surrogate

    for kept in (layer.SynapseFilter(3.0), layer.Delay(1)):
        stateful = nn.Sequential(nn.Conv2d(3, 8, 3), neuron.IFNode(), kept, nn.Conv2d(8, 2, 3))
        refused(stateful, f"'2' .{type(kept).__name__}. reads what an earlier call left")
    refused(nn.Sequential(nn.Conv2d(3, 8, 3), neuron.IFNode(), layer.Dropout()), "nn.Dropout,")
    maps = layer.Dropout2d(step_mode="m")
    refused(nn.Sequential(nn.Conv2d(3, 8, 3), neuron.IFNode(), maps), "nn.Dropout2d in a SeqToANN")

    refused(layers(neuron.QIFNode), "'2' .QIFNode.*IFNode, LIFNode, ParametricLIFNode")
    refused(layers(lambda: neuron.IFNode(surrogate_function=surrogate.S2NN())), "S2NN")
    plain = surrogate.Sigmoid(spiking=False)
    refused(layers(lambda: neuron.IFNode(surrogate_function=plain)), "spiking=False")
    refused(layers(lambda: neuron.IFNode(store_v_seq=True)), "store_v_seq")

    patched = neuron.IFNode()
    patched.single_step_forward = lambda x: x
    refused(nn.Sequential(nn.Conv2d(3, 8, 3), patched), "'1'.*single_step_forward.*replaced")

    class Resets(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.node = nn.Conv2d(3, 8, 3), neuron.IFNode()

        def forward(self, x):
            out = 0
            for _ in range(T):
                out = out + self.node(self.conv(x))
                self.node.reset()
            return out

    refused(Resets(), "IFNode is reset between calls")

    class Backwards(Resets):
        def forward(self, x):
            return torch.stack([self.node(self.conv(x)) for _ in range(T)][::-1])

    refused(Backwards(), "'node' .IFNode. is called 4 times")

    class Own(neuron.IFNode):
        pass

    refused(layers(Own), "Own.*no neuron")


def test_refused_of_snntorch():
    snntorch = library("snntorch")

    def of(**form):
        return layers(lambda: snntorch.Leaky(0.9, init_hidden=True, **form))

    refused(layers(lambda: snntorch.Synaptic(0.9, 0.8, init_hidden=True)), "Synaptic.*Leaky")
    refused(of(reset_delay=False), "reset_delay=False.*second time")
    refused(of(spike_grad=snntorch.surrogate.fast_sigmoid()), "fast_sigmoid.*surrogate=")
    refused(of(state_quant=torch.round), "state_quant")
    vector = nn.Sequential(nn.Linear(6, 3), snntorch.Leaky(torch.rand(3), init_hidden=True))
    with pytest.raises(rso.ReparameterizationError, match=r"decay per neuron.*\(3,\)"):
        rso.convert(vector, images(2, 6), timesteps=T)
    loops = {
        "last timestep": lambda spikes, currents, mem: spikes[-1],
        "potential": lambda spikes, currents, mem: mem,
        "stacked last": lambda spikes, currents, mem: torch.stack(spikes, -1).mean(-1),
        "backwards": lambda spikes, currents, mem: torch.stack(spikes[::-1]),
    }
    for join in loops.values():
        refused(Loop(join), r"'lif[12]' .Leaky. is called 4 times.*each of the 4 timesteps")
    one_step = nn.Sequential(nn.Conv2d(3, 8, 3), snntorch.Leaky(0.9, init_hidden=True, output=True))
    refused(one_step, "'1'.*potential is read")
    refused(Loop(JOINED["stack"]), "called 4 times.*2 timesteps", timesteps=2)
