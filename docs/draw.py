"""Draw README's figures into docs/figures, each for light and for dark pages.

    python -m docs.draw [folding] [speed] [accuracy]

`folding` trains a small network on the digits, folds it, and shows what both compute. `speed` reads
bench/results, `accuracy` docs/results. Texts stay texts, so that they can be read and searched.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from realspike.data import digits
from realspike.networks import NetworkConfig, build
from torch import Tensor

import realspike_ops as rso
from bench import performance

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
RESULTS = ROOT / "docs" / "results"
EPOCHS = 15
POINTS = 72  # of an inch: a unit of a figure is a point, a pixel of the file


@dataclass(frozen=True)
class Theme:
    ink: str
    faint: str  # text that stands back, lines
    cell: str  # where nothing is
    good: str
    bad: str
    weak: str  # the smallest amplitude
    strong: str  # the largest


# Okabe's and Ito's colours, which colour-blind readers can tell apart, and shades of them.
THEMES = {
    "light": Theme("#24292f", "#656d76", "#e6eaee", "#0072B2", "#D55E00", "#f5d193", "#8a3c00"),
    "dark": Theme("#e6edf3", "#9198a1", "#2a313a", "#56B4E9", "#E69F00", "#6b3f0c", "#ffd28a"),
}


def new_axes(width: float, height: float):
    """A figure of that many points, and axes that fill it, whose y points down."""
    figure = Figure(figsize=(width / POINTS, height / POINTS))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def squares(axes, colors: np.ndarray, x: float, y: float, step: float, gap: float) -> None:
    """Draw [H, W, 3] colours as squares from (x, y); what is NaN is left out."""
    for row, column in np.ndindex(colors.shape[:2]):
        color = colors[row, column]
        if not np.isnan(color).any():
            corner = (x + column * step, y + row * step)
            side = step - gap
            axes.add_patch(Rectangle(corner, side, side, color=color, linewidth=0))


def trained_network(epochs: int):
    """A network with an amplitude per element, trained on the digits; and the digits."""
    parts = digits.split(*digits.read_pixels())
    mean, std = parts.train.samples.mean().item(), parts.train.samples.std().item()
    data = SimpleNamespace(
        train_images=(parts.train.samples - mean) / std,  # [N, 1, 8, 8]
        train_labels=parts.train.labels,
        test_images=(parts.test.samples - mean) / std,  # [M, 1, 8, 8]
        test_labels=parts.test.labels,
    )
    network = build(NetworkConfig("element", timesteps=4, width=16), seed=0)
    amplitudes = [p for name, p in network.named_parameters() if name.endswith("amplitude")]
    others = [p for name, p in network.named_parameters() if not name.endswith("amplitude")]
    groups = [{"params": others}, {"params": amplitudes, "lr": 3e-2, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train_labels), generator=generator).split(64):
            loss = F.cross_entropy(network(data.train_images[rows]), data.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval(), data


@dataclass(frozen=True)
class Folding:
    """What one channel of spikes adds to one channel of currents, before folding and after."""

    amplitude: Tensor  # [H, W]
    spikes: Tensor  # [H, W], 0 or 1
    shared: Tensor  # [KH, KW], with the scale of the batch norm
    unshared: Tensor  # [H, W, KH, KW], NaN beyond the map
    current_trained: Tensor  # [H, W]
    current_folded: Tensor  # [H, W]
    report: rso.VerificationReport


@torch.no_grad()
def fold(network, data) -> Folding:
    folded = rso.reparameterize(network, data.test_images[:1])
    report = rso.verify(network, folded, data.test_images)
    image = data.test_images[data.test_labels == 3][:1]
    current = network.bn1(network.conv1(image))  # [1, C, H, W]
    amplitude = network.lif1.amplitude.detach()  # [C, H, W]
    spikes = rso.lif(current.expand(4, 1, *current.shape[1:]))[
        0, 0
    ]  # [C, H, W], the first timestep
    conv, norm = network.conv2, network.bn2
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # [Cout]
    kernels = conv.weight * scale[:, None, None, None]  # [Cout, Cin, KH, KW]
    # The channel whose amplitudes show most, and the output that reads it most.
    channel = (spikes * (amplitude - 1).abs()).sum((1, 2)).argmax()
    output = kernels[:, channel].abs().amax((1, 2)).argmax()
    layer = next(m for m in folded.modules() if isinstance(m, rso.UnsharedSpikeConv))
    weight = layer.weight[:, :, :, :, :, channel, None, output, None]  # [H, W, 1, KH, KW, 1, 1]
    one = spikes[None, channel, None]  # [1, 1, H, W]
    H, W = one.shape[2:]
    inside = F.unfold(torch.ones(1, 1, H, W), 3, padding=1).view(3, 3, H, W).permute(2, 3, 0, 1) > 0
    return Folding(
        amplitude[channel],
        spikes[channel],
        kernels[output, channel],
        weight[:, :, 0, :, :, 0, 0].masked_fill(~inside, torch.nan),
        F.conv2d(amplitude[channel] * one, kernels[None, output, None, channel], padding=1)[0, 0],
        rso.unshared_spike_conv(one, weight.contiguous(), padding=1)[0, 0],
        report,
    )


def shades(values: np.ndarray, colors: Sequence[str], low: float, high: float) -> np.ndarray:
    """[...] numbers as [..., 3] colours along ``colors``; NaN stays."""
    shares = (np.clip(values, low, high) - low) / (high - low)
    rgb = LinearSegmentedColormap.from_list("shades", colors)(np.nan_to_num(shares))[..., :3]
    rgb[np.isnan(values)] = np.nan
    return rgb


def draw_folding(shown: Folding, theme: Theme) -> Figure:
    figure, axes = new_axes(960, 420)
    text = {"fontsize": 13, "color": theme.ink, "va": "center"}
    small = text | {"fontsize": 11.5, "color": theme.faint}
    amplitude, spikes = shown.amplitude.numpy(), shown.spikes.numpy()
    weights = [theme.good, theme.cell, theme.bad]
    largest = float(np.nanmax(np.abs(shown.unshared.numpy())))
    strongest = max(shown.current_trained.abs().max().item(), 1e-6)
    low, high = amplitude[spikes > 0].min(), amplitude[spikes > 0].max()
    ramp = [theme.weak, theme.strong]
    real = shades(amplitude, ramp, low, high)
    real[spikes == 0] = to_rgb(theme.cell)
    binary = shades(spikes, [theme.cell, theme.ink], 0, 1)

    def kernel_colors(kernel):
        return shades(kernel, weights, -largest, largest)

    step = 16  # of a map; its squares are smaller by 2
    columns = {"spikes": 170, "kernels": 372, "current": 674}
    middles = {"trained": 112, "folded": 292}
    for column, title in zip(
        columns, ("spikes of one channel", "kernels that read it", "current"), strict=True
    ):
        width = 216 if column == "kernels" else 8 * step
        axes.text(columns[column] + width / 2, 20, title, ha="center", **small)
    for row, said in (
        ("trained", ("Trained", "real-valued spikes,", "one shared kernel")),
        ("folded", ("Folded", "binary spikes,", "a kernel for", "every position")),
    ):
        top = middles[row] - 10 * (len(said) - 1)
        for line, words in enumerate(said):
            style = text | {"weight": "bold", "fontsize": 15} if line == 0 else text
            axes.text(18, top + 20 * line, words, **style)
    for row, colors, current in (
        ("trained", real, shown.current_trained),
        ("folded", binary, shown.current_folded),
    ):
        y = middles[row] - 4 * step
        squares(axes, colors, columns["spikes"], y, step, 2)
        current = shades(current.numpy(), weights, -strongest, strongest)
        squares(axes, current, columns["current"], y, step, 2)
        sign = {"ha": "center", **text, "fontsize": 20, "color": theme.faint}
        axes.text(columns["kernels"] - 38, middles[row], "\u2192", **sign)
        axes.text(columns["current"] - 42, middles[row], "\u2192", **sign)

    x, y = columns["kernels"] + 108, middles["trained"]
    squares(axes, kernel_colors(shown.shared.numpy()), x - 36, y - 36, 24, 2)
    mosaic = shown.unshared.numpy()  # [8, 8, 3, 3]
    for h, w in np.ndindex(8, 8):
        corner = (columns["kernels"] + 27 * w, middles["folded"] - 108 + 27 * h)
        squares(axes, kernel_colors(mosaic[h, w]), *corner, 8, 0.6)

    # What the colours of the real-valued spikes mean.
    x, y = columns["spikes"] + 36, middles["trained"] + 4 * step + 8
    squares(axes, shades(np.linspace(low, high, 28)[None], ramp, low, high), x, y, 2, 0)
    axes.text(x - 5, y + 1, f"a = {low:.2f}", ha="right", **small | {"fontsize": 10})
    axes.text(x + 61, y + 1, f"{high:.2f}", ha="left", **small | {"fontsize": 10})

    x = columns["current"] + 8 * step + 12
    axes.plot([x, x + 10, x + 10, x], [112, 112, 292, 292], color=theme.faint, linewidth=1.2)
    report = shown.report
    steps = sum(layer.neuron_timesteps for layer in report.layers)
    error = max(layer.max_current_error for layer in report.layers)
    for line, words in enumerate(
        (
            "the same, up to",
            f"{error:.0e} of rounding;",
            f"{report.flipped_spikes} of {steps / 1e6:.1f} million",
            "spikes differ",
        )
    ):
        axes.text(x + 22, 172 + 20 * line, words, **text)
    return figure


def draw_speed(bars: Sequence[performance.Bar], theme: Theme) -> Figure:
    """One direction for all: the peer's time over ours, on a logarithmic scale about 1."""
    groups = [
        (device, list(of_device))
        for device, of_device in groupby(bars, key=lambda bar: bar.machine["device"])
    ]
    height = 20
    figure, axes = new_axes(960, 74 + height * len(bars) + 34 * len(groups))
    text = {"fontsize": 12, "color": theme.ink, "va": "center"}
    small = text | {"fontsize": 11, "color": theme.faint}
    one, octave = 560, 86  # where 1 is, and how far 2 is from it
    bottom = 74 + height * len(bars) + 34 * len(groups) - 32
    for ratio in (0.25, 0.5, 1, 2, 4, 8, 16):
        x = one + octave * np.log2(ratio)
        width = 1.4 if ratio == 1 else 0.5
        axes.plot([x, x], [34, bottom], color=theme.faint, linewidth=width, alpha=0.7)
        axes.text(x, bottom + 13, f"{ratio:g}", ha="center", **small)
    axes.text(one + 8, 20, "we are faster \u2192", ha="left", **text | {"color": theme.good})
    axes.text(one - 8, 20, "\u2190 the peer is faster", ha="right", **text | {"color": theme.bad})
    axes.text(18, 20, "the peer's time over ours", ha="left", **text | {"weight": "bold"})
    y = 40
    for device, of_device in groups:
        machine = of_device[0].machine
        kind = "GPU" if "cuda" in machine else f"CPU, {machine['threads']} threads"
        axes.text(18, y + 12, f"{device} ({kind})", ha="left", **text | {"weight": "bold"})
        y += 24
        for bar in of_device:
            end = octave * np.log2(bar.ratio)
            color = theme.good if bar.ratio >= 1 else theme.bad
            axes.add_patch(Rectangle((one, y + 3), end, height - 6, color=color, linewidth=0))
            side = {"ha": "left" if end >= 0 else "right", "weight": "bold"}
            label = performance.ratio_text(bar.ratio)
            axes.text(one + end + np.sign(end) * 6, y + height / 2, label, **text | side)
            axes.text(18, y + height / 2, bar.ours, ha="left", **text)
            axes.text(196, y + height / 2, f"beside {bar.peer}", ha="left", **small)
            y += height
        y += 10
    return figure


