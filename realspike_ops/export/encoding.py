"""The encoding of a folded network as synapses that read the image.

NIR has no batch norm, no average over a window and no sum of branches but at a node. Folding makes
one set of synapses of all these, so the encoding is folded once more, as if the image were spikes.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from realspike_ops.nn import RealSpikeLIF
from realspike_ops.reparam import FoldedNetwork, ReparameterizationError, reparameterize
from realspike_ops.reparam.encoding_call import EncodingCall
from realspike_ops.reparam.network import INPUT, Step


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
            # The function that a call runs is followed, not the layer that holds it.
            call = module.forward if type(module) is EncodingCall else module
            values[step.name] = call(*inputs)
        return values[self.steps[-1].name]


def real_steps(folded: FoldedNetwork) -> dict[str, Step]:
    """Return the steps that no spike reaches, in their order."""
    real: dict[str, Step] = {}
    for step in folded.steps:
        fires = isinstance(folded.get_submodule(step.name), RealSpikeLIF)
        if not fires and all(name == INPUT or name in real for name in step.inputs):
            real[step.name] = step
    return real


@torch.no_grad()
def repeated_steps(folded: FoldedNetwork, real: dict[str, Step], timesteps: int) -> dict[str, str]:
    """Return the real values that repeat another one over time, each with the one that it repeats.

    A run on random images shows it, whatever the code of the model looks like.
    """
    assert folded.input_shape is not None
    g = torch.Generator().manual_seed(0)
    values = {INPUT: torch.randn(folded.batch or timesteps, *folded.input_shape, generator=g)}
    modules = nn.ModuleDict({f"of_{n}": folded.get_submodule(n) for n in real})
    modules = copy.deepcopy(modules).eval().cpu()
    repeats = {}
    for name, step in real.items():
        value = modules[f"of_{name}"](*(values[source] for source in step.inputs))
        for source, one in values.items():
            if _is_repeated(value, one, timesteps):
                repeats[name] = source
                break
        values[name] = value
    return repeats


def _is_repeated(value: Any, one: Any, timesteps: int) -> bool:
    """Whether a value of a step, which may be no tensor, has the rows of another at every step."""
    if not all(isinstance(v, Tensor) and v.dim() > 0 for v in (value, one)):
        return False
    if value.shape != (timesteps * len(one), *one.shape[1:]):
        return False
    return torch.equal(value, one.repeat(timesteps, *(1 for _ in one.shape[1:])))


def folded_encoding(
    folded: FoldedNetwork, real: dict[str, Step], repeats: dict[str, str], name: str
) -> FoldedNetwork:
    """Return a network of neurons in the place of the image, and the synapses that compute the real
    value ``name`` from it, at one timestep.

    Raises:
        ValueError: for an operation that is not linear, named.
    """
    steps: list[Step] = []
    needed = {name}
    for step in reversed(real.values()):
        if step.name in needed:
            inputs = tuple(repeats.get(source, source) for source in step.inputs)
            steps.insert(0, Step(step.name, inputs))
            needed |= {*inputs}
    assert folded.input_shape is not None
    example = torch.zeros(1, *folded.input_shape)
    try:
        return reparameterize(_Encoding(folded, steps), example)
    except ReparameterizationError as error:
        # Spikes stand for the image here; the user's network has no such layer of spikes.
        reason = str(error).replace(" reads the spikes of a LIF layer and cannot be folded", "")
        raise ValueError(
            f"{name!r} of the encoding has no equal in NIR, which computes convolutions, averages "
            f"and sums from the image: {reason}"
        ) from error
