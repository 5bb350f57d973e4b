"""From a network of ReLU, or of another library's neurons, to one of RealSpikeLIF layers."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from realspike_ops import _checks as checks
from realspike_ops.convert.conversion import Conversion
from realspike_ops.convert.neurons import Neuron, neuron_of, torch_class
from realspike_ops.nn import RealSpikeLIF
from realspike_ops.nn.neurons.lif import GRANULARITIES
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.trace import plain_copy

# Arguments of RealSpikeLIF that the neurons in the place of ReLU may have.
_FORM = (
    "decay", "v_threshold", "v_reset", "reset", "detach_reset", "emission", "decay_granularity",
    "threshold_granularity",
)  # fmt: skip


@torch.inference_mode(False)  # whose tensors could not be trained on
def convert(
    model: nn.Module,
    example_input: Tensor,
    *,
    timesteps: int,
    granularity: str = "none",
    surrogate: str | tuple[str, float] | None = None,
    norms_at_threshold: bool = False,
    encode: bool = True,
    **neuron,
) -> fx.GraphModule:
    """Return a network of `RealSpikeLIF` layers from one of ReLU, or of another library's neurons.

    `convert` records ``forward``, as `reparameterize` does. Every call of ReLU (layers; ``F.relu``,
    ``torch.relu``, ``x.relu_()``, ``clamp(min=0)``; ReLU6, whose bound is dropped) and every neuron
    becomes a layer of its own, with the shape that the example has there. `DirectEncoding` is
    placed at the last tensor that everything goes through before the first neuron (behind the first
    convolution and norm), `MeanOverTime` at the outputs, before a softmax. What is returned is run,
    and gives at every timestep what ``forward`` gives; of more than 256 timesteps, 256 are, where
    ``forward`` itself does not run over time. A network of ReLU is not the same network afterwards:
    train it. Spikes of neurons are equal to those of the other library after T calls, as
    docs/migration.md says for each.

    Args:
        model: Any module that `reparameterize` follows. It is not changed, and shares nothing with
            the result.
        example_input: An input, [B, ...], whose batch size is free. A network that itself runs over
            time (SpikingJelly's step mode "m") may have [T, B, ...]; the result then takes
            [T*B, ...], ``x.flatten(0, 1)``.
        timesteps: T.
        granularity: Which neurons share an amplitude, as in `RealSpikeLIF`. Where max pooling reads
            neurons, "element" becomes "channel": the maximum picks one of several amplitudes.
        surrogate: The surrogate gradient of all neurons. Default: the one that they have, and
            rectangular in the place of ReLU.
        norms_at_threshold: Start the weights of batch norms in front of neurons at their threshold,
            and at 1/sqrt(2) of it where two of them are added.
        encode: False: inputs are frames, [T*B, ...] with the timestep outermost, and nothing is
            repeated over time.
        **neuron: ``decay``, ``v_threshold``, ``v_reset``, ``reset``, ``detach_reset``,
            ``emission``, ``decay_granularity`` and ``threshold_granularity`` of the neurons in the
            place of ReLU, as `RealSpikeLIF` has them.

    Returns:
        A `torch.fx.GraphModule` in the mode and on the device of ``model``; ``print(it.code)``
        shows what it runs. Parameters and buffers keep their names and values. A neuron is named as
        the layer that it replaces; the second call of one layer gets one of its own, ``relu_2``,
        and a function becomes ``relu``, ``relu_2``, ... in the module that calls it. Layers that no
        output needs are left out.

    Raises:
        TypeError, ValueError: for an argument, by name.
        ReparameterizationError: for anything that has no equal here, by name: other activations and
            neurons, loops over time inside ``forward``, outputs that are potentials, a ``forward``
            that depends on the mode or on tensors computed from parameters.
    """
    checks.check_module("model", model)
    checks.check_values("example_input", example_input)
    checks.check_positive_int("timesteps", timesteps)
    checks.check_choice("granularity", granularity, GRANULARITIES)
    checks.check_flag("norms_at_threshold", norms_at_threshold)
    checks.check_flag("encode", encode)
    if unknown := [name for name in neuron if name not in _FORM]:
        accepted = ", ".join(_FORM)
        raise TypeError(f"convert() has no argument {unknown[0]!r}; of neurons, it has {accepted}")
    form: dict[str, Any] = neuron | ({} if surrogate is None else {"surrogate": surrogate})
    RealSpikeLIF(timesteps, "none", (1,), **form)  # refuses what it does not take
    root = plain_copy(model)
    neurons = {}
    for name, module in root.named_modules():
        if (found := neuron_of(name, module, surrogate)) is not None:
            neurons[name] = found
        elif (kind := torch_class(module)) is not None:
            if module.step_mode == "m":
                neurons[name] = None
            else:
                module.__class__ = kind
                vars(module)["step_mode"] = "s"  # networks ask for it
    conversion = Conversion(root, timesteps, granularity, Neuron(form), norms_at_threshold)
    splits_time = any(n is None or n.splits_time for n in neurons.values())
    time = "inside" if splits_time else "encode" if encode else "frames"
    if neurons and example_input.shape[:1] == (timesteps,):
        # [T, B, ...], unless forward repeats images [B, ...] and B = T.
        try:
            return conversion.of(example_input.flatten(0, 1), neurons, "split")
        except (ReparameterizationError, RuntimeError) as error:
            refusal = error
        try:
            return conversion.of(example_input, neurons, time)
        except ReparameterizationError as error:
            # The error of the reading under which forward runs says more.
            raise (error if "cannot be run" in str(refusal) else refusal) from None
    return conversion.of(example_input, neurons, time)
