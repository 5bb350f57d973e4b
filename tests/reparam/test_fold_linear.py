"""Whatever is linear on every sample folds, however it is written; what is not is refused."""

import pytest
import torch
import torch.nn.functional as F
from fold_networks import (
    T,
    as_if_trained,
    assert_equal_in_float64,
    assert_rounding_alone,
    fold_between,
    synapses_of,
)
from helpers import normal
from torch import nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {"features": (256, 5), "channels": (4, 6), "time": (T, 1, 1), "line": (8, 8), "thin": (T,)}
W = {name: normal(shape, n) for n, (name, shape) in enumerate(SHAPES.items())}


def layers():
    return {
        **{"c": nn.Conv2d(4, 4, 3, padding=1), "two": nn.Conv2d(2, 4, 3, padding=1)},
        **{"grouped": nn.Conv2d(4, 4, 1, groups=2), "wide": nn.Conv2d(8, 4, 1)},
        **{"fc": nn.Linear(256, 6), "sixteen": nn.Linear(16, 3), "pixels": nn.Linear(8, 3)},
        **{"tokens": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4), "line": nn.Conv1d(4, 4, 3)},
        **{"up": nn.Upsample(scale_factor=2), "flatten2": nn.Flatten(2), "fc4": nn.Linear(4, 5)},
        **{"vote": nn.AvgPool1d(2), "max": nn.MaxPool2d(2), "after": rso.RealSpikeLIF(T)},
    }


def shuffled(x, groups=2):
    _, C, H, W = x.shape
    return x.view(-1, groups, C // groups, H, W).transpose(1, 2).reshape(-1, C, H, W)


def option_a(x, c=2):
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, c, c))


