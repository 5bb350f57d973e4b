"""Everything about a run in one folder of pictures and one HTML file that needs no other."""

import base64
import csv
import html
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

import realspike_ops as rso
from realspike import environment, records
from realspike.config.network_config import method_of
from realspike.files import make_writable_folder, write_atomically
from realspike.inspect import trained_file
from realspike.inspect.activity import entropy_table, record_activity
from realspike.inspect.folded_file import size_of
from realspike.inspect.kernels import find_readings, kernel_differences
from realspike.inspect.spikes import described, kinds_of_spikes, record_spikes, signs_of
from realspike.inspect.trained_file import Trained
from realspike.report import plots, run_plots

SAMPLES = 256
SHOWN_CHANNELS = 6
LARGEST = 2**28  # bytes of a folded network that a report holds; `realspike fold` has no such limit
FOLDER = "plots"
PAGE = "report.html"

CAPTIONS = {
    "accuracy": (
        "Accuracy and loss over the epochs (Fig. 5)",
        "On the {tested_on} data after every epoch; the loss is that of the training, on a "
        "logarithmic scale. Dashed is binary.",
    ),
    "kernels": (
        "What the amplitudes make of a kernel (Fig. 3)",
        "The shared kernel, the amplitudes of the map that it reads, and how the kernels at some "
        "positions differ from it after folding. Taps beyond the map are grey.",
    ),
    "channels": (
        "Channels as spikes",
        "An early layer on the first {tested_on} sample: above what the folded network emits, "
        "below what the trained one does. Grey neurons are silent.",
    ),
    "amplitudes": (
        "Amplitudes",
        "How many neurons have which amplitude, layer by layer; all began at the line.",
    ),
    "amplitude_course": (
        "Amplitudes over the training",
        "After every epoch: how far the amplitudes of a layer lie apart, and their mean; all began "
        "at 1 unless they were drawn.",
    ),
    "firing_rates": (
        "Firing rates",
        "The share of the timesteps at which neurons fire: the mean of a layer, and the middle "
        "half of its neurons.",
    ),
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #333; max-width: 62em; margin: 2em auto;
       padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .2em .9em .2em 0; text-align: right }
