"""The pictures of a trained run, beside those of `realspike.report.plots`."""

from collections.abc import Mapping, Sequence

import numpy as np

from realspike.inspect.activity import LayerActivity
from realspike.optional import require
from realspike.report.plots import (
    BLUE,
    INK,
    amplitude_colors,
    bare,
    clean,
    color_bar,
    new_figure,
    show_percent,
    widest,
)

_NAMED = 24  # layers in a legend
_POSITIONS = 5  # output positions per axis whose kernels are drawn


def kernels(
    kernel: np.ndarray,  # [KH, KW]
    amplitude: np.ndarray,  # [H, W]
    difference: np.ndarray,  # [OH, OW, KH, KW], NaN outside the map
    title: str,
):
    """Draw the shared kernel, the amplitudes, and by how much the kernels that they make of it
    differ from it (Fig. 3), in per cent of its largest weight."""
    figure = new_figure(10, 3.9)
    rows, columns = (
        np.unique(np.linspace(0, size - 1, min(_POSITIONS, size)).round().astype(int))
        for size in difference.shape[:2]
    )
    largest = float(np.abs(kernel).max()) or 1.0
    weights = require("matplotlib").colormaps["RdBu_r"]
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1.2, 1.5, 2.2))
    axes = left.subplots()
    drawn = axes.imshow(kernel, cmap=weights, vmin=-largest, vmax=largest, interpolation="nearest")
    bare(axes, "shared kernel K")
    color_bar(left, drawn, "weight", ax=axes, shrink=0.6)
    axes = middle.subplots()
    percent = 100 * (amplitude.astype(np.float64) - 1)
    drawn = show_percent(axes, percent, widest(percent), amplitude_colors())
    bare(axes, "amplitudes a")
    color_bar(middle, drawn, "% from 1", ax=axes, shrink=0.75)
    right.suptitle("kernels at some positions: a·K - K", fontsize=10, color=INK)
    grid = right.subplots(len(rows), len(columns), squeeze=False)
    shown = 100 * difference[np.ix_(rows, columns)].astype(np.float64) / largest  # [R, C, KH, KW]
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            drawn = show_percent(grid[r][c], shown[r, c], widest(shown), weights)
            bare(grid[r][c], f"x {column}" if r == 0 else "", fontsize=7)
            if c == 0:
                grid[r][c].set_ylabel(f"y {row}", fontsize=7, color=INK)
    color_bar(right, drawn, "% of the largest |K| (grey: outside)", ax=grid, shrink=0.75)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color=INK)
    return figure


def amplitude_histograms(layers: Sequence[LayerActivity]):
    """Draw the distribution of the learned amplitudes, layer by layer; all began at 1."""
    figure = new_figure(8, 0.55 * len(layers) + 1.2)
    grid = figure.subplots(len(layers), 1, squeeze=False, sharex=True)[:, 0]
    percents = [100 * (layer.amplitude.flatten().double().numpy() - 1) for layer in layers]
    limit = 1.05 * widest(np.concatenate(percents))
    for axes, layer, percent in zip(grid, layers, percents, strict=True):
        axes.hist(percent, bins=np.linspace(-limit, limit, 60), color=BLUE)
        axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.set_yticks([])
        axes.set_ylabel(layer.name, rotation=0, ha="right", va="center", fontsize=8, color=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
    grid[-1].set_xlabel("amplitude, % from 1, where it began", color=INK)
    figure.suptitle("Neurons by amplitude", fontsize=11, x=0.01, ha="left", color=INK)
    return figure


def amplitude_course(layers: Mapping[str, Sequence[tuple]]):
    """Draw how far the amplitudes of every layer are from 1 after every epoch: (epoch, mean,
    deviation) by layer, the first layer darkest."""
    figure = new_figure(10, 4)
    panels = figure.subplots(1, 2)
    colors = require("matplotlib").colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    named = list(layers)[:: 1 + len(layers) // _NAMED]
    for color, (name, rows) in zip(colors, layers.items(), strict=True):
        label = name if name in named else None
        epochs, means, deviations = np.array(rows, dtype=np.float64).T
        for axes, percent in zip(panels, (100 * deviations, 100 * (means - 1)), strict=True):
            axes.plot(epochs, percent, color=color, linewidth=1.4, label=label)
    for axes, text in zip(panels, ("deviation", "mean"), strict=True):
        axes.set_title(f"{text} of a layer, % from 1", loc="left", fontsize=10, color=INK)
        axes.set_xlabel("epoch", color=INK)
        clean(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right", fontsize=7)
    figure.suptitle("Amplitudes over the training", fontsize=11, x=0.01, ha="left", color=INK)
    return figure


def firing_rates(layers: Sequence[LayerActivity]):
    """Draw the mean firing rate of every layer, with its quarter and its three quarters."""
    figure = new_figure(8, 0.28 * len(layers) + 1.3)
    axes = figure.subplots()
    rows = np.arange(len(layers))[::-1]
    means = [100 * layer.firing_rate for layer in layers]
    quarters = np.array(
        [np.quantile(100 * layer.firing_rates.numpy(), (0.25, 0.75)) for layer in layers]
    )
    axes.barh(rows, means, color=BLUE, height=0.7, label="mean")
    axes.hlines(rows, quarters[:, 0], quarters[:, 1], color=INK, linewidth=1.2, label="quartiles")
    axes.set_yticks(rows, [layer.name for layer in layers])
    axes.set_xlabel("firing rate of the neurons [% of timesteps]", color=INK)
    axes.legend(fontsize=8, edgecolor="none")
    axes.set_title("Firing rates", loc="left", fontsize=11, color=INK)
    clean(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    return figure


def require_matplotlib() -> None:
    """Raise MissingPackageError without matplotlib, before anything is computed."""
    require("matplotlib.figure")
