"""The pictures. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from realspike.files import write_atomically
from realspike.optional import require
from realspike.training import EpochRecord

INK = "#333333"
SILENT = "#e9e9e9"
STYLES = (
    {"color": "#555555", "linestyle": "--"},
    {"color": "#E69F00", "linestyle": "-"},
    {"color": "#56B4E9", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": "-"},
)


def new_figure(width: float, height: float):
    """A figure outside pyplot: no window, no global state. Sizes in inches."""
    matplotlib = require("matplotlib")
    require("matplotlib.backends.backend_agg")
    figure = require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    return figure


def write_png(figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    write_atomically(path, buffer.getvalue())


def clean(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)


def training_curves(path: Path, histories: Mapping[str, Sequence[EpochRecord]]) -> None:
    """Draw test accuracy and training loss over the epochs, one line per network (Fig. 5).

    Args:
        path: The PNG file to write.
        histories: The records of up to four networks, by the name that the legend shows.
    """
    figure = new_figure(10, 4.2)
    accuracy_axes, loss_axes = figure.subplots(1, 2)
    lowest = 100.0
    for (name, history), style in zip(histories.items(), STYLES, strict=False):
        epochs = [record.epoch for record in history]
        accuracy = [100 * record.test_accuracy for record in history]
        style = style | {"linewidth": 1.8, "marker": "o" if len(history) == 1 else None}
        accuracy_axes.plot(epochs, accuracy, label=f"{name}  {accuracy[-1]:.1f} %", **style)
        loss_axes.plot(epochs, [record.train_loss for record in history], label=name, **style)
        # The first epochs climb from chance; the scale is for what follows.
        lowest = min(lowest, *accuracy[len(accuracy) // 6 :])
    accuracy_axes.set_ylim(max(0.0, np.floor(lowest) - 1), 100.15)
    accuracy_axes.set_title("Test accuracy", loc="left", fontsize=11, color=INK)
    accuracy_axes.set_ylabel("accuracy [%]", color=INK)
    accuracy_axes.legend(
        title="at the last epoch", loc="lower right", fontsize=9, edgecolor="none", framealpha=0.9
    )
    loss_axes.set_yscale("log")
    loss_axes.set_title("Training loss", loc="left", fontsize=11, color=INK)
    loss_axes.set_ylabel("cross-entropy [nat]", color=INK)
    for axes in (accuracy_axes, loss_axes):
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        clean(axes)
    write_png(figure, path)


def spike_maps(
    path: Path,
    image: np.ndarray,  # [H, W]
    binary: np.ndarray,  # [C, H, W], 0 or 1
    real: np.ndarray,  # [C, H, W], amplitude * binary
    channels: Sequence[int],
    title: str,
) -> None:
    """Draw a digit beside the binary and the real-valued spikes of some channels.

    Args:
        path: The PNG file to write.
        image: The digit, larger is brighter.
        binary: Spikes of the folded network at one timestep.
        real: Spikes of the trained network at the same timestep.
        channels: Which channels to show, one column each.
        title: What is shown, in one line.
    """
    matplotlib = require("matplotlib")
    figure = new_figure(2.9 + 1.25 * len(channels), 3.2)
    grid = figure.add_gridspec(2, len(channels) + 2, width_ratios=[2.1, *[1] * len(channels), 0.09])
    digit_axes = figure.add_subplot(grid[:, 0])
    digit_axes.imshow(image, cmap="gray", interpolation="nearest")
    digit_axes.set_title("image", fontsize=10, color=INK)
    fired = real[list(channels)][binary[list(channels)] > 0]
    low, high = (float(fired.min()), float(fired.max())) if fired.size else (0.0, 1.0)
    real_colors = matplotlib.colormaps["viridis"].with_extremes(bad=SILENT)
    binary_colors = require("matplotlib.colors").ListedColormap([SILENT, INK])
    panels = [digit_axes]
    for column, channel in enumerate(channels, start=1):
        top, bottom = (figure.add_subplot(grid[row, column]) for row in (0, 1))
        top.imshow(binary[channel], cmap=binary_colors, vmin=0, vmax=1, interpolation="nearest")
        shown = np.ma.masked_where(binary[channel] == 0, real[channel])
        drawn = bottom.imshow(shown, cmap=real_colors, vmin=low, vmax=high, interpolation="nearest")
        top.set_title(f"channel {channel}", fontsize=9, color=INK)
        if column == 1:
            top.set_ylabel("binary o", fontsize=10, color=INK)
            bottom.set_ylabel("real-valued a·o", fontsize=10, color=INK)
        panels += [top, bottom]
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#bbbbbb")
    if fired.size:
        bar = figure.colorbar(drawn, cax=figure.add_subplot(grid[1, -1]))
        bar.set_label("amplitude a", fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8, colors=INK)
        bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color=INK)
    write_png(figure, path)
