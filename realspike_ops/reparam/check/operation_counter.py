"""Counting the operations of a network while it runs."""

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
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
from realspike_ops.reparam.check.whole_operators import parts_of

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
        # Known when the first neurons run: B, and the T*B that they read.
        self.samples_of_batch: int | None = None
        self.rows_of_batch = 0
        self.macs_per_row: dict[str, float] = {}  # of an ANN, in this batch
        # In this batch, by layer, sizes, and whether behind neurons: multiply-adds and vectors.
        self.products: dict[tuple, tuple[float, int]] = {}
        self.parameters = {_place(parameter) for parameter in network.parameters()}
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
                    self._note_samples(output.shape[0], module.timesteps)
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
        self.rows_of_batch = batch.shape[0]
        self.macs_per_row.clear()
        self.products.clear()
        with self, _layer_by_layer():
            self.network(batch)
        samples = batch.shape[0] if self.samples_of_batch is None else self.samples_of_batch
        self.samples += samples
        for name, macs in self.macs_per_row.items():
            self.rows[name].ann_macs += macs * samples
        for (name, _, behind), (macs, vectors) in self.products.items():
            # Vectors (tokens, heads) of T*B or B rows; images are B before neurons.
            rows = self.rows_of_batch if behind or batch.shape[0] != samples else samples
            found = (n for n in (rows, samples) if n > 0 and vectors % n == 0)
            self.rows[name].ann_macs += macs * samples / next(found, max(1, vectors))

    def _note_samples(self, rows: int, timesteps: int) -> None:
        if self.samples_of_batch is None:
            self.samples_of_batch, self.rows_of_batch = rows // timesteps, rows

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
        kwargs = kwargs or {}
        if (out := parts_of(self, func, args, kwargs)) is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        if self.stack:
            namespace, name = func.name().split("::")
            count = _COUNTS.get((namespace, name.split(".")[0]))
            if count is not None:
                self.options = kwargs
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
        row = self._synapses([spikes], dense, events)
        macs = dense / max(1, spikes.shape[0])
        self.macs_per_row[row.name] = self.macs_per_row.get(row.name, 0.0) + macs

    def _synapses(self, inputs: list[Tensor], dense: float, events: float) -> LayerProfile:
        kind = "synapses" if self.behind_encoding else "encoding"
        row = self._row(kind=kind)
        if not self.behind_encoding:
            row.additions += dense
            row.multiplications += dense
            return row
        for each in inputs:
            self._note_rate(each, row.name)
        row.synops += events
        row.additions += events
        if not is_spiking(inputs[0]):
            row.multiplications += events
        return row

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
        rows = spikes.shape[0] // (maps * signs)
        self._note_samples(rows, timesteps)
        row = self._row()
        neurons = current[:rows].numel()
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
        if self.options.get("products"):
            row.multiplications += current.numel() * math.prod(weight.shape[3:6])

    def matmul_and_neurons(self, args, out):
        """Count `conv_and_neurons`, and the products of matrix units, whatever fires."""
        spikes, weight, bias, scale, *rest = args
        rest[3:3] = ([], [], 1, 1)  # one map, and no current that joins
        self.conv_and_neurons((spikes, weight, bias, None, scale, *rest), out)
        currents = spikes.shape[0] * weight.shape[2] * weight.shape[6] * math.prod(args[8])
        self._row().multiplications += currents * math.prod(weight.shape[3:6])

    def product(self, args, out):
        self._product(*args[:2])

    def product_and_sum(self, args, out):
        """Count beta * args[0] + alpha * args[1] @ args[2]."""
        self._product(*args[1:3])
        beta, alpha = (self.options.get(name, 1) for name in ("beta", "alpha"))
        row = self._row()
        row.additions += out.numel() if beta != 0 else 0
        row.multiplications += out.numel() * ((beta not in (0, 1)) + (alpha != 1))

    def attention(self, args, out):
        """Count queries by keys, the scale, and what is between 0 and 1 by values, in full."""
        query, key, value = args[:3]  # [B, heads, L or S, E]
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        self._product(query, key.mT)
        scores = query.new_full((*query.shape[:-1], key.shape[-2]), 0.5)
        self._row().multiplications += scores.numel()
        self._product(scores, value)

    def _product(self, left: Tensor, right: Tensor) -> None:
        """Count [..., n, k] by [..., k, m], of spikes and weights or of two maps; or vectors."""
        left = left[None] if left.dim() == 1 else left
        right = right[:, None] if right.dim() == 1 else right
        if self._is_weight(left) and not self._is_weight(right):
            left, right = right.mT, left.mT
        weights = self._is_weight(right)
        if not weights and not is_spiking(left) and is_spiking(right):
            left, right = right.mT, left.mT
        pairs = of_product(left, right)
        # What is computed for all samples alike is weights, too.
        if weights or (right.dim() == 2 and not is_spiking(right)):
            self._acting(pairs, right)
        else:
            self._count(self._row(), pairs)
        # Spikes meet all that is no spikes, and weights that are 0. Two maps of one kind meet where
        # both are not 0.
        alike = not weights and is_spiking(left) == is_spiking(right)
        events = pairs.effective if alike else left.count_nonzero().item() * right.shape[-1]
        row = self._synapses([left, right] if alike else [left], pairs.dense, events)
        key = row.name, (left.shape, right.shape), self.behind_encoding
        macs, vectors = self.products.get(key, (0.0, 0))
        vectors += left.numel() // max(1, left.shape[-1])
        self.products[key] = macs + pairs.dense, vectors

    def _is_weight(self, tensor: Tensor) -> bool:
        own, place = getattr(self.stack[-1][1], "weight", None), _place(tensor)
        is_own = isinstance(own, Tensor) and place == _place(own)
        return place is not None and (is_own or place in self.parameters)

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
    **{("aten", name): OperationCounter.product for name in ("mm", "bmm", "mv", "dot", "vdot")},
    **{
        ("aten", name): OperationCounter.product_and_sum
        for name in ("addmm", "baddbmm", "addbmm", "addmv")
    },
    **{
        ("aten", f"_scaled_dot_product_{name}"): OperationCounter.attention
        for name in (
            "flash_attention_for_cpu flash_attention efficient_attention cudnn_attention "
            "fused_attention_overrideable"
        ).split()
    },
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


def _place(tensor: Tensor) -> int | None:
    """Return where the values of a tensor and of its views lie; None: not in one place."""
    if is_lazy(tensor) or tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage().data_ptr()


@contextlib.contextmanager
def _layer_by_layer():
    """Without the operator that is a whole nn.MultiheadAttention, or a layer of a transformer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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
