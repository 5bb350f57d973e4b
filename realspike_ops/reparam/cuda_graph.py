"""A folded network that a GPU repeats by itself: recorded once as a CUDA graph, and replayed."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils import _pytree as pytree

from realspike_ops import _checks as checks
from realspike_ops._native import extension
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.network import FoldedNetwork
from realspike_ops.reparam.plan import Plan

# Calls before one is recorded: they compile kernels and choose algorithms of cuDNN.
WARM_UP = 3


class Recorder(Protocol):
    """Runs and records functions without arguments that return tensors."""

    def run(self, function: Callable[[], Any]) -> Any: ...

    def record(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return what repeats a function and returns copies of its tensors."""
        ...

    def turn(self) -> AbstractContextManager[None]:
        """Let the device run what is asked of it in here after what was asked in other turns."""
        ...


class CudaGraphs:
    """Records CUDA graphs of one device that share their memory: one at a time is replayed."""

    device_type = "cuda"

    def __init__(self, device: torch.device):
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        self._done = torch.cuda.Event()  # at the end of the last turn

    @contextmanager
    def turn(self) -> Iterator[None]:
        stream = torch.cuda.current_stream(self.stream.device)
        stream.wait_event(self._done)
        try:
            yield
        finally:
            self._done.record(stream)

    def run(self, function: Callable[[], Any]) -> Any:
        """Run a function on the stream on which it will be recorded."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            result = function()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
        return result

    def record(self, function: Callable[[], Any]) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = function()

        def replay() -> Any:
            with torch.cuda.device(self.stream.device):
                graph.replay()
                return pytree.tree_map_only(Tensor, torch.clone, result)

        return replay


class Graphed:
    """A captured folded network: call it as the network itself.

    `realspike_ops.graphed` makes it.

    Attributes:
        network: The network; what is written into its tensors is seen by the next call.
    """

    def __init__(self, network: FoldedNetwork, most: int):
        self.network = network
        self.most = most
        self._lock = threading.Lock()
        self._memory: _Memory | None = None
        self._recorder: Recorder | None = None
        # What to copy an input to, and what to replay then; the last one used stands last.
        self._graphs: OrderedDict[Any, tuple[Tensor, Callable[[], Any]]] = OrderedDict()

    def __call__(self, x: Tensor) -> Any:
        """Return what ``network(x)`` returns, to the bit, in tensors of the caller's own."""
        checks.check_tensor("x", x)
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("x must not require a gradient: a captured network is for inference")
        with self._lock, torch.no_grad():
            if self._memory is None or not self._memory.holds(self.network):
                self._begin()
            assert self._memory is not None
            if x.device != self._memory.device:
                raise ValueError(
                    f"x must be on {self._memory.device}, as the network is; got {x.device}"
                )
            self.network.check_input(x)
            key = (x.shape, x.stride(), x.dtype, *_autocast(x.device.type))
            assert self._recorder is not None
            with self._recorder.turn():
                if key not in self._graphs:
                    self._graphs[key] = self._captured(x)
                    if len(self._graphs) > self.most:
                        self._graphs.popitem(last=False)
                self._graphs.move_to_end(key)
                place, replay = self._graphs[key]
                place.copy_(x)
                return replay()

    def _begin(self) -> None:
        """Forget what was recorded of a network that is another one now."""
        self._graphs.clear()
        self._memory = None
        device = _device_of(self.network)
        self._memory = _Memory(self.network, device)
        self._recorder = CudaGraphs(device)

    def _captured(self, x: Tensor) -> tuple[Tensor, Callable[[], Any]]:
        recorder = self._recorder
        assert recorder is not None
        place = torch.empty_like(x).copy_(x)
        if place.stride() != x.stride():  # the layout that a copy of x has is the plain call's too
            raise ValueError(
                "x must be dense in memory to be captured (contiguous, channels_last or a "
                f"permutation); got strides {tuple(x.stride())} of shape {checks.shape_text(x)}"
            )

        enabled, dtype = _autocast(x.device.type)

        def call() -> Any:
            # A weight that autocast had cast before would be read as it was then.
            with torch.autocast(x.device.type, dtype, enabled, cache_enabled=False):
                return _run_by_name(self.network, place)

        for _ in range(WARM_UP):
            recorder.run(call)
        return place, recorder.record(call)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a captured network can be neither copied nor stored: save_folded stores the network, "
            "and graphed captures a copy anew"
        )

    def __repr__(self) -> str:
        return f"Graphed({len(self._graphs)} of up to {self.most} inputs recorded)\n{self.network}"


