"""`realspike fold` and `realspike verify`."""

from realspike.cli import common


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "fold",
        run,
        help="fold a trained network into one that emits 0 and 1 and only adds",
        description="Fold the amplitudes and batch norms of a trained network into its weights,\n"
        "check that the result multiplies nothing, and write it.",
        examples=["realspike fold runs/real -o folded.safetensors"],
    )
    common.add_checkpoint(parser)
    parser.add_argument(
        *("--out", "-o"),
        type=common.path,
        required=True,
        metavar="FOLDED",
        help="the file to write",
    )
    parser = common.add_command(
        commands,
        "verify",
        run_verify,
        help="compare a trained and a folded network, layer by layer",
        description="Run both on the test data: the largest error of the currents and the flipped\n"
        "spikes per layer, the difference of the outputs, the share of equal predictions.\n"
        "Exit code 1 if fewer than --agreement of the predictions are equal.",
        examples=["realspike verify runs/real folded.safetensors"],
    )
    common.add_checkpoint(parser)
    parser.add_argument(
        "folded", type=common.path, metavar="FOLDED", help="what `realspike fold` wrote"
    )
    parser.add_argument(
        "--agreement",
        type=common.share,
        default=0.99,
        metavar="SHARE",
        help="of equal predictions that is enough (default: %(default)s)",
    )
    common.add_evaluation(parser)


def run(arguments) -> int:
    import realspike_ops as rso
    from realspike.inspect import folded_file, trained_file

    network = trained_file.load(arguments.checkpoint, allow=arguments.allow)
    try:
        binary = folded_file.fold(network)
        rso.assert_multiplication_free(binary, network.example_input())
    except (rso.ReparameterizationError, rso.MultiplicationError) as error:
        return common.fail(1, f"{network.source}: {error}")
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        folded_file.save(arguments.out, network, binary)
    except OSError as error:
        return common.fail(2, f"cannot write {arguments.out}: {error.strerror or error}")
    print(
        f"{arguments.out}: {folded_file.size_of(binary)} of folded weights "
        f"({folded_file.size_of(network.network)} trained), free of multiplications"
    )
    return 0


def run_verify(arguments) -> int:
    import realspike_ops as rso
    from realspike.inspect import folded_file, trained_file

    network = trained_file.load(arguments.checkpoint, arguments.overrides, arguments.allow)
    binary = folded_file.load(arguments.folded)
    if binary.network_config != network.network_config:
        return common.fail(
            2, f"{arguments.folded} was folded from another network than {network.source} holds"
        )
    counted = []

    def batches():
        for inputs, labels in network.test_batches(arguments.samples):
            counted.append(len(labels))
            yield inputs

    report = rso.verify(network.network, binary.network, batches())
    # Of frames, `verify` counts every timestep as a sample.
    report.agreement *= report.samples / sum(counted)
    report.samples = sum(counted)
    print(report.to_json() if arguments.json else report)
    if not report.agreement >= arguments.agreement:
        return common.fail(
            1, f"only {report.agreement:.2%} of the predictions agree ({arguments.agreement:.2%})"
        )
    return 0
