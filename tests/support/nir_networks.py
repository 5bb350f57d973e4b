"""Networks with weights on a grid, whose potentials meet the threshold exactly, again and again."""

import torch
from helpers import generator
from torch import Tensor, nn

import realspike_ops as rso


def on_a_grid(network: nn.Module, seed: int = 0, step: float = 0.125) -> nn.Module:
    """Give every weight a multiple of `step`: few enough that neurons fire now and then."""
    g = generator(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("amplitude"):
                drawn = torch.randint(0, 2, parameter.shape, generator=g)
                parameter.copy_(0.5 + drawn)  # 0.5 or 1.5
            else:
                drawn = torch.randint(-3, 5, parameter.shape, generator=g)
                kept = torch.rand(parameter.shape, generator=g) < 0.5
                parameter.copy_(drawn * kept * step)
    return network.eval()


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(-4, 5, shape, generator=generator(seed)) / 4


class Sequence(nn.Sequential):
    """Layers between a repeated image and a sum over time."""

    def __init__(self, T: int, *layers: nn.Module):
        super().__init__(*layers)
        self.repeat, self.total = rso.DirectEncoding(T), rso.SumOverTime(T)

    def forward(self, x):
        layers = [m for m in self if m is not self.repeat and m is not self.total]
        x = self.repeat(layers[0](x))
        for layer in layers[1:]:
            x = layer(x)
        return self.total(x)


class Residual(nn.Module):
    """Sums of two and of three currents, one of them of the image."""

    def __init__(self, T: int, **form):
        super().__init__()

        def lif(*shape):
            return rso.RealSpikeLIF(T, shape=shape, **form)

        self.repeat, self.total = rso.DirectEncoding(T), rso.SumOverTime(T)
        self.encode, self.lif = nn.Conv2d(2, 4, 3, padding=1), lif(4, 6, 6)
        self.first, self.lif1 = nn.Conv2d(4, 4, 3, padding=1), lif(4, 6, 6)
        self.second, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), lif(4, 6, 6)
        self.down, self.short = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 1, 2)
        self.lif3 = lif(6, 3, 3)
        self.pool, self.fc = nn.AvgPool2d(2, 1), nn.Linear(24, 5)

    def forward(self, x):
        image = self.repeat(self.encode(x))
        x = self.lif(image)
        x = self.lif2(self.second(self.lif1(self.first(x))) + x + image)
        x = self.lif3(self.down(x) + self.short(x))
        return self.total(self.fc(self.pool(x).flatten(1)))


class Lines(nn.Module):
    """Maps [C, L]: a residual sum, a strided kernel and an average."""

    def __init__(self, T: int, **form):
        super().__init__()

        def lif(*shape):
            return rso.RealSpikeLIF(T, shape=shape, **form)

        self.repeat, self.total = rso.DirectEncoding(T), rso.SumOverTime(T)
        self.encode, self.lif = nn.Conv1d(2, 4, 5, padding=2), lif(4, 12)
        self.first, self.lif1 = nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2), lif(4, 12)
        self.second, self.lif2 = nn.Conv1d(4, 6, 4, stride=2, padding=1), lif(6, 6)
        self.pool, self.fc = nn.AvgPool1d(2), nn.Linear(18, 5)

    def forward(self, x):
        x = self.lif(self.repeat(self.encode(x)))
        x = self.lif1(self.first(x) + x)
        return self.total(self.fc(self.pool(self.lif2(self.second(x))).flatten(1)))


def network(name: str, T: int, **form) -> tuple[nn.Module, Tensor]:
    """Return a network on a grid and three images for it."""

    def lif(*shape):
        return rso.RealSpikeLIF(T, shape=shape, **form)

    def chain(*layers):
        return Sequence(T, *layers)

    if name == "residual":
        return on_a_grid(Residual(T, **form)), image(3, 2, 6, 6)
    if name == "lines":
        return on_a_grid(Lines(T, **form)), image(3, 2, 12)
    if name == "gray":  # images [H, W]
        layers = [nn.Sequential(nn.Flatten(), nn.Linear(36, 20)), lif(20)]
        return on_a_grid(chain(*layers, nn.Linear(20, 5))), image(3, 6, 6)
    if name == "features":
        layers = (nn.Linear(7, 20), lif(20), nn.Linear(20, 20), lif(20), nn.Linear(20, 3))
        return on_a_grid(chain(*layers)), image(3, 7)
    if name == "vgg":
        layers = [nn.Conv2d(2, 4, 3, padding=1), lif(4, 6, 6)]
        layers += [nn.Conv2d(4, 4, 3, padding=1), lif(4, 6, 6), nn.AvgPool2d(2)]
        layers += [nn.Conv2d(4, 6, 3, padding=1), lif(6, 3, 3), nn.Flatten()]
        layers += [nn.Linear(54, 8), lif(8), nn.Linear(8, 5)]
        return on_a_grid(chain(*layers)), image(3, 2, 6, 6)
    # On a map of 5 x 6: (kernel, options of nn.Conv2d, output size).
    convs = {
        "depthwise": (3, {"padding": 1, "groups": 4}, (5, 6)),
        "grouped": (3, {"padding": 1, "groups": 2, "stride": 2}, (3, 3)),
        "wide": ((1, 3), {"padding": (0, 1)}, (5, 6)),
        "tall-dilated": ((5, 3), {"padding": (2, 2), "dilation": (1, 2)}, (5, 6)),
        "even": ((2, 4), {"padding": (0, 1)}, (4, 5)),
        "odd-and-even": ((3, 2), {"padding": (1, 0)}, (5, 5)),
        "strided-uneven": ((3, 2), {"padding": (1, 0), "stride": 2}, (3, 3)),
        "same": ((2, 2), {"padding": "same"}, (5, 6)),
        "unpadded": (3, {}, (3, 4)),
    }
    kernel, options, (H, W) = convs[name]
    layers = [nn.Conv2d(2, 4, 3, padding=1), lif(4, 5, 6)]
    layers += [nn.Conv2d(4, 4, kernel, **options), lif(4, H, W)]
    layers += [nn.Flatten(), nn.Linear(4 * H * W, 5)]
    return on_a_grid(chain(*layers)), image(3, 2, 5, 6)


NAMES = (
    *("vgg", "residual", "features", "lines", "gray", "depthwise", "grouped", "wide"),
    *("tall-dilated", "even", "odd-and-even", "strided-uneven", "same", "unpadded"),
)
