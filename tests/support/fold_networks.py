"""Small networks of every family that folding must handle, and what every folded one is held to."""

import copy
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from helpers import generator, normal
from torch import Tensor, nn

import realspike_ops as rso
from realspike_ops import functional, reference

T = 2
GRANULARITIES = ("none", "layer", "channel", "element")


class Neurons:
    """Makes LIF layers of one kind: Neurons("element", emission="ternary")(C, H, W)."""

    def __init__(self, granularity: str, **form):
        self.granularity, self.form = granularity, form

    def __call__(self, *shape, pooled: bool = False) -> rso.RealSpikeLIF:
        """`pooled`: max pooling follows, which needs an amplitude that is constant over a map."""
        form = {"granularity": self.granularity} | self.form
        if pooled and form["granularity"] == "element":
            form["granularity"] = "channel"
        if len(shape) == 1:  # features have no channels
            form = {k: "element" if v == "channel" else v for k, v in form.items()}
        return rso.RealSpikeLIF(T, shape=shape, **form)


def conv_norm(Cin, Cout, kernel_size=3, **form):
    form = {"padding": kernel_size // 2, "bias": False} | form
    return nn.Sequential(nn.Conv2d(Cin, Cout, kernel_size, **form), nn.BatchNorm2d(Cout))


class Encoded(nn.Module):
    """Repeats the image over time, and averages the class scores."""

    def __init__(self):
        super().__init__()
        self.repeat, self.mean = rso.DirectEncoding(T), rso.MeanOverTime(T)


class Vgg(Encoded):
    def __init__(self, lif, size=8, max_pool=True):
        super().__init__()
        pool = nn.MaxPool2d if max_pool else nn.AvgPool2d
        self.encode = conv_norm(3, 6)
        self.features = nn.Sequential(
            *(lif(6, size, size), *conv_norm(6, 8), lif(8, size, size, pooled=max_pool), pool(2)),
            *(*conv_norm(8, 8, bias=True), lif(8, size // 2, size // 2, pooled=max_pool), pool(2)),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.5),
            *(nn.Linear(8 * (size // 4) ** 2, 12), nn.BatchNorm1d(12), lif(12)),
            nn.Linear(12, 5),
        )

    def forward(self, x):
        return self.mean(self.classifier(self.features(self.repeat(self.encode(x)))))


class Block(nn.Module):
    """A current, not a spike, is added: the shortcut ends in front of the neurons."""

    def __init__(self, lif, Cin, Cout, size, stride, average):
        super().__init__()
        out = -(-size // stride)
        self.first, self.lif1 = conv_norm(Cin, Cout, stride=stride), lif(Cout, out, out)
        self.second, self.lif2 = conv_norm(Cout, Cout), lif(Cout, out, out)
        self.shortcut = nn.Sequential()
        if stride > 1 and average:
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = nn.Sequential(pool, *conv_norm(Cin, Cout, 1))
        elif Cin != Cout:
            self.shortcut = conv_norm(Cin, Cout, 1, stride=stride)

    def forward(self, x):
        out = self.second(self.lif1(self.first(x)))
        out += self.shortcut(x)
        return self.lif2(out)


class ResNet20(Encoded):
    """The paper's: a stem of three convolutions, average pooling, pooled shortcuts."""

    def __init__(self, lif, size=8, blocks=(1, 1, 1)):
        super().__init__()
        C, half = 6, (size + 1) // 2
        self.encode = conv_norm(3, C)
        self.stem = nn.Sequential(
            *(lif(C, size, size), *conv_norm(C, C), lif(C, size, size)),
            *(*conv_norm(C, C), lif(C, size, size), nn.AvgPool2d(2, ceil_mode=True)),
        )
        layers, Cin = [], C
        for stage, count in enumerate(blocks):
            for n in range(count):
                stride = 2 if stage > 0 and n == 0 else 1
                layers.append(Block(lif, Cin, C + 2 * stage, half, stride, average=True))
                half, Cin = -(-half // stride), C + 2 * stage
        self.blocks = nn.Sequential(*layers)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(Cin, 5)

    def forward(self, x):
        x = self.pool(self.blocks(self.stem(self.repeat(self.encode(x)))))
        return self.mean(self.fc(torch.flatten(x, 1)))


class ResNet19(Encoded):
    def __init__(self, lif, size=8):
        super().__init__()
        self.encode, self.lif = conv_norm(3, 6), lif(6, size, size)
        self.blocks = nn.Sequential(
            Block(lif, 6, 6, size, 1, average=False),
            Block(lif, 6, 8, size, 2, average=False),
            Block(lif, 8, 10, size // 2, 2, average=False),
        )
        self.fc1 = nn.Linear(10 * (size // 4) ** 2, 8)
        self.lif_fc, self.fc2 = lif(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.blocks(self.lif(self.repeat(self.encode(x))))
        x = self.lif_fc(self.fc1(x.view(x.size(0), -1)))
        return self.fc2(x).view(T, -1, 5).mean(0)


class SewBlock(nn.Module):
    """Spikes are added to spikes: what follows reads several binary maps."""

    def __init__(self, lif, Cin, Cout, size, stride):
        super().__init__()
        out = -(-size // stride)
        self.first, self.lif1 = conv_norm(Cin, Cout, stride=stride), lif(Cout, out, out)
        self.second, self.lif2 = conv_norm(Cout, Cout), lif(Cout, out, out)
        self.down = None
        if stride > 1 or Cin != Cout:
            self.down = nn.Sequential(conv_norm(Cin, Cout, 1, stride=stride), lif(Cout, out, out))

    def forward(self, x):
        out = self.lif2(self.second(self.lif1(self.first(x))))
        return out + (x if self.down is None else self.down(x))


class SewResNet(Encoded):
    def __init__(self, lif, size=16, blocks=(2, 2)):
        super().__init__()
        self.encode = conv_norm(3, 4, 7, stride=2)
        size = size // 2
        self.lif, self.pool = lif(4, size, size, pooled=True), nn.MaxPool2d(3, 2, 1)
        size, Cin, layers = size // 2, 4, []
        for stage, count in enumerate(blocks):
            for n in range(count):
                stride = 2 if stage > 0 and n == 0 else 1
                layers.append(SewBlock(lif, Cin, 4 + 2 * stage, size, stride))
                size, Cin = -(-size // stride), 4 + 2 * stage
        self.blocks, self.average = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(Cin, 5)

    def forward(self, x):
        x = self.pool(self.lif(self.repeat(self.encode(x))))
        x = torch.flatten(self.average(self.blocks(x)), 1)
        return self.fc(self.mean(x))


class Branches(Encoded):
    """Branches leave one LIF: they meet in a sum (one kernel) and in a concatenation."""

    def __init__(self, lif, size=7):
        super().__init__()
        self.encode, self.lif = conv_norm(3, 6), lif(6, size, size)
        self.wide, self.narrow = conv_norm(6, 6), conv_norm(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.lif1 = lif(6, size, size)
        self.left = nn.Sequential(conv_norm(6, 4, 3, dilation=2, padding=2), lif(4, size, size))
        self.right = nn.Sequential(conv_norm(6, 5, 5, stride=1), lif(5, size, size))
        self.join = conv_norm(15, 6, 3, stride=2, groups=3)
        self.lif2 = lif(6, 4, 4)
        self.fc = nn.Linear(6 * 16 + 6, 5)

    def forward(self, x):
        x = self.lif(self.repeat(self.encode(x)))
        y = self.lif1(self.wide(x) + self.narrow(x) + self.norm(x))
        z = torch.cat([self.left(y), x, self.right(y)], dim=1)
        out = self.lif2(self.join(z))
        pooled = F.adaptive_avg_pool2d(y, 1).flatten(1)
        return self.mean(self.fc(torch.cat([out.flatten(1), pooled], 1)))


class Depthwise(Encoded):
    """Depthwise and pointwise convolutions with nothing, and with neurons, between them."""

    def __init__(self, lif, size=8):
        super().__init__()
        self.encode, self.lif = conv_norm(3, 6), lif(6, size, size)
        self.depthwise = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6))
        self.pointwise, self.lif1 = conv_norm(6, 8, 1), lif(8, size, size)
        self.deep, self.lif2 = conv_norm(8, 16, stride=2, groups=8), lif(16, size // 2, size // 2)
        self.point2 = conv_norm(16, 8, 1, groups=4)
        self.scale = nn.Parameter(1 + normal((8, 1, 1), 5).abs())
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.lif3 = lif(8, size // 4, size // 4)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.lif(self.repeat(self.encode(x)))
        x = self.lif1(self.pointwise(self.depthwise(x)))
        x = self.lif2(self.deep(x))
        x = self.lif3(self.pool(self.point2(x)) * self.scale + 0.125)
        return self.mean(self.fc(x.mean((2, 3)) / 0.5))


FAMILIES = {
    "vgg": lambda lif: Vgg(lif),
    "vgg-average": lambda lif: Vgg(lif, max_pool=False),
    "resnet20": lambda lif: ResNet20(lif),
    "resnet20-odd": lambda lif: ResNet20(lif, size=9),
    "resnet19": lambda lif: ResNet19(lif),
    "sew-resnet18": lambda lif: SewResNet(lif),
    "sew-resnet34": lambda lif: SewResNet(lif, blocks=(3, 2, 1)),
    "branches": lambda lif: Branches(lif),
    "depthwise": lambda lif: Depthwise(lif),
}
SIZES = {"resnet20-odd": 9, "sew-resnet18": 16, "sew-resnet34": 16, "branches": 7}


def images_for(family: str, count: int = 3, seed: int = 1) -> Tensor:
    size = SIZES.get(family, 8)
    return normal((count, 3, size, size), seed)


def as_if_trained(network: nn.Module, images: Tensor, seed: int) -> nn.Module:
    """Give batch norms the statistics of the images, and everything learnable a value of its own:
    neurons then fire at sensible rates, and nothing is trivial."""
    g = generator(seed)

    def uniform(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=g).to(like.dtype)

    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, rso.RealSpikeLIF) and module.amplitude is not None:
                a = module.amplitude
                sign = torch.where(uniform(a, 0, 1) < 0.2, -1.0, 1.0)
                a.copy_(sign * uniform(a, 0.5, 1.5))
            for name in ("decay_logit", "v_threshold"):
                parameter = module._parameters.get(name)
                if parameter is not None:
                    parameter.add_(uniform(parameter, -0.1, 0.1))
        for norm in norms:
            norm.weight.copy_(uniform(norm.weight, 0.6, 1.4))
            norm.bias.copy_(uniform(norm.bias, -0.2, 0.4))
            norm.momentum = 1.0
        network.train()(images)
        for norm in norms:
            norm.momentum = 0.1
            norm.running_mean.add_(uniform(norm.running_mean, -0.1, 0.1))
            norm.running_var.mul_(uniform(norm.running_var, 0.8, 1.2))
    return network.eval()


def make(family: str, lif: Neurons, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return as_if_trained(FAMILIES[family](lif), images_for(family, 8), seed)


@contextmanager
def reference_ops():
    """Let every layer compute with `realspike_ops.reference`, which runs in float64."""

    def unshared_spike_conv(
        spikes,
        weight,
        bias=None,
        *,
        amplitude=None,
        scale=None,
        check_binary=None,
        algorithm="gather",
        **geometry,
    ):
        assert amplitude is None
        assert scale is None
        return reference.unshared_spike_conv(spikes, weight, bias, **geometry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "lif", reference.lif)
        patch.setattr(functional, "unshared_spike_conv", unshared_spike_conv)
        yield


def assert_equal_in_float64(network: nn.Module, x: Tensor) -> rso.FoldedNetwork:
    """The folded network computes the same numbers: 1e-10 in float64, no flipped spike."""
    exact, x = copy.deepcopy(network).double(), x.double()
    folded = rso.reparameterize(exact, x)
    with reference_ops():
        report = rso.verify(exact, folded, x)
    assert report.flipped_spikes == 0, report
    assert report.max_logit_error < 1e-10, report
    assert all(layer.max_current_error < 1e-10 for layer in report.layers), report
    return folded


def assert_rounding_alone(network: nn.Module, x: Tensor, **storage) -> rso.VerificationReport:
    """In float32, every difference before a flipped spike stays below the bound on rounding."""
    folded = rso.reparameterize(network, x, **storage)
    report = rso.verify(network, folded, x, bounds=True)
    assert report.within_bounds, report
    rso.assert_multiplication_free(folded, x)
    return report


def synapses_of(folded) -> list[nn.Module]:
    kinds = (
        *(rso.SpikeConv2d, rso.UnsharedSpikeConv, rso.SpikeLinear),
        *(rso.PiecewiseSpikeConv, rso.OneToOneSynapses),
    )
    return [m for m in folded.modules() if isinstance(m, kinds)]


class Between(nn.Module):
    """A LIF layer, then `between`, then another LIF layer or whatever `between` ends with."""

    def __init__(self, between, granularity="channel", size=8, layers=(), **form):
        super().__init__()
        self.lif = rso.RealSpikeLIF(T, granularity, (4, size, size), **form)
        if self.lif.amplitude is not None:
            self.lif.amplitude.data = 0.5 + normal(self.lif.amplitude.shape, 1).abs()
        self.layers = nn.ModuleDict(layers)
        self.end = rso.RealSpikeLIF(T)
        self.between = between

    def forward(self, x):
        return self.between(self, self.lif(x))


def fold_between(between, size=8, **options):
    torch.manual_seed(0)
    network = Between(between, size=size, **options).eval()
    x = normal((T * 3, 4, size, size), 2)
    assert_equal_in_float64(network, x)
    assert_rounding_alone(network, x)
    folded = rso.reparameterize(network, x)
    with torch.no_grad():  # bits between the layers
        packed = folded(x)
    assert torch.equal(folded(x).detach(), packed)
    return network, folded, x
