"""How far float32 rounding alone can move the current of a folded network.

Let every path from a term of a sum of products to the result be rounded at most d times. Then the
sum is off by at most ((1 + u)^d - 1) * sum |terms|, whatever its order; u = 2^-24 in float32. The
trained network with the absolute values of its weights computes the sum of absolute terms from
|a * o|, and its d adds up along the layers. The folded network has the same terms, some of them
already added up, and a d of its own. The two networks differ by at most the sum of both errors.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from realspike_ops.nn import (
    MeanOverTime,
    RealSpikeLIF,
    SumOverTime,
    Synapses,
    SynapticCurrent,
)
from realspike_ops.reparam.check.quantization_bound import (
    quantization_bounds,
    weights_of_one_neuron,
)
from realspike_ops.reparam.network import FoldedNetwork
from realspike_ops.reparam.trace.names import function_name
from realspike_ops.reparam.trace.trace import copy_in_eval_mode, drop_unused, trace

UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# Half of the distance between the smallest numbers, where the relative error has no bound.
HALF_SUBNORMAL = {torch.float16: 2.0**-25}
_SLACK = 1.02  # (1 + u)^d - 1 against d * u, for d up to 2^18
# A batch norm: var + eps, its root, the quotient, the weight; the mean times that, the shift; then
# scale and shift.
_NORM_ROUNDINGS = 10
# A current in steps of a scale: bias and real part over it, and the product that undoes it.
_SCALE_ROUNDINGS = 3


@dataclass(frozen=True)
class Magnitude:
    """The sum of absolute terms, and how often the computation rounds on the way to it."""

    value: Tensor  # float64
    roundings: int


class _Magnitudes(fx.Interpreter):
    """Runs the trained network on absolute values.

    Values that do not depend on spikes are computed as they are, in their own dtype: both networks
    have the same bits.
    """

    def __init__(self, model: nn.Module, x: Tensor, spikes: list[Tensor]):
        graph = trace(copy_in_eval_mode(model), x)
        drop_unused(graph)
        super().__init__(graph, garbage_collect_values=False)
        self.spikes = iter(spikes)
        self.currents: list[Magnitude] = []

    def run_node(self, node: fx.Node):
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        read = _magnitudes_in([self.env[n] for n in node.all_input_nodes])
        if isinstance(module, RealSpikeLIF):
            (current,) = (self.env[n] for n in node.all_input_nodes)
            self.currents.append(current if read else Magnitude(_absolute(current), 0))
            spikes = _absolute(next(self.spikes).cpu())
            amplitude = module.fitted(spikes.dim() - 1).get("amplitude")
            return Magnitude(spikes if amplitude is None else spikes * _absolute(amplitude), 1)
        if not read or node.op == "output":
            return super().run_node(node)
        deepest = max(magnitude.roundings for magnitude in read)
        name = type(module).__name__ if module is not None else function_name(node)
        args, kwargs = self._arguments(node)
        if name in _CASTS:
            return read[0]
        if name in ("add", "sub", "subtract", "rsub", "neg"):
            alpha = abs(kwargs.pop("alpha", 1))
            terms = (torch.as_tensor(a, dtype=torch.float64) for a in (*args, *kwargs.values()))
            total = sum(terms, torch.zeros((), dtype=torch.float64))
            return Magnitude(total * max(1, alpha), deepest + 2)
        norm = module if isinstance(module, nn.modules.batchnorm._BatchNorm) else None
        if norm is not None or name == "batch_norm":
            parameters = () if norm is None else _norm_arguments(norm)
            return Magnitude(_norm(*args, *parameters, **kwargs), deepest + _NORM_ROUNDINGS)
        if isinstance(module, nn.Module):
            value = _with_absolute_weights(module)(*args, **kwargs)
        else:
            value = getattr(self, node.op)(node.target, args, kwargs)
        parts, tree = pytree.tree_flatten(value)
        if not all(isinstance(part, Tensor) for part in parts):
            return value  # a size
        parts = [
            Magnitude(_absolute(part), deepest + _roundings(module, name, args, kwargs, part))
            for part in parts
        ]
        return pytree.tree_unflatten(parts, tree)

    def _arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with absolute values: of what depends on spikes, of constants."""

        def of(value):
            if isinstance(value, Magnitude):
                return value.value
            is_weight = isinstance(value, Tensor) and value.is_floating_point()
            return _absolute(value) if is_weight else value

        def given(argument) -> Any:
            return map_arg(argument, lambda n: pytree.tree_map(of, self.env[n]))

        args = given(node.args)
        if node.op != "call_module" and function_name(node) in _ARITHMETIC:
            args = tuple(abs(a) if isinstance(a, (int, float)) else a for a in args)
        return args, dict(given(node.kwargs))