MOVES = {
    "chunk": lambda m, o: m.end(m["two"](o.chunk(2, 1)[1])),
    "split": lambda m, o: m.end(m["two"](torch.split(o, [1, 2, 1], 1)[1])),
    "chunk-of-current": lambda m, o: m.end(m["two"](m["c"](o).chunk(2, 1)[0])),
    "both-chunks": lambda m, o: m.end(o.chunk(2, 1)[0] + m["c"](o).chunk(2, dim=1)[1]),
    "slice": lambda m, o: m.end(m["c"](o[:, :, 1:7, 2:])),
    "strided-slice": lambda m, o: m.end(m["c"](o)[:, :, ::2, 1::3]),
    "option-a": lambda m, o: m.end(option_a(o)),
    "option-a-of-current": lambda m, o: m.end(option_a(m["c"](o))),
    "pad-channels": lambda m, o: m.end(m["wide"](F.pad(o, (0, 0, 0, 0, 1, 3)))),
    "pad-reflected": lambda m, o: m.end(m["c"](F.pad(o, (1, 1, 1, 1), "reflect"))),
    "corner": lambda m, o: m["fc4"](F.adaptive_avg_pool2d(m["c"](o), 1)[:, :, 0, 0]),
    "corner-of-map": lambda m, o: m["fc4"](o[:, :, 3, -1]),
    "shuffle": lambda m, o: m.end(m["grouped"](shuffled(o))),
    "shuffle-of-current": lambda m, o: m.end(m["c"](shuffled(m["grouped"](o)))),
    "shuffle-to-neurons": lambda m, o: m.end(shuffled(m["grouped"](o))),
    "permute": lambda m, o: m.end(m["c"](o.permute(0, 1, 3, 2))),
    "permute-of-current": lambda m, o: m.end(m["c"](o).permute(0, 1, 3, 2)),
    "permute-between": lambda m, o: m.end(m["c"](m["c"](o)[:, :, ::2, ::2].mT)),
    "channels-last": lambda m, o: m.end(m["tokens"](o.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "tokens": lambda m, o: m.end(m["tokens"](o.flatten(2).transpose(1, 2)).transpose(1, 2)),
    "flip": lambda m, o: m.end(m["c"](o.flip(3))),
    "roll": lambda m, o: m.end(m["c"](torch.roll(o, (1, -2), (2, 3)))),
    "flip-of-current": lambda m, o: m.end(m["c"](o).flip((1, 2))),
    "pixel-shuffle": lambda m, o: m.end(F.pixel_shuffle(m["c"](o), 2)),
    "pixel-shuffle-of-spikes": lambda m, o: m.end(F.pixel_unshuffle(o, 2)),
    "stack": lambda m, o: m.end(m["wide"](torch.stack((o, m["c"](o)), 2).flatten(1, 2))),
    "cat-in-space": lambda m, o: m.end(m["c"](torch.cat((o, m["c"](o)), 3))),
    "repeat": lambda m, o: m.end(m["wide"](o.repeat(1, 2, 1, 1))),
    "interleave": lambda m, o: m.end(m["c"](o.repeat_interleave(2, 3))),
    "expand": lambda m, o: m.end(m["c"](o.mean((2, 3), True).expand(-1, -1, 3, 3))),
    "reshape": lambda m, o: m.end(m["c"](o).reshape(-1, 16, 4, 4)),
    "features-to-neurons": lambda m, o: m.end(m["fc"](o.flatten(1)).view(-1, 2, 3)),
    "part-of-features": lambda m, o: m["sixteen"](o.flatten(1)[:, 8:24]),
    "maxed": lambda m, o: m.end(m["c"](m["max"](o.flip(2)))),
    "lines": lambda m, o: m.end(m["line"](m["norm"](o.flatten(2)))),
    "upsampled": lambda m, o: m.end(m["c"](m["up"](o))),
    "upsampled-current": lambda m, o: m.end(m["up"](m["c"](o))),
    "neurons-of-lines": lambda m, o: m.end(m["line"](m["after"](m["c"](o).flatten(2)))),
    "scaled": lambda m, o: m.end(o.permute(0, 2, 3, 1) * W["channels"][:, 0] + 0.1),
    "tensor-split": lambda m, o: m.end(torch.tensor_split(m["c"](o), 3, 1)[0]),
}  # fmt: skip

SUMS = {
    "mean-flattened": lambda m, o: m["fc4"](o.flatten(2).mean(-1)),
    "mean-of-module": lambda m, o: m["fc4"](m["flatten2"](o).sum(2)),
    "mean-twice": lambda m, o: m["fc4"](o.mean(3).mean(2)),
    "mean-rows": lambda m, o: m["line"](m["c"](o).mean(2)),
    "mean-all": lambda m, o: m["fc"](o.flatten(1)).mean(1, keepdim=True),
    "mean-channels": lambda m, o: m.end(m["c"](o).mean(1, keepdim=True) + 0.5),
    "vote": lambda m, o: m["vote"](m["fc"](o.flatten(1))),
    "vote-unsqueezed": lambda m, o: F.avg_pool1d(m["fc"](o.flatten(1)).unsqueeze(1), 3).squeeze(1),
    "vote-view": lambda m, o: m["fc"](o.flatten(1)).view(T, -1, 3, 2).mean(-1).mean(0),
    "vote-unflatten": lambda m, o: m["fc"](o.flatten(1)).unflatten(1, (3, 2)).sum(-1),
    "vote-and-time": lambda m, o: m["fc"](o.flatten(1)).view(T, -1, 3, 2).mean((0, 3)),
    "last": lambda m, o: m["fc"](o.flatten(1)).view(T, -1, 6)[-1],
    "last-of-spikes": lambda m, o: m["fc"](o.view(T, -1, 256)[-1]),
    "stacked": lambda m, o: torch.stack(m["fc"](o.flatten(1)).chunk(T)).mean(0),
    "loop": lambda m, o: sum(m["fc"](o.flatten(1)).view(T, -1, 6)[t] for t in range(T)) / T,
    "loop-of-layers": lambda m, o: m["fc"](o.flatten(1)[: o.shape[0] // T])
    + m["fc"](o.view(T, -1, 256)[1]),
    "weighted": lambda m, o: (m["fc"](o.flatten(1)).view(T, -1, 6) * W["time"]).sum(0),
    "weighted-einsum": lambda m, o: torch.einsum(
        "t,tbf->bf", W["thin"].to(o.dtype), m["fc"](o.flatten(1)).view(T, -1, 6)
    ),
    "batch-major": lambda m, o: m["fc"](o.flatten(1)).view(T, -1, 6).transpose(0, 1).mean(1),
    "linear-of-split": lambda m, o: m["fc"](o.view(T, -1, 256)).mean(0),
    "squeeze": lambda m, o: m["fc4"](F.adaptive_avg_pool2d(o, 1).squeeze(-1).squeeze(-1)),
    "at": lambda m, o: o.mean((2, 3)) @ W["channels"].to(o.dtype),
    "at-features": lambda m, o: torch.mm(o.flatten(1), W["features"].to(o.dtype)),
    "matmul-left": lambda m, o: m.end(torch.matmul(W["line"].to(o.dtype), m["c"](o))),
    "matmul-right": lambda m, o: torch.matmul(
        m["fc"](o.flatten(1)).view(-1, 2, 3), W["line"][:3, :2].to(o.dtype)
    ).flatten(1),
    "einsum": lambda m, o: torch.einsum("nchw,cf->nf", o, W["channels"].to(o.dtype)),
    "linear-of-lines": lambda m, o: m.end(m["pixels"](o)),
}  # fmt: skip

LARGER = {
    "bilinear": lambda m, o: m.end(F.interpolate(m["c"](o), scale_factor=2, mode="bilinear")),
    "aligned": lambda m, o: m.end(
        F.interpolate(o, size=(12, 10), mode="bilinear", align_corners=True)
    ),
    "smaller": lambda m, o: m.end(m["c"](F.interpolate(o, scale_factor=0.5, mode="bilinear"))),
    "nearest": lambda m, o: m.end(m["c"](F.interpolate(m["c"](o), size=(12, 11)))),
    "transposed": lambda m, o: m.end(m["t"](o)),
    "transposed-odd": lambda m, o: m.end(m["t2"](o + 0.5)),
    "transposed-function": lambda m, o: m.end(
        F.conv_transpose2d(o, m["t"].weight, None, 3, dilation=2)
    ),
}
TRANSPOSED = {
    "t": nn.ConvTranspose2d(4, 3, 3, 2, 1, 1),
    "t2": nn.ConvTranspose2d(4, 6, (2, 5), (3, 2), (0, 1), groups=2, dilation=(1, 2)),
}


def fold(body, granularity="channel", **options):
    torch.manual_seed(0)
    made = layers() | dict(TRANSPOSED)

    class Named:
        def __init__(self, network):
            self.end = network.end
            self.network = network

        def __getitem__(self, name):
            return self.network.layers[name]

    return fold_between(
        lambda m, o: body(Named(m), o), granularity=granularity, layers=made, **options
    )


@pytest.mark.parametrize("name", [*MOVES, *SUMS, *LARGER])
def test_linear(name):
    body = (MOVES | SUMS | LARGER)[name]
    fold(body)


@pytest.mark.parametrize("emission", ["binary", "ternary"])
@pytest.mark.parametrize(
    "name",
    ["tokens", "neurons-of-lines", "lines", "shuffle", "chunk", "bilinear", "transposed", "last"],
)
def test_every_amplitude_storage_and_file(name, emission, tmp_path):
    body = (MOVES | SUMS | LARGER)[name]
    network, folded, x = fold(body, granularity="element", emission=emission)
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    loaded = rso.load_folded(tmp_path / "folded.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x), folded(x))
    assert rso.profile(folded, x).samples == 3
    rounded = rso.reparameterize(network, x, weight_dtype=torch.int8)
    assert rso.verify(network, rounded, x, bounds=True).within_bounds
    rso.assert_multiplication_free(rounded, x)


MAPS_OF_SPIKES = {
    "every other pixel": (lambda x: x[:, :, ::2, ::2], 4, 0),
    "with channels of zeros around": (option_a, 8, 0),
    "with a channel of zeros before": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)), 5, 0),
    "with a channel of zeros behind": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 1)), 5, 0),
    "in another order": (lambda x: x[:, [1, 0, 2, 3]], 4, 1),
    "some of them": (lambda x: x[:, 1:3], 2, 1),
}


