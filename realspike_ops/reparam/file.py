"""Folded networks as files: safetensors with the weights and, as JSON, the steps.

Reading a file parses numbers and JSON and builds the layers of `layers_in_json`. Nothing in a file
is executed or unpickled, and the code of the trained network is not needed.
"""

import errno
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure

from realspike_ops import _checks as checks
from realspike_ops import safe_files
from realspike_ops.nn.plain import check_plain
from realspike_ops.reparam.check.bounded_run import check_run
from realspike_ops.reparam.encoding_call import Argument
from realspike_ops.reparam.layers_in_json import (
    LARGEST_SIZE,
    MOST_TENSORS,
    arguments_from_json,
    arguments_in_json,
    by_first_name,
    layer_from_json,
    layer_in_json,
)
from realspike_ops.reparam.network import INPUT, RESERVED, FoldedNetwork, Step

FORMAT = "realspike.folded"
FORMAT_VERSION = "3"

_REST = ("input_shape", "batch", "neurons")  # of the arguments of a FoldedNetwork
_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


def save_folded(
    folded: FoldedNetwork, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a folded network to a safetensors file that `load_folded` reads.

    The same network gives the same bytes. A file that exists is replaced by the whole new one.

    Args:
        folded: The network that `reparameterize` returned.
        path: The file.
        metadata: More texts for the file's metadata, which `load_folded` passes over.

    Raises:
        TypeError: if ``folded`` is not a `FoldedNetwork`, a tensor of a type that no file holds, or
            another argument of the wrong type.
        ValueError: if its encoding holds a layer or function that the format does not know, named,
            or a weight is not finite; if it returns other than tuples, lists and dicts; for what a
            file cannot hold: forward hooks, replaced methods, weights of a type that cannot run.
        OSError: if the file cannot be written.
        ImportError: if safetensors is not installed.
    """
    if not isinstance(folded, FoldedNetwork):
        raise TypeError(f"folded must be a FoldedNetwork; got {type(folded).__name__}")
    for name, module in folded.named_modules():
        check_plain(name or "folded", module, type(module))
    path, metadata = checks.check_path("path", path), {} if metadata is None else metadata
    if not isinstance(metadata, Mapping) or any(
        not isinstance(text, str) for pair in metadata.items() for text in pair
    ):
        raise TypeError(f"metadata must map texts to texts; got {metadata!r:.80}")
    steps = [
        {
            "name": step.name,
            "inputs": step.inputs,
            "layer": layer_in_json(step.name, folded.get_submodule(step.name)),
        }
        for step in folded.steps
    ]
    content = {
        "steps": steps,
        "output": arguments_in_json("output", folded.output),
        "input_shape": folded.input_shape,
        "batch": folded.batch,
        "neurons": folded.neurons,
    }
    tensors = folded.state_dict()
    for name, tensor in tensors.items():
        checks.check_finite(name, tensor)
        checks.check_dtype(name, tensor, [*_DTYPES.values()])
    own = {"format": FORMAT, "format_version": FORMAT_VERSION, "network": json.dumps(content)}
    _check_that_it_can_be_read(folded, own)
    packed = safe_files.to_bytes(tensors, {**metadata, **own})
    if path.exists() and not path.is_file():  # which a file would take the place of
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(packed)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check_that_it_can_be_read(folded: FoldedNetwork, metadata: Mapping[str, str]) -> None:
    try:
        tensors = {name: tensor.to("meta") for name, tensor in folded.state_dict().items()}
        read = _network(_content(metadata), tensors)
        check_run(read, math.inf)
    except Exception as error:  # what a reader says
        raise ValueError(f"folded cannot be stored in a file: {error}") from error
    if (kinds := tree_structure(folded.output)) != tree_structure(read.output):
        raise ValueError(
            f"folded returns {' '.join(str(kinds).split())}, and a file holds tuples, lists and "
            "dicts alone: fold a model that returns these"
        )


@torch.inference_mode(False)  # whose tensors could not be trained on
def load_folded(path: str | Path, *, memory_limit: int = 2**30) -> FoldedNetwork:
    """Read what `save_folded` wrote: a network in eval mode, on the CPU.

    Before a tensor is read, the layers are built of the shapes in the file, and run on them.

    Args:
        path: The file.
        memory_limit: Bytes that a run on one sample may take besides the weights.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: in one line, if the file is not one of this format, its tensors do not fit its
            layers or are not finite, or the network cannot run, or not in the memory.
        OSError: if it cannot be read.
        ImportError: if safetensors is not installed.
    """
    checks.check_path("path", path)
    checks.check_positive_int("memory_limit", memory_limit)
    safetensors = safe_files.package()
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            content = _content(file.metadata() or {})
            names = list(file.keys())
            if len(names) > MOST_TENSORS:
                raise ValueError(f"it has {len(names)} tensors; at most {MOST_TENSORS} are read")
            shapes = {name: _shape_alone(name, file.get_slice(name)) for name in names}
            check_run(_network(content, shapes), memory_limit)
            # A tensor that is read is a view of the file, and would change with it.
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
    content["output"] = arguments_from_json(content["output"])
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
    of_step = by_first_name(tensors)
    modules = {
        step["name"]: layer_from_json(step["layer"], of_step.get(step["name"], {}))
        for step in content["steps"]
    }
    steps = [Step(step["name"], tuple(step["inputs"])) for step in content["steps"]]
    rest = {key: content[key] for key in _REST}
    folded = FoldedNetwork(steps, modules, content["output"], **rest)
    if odd := sorted(set(folded.state_dict()) ^ set(tensors)):
        raise ValueError(f"the tensor {odd[0]!r:.80} is missing, or nothing is made of it")
    return folded.eval()