def _absolute(tensor: Tensor) -> Tensor:
    return tensor.detach().abs().double()


def _magnitudes_in(values) -> list[Magnitude]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Magnitude)]


_ARITHMETIC = frozenset("add sub subtract rsub mul multiply truediv div divide".split())
_CASTS = frozenset("float double half bfloat16 to type type_as cpu cuda".split())
# Functions and layers that move values, or add two of them.
_MOVES = frozenset(
    "mul multiply truediv div divide getitem cat concat concatenate stack hstack vstack chunk "
    "split tensor_split unbind flatten view view_as reshape reshape_as squeeze unsqueeze unflatten "
    "permute transpose t movedim swapaxes contiguous clone detach expand expand_as repeat roll "
    "flip narrow select index_select pad max_pool2d adaptive_max_pool2d channel_shuffle "
    "pixel_shuffle pixel_unshuffle dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_alpha_dropout "
    "Flatten Unflatten Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout "
    "FeatureAlphaDropout MaxPool2d AdaptiveMaxPool2d ZeroPad2d ConstantPad2d ChannelShuffle "
    "PixelShuffle PixelUnshuffle UpsamplingNearest2d".split()
)


def _roundings(module: nn.Module | None, name: str, args, kwargs, out: Tensor) -> int:
    """Return how often a value is rounded on its way into a sum, or more."""
    if name in _MOVES:
        return 2
    if isinstance(module, (MeanOverTime, SumOverTime)):
        return module.timesteps + 2
    weight = getattr(module, "weight", None)
    if name in ("linear", "conv1d", "conv2d"):
        weight = args[1] if len(args) > 1 else kwargs["weight"]
    if isinstance(weight, Tensor):
        # The inputs of an output are one of the first two sizes, whichever way round they are.
        return max(weight[0].numel(), weight[:, 0].numel()) + 1
    x = next(a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor))
    return max(x[:1].numel(), x.numel() // max(1, out.numel())) + 2


def _with_absolute_weights(layer: nn.Module) -> nn.Module:
    layer = copy.deepcopy(layer).double()
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data.abs_()
    return layer


def _norm_arguments(norm: nn.Module):
    names = ("running_mean", "running_var", "weight", "bias")
    tensors = [getattr(norm, name) for name in names]
    return *(None if t is None else _absolute(t) for t in tensors), False, None, norm.eps


def _norm(
    x: Tensor,  # [N, C, ...]
    mean: Tensor,  # [C] and all behind it; absolute values
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return F.batch_norm with a plus between x and the mean."""
    scale = (var + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = mean * scale + (0.0 if bias is None else bias)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return x * scale.view(shape) + shift.view(shape)


def folded_roundings(folded: FoldedNetwork) -> tuple[list[int], int]:
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
) -> list[Tensor]:  # one per LIF layer, and one per output
    """Return the largest differences that rounding can make, to int8 too, given equal spikes."""
    x_on_cpu = x.detach().cpu()
    with torch.device("cpu"):
        magnitudes = _Magnitudes(model, x_on_cpu, spikes)
        outputs = pytree.tree_leaves(magnitudes.run(x_on_cpu))
    outputs = [
        m if isinstance(m, Magnitude) else Magnitude(_absolute(m), 0)
        for m in outputs
        if isinstance(m, (Magnitude, Tensor))
    ]
    currents, output = folded_roundings(folded)
    synapses = [
        folded.get_submodule(step.name)
        for step in folded.steps
        if folded.kind_of(step.name) == "synapses"
    ]
    unit = UNIT.get(x.dtype, UNIT[torch.float32])
    dtypes = {p.dtype for layer in synapses for p in layer.parameters()}
    storage = max((UNIT[dtype] for dtype in dtypes), default=unit)
    subnormal = max((HALF_SUBNORMAL.get(dtype, 0.0) for dtype in dtypes), default=0.0)
    subnormal *= max(map(weights_of_one_neuron, synapses), default=0)
    timesteps = [m.timesteps for m in folded.modules() if isinstance(m, SumOverTime)]
    bounds = []
    for magnitude, times, own, steps in zip(
        [*magnitudes.currents, *outputs],
        [*[1] * len(currents), *[max(timesteps, default=1)] * len(outputs)],
        [*currents, *[output] * len(outputs)],
        quantization_bounds(folded, x),
        strict=True,
    ):
        own += 0 if steps is None else _SCALE_ROUNDINGS
        relative = (magnitude.roundings + own) * unit + storage
        bound = _SLACK * (magnitude.value * relative + times * subnormal)
        bounds.append(bound if steps is None else bound + _SLACK * steps.cpu())
    return bounds
