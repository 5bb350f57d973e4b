"""`realspike profile`."""

from realspike.cli import common


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "profile",
        run,
        help="count spikes, additions and multiplications, layer by layer",
        description="Run a trained or folded network on the test data and print, per layer,\n"
        "firing rates, synaptic operations, weights and the usual energy estimate.",
        examples=["realspike profile folded.safetensors --samples 256"],
    )
    common.add_checkpoint(parser)
    common.add_evaluation(parser)


def run(arguments) -> int:
    import realspike_ops as rso
    from realspike.inspect import folded_file

    network = folded_file.load_either(arguments.checkpoint, arguments.overrides, arguments.allow)
    report = rso.profile(network.network, network.test_batches(arguments.samples))
    print(report.to_json() if arguments.json else report)
    return 0
