"""What truly unshared kernels add: fine-tuning of folded networks on the handwritten digits.

    python bench/fine_tuning.py --seeds 5 --width 16 --results bench/results

For every seed (of split, weights and batches) an element-wise Real Spike network is trained and
folded; then the folded network, whose kernels differ at every position, is trained further, and, as
a control, so is the unfolded one with its shared kernels, for as many epochs at the same learning
rate. Accuracies are those of the last epoch on test images that chose nothing.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import realspike
import torch
from realspike.data import digits
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


def fit(network: nn.Module, data, **settings) -> dict:
    """Train in place; return the record of the last epoch."""
    with tempfile.TemporaryDirectory() as folder:
        return realspike.fit(network, data, folder, **SETTINGS, **settings).records[-1]


def run_seed(seed: int, width: int, epochs: int, more: int, learning_rate: float) -> dict:
    data = digits.split(*digits.read_pixels(), seed)
    network = make_network(width, seed)
    first = fit(network, data, epochs=epochs, learning_rate=0.05, seed=seed)
    images = (data.test.samples - data.mean[0]) / data.std[0]
    folded = rso.reparameterize(network, images[:1])
    result = {
        "seed": seed,
        "test_images": len(images),
        "parameters": sum(p.numel() for p in network.parameters()),
        "parameters_folded": sum(p.numel() for p in folded.parameters()),
        "trained": first["test_accuracy"],
        "folded": evaluate(folded.eval(), [(images, data.test.labels)])["accuracy"],
    }
    for name, either in (("trained further", network), ("folded, trained further", folded)):
        last = fit(either, data, epochs=more, learning_rate=learning_rate, seed=seed + 1000)
        result[name], result[f"{name}: loss"] = last["test_accuracy"], last["train_loss"]
    rso.assert_multiplication_free(folded, images[:4])
    return result


def table(results: list[dict], arguments: argparse.Namespace) -> str:
    first = results[0]
    lines = [
        "# Fine-tuning of unshared kernels on the digits",
        "",
        f"{arguments.epochs} epochs of training, {arguments.more} of further training at a "
        f"learning rate of {arguments.learning_rate:g}; {arguments.width} channels: "
        f"{first['parameters']:,} parameters trained, {first['parameters_folded']:,} folded; "
        f"{first['test_images']} test images per seed. Test accuracy in %.",
        "",
        "| seed | " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * (len(COLUMNS) + 1),
    ]
    for result in results:
        cells = (f"{100 * result[name]:.2f}" for name in COLUMNS)
        lines.append(f"| {result['seed']} | " + " | ".join(cells) + " |")
    means = (f"{100 * statistics.mean(r[name] for r in results):.2f}" for name in COLUMNS)
    lines.append("| mean | " + " | ".join(means) + " |")
    gains = [100 * (r[COLUMNS[3]] - r[COLUMNS[2]]) for r in results]
    spread = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    lines += [
        "",
        f"Unshared over shared kernels after the same further training: "
        f"{statistics.mean(gains):+.2f} +- {spread:.2f} points (standard error over the seeds).",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--more", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--results", type=Path, help="folder for the table and the numbers")
    arguments = parser.parse_args()
    results = []
    for seed in range(arguments.seeds):
        settings = (arguments.width, arguments.epochs, arguments.more, arguments.learning_rate)
        results.append(run_seed(seed, *settings))
        shown = (f"{name} {100 * results[-1][name]:.2f} %" for name in COLUMNS)
        print(f"seed {seed}: " + ", ".join(shown), flush=True)
    text = table(results, arguments)
    print("\n" + text)
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        stem = f"fine-tuning-digits-{arguments.width}ch"
        (arguments.results / f"{stem}.md").write_text(text + "\n")
        content = json.dumps(results, indent=2)
        (arguments.results / f"{stem}.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
