"""The layers of folded networks as JSON and tensors, and back.

A layer is written as its kind and its arguments. Only the kinds that are named here are built.
"""

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from realspike_ops import nn as layers
from realspike_ops.reparam.encoding_call import Argument, EncodingCall
from realspike_ops.reparam.trace.in_place import changed_copy
from realspike_ops.reparam.trace.sizes import batch_size

MOST_TENSORS = 16_384  # and steps
LARGEST_SIZE = 2**16  # of a map, a kernel, a border, a batch, a number of timesteps

_SPIKE_CONVS = {
    cls.__name__: cls
    for cls in (
        layers.SpikeConv2d, layers.UnsharedSpikeConv, layers.UnsharedSpikeConv1d,
        layers.SpikeLinear,
    )
}  # fmt: skip
_SPIKE_POOLS = {cls.__name__: cls for cls in (layers.SpikeMaxPool1d, layers.SpikeMaxPool2d)}
# Layers of this library whose attributes say how they were made.
_FIELDS: dict[type, str] = {
    layers.PiecewiseSpikeConv: "rows columns stride padding dilation",
    layers.OneToOneSynapses: "",
    layers.Rearrange: "shape",
    layers.AtTimestep: "timesteps timestep",
    **dict.fromkeys(_SPIKE_POOLS.values(), "kernel_size stride padding dilation ceil_mode"),
    layers.Synapses: "maps signed pad channels flatten sums reads line",
}
# Layers that their arguments, kept under the same names, rebuild; `bias` is whether there is one.
_BY_ARGUMENTS: dict[type, str] = {
    **dict.fromkeys(
        (nn.Conv1d, nn.Conv2d),
        "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode",
    ),
    nn.Linear: "in_features out_features bias",
    nn.BatchNorm1d: "num_features eps momentum affine track_running_stats",
    nn.BatchNorm2d: "num_features eps momentum affine track_running_stats",
    nn.AvgPool1d: "kernel_size stride padding ceil_mode count_include_pad",
    nn.AvgPool2d: "kernel_size stride padding ceil_mode count_include_pad divisor_override",
    **dict.fromkeys(
        (nn.MaxPool1d, nn.MaxPool2d),
        "kernel_size stride padding dilation return_indices ceil_mode",
    ),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), "output_size"),
    nn.Flatten: "start_dim end_dim",
    nn.Identity: "",
    nn.ReLU: "inplace",
    nn.Dropout: "p inplace",
    nn.Dropout2d: "p inplace",
    layers.DirectEncoding: "timesteps",
    layers.MeanOverTime: "timesteps",
    layers.SumOverTime: "timesteps",
}
_FUNCTIONS = {
    "add": torch.add,
    "operator.add": operator.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "operator.mul": operator.mul,
    "div": torch.div,
    "operator.truediv": operator.truediv,
    "flatten": torch.flatten,
    "cat": torch.cat,
    "relu": torch.relu,
    "functional.relu": nn.functional.relu,
    "operator.getitem": operator.getitem,
    "operator.sub": operator.sub,
    "batch_size": batch_size,
    "changed_copy": changed_copy,
}
_METHODS = frozenset(
    "flatten view reshape contiguous mean sum relu clone add sub mul div neg expand repeat "
    "unsqueeze squeeze transpose permute detach float clamp".split()
)
# The methods that `changed_copy` may call. Other changes in place become functions that return
# something new.
_CHANGES = frozenset(
    "__setitem__ fill_ zero_ copy_ masked_fill_ index_fill_ index_copy_ index_add_".split()
)


