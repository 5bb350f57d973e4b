"""From a model as its user wrote it to a graph of layers and functions."""

import copy
import inspect
import math

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from realspike_ops.nn import RealSpikeLIF, unfuse
from realspike_ops.nn.plain import waits_for_weights
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.sizes import PRIME, size_of

_WRAPPERS = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)
OTHER_VALUES = (
    "forward() gives other values at every call: what it draws outside of PyTorch, or remembers "
    "from the call before, cannot be folded"
)
_KEEP_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class Record(fx.GraphModule):
    """A graph and its modules, for an `fx.Interpreter`; never written as code, which not all names
    of modules would survive."""

    def recompile(self) -> None:
        pass


def copy_in_eval_mode(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU that may be changed: in eval mode, without wrappers.

    Raises:
        ReparameterizationError: if it has hooks, or layers that stay in training mode; by name.
    """
    copied = plain_copy(model).eval().cpu()
    for name, module in copied.named_modules():
        if module.training and isinstance(module, _KEEP_TRAINING):
            raise ReparameterizationError(
                f"{name!r} ({type(module).__name__}) stays in training mode after model.eval(): "
                "its output would depend on the whole batch, or on chance"
            )
    _fix_parametrizations(copied)
    return copied


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy without wrappers, in the mode and on the device of the model.

    Raises:
        ReparameterizationError: if it has hooks or parameters without a shape; by name.
    """
    copied, _ = copied_as_called(model)
    _check_hooks(copied)
    return unfuse(copied)


def copied_as_called(model: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """Return a copy without wrappers, hooks included, and the copies of all modules.

    Raises:
        ReparameterizationError: if it cannot be copied, or has layers without weights; by name.
    """
    if isinstance(_unwrapped(model), torch.jit.ScriptModule):
        raise ReparameterizationError("a scripted or traced module: give the one it was made of")
    for name, module in model.named_modules():
        if waits_for_weights(module):
            raise ReparameterizationError(
                f"{name!r} ({type(module).__name__}) is lazy and has no weights yet: run it once"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ReparameterizationError(
                f"{name!r} is on the meta device, and has no values: load the model's state first"
            )
    try:
        copied = copy.deepcopy(model, _plain_tensors_of(model))
    except Exception as error:
        raise ReparameterizationError(
            f"{type(model).__name__} cannot be copied (copy.deepcopy): {error}"
        ) from error
    copies = dict(zip(model.modules(), copied.modules(), strict=True))
    copied = _unwrapped(copied)
    for parent in [*copied.modules()]:
        for name, child in parent.named_children():
            if (unwrapped := _unwrapped(child)) is not child:
                setattr(parent, name, unwrapped)
    return copied, copies


def _unwrapped(model: nn.Module) -> nn.Module:
    while (compiled := getattr(model, "_orig_mod", None)) or isinstance(model, _WRAPPERS):
        model = compiled or model.get_submodule("module")
    return model


def _check_hooks(model: nn.Module) -> None:
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        raise ReparameterizationError("there are forward hooks on all modules: remove them")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ReparameterizationError(
                f"{name!r} ({type(module).__name__}) has forward hooks, which may change what it "
                "computes: remove them (torch.nn.utils.prune.remove, remove_weight_norm, ...)"
            )


def _plain_tensors_of(model: nn.Module) -> dict[int, Tensor]:
    """Return the memo of copy.deepcopy for tensors that are results, which it cannot copy."""
    memo: dict[int, Tensor] = {}
    seen: set[int] = set()

    def visit(value) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, (list, tuple, set)):
            for item in value:
                visit(item)

    for module in model.modules():
        visit(vars(module))
    return memo


def _fix_parametrizations(model: nn.Module) -> None:
    """Give layers whose weights are computed (weight norm, spectral norm) what these are now."""
    for module in [m for m in model.modules() if parametrize.is_parametrized(m)]:
        names = [name for name, _ in module.get_submodule("parametrizations").named_children()]
        values = {name: getattr(module, name).detach() for name in names}
        # Not remove_parametrizations: it changes the class, which the copied model shares.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        # weight_norm renames the keys of old files, by a hook that cannot be pickled.
        module._load_state_dict_pre_hooks.clear()
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value.clone()))