@pytest.mark.parametrize("name", MAPS_OF_SPIKES)
def test_spikes_are_moved_only_where_no_window_reads_them(name):
    """All channels in their order are read where they are, by weights of 4 input channels."""
    take, channels, moved = MAPS_OF_SPIKES[name]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = rso.RealSpikeLIF(T, "channel", (4, 6, 6))
            self.conv = nn.Conv2d(channels, 2, 1)
            self.second, self.mean = rso.RealSpikeLIF(T), rso.MeanOverTime(T)

        def forward(self, x):
            return self.mean(self.second(self.conv(take(self.lif(x)))))

    x = torch.rand(2 * T, 4, 6, 6)
    network = Network().eval()
    folded = rso.reparameterize(network, x)
    kinds = [type(module).__name__ for module in folded.modules()]
    assert kinds.count("Rearrange") == moved
    (weight,) = (
        m.weight for m in folded.modules() if getattr(m, "weight", torch.ones(1)).dim() == 7
    )
    assert weight.shape[-2:] == ((channels if moved else 4), 2)
    assert torch.allclose(folded(x), network(x))


CURRENTS = {
    "features": (lambda x: x.flatten(1)[:, 36:108], 0),
    "lines": (lambda x: x.flatten(2)[:, :, None].mean(3)[..., :1], 0),
    "maps": (lambda x: x[:, :, ::2, 1:], 0),
    "one flipped": (lambda x: x.flatten(1).flip(1), 1),
}


