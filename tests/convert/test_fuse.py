"""A fused network is the network that it was, whatever its forward does."""

import copy
import io
import operator
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import realspike_ops as rso

T, B, C, S = 2, 2, 3, 4
FORMS = {
    "x + y": lambda a, b: a + b,
    "y + x": lambda a, b: b + a,
    "torch.add": torch.add,
    "add": lambda a, b: a.add(b),
    "operator.iadd": operator.iadd,
    "add_": lambda a, b: a.add_(b),
}


def lif(granularity="element"):
    layer = rso.RealSpikeLIF(T, granularity, (C, S, S))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * normal(parameter.shape, 5)
    return layer


class Net(nn.Module):
    """Two convolutions with norms and neurons; `body` says how they are connected."""

    def __init__(self, body=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = (nn.Conv2d(C, C, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
        self.lif1, self.lif2 = lif(), lif()
        self.drop = nn.Dropout(0.5)
        for n, bn in enumerate((self.bn1, self.bn2)):
            nn.init.normal_(bn.bias, 0.2, 0.2, generator=torch.Generator().manual_seed(n))
        self.body = body

    def forward(self, x):
        if self.body is not None:
            return self.body(self, x)
        x = self.lif1(self.bn1(self.conv1(x)))
        return self.lif2(self.bn2(self.conv2(x)) + x)


def images(seed=1, batch=B):
    return normal((T * batch, C, S, S), seed)


def step(model, x, mode=True):
    model.train(mode).zero_grad()
    torch.manual_seed(3)
    out = model(x)
    out.backward(normal(out.shape, 8))
    return out.detach()


def assert_same_network(fused, plain, mode=True, steps=2, make=images):
    for seed in range(steps):
        assert torch.equal(step(fused, make(seed), mode), step(plain, make(seed), mode))
        for (name, p), q in zip(fused.named_parameters(), plain.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4, msg=name)
        for (name, p), q in zip(fused.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def fused_and_plain(model, example=None):
    plain = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="nothing is fused")
        fused = rso.fuse(model, images() if example is None else example)
    assert fused is model
    return fused, plain


def norms_that_run(model, x, monkeypatch) -> int:
    count = []
    original = F.batch_norm
    with monkeypatch.context() as patch:
        patch.setattr(F, "batch_norm", lambda *a, **k: count.append(1) or original(*a, **k))
        model(x)
    return len(count)


# --- what is fused --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_block(training, monkeypatch):
    fused, plain = fused_and_plain(Net())
    assert rso.fusion_report(fused).fused == {"bn1": ("lif1",), "bn2": ("lif2",)}
    assert rso.fusion_report(fused).left == {}
    assert norms_that_run(fused, images(), monkeypatch) == 0
    rso.fuse(plain, images())  # the same step of statistics as above
    assert norms_that_run(rso.unfuse(plain), images(), monkeypatch) == 2
    assert_same_network(fused, plain, training)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_sum(form, monkeypatch):
    def body(net, x):
        x = net.lif1(net.bn1(net.conv1(x)))
        return net.lif2(FORMS[form](net.bn2(net.conv2(x)), x))

    fused, plain = fused_and_plain(Net(body))
    assert rso.fusion_report(fused).fused == {"bn1": ("lif1",), "bn2": ("lif2",)}
    assert_same_network(fused, plain)
    assert norms_that_run(fused, images(), monkeypatch) == 0


def test_a_shortcut_with_a_norm(monkeypatch):
    def body(net, x):
        return net.lif1(net.bn1(net.conv1(x)) + net.bn2(net.conv2(x)))

    fused, plain = fused_and_plain(Net(body))
    report = rso.fusion_report(fused)
    assert report.fused == {"bn1": ("lif1",)}
    assert "addition to the output of another batch norm" in report.left["bn2"]
    assert "no batch norm" in report.left["lif2"]
    assert norms_that_run(fused, images(), monkeypatch) == 1
    norms_that_run(plain, images(), monkeypatch)
    assert_same_network(fused, plain)


def test_the_residual_of_a_norm_that_is_left_takes_one_itself():
    def body(net, x):
        first = net.bn1(net.conv1(x))
        return net.lif1(first + net.bn2(net.conv2(x))) + first.relu()

    fused, plain = fused_and_plain(Net(body))
    assert rso.fusion_report(fused).fused == {"bn2": ("lif1",)}
    assert "more than once" in rso.fusion_report(fused).left["bn1"]
    assert_same_network(fused, plain)


def test_a_sequential_and_an_identity(monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(C, C, 3), nn.BatchNorm2d(C), nn.Identity(), rso.RealSpikeLIF(T), nn.Flatten()
    )
    fused, plain = fused_and_plain(model)
    assert rso.fusion_report(fused).fused == {"1": ("3",)}
    assert_same_network(fused, plain)
    assert norms_that_run(fused, images(), monkeypatch) == 0


@pytest.mark.parametrize("training", [True, False])
def test_the_encoding(training, monkeypatch):
    """The norm of a current that is repeated over time is taken of the images once."""
    model = nn.Sequential(
        nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), rso.DirectEncoding(T), lif(), nn.Flatten()
    )
    fused, plain = fused_and_plain(model)
    assert rso.fusion_report(fused).fused == {"1": ("3",)}
    assert_same_network(fused, plain, training)
    assert norms_that_run(fused, images(), monkeypatch) == 0


def test_other_repetitions_have_values():
    def body(net, x):
        x = net.bn1(net.conv1(x)).repeat(2 * T, 1, 1, 1)  # more than the neurons' timesteps
        return net.lif2(net.bn2(net.conv2(net.lif1(x))).repeat(T, 1, 1, 2)[..., :S])

    fused, plain = fused_and_plain(Net(body))
    assert_same_network(fused, plain)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_other_norms(kind):
    shape = {nn.BatchNorm1d: (C, 5), nn.BatchNorm3d: (C, 2, 3, 2)}.get(kind, (C, S, S))

    def make(seed=0):
        return normal((T * B, *shape), seed)

    fused, plain = fused_and_plain(nn.Sequential(kind(C), rso.RealSpikeLIF(T)), make())
    assert rso.fusion_report(fused).fused == {"0": ("1",)}
    assert isinstance(fused[0], kind)
    if kind is not nn.SyncBatchNorm:
        assert_same_network(fused, plain, make=make)


def test_layers_that_are_called_twice():
    def body(net, x):
        x = net.lif1(net.bn1(net.conv1(x)))
        x = net.lif1(net.bn1(net.conv2(x)))
        return net.lif1(net.bn2(net.conv2(x)))

    fused, plain = fused_and_plain(Net(body))
    assert rso.fusion_report(fused).fused == {"bn1": ("lif1",), "bn2": ("lif1",)}
    assert_same_network(fused, plain)
    assert fused.bn1.num_batches_tracked == 4


def test_statistics_move_in_the_order_of_the_calls():
    def body(net, x):
        first, second = net.bn1(net.conv1(x)), net.bn1(net.conv2(x))
        return net.lif2(second) + net.lif1(first)

    fused, plain = fused_and_plain(Net(body))
    assert set(rso.fusion_report(fused).fused["bn1"]) == {"lif1", "lif2"}
    assert_same_network(fused, plain)


def test_frozen_norms_and_a_norm_in_eval_mode():
    class Frozen(Net):
        def train(self, mode=True):
            super().train(mode)
            self.bn1.eval()
            return self

    fused, plain = fused_and_plain(Frozen())
    for model in (fused, plain):
        model.bn1.requires_grad_(False)
    assert_same_network(fused, plain)
    assert fused.bn1.num_batches_tracked == 0


def changed_before_it_is_read(net, x):
    """The norm's input, then a residual, then a parameter."""
    read = net.conv1(x).detach()
    current = net.bn1(read)
    read.mul_(3)
    spikes = net.lif1(current)
    residual = spikes.detach().clone()
    total = net.bn2(net.conv2(spikes)) + residual
    residual.zero_()
    return net.lif2(total)


def scaled_before_it_is_read(net, x):
    current = net.bn1(net.conv1(x))
    with torch.no_grad():
        bias = net.bn1.bias.clone()
        net.bn1.bias.add_(0.25)
    spikes = net.lif1(current)
    with torch.no_grad():
        net.bn1.bias.copy_(bias)
    return spikes


@pytest.mark.parametrize(
    ("forward", "left"),
    [(changed_before_it_is_read, ("bn1", "bn2")), (scaled_before_it_is_read, ("bn1",))],
)
def test_norms_whose_input_changes_before_they_are_read_are_left(forward, left):
    fused, plain = fused_and_plain(Net(forward))
    report = rso.fusion_report(fused)
    assert report.fused == {}
    assert all("changed in place" in report.left[norm] for norm in left)
    for training in (True, False):
        with torch.no_grad():  # what such a change does to gradients, autograd refuses itself
            assert torch.equal(fused.train(training)(images()), plain.train(training)(images()))


# --- what is left, and why ------------------------------------------------------------------------

LEFT = {
    "read twice": (lambda net, x: net.lif1(x) * x.abs(), "more than once, by 'lif1', abs"),
    "read by two LIF layers": (lambda net, x: net.lif1(x) + net.lif2(x), "more than once"),
    "dropout": (lambda net, x: net.lif1(net.drop(x)), "read by dropout, not by neurons"),
    "reshape": (lambda net, x: net.lif1(x.flatten(0, 1).unflatten(0, (-1, C))), "read by flatten"),
    "alpha": (lambda net, x: net.lif1(torch.add(x, torch.ones(x.shape), alpha=2)), "read by add"),
    "scalar": (lambda net, x: net.lif1(x + 1), "read by add"),
    "broadcast": (lambda net, x: net.lif1(x + net.lif1.amplitude), "read by add"),
    "another dtype": (lambda net, x: net.lif1((x + torch.ones(x.shape).double()).float()), "add"),
    "two residuals": (lambda net, x: net.lif1(x + net.conv2.weight.sum() * 0 + 1), "read by add"),
    "a relu": (lambda net, x: net.lif1(F.relu(x)), "read by relu"),
    "unused": (lambda net, x: net.lif1(net.conv2(x.detach() * 0)), "read by detach"),
    "nobody": (lambda net, x: net.lif1(torch.ones(x.shape)), "nobody reads"),
    "numpy": (lambda net, x: net.lif1(x + float(x.detach().numpy().sum()) * 0), "more than once"),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_as_it_is(case):
    after, reason = LEFT[case]
    fused, plain = fused_and_plain(Net(lambda net, x: after(net, net.bn1(net.conv1(x)))))
    report = rso.fusion_report(fused)
    assert report.fused == {}
    assert reason in report.left["bn1"]
    assert "does not call" in report.left["bn2"]
    assert type(fused.bn1) is nn.BatchNorm2d
    assert_same_network(fused, plain)


class Scaled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Half(nn.Module):
    def forward(self, p):
        return p / 2


def test_norms_that_are_something_else():
    model = Net()
    model.bn1 = Scaled(C)
    parametrize.register_parametrization(model.bn2, "weight", Half())
    fused, plain = fused_and_plain(model)
    report = rso.fusion_report(fused)
    assert "it is a Scaled" in report.left["bn1"]
    assert "it is a ParametrizedBatchNorm2d" in report.left["bn2"]
    assert_same_network(fused, plain)
    with pytest.warns(UserWarning, match="nothing is fused: bn1 is left: it is a Scaled"):
        rso.fuse(model, images())


# --- forward stays the user's ---------------------------------------------------------------------


def test_paths_that_the_example_does_not_take():
    """In training the norm's output is read otherwise than in the mode that the example saw."""

    def body(net, inputs):
        current = net.bn1(net.conv1(inputs))
        if net.training:
            current = net.drop(current) * 1.5
        x = net.lif1(current)
        current = net.bn2(net.conv2(x))
        if inputs.mean() > 0:
            current = current.clone().mul_(0.5)
        y = net.lif2(current + x)
        return y + current if net.training else y

    fused, plain = fused_and_plain(Net(body).eval(), images() - 1)
    assert set(rso.fusion_report(fused).fused) == {"bn1", "bn2"}
    for training in (True, False):
        for mean in (-1, 1):
            assert_same_network(fused, plain, training, make=lambda n, m=mean: images(n) + m)


def test_hooks_after_fusing_see_values():
    fused, plain = fused_and_plain(Net())
    seen: dict[nn.Module, list] = {}
    for model in (fused, plain):
        seen[model] = []
        for layer in (model.bn1, model.lif1, model.bn2, model.lif2):
            layer.register_forward_hook(
                lambda _, args, out, model=model: seen[model].extend([args[0].sum(), out.sum()])
            )
    step(fused, images())
    step(plain, images())
    for got, wanted in zip(*seen.values(), strict=True):
        torch.testing.assert_close(got, wanted)


def test_backward_hooks_of_neurons():
    fused, plain = fused_and_plain(Net())
    seen: dict[nn.Module, list] = {fused: [], plain: []}
    for model in (fused, plain):
        model.lif2.register_full_backward_hook(
            lambda _, grads, __, model=model: seen[model].append(grads[0])
        )
    assert_same_network(fused, plain, steps=1)
    torch.testing.assert_close(seen[fused], seen[plain])


@pytest.mark.parametrize("attribute", ["shape", "dtype", "device", "ndim", "layout"])
def test_what_is_known_without_values(attribute, monkeypatch):
    def body(net, x):
        current = net.bn1(net.conv1(x))
        assert getattr(current, attribute) == getattr(x, attribute)
        assert current.dim() == 4
        assert current.size(1) == C
        return net.lif1(current)

    fused, _ = fused_and_plain(Net(body))
    assert norms_that_run(fused, images(), monkeypatch) == 0


def test_what_reads_a_current_in_inference_mode_takes_no_gradient_from_others():
    def body(net, x):
        current = net.bn1(net.conv1(x))
        with torch.inference_mode():
            current.mean()
        return net.lif1(current)

    grads = [
        torch.autograd.grad(net(images()).square().sum(), [net.conv1.weight, net.bn1.bias])
        for net in fused_and_plain(Net(body))
    ]
    torch.testing.assert_close(*grads)


def test_changes_of_what_a_norm_read_are_refused():
    def body(net, x):
        read = net.conv1(x)
        current = net.bn1(read)
        if not net.training:
            with torch.no_grad():
                read.add_(1)
        return net.lif1(current)

    fused, _ = fused_and_plain(Net(body))
    with pytest.raises(RuntimeError, match=r"changed in place .* use realspike_ops.unfuse"):
        fused.eval()(images())

    def residual(net, x):
        other = x.clone()
        total = net.bn1(net.conv1(x)) + other
        if not net.training:
            other.mul_(2)
        return net.lif1(total)

    fused, plain = fused_and_plain(Net(residual))
    with pytest.raises(RuntimeError, match="changed in place"):
        fused.eval()(images())
    assert torch.equal(rso.unfuse(fused)(images()), plain.eval()(images()))


def test_parameters_that_were_freed_are_refused():
    """FSDP frees the parameters of a unit once it has run, and a kernel would read none."""

    def body(net, x):
        current = net.bn1(net.conv1(x))
        if not net.training:
            net.bn1.weight.untyped_storage().resize_(0)
        return net.lif1(current)

    fused, _ = fused_and_plain(Net(body))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"freed before .* into one unit"):
        fused.eval()(images())


def test_gradients_are_stopped_where_forward_stops_them():
    def body(net, x):
        x = net.lif1(net.bn1(net.conv1(x)))
        with torch.no_grad():
            current = net.bn2(net.conv2(x))
        total = current + x
        other = net.bn1(net.conv1(x))
        with torch.no_grad():
            other += x
        return net.lif2(total) + net.lif1(other)

    fused, plain = fused_and_plain(Net(body))
    assert set(rso.fusion_report(fused).fused) == {"bn1", "bn2"}
    assert_same_network(fused, plain)
    assert fused.bn2.weight.grad is None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_what_goes_past_pytorchs_functions_is_refused():
    def body(net, x):
        current = net.bn1(net.conv1(x))
        return net.lif1(_Copy.apply(current) if net.training else current)

    fused, _ = fused_and_plain(Net(body).eval())
    with pytest.raises(RuntimeError, match=r"past PyTorch's functions .* realspike_ops.unfuse"):
        step(fused, images())


def train_checkpointed(forward, reentrant):
    def body(net, x):
        return net.lif1(checkpoint(forward, net, x, use_reentrant=reentrant))

    model = Net(body)
    fused, plain = fused_and_plain(model, images().requires_grad_())
    x = [images().requires_grad_() for _ in range(2)]
    assert torch.equal(step(fused, x[0]), step(plain, x[1]))
    torch.testing.assert_close(x[0].grad, x[1].grad, rtol=1e-3, atol=1e-4)
    for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    return rso.fusion_report(fused)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    def whole(net, x):
        return net.conv2(net.lif2(net.bn1(net.conv1(x))))

    assert train_checkpointed(whole, reentrant).fused == {"bn1": ("lif2",)}
    # Between the norm and the neurons: the older kind is an autograd.Function.
    report = train_checkpointed(lambda net, x: net.bn1(net.conv1(x)), reentrant)
    assert report.fused == ({} if reentrant else {"bn1": ("lif1",)})
    if reentrant:
        assert "autograd.Function" in report.left["bn1"]


def test_values_that_are_first_read_inside_a_checkpoint():
    """In training the residual has another dtype, which the example does not show."""

    def block(net, current, residual):
        return net.lif1((current + residual).float())

    def body(net, x):
        residual = x.double() if net.training else x
        return checkpoint(block, net, net.bn1(net.conv1(x)), residual, use_reentrant=False)

    fused, plain = fused_and_plain(Net(lambda net, x: net.lif1(net.bn1(net.conv1(x)))))
    fused.body = plain.body = body
    assert rso.fusion_report(fused).fused == {"bn1": ("lif1",)}
    assert_same_network(fused, plain)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.filterwarnings("ignore:an image's outputs")
def test_a_norm_that_is_parametrized_afterwards_is_unfused_and_folded():
    fused, plain = fused_and_plain(Net())
    for model in (fused, plain):
        parametrize.register_parametrization(model.bn1, "weight", Doubled())
    kept = copy.deepcopy(fused)
    assert torch.equal(step(fused, images()), step(plain, images()))
    assert torch.equal(rso.reparameterize(fused, images())(images()), plain.eval()(images()))
    kind = type(kept.bn1)
    assert rso.unfuse(fused).bn1.__class__.__mro__[1] is nn.BatchNorm2d
    assert type(kept.bn1) is kind
    assert torch.equal(fused.eval()(images()), plain(images()))
    parametrize.remove_parametrizations(fused.bn1, "weight")
    assert type(fused.bn1) is nn.BatchNorm2d


# --- the module that it was -----------------------------------------------------------------------


def test_copies_states_and_pickles(tmp_path):
    fused, plain = fused_and_plain(Net())
    assert type(fused) is Net
    assert isinstance(fused.bn1, nn.BatchNorm2d)
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in plain.named_modules()]
    parameters = [id(p) for p in fused.parameters()]
    rso.fuse(fused, images())
    assert [id(p) for p in fused.parameters()] == parameters
    fused.load_state_dict(plain.state_dict())
    copied, pickled = copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))
    assert copied.bn1._neurons == (copied.lif1,)
    torch.save(fused, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copied, pickled, loaded):
        assert rso.fusion_report(other) == rso.fusion_report(fused)
        assert_same_network(other, copy.deepcopy(plain))
    buffer = io.BytesIO()
    torch.save(fused.state_dict(), buffer)
    buffer.seek(0)
    plain.load_state_dict(torch.load(buffer))


