"""The results for people (one table) and for programs (JSON)."""

import json
from pathlib import Path

from realspike.files import write_atomically
from realspike.optional import require

NAMES = {
    "none": "binary",
    "layer": "layer-wise",
    "channel": "channel-wise",
    "element": "element-wise",
}
_WAYS = {
    "unshared_spike_conv": "UnsharedSpikeConv",
    "unfold_bmm": "unfold + bmm",
    "shared_conv2d": "trained, F.conv2d",
}


def write_json(path: Path, results: dict) -> None:
    """Write the results; raises ValueError for a number that JSON cannot hold (NaN)."""
    write_atomically(path, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _difference(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def _per_layer(layers: list[dict], key: str, scale: int = 1) -> str:
    return "/".join(f"{scale * layer[key]:.0f}" for layer in layers)


def table(results: dict):
    """Return the results of `realspike.quickstart.run` as a table of rich, 80 columns wide."""
    inference = results["inference"]
    batches = inference["batches"]
    out = require("rich.table").Table(
        box=require("rich.box").SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    out.add_column("network", no_wrap=True)
    for header in ("trained\n%", "folded\n%", "logit\ndiff.", "flipped\nspikes", "firing\nrates %"):
        out.add_column(header, justify="right", no_wrap=True)
    for batch in batches:
        out.add_column(f"time\n{batch['batch_size']} img", justify="right", no_wrap=True)
    for key, network in results["networks"].items():
        out.add_row(
            NAMES[key],
            _percent(network["accuracy_trained"]),
            _percent(network["accuracy_folded"]),
            _difference(network["max_logit_difference"]),
            _per_layer(network["layers"], "flipped_spikes"),
            _per_layer(network["layers"], "firing_rate", 100),
        )
    out.add_section()
    out.add_row(f"{NAMES[inference['network']]}, by")
    for key, way in inference["ways"].items():
        accuracy = _percent(way["accuracy"])
        cells = ("", accuracy, _difference(way["max_logit_difference"]))
        out.add_row(
            f"  {_WAYS[key]}",
            *(cells if way["folded"] else (accuracy, "", "")),
            *("", ""),
            *(f"{batch['runs'][key]['relative']:.2f}" for batch in batches),
        )
    return out


def notes(results: dict) -> list[str]:
    """Return the lines below the table: how to read it, who was faster, what was read back."""
    tests = results["data"]["test_images"]
    threads = results["environment"]["threads"]
    reloaded = results["reloaded"]
    return [
        *map(of_shipped, results["shipped"]),
        f"{tests} test images (one is {100 / tests:.2f} %). Spikes by LIF layer. Time: whole "
        f"network, {threads} CPU thread{'s' * (threads > 1)}, relative to UnsharedSpikeConv; "
        f"less is faster.{_losses(results['inference'])}",
        f"{reloaded['checkpoint']}, read back, classifies {reloaded['same_predictions']} of "
        f"{tests} images the same. Everything took {results['seconds']:.0f} s.",
    ]


def of_shipped(network: dict) -> str:
    """Say what became of a network that comes with the package."""
    before, after = (network[key] / 1e6 for key in ("parameters", "parameters_folded"))
    drawn = f"; {network['picture']} shows a kernel" if network["picture"] else ""
    return (
        f"{network['name']}, trained before: {before:.2f} M parameters fold into {after:.2f} M in "
        f"{network['seconds']:.1f} s, nothing is multiplied behind the encoding{drawn}."
    )


def _losses(inference: dict) -> str:
    """Say where the other ways were faster than `UnsharedSpikeConv`."""
    lost = [
        f"{_WAYS[key]} with {batch['batch_size']} img"
        for key in inference["ways"]
        for batch in inference["batches"]
        if batch["runs"][key]["relative"] < 1
    ]
    return f" UnsharedSpikeConv is slower than: {'; '.join(lost)}." if lost else ""