td:first-child, th:first-child { text-align: left } th { border-bottom: 1px solid #999 }
figure { margin: 0 } figcaption, caption { color: #666; font-size: .9em }
img { max-width: 100% } code, pre { font-size: .9em } pre { background: #f5f5f5; padding: 1em }
"""


def write(
    run: Path,
    others: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    allow: Collection[str] = (),
    samples: int = SAMPLES,
) -> Path:
    """Draw the pictures of a run into ``plots`` in its folder, and write ``report.html``.

    Args:
        run: A run's folder, or a checkpoint, whose report is written beside it; that of a network
            that comes with the package into ``runs`` and its name.
        others: Runs or checkpoints whose curves are drawn beside its own, such as the binary
            network's (Fig. 5).
        overrides: Changes of the data's keys, such as ``data.root=...``.
        allow: What of the user's own may be imported, see `realspike.checkpoint.load`.
        samples: Of the test data, behind rates and entropies.

    Returns:
        The page.

    Raises:
        CheckpointError, DataError, MissingPackageError: see `realspike.inspect.trained_file.load`.
    """
    run_plots.require_matplotlib()
    network = trained_file.load(run, overrides, allow)
    beside = [trained_file.load(other, allow=allow) for other in others]
    batches = list(network.test_batches(samples))
    layers = record_activity(network.network, (inputs for inputs, _ in batches))
    real_valued = [layer for layer in layers if layer.is_real_valued]
    drawn = {
        "accuracy": _curves([network, *beside]),
        "kernels": draw_kernels(network),
        "channels": _channels(network, batches),
        "amplitudes": run_plots.amplitude_histograms(real_valued) if real_valued else None,
        "amplitude_course": _course(network),
        "firing_rates": run_plots.firing_rates(layers) if layers else None,
    }
    out = _folder_of(network.source)
    folder = out / FOLDER
    make_writable_folder(folder)
    pictures = {}
    for name, figure in drawn.items():
        if figure is not None:
            title, caption = CAPTIONS[name]
            tested_on = network.config.data.tested_on
            pictures[f"{name}.png"] = (title, caption.format(tested_on=tested_on))
            plots.write_png(figure, folder / f"{name}.png")
    page = out / PAGE
    seen = sum(len(labels) for _, labels in batches)
    folding = _folding(network, batches[0][0])
    content = _page(network, pictures, folder, entropy_table(layers), seen, folding)
    write_atomically(page, content.encode())
    return page


def _folder_of(source: Path) -> Path:
    """Return where the report of a network goes: beside it, but not into the package."""
    if source in trained_file.networks_by_name().values():
        return Path("runs") / source.stem
    return source.parent


def _folding(network: Trained, inputs: torch.Tensor) -> str:
    """Return the sections about the folded network, on a batch: what it is, whether it computes
    the same, and what both take."""
    try:
        folded = rso.reparameterize(network.network, network.example_input(), max_bytes=LARGEST)
        rso.assert_multiplication_free(folded, inputs)
    except (rso.ReparameterizationError, rso.MultiplicationError) as error:
        return (
            f"<h2>Folding</h2>\n<p>This network was not folded for this report: "
            f"{html.escape(str(error))}</p>"
        )
    before, after = map(size_of, (network.network, folded))
    reports = [
        rso.profile(network.network, inputs),
        rso.profile(folded, inputs, names_of=network.network),
    ]
    parts = [
        "<h2>Folding</h2>",
        f"<p>The amplitudes and batch norms are folded into the weights: {before} become {after}. "
        "Behind the encoding the network emits 0 and 1, and its synapses only "
        "add.</p>",
        "<h2>Verification</h2>",
        "<p>Trained and folded, side by side: the largest difference of a current, and the spikes "
        "that fire in one of them alone, which a current at the threshold makes.</p>",
        rso.verify(network.network, folded, inputs)._repr_html_(),
        "<h2>Energy</h2>",
        "<p>Operations of one sample, by the usual figures of 45 nm; what it takes to move weights "
        "is not in them.</p>",
        *(
            f"<h3>{name}</h3>\n{report._repr_html_()}"
            for name, report in zip(("Trained", "Folded"), reports, strict=True)
        ),
    ]
    return "\n".join(parts)


def _history(network: Trained) -> list[dict]:
    return records.checked(network.record.get("history", []), network.source)


def _curves(runs: Sequence[Trained]):
    """Draw the runs that have a record; runs of one name are told apart by their folders."""
    curves: list[plots.Curve] = []
    for run in runs:
        name = described(run.network, run.network_config)
        if name in (curve.name for curve in curves):
            name = f"{name}, {run.source.parent.name}"
        history = _history(run)
        if history:
            kinds, _ = kinds_of_spikes(run.network, run.network_config)
            methods = [method for method in map(method_of, kinds) if method != "none"]
            curves.append(plots.Curve(name, (methods or ["none"])[0], history))
    return plots.training_curves(curves) if curves else None


def _course(network: Trained):
    path = network.source.with_name(records.LAYERS_FILE)
    if not path.is_file():  # a network without its run
        return None
    with path.open(newline="", errors="replace") as file:
        layers = records.amplitudes(csv.DictReader(file), path)
    return run_plots.amplitude_course(layers) if layers else None


def draw_kernels(network: Trained):
    """Draw a kernel, and those that amplitudes make of it at some positions; None without any."""
    readings = find_readings(network.network, network.example_input())
    readings = [r for r in readings if r.lif.amplitude is not None and min(r.input_size) > 2]
    if not readings:
        return None
    reading = readings[0]
    # The input channel whose amplitudes differ most, and the strongest kernel that reads it.
    shared = reading.lif.amplitude
    assert shared is not None
    amplitude = torch.ones(reading.conv.in_channels, *reading.input_size) * shared.detach()
    channel = int(amplitude.flatten(1).var(1).argmax())
    out = int(reading.conv.weight.detach()[:, channel].abs().amax((1, 2)).argmax())
    parts = (part.detach().numpy() for part in kernel_differences(reading, out, channel))
    title = f"{reading.conv_name} reads {reading.lif_name}: input channel {channel}, output {out}"
    return run_plots.kernels(*parts, title)


def _channels(network: Trained, batches):
    """Draw some channels of an early layer of maps for the first test sample; None without any."""
    T = network.network_config.timesteps
    frames = network.network_config.encoding == "frames"
    inputs = batches[0][0]
    inputs = inputs.unflatten(0, (T, -1))[:, 0] if frames else inputs[:1]
    spikes = record_spikes(network.network, inputs)
    spikes = {name: each for name, each in spikes.items() if each.dim() == 5}  # [T, 1, C, H, W]
    if not spikes:
        return None
    lifs: dict[str, Any] = {name: network.network.get_submodule(name) for name in spikes}
    names = [name for name in spikes if lifs[name].amplitude is not None] or list(spikes)
    name = names[min(1, len(names) - 1)]
    busiest_step = int((spikes[name] != 0).flatten(1).sum(1).argmax())
    real = spikes[name][busiest_step, 0]
    fired = signs_of(real, lifs[name])
    chosen = fired.flatten(1).var(1).topk(min(SHOWN_CHANNELS, len(fired))).indices
    image = inputs.unflatten(0, (T, -1))[:, 0].sum((0, 1)) if frames else inputs[0].mean(0)
    return plots.spike_maps(
        image.numpy(),
        fired.numpy(),
        None if lifs[name].amplitude is None else real.numpy(),
        sorted(chosen.tolist()),
        f"Layer {name}, first test sample, timestep {busiest_step + 1} of {len(spikes[name])} "
        f"({'pink: negative, ' * bool((fired < 0).any())}grey: silent)",
    )


def _page(
    network: Trained, pictures, folder: Path, entropies: list[dict], samples: int, folding: str
) -> str:
    history = _history(network)
    title = described(network.network, network.network_config)
    last = history[-1] if history else None
    parts = [f"<h1>{html.escape(title)} on {html.escape(network.config.data.name)}</h1>"]
    if last:
        parts.append(
            f"<p>After {last['epoch']} epochs: {network.config.data.measured} "
            f"<b>{100 * last['test_accuracy']:.2f} %</b>, training accuracy "
            f"{100 * last['train_accuracy']:.2f} %. Commit "
            f"<code>{html.escape(str(network.record.get('commit') or 'unknown'))}</code>.</p>"
        )
    for name, (heading, caption) in pictures.items():
        data = base64.b64encode((folder / name).read_bytes()).decode()
        parts.append(
            f'<h2>{html.escape(heading)}</h2>\n<figure><img alt="{html.escape(heading)}" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    parts.append(folding)
    if entropies:
        on = f"{samples} {network.config.data.tested_on} samples"
        parts.append(f"<h2>Entropy of a spike, on {on} [bits]</h2>")
        parts.append(_table(ENTROPY_HEADER, entropy_rows(entropies)))
    parts.append("<h2>Epochs</h2>")
    header = ("epoch", "training loss", "training %", "test loss", "test %", "learning rate")
    rows = [
        (
            *(r["epoch"], f"{r['train_loss']:.4f}", f"{100 * r['train_accuracy']:.2f}"),
            *(f"{r['test_loss']:.4f}", f"{100 * r['test_accuracy']:.2f}"),
            f"{r['learning_rate']:.2g}",
        )
        for r in history
    ]
    parts.append(_table(header, rows))
    parts.append(f"<h2>Configuration</h2><pre>{html.escape(network.config.to_yaml())}</pre>")
    machine = html.escape(json.dumps(environment.describe(), indent=2))
    parts.append(f"<h2>This report was made on</h2><pre>{machine}</pre>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f"{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


ENTROPY_HEADER = ("layer", "neurons", "rate %", "capacity", "emitted", "fires or not", "per neuron")


def entropy_rows(table: list[dict]) -> list[tuple[str, ...]]:
    """Return the rows of an entropy table as text, for `ENTROPY_HEADER`."""
    return [
        (
            *(row["layer"], str(row["neurons"]), f"{100 * row['firing_rate']:.1f}"),
            *(f"{row['capacity']:.3g}", f"{row['emitted_entropy']:.2f}"),
            *(f"{row['binary_entropy']:.2f}", f"{row['neuron_entropy']:.2f}"),
        )
        for row in table
    ]


def _table(header, rows) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(text))}</td>" for text in row) + "</tr>\n"
        for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"
