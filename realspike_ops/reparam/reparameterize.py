"""Folding: the layers between LIF layers become synapses."""

import copy

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.functional.quantize_weight import SCALES
from realspike_ops.ops.unshared_matmul import ALGORITHMS
from realspike_ops.reparam.build.allocate import allocate, check_plan
from realspike_ops.reparam.build.walk import Folding
from realspike_ops.reparam.check.batch_check import warn_if_images_meet
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.network import FoldedNetwork
from realspike_ops.reparam.trace.proof import prove
from realspike_ops.reparam.trace.trace import copy_in_eval_mode, trace_of_any_batch

MAX_BYTES = 8 * 2**30
STORAGE = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float64)


@torch.inference_mode(False)  # whose tensors could not be trained on
@torch.no_grad()
def reparameterize(
    model: nn.Module,
    example_input: Tensor,
    *,
    weight_dtype: torch.dtype | None = None,
    scales: str = "largest",
    max_bytes: int = MAX_BYTES,
    algorithm: str = "gather",
) -> FoldedNetwork:
    r"""Return a network that emits only 0 and 1 and whose weight layers only add.

    Between the LIF layers of ``model`` lies a graph of linear layers. The current into a LIF layer
    is :math:`\sum_j L_j(a_j \odot o_j) + c`, over the maps :math:`o_j` of binary spikes that reach
    it; every :math:`L_j \circ diag(a_j)` becomes one set of synapses (Eq. 11 to 13), computed in
    float64 and rounded once. The outputs do not change but for the order of float32 sums.

    Amplitudes that are none, per layer or per channel give shared kernels (`SpikeConv2d`),
    element-wise ones a kernel per position (`UnsharedSpikeConv`), an identity shortcut one synapse
    per neuron (`OneToOneSynapses`), the classifier a `SpikeLinear` with the mean over time in its
    weights. Max pooling is done on the spikes. The encoding, which the image reaches before
    any LIF layer, is left as it is.

    Args:
        model: A trained network; docs/reparam.md lists what it may hold, and how it is followed. It
            is not changed; it is folded as in eval mode.
        example_input: An input of the shape that the network will see; the batch size is free.
        weight_dtype: How the synapses are stored: float32; float16 or bfloat16 in half the memory;
            or int8 in a quarter, which rounds them to 255 steps of one scale per channel: an
            approximation, whose currents, thresholds and potentials are in steps of that scale, so
            that nothing is multiplied (docs/reparam.md). Default: float32, and float64 for a model
            in float64.
        scales: Of int8 weights. "largest": a step is the largest magnitude of the channel over 127.
            "power_of_two": the next power of two from there on, and all that is added to the
            weights, with the class scores, is rounded so that sums of spikes are exact in float32,
            in any order: bit-equal on every backend, and in other programs (docs/reparam.md).
        max_bytes: The most that the synapses may take; default 8 GiB.
        algorithm: "gather": every weight layer only adds. "auto": its convolutions may run on
            matrix units, which multiply, where that should be faster (`unshared_spike_conv`). It is
            `FoldedNetwork.algorithm`, and can be set there later.

    Returns:
        A `FoldedNetwork` in eval mode, on the device of the model. Its layers are named as in
        ``model``, with "." replaced by "_".

    Warns:
        UserWarning: if the outputs of an image depend on what else is in its batch, with what is
            missing.

    Raises:
        TypeError: if an argument is of the wrong type.
        ReparameterizationError: for anything that it cannot fold exactly, named; and if the
            synapses would take more than ``max_bytes``, before they are allocated; with powers of
            two, for a layer whose sums can reach 2^24 steps.
        ValueError: if ``scales`` or ``algorithm`` is no choice, or powers of two are asked of other
            types than int8.
    """
    checks.check_module("model", model)
    for name, module in model.named_modules():
        if isinstance(module, FoldedNetwork):
            where = f"{name!r} of model" if name else "model"
            raise ReparameterizationError(
                f"{where} is a FoldedNetwork: it has been folded; give the network that was trained"
            )
    checks.check_values("example_input", example_input)
    checks.check_positive_int("max_bytes", max_bytes)
    if weight_dtype is None:
        weight_dtype = (
            example_input.dtype if example_input.dtype == torch.float64 else torch.float32
        )
    if not isinstance(weight_dtype, torch.dtype) or weight_dtype not in STORAGE:
        names = ", ".join(str(dtype) for dtype in STORAGE)
        raise TypeError(f"weight_dtype must be one of {names}; got {weight_dtype}")
    checks.check_choice("scales", scales, SCALES)
    checks.check_choice("algorithm", algorithm, ALGORITHMS)
    if scales != "largest" and weight_dtype != torch.int8:
        raise ValueError(
            f"scales={scales!r} is of weight_dtype=torch.int8, the only weights that have scales; "
            f"got weight_dtype={weight_dtype}"
        )
    # A copy, so that neither the mode of the model nor its encoding layers are shared; whatever the
    # default device is, it is folded on the CPU.
    with torch.device("cpu"):
        copied, example = copy_in_eval_mode(model), example_input.detach().cpu()
        as_written = copy.deepcopy(copied)
        graph, rows, batch_is_free = trace_of_any_batch(copied, example)
        folding = Folding(
            graph,
            None if batch_is_free else len(rows),
            # Currents in steps of different scales cannot be added.
            carries=weight_dtype != torch.int8,
        )
        folding.run()
        check_plan(folding, weight_dtype, max_bytes)  # before anything that takes memory or time
        prove(as_written, graph, rows, batch_is_free)
        folded = allocate(folding, weight_dtype, scales)
        folded.algorithm = algorithm
        warn_if_images_meet(as_written, example, stacklevel=4)  # behind two decorators
    return folded.to(example_input.device)