def graphed(folded: FoldedNetwork, example_input: Tensor, *, most: int = 8) -> Graphed:
    """Capture a folded network on a GPU as a CUDA graph, which starts all its kernels at once.

    .. math::
        graphed(folded, x)(x) = folded(x)

    The host of a network of small layers takes longer to start the kernels than a GPU to run them.
    A graph is started in one go. It is recorded, after some calls that compile and choose kernels,
    for the shape, memory layout and dtype of ``example_input``; other inputs (another batch) are
    recorded when they first come. What is written into the weights in place is seen. Where tensors,
    layers, hooks or settings were replaced, everything is recorded anew.

    Args:
        folded: What `reparameterize` returned, in eval mode, on one GPU, without hooks.
        example_input: An input, on the same GPU.
        most: Recordings that are kept; the one that was not used for longest goes first.

    Returns:
        A function of inputs, to be called as the network itself, for inference alone. Its outputs
        are copies: the next call does not write into them.

    Raises:
        TypeError: if ``folded`` is not a `FoldedNetwork`, or ``example_input`` not a tensor.
        ValueError: if the network is not on a GPU, or on several; if a layer is in training mode or
            has hooks, which a replay would pass by; if the input requires a gradient.
        ReparameterizationError: if a step waits for the device, as code that reads values does.

    Note:
        The outputs have the bits of the plain call. Calls take turns, whatever the thread and
        the stream.
    """
    if not isinstance(folded, FoldedNetwork):
        raise TypeError(
            f"folded must be a FoldedNetwork, as reparameterize returns it; "
            f"got {type(folded).__name__}"
        )
    run = Graphed(folded, checks.check_positive_int("most", most))
    run(example_input)
    return run


def _run_by_name(network: FoldedNetwork, x: Tensor) -> Any:
    """Run the steps; name the one that cannot be captured."""
    values = network.values_of(x)
    for call in Plan(network).calls:
        try:
            call.run(values)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise ReparameterizationError(
                f"step {call.name!r} ({type(call.module).__name__}) cannot be captured: it waits "
                f"for the device, or reads what is not there ({text:.200}); run the network as it "
                "is, or replace the step"
            ) from error
    return network.result_of(values)


def _autocast(device_type: str) -> tuple[Any, ...]:
    enabled = torch.is_autocast_enabled(device_type)
    return enabled, torch.get_autocast_dtype(device_type) if enabled else None


def _device_of(network: FoldedNetwork) -> torch.device:
    """Return the GPU of a network, or say why it cannot be captured."""
    found: torch.device | None = None
    for name, tensor in _tensors(network):
        if tensor.device.type != CudaGraphs.device_type:
            raise ValueError(
                f"folded must be on a GPU to be captured; {name} is on {tensor.device}: "
                "folded.cuda() moves it, and on a CPU the network itself is as fast"
            )
        if found not in (None, tensor.device):
            raise ValueError(
                f"folded must be on one device; {name} is on {tensor.device}, tensors before it on "
                f"{found}"
            )
        found = tensor.device
    if found is None:
        raise ValueError("folded must have a weight, which tells its device; it has none")
    if torch_module._global_forward_pre_hooks or torch_module._global_forward_hooks:
        raise ValueError("global forward hooks are not run by a replay: remove them")
    for name, module in network.named_modules():
        own = f"{name} ({type(module).__name__})" if name else "the network"
        if module.training:
            raise ValueError(f"folded must be in eval mode to be captured; {own} is training")
        if module._forward_pre_hooks or module._forward_hooks:
            raise ValueError(f"hooks are not run by a replay: remove those of {own}")
    return found


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())


class _Memory:
    """What a recording has taken as it was: tensors where they lie, modules, settings, hooks."""

    def __init__(self, network: FoldedNetwork, device: torch.device):
        self.device = device
        self._modules = list(network.modules())
        self._kinds = list(map(type, self._modules))
        dicts = [
            torch_module._global_forward_pre_hooks,
            torch_module._global_forward_hooks,
        ]
        for module in self._modules:
            dicts += [vars(module), module._parameters, module._buffers, module._modules]
            dicts += [module._forward_pre_hooks, module._forward_hooks]
        self._dicts = tuple(dicts)
        self._items = tuple(chain.from_iterable([*chain(*d.items()), None] for d in dicts))
        self._own = [tensor for _, tensor in _tensors(network)]
        self._aliases = [tensor.detach() for tensor in self._own]
        self._dtypes = [tensor.dtype for tensor in self._own]
        self._addresses = [tensor.data_ptr() for tensor in self._own]

    def holds(self, network: FoldedNetwork) -> bool:
        return (
            extension().hold(self._dicts, self._items)
            and list(map(type, self._modules)) == self._kinds
            and [tensor.dtype for tensor in self._own] == self._dtypes
            and [tensor.data_ptr() for tensor in self._own] == self._addresses
            and all(map(_same_memory, self._own, self._aliases))
        )


def _same_memory(tensor: Tensor, alias: Tensor) -> bool:
    return tensor.device == alias.device and tensor.is_set_to(alias)
