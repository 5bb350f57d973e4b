"""What a folded network decides before it runs: once, until something that was read changes."""

from collections import Counter
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from realspike_ops import nn as layers
from realspike_ops._native import extension
from realspike_ops.nn.synapses.synaptic_current import CAN_FIRE
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.reparam.call import Call, learns
from realspike_ops.reparam.segment import Segment, can_be_native

FoldedNetwork = Any  # that of network.py, which imports this file

READ_BITS = (
    layers.SpikeConv2d,
    layers.UnsharedSpikeConv,
    layers.SpikeLinear,
    layers.PiecewiseSpikeConv,
    layers.OneToOneSynapses,
    layers.Synapses,
)
# What a plan reads of: the other modules it calls as they are.
_READ = (
    *(layers.FoldedLIF, layers.SpikeMaxPool2d, layers.SynapticCurrent, layers.DirectEncoding),
    *READ_BITS,
)


class Plan:
    """The calls of a network, as long as it `holds`."""

    def __init__(self, network: FoldedNetwork):
        self._own = (network.steps, network.output, network._modules)
        self.calls = _calls(network)
        self._modules = _modules_read(network)
        self._kinds = list(map(type, self._modules))
        self._dicts = _dicts_read(network, self._modules)
        self._code = _code()
        self._items = tuple(chain.from_iterable(_items(read) for read in self._dicts))
        self._native = self._with_segments(network.outputs)

    def holds(self, network: FoldedNetwork) -> bool:
        """Whether all that was read is as it was: hooks, modes, settings and tensors of layers."""
        steps, output, modules = self._own
        return (
            network.steps is steps
            and network.output is output
            and network._modules is modules
            and list(map(type, self._modules)) == self._kinds
            and extension().hold(self._dicts, self._items)
            and _code() == self._code
        )

    def run(self, network: FoldedNetwork, values: dict[str, Any], x: Tensor) -> None:
        """Compute the values of all steps that the outputs, or nobody, read."""
        native = x.device.type == "cpu" and is_plain_eager(x) and not learns(network, x)
        for call in self._native if native else self.calls:
            call.run(values)

    def _with_segments(self, outputs: tuple[str, ...]) -> list[Any]:
        """Return the calls, those which one program can run side by side joined."""
        joined: list[Any] = []
        run: list[Call] = []
        for call in (*self.calls, None):
            if (
                call is not None
                and can_be_native(call)
                and not any(map(_is_seen, call.module.modules()))
            ):
                run.append(call)
                continue
            if run:
                joined.append(Segment(run, outputs))
                run = []
            joined.append(call)
        return joined[:-1]


def _calls(network: FoldedNetwork) -> list[Call]:
    in_bits = network.steps_in_bits()
    neurons_of = network.fused_steps(in_bits)
    modules: dict[str, Any] = dict(network._modules)
    outputs = network.outputs
    last = {name: n for n, step in enumerate(network.steps) for name in step.inputs}
    fused = set(neurons_of.values())
    calls = []
    for n, step in enumerate(network.steps):
        if step.name in fused:
            continue
        unused = tuple(k for k, at in last.items() if at == n and k not in outputs)
        neurons = neurons_of.get(step.name)
        behind = None if neurons is None else (neurons, modules[neurons])
        packs = (neurons or step.name) in in_bits
        module = modules[step.name]
        readers = [s.name for s in network.steps if step.name in s.inputs]
        repeats = (
            type(module) is layers.DirectEncoding
            and not _is_seen(module)
            and step.name not in outputs
            and all(type(modules[r]) is layers.FoldedLIF and r in in_bits for r in readers)
        )
        calls.append(Call(step.name, module, step.inputs, unused, packs, behind, repeats))
    return calls


def _modules_read(network: FoldedNetwork) -> list[nn.Module]:
    return [m for step in network.children() if isinstance(step, _READ) for m in step.modules()]


def _dicts_read(network: FoldedNetwork, modules: list[nn.Module]) -> tuple[dict[Any, Any], ...]:
    """Return the dictionaries that the plan reads; not the network's own, which holds the plan."""
    dicts: list[dict[Any, Any]] = [
        network._modules,
        torch_module._global_forward_pre_hooks,
        torch_module._global_forward_hooks,
    ]
    for module in modules:
        dicts += [
            *(vars(module), module._parameters, module._buffers, module._modules),
            *(module._forward_pre_hooks, module._forward_hooks),
        ]
    return tuple(dicts)


def _code() -> list[Any]:
    """Return what runs when a layer that may be part of an op is called."""
    return [nn.Module.__call__, *(kind.forward for kind in _READ)]


def _items(read: dict[Any, Any]) -> list[Any]:
    return [*chain.from_iterable(read.items()), None]


def steps_in_bits(network: FoldedNetwork) -> frozenset[str]:
    """Return the LIF and pooling layers whose spikes travel as bits in inference."""
    in_bits: set[str] = set()
    read_dense = set(network.outputs)
    for step in reversed(network.steps):
        module: Any = network._modules[step.name]
        emits = isinstance(module, (layers.FoldedLIF, layers.SpikeMaxPool2d))
        if emits and step.name not in read_dense and not _is_seen(module, before=False):
            in_bits.add(step.name)
        readers = _readers_of_bits(module, step.name in in_bits)
        taken = {n for n, reads_bits in enumerate(readers) if reads_bits}
        read_dense |= {name for n, name in enumerate(step.inputs) if n not in taken}
    for step in network.steps:
        if isinstance(network._modules[step.name], layers.SpikeMaxPool2d):
            in_bits -= set() if step.inputs[0] in in_bits else {step.name}  # as it reads
    return frozenset(in_bits)


def fused_steps(network: FoldedNetwork, in_bits: frozenset[str]) -> dict[str, str]:
    """Return the synapses that run as one op with neurons, and the neurons behind them."""
    read = Counter(name for step in network.steps for name in step.inputs)
    fused = {}
    for step in network.steps:
        neurons = network._modules[step.name]
        if step.name not in in_bits or type(neurons) is not layers.FoldedLIF:
            continue
        (current,) = step.inputs
        synapses = network._modules.get(current)
        if synapses is None or read[current] != 1 or current in network.outputs:
            continue
        fires = type(synapses) in CAN_FIRE
        if type(synapses) is layers.SynapticCurrent:
            fires = synapses.firing is not None
        if fires and not any(map(_is_seen, (neurons, *synapses.modules()))):
            fused[current] = step.name
    return fused


def _readers_of_bits(module: nn.Module, emits_bits: bool) -> list[bool]:
    """Return for the inputs of a step whether they may be `PackedSpikes`; none beyond the list."""
    if isinstance(module, layers.SpikeMaxPool2d):
        reads = [emits_bits]
    elif isinstance(module, layers.SynapticCurrent):
        reads = [isinstance(reader, READ_BITS) for reader in module.readers]
    else:
        reads = [isinstance(module, READ_BITS)]
    seen = any(reads) and any(map(_is_seen, module.modules()))
    return [] if seen else reads


def _is_seen(module: nn.Module, *, before: bool = True, after: bool = True) -> bool:
    """Whether a hook before or after a layer, or code that replaces its own, sees tensors."""
    if not torch.compiler.is_compiling() and _code() != _OWN_CODE:  # torch.export replaces calls
        return True
    if isinstance(module, _READ) and type(module).forward not in _OWN_FORWARDS:
        return True
    hooks = before and (module._forward_pre_hooks or torch_module._global_forward_pre_hooks)
    hooks = hooks or (after and (module._forward_hooks or torch_module._global_forward_hooks))
    return bool(hooks) or "forward" in vars(module)


_OWN_CODE = _code()
_OWN_FORWARDS = frozenset(
    kind.forward for kind in (*_READ, layers.SpikeMaxPool1d, layers.UnsharedSpikeConv1d)
)
