"""How far float32 rounding alone can move the current of a folded network.

A sum of products in which no path from a term to the result is rounded more than d times is off by
at most ((1 + u)^d - 1) * sum |terms|, whatever the order of the sum; u = 2^-24 in float32. For the
trained network the sum of absolute terms is what the same layers make of |a * o| with the absolute
values of their weights, and d adds up along the layers; the folded network has the same terms, some
of them already added up, and a d of its own. Their difference is at most the sum of both.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from realspike_ops.nn import (
    MeanOverTime,
    RealSpikeLIF,
    SumOverTime,
    Synapses,
    SynapticCurrent,
)
from realspike_ops.nn.spike_conv import SpikeConv
from realspike_ops.reparam.names import function_name
from realspike_ops.reparam.network import FoldedNetwork
from realspike_ops.reparam.quantization_bound import quantization_bounds
from realspike_ops.reparam.trace import copy_in_eval_mode, drop_unused, trace

UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
_SLACK = 1.02  # (1 + u)^d - 1 against d * u, for d up to 2^18
# var + eps, its root, the quotient, the weight; the mean times that, the shift; scale and shift.
_NORM_ROUNDINGS = 10
# Of a current in steps of a scale: bias and real part over it, and the product that undoes it.
_SCALE_ROUNDINGS = 3


class Magnitude(NamedTuple):
    """The sum of absolute terms, and how often the computation rounds on the way to it."""

    value: Tensor  # float64
    roundings: int


class _Magnitudes(fx.Interpreter):
    """Runs the trained network on absolute values. What does not depend on spikes is computed as it
    is: both networks have it to the bit."""

    def __init__(self, model: nn.Module, x: Tensor, spikes: list[Tensor]):
        graph = trace(copy_in_eval_mode(model).double(), x)
        drop_unused(graph)
        super().__init__(graph, garbage_collect_values=False)
        self.spikes = iter(spikes)
        self.currents: list[Magnitude] = []

    def run_node(self, node: fx.Node):
        module = self.module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, RealSpikeLIF):
            (current,) = (self.env[n] for n in node.all_input_nodes)
            if not isinstance(current, Magnitude):
                current = Magnitude(current.abs(), 0)
            self.currents.append(current)
            spikes = next(self.spikes).double().cpu().abs()
            if module.amplitude is not None:
                spikes = spikes * module.amplitude.abs()
            return Magnitude(spikes, 1)
        read = [self.env[n] for n in node.all_input_nodes]
        if not any(isinstance(value, Magnitude) for value in read):
            return super().run_node(node)
        if node.op == "output":
            return read[0]
        deepest = max(value.roundings for value in read if isinstance(value, Magnitude))
        name = type(module).__name__ if module is not None else function_name(node)
        args, kwargs = self._absolute(node)
        if name in ("Conv2d", "Linear"):
            return Magnitude(_with_absolute_weights(module)(*args), deepest + _fan_in(module))
        if name in ("conv2d", "linear"):
            value = node.target(*args, **kwargs)
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            return Magnitude(value, deepest + weight[0].numel() + 1)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return Magnitude(_norm(args[0], module), deepest + _NORM_ROUNDINGS)
        if name == "batch_norm":
            norm = _norm_of_function(*args[1:], **kwargs)
            return Magnitude(_norm(args[0], norm), deepest + _NORM_ROUNDINGS)
        if name in ("add", "sub", "subtract", "rsub", "neg"):
            value = sum(torch.broadcast_tensors(*map(torch.as_tensor, args[:2])))
            return Magnitude(value * max(1, abs(kwargs.get("alpha", 1))), deepest + 2)
        value = getattr(self, node.op)(node.target, args, kwargs)
        if not isinstance(value, Tensor):
            return value
        return Magnitude(value.abs(), deepest + _sums(module, name, read) + 2)

    def _absolute(self, node: fx.Node):
        """Return the arguments with absolute values: of what depends on spikes, of constants."""

        def of(value):
            if isinstance(value, Magnitude):
                return value.value
            return value.abs() if isinstance(value, Tensor) else value

        def given(argument):
            return fx.node.map_arg(argument, lambda n: of(self.env[n]))

        args = given(node.args)
        if node.op != "call_module" and function_name(node) in _ARITHMETIC:
            args = tuple(abs(a) if isinstance(a, (int, float)) else a for a in args)
        return args, given(node.kwargs)


_ARITHMETIC = frozenset("add sub subtract rsub mul multiply truediv div divide".split())


def _sums(module: "nn.Module | None", name: str, read: list) -> int:
    """Return how many values are added up to one, or more, where an operation is an average."""
    if isinstance(module, (MeanOverTime, SumOverTime)):
        return module.timesteps
    averages = "pool" in name.lower() and "max" not in name.lower()
    if averages or name in ("mean", "sum"):
        (x, *_) = (value.value for value in read if isinstance(value, Magnitude))
        return max(x.shape[0], x[0].numel())
    return 0


def _fan_in(layer: nn.Module) -> int:
    return layer.weight[0].numel() + 1


def _with_absolute_weights(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.data.abs_()
    return layer


def _norm_of_function(mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    norm = nn.BatchNorm2d(len(mean), eps=eps, affine=False)
    norm.running_mean, norm.running_var = mean, var
    norm.weight, norm.bias = (None if p is None else nn.Parameter(p) for p in (weight, bias))
    return norm


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.abs()
    shift = norm.running_mean.abs() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.abs()
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return x * scale.view(shape) + shift.view(shape)


def folded_roundings(folded: FoldedNetwork) -> "tuple[list[int], int]":
    """Return how often every LIF layer's current, and the output, are rounded."""
    depth: dict[str, int] = {}
    currents = []
    for step in folded.steps:
        module = folded.get_submodule(step.name)
        before = max((depth.get(name, 0) for name in step.inputs), default=0)
        if isinstance(module, RealSpikeLIF):
            currents.append(before)
            depth[step.name] = 0
        elif isinstance(module, SynapticCurrent):
            layers = module.synapses.values()
            deepest = max((_layer_roundings(layer) for layer in layers), default=0)
            depth[step.name] = before + deepest + len(step.inputs) + 1
        elif isinstance(module, SumOverTime):
            depth[step.name] = before + module.timesteps
        elif step.name in folded.encoding:
            # The real part of a current passes the layers that the trained network has, on its own.
            fan_in = sum(p[0].numel() for p in module.parameters() if p.dim() > 1)
            depth[step.name] = before + fan_in + _NORM_ROUNDINGS
        else:
            depth[step.name] = before + _layer_roundings(module)
    return currents, max(depth.get(name, 0) for name in folded.outputs)


