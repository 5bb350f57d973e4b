"""`realspike profile`."""

from realspike.cli import common


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "profile",
        run,
        help="count spikes, additions and multiplications, layer by layer",
        description="Run a trained or folded network on the test data and print, per layer,\n"
        "firing rates, synaptic operations, weights and the usual energy estimate; below, the\n"
        "energy beside that of the equal ANN. Layers are called as in the trained network.",
        examples=["realspike profile folded.safetensors --samples 256"],
    )
    common.add_checkpoint(parser)
    common.add_evaluation(parser)


def run(arguments) -> int:
    import realspike_ops as rso
    from realspike.inspect import folded_file
    from realspike.networks import build
    from realspike.own import is_own

    network = folded_file.load_either(arguments.checkpoint, arguments.overrides, arguments.allow)
    names_of = None
    if isinstance(network.network, rso.FoldedNetwork) and not is_own(
        network.network_config.architecture
    ):
        names_of = build(network.network_config, seed=0)
    batches = network.test_batches(arguments.samples)
    report = rso.profile(network.network, batches, names_of=names_of)
    print(report.to_json() if arguments.json else report)
    return 0
