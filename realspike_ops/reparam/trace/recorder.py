"""Records what `forward` does to its input, by running it on tensors that have no values.

Everything that PyTorch computes from the input passes the `Recorder`, whatever the Python around it
looks like. A value that does not depend on the input is computed as the model computes it, and is a
constant of the graph. Storages tell aliases, version counters tell changes in place.
"""

import logging
import operator
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from realspike_ops import _checks as checks
from realspike_ops.nn import RealSpikeLIF
from realspike_ops.nn.plain import why_not_plain
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.arguments import by_position, by_torch_names
from realspike_ops.reparam.trace.in_place import without_change
from realspike_ops.reparam.trace.names import called_name, layer_class
from realspike_ops.reparam.trace.sizes import batch_size, is_of_batch, of_batch

# The operators whose second operand is the tensor: 1 - x.
_SWAPPED = {
    f"__r{name}__": getattr(operator, name)
    for name in "add sub mul truediv floordiv mod pow matmul".split()
} | {"__rdiv__": operator.truediv}
# The attributes that may be set on a tensor without a change of its values.
_HARMLESS = frozenset({"requires_grad", "grad"})


class Recorder(TorchFunctionMode):
    """A graph of the calls that depend on the input.

    Args:
        root: The module whose forward is run; a copy in eval mode. Constants become its buffers.
        example_batch: The batch of the example: sizes of the graph are multiples of it.
    """

    def __init__(self, root: nn.Module, example_batch: int):
        super().__init__()
        self.root, self.graph = root, fx.Graph()
        self.example_batch = example_batch
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        # All calls and their numbers, in order, whether they are recorded or not.
        self.called: list = []
        self._last = "forward"
        self._calls: Counter = Counter()
        self._path: list[tuple[str, type]] = []
        self._is_inside = False  # a call whose own calls are its business
        self._draws = False  # whether the call that ran last drew random numbers
        self._nodes: dict[int, fx.Node] = {}  # by id of a tensor
        self._tensors: list[Tensor] = []  # those of the ids above, which no other tensor gets
        self._stale: dict[int, str] = {}  # views of what was changed, and by what
        self._sizes: dict[int, fx.Node] = {}
        self._in_place: list[Any] = []  # layers that are told to change their input
        self._names = {id(m): name for name, m in root.named_modules()}
        attributes = (*root.named_parameters(), *root.named_buffers())
        self._constants = {(id(t), _version(t)): name for name, t in attributes}

    def run(self, example: Tensor) -> None:  # a FakeTensor of `fake_mode`
        """Run forward on a tensor without values."""
        self.input = self.graph.placeholder("x")
        self.input.meta["val"] = example
        self._keep(example, self.input)
        with _calls_of(self), _quiet(), self:
            result = self.root(example)
        self._last = "return"
        self._refuse_stale(pytree.tree_leaves(result))
        output = self.graph.output(pytree.tree_map(self._argument, result))
        output.meta["val"] = result
        for layer in self._in_place:
            layer.inplace = False

    @property
    def place(self) -> str:
        """Where the run is, as an error names it."""
        path = self._path[-1][0] if self._path else ""
        last = repr(self._last)
        return f"{last} in {path!r}" if path and last != repr(path) else last

    def refuse(self, reason: str) -> NoReturn:
        raise ReparameterizationError(f"{self.place}: {reason}")

    # --- what is called

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = by_torch_names(func, kwargs or {})
        if self._is_inside:
            return func(*args, **kwargs)
        with self._inside():
            return self._noted(self._call_function(func, args, kwargs))

    def _call_function(self, func, args, kwargs):
        name = called_name(func)
        self._note(name, args, kwargs)
        if name.startswith("realspike::lif"):
            self.refuse(
                "neurons that are called as a function (lif) and not as a layer (RealSpikeLIF)"
            )
        if not self._depends(args, kwargs):
            with _WatchRandomness() as watch:
                result = func(*args, **kwargs)
            if not watch.is_random:
                return result
        accessor = getattr(func, "__name__", "")
        if accessor == "__set__":
            if name not in _HARMLESS:
                self.refuse(f"it sets .{name} of a tensor")
            return func(*args, **kwargs)
        if accessor == "__get__":
            return self._run("call_function", getattr, (args[0], name), {})
        is_method = getattr(Tensor, name, None) is func or (
            getattr(func, "__module__", None) == "torch._tensor"
        )
        if not is_method:
            return self._run("call_function", func, args, kwargs)
        if (swapped := _SWAPPED.get(name)) is not None:
            return self._run("call_function", swapped, args[::-1], kwargs)
        if name == "__getitem__":
            return self._run("call_function", operator.getitem, args, kwargs)
        return self._run("call_method", name, args, kwargs)

    def call_module(self, module: nn.Module, args, kwargs, forward):
        """Run a module that is called: a layer as a whole, any other through its own calls."""
        name = self._names.get(id(module))
        if name is None:
            name = self._names[id(module)] = self._unused(f"_{type(module).__name__}")
            self.root.add_module(name, module)
        self._path.append((name, type(module)))
        try:
            if self._is_inside or not self._depends(args, kwargs) or not self._is_layer(module):
                return forward(module, *args, **kwargs)
            args, kwargs = by_position(module, args, kwargs)
            self._note(name, args, kwargs)
            with self._inside():
                return self._noted(self._run("call_module", name, args, kwargs, forward))
        finally:
            self._path.pop()

    def _is_layer(self, module: nn.Module) -> bool:
        """Whether a module is one node of the graph: its class tells its computation."""
        base = layer_class(type(module))
        if base is None:
            return False
        reason = why_not_plain(module, base)
        if reason is not None and base.__module__.startswith("realspike_ops"):
            self.refuse(f"{type(module).__name__} is not a plain {base.__name__}: {reason}")
        return reason is None

    def _note(self, name: str, args, kwargs) -> None:
        self._last = name
        self.called.append(name)
        for leaf in _leaves(args, kwargs):
            if isinstance(leaf, (bool, int, float, str)):
                # A NaN is the same as another.
                self.called.append(repr(leaf) if isinstance(leaf, float) else leaf)

    def _noted(self, result):
        """Note of a result what no size of the batch may change."""
        if isinstance(result, Tensor):
            self.called.append(f"{result.dim()} dimensions")
        elif isinstance(result, (tuple, list)):
            self.called.append(f"{len(result)} results")
        return result

    # --- one call

    def _run(self, op: str, target, args, kwargs, forward: Callable | None = None) -> Any:
        if any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
            self.refuse("torch.autocast inside forward() is not kept: cast tensors by hand")
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self._refuse_stale(given)
        fakes = [self._fake(t) for t in given]
        versions = [_version(t) for t in fakes]
        try:
            with self.fake_mode, _WatchRandomness() as watch:
                own_args, own_kwargs = pytree.tree_map_only(Tensor, self._fake, (args, kwargs))
                result = self._result(op, target, own_args, own_kwargs, forward)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.refuse(
                f"{type(self.root).__name__} cannot be traced: what is done here depends on the "
                "values of the input (data-dependent control flow in forward())"
            )
        self._draws = watch.is_random
        changed = {
            id(t): t
            for t, fake, version in zip(given, fakes, versions, strict=True)
            if _version(fake) != version
        }
        if not changed:
            holds_tensors = any(isinstance(r, Tensor) for r in pytree.tree_leaves(result))
            return self._record(op, target, args, kwargs, result) if holds_tensors else result
        if any(id(t) in changed for t in pytree.tree_leaves(kwargs.get("out"))):
            self.refuse("it writes to out=...: use what it returns instead")
        if len(changed) > 1:
            self.refuse("it changes several tensors in place")
        # The change becomes a value of its own: whoever reads the tensor from now on reads that.
        (tensor,) = changed.values()
        functional: tuple | None = (op, target, args, kwargs)
        if op != "call_module":
            functional = without_change(op, target, args, kwargs, tensor)
        elif getattr(layer := self.root.get_submodule(target), "inplace", False):
            self._in_place.append(layer)
        else:
            functional = None
        if functional is None:
            self.refuse("it changes its argument in place, and has no form that does not")
        arguments: Any = (*functional, self._fake(tensor))
        node = self._node(*arguments)
        self._replace(tensor, node)
        if isinstance(result, Tensor):
            self._keep(result, node)
        return result

    def _result(self, op: str, target, args, kwargs, forward: Callable | None):
        if op == "call_method":
            return getattr(Tensor, target)(*args, **kwargs)
        if op == "call_function":
            return target(*args, **kwargs)
        module = self.root.get_submodule(target)
        if isinstance(module, RealSpikeLIF):
            return _fire(module, *args, **kwargs)
        assert forward is not None
        return forward(module, *args, **kwargs)

    def _record(self, op: str, target, args, kwargs, result):
        """Add a node, and one for each tensor of a tuple that it returns."""
        node = self._node(op, target, args, kwargs, result)
        if isinstance(result, Tensor):
            self._keep(result, node)
            return result
        for key, item in enumerate(result):
            if isinstance(item, Tensor):
                one = self._node("call_function", operator.getitem, (node, key), {}, item)
                self._keep(item, one)
        return result

    def _node(self, op: str, target, args, kwargs, result) -> fx.Node:
        args, kwargs = map_aggregate((tuple(args), kwargs), self._argument)
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta["val"] = result
        node.meta["draws"] = self._draws  # random numbers
        node.meta["call"] = self._calls[target] = self._calls[target] + 1
        node.meta["nn_module_stack"] = {name: (name, kind) for name, kind in self._path}
        return node

    # --- tensors and sizes

    def _depends(self, args, kwargs) -> bool:
        return any(
            id(leaf) in self._nodes or isinstance(leaf, FakeTensor) or is_of_batch(leaf)
            for leaf in _leaves(args, kwargs)
        )

    def _fake(self, tensor: Tensor) -> Tensor:
        is_fake = isinstance(tensor, FakeTensor)
        return tensor if is_fake else self.fake_mode.from_tensor(tensor, static_shapes=True)

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._stale.pop(id(tensor), None)
        self._tensors.append(tensor)

    def _replace(self, changed: Tensor, node: fx.Node) -> None:
        """Let all names of a tensor that was changed stand for `node`; its other views are old."""
        before = self._nodes.get(id(changed))
        what = "a constant" if before is None else repr(before.name)
        for tensor in [*self._tensors, changed]:
            if _storage(tensor) != _storage(changed):
                continue
            if _geometry(tensor) == _geometry(changed):
                self._keep(tensor, node)
            else:
                self._stale[id(tensor)] = f"{self.place} changes {what}"

    def _refuse_stale(self, values: list) -> None:
        for t in values:
            if id(t) in self._stale:
                self.refuse(
                    f"{self._stale[id(t)]} in place, which it reads under another name afterwards: "
                    "write it without changing it (x = x + y)"
                )

    def _argument(self, value):
        """Return the node of a tensor, or of a size of the batch; other values as they are."""
        if isinstance(value, Tensor):
            return self._nodes[id(value)] if id(value) in self._nodes else self._constant(value)
        if isinstance(value, torch.Generator):
            self.refuse("it draws random numbers from a torch.Generator of its own")
        if not is_of_batch(value):
            return value
        if value not in self._sizes:
            try:
                arguments = of_batch(value, self.example_batch)
            except ValueError as error:
                self.refuse(str(error))
            with self.graph.inserting_after(self.input):
                node = self.graph.call_function(batch_size, (self.input, *arguments))
            node.meta["val"] = int(value)
            self._sizes[value] = node
        return self._sizes[value]

    def _constant(self, tensor: Tensor) -> fx.Node:
        if isinstance(tensor, FakeTensor):
            self.refuse("it reads a tensor that was made by something else than PyTorch")
        # A constant that was changed since it was read last is another.
        key = (id(tensor), _version(tensor))
        name = self._constants.get(key)
        if name is None:
            name = self._constants[key] = self._unused("_constant")
            self.root.register_buffer(name, tensor.detach().clone())
            self._tensors.append(tensor)
        node = self.graph.get_attr(name)
        node.meta["val"] = tensor
        return node

    def _unused(self, name: str) -> str:
        count = 0
        while hasattr(self.root, f"{name}{count}"):
            count += 1
        return f"{name}{count}"

    @contextmanager
    def _inside(self):
        self._is_inside = True
        try:
            yield
        finally:
            self._is_inside = False


