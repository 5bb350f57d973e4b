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
_INFERENCE = {
    "unshared_spike_conv": "folded, UnsharedSpikeConv",
    "unfold_bmm": "folded, unfold + bmm",
    "shared_conv2d": "as trained, F.conv2d",
}


def write_json(path: Path, results: dict) -> None:
    write_atomically(path, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _per_layer(layers: list[dict], key: str, scale: int = 1) -> str:
    return " · ".join(f"{scale * layer[key]:.0f}" for layer in layers)


def table(results: dict):
    """Return the results of `realspike.quickstart.run` as a table of rich."""
    rich_table = require("rich.table")
    inference = results["inference"]
    batches = inference["batches"]
    out = rich_table.Table(box=require("rich.box").SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    out.add_column("network", no_wrap=True)
    for header in ("trained\n%", "folded\n%", "logit\ndiff.", "flipped\nspikes", "firing\nrate %"):
        out.add_column(header, justify="right", no_wrap=True)
    for batch in batches:
        size = batch["batch_size"]
        out.add_column(f"{size} image{'s' * (size > 1)}\ntime", justify="right", no_wrap=True)
    for key, network in results["networks"].items():
        out.add_row(
            NAMES[key],
            _percent(network["accuracy_trained"]),
            _percent(network["accuracy_folded"]),
            f"{network['max_logit_difference']:.0e}",
            _per_layer(network["layers"], "flipped_spikes"),
            _per_layer(network["layers"], "firing_rate", 100),
        )
    out.add_section()
    out.add_row(f"[italic]{NAMES[inference['network']]}, run[/italic]")
    for key, way in inference["ways"].items():
        accuracy = _percent(way["accuracy"])
        folded = way["folded"]
        out.add_row(
            f"  {_INFERENCE[key]}",
            "" if folded else accuracy,
            accuracy if folded else "",
            f"{way['max_logit_difference']:.0e}" if folded else "",
            "",
            "",
            *(f"{batch['runs'][key]['relative']:.2f}" for batch in batches),
        )
    return out


def notes(results: dict) -> list[str]:
    """Return the lines below the table: how to read it, and who was faster."""
    tests = results["data"]["test_images"]
    lines = [
        f"Accuracy on {tests} test images: one image is {100 / tests:.2f} %, so differences of a few "
        "tenths are chance. Largest difference of the logits; flipped spikes and firing rates by "
        "LIF layer.",
        "Time of the whole network, relative to UnsharedSpikeConv (smaller is faster), "
        f"{results['environment']['threads']} CPU threads. " + _who_wins(results["inference"]),
    ]
    return lines


def _who_wins(inference: dict) -> str:
    """Say in words how `UnsharedSpikeConv` fares, won or lost."""
    parts = []
    for key, name in (("unfold_bmm", "unfold + bmm"), ("shared_conv2d", "shared F.conv2d")):
        verdicts = []
        for batch in inference["batches"]:
            relative = batch["runs"][key]["relative"]
            faster = relative >= 1
            factor = relative if faster else 1 / relative
            size = batch["batch_size"]
            verdicts.append(
                f"{factor:.1f}x {'faster' if faster else 'slower'} at {size} "
                f"image{'s' * (size > 1)}"
            )
        parts.append(f"than {name}, {' and '.join(verdicts)}")
    return f"UnsharedSpikeConv is, {'; '.join(parts)}."