def test_an_optimizer_trains_both_alike():
    fused, plain = fused_and_plain(Net())
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (fused, plain)]
    for seed in range(4):
        outputs = [step(model, images(seed)) for model in (fused, plain)]
        assert torch.equal(*outputs)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_other_dtypes_and_modes(monkeypatch):
    fused, plain = fused_and_plain(Net())
    with torch.inference_mode():
        assert torch.equal(fused(images()), plain(images()))
    for cast in (torch.bfloat16, torch.float32):
        fused, plain = fused.to(cast), plain.to(cast)
        assert torch.equal(fused(images().to(cast)), plain(images().to(cast)))
    assert norms_that_run(fused, images(), monkeypatch) == 0
    with torch.autocast("cpu", torch.bfloat16):
        fused(images()).float().sum().backward()
    assert fused.bn1.weight.grad is not None


@pytest.mark.parametrize("own", [False, True], ids=["example", "example of the mode"])
def test_fusing_in_inference_mode(own):
    fused, plain = Net(), Net()
    with torch.inference_mode():
        rso.fuse(fused, images().clone() if own else images())
    assert rso.fusion_report(fused).fused == {"bn1": ("lif1",), "bn2": ("lif2",)}
    assert torch.equal(step(fused, images()), step(plain, images()))


def test_torch_compile_runs_the_op_in_one_graph():
    fused, plain = fused_and_plain(Net())
    targets: list[str] = []

    def backend(graph, example):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    assert_same_network(compiled, plain)
    assert targets.count("realspike.batch_norm_lif_fwd") == 2
    assert not any("batch_norm at" in target for target in targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("is_fused", [True, False])
def test_steps_that_inductor_captures_train_as_eager_ones(is_fused):
    fused, plain = fused_and_plain(Net())
    compiled, eager = (fused if is_fused else copy.deepcopy(plain)).cuda(), plain.cuda()
    captured = torch.compile(compiled, mode="reduce-overhead")
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (compiled, eager)]
    for seed in range(5):  # recorded in the second or third
        x = images(seed).cuda()
        outs = []
        for model, optimizer in zip((captured, eager), optimizers, strict=True):
            torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            out = model(x)
            out.square().mean().backward()
            optimizer.step()
            outs.append(out.detach().clone())
        assert (outs[0] != outs[1]).double().mean() < 0.01
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo looks at it
@pytest.mark.parametrize("part", ["lif2", "what is before"])
def test_currents_leave_a_compiled_part(part):
    class Parts(Net):
        def before(self, x):
            return self.bn2(self.conv2(x))

        def forward(self, x):
            x = self.lif1(self.bn1(self.conv1(x)))
            current = self.before(x)
            y = self.lif2(current + x)
            # Read beside the neurons, where the example does not see it.
            return y + current if self.training else y

    model = Parts()
    plain = copy.deepcopy(model)
    rso.fuse(model.eval(), images())
    assert set(rso.fusion_report(model).fused) == {"bn1", "bn2"}
    if part == "lif2":
        model.lif2.compile(backend="aot_eager")
    else:
        model.before = torch.compile(model.before, backend="aot_eager")
    for training in (True, False):
        assert_same_network(model, plain, training, steps=1)