@pytest.mark.parametrize("name", CURRENTS)
def test_currents_are_moved_only_where_no_synapses_compute_them(name):
    take, moved = CURRENTS[name]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.conv = rso.RealSpikeLIF(T, "channel", (4, 6, 6)), nn.Conv2d(4, 3, 1)
            self.second, self.mean = rso.RealSpikeLIF(T), rso.MeanOverTime(T)

        def forward(self, x):
            return self.mean(self.second(take(self.conv(self.lif(x)))))

    x = torch.rand(2 * T, 4, 6, 6)
    network = Network().eval()
    folded = rso.reparameterize(network, x)
    kinds = [type(module).__name__ for module in folded.modules()]
    assert kinds.count("Rearrange") == moved
    assert torch.allclose(folded(x), network(x))


class MembraneShortcut(nn.Module):
    """x + conv(lif(x)): the current goes on through all blocks, from the image to the scores."""

    def __init__(self, blocks):
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T))
        self.lifs = nn.ModuleList(rso.RealSpikeLIF(T, "channel", (4, 5, 5)) for _ in range(blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)) for _ in range(blocks)
        )
        self.fc, self.mean = nn.Linear(4, 3), rso.MeanOverTime(T)

    def forward(self, x):
        x = self.encode(x)
        for lif, block in zip(self.lifs, self.blocks, strict=True):
            x = x + block(lif(x))
        return self.mean(self.fc(x.mean((2, 3))))


def test_synapses_of_a_shortcut_through_all_blocks_grow_with_the_depth():
    x = normal((4, 3, 5, 5), 1)
    weights = []
    for blocks in (2, 5):
        torch.manual_seed(0)
        network = as_if_trained(MembraneShortcut(blocks), x, 0)
        assert_equal_in_float64(network, x)
        assert_rounding_alone(network, x)
        assert_rounding_alone(network, x, weight_dtype=torch.int8)
        folded = rso.reparameterize(network, x)
        weights.append(sum(layer.weight.numel() for layer in synapses_of(folded)))
    # Per block one kernel in front of the next neurons, and one to the scores: an average of 5 x 5
    # behind a padded 3 x 3 convolution reads 7 x 7. Were blocks there once for each one behind
    # them, 5 blocks would have 10 of the former.
    kernel = 4 * 4 * 3 * 3
    assert weights[1] - weights[0] == 3 * (kernel + 4 * 3 * 7 * 7)
    assert sum(layer.weight.numel() == kernel for layer in synapses_of(folded)) == 4
