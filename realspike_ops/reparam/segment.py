"""Calls of a folded network that one program of the extension runs, on the CPU in inference.

A program (csrc/core/program.h) holds the parameters of its ops, so that a call costs the host an
allocation and one function. It is built by the checks and the parameters of the ops themselves.
What it cannot run, or cannot be sure of, the calls run as they are, one by one.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops import nn as layers
from realspike_ops._native import extension
from realspike_ops.functional.lif import check_neurons
from realspike_ops.functional.unshared_conv import check_convolution
from realspike_ops.nn.packed_spikes import PackedSpikes, as_map
from realspike_ops.nn.synapses.spike_conv import of_maps
from realspike_ops.nn.synapses.synaptic_current import CAN_FIRE, can_fire
from realspike_ops.ops import lif_cpu
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.layout import empty_maps
from realspike_ops.ops.lif_contract import neurons_in_memory_order
from realspike_ops.ops.pack_spikes import words_of
from realspike_ops.ops.unshared_conv import is_shared, kernel_params
from realspike_ops.ops.unshared_conv_lif import MOST_ADDED, added_current, fits
from realspike_ops.reparam.call import Call

NOWHERE = (-1, 0)
_MOST_PROGRAMS = 8  # of a segment: one for each layout of what it reads


class _Refused(Exception):
    """A program cannot run call number `at` on these inputs."""

    def __init__(self, at: int = 0):
        super().__init__(at)
        self.at = at


class _Spikes(NamedTuple):
    """Words of a call: [T*B, *pixels, words], of ternary spikes [2, T*B, *pixels, words]."""

    place: tuple[int, int]  # block, bytes per element of the batch
    channels: int
    signed: bool
    pixels: tuple[int, ...]

    def shape(self, samples: int) -> tuple[int, ...]:
        planes = (2,) if self.signed else ()
        return (*planes, samples, *self.pixels, words_of(self.channels))


class _Current(NamedTuple):
    """Currents: those that are given to the segment, or in memory of the program."""

    place: tuple[int, int]
    like: Tensor  # [T, ...] with the strides of any batch, or [1, ...]: constant over time


def can_be_native(call: Call) -> bool:
    """Whether a program may be able to run a call."""
    module = call.module
    if type(module) is layers.FoldedLIF:
        return call.packs
    if call.neurons is None:
        return call.repeats or _is_current(call)
    if type(module) is not layers.SynapticCurrent:
        return type(module) in CAN_FIRE
    for layer in module.synapses.values():
        plain = type(layer) is layers.OneToOneSynapses or can_fire(layer)
        if not plain or any(getattr(layer, "pad", ())):
            return False
    return True


class Segment:
    """Neighbouring calls, and the programs that run them."""

    def __init__(self, calls: list[Call], outputs: tuple[str, ...]):
        self.calls = calls
        made = {call.output for call in calls}
        dropped = {name for call in calls for name in call.unused}
        self.inputs = tuple(dict.fromkeys(n for c in calls for n in c.inputs if n not in made))
        self.outputs = tuple(n for n in made if n in outputs or n not in dropped)
        self.unused = tuple(n for n in dropped if n not in made)
        self._end = outputs
        timesteps = [T for T in map(_timesteps_of, calls) if T is not None]
        self.timesteps = timesteps[0] if timesteps else 1
        repeats = {call.inputs[0] for call in calls if call.repeats}
        # Of an input for every element of the batch.
        self.rows = [1 if name in repeats else self.timesteps for name in self.inputs]
        # One for each layout of what is read; where a call cannot be part of one, what runs it.
        self._programs: dict[Any, _Program | list[Segment | Call]] = {}

    def run(self, values: dict[str, Any]) -> None:
        given = [values[name] for name in self.inputs]
        batch = self._batch_of(given)
        if batch == 0:
            for call in self.calls:
                call.run(values)
            return
        key = tuple(map(_layout, given))
        program = self._programs.get(key)
        if program is None or (isinstance(program, _Program) and not program.holds()):
            if len(self._programs) == _MOST_PROGRAMS:
                self._programs.clear()
            program = self._programs[key] = self._build(given)
        if isinstance(program, _Program):
            program.run(given, batch, values)
            for name in self.unused:
                del values[name]
            return
        for part in program:
            part.run(values)

    def _batch_of(self, given: list[Any]) -> int:
        """Return B, the same for all that is given; 0 where there is none."""
        found = 0
        for value, rows in zip(given, self.rows, strict=True):
            if isinstance(value, PackedSpikes):
                samples = value.words.shape[1 if value.signed else 0]
            else:
                samples = value.shape[0] if value.dim() else 0
            batch, rest = divmod(samples, rows)
            if rest or batch == 0 or found not in (0, batch):
                return 0
            found = batch
        return found

    @torch.inference_mode(False)  # later calls write to copies, which inference mode would forbid
    def _build(self, given: list[Any]) -> "_Program | list[Segment | Call]":
        try:
            return _Program(self, given)
        except _Refused as refused:
            at = refused.at
        before, call, behind = self.calls[:at], self.calls[at], self.calls[at + 1 :]
        parts: list[Any] = [call]
        if before:
            parts.insert(0, Segment(before, self._end))
        if behind:
            parts.append(Segment(behind, self._end))
        return parts


def _layout(value: Tensor | PackedSpikes) -> Any:
    """Return what a program depends on; not the batch."""
    if isinstance(value, PackedSpikes):
        words = value.words
        rest = words.shape[2 if value.signed else 1 :]
        return rest, words.is_contiguous(), value.channels, value.signed
    # A batch of one element may have any stride, that of a batch with gaps as well.
    return value.shape[1:], value.stride(), _is_dense(value), value.dtype, value.device


class _Program:
    def __init__(self, segment: Segment, given: list[Any]):
        self.native = extension().Program()
        self.timesteps = segment.timesteps
        self._constants: list[Tensor] = []
        self._copies: list[tuple[Tensor, Tensor]] = []  # (copy, what it is a copy of)
        self._alive: list[Any] = []
        self._bytes = 0  # of the arena, per element of the batch
        self._values: dict[str, _Spikes | _Current] = {}
        for block, name in enumerate(segment.inputs):
            if (value := self._given(block + 1, given[block], segment.rows[block])) is not None:
                self._values[name] = value
        outputs = {name: len(given) + 1 + n for n, name in enumerate(segment.outputs)}
        for at, call in enumerate(segment.calls):
            try:
                self._add(call, outputs.get(call.output))
            except (_Refused, TypeError, ValueError):  # the call itself says what is wrong
                raise _Refused(at) from None
        made: list[Any] = [(name, self._values[name]) for name in segment.outputs]
        self.made: list[tuple[str, _Spikes | _Current]] = made
        # The same memory, as it lies.
        self._aliases = [t.detach() for t in self._constants]
        self._dtypes = [t.dtype for t in self._constants]
        self._addresses = [t.data_ptr() for t in self._constants]
        del self._values  # views of what was given, which may be large

    # --- what the program depends on beside the dictionaries that the plan watches

    def holds(self) -> bool:
        return (
            all(map(Tensor.is_set_to, self._constants, self._aliases))
            and [t.dtype for t in self._constants] == self._dtypes
            # share_memory() and resize_() of a storage move what lies in it.
            and [t.data_ptr() for t in self._constants] == self._addresses
        )

    # --- running

    def run(self, given: list[Any], batch: int, values: dict[str, Any]) -> None:
        """Compute the outputs."""
        tensors = [v.words if isinstance(v, PackedSpikes) else v for v in given]
        for copy, of in self._copies:
            copy.copy_(of)
        arena = torch.empty(self._bytes * batch, dtype=torch.uint8, device="cpu")
        blocks = [arena.data_ptr(), *(t.data_ptr() for t in tensors)]
        for name, made in self.made:
            if isinstance(made, _Current):
                T, *shape = made.like.shape
                out = values[name] = empty_maps((T * batch, *shape), True, arena.device)
            else:
                out = torch.empty(
                    made.shape(self.timesteps * batch), dtype=torch.int32, device="cpu"
                )
                values[name] = PackedSpikes(out, made.channels, made.signed)
            blocks.append(out.data_ptr())
        self.native.run_cpu(blocks, batch, torch.get_num_threads())

    # --- building

    @staticmethod
    def _given(block: int, value: Tensor | PackedSpikes, rows: int) -> "_Spikes | _Current | None":
        """Return what is given in a block; None: nothing that a program reads."""
        if isinstance(value, PackedSpikes):
            words = value.words
            if not (is_plain_eager(words) and words.is_contiguous()):
                return None
            pixels = tuple(words.shape[2 if value.signed else 1 : -1])
            return _Spikes((block, 0), value.channels, value.signed, pixels)
        if value.dtype not in checks.FLOATS or not is_plain_eager(value) or value.dim() < 2:
            return None
        if not _is_dense(value):
            return None
        return _Current((block, 0), value[:rows])

    def _arena(self, bytes_: int) -> tuple[int, int]:
        """Reserve memory that begins at a cache line for every batch."""
        place = (0, self._bytes)
        self._bytes += -(-bytes_ // 64) * 64
        return place

    def _constant(self, tensor: Tensor | None, taken: Tensor | None, of: Tensor | None) -> None:
        """Keep a tensor of a layer and what a kernel takes for it: itself, or a copy of `of`."""
        if tensor is None or taken is None or of is None:
            return
        self._constants.append(tensor)
        self._alive.append(taken)
        if taken.data_ptr() != tensor.data_ptr():
            self._copies.append((taken, of.detach()))

    def _add(self, call: Call, block: int | None) -> None:
        constants = len(self._constants)
        if _timesteps_of(call) not in (None, self.timesteps):
            raise _Refused
        if _is_current(call):
            self._add_current(call, block)
        elif call.neurons is not None:
            self._add_synapses(call, block)
        elif call.packs:
            self._add_neurons(call, block)
        elif block is not None:
            raise _Refused
        elif call.inputs[0] in self._values:
            self._values[call.name] = self._values[call.inputs[0]]
        if not is_plain_eager(*self._constants[constants:]):
            raise _Refused

    def _emit(
        self, call: Call, block: int | None, neurons: Any, channels: int, pixels: tuple[int, ...]
    ) -> tuple[int, int]:
        spikes = _Spikes(NOWHERE, channels, neurons.form.ternary, pixels)
        bytes_ = 4 * math.prod(spikes.shape(self.timesteps))
        place = self._arena(bytes_) if block is None else (block, 0)
        self._values[call.output] = spikes._replace(place=place)
        return place

    def _neurons(
        self, module: layers.FoldedLIF, shape: tuple[int, ...], channels_last: bool, dims: int
    ) -> Any:
        """Return the neurons behind maps of `shape`, [C, ...], as these lie in memory."""
        dynamics: Any = module.dynamics
        own = [dynamics["decay"], dynamics["v_threshold"]]
        of_map: list[Any] = [of_maps(v, dims) if isinstance(v, Tensor) else v for v in own]
        checked = check_neurons(
            torch.zeros((), device="cpu").expand(self.timesteps, 1, *shape), of_map[0], of_map[1],
            dynamics["v_reset"], dynamics["reset"], True, dynamics["emission"], "rectangular", None,
        )  # fmt: skip
        neurons = neurons_in_memory_order(
            None, checked.decay, checked.v_threshold, None, checked.form, shape, channels_last
        )
        for tensor, of, parameter in zip(own, of_map, neurons.parameters[1:], strict=True):
            if not isinstance(tensor, Tensor):
                continue
            # As lif_contract lays them out.
            if channels_last and tensor.numel() > 1 and of.shape != (shape[0], 1, 1):
                of = of.expand(shape).permute(1, 2, 0)
            elif parameter.values is not None and parameter.values.shape != of.shape:
                of = of.expand(shape)
            self._constant(tensor, parameter.values, of)
        return neurons

    def _add_neurons(self, call: Call, block: int | None) -> None:
        module: Any = call.module
        current = self._values.get(call.inputs[0])
        if not isinstance(current, _Current):
            raise _Refused
        shape = tuple(current.like.shape[1:])
        channels_last = not current.like.is_contiguous()
        neurons = self._neurons(module, shape, channels_last, 4)
        N = math.prod(shape)
        over_time = current.like.shape[0] == self.timesteps > 1
        lif = lif_cpu.params_of(
            neurons, self.timesteps, N, N if over_time else 0, current.like.dtype
        )
        packed = self._emit(call, block, neurons, shape[0], shape[1:])
        pixels = math.prod(shape[1:])
        self.native.add_lif(lif, shape[0], pixels, channels_last, current.place, packed)

    def _add_current(self, call: Call, block: int | None) -> None:
        """Write the current of a convolution to an output of the program."""
        if block is None:
            raise _Refused
        conv = self._convolution(call.module, call.inputs, True)
        self.native.add_conv(conv.params, conv.spikes, (block, 0), conv.products)
        like = conv.out.flatten(1) if type(call.module) is layers.SpikeLinear else conv.out
        self._values[call.name] = _Current((block, 0), like)

    def _add_synapses(self, call: Call, block: int | None) -> None:
        module: Any = call.module
        own: list[tuple[Any, tuple[str, ...]]] = [(module, call.inputs)]
        at: Any = 0
        bias: Any = None
        if type(module) is layers.SynapticCurrent:
            own, read = [], 0
            for layer in module.synapses.values():
                count = getattr(layer, "maps", 1)
                own.append((layer, call.inputs[read : read + count]))
                read += count
            own += [(None, (name,)) for name in call.inputs[read:]]
            at, bias = module.firing, module.bias
        layer, names = own[at]
        dims = layer.current_dims
        conv = self._convolution(layer, names, None)
        shape = (self.timesteps, *conv.shape)
        before, behind = own[:at], own[at + 1 :]
        added = [self._added(*each, dims, shape) for each in (*before, *behind)]
        for _, (place, *_) in added[1:at]:  # a sum of three and more has one order
            to, *selecting = added[0][1]
            if {to[0], place[0]} != {0} or selecting != [NOWHERE, NOWHERE]:
                raise _Refused
            self.native.add_sum(place, to, math.prod(shape), False)
        del added[1:at]
        if bias is not None:
            added.append(self._constant_current(bias, None, dims, shape))
        if len(added) > MOST_ADDED or not fits(
            conv.weight, self.timesteps * conv.maps * conv.signs
        ):
            raise _Refused
        assert call.neurons is not None
        neurons = self._neurons(call.neurons[1], conv.shape, True, dims)
        lif = lif_cpu.params_after_conv(neurons, self.timesteps, math.prod(conv.shape))
        pixels = {4: conv.shape[1:], 3: conv.shape[2:], 2: ()}[dims]
        packed = self._emit(call, block, neurons, conv.shape[0], pixels)
        self.native.add_conv_lif(
            conv.params, lif, conv.maps, conv.signs, [current for current, _ in added],
            conv.spikes, packed, [places for _, places in added], conv.products,
        )  # fmt: skip

    def _convolution(self, layer: Any, names: tuple[str, ...], out: Any) -> "_Convolution":
        synapses = layer if type(layer) is layers.Synapses else None
        conv: Any = layer if synapses is None else synapses.layer
        reads = 4 if synapses is None else synapses.reads
        signed = synapses is not None and synapses.signed
        maps: list[Any] = [self._values.get(name) for name in names]
        first = maps[0]
        for spikes in maps:
            if not isinstance(spikes, _Spikes) or spikes.signed != signed:
                raise _Refused
            if (spikes.channels, spikes.pixels) != (first.channels, first.pixels):
                raise _Refused
        size = {(4, 2): first.pixels, (3, 1): (1, *first.pixels), (2, 0): (1, 1)}
        size[4, 0] = (1, 1) if type(conv) is layers.SpikeLinear else None
        size = size.get((reads, len(first.pixels)))
        if size is None:
            raise _Refused
        signs = 2 if signed else 1
        shape = (len(maps) * signs * self.timesteps, *size, words_of(first.channels))
        place = first.place
        if len(maps) > 1:
            bytes_ = 4 * math.prod(shape) // len(maps)
            block, begin = self._arena(bytes_ * len(maps))
            place = (block, begin)
            for n, spikes in enumerate(maps):
                self.native.add_copy(spikes.place, (block, begin + n * bytes_), bytes_)
        words = torch.zeros(shape, dtype=torch.int32, device="cpu")
        arguments: Any = conv._arguments(PackedSpikes(words, first.channels))
        algorithm = arguments.pop("algorithm")
        checked = check_convolution(**arguments)
        weight = checked.tensors[1]
        channels = (weight.shape[2] * weight.shape[6], *checked.output_size)
        if out is not None:
            out = empty_maps((shape[0], *channels), True, words.device)
        params, alive = kernel_params(
            words, *checked.tensors[1:], out, checked.output_size, checked.geometry
        )
        self._alive.append(alive)
        kernels, bias, amplitude, scale = (
            alive[name] for name in ("weight", "bias", "amplitude", "scale")
        )
        own = conv.weight
        self._constant(own, kernels, own[0, 0] if is_shared(weight) else own)
        self._constant(conv.bias, bias, conv.bias)
        if conv.amplitude is not None:
            self._constant(conv.amplitude, amplitude, conv.amplitude.permute(1, 2, 0))
        self._constant(conv.scale, scale, conv.scale)
        products = algorithm == "auto"
        return _Convolution(params, place, len(maps), signs, channels, weight, out, products)

    def _added(
        self, layer: Any, names: tuple[str, ...], dims: int, shape: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """Return a current of [T, C, OH, OW] that is added, and its places."""
        value: Any = self._values.get(names[0])
        if type(layer) is layers.OneToOneSynapses:
            return self._constant_current(layer.weight, value, dims, shape)
        if layer is None:
            if not isinstance(value, _Current) or value.like.dtype != torch.float32:
                raise _Refused
            place = value.place
            current: Any = as_map(value.like, dims)
        else:
            conv = self._convolution(layer, names, True)
            count = math.prod(shape)
            current = conv.out[: self.timesteps]
            place = self._arena(4 * count * conv.maps * conv.signs)
            self.native.add_conv(conv.params, conv.spikes, place, conv.products)
            for m in range(conv.maps):
                part = (0, place[1] + 4 * count * conv.signs * m)
                if conv.signs == 2:
                    self.native.add_sum((0, part[1] + 4 * count), part, count, True)
                if m > 0:
                    self.native.add_sum(part, place, count, False)
        if tuple(current.shape) != shape:
            raise _Refused
        added, (taken, _) = added_current(current, None, shape)
        if taken.data_ptr() != current.data_ptr():
            raise _Refused
        return added, (place, NOWHERE, NOWHERE)

    def _constant_current(
        self, weight: Tensor, spikes: Any, dims: int, shape: tuple[int, ...]
    ) -> tuple[Any, Any]:
        """Return what neurons have of their own, where they fired or everywhere."""
        of = of_maps(weight, dims).expand(shape[1:])
        if weight.dtype not in checks.FLOATS:
            raise _Refused
        added, (taken, _) = added_current(of.to(torch.float32), None, shape)
        self._constant(weight, taken, of)
        if spikes is None:
            return added, (NOWHERE, NOWHERE, NOWHERE)
        wanted = {4: shape[2:], 3: shape[3:], 2: ()}[dims]
        if not isinstance(spikes, _Spikes) or (spikes.channels, spikes.pixels) != (
            shape[1],
            wanted,
        ):
            raise _Refused
        negative = NOWHERE
        if spikes.signed:
            block, begin = spikes.place
            negative = (block, begin + 4 * math.prod(spikes.shape(self.timesteps)[1:]))
        return added, (NOWHERE, spikes.place, negative)


class _Convolution(NamedTuple):
    params: Any
    spikes: tuple[int, int]
    maps: int
    signs: int
    shape: tuple[int, ...]  # [C, OH, OW]
    weight: Tensor
    out: Any  # of a batch of one
    products: bool  # are allowed


def _is_dense(value: Tensor) -> bool:
    return value.is_contiguous() or (
        value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    )


def _is_current(call: Call) -> bool:
    """Whether a call is a convolution of spikes without neurons behind it."""
    return call.neurons is None and type(call.module) in CAN_FIRE


def _timesteps_of(call: Call) -> int | None:
    """Return T; None where a call does not know it."""
    if _is_current(call):
        return None
    timed: Any = call.module if call.neurons is None else call.neurons[1]
    return timed.timesteps
