"""`realspike export`."""

import argparse
import io
import math
from collections import Counter

from realspike.cli import common


def add(commands) -> None:
    parser = common.add_command(
        commands,
        "export",
        run,
        help="write a trained or folded network as a NIR graph, for other simulators and hardware",
        description="Fold a trained network (a folded one is taken as it is) and write it in the\n"
        "Neuromorphic Intermediate Representation, which snnTorch, SpikingJelly and others read:\n"
        "docs/deployment.md has what each of them gets right. `pip install '.[nir]'` for it.",
        examples=[
            "realspike export runs/real -o network.nir",
            "realspike export folded.safetensors -o network.nir --fold-r",
        ],
    )
    common.add_checkpoint(parser)
    parser.add_argument(
        *("--out", "-o"), type=common.path, required=True, metavar="GRAPH", help="the .nir file"
    )
    parser.add_argument(
        "--dt",
        type=_seconds,
        default=1e-4,
        metavar="SECONDS",
        help="of one timestep (default: %(default)g, the only one that snnTorch reads)",
    )
    parser.add_argument(
        "--fold-r",
        action="store_true",
        help="r = 1, for readers that ignore it (norse); weights may be rounded",
    )
    parser.add_argument(
        "--max-bytes",
        type=common.integer(1, 2**60),
        default=2**30,
        metavar="N",
        help="the most that the graph's arrays may take (default: %(default)s)",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, in seconds; got {text!r:.40}")
    return value


def run(arguments) -> int:
    import realspike_ops as rso
    from realspike.files import write_atomically
    from realspike.inspect import folded_file
    from realspike.optional import require

    nir = require("nir")
    network = folded_file.load_either(arguments.checkpoint, allow=arguments.allow)
    try:
        binary = network.network
        if not isinstance(binary, rso.FoldedNetwork):
            binary = folded_file.fold(network)
        graph = rso.export_nir(
            binary, dt=arguments.dt, fold_r=arguments.fold_r, max_bytes=arguments.max_bytes
        )
    except ValueError as error:
        return common.fail(1, f"{network.source}: {error}")
    content = io.BytesIO()
    nir.write(content, graph)
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.out, content.getvalue())
    except OSError as error:
        return common.fail(2, f"cannot write {arguments.out}: {error.strerror or error}")
    counts = Counter(type(node).__name__ for node in graph.nodes.values())
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(f"{arguments.out}: {shown}; {graph.metadata['timesteps']} timesteps")
    return 0