@dataclass(frozen=True)
class Trained:
    """One line of a table of docs/results: the accuracies of the seeds, in per cent."""

    timesteps: int
    granularity: str
    accuracies: tuple[float, ...]


def read_table(name: str) -> list[Trained]:
    (line,) = re.findall(r"^Every seed: (.*)\.$", (RESULTS / name).read_text(), re.MULTILINE)
    cells = [re.fullmatch(r"T=(\d+) \w+ (\w+) ([\d. ]+)", cell) for cell in line.split("; ")]
    return [Trained(int(c[1]), c[2], tuple(map(float, c[3].split()))) for c in cells]


def draw_accuracy(theme: Theme) -> Figure:
    """Every seed is a dot, a mean a line. Left: binary beside element-wise; right: what shares."""
    figure, axes = new_axes(960, 330)
    text = {"fontsize": 12, "color": theme.ink, "va": "center"}
    small = text | {"fontsize": 11, "color": theme.faint}
    bottom, top, lowest = 270, 60, 70.0

    def place(accuracy):
        return bottom - (accuracy - lowest) / (100 - lowest) * (bottom - top)

    for left, right in ((70, 490), (560, 930)):
        for accuracy in (70, 80, 90, 100):
            y = place(accuracy)
            axes.plot([left, right], [y, y], color=theme.faint, linewidth=0.5, alpha=0.7)
            axes.text(left - 8, y, f"{accuracy} %", ha="right", **small)

    def draw(x, trained, color):
        mean = np.mean(trained.accuracies)
        axes.plot([x - 14, x + 14], [place(mean)] * 2, color=color, linewidth=2.4)
        heights = [place(accuracy) for accuracy in trained.accuracies]
        axes.plot([x] * len(heights), heights, "o", color=color, markersize=6, alpha=0.75)
        axes.text(x + 19, place(mean), f"{mean:.1f}", ha="left", **text | {"color": color})

    colors = {"none": theme.bad, "element": theme.good}
    for index, T in enumerate((2, 4, 6)):
        x = 130 + 140 * index
        for trained in read_table("table1_digits.md"):
            if trained.timesteps == T:
                draw(
                    x + (-28 if trained.granularity == "none" else 36),
                    trained,
                    colors[trained.granularity],
                )
        axes.text(x + 12, bottom + 18, f"{T} timesteps", ha="center", **text)
    for index, trained in enumerate(read_table("table2_digits.md")):
        x = 600 + 88 * index
        draw(x, trained, colors.get(trained.granularity, theme.ink))
        name = {"none": "binary"}.get(trained.granularity, trained.granularity)
        axes.text(x + 10, bottom + 18, name, ha="center", **text)
    bold = text | {"weight": "bold"}
    axes.text(70, 22, "Binary spikes", ha="left", **bold | {"color": theme.bad})
    axes.text(172, 22, "beside an amplitude per element", ha="left", **bold | {"color": theme.good})
    axes.text(560, 22, "What shares an amplitude, 4 timesteps", ha="left", **bold)
    said = (
        "Test accuracy of the last epoch. A dot is a seed, a line their mean. ResNet20 of width 16,"
    )
    axes.text(18, 312, f"{said} scikit-learn's digits.", ha="left", **small)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write an SVG of texts, the same bytes for the same figure."""
    options = {"svg.fonttype": "none", "svg.hashsalt": path.name, "font.family": "sans-serif"}
    with matplotlib.rc_context(options):
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


def main(names: Sequence[str], folder: Path = FIGURES, epochs: int = EPOCHS) -> list[Path]:
    """Draw the named figures into a folder; all of them without a name."""
    draw = {
        "folding": lambda: partial(draw_folding, fold(*trained_network(epochs))),
        "speed": lambda: partial(draw_speed, performance.CHART),
        "accuracy": lambda: draw_accuracy,
    }
    written = []
    for name in names or draw:
        drawn = draw[name]()
        for kind, theme in THEMES.items():
            written.append(folder / f"{name}-{kind}.svg")
            save(drawn(theme), written[-1])
    return written


if __name__ == "__main__":
    for path in main(sys.argv[1:]):
        print(f"written: {path.relative_to(ROOT)}")
