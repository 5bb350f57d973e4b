"""What int8 weights cost on the handwritten digits, with ordinary scales and with powers of two.

    python bench/quantization.py --seeds 3 --widths 4 16 --results docs/results

For every seed (of split, weights and batches) an element-wise Real Spike network is trained and
folded in float32, in int8 with ordinary scales, and in int8 with scales that are powers of two,
whose sums are exact. Then the folded network is fine-tuned knowing what its weights will be rounded
to: forward on the grid of the power-of-two scales, backward straight through the rounding; also on
the 3-bit part of that grid, every 32nd step. The control is trained for as many epochs without the
rounding, and rounded to the same grid in the end.
Accuracies are those of the last epoch on test images that chose nothing.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path

import torch
from fine_tuning import fit, make_network
from realspike.data import digits
from realspike.inspect.classify import evaluate
from torch import Tensor, nn
from torch.nn.utils import parametrize

import realspike_ops as rso

COLUMNS = ("float32", "int8", "exact int8")
GRIDS = {"8 bits": 1, "3 bits": 32}  # every how many int8 steps
TUNED = [f"{bits}, {kind}" for bits in GRIDS for kind in ("control", "fine-tuned")]
# What is added to int8 steps, and the class scores: coarse enough for sums below 2^24 of them.
PART_OF_A_STEP = 2.0**-6
PART_OF_A_SCORE = 2.0**-14


class OnSteps(nn.Module):
    """Round weights to int8 steps of a scale, or to every few of them; the gradient passes as if
    they were not."""

    def __init__(self, scale: Tensor, every: int):  # [G, 1, 1, 1, Cout/G]
        super().__init__()
        self.every = every
        self.register_buffer("scale", scale)

    def steps(self, weight: Tensor) -> Tensor:  # [OH, OW, G, KH, KW, Cin/G, Cout/G]
        largest = 127 // self.every
        return (weight / (self.scale * self.every)).round().clamp(-largest, largest) * self.every

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.steps(weight) * self.scale - weight).detach()


def grids(exact: rso.FoldedNetwork, every: int) -> dict[str, OnSteps]:
    """Return for every step with int8 weights the grid that they are on."""
    found = {}
    for step in exact.steps:
        scale = getattr(exact.get_submodule(step.name), "current_scale", None)
        if scale is not None:
            (current,) = step.inputs
            groups = exact.get_submodule(current).groups
            found[current] = OnSteps(scale.view(groups, 1, 1, 1, -1), every)
    return found


@torch.no_grad()
def rounded(folded: rso.FoldedNetwork, exact: rso.FoldedNetwork, every: int) -> rso.FoldedNetwork:
    """Return `exact` with the numbers of a float32 network, rounded to its grids."""
    result, of = copy.deepcopy(exact), grids(exact, every)
    for step in exact.steps:
        module, target = folded.get_submodule(step.name), result.get_submodule(step.name)
        if step.name in of:
            grid = of[step.name]
            target.weight.copy_(grid.steps(module.weight) + 128)
            bias = module.bias / grid.scale.flatten() / PART_OF_A_STEP
            target.bias.copy_(bias.round() * PART_OF_A_STEP)
        elif isinstance(module, rso.SpikeLinear):
            for name, parameter in target.named_parameters():
                multiples = (module.get_parameter(name) / PART_OF_A_SCORE).round()
                parameter.copy_(multiples * PART_OF_A_SCORE)
        elif step.name in exact.encoding:
            target.load_state_dict(module.state_dict())
    return result


def trained_on(folded, data, on=(), **settings) -> rso.FoldedNetwork:
    """Return a float32 network, trained on, with weights on these grids."""
    folded = copy.deepcopy(folded)
    for name, grid in dict(on).items():
        parametrize.register_parametrization(folded.get_submodule(name), "weight", grid)
    fit(folded, data, **settings)
    return folded.eval()


def run_seed(seed: int, width: int, epochs: int, more: int, learning_rate: float) -> dict:
    data = digits.split(*digits.read_pixels(), seed)
    network = make_network(width, seed)
    fit(network, data, epochs=epochs, learning_rate=0.05, seed=seed)
    network.eval()
    images = (data.test.samples - data.mean[0]) / data.std[0]
    int8 = {"weight_dtype": torch.int8}
    folded = rso.reparameterize(network, images[:1])
    exact = rso.reparameterize(network, images[:1], **int8, scales="power_of_two")
    networks = {
        "float32": folded,
        "int8": rso.reparameterize(network, images[:1], **int8),
        "exact int8": exact,
    }
    further = {"epochs": more, "learning_rate": learning_rate, "seed": seed + 1000}
    control = trained_on(folded, data, **further)
    for bits, every in GRIDS.items():
        aware = trained_on(folded, data, grids(exact, every), **further)
        networks[f"{bits}, control"] = rounded(control, exact, every)
        networks[f"{bits}, fine-tuned"] = rounded(aware, exact, every)
    result = {"seed": seed, "width": width, "test_images": len(images)}
    for name, one in networks.items():
        result[name] = evaluate(one, [(images, data.test.labels)])["accuracy"]
        if name not in ("float32", "int8"):
            rso.assert_exact_sums(one, images[:1])
    for name in COLUMNS[1:3]:
        report = rso.verify(network, networks[name], images)
        all_spikes = sum(layer.neuron_timesteps for layer in report.layers)
        result[f"{name}: flipped spikes"] = report.flipped_spikes / all_spikes
    return result


def mean_and_error(values: list[float]) -> str:
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):+.2f} ± {spread:.2f}"


def table(results: list[dict], arguments: argparse.Namespace) -> str:
    lines = [
        "# int8 on the digits",
        "",
        "Written by `python bench/quantization.py`. Element-wise Real Spike networks of three "
        f"convolutions, {arguments.epochs} epochs of training; fine-tuning and its control: "
        f"{arguments.more} more at a learning rate of {arguments.learning_rate:g}; "
        f"{results[0]['test_images']} test images per seed. *Exact*: scales that are powers of "
        'two, whose sums are exact (`scales="power_of_two"`), as in all columns behind it. Test '
        "accuracy in %.",
    ]
    for width in arguments.widths:
        own = [r for r in results if r["width"] == width]
        lines += [
            "",
            f"## {width} channels",
            "",
            "| seed | " + " | ".join([*COLUMNS, *TUNED]) + " |",
        ]
        lines.append("|" + " --- |" * (1 + len(COLUMNS) + len(TUNED)))
        for r in own:
            cells = (f"{100 * r[name]:.2f}" for name in (*COLUMNS, *TUNED))
            lines.append(f"| {r['seed']} | " + " | ".join(cells) + " |")
        for label, function in (("mean", statistics.mean), ("deviation", statistics.stdev)):
            cells = (f"{100 * function([r[name] for r in own]):.2f}" for name in (*COLUMNS, *TUNED))
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines += ["", "Differences in points, with the standard error over the seeds:", ""]
        for better, than in (
            ("int8", "float32"),
            ("exact int8", "float32"),
            ("exact int8", "int8"),
            ("8 bits, fine-tuned", "exact int8"),
            ("8 bits, fine-tuned", "8 bits, control"),
            ("3 bits, fine-tuned", "3 bits, control"),
        ):
            points = [100 * (r[better] - r[than]) for r in own]
            lines.append(f"- {better}, over {than}: {mean_and_error(points)}")
        flips = (
            f"{100 * statistics.mean(r[f'{name}: flipped spikes'] for r in own):.2f} % with {name}"
            for name in COLUMNS[1:3]
        )
        lines += ["", f"Of all neurons and timesteps, rounding flips {' and '.join(flips)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--more", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--results", type=Path, help="folder for the table and the numbers")
    arguments = parser.parse_args()
    results = []
    for width in arguments.widths:
        for seed in range(arguments.seeds):
            settings = (width, arguments.epochs, arguments.more, arguments.learning_rate)
            results.append(run_seed(seed, *settings))
            shown = (f"{name} {100 * results[-1][name]:.2f} %" for name in (*COLUMNS, *TUNED))
            print(f"{width} channels, seed {seed}: " + ", ".join(shown), flush=True)
    text = table(results, arguments)
    print("\n" + text)
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        (arguments.results / "int8_digits.md").write_text(text)
        content = json.dumps(results, indent=2)
        (arguments.results / "int8_digits.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
