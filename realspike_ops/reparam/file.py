"""Folded networks as files: safetensors with the weights and, as JSON, the steps.

Reading one parses numbers and JSON and builds the layers named below; nothing in a file is executed
or unpickled, and the code of the trained network is not needed.
"""

import errno
import json
import operator
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from realspike_ops import _checks as checks
from realspike_ops import nn as layers
from realspike_ops import safe_files
from realspike_ops.nn.synapses.spike_conv import SpikeConv
from realspike_ops.reparam.check.bounded_run import check_run
from realspike_ops.reparam.network import (
    INPUT,
    RESERVED,
    Argument,
    EncodingCall,
    FoldedNetwork,
    Step,
)
from realspike_ops.reparam.trace.in_place import changed_copy
from realspike_ops.reparam.trace.sizes import batch_size

FORMAT = "realspike.folded"
FORMAT_VERSION = "3"

_REST = ("input_shape", "batch", "neurons")  # of the arguments of a FoldedNetwork
MOST_TENSORS = 16_384  # and steps
LARGEST_SIZE = 2**16  # of a map, a kernel, a border, a batch, a number of timesteps
_DTYPES = {
    **{"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64},
    **{"U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool},
}

_SPIKE_CONVS = {
    cls.__name__: cls
    for cls in (
        *(layers.SpikeConv2d, layers.UnsharedSpikeConv, layers.UnsharedSpikeConv1d),
        layers.SpikeLinear,
    )
}
_SPIKE_POOLS = {cls.__name__: cls for cls in (layers.SpikeMaxPool1d, layers.SpikeMaxPool2d)}
# Layers that their arguments, kept under the same names, rebuild; `bias` is whether there is one.
_BY_ARGUMENTS: "dict[type, str]" = {
    nn.Conv2d: "in_channels out_channels kernel_size stride padding dilation groups bias "
    "padding_mode",
    nn.Linear: "in_features out_features bias",
    nn.BatchNorm1d: "num_features eps momentum affine track_running_stats",
    nn.BatchNorm2d: "num_features eps momentum affine track_running_stats",
    nn.AvgPool2d: "kernel_size stride padding ceil_mode count_include_pad divisor_override",
    nn.MaxPool2d: "kernel_size stride padding dilation return_indices ceil_mode",
    nn.AdaptiveAvgPool2d: "output_size",
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
# What `changed_copy` may do; other changes in place become functions that return something new.
_CHANGES = frozenset(
    "__setitem__ fill_ zero_ copy_ masked_fill_ index_fill_ index_copy_ index_add_".split()
)


def save_folded(
    folded: FoldedNetwork, path: "str | Path", metadata: "Mapping[str, str] | None" = None
) -> None:
    """Write a folded network to a safetensors file that `load_folded` reads.

    The same network gives the same bytes. A file that exists is replaced by the whole new one.

    Args:
        folded: What `reparameterize` returned.
        path: The file.
        metadata: More texts for the file's metadata, which `load_folded` passes over.

    Raises:
        TypeError: if ``folded`` is not a `FoldedNetwork`.
        ValueError: if its encoding holds a layer or function that the format does not know, named,
            or a weight is not finite.
        OSError: if the file cannot be written.
        ImportError: if safetensors is not installed.
    """
    if not isinstance(folded, FoldedNetwork):
        raise TypeError(f"folded must be a FoldedNetwork; got {type(folded).__name__}")
    steps = [
        {
            "name": step.name,
            "inputs": step.inputs,
            "layer": _described(step.name, folded.get_submodule(step.name)),
        }
        for step in folded.steps
    ]
    content = {
        "steps": steps,
        "output": _plain("output", folded.output),
        "input_shape": folded.input_shape,
        "batch": folded.batch,
        "neurons": folded.neurons,
    }
    tensors = folded.state_dict()
    for name, tensor in tensors.items():
        checks.check_finite(name, tensor)
    own = {"format": FORMAT, "format_version": FORMAT_VERSION, "network": json.dumps(content)}
    packed = safe_files.to_bytes(tensors, {**(metadata or {}), **own})
    path = Path(path)
    if path.exists() and not path.is_file():  # which a file would take the place of
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(packed)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_folded(path: "str | Path", *, memory_limit: int = 2**30) -> FoldedNetwork:
    """Read what `save_folded` wrote: a network in eval mode, on the CPU.

    Before a tensor is read, the layers are built of the shapes in the file, and run on them.

    Args:
        path: The file.
        memory_limit: Bytes that a run on one sample may take besides the weights.

    Raises:
        ValueError: in one line, if the file is not one of this format, its tensors do not fit its
            layers or are not finite, or the network cannot run, or not in the memory.
        OSError: if it cannot be read.
        ImportError: if safetensors is not installed.
    """
    safetensors = safe_files.package()
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            content = _content(file.metadata() or {})
            names = list(file.keys())
            if len(names) > MOST_TENSORS:
                raise ValueError(f"it has {len(names)} tensors; at most {MOST_TENSORS} are read")
            shapes = {name: _shape_alone(name, file.get_slice(name)) for name in names}
            check_run(_network(content, shapes), memory_limit)
            # Copies: what is read is a view of the file, and changes with it.
            tensors = {name: file.get_tensor(name).clone() for name in names}
        for name, tensor in tensors.items():
            checks.check_finite(name, tensor)
            if name.endswith("running_var") and (tensor < 0).any():
                raise ValueError(f"{name} holds negative variances")
        return _network(content, tensors)
    except OSError:
        raise
    except Exception as error:  # layers refuse what does not fit them in any way
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a folded network: {text:.300}") from error


def _content(metadata: Mapping[str, str]) -> dict:
    """Return the JSON of a file: steps of one name each, which read steps before them."""
    found = (metadata.get("format"), metadata.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"its format is {found!r:.80}; expected {(FORMAT, FORMAT_VERSION)}")
    content = safe_files.json_object(metadata.get("network", ""))
    if set(content) != {"steps", "output", *_REST}:
        raise ValueError(f"it must have steps, output, {', '.join(_REST)}; got {[*content]!r:.80}")
    shape, batch = content["input_shape"], content["batch"]
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise ValueError(f"input_shape must be a list of sizes; got {shape!r:.80}")
    if batch is not None and not _is_size(batch):
        raise ValueError(f"batch must be a size or null; got {batch!r:.80}")
    known = {INPUT}
    for step in content["steps"]:
        if set(step) != {"name", "inputs", "layer"} or not isinstance(step["layer"], dict):
            raise ValueError(f"a step must have name, inputs and layer; got {step!r:.80}")
        name = step["name"]
        if not isinstance(name, str) or not name or "." in name or name in {*known, *RESERVED}:
            raise ValueError(f"{name!r:.80} is no name for a step, or another has it")
        if not isinstance(step["inputs"], list) or not known.issuperset(step["inputs"]):
            raise ValueError(
                f"{name!r:.80} reads what is no step before it: {step['inputs']!r:.80}"
            )
        known.add(name)
    if not 1 <= len(known) - 1 <= MOST_TENSORS:
        raise ValueError(f"it must have 1 to {MOST_TENSORS} steps; got {len(known) - 1}")
    neurons = content["neurons"]
    calls = neurons.values() if isinstance(neurons, dict) and known.issuperset(neurons) else [None]
    if not all(isinstance(c, list) and [*map(type, c)] == [str, int] for c in calls):
        raise ValueError(f"neurons must name layers and calls of steps; got {neurons!r:.80}")
    content["output"] = _restored(content["output"])
    for leaf in tree_leaves(content["output"]):
        if (isinstance(leaf, str) and leaf not in known) or isinstance(leaf, Argument):
            raise ValueError(f"its output {leaf!r:.80} is no step")
    return content


def _is_size(value) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIZE


def _shape_alone(name: str, slice_of_file) -> Tensor:
    dtype = slice_of_file.get_dtype()
    if dtype not in _DTYPES:
        raise ValueError(f"{name!r:.80} has dtype {dtype}; expected one of {', '.join(_DTYPES)}")
    return torch.empty(slice_of_file.get_shape(), dtype=_DTYPES[dtype], device="meta")


def _network(content: dict, tensors: Mapping[str, Tensor]) -> FoldedNetwork:
    of_step = _by_first_name(tensors)
    modules = {
        step["name"]: _built(step["layer"], of_step.get(step["name"], {}))
        for step in content["steps"]
    }
    steps = [Step(step["name"], tuple(step["inputs"])) for step in content["steps"]]
    rest = {key: content[key] for key in _REST}
    folded = FoldedNetwork(steps, modules, content["output"], **rest)
    if odd := sorted(set(folded.state_dict()) ^ set(tensors)):
        raise ValueError(f"the tensor {odd[0]!r:.80} is missing, or nothing is made of it")
    return folded.eval()


def _by_first_name(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return {"a": {"b.c": tensor}} for {"a.b.c": tensor}."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        found.setdefault(first, {})[rest] = tensor
    return found


# --- layers ---------------------------------------------------------------------------------------


def _described(name: str, module: nn.Module) -> dict:
    kind = type(module)
    described = {"kind": kind.__name__}
    if kind in _BY_ARGUMENTS:
        for argument in _BY_ARGUMENTS[kind].split():
            value = getattr(module, argument)
            described[argument] = value is not None if argument == "bias" else value
    elif isinstance(module, SpikeConv):
        described |= {k: getattr(module, k) for k in ("stride", "padding", "dilation")}
        described["input_size"] = getattr(module, "input_size", None)
    elif kind is layers.PiecewiseSpikeConv:
        fields = ("rows", "columns", "stride", "padding", "dilation")
        described |= {k: getattr(module, k) for k in fields}
    elif kind is layers.OneToOneSynapses:
        pass
    elif kind is layers.Rearrange:
        described["shape"] = module.shape
    elif kind is layers.AtTimestep:
        described |= {k: getattr(module, k) for k in ("timesteps", "timestep")}
    elif kind.__name__ in _SPIKE_POOLS:
        fields = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        described |= {k: getattr(module, k) for k in fields}
    elif kind is layers.FoldedLIF:
        form = {k: None if isinstance(v, Tensor) else v for k, v in module.form.items()}
        described |= form | {"timesteps": module.timesteps, "surrogate": tuple(module.surrogate)}
    elif kind is layers.Synapses:
        fields = ("maps", "signed", "pad", "channels", "flatten", "sums", "reads", "line")
        described |= {k: getattr(module, k) for k in fields}
        described["layer"] = _described(name, module.layer)
    elif kind is layers.SynapticCurrent:
        described["synapses"] = {k: _described(name, m) for k, m in module.synapses.items()}
    elif kind is EncodingCall:
        described |= _described_call(name, module)
    else:
        raise ValueError(
            f"{name!r} is a {kind.__name__}, which the format of folded networks does not know: "
            "save the state_dict and build the network in code"
        )
    return described


def _built(described: dict, tensors: dict[str, Tensor]) -> nn.Module:
    described = dict(described)
    kind = described.pop("kind")
    for key, value in described.items():
        # The numbers of features, channels and classes are those of tensors.
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
        if described["input_size"] is None:
            del described["input_size"]
        return _SPIKE_CONVS[kind].from_weight(tensors["weight"], tensors.get("bias"), **described)
    if kind == "PiecewiseSpikeConv":
        for key, count in zip(("rows", "columns"), tensors["weight"].shape, strict=False):
            if not all(0 <= index < count for index in described[key]):
                raise ValueError(f"{key} of a {kind} must be below {count}")
        runs = [
            1 + sum(map(operator.ne, k, k[1:])) for k in map(described.get, ("rows", "columns"))
        ]
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
        given = {k: tensors[v] for k, v in buffers.items() if described[k] is None}
        scale = tensors.get("current_scale")
        return layers.FoldedLIF(**(described | given), current_scale=scale)
    if kind == "Synapses":
        layer = _built(described.pop("layer"), _by_first_name(tensors).get("layer", {}))
        return layers.Synapses(layer, **described)
    if kind == "SynapticCurrent":
        inside = _by_first_name(_by_first_name(tensors).get("synapses", {}))
        synapses = {k: _built(d, inside.get(k, {})) for k, d in described["synapses"].items()}
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
    described = {"args": _plain(name, call.args), "kwargs": _plain(name, call.kwargs)}
    if call.target == "module":
        return described | {"module": _described(name, call.module)}
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
    args, kwargs = _restored(described["args"]), _restored(described["kwargs"])
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, dict) or "out" in kwargs:
        raise ValueError("a call must have a list of arguments, and others by name, but no out")
    constants = {k: t for k, t in tensors.items() if not k.startswith("module.")}
    if "module" in described:
        target = _built(described["module"], _by_first_name(tensors).get("module", {}))
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


def _plain(name: str, value):
    """Write the arguments of a call in JSON."""
    if isinstance(value, Argument):
        return {"argument": value.which}
    if isinstance(value, slice):
        return {"slice": [_plain(name, n) for n in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, dict):
        return {"dict": {key: _plain(name, item) for key, item in value.items()}}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_plain(name, item) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ValueError(f"{name!r} has an argument that JSON cannot hold: {value!r:.80}")


def _restored(plain: dict):
    """Undo `_plain`."""
    ((kind, value),) = plain.items()
    if kind == "argument" and type(value) in (int, str):
        return Argument(value)
    if kind == "slice":
        return slice(*(_restored(n) for n in value))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "dict":
        return {key: _restored(item) for key, item in value.items()}
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_restored(item) for item in value)
    if kind == "value" and (value is None or isinstance(value, (bool, int, float, str))):
        return value
    raise ValueError(f"unknown argument of a call: {plain!r:.80}")
