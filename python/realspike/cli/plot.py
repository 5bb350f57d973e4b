"""`realspike plot`."""

import json

from realspike import output
from realspike.cli import common
from realspike.optional import require


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "plot",
        run,
        help="draw a run: curves, kernels, spikes, amplitudes, firing rates; an HTML report",
        description="Draw the pictures of a run into its folder plots/ and write report.html,\n"
        "which holds them all: accuracy over epochs (Fig. 5), a kernel and what the amplitudes\n"
        "make of it (Fig. 3), channels as binary and real-valued spikes, amplitudes and\n"
        "firing rates.",
        examples=[
            "realspike plot runs/real --beside runs/binary",
            "realspike plot runs/real --entropy",
        ],
    )
    parser.add_argument(
        "run_folder",
        type=common.path,
        metavar="RUN",
        help="a run's folder, a checkpoint, or a network that comes with the package",
    )
    common.add_allow(parser)
    parser.add_argument(
        "--beside",
        type=common.path,
        action="append",
        default=[],
        metavar="RUN",
        help="another run whose curves are drawn beside, such as the binary network's; repeatable",
    )
    parser.add_argument(
        "--entropy",
        action="store_true",
        help="print the capacity of a spike (Section 3.4) and the measured entropies per layer",
    )
    common.add_evaluation(parser)


def run(arguments) -> int:
    if arguments.json and not arguments.entropy:
        return common.fail(2, "--json is for --entropy, whose table it prints")
    if arguments.beside and arguments.entropy:
        return common.fail(2, "--beside is for the pictures, and --entropy prints a table")
    console = output.console()

    from realspike.inspect import trained_file
    from realspike.inspect.activity import entropy_table, record_activity
    from realspike.report import run_report

    samples = arguments.samples or run_report.SAMPLES
    if not arguments.entropy:
        page = run_report.write(
            arguments.run_folder,
            arguments.beside,
            arguments.overrides,
            arguments.allow,
            samples,
        )
        console.print(f"Files: {page}, {page.parent / run_report.FOLDER}/", soft_wrap=True)
        return 0
    network = trained_file.load(arguments.run_folder, arguments.overrides, arguments.allow)
    batches = network.test_batches(samples)
    rows = entropy_table(record_activity(network.network, (inputs for inputs, _ in batches)))
    if not rows:
        return common.fail(1, f"{network.source} has no LIF layers, and no spikes")
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    out = require("rich.table").Table(
        title="Entropy of a spike [bits]",
        title_justify="left",
        box=require("rich.box").SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, text in enumerate(run_report.ENTROPY_HEADER):
        out.add_column(text, justify="right" if number else "left")
    for row in run_report.entropy_rows(rows):
        out.add_row(*row)
    console.print(out)
    console.print(
        "capacity: the largest possible, R(X) of Section 3.4. emitted: of the values over all "
        "neurons of a layer. fires or not: without amplitudes and signs. per neuron: of one, which "
        "emits 0 or its own amplitude, with a ternary spike's sign, however many bits that has."
    )
    return 0