def trace(model: nn.Module, example: Tensor, times: int = 1) -> fx.GraphModule:
    """Record what `model`, from `copy_in_eval_mode`, makes of a batch like `example`.

    Args:
        times: The batch is this many times that of the example. With `PRIME`, sizes of the graph
            follow the batch; with other numbers they are constants.

    Returns:
        A graph over the modules of `model`, whose nodes have their values as ``meta["val"]``:
        without contents where they depend on the input. Nodes that nobody reads are part of it.

    Raises:
        ReparameterizationError: for what cannot be recorded, by name.
    """
    recorder = _recorded(model, example, times)
    return Record(recorder.root, recorder.graph)


def _recorded(model: nn.Module, example: Tensor, times: int):
    # The recorder takes PyTorch's compiler along: it is imported where it is needed.
    from realspike_ops.reparam.trace.recorder import Recorder

    recorder = Recorder(model, example.shape[0])
    try:
        with torch.inference_mode(False), torch.no_grad(), recorder.fake_mode:
            x = torch.empty(
                (example.shape[0] * times, *example.shape[1:]), dtype=example.dtype, device="cpu"
            )
            if example.dim() == 4 and example.is_contiguous(memory_format=torch.channels_last):
                x = x.contiguous(memory_format=torch.channels_last)
        # Whatever surrounds the call, forward runs as it would by itself.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.device("cpu"),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            recorder.run(x)
    except ReparameterizationError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ReparameterizationError(
            f"{recorder.place} cannot be run on example_input: {reason or type(error).__name__}"
        ) from error
    return recorder


def trace_of_any_batch(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, Tensor, bool]:
    """Trace `model` once for all batch sizes that it takes.

    Returns:
        The graph, the rows of the example that it was recorded for, and whether its batch is free:
        False where the model says the size of its batch as a number.

    Raises:
        ReparameterizationError: also if it does something else for another batch size.
    """
    if example.dim() == 0:
        raise ReparameterizationError("example_input must be a batch; it has no dimension")
    _check_inputs(model, example)
    rows = _few_rows(model, example)

    def called(rows: Tensor, times: int) -> list:
        return _recorded(copy.deepcopy(model), rows, times).called

    try:
        expected = called(rows, 1)
    except ReparameterizationError:
        if len(rows) == len(example):
            raise
        rows = example
        expected = called(rows, 1)

    def refuse(batch: int):
        if called(rows, 1) != expected:
            raise ReparameterizationError(OTHER_VALUES)
        raise ReparameterizationError(
            f"forward() does something else for a batch of {batch} than for one of {len(rows)}, or "
            "of many: neither control flow nor floating-point numbers nor dimensions (squeeze() "
            "drops a batch of 1: name the dimension) may depend on the size of the batch"
        )

    seen = {len(rows): expected}
    for few, times in ((rows, 2), (rows[:1], 1)):
        try:
            seen[len(few) * times] = called(few, times)
        except ReparameterizationError:
            if times == 2:
                return trace(model, rows), rows, False
        if _names(seen.get(len(few) * times, expected)) != _names(expected):
            refuse(len(few) * times)
    recorder = _recorded(model, rows, PRIME)
    for batch, others in seen.items():
        known = [size_of(number, batch, len(rows)) for number in recorder.called]
        if known != others:
            refuse(batch)
    return Record(recorder.root, recorder.graph), rows, True


def _names(called: list) -> list[str]:
    return [entry for entry in called if isinstance(entry, str)]


def _check_inputs(model: nn.Module, example: Tensor) -> None:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(example)
    except TypeError:
        needed = [
            repr(p.name)
            for p in signature.parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        names = ", ".join(needed[1:]) or "none"
        raise ReparameterizationError(
            f"a second input, {names}: exactly one is supported"
        ) from None


def _few_rows(model: nn.Module, example: Tensor) -> Tensor:
    """Return as few rows as a network that reads frames [T*B, ...] takes."""
    timesteps = [m.timesteps for m in model.modules() if isinstance(m, RealSpikeLIF)]
    least = math.lcm(*timesteps) if timesteps else 1
    if len(example) == 0:
        return example.new_zeros((least, *example.shape[1:]))
    return example[:least] if len(example) % least == 0 else example


def unused(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that nobody reads, or that only such nodes read."""
    found: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.op not in ("placeholder", "output") and found.issuperset(node.users):
            found.add(node)
    return found


def drop_unused(graph: fx.GraphModule) -> None:
    nodes = unused(graph)
    for node in reversed([*graph.graph.nodes]):
        if node in nodes:
            graph.graph.erase_node(node)
