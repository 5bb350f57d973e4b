"""The pictures of a trained run, beside those of `realspike.plots`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from realspike.activity import LayerActivity
from realspike.optional import require
from realspike.plots import INK, STYLES, clean, new_figure, write_png

_POSITIONS = 5  # output positions per axis whose kernels are drawn


def kernels(
    path: Path,
    kernel: np.ndarray,  # [KH, KW]
    amplitude: np.ndarray,  # [H, W]
    unshared: np.ndarray,  # [OH, OW, KH, KW]
    title: str,
) -> None:
    """Draw the shared kernel, the amplitudes and the kernels that they make of it (Fig. 3)."""
    figure = new_figure(10, 3.9)
    rows, columns = (
        np.unique(np.linspace(0, size - 1, min(_POSITIONS, size)).round().astype(int))
        for size in unshared.shape[:2]
    )
    shown = unshared[np.ix_(rows, columns)]  # [R, C, KH, KW]
    limit = float(max(np.abs(kernel).max(), np.abs(shown).max())) or 1.0
    style = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1.1, 1.5, 2.2))
    axes = left.subplots()
    axes.imshow(kernel, **style)
    _bare(axes, "shared kernel K")
    axes = middle.subplots()
    drawn = axes.imshow(amplitude, cmap="viridis", interpolation="nearest")
    _bare(axes, "amplitudes a")
    bar = middle.colorbar(drawn, ax=axes, shrink=0.75)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=INK)
    right.suptitle("kernels at some positions, a·K", fontsize=10, color=INK)
    grid = right.subplots(len(rows), len(columns), squeeze=False)
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            drawn = grid[r][c].imshow(shown[r, c], **style)
            _bare(grid[r][c], "")
            if r == 0:
                grid[r][c].set_title(f"x {column}", fontsize=7, color=INK)
            if c == 0:
                grid[r][c].set_ylabel(f"y {row}", fontsize=7, color=INK)
    bar = right.colorbar(drawn, ax=grid, shrink=0.75)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=INK)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color=INK)
    write_png(figure, path)


def _bare(axes, title: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10, color=INK)
    for spine in axes.spines.values():
        spine.set_color("#bbbbbb")


def amplitude_histograms(path: Path, layers: Sequence[LayerActivity]) -> None:
    """Draw the distribution of the learned amplitudes, layer by layer; all began at 1."""
    figure = new_figure(8, 0.55 * len(layers) + 1.2)
    grid = figure.subplots(len(layers), 1, squeeze=False, sharex=True)[:, 0]
    amplitudes = [np.unique(layer.amplitude.numpy(), axis=None) for layer in layers]
    low, high = min(a.min() for a in amplitudes), max(a.max() for a in amplitudes)
    margin = 0.05 * max(high - low, 0.1)
    bins = np.linspace(low - margin, high + margin, 60)
    for axes, layer in zip(grid, layers, strict=True):
        axes.hist(layer.amplitude.flatten().numpy(), bins=bins, color=STYLES[2]["color"])
        axes.axvline(1.0, color=INK, linewidth=0.8, linestyle="--")
        axes.set_yticks([])
        axes.set_ylabel(layer.name, rotation=0, ha="right", va="center", fontsize=8, color=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
    grid[-1].set_xlabel("amplitude (dashed: where it began)", color=INK)
    figure.suptitle("Neurons by amplitude", fontsize=11, x=0.01, ha="left", color=INK)
    write_png(figure, path)


def firing_rates(path: Path, layers: Sequence[LayerActivity]) -> None:
    """Draw the mean firing rate of every layer, with its quarter and its three quarters."""
    figure = new_figure(8, 0.28 * len(layers) + 1.3)
    axes = figure.subplots()
    rows = np.arange(len(layers))[::-1]
    means = [100 * layer.firing_rate for layer in layers]
    quarters = np.array(
        [np.quantile(100 * layer.firing_rates.numpy(), (0.25, 0.75)) for layer in layers]
    )
    axes.barh(rows, means, color=STYLES[2]["color"], height=0.7, label="mean")
    axes.hlines(rows, quarters[:, 0], quarters[:, 1], color=INK, linewidth=1.2, label="quartiles")
    axes.set_yticks(rows, [layer.name for layer in layers])
    axes.set_xlabel("firing rate of the neurons [% of timesteps]", color=INK)
    axes.legend(fontsize=8, edgecolor="none")
    axes.set_title("Firing rates", loc="left", fontsize=11, color=INK)
    clean(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    write_png(figure, path)


def require_matplotlib() -> None:
    """Raise MissingPackageError without matplotlib, before anything is computed."""
    require("matplotlib.figure")