def test_convert_sync_batchnorm_replaces_fused_norms():
    fused, _ = fused_and_plain(Net())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert type(synced.bn1) is nn.SyncBatchNorm
    assert rso.fusion_report(rso.fuse(synced, images())).fused == {
        "bn1": ("lif1",),
        "bn2": ("lif2",),
    }


@pytest.mark.filterwarnings("ignore:an image")
def test_folding_and_inspection_do_not_notice():
    fused, plain = fused_and_plain(nn.Sequential(Net(), nn.Flatten(), nn.Linear(C * S * S, 2)))
    fused, plain = fused.eval(), plain.eval()
    folded, expected = (rso.reparameterize(m, images()) for m in (fused, plain))
    assert str(folded) == str(expected)
    for p, q in zip(folded.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(p, q)
    report = rso.verify(fused, folded, [images()])
    assert report.agreement == 1
    assert str(rso.profile(fused, [images()])) == str(rso.profile(plain, [images()]))


@pytest.mark.filterwarnings("ignore:an image")
def test_a_network_with_norm_lif_folds():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(C, C, 3, padding=1) for _ in range(2))
            self.first = rso.NormLIF(nn.BatchNorm2d(C), lif())
            self.second = rso.NormLIF(nn.BatchNorm2d(C), lif())

        def forward(self, x):
            x = self.first(self.conv1(x))
            return self.second(self.conv2(x), x)

    model = Block()
    for seed in range(3):
        model(images(seed))
    model.eval()
    folded = rso.reparameterize(model, images())
    assert rso.verify(model, folded, [images()]).agreement == 1
    with pytest.warns(UserWarning, match="nothing is fused"):
        rso.fuse(model, images())
    assert rso.fusion_report(model).left == {}


