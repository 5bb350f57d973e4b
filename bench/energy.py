"""What trained networks cost per image, before and after folding, beside their accuracy.

    python bench/energy.py RUN ... --root FOLDER --save PAGE

Operations are counted on test images by `realspike_ops.profile`; an energy is 4.6 pJ a
multiply-accumulate and 0.9 pJ an addition, the usual numbers of a 45 nm process. The ANN is the
same layers with ReLU, once per image. Rows of one kind are averaged over their seeds.
"""

import argparse
import statistics
from pathlib import Path

from realspike.config.network_config import GRANULARITIES, method_of
from realspike.inspect import trained_file

import realspike_ops as rso

HEADER = (
    "amplitudes", "seeds", "accuracy, %", "firing rate, %", "trained: additions", "multiplications",
    "energy, uJ", "folded: additions", "multiplications", "energy, uJ", "of the ANN's",
)  # fmt: skip


def costs(network, batches) -> dict[str, float]:
    report = rso.profile(network, batches)
    rates = [layer.firing_rate for layer in report.layers if layer.kind == "neurons"]
    names = ("additions", "multiplications", "energy_pj", "ann_energy_pj")
    return {name: report.total(name) for name in names} | {"rate": statistics.mean(rates)}


def measure(run: Path, arguments: argparse.Namespace) -> dict:
    overrides = [f"data.root={arguments.root}"] if arguments.root else []
    trained = trained_file.load(run, overrides)
    folded = rso.reparameterize(trained.network, trained.example_input()).eval()
    return {
        "method": method_of(trained.network_config),
        "accuracy": trained.record["history"][-1]["test_accuracy"],
        "trained": costs(trained.network, trained.test_batches(arguments.samples)),
        "folded": costs(folded, trained.test_batches(arguments.samples)),
    }


def row(method: str, found: list[dict]) -> list[str]:
    def mean(stage: str, name: str) -> float:
        return statistics.mean(result[stage][name] for result in found)

    cells = [f"{100 * mean('trained', 'rate'):.1f}"]
    for stage in ("trained", "folded"):
        cells += [f"{mean(stage, name) / 1e6:.2f} M" for name in ("additions", "multiplications")]
        cells.append(f"{mean(stage, 'energy_pj') / 1e6:.2f}")
    cells.append(f"{mean('folded', 'energy_pj') / mean('trained', 'ann_energy_pj'):.3f}")
    accuracy = f"{100 * statistics.mean(result['accuracy'] for result in found):.2f}"
    return [method, str(len(found)), accuracy, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--root", type=Path, help="folder with their data")
    parser.add_argument("--samples", type=int, default=256, help="test images to count on")
    parser.add_argument("--save", type=Path, help="a page for the table")
    arguments = parser.parse_args()
    results = [measure(run, arguments) for run in arguments.runs]
    rows = [HEADER, ["---"] * len(HEADER)]
    for method in (*GRANULARITIES, "ternary"):
        if found := [result for result in results if result["method"] == method]:
            rows.append(row(method, found))
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    text = "\n".join(
        [
            "# What a trained network costs per image",
            "",
            f"Operations of the first {arguments.samples} test images, accuracies on all of them; "
            "rows are means over seeds.",
            "",
            *lines,
            "",
            "An energy is 4.6 pJ a multiply-accumulate and 0.9 pJ an addition. The ANN: the same "
            "layers with ReLU, once per image. What a folded network multiplies is the encoding, "
            "which reads pixels.",
            "",
            f"Measured with `python bench/energy.py --samples {arguments.samples}` on the runs "
            f"{', '.join(run.name for run in arguments.runs)}.",
        ]
    )
    print(text)
    if arguments.save:
        arguments.save.write_text(text + "\n")


if __name__ == "__main__":
    main()
