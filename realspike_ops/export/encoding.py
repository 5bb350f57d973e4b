"""The encoding of a folded network as synapses that read the image.

NIR has no batch norm, no average over a window and no sum of branches but at a node. Folding makes
one set of synapses of all these, so the encoding is folded once more, as if the image were spikes.
"""

import torch
from torch import Tensor, nn

from realspike_ops.nn import DirectEncoding, RealSpikeLIF
from realspike_ops.reparam import FoldedNetwork, ReparameterizationError, reparameterize
from realspike_ops.reparam.network import INPUT, EncodingCall, Step


class _Encoding(nn.Module):
    """The steps that compute one real value, with neurons in the place of the image."""

    def __init__(self, folded: FoldedNetwork, steps: list[Step]):
        super().__init__()
        self.steps = steps
        self.image_ = RealSpikeLIF(1)
        for step in steps:
            self.add_module(step.name, folded.get_submodule(step.name))

    def forward(self, x: Tensor) -> Tensor:
        values = {INPUT: self.image_(x)}
        for step in self.steps:
            module, inputs = self.get_submodule(step.name), [values[n] for n in step.inputs]
            if type(module) is DirectEncoding:
                (values[step.name],) = inputs  # at one timestep
            elif type(module) is EncodingCall:
                values[step.name] = module.forward(*inputs)  # its operation is traced, not it
            else:
                values[step.name] = module(*inputs)
        return values[self.steps[-1].name]


def real_steps(folded: FoldedNetwork) -> dict[str, Step]:
    """Return the steps that no spike reaches, in their order."""
    real: dict[str, Step] = {}
    for step in folded.steps:
        fires = isinstance(folded.get_submodule(step.name), RealSpikeLIF)
        if not fires and all(name == INPUT or name in real for name in step.inputs):
            real[step.name] = step
    return real


def folded_encoding(folded: FoldedNetwork, real: dict[str, Step], name: str) -> FoldedNetwork:
    """Return a network of neurons in the place of the image, and the synapses that compute the real
    value ``name`` from it.

    Raises:
        ValueError: for an operation that is not linear, named.
    """
    needed = {name}
    for step in reversed(real.values()):
        needed |= set(step.inputs) if step.name in needed else set()
    steps = [step for step in real.values() if step.name in needed]
    example = torch.zeros(1, *folded.input_shape)
    try:
        return reparameterize(_Encoding(folded, steps), example)
    except ReparameterizationError as error:
        # What stands for the image here are spikes, which the user's network has not.
        reason = str(error).replace(" reads the spikes of a LIF layer and cannot be folded", "")
        raise ValueError(
            f"{name!r} of the encoding has no equal in NIR, which computes convolutions, averages "
            f"and sums from the image: {reason}"
        ) from error
