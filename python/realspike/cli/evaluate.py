"""`realspike eval`."""

import json

from realspike.cli import common


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "eval",
        run,
        help="classify the test data with a trained or folded network",
        description="Classify the test data that belong to a checkpoint, trained or folded, and\n"
        "print accuracy and loss.",
        examples=[
            "realspike eval runs/real",
            "realspike eval folded.safetensors data.root=~/data --samples 1000",
        ],
    )
    common.add_checkpoint(parser)
    common.add_evaluation(parser)


def run(arguments) -> int:
    from realspike.inspect import classify, folded_file

    network = folded_file.load_either(arguments.checkpoint, arguments.overrides, arguments.allow)
    result = classify.evaluate(network.network, network.test_batches(arguments.samples))
    data = network.config.data
    if arguments.json:
        print(json.dumps({"checkpoint": str(network.source)} | result, indent=2))
    else:
        print(
            f"{network.source}: {result['correct']} of {result['samples']} "
            f"{data.tested_on} samples of {data.name} right, "
            f"accuracy {100 * result['accuracy']:.2f} %, loss {result['loss']:.4f}"
        )
    return 0
