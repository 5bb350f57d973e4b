"""The pictures. Colours are Okabe and Ito's, which colour-blind readers can tell apart.

Every function returns a figure, which `write_png` writes. A line style means one thing in all of
them: dashed is binary, dotted is ternary; a colour, what shares an amplitude.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realspike.files import write_atomically
from realspike.optional import require

INK = "#333333"
SILENT, NEGATIVE = "#e9e9e9", "#CC79A7"
BLUE, ORANGE = "#56B4E9", "#E69F00"
STYLES = {
    "none": {"color": "#555555", "linestyle": "--"},
    "layer": {"color": ORANGE, "linestyle": "-"},
    "channel": {"color": BLUE, "linestyle": "-"},
    "element": {"color": "#D55E00", "linestyle": "-"},
    "ternary": {"color": "#009E73", "linestyle": ":"},
}
_MARKERS = ("", "s", "^", "D", "v", "P", "X")  # of runs whose spikes are of the same kind
SMALLEST_WIDTH = 5.0  # per cent; a scale of colours that is narrower shows what is not there


@dataclass(frozen=True)
class Curve:
    """A run in `training_curves`; ``method`` decides its line, ``name`` is in the legend."""

    name: str
    method: str  # see realspike.config.network_config.method_of
    history: Sequence[dict]  # records, epoch by epoch


def new_figure(width: float, height: float):
    """A figure outside pyplot: no window, no global state; notebooks show it. Sizes in inches."""
    matplotlib = require("matplotlib")
    require("matplotlib.backends.backend_agg")

    class Picture(require("matplotlib.figure").Figure):
        def _repr_png_(self) -> bytes:
            return _png(self)

    figure = Picture(figsize=(width, height), layout="constrained")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    return figure


def write_png(figure, path: Path) -> None:
    write_atomically(path, _png(figure))


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def clean(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)


def bare(axes, title: str = "", fontsize: int = 10) -> None:
    """Prepare axes for an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=fontsize, color=INK)
    for spine in axes.spines.values():
        spine.set_color("#bbbbbb")


def color_bar(figure, drawn, label: str, **where) -> None:
    bar = figure.colorbar(drawn, **where)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)


def widest(percent: np.ndarray) -> float:
    """Return the half width of a scale that is symmetric about 0; NaN is left out."""
    return float(max(np.nanmax(np.abs(percent), initial=0.0), SMALLEST_WIDTH))


def show_percent(axes, shown: np.ndarray, limit: float, colors):
    """Draw [H, W] per cent, from ``-limit`` to ``limit``; what is NaN is grey."""
    return axes.imshow(
        np.ma.masked_invalid(shown),
        cmap=colors.with_extremes(bad=SILENT),
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )


def amplitude_colors():
    """Return the colours of amplitudes by their distance from 1, where they are a binary spike's:
    blue is below, orange above."""
    colors = require("matplotlib.colors").LinearSegmentedColormap
    return colors.from_list("amplitude", [BLUE, INK, ORANGE], N=257)  # one in the middle


def training_curves(curves: Sequence[Curve]):
    """Draw test accuracy and training loss over the epochs, one line per run (Fig. 5)."""
    figure = new_figure(10, 4.2)
    accuracy_axes, loss_axes = figure.subplots(1, 2)
    lowest = 100.0
    alike: dict[str, int] = {}
    for curve in curves:
        number = alike[curve.method] = alike.get(curve.method, -1) + 1
        epochs = [record["epoch"] for record in curve.history]
        accuracy = [100 * record["test_accuracy"] for record in curve.history]
        marker = _MARKERS[number % len(_MARKERS)] or ("o" if len(epochs) == 1 else "")
        style = STYLES[curve.method] | {"linewidth": 1.8, "marker": marker, "markersize": 5}
        style["markevery"] = max(1, len(epochs) // 10)
        name = curve.name
        accuracy_axes.plot(epochs, accuracy, label=f"{name}  {accuracy[-1]:.1f} %", **style)
        loss_axes.plot(epochs, [r["train_loss"] for r in curve.history], label=name, **style)
        # The first epochs climb from chance; the scale is for what follows.
        lowest = min(lowest, *accuracy[len(accuracy) // 6 :])
    accuracy_axes.set_ylim(max(0.0, np.floor(lowest) - 1), 100.15)
    accuracy_axes.set_title("Test accuracy", loc="left", fontsize=11, color=INK)
    accuracy_axes.set_ylabel("accuracy [%]", color=INK)
    legend = accuracy_axes.legend(
        title="at the last epoch", loc="lower right", fontsize=9, edgecolor="none", framealpha=0.9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a folder may have a $ in its name
    if any(record["train_loss"] > 0 for curve in curves for record in curve.history):
        loss_axes.set_yscale("log")
    loss_axes.set_title("Training loss", loc="left", fontsize=11, color=INK)
    loss_axes.set_ylabel("cross-entropy [nat]", color=INK)
    for axes in (accuracy_axes, loss_axes):
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        clean(axes)
    return figure


def spike_maps(
    image: np.ndarray,  # [H, W]
    spikes: np.ndarray,  # [C, H, W], 0 or 1, or -1
    real: "np.ndarray | None",  # [C, H, W], amplitude * spikes
    channels: Sequence[int],
    title: str,
):
    """Draw an image beside the binary or ternary and the real-valued spikes of some channels.

    Args:
        image: Larger is brighter.
        spikes: Those of the folded network at one timestep.
        real: Those of the trained network at the same timestep; None for one without amplitudes.
        channels: Which channels to show, one column each.
        title: What is shown, in one line.
    """
    rows = 1 if real is None else 2
    figure = new_figure(2.9 + 1.25 * len(channels), 1.7 + 0.75 * rows)
    widths = [1.05 * rows, *[1] * len(channels), 0.09]
    grid = figure.add_gridspec(rows, len(channels) + 2, width_ratios=widths)
    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(image, cmap="gray", interpolation="nearest")
    bare(axes, "image")
    kind = "ternary" if (spikes < 0).any() else "binary"
    spike_colors = require("matplotlib.colors").ListedColormap([NEGATIVE, SILENT, INK])
    if real is not None:
        percent = np.where(spikes != 0, 100 * (real.astype(np.float64) * spikes - 1), np.nan)
        limit, colors = widest(percent[list(channels)]), amplitude_colors()
    for column, channel in enumerate(channels, start=1):
        top = figure.add_subplot(grid[0, column])
        top.imshow(spikes[channel], cmap=spike_colors, vmin=-1, vmax=1, interpolation="nearest")
        bare(top, f"channel {channel}", fontsize=9)
        if column == 1:
            top.set_ylabel(f"{kind} o", fontsize=10, color=INK)
        if real is None:
            continue
        bottom = figure.add_subplot(grid[1, column])
        drawn = show_percent(bottom, percent[channel], limit, colors)
        bare(bottom)
        if column == 1:
            bottom.set_ylabel("real-valued a·o", fontsize=10, color=INK)
    if real is not None:
        where = figure.add_subplot(grid[1, -1])
        color_bar(figure, drawn, "amplitude a, % from 1", cax=where)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", color=INK)
    return figure