class _WatchRandomness(TorchDispatchMode):
    """Notes whether random numbers are drawn."""

    def __init__(self):
        super().__init__()
        self.is_random = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.is_random |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


@contextmanager
def _calls_of(recorder: Recorder):
    """Let the modules that this thread calls pass the recorder."""
    call, thread = nn.Module.__call__, get_ident()

    def recorded(module, *args, **kwargs):
        if get_ident() != thread or module is recorder.root:
            return call(module, *args, **kwargs)
        return recorder.call_module(module, args, kwargs, call)

    nn.Module.__call__ = recorded
    try:
        yield
    finally:
        nn.Module.__call__ = call


@contextmanager
def _quiet():
    """Errors are raised; the log of tensors without values has nothing to add."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def _fire(lif: RealSpikeLIF, x: Tensor) -> Tensor:
    """LIF layers are not run: their spikes do not matter here, nor the dtype that they take."""
    checks.check_tensor("x", x)
    if x.dim() < 1 or x.shape[0] % lif.timesteps:
        raise ValueError(
            f"{lif.timesteps} timesteps do not divide its input {checks.shape_text(x)}"
        )
    for name, parameter in lif.fitted(x.dim() - 1).items():
        if isinstance(parameter, Tensor):
            checks.check_parameter(name, parameter, x.shape[1:])
    return torch.zeros_like(x)


def _leaves(args, kwargs) -> list:
    """Return the values in the arguments of a call, also inside slices."""
    found: list = []
    map_aggregate((tuple(args), kwargs), found.append)
    return found


def _version(tensor: Tensor) -> int:
    """Return a number that every change in place raises; inference_mode() counts none."""
    return 0 if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _geometry(tensor: Tensor):
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype
