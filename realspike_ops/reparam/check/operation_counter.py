"""Counting the operations of a network while it runs."""

import math

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from realspike_ops import functional
from realspike_ops.nn import OneToOneSynapses, RealSpikeLIF
from realspike_ops.reparam.check.connections import (
    Operations,
    is_spiking,
    of_convolution,
    of_product,
    of_shared_convolution,
)
from realspike_ops.reparam.check.profile_report import LayerProfile, ProfileReport

_ACTIVATIONS = (RealSpikeLIF, nn.ReLU, nn.Sigmoid)


class OperationCounter(TorchDispatchMode):
    """Counts what a network computes, by the layer that runs.

    Args:
        names: What layers are called, by their names in the network; `name_in_model` reads them.
    """

    def __init__(self, network: nn.Module, names: dict[str, str]):
        super().__init__()
        self.network, self.names = network, names
        self.rows: dict[str, LayerProfile] = {}
        self.sized: set[str] = set()
        self.connected: set[str] = set()  # the layers whose weights are counted
        self.activations = self.active = 0
        self.fired: dict[str, list[float]] = {}  # name -> [not 0, all]
        self.stack: list[tuple[str, nn.Module]] = []
        self.samples = 0
        self.samples_of_batch: int | None = None  # known when the first neurons run
        self.macs_per_row: dict[str, float] = {}  # of an ANN, in this batch
        self.behind_encoding = False

    def hooked(self):
        handles = []
        for name, module in self.network.named_modules():

            def enter(module, args, name=name):
                self.stack.append((name, module))

            def leave(module, args, output, name=name):
                self.stack.pop()
                if isinstance(module, RealSpikeLIF):
                    self.behind_encoding = True
                    if self.samples_of_batch is None:
                        self.samples_of_batch = output.shape[0] // module.timesteps
                    self._note_rate(output)
                elif isinstance(module, OneToOneSynapses):
                    self._note_rate(args[0], name)
                    row = self._row(name, "synapses")
                    row.synops += args[0].count_nonzero().item()
                    acts = (args[0] != 0) & (module.weight != 0)
                    acting, spiking = float(acts.sum().item()), is_spiking(args[0])
                    self._count(row, Operations(acting, float(args[0].numel()), spiking))
                    self._connect(name, row, module.weight)
                if isinstance(module, _ACTIVATIONS):
                    self.activations += output.numel()
                    self.active += output.count_nonzero().item()

            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks: part of its holder
                continue
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=False))
        return _Removing(handles)

    def count(self, batch: Tensor) -> None:
        self.behind_encoding, self.samples_of_batch = False, None
        self.macs_per_row.clear()
        with self:
            self.network(batch)
        samples = batch.shape[0] if self.samples_of_batch is None else self.samples_of_batch
        self.samples += samples
        for name, macs in self.macs_per_row.items():
            self.rows[name].ann_macs += macs * samples

    def report(self) -> ProfileReport:
        samples = max(1, self.samples)
        for name, row in self.rows.items():
            for count in (
                *("synops", "additions", "multiplications", "ann_macs"),
                *("effective_acs", "effective_macs", "dense_operations"),
            ):
                setattr(row, count, getattr(row, count) / samples)
            not_zero, everything = self.fired.get(name, (0, 0))
            if everything:
                row.firing_rate = not_zero / everything
        parameters = [*self.network.parameters()]
        tensors = [*parameters, *self.network.buffers()]
        return ProfileReport(
            self.samples,
            list(self.rows.values()),
            footprint=sum(t.numel() * t.element_size() for t in tensors),
            parameters=sum(p.numel() for p in parameters),
            activations=self.activations,
            active=self.active,
        )

    def _row(self, name: str | None = None, kind: str = "other") -> LayerProfile:
        """Return the row of the named module, by default of the innermost that runs."""
        name = self.stack[-1][0] if name is None else name
        module = self.network.get_submodule(name)
        key = self._shown(name)
        if key not in self.rows:
            self.rows[key] = LayerProfile(key, kind)
        if name not in self.sized:
            self.sized.add(name)
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            self.rows[key].weight_bytes += sum(t.numel() * t.element_size() for t in own)
        row = self.rows[key]
        if row.kind == "other":
            row.kind = kind
        return row

    def _shown(self, name: str) -> str:
        """Synapses and the layer inside them are one row."""
        shown = name.replace(".synapses.", ".").removesuffix(".layer")
        if not shown:
            return type(self.network).__name__
        step, _, source = shown.partition(".from_")
        if not source:
            return name_in_model(step, self.names)
        into = name_in_model(step.removesuffix("_current"), self.names)
        return f"{into} from {name_in_model(source, self.names)}"

    def _note_rate(self, tensor: Tensor, name: str | None = None) -> None:
        name = name if name is not None else self._last_neurons
        rate = self.fired.setdefault(self._shown(name), [0, 0])
        rate[0] += tensor.count_nonzero().item()
        rate[1] += tensor.numel()

    # --- operators

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.stack:
            namespace, name = func.name().split("::")
            count = _COUNTS.get((namespace, name.split(".")[0]))
            if count is not None:
                count(self, args, out)
        return out

    def _count(self, row: LayerProfile, operations: Operations) -> None:
        row.effective_acs += operations.effective if operations.spiking else 0
        row.effective_macs += 0 if operations.spiking else operations.effective
        row.dense_operations += operations.dense

    def _connect(self, name: str, row: LayerProfile, weight: Tensor) -> None:
        """Count the weights of a layer once; 128 is the int8 weight 0."""
        if name not in self.connected:
            self.connected.add(name)
            row.connections += weight.numel()
            zero = 128 if weight.dtype == torch.uint8 else 0
            row.zero_connections += int(weight.eq(zero).sum())

    def _acting(self, operations: Operations, weight: Tensor) -> None:
        """Count the operations of the innermost layer, and its own weights."""
        name, module = self.stack[-1]
        own = getattr(module, "weight", None)
        row = self._row()
        self._count(row, operations)
        self._connect(name, row, own if isinstance(own, Tensor) and own.dim() > 1 else weight)

    def _weights(self, spikes: Tensor, dense: float, events: float) -> None:
        """Count a layer of weights that has `dense` connections; spikes used `events` of them."""
        kind = "synapses" if self.behind_encoding else "encoding"
        row = self._row(kind=kind)
        macs = dense / max(1, spikes.shape[0])
        self.macs_per_row[row.name] = self.macs_per_row.get(row.name, 0.0) + macs
        if not self.behind_encoding:
            row.additions += dense
            row.multiplications += dense
            return
        self._note_rate(spikes, row.name)
        row.synops += events
        row.additions += events
        if not is_spiking(spikes):
            row.multiplications += events

    def convolution(self, args, out):
        spikes, weight, bias, stride, padding, dilation, transposed, _, groups = args[:9]
        axes = weight.dim() - 2
        # One number stands for all axes.
        s, p, d = (tuple(g) * (axes // len(g)) for g in (stride, padding, dilation))
        # The weights of a transposed one lie by what they read.
        dense = (spikes if transposed else out).numel() * weight[0].numel()
        channels = weight.shape[1] if transposed else weight.shape[0] // groups
        events = _events(spikes, out, weight.shape[2:], s, p, d, channels, transposed)
        self._weights(spikes, dense, events)
        if not transposed:
            self._acting(of_shared_convolution(spikes, weight.ne(0), s, p, d, groups), weight)
        return self._bias(bias, out)

    def unshared_conv(self, args, out):
        spikes, weight, bias, amplitude, scale, _, stride, padding, dilation = args[:9]
        out = out[0]
        G, KH, KW, Ci, Co = weight.shape[2:]
        if spikes.dtype == torch.int32:
            spikes = functional.unpack_spikes(spikes, G * Ci)
        dense = out.numel() * KH * KW * Ci
        events = _events(spikes, out, (KH, KW), stride, padding, dilation, Co)
        self._weights(spikes, dense, events)
        acts = weight.ne(128 if weight.dtype == torch.uint8 else 0)
        geometry = out.shape[2:], stride, padding, dilation
        self._acting(of_convolution(spikes, acts, *geometry), weight)
        self._bias(bias, out)
        self._row().multiplications += events if amplitude is not None else 0
        self._row().multiplications += out.numel() if scale is not None else 0

    def unshared_matmul(self, args, out):
        """Count `unshared_conv`, and the products of matrix units, whatever fires."""
        self.unshared_conv(args, out)
        self._row().multiplications += out[0].numel() * math.prod(args[1].shape[3:6])

    def conv_and_neurons(self, args, out):
        """Count `unshared_conv`, then `neurons`; the currents are not in memory."""
        self.behind_encoding = True  # it reads spikes
        spikes, weight, *rest = args
        decay, words, maps, signs, timesteps, output_size, decay_value = (
            rest[n] for n in (3, 7, 8, 9, 10, 11, 16)
        )
        channels = weight.shape[2] * weight.shape[6]
        current = torch.empty((), device=out[0].device)
        current = current.expand(spikes.shape[0], channels, *output_size)
        self.unshared_conv((spikes, weight, *rest[:3], None, *rest[12:15]), (current,))
        samples = spikes.shape[0] // (maps * signs)
        if self.samples_of_batch is None:
            self.samples_of_batch = samples // timesteps
        row = self._row()
        neurons = current[:samples].numel()
        row.additions += current.numel() - neurons  # of maps that become one
        for selecting in words:
            if selecting.dim() == 1:  # added as it is
                row.additions += neurons
                continue
            spikes = functional.unpack_spikes(
                selecting.reshape(-1, *selecting.shape[-3:]), channels
            )
            self._weights(spikes, spikes.numel(), spikes.sum().item())
        row.additions += neurons
        row.multiplications += 0 if decay is None and decay_value in (0.0, 1.0) else neurons

    def matmul_and_neurons(self, args, out):
        """Count `conv_and_neurons`, and the products of matrix units, whatever fires."""
        spikes, weight, bias, scale, *rest = args
        rest[3:3] = ([], [], 1, 1)  # one map, and no current that joins
        self.conv_and_neurons((spikes, weight, bias, None, scale, *rest), out)
        currents = spikes.shape[0] * weight.shape[2] * weight.shape[6] * math.prod(args[8])
        self._row().multiplications += currents * math.prod(weight.shape[3:6])

    def addmm(self, args, out):
        bias, spikes, weight = args[:3]
        self._product(spikes, weight, out)
        self._bias(bias, out)

    def mm(self, args, out):
        self._product(args[0], args[1], out)

    def _product(self, spikes, weight, out):
        dense = spikes.numel() * weight.shape[-1]
        self._weights(spikes, dense, spikes.count_nonzero().item() * weight.shape[-1])
        self._acting(of_product(spikes, weight), weight)

    def _bias(self, bias, out):
        if bias is not None:
            self._row().additions += out.numel()

    def multiply_and_add(self, args, out):
        out = out[0] if isinstance(out, tuple) else out
        row = self._row()
        row.multiplications += out.numel()
        row.additions += out.numel()

    def multiply(self, args, out):
        self._row().multiplications += out.numel()

    def add(self, args, out):
        self._row().additions += out.numel()

    def average(self, args, out):
        row = self._row()
        row.additions += args[0].count_nonzero().item()
        row.multiplications += out.numel()

    def sum(self, args, out):
        self._row().additions += args[0].numel() - out.numel()

    def neurons(self, args, out):
        """x, amplitude, decay and v_threshold as tensors, v_init, decay as a number, ..."""
        x, _, decay, _, _, fixed_decay = args[:6]
        row = self._row(kind="neurons")
        self._last_neurons = row.name
        row.additions += x.numel()
        row.multiplications += 0 if decay is None and fixed_decay in (0.0, 1.0) else x.numel()

    def packed_neurons(self, args, out):
        """Count `neurons`, which have no amplitude here."""
        self.neurons((args[0], None, *args[1:]), out)


_COUNTS = {
    ("aten", "convolution"): OperationCounter.convolution,
    ("realspike", "unshared_conv"): OperationCounter.unshared_conv,
    ("realspike", "unshared_matmul"): OperationCounter.unshared_matmul,
    ("realspike", "unshared_matmul_lif"): OperationCounter.matmul_and_neurons,
    ("realspike", "lif_fwd"): OperationCounter.neurons,
    ("realspike", "lif_packed"): OperationCounter.packed_neurons,
    ("realspike", "unshared_conv_lif"): OperationCounter.conv_and_neurons,
    ("aten", "addmm"): OperationCounter.addmm,
    ("aten", "mm"): OperationCounter.mm,
    ("aten", "mean"): OperationCounter.average,
    ("aten", "avg_pool2d"): OperationCounter.average,
    ("aten", "_adaptive_avg_pool2d"): OperationCounter.average,
    ("aten", "sum"): OperationCounter.sum,
    **{("aten", name): OperationCounter.add for name in ("add", "add_", "sub", "sub_")},
    **{("aten", name): OperationCounter.multiply for name in ("mul", "mul_", "div", "div_")},
    **{
        ("aten", name): OperationCounter.multiply_and_add
        for name in (
            "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm "
            "_native_batch_norm_legit _batch_norm_no_update"
        ).split()
    },
}


def _events(
    spikes, out, kernel_size, stride, padding, dilation, channels: int, transposed: bool = False
) -> float:
    """Return how many weights the spikes reach: taps outside the map are not read."""
    reached = spikes.ne(0).sum((0, 1), dtype=torch.float64)  # [H, W], or of other axes
    count = _outputs_of if transposed else _coverage
    for sizes in zip(
        spikes.shape[2:], out.shape[2:], kernel_size, stride, padding, dilation, strict=True
    ):
        reached = torch.tensordot(count(*sizes).to(reached), reached, 1)
    return reached.item() * channels


def _coverage(size: int, out: int, k: int, s: int, p: int, d: int) -> Tensor:  # [size]
    """Return how many (output, tap) pairs read every row."""
    positions = _positions(out, k, s, p, d).flatten()
    inside = positions[(positions >= 0) & (positions < size)]
    return torch.bincount(inside, minlength=size).double()


def _outputs_of(size: int, out: int, k: int, s: int, p: int, d: int) -> Tensor:  # [size]
    """Return how many rows of a transposed convolution's output every row is added to."""
    positions = _positions(size, k, s, p, d)
    return ((positions >= 0) & (positions < out)).sum(1).double()


def _positions(count: int, k: int, s: int, p: int, d: int) -> Tensor:  # [count, k]
    first, taps = (torch.arange(n, device="cpu") for n in (count, k))
    return first[:, None] * s - p + taps * d


class _Removing:
    def __init__(self, handles):
        self.handles = handles

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def name_in_model(step: str, names: dict[str, str]) -> str:
    """Return what a step is called: as the layer, or as something of the module that holds it."""
    if step in names:
        return names[step]
    longest = max((name for name in names if step.startswith(f"{name}_")), key=len, default=None)
    return step if longest is None else f"{names[longest]}.{step[len(longest) + 1 :]}"
