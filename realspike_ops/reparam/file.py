"""Folded networks as files: safetensors with the weights and, as JSON, the steps.

Reading one parses numbers and JSON and builds the layers named below; nothing in a file is executed
or unpickled, and the code of the trained network is not needed.
"""

import json
import operator
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from realspike_ops import nn as layers
from realspike_ops.nn.spike_conv import SpikeConv
from realspike_ops.reparam.in_place import changed_copy
from realspike_ops.reparam.network import Argument, EncodingCall, FoldedNetwork, Step
from realspike_ops.reparam.sizes import batch_size

FORMAT = "realspike.folded"
FORMAT_VERSION = "3"

_SPIKE_CONVS = {
    cls.__name__: cls for cls in (layers.SpikeConv2d, layers.UnsharedSpikeConv, layers.SpikeLinear)
}
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


def save_folded(folded: FoldedNetwork, path: "str | Path") -> None:
    """Write a folded network to a safetensors file that `load_folded` reads.

    Raises:
        TypeError: if ``folded`` is not a `FoldedNetwork`.
        ValueError: if its encoding holds a layer or function that the format does not know, named.
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
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in folded.state_dict().items()
    }
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "network": json.dumps(content)}
    _safetensors("torch").save_file(tensors, str(path), metadata)


def load_folded(path: "str | Path") -> FoldedNetwork:
    """Read what `save_folded` wrote: a network in eval mode, on the CPU.

    Raises:
        ValueError: if the file is not one of this format, or its tensors do not fit its layers.
        OSError: if it cannot be read.
        ImportError: if safetensors is not installed.
    """
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            found = (metadata.get("format"), metadata.get("format_version"))
            if found != (FORMAT, FORMAT_VERSION):
                raise ValueError(f"its format is {found}; expected {(FORMAT, FORMAT_VERSION)}")
            content = json.loads(metadata["network"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        modules = {
            step["name"]: _built(step["layer"], _inside(tensors, step["name"]))
            for step in content["steps"]
        }
        steps = [Step(step["name"], tuple(step["inputs"])) for step in content["steps"]]
        output = _restored(content["output"])
        rest = (content[k] for k in ("input_shape", "batch", "neurons"))
        folded = FoldedNetwork(steps, modules, output, *rest)
        folded.load_state_dict(tensors)
    except (
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:
        raise ValueError(f"{path} is not a folded network: {error!r:.300}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a folded network: {error}") from error
    return folded.eval()


def _safetensors(part: "str | None" = None):
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("this needs safetensors: pip install safetensors") from error
    return safetensors if part is None else safetensors.torch


def _inside(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k[len(name) + 1 :]: t for k, t in tensors.items() if k.startswith(f"{name}.")}


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
    elif kind is layers.SpikeMaxPool2d:
        fields = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        described |= {k: getattr(module, k) for k in fields}
    elif kind is layers.FoldedLIF:
        form = {k: None if isinstance(v, Tensor) else v for k, v in module.form.items()}
        described |= form | {"timesteps": module.timesteps, "surrogate": tuple(module.surrogate)}
    elif kind is layers.Synapses:
        fields = ("maps", "signed", "pad", "channels", "flatten", "sums")
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
    by_arguments = {cls.__name__: cls for cls in _BY_ARGUMENTS}
    if kind in by_arguments:
        module = by_arguments[kind](**{k: _tupled(v) for k, v in described.items()})
        floating = [t for t in tensors.values() if t.is_floating_point()]
        return module.to(floating[0].dtype) if floating else module
    if kind in _SPIKE_CONVS:
        if described["input_size"] is None:
            del described["input_size"]
        return _SPIKE_CONVS[kind].from_weight(tensors["weight"], tensors.get("bias"), **described)
    if kind == "PiecewiseSpikeConv":
        return layers.PiecewiseSpikeConv(tensors["weight"], **described)
    if kind == "OneToOneSynapses":
        return layers.OneToOneSynapses(tensors["weight"])
    if kind == "SpikeMaxPool2d":
        return layers.SpikeMaxPool2d(**described, negative=tensors.get("negative"))
    if kind == "FoldedLIF":
        described["surrogate"] = _tupled(described["surrogate"])
        buffers = {"decay": "decay_factor", "v_threshold": "v_threshold"}
        given = {k: tensors[v] for k, v in buffers.items() if described[k] is None}
        scale = tensors.get("current_scale")
        return layers.FoldedLIF(**(described | given), current_scale=scale)
    if kind == "Synapses":
        layer = _built(described.pop("layer"), _inside(tensors, "layer"))
        return layers.Synapses(layer, **described)
    if kind == "SynapticCurrent":
        synapses = {
            k: _built(d, _inside(tensors, f"synapses.{k}"))
            for k, d in described["synapses"].items()
        }
        return layers.SynapticCurrent(synapses, tensors.get("bias"))
    if kind == "EncodingCall":
        return _built_call(described, tensors)
    raise ValueError(f"unknown layer {kind!r:.80}")


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
    constants = {k: t for k, t in tensors.items() if not k.startswith("module.")}
    if "module" in described:
        target = _built(described["module"], _inside(tensors, "module"))
    elif "method" in described:
        target = described["method"]
        if target not in _METHODS:
            raise ValueError(f"unknown method {target!r:.80}")
    else:
        target = _FUNCTIONS[described["function"]]
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
    ((kind, value),) = plain.items()
    if kind == "argument":
        return Argument(value)
    if kind == "slice":
        return slice(*(_restored(n) for n in value))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "dict":
        return {key: _restored(item) for key, item in value.items()}
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_restored(item) for item in value)
    return value
