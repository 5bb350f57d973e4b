"""What truly unshared kernels add: fine-tuning of folded networks.

    python bench/fine_tuning.py --seeds 5 --width 16 --results bench/results
    python bench/fine_tuning.py --runs RUN ... --more 2 --results bench/results

For every seed (of split, weights and batches) an element-wise Real Spike network is trained on the
handwritten digits and folded; then the folded network, whose kernels differ at every position, is
trained further, and, as a control, so is the unfolded one with its shared kernels, for as many
epochs at the same learning rate. ``--runs`` begins with networks that `realspike train` or
`realspike table` trained, on their data. Accuracies are those of the last epoch on test images that
chose nothing.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import realspike
import torch
from realspike.config.run_config import RunConfig
from realspike.data import Splits, digits, load
from realspike.inspect import trained_file
from realspike.inspect.classify import evaluate
from torch import nn

import realspike_ops as rso

T = 4
COLUMNS = ("trained", "folded", "trained further", "folded, trained further")


def make_network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)

    def layer(Cin, Cout, size, stride=1):
        conv = nn.Conv2d(Cin, Cout, 3, stride, 1, bias=False)
        return conv, nn.BatchNorm2d(Cout), rso.RealSpikeLIF(T, "element", (Cout, size, size))

    encode, norm, lif = layer(1, width, 8)
    return nn.Sequential(
        *(encode, norm, rso.DirectEncoding(T), lif),
        *layer(width, width, 8),
        *layer(width, 2 * width, 4, stride=2),
        *(nn.Flatten(), nn.Linear(32 * width, 10), rso.MeanOverTime(T)),
    )


SETTINGS = {
    **{"batch_size": 128, "crop": 1, "weight_decay": 5e-4, "scale_amplitudes": False},
    "threads": 1,  # small layers; and the accuracy of a seed depends on their number
}


def fit(network: nn.Module, data, config: "RunConfig | None" = None, **settings) -> dict:
    """Train in place; return the record of the last epoch."""
    if config is not None:
        config = config.replaced(**{f"training.{key}": value for key, value in settings.items()})
        settings = {}
    with tempfile.TemporaryDirectory() as folder:
        return realspike.fit(network, data, folder, config=config, **settings).records[-1]


class Start(NamedTuple):
    """A trained network, where it is trained further, and its accuracy."""

    name: str
    what: str  # for the title
    stem: str  # of the files
    seed: int
    network: nn.Module
    data: Splits
    settings: dict
    accuracy: float
    test_batches: Callable[[], Iterable]  # of inputs and labels


def on_digits(seed: int, arguments: argparse.Namespace) -> Start:
    data = digits.split(*digits.read_pixels(), seed)
    network = make_network(arguments.width, seed)
    settings = {"epochs": arguments.epochs, "learning_rate": 0.05, "seed": seed}
    first = fit(network, data, **SETTINGS, **settings)
    images = (data.test.samples - data.mean[0]) / data.std[0]
    batches = [(images, data.test.labels)]
    what = f"the digits, {arguments.width} channels, {arguments.epochs} epochs at first"
    return Start(
        name=f"seed {seed}",
        what=what,
        stem=f"digits-{arguments.width}ch",
        seed=seed,
        network=network,
        data=data,
        settings=SETTINGS,
        accuracy=first["test_accuracy"],
        test_batches=lambda: batches,
    )


def of_run(run: Path, arguments: argparse.Namespace) -> Start:
    overrides = [f"data.root={arguments.root}"] if arguments.root else []
    trained = trained_file.load(run, overrides)
    # What the run began with, and where it ended, are not those of the further training.
    config = trained.config.replaced(start_from=None, max_steps=None, restarts="")
    rate = config.training.amplitude_rate
    if rate is not None:  # it falls as the rate of the weights does
        rate *= arguments.learning_rate / config.training.learning_rate
        config = config.replaced(amplitude_rate=rate)
    name, section = config.data.name, config.network_config()
    return Start(
        name=run.name,
        what=f"{name}, {section.architecture} of width {section.width}",
        stem=f"{name}-{section.architecture}-{section.width}ch",
        seed=config.training.seed,
        network=trained.network,
        data=load(config),
        settings={"config": config},
        accuracy=trained.record["history"][-1]["test_accuracy"],
        test_batches=trained.test_batches,
    )


def train_further(start: Start, arguments: argparse.Namespace) -> dict:
    network = start.network.eval()
    inputs, _ = next(iter(start.test_batches()))
    folded = rso.reparameterize(network, inputs[:1]).eval()
    tested = evaluate(folded, start.test_batches())
    result = {
        "run": start.name,
        "seed": start.seed,
        "test_images": tested["samples"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "parameters_folded": sum(p.numel() for p in folded.parameters()),
        "trained": start.accuracy,
        "folded": tested["accuracy"],
    }
    further = {"epochs": arguments.more, "learning_rate": arguments.learning_rate}
    for name, either in (("trained further", network), ("folded, trained further", folded)):
        last = fit(either, start.data, **start.settings, **further, seed=start.seed + 1000)
        result[name], result[f"{name}: loss"] = last["test_accuracy"], last["train_loss"]
    rso.assert_multiplication_free(folded, inputs[:4])
    return result


def table(results: list[dict], what: str, arguments: argparse.Namespace) -> str:
    first = results[0]
    command = (
        f"--runs {' '.join(run.name for run in arguments.runs)}"
        if arguments.runs
        else f"--seeds {arguments.seeds} --width {arguments.width} --epochs {arguments.epochs}"
    )
    command += f" --more {arguments.more} --learning-rate {arguments.learning_rate:g}"
    lines = [
        f"# Fine-tuning of unshared kernels on {what}",
        "",
        f"{arguments.more} epochs of further training at a learning rate of "
        f"{arguments.learning_rate:g}: {first['parameters']:,} parameters trained, "
        f"{first['parameters_folded']:,} folded; {first['test_images']:,} test images. "
        "Test accuracy in %.",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * (len(COLUMNS) + 1),
    ]
    for result in results:
        cells = (f"{100 * result[name]:.2f}" for name in COLUMNS)
        lines.append(f"| {result['run']} | " + " | ".join(cells) + " |")
    means = (f"{100 * statistics.mean(r[name] for r in results):.2f}" for name in COLUMNS)
    lines.append("| mean | " + " | ".join(means) + " |")
    gains = [100 * (r[COLUMNS[3]] - r[COLUMNS[2]]) for r in results]
    error = "(one seed)"
    if len(gains) > 1:
        spread = statistics.stdev(gains) / len(gains) ** 0.5
        error = f"+- {spread:.2f} (standard error over the seeds)"
    lines += [
        "",
        "Unshared over shared kernels after the same further training, in points: "
        f"{statistics.mean(gains):+.2f} {error}.",
        "",
        f"Measured with `python bench/fine_tuning.py {command}`.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", help="trained element-wise, to begin with")
    parser.add_argument("--root", type=Path, help="folder with the data of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="of the digits")
    parser.add_argument("--width", type=int, default=16, help="of the digits' network")
    parser.add_argument("--epochs", type=int, default=20, help="of the digits' network")
    parser.add_argument("--more", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--results", type=Path, help="folder for the table and the numbers")
    arguments = parser.parse_args()
    if arguments.runs:
        starts = (of_run(run, arguments) for run in arguments.runs)
    else:
        starts = (on_digits(seed, arguments) for seed in range(arguments.seeds))
    results = []
    for start in starts:
        results.append(train_further(start, arguments))
        shown = (f"{name} {100 * results[-1][name]:.2f} %" for name in COLUMNS)
        print(f"{start.name}: " + ", ".join(shown), flush=True)
        text = table(results, start.what, arguments)
        if arguments.results:
            arguments.results.mkdir(parents=True, exist_ok=True)
            path = arguments.results / f"fine-tuning-{start.stem}"
            path.with_suffix(".md").write_text(text + "\n")
            path.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