def test_from_conv2d_reads_a_fused_norm():
    fused, plain = fused_and_plain(Net())
    made, expected = (
        rso.UnsharedSpikeConv.from_conv2d(m.conv2, m.lif1.amplitude, (S, S), m.bn2)
        for m in (fused.eval(), plain.eval())
    )
    assert torch.equal(made.weight, expected.weight)


def test_unfuse_and_the_example():
    fused, plain = fused_and_plain(Net())
    state = torch.get_rng_state()
    before = copy.deepcopy(fused.state_dict())
    rso.fuse(fused, images())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in fused.state_dict().items())
    assert fused.training
    rso.unfuse(fused)
    assert type(fused.bn1) is nn.BatchNorm2d
    assert vars(fused.bn1).keys() == vars(plain.bn1).keys()
    # One sample has one value per channel here: the example is run in eval mode instead.
    single = nn.Sequential(
        nn.Flatten(), nn.Linear(C * S * S, C), nn.BatchNorm1d(C), rso.RealSpikeLIF(1)
    )
    assert rso.fusion_report(rso.fuse(single, images()[:1])).fused == {"2": ("3",)}


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"model must be an nn.Module; got function"):
        rso.fuse(lambda x: x, images())
    with pytest.raises(TypeError, match=r"example_input must be a torch.Tensor; got list"):
        rso.fuse(Net(), [1])
    with pytest.raises(ValueError, match="cannot be run on example_input"):
        rso.fuse(Net(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"'0' .LazyBatchNorm2d. is lazy"):
        rso.fuse(nn.Sequential(nn.LazyBatchNorm2d(), rso.RealSpikeLIF(T)), images())
    with pytest.raises(ValueError, match="was not fused"):
        rso.fusion_report(Net())
    model = Net()
    model.lock = (n for n in ())
    with pytest.raises(ValueError, match="cannot be copied"):
        rso.fuse(model, images())
