"""Steps that a device repeats by itself: recorded once, as a CUDA graph, and replayed.

A GPU takes a few milliseconds for a step of a ResNet, and the host several times that to start its
kernels one by one. A graph starts them all at once. It reads its inputs where they were when it was
recorded, and numbers of Python as they were then: so whatever differs from step to step is a tensor
that is copied into its place.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from realspike.errors import RunFailed

# Calls of each kind before it is recorded: they compile kernels, choose algorithms of cuDNN and
# allocate what lasts, such as momentum.
WARM_UP = 3


class Recorder(Protocol):
    """Runs and records functions without arguments that return a tensor."""

    def run(self, function: Callable[[], Tensor]) -> Tensor: ...

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return what repeats a function, which this call itself need not run."""
        ...


class CudaGraphs:
    """Records CUDA graphs that share their memory: one at a time is replayed."""

    def __init__(self):
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """Run a function on the stream on which it will be recorded."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            result = function()

        def replay() -> Tensor:
            graph.replay()
            return result.clone()  # the next graph may write there

        return replay


@dataclass
class _Kind:
    """Calls of one kind: where their inputs lie, and how often they ran."""

    inputs: list[Tensor]
    calls: int = 0
    replay: "Callable[[], Tensor] | None" = field(default=None)


class Captured:
    """A function of tensors that is run a few times as it is, then recorded, then replayed.

    Inputs of another shape or dtype, and other keyword arguments, are another kind of call, which
    is recorded by itself once it was seen often enough.

    Args:
        function: Takes tensors, and keyword arguments with a hash; returns a tensor. Everything
            else that it reads and changes must stay where it is in memory.
        recorder: Such as `CudaGraphs`.
        device: Of the inputs.
    """

    def __init__(
        self, function: Callable[..., Tensor], recorder: Recorder, device: "torch.device | str"
    ):
        self.function, self.recorder, self.device = function, recorder, device
        self.kinds: dict[Hashable, _Kind] = {}

    def __call__(self, *inputs: Tensor, **flags: Hashable) -> Tensor:
        key = (*((t.shape, t.dtype) for t in inputs), *flags.items())
        if key not in self.kinds:
            self.kinds[key] = _Kind([torch.empty_like(t, device=self.device) for t in inputs])
        kind = self.kinds[key]
        for place, value in zip(kind.inputs, inputs, strict=True):
            place.copy_(value, non_blocking=True)
        call = partial(self.function, *kind.inputs, **flags)
        if kind.calls < WARM_UP:
            kind.calls += 1
            return self.recorder.run(call)
        if kind.replay is None:
            kind.replay = self._recorded(call)
        return kind.replay()

    def _recorded(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        try:
            return self.recorder.record(call)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise RunFailed(
                f"a step of this network cannot be captured ({text:.200}): it waits for the device "
                "or reads what is not there; training.cuda_graph=false trains it step by step"
            ) from error
