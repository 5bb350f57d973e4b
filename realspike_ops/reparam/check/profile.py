"""The cost of a network by layer: firing rates, synaptic operations, bytes and energy."""

import torch
from torch import nn

from realspike_ops import _checks as checks
from realspike_ops.reparam.check.batches import batches_of
from realspike_ops.reparam.check.operation_counter import OperationCounter
from realspike_ops.reparam.check.profile_report import ProfileReport
from realspike_ops.reparam.check.verify import eval_mode
from realspike_ops.reparam.network import FoldedNetwork


@torch.no_grad()
def profile(network: nn.Module, data, *, names_of: nn.Module | None = None) -> ProfileReport:
    """Run a trained or folded network and count what it computes.

    A spike that meets a weight is one synaptic operation: an addition if the spikes are 0 and 1 (or
    -1), a multiply-add if they are real-valued. The encoding, which reads real values, is counted
    in full. Beside it the same layers of an ANN: every weight of every connection once per sample,
    as a multiply-add.

    Products of matrices (``matmul``, ``bmm``, ``einsum``, attention) count as linear layers do, the
    operand that is no spikes as weights. Where both operands are spikes, an addition is where both
    fire; where neither is, a multiply-add where both are not 0.

    Args:
        network: Run in eval mode, restored afterwards.
        data: A batch, or an iterable of batches, or of (batch, labels) pairs such as a DataLoader.
        names_of: The trained network, by whose names the layers of a folded one are called. None:
            a folded network knows the names of its neurons, and of the modules that hold them.

    Returns:
        Counts per sample. Neurons count one addition per timestep and, unless their decay is 0 or
        1, one multiplication; batch norm, pooling and scaling by constants count in the layers
        where they stand.

    Raises:
        TypeError: if ``network`` is not a module, or a scripted one, or ``data`` holds other than
            tensors.
        ValueError: if ``data`` yields no batch, or one of another shape.
    """
    checks.check_module("network", network)
    if names_of is not None:
        checks.check_module("names_of", names_of)
    if isinstance(network, torch.jit.ScriptModule):
        raise TypeError("network is scripted or traced: give the one that it was made of")
    counter = OperationCounter(network, _names_of_model(network, names_of))
    with eval_mode(network), counter.hooked():
        for batch in batches_of(data, getattr(network, "input_shape", None)):
            counter.count(batch.inputs)
    return counter.report()


def _names_of_model(network: nn.Module, trained: nn.Module | None) -> dict[str, str]:
    """Return how layers, and modules that hold layers, are called in the trained network, by their
    names in the folded one, which have no dots."""
    if not isinstance(network, FoldedNetwork):
        return {}
    layers = dict(network.neurons.values())
    holders = {name.rpartition(".")[0] for name in layers}
    parts = [holder.split(".") for holder in holders if holder]
    known = {".".join(names[: n + 1]) for names in parts for n in range(len(names))}
    if trained is not None:
        known |= {name for name, _ in trained.named_modules() if name}
    of_modules = {name.replace(".", "_"): name for name in sorted(known)}
    return of_modules | {step: layer for step, (layer, _) in network.neurons.items()}