def by_first_name(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return {"a": {"b.c": tensor}} for {"a.b.c": tensor}."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        found.setdefault(first, {})[rest] = tensor
    return found


def layer_in_json(name: str, module: nn.Module) -> dict:
    """Write a layer without its tensors, for the step `name`."""
    kind = type(module)
    described: dict[str, Any] = {"kind": kind.__name__}
    if kind in _BY_ARGUMENTS:
        for argument in _BY_ARGUMENTS[kind].split():
            value = getattr(module, argument)
            described[argument] = value is not None if argument == "bias" else value
    elif kind in _SPIKE_CONVS.values():
        described |= {k: getattr(module, k) for k in ("stride", "padding", "dilation")}
        described["input_size"] = getattr(module, "input_size", None)
    elif kind in _FIELDS:
        described |= {field: getattr(module, field) for field in _FIELDS[kind].split()}
        if isinstance(module, layers.Synapses):
            described["layer"] = layer_in_json(name, module.layer)
    elif type(module) is layers.FoldedLIF:
        form = {k: None if isinstance(v, Tensor) else v for k, v in module.form.items()}
        described |= form | {"timesteps": module.timesteps, "surrogate": tuple(module.surrogate)}
    elif type(module) is layers.SynapticCurrent:
        described["synapses"] = {k: layer_in_json(name, m) for k, m in module.synapses.items()}
    elif type(module) is EncodingCall:
        described |= _described_call(name, module)
    else:
        raise ValueError(
            f"{name!r} is a {kind.__name__}, which the format of folded networks does not know: "
            "save the state_dict and build the network in code"
        )
    return described


def layer_from_json(described: dict, tensors: dict[str, Tensor]) -> nn.Module:
    """Build a layer that holds these tensors, by their names in its state_dict."""
    described = dict(described)
    kind = described.pop("kind")
    for key, value in described.items():
        # Tensors tell the numbers of features, channels and classes.
        if key.endswith(("features", "_channels")):
            if type(value) is not int or value < 1:
                raise ValueError(f"{key} of a {kind} must be at least 1; got {value!r:.80}")
        elif not _is_small(value):
            raise ValueError(f"{key} of a {kind} is larger than {LARGEST_SIZE}: {value!r:.80}")
    by_arguments = {cls.__name__: cls for cls in _BY_ARGUMENTS}
    if kind in by_arguments:
        cls = by_arguments[kind]
        if set(described) != set(_BY_ARGUMENTS[cls].split()):
            raise ValueError(f"a {kind} must have {_BY_ARGUMENTS[cls]}; got {' '.join(described)}")
        has_weights = any(key.endswith(("features", "channels")) for key in described)
        device = {"device": "meta"} if has_weights else {}
        module = cls(**{k: _tupled(v) for k, v in described.items()}, **device)
        for name, tensor in module.state_dict().items():
            if name in tensors and tensor.is_floating_point() != tensors[name].is_floating_point():
                raise ValueError(f"{name} of a {kind} must not be {tensors[name].dtype}")
        module.load_state_dict(tensors, assign=True)
        return module
    if "weight" in tensors and kind != "OneToOneSynapses" and tensors["weight"].dim() != 7:
        raise ValueError(f"the weight of a {kind} must have 7 dimensions")
    if kind in _SPIKE_CONVS:
        if set(described) != {"stride", "padding", "dilation", "input_size"}:
            raise ValueError(f"a {kind} must have no arguments but its geometry: {[*described]}")
        if described["input_size"] is None:
            del described["input_size"]
        return _SPIKE_CONVS[kind].from_weight(tensors["weight"], tensors.get("bias"), **described)
    if kind == "PiecewiseSpikeConv":
        for key, count in zip(("rows", "columns"), tensors["weight"].shape, strict=False):
            if not all(0 <= index < count for index in described[key]):
                raise ValueError(f"{key} of a {kind} must be below {count}")
        indices = (described["rows"], described["columns"])
        runs = [1 + sum(map(operator.ne, k, k[1:])) for k in indices]
        if runs[0] * runs[1] > LARGEST_SIZE:
            raise ValueError(f"a {kind} has {runs[0]} x {runs[1]} rectangles of equal kernels")
        return layers.PiecewiseSpikeConv(tensors["weight"], **described)
    if kind == "OneToOneSynapses":
        return layers.OneToOneSynapses(tensors["weight"])
    if kind == "Rearrange":
        return layers.Rearrange(tensors["index"], **described)
    if kind == "AtTimestep":
        return layers.AtTimestep(**described)
    if kind in _SPIKE_POOLS:
        return _SPIKE_POOLS[kind](**described, negative=tensors.get("negative"))
    if kind == "FoldedLIF":
        described["surrogate"] = _tupled(described["surrogate"])
        buffers = {"decay": "decay_factor", "v_threshold": "v_threshold"}
        described |= {k: tensors[v] for k, v in buffers.items() if described[k] is None}
        return layers.FoldedLIF(**described, current_scale=tensors.get("current_scale"))
    if kind == "Synapses":
        layer = layer_from_json(described.pop("layer"), by_first_name(tensors).get("layer", {}))
        return layers.Synapses(layer, **described)
    if kind == "SynapticCurrent":
        inside = by_first_name(by_first_name(tensors).get("synapses", {}))
        synapses = {
            k: layer_from_json(d, inside.get(k, {})) for k, d in described["synapses"].items()
        }
        if sum(getattr(layer, "maps", 1) for layer in synapses.values()) > MOST_TENSORS:
            raise ValueError(f"a {kind} reads more than {MOST_TENSORS} maps")
        return layers.SynapticCurrent(synapses, tensors.get("bias"))
    if kind == "EncodingCall":
        return _built_call(described, tensors)
    raise ValueError(f"unknown layer {kind!r:.80}")


def _is_small(value) -> bool:
    if isinstance(value, list):
        return all(_is_small(item) for item in value)
    return isinstance(value, (str, dict, float)) or value is None or abs(value) <= LARGEST_SIZE


def _tupled(value):
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value


# --- functions of the encoding --------------------------------------------------------------------


def _described_call(name: str, call: EncodingCall) -> dict:
    described = {
        "args": arguments_in_json(name, call.args),
        "kwargs": arguments_in_json(name, call.kwargs),
    }
    if call.target == "module":
        return described | {"module": layer_in_json(name, call.module)}
    if isinstance(call.target, str) and call.target in _METHODS:
        return described | {"method": call.target}
    known = [key for key, function in _FUNCTIONS.items() if function is call.target]
    if not known:
        raise ValueError(
            f"{name!r} calls {call.extra_repr()}, which the format of folded networks does not "
            "know: save the state_dict and build the network in code"
        )
    return described | {"function": known[0]}


def _built_call(described: dict, tensors: dict[str, Tensor]) -> EncodingCall:
    args, kwargs = arguments_from_json(described["args"]), arguments_from_json(described["kwargs"])
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict) or "out" in kwargs:
        raise ValueError("a call must have a list of arguments, and others by name, but no out")
    constants = {k: t for k, t in tensors.items() if not k.startswith("module.")}
    if "module" in described:
        target = layer_from_json(described["module"], by_first_name(tensors).get("module", {}))
    elif "method" in described:
        target = described["method"]
        if target not in _METHODS:
            raise ValueError(f"unknown method {target!r:.80}")
    else:
        target = _FUNCTIONS[described["function"]]
    if target is changed_copy and not (args and args[0] in _CHANGES):
        raise ValueError(f"unknown change in place {args[:1]!r:.80}")
    for leaf in tree_leaves((args, kwargs)):
        if (
            isinstance(leaf, Argument)
            and isinstance(leaf.which, str)
            and leaf.which not in constants
        ):
            raise ValueError(f"a call reads {leaf.which!r:.80}, which is none of its tensors")
    return EncodingCall(target, args, kwargs, constants)


def arguments_in_json(name: str, value):
    """Write the arguments of a call in JSON."""
    if isinstance(value, Argument):
        return {"argument": value.which}
    if isinstance(value, slice):
        return {
            "slice": [arguments_in_json(name, n) for n in (value.start, value.stop, value.step)]
        }
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: arguments_in_json(name, item) for key, item in value.items()}}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [arguments_in_json(name, item) for item in value]}
    is_number = isinstance(value, (bool, int, float)) and abs(value) < math.inf
    if value is None or isinstance(value, str) or is_number:
        return {"value": value}
    raise ValueError(f"{name!r} has what JSON cannot hold: {value!r:.80}")


def arguments_from_json(plain: dict):
    """Undo `arguments_in_json`."""
    ((kind, value),) = plain.items()
    if kind == "argument" and type(value) in (int, str):
        return Argument(value)
    if kind == "slice":
        return slice(*(arguments_from_json(n) for n in value))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "dict":
        return {key: arguments_from_json(item) for key, item in value.items()}
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(arguments_from_json(item) for item in value)
    if kind == "value" and (value is None or isinstance(value, (bool, int, float, str))):
        return value
    raise ValueError(f"unknown argument of a call: {plain!r:.80}")