def _layer_roundings(layer: nn.Module) -> int:
    if isinstance(layer, Synapses):
        return _layer_roundings(layer.layer) + layer.sums + 1
    weight = getattr(layer, "weight", None)
    if weight is None:
        return 0
    if weight.dim() < 7:
        return 1  # one synapse per neuron
    return math.prod(weight.shape[-4:-1]) + 2


def current_bounds(
    model: nn.Module,
    folded: FoldedNetwork,
    x: Tensor,
    spikes: list[Tensor],  # of the trained network, without amplitudes; in order of execution
) -> list[Tensor]:  # one per LIF layer, and the output's
    """Return the largest differences that rounding can make, to int8 too, given equal spikes."""
    exact = x.detach().double().cpu()
    magnitudes = _Magnitudes(model, exact, spikes)
    last = magnitudes.run(exact)
    if not isinstance(last, Magnitude):
        last = Magnitude(last.abs(), 0)
    currents, output = folded_roundings(folded)
    dtypes = {p.dtype for m in folded.modules() if isinstance(m, SpikeConv) for p in m.parameters()}
    unit = UNIT[torch.float64 if x.dtype == torch.float64 else torch.float32]
    storage = max((UNIT[dtype] for dtype in dtypes), default=unit)
    bounds = []
    for magnitude, own, steps in zip(
        [*magnitudes.currents, last],
        [*currents, output],
        [*quantization_bounds(folded, x), None],
        strict=True,
    ):
        own += 0 if steps is None else _SCALE_ROUNDINGS
        bound = magnitude.value * (_SLACK * ((magnitude.roundings + own) * unit + storage))
        bounds.append(bound if steps is None else bound + _SLACK * steps.cpu())
    return bounds
